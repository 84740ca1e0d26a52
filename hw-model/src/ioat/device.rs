//! The function as its channels share it: registers with their side effects, and interrupts.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vfio_dma::backend::IrqKind;

use super::channel::{Channel, State};
use super::config::{IoatConfig, IoatError};
use super::fault::{DescriptorFaults, Fault, FaultPlan, InForce, Planned};
use super::registers::{
    CHANCTRL_INTERRUPT_DISABLED, ChannelIds, FunctionIds, INTRCTRL_ENABLE, INTRCTRL_INTERRUPT,
    INTRCTRL_STATUS, INTRDELAY_TIME, Reg, bar0, config_space,
};
use super::stats::{Counters, count};
use crate::bus_master::BusMaster;
use crate::memory::DmaMap;
use crate::pci::msix::Part;
use crate::pci::{ConfigSpace, Interrupts};
use crate::regs::rate::RateLimit;
use crate::regs::{LayoutError, RegisterSet, Write};
use crate::sync::{AtomicBool, AtomicU8, Instant, Mutex};

/// The version from which on CHANERR_INT need not be cleared for a channel to start again.
pub(super) const VERSION_3_3: u8 = 0x33;

/// Whether the function still takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Life {
    Alive,
    /// It has left the bus.
    Gone,
    /// It asked its server to end.
    Ended,
}

#[derive(Debug)]
pub(super) struct Device {
    pub(super) config: IoatConfig,
    pub(super) pci: ConfigSpace,
    pub(super) bar: RegisterSet<Reg>,
    pub(super) interrupts: Interrupts,
    pub(super) memory: DmaMap,
    pub(super) channels: Vec<Channel>,
    pub(super) counters: Counters,
    pub(super) ids: FunctionIds,
    /// The last level of the interrupt line: MSI is sent when it rises.
    line: Mutex<bool>,
    faults: Mutex<InForce>,
    faulty: AtomicBool,
    life: AtomicU8,
    /// What software can make happen as often as it likes is not logged as often.
    pub(super) log: RateLimit,
}

impl Device {
    pub(super) fn new(config: IoatConfig) -> Result<Device, IoatError> {
        config.check()?;
        let pci = config_space(&config)?;
        let bar = bar0(&config)?;
        let missing = LayoutError::Place { name: "a register of the device", offset: 0 };
        let ids = FunctionIds::of(&bar, &pci).ok_or_else(|| missing.clone())?;
        let channels = (0..config.channels)
            .map(|n| ChannelIds::of(&bar, n).map(|ids| Channel::new(n, ids)))
            .collect::<Option<_>>()
            .ok_or(missing)?;
        Ok(Device {
            interrupts: Interrupts::new(1, 1, config.channels.into()),
            memory: DmaMap::new(),
            counters: Counters::default(),
            ids,
            line: Mutex::new(false),
            faulty: AtomicBool::new(!config.faults.is_empty()),
            faults: Mutex::new(InForce::new(config.faults.clone())),
            life: AtomicU8::new(Life::Alive as u8),
            log: RateLimit::default(),
            config,
            pci,
            bar,
            channels,
        })
    }

    /// A way to the memory for one access.
    pub(super) fn bus_master(&self) -> BusMaster<'_> {
        BusMaster::new(&self.memory, self.config.meter.as_deref())
    }

    pub(super) fn life(&self) -> Life {
        match self.life.load(Ordering::Acquire) {
            0 => Life::Alive,
            1 => Life::Gone,
            _ => Life::Ended,
        }
    }

    pub(super) fn end(&self, fault: Fault) {
        let life = if fault == Fault::Exit { Life::Ended } else { Life::Gone };
        self.life.store(life as u8, Ordering::Release);
    }

    // Faults.

    pub(super) fn inject(&self, plan: FaultPlan) {
        // Before the plan: a fault takes effect with its channel locked.
        let mut states: Vec<_> = self.channels.iter().map(|channel| channel.lock()).collect();
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        self.faulty.store(!plan.is_empty(), Ordering::Release);
        *faults = InForce::new(plan);
        for (channel, state) in self.channels.iter().zip(&mut states) {
            state.fault_counts = Default::default();
            // A run that began without faults ends after the descriptor in hand.
            channel.poke(state);
        }
    }

    /// Whether anything is to go wrong.
    pub(super) fn faulty(&self) -> bool {
        self.faulty.load(Ordering::Acquire)
    }

    pub(super) fn plan<T: Default>(&self, look: impl FnOnce(&FaultPlan) -> T) -> T {
        if !self.faulty() {
            return T::default();
        }
        look(&self.faults.lock().unwrap_or_else(PoisonError::into_inner).plan)
    }

    /// A fault takes effect.
    pub(super) fn fired(&self, rule: usize) {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        // Another plan may have been put in force meanwhile.
        if let Some(fired) = faults.fired.get_mut(rule) {
            *fired += 1;
        }
    }

    /// A fault of this kind takes effect; what it is.
    pub(super) fn fire(&self, planned: Option<Planned>) -> Option<Fault> {
        let Planned { rule, fault } = planned?;
        self.fired(rule);
        Some(fault)
    }

    pub(super) fn faults_fired(&self) -> Vec<u64> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).fired.clone()
    }

    /// What goes wrong with a channel's `number`th descriptor. The channel must not be locked.
    pub(super) fn descriptor_faults(&self, channel: &Channel, number: u64) -> DescriptorFaults {
        self.plan(|plan| plan.descriptor(channel.index, number))
    }

    // Registers.

    /// Brings registers up to date that follow from others, before they are read.
    pub(super) fn refresh(&self, reg: Reg) {
        match reg {
            Reg::InterruptControl => {
                let id = self.ids.interrupt_control;
                let status = self.bar.get(self.ids.attention) != 0;
                let enabled = self.bar.get(id) & INTRCTRL_ENABLE != 0;
                self.bar.clear_bits(id, INTRCTRL_STATUS | INTRCTRL_INTERRUPT);
                let status_bit = if status { INTRCTRL_STATUS } else { 0 };
                let both = if status && enabled { INTRCTRL_INTERRUPT } else { 0 };
                self.bar.set_bits(id, status_bit | both);
            }
            Reg::MsiX(Part::Pending, _) => {
                self.bar.set(self.ids.pending, self.interrupts.pending(IrqKind::MsiX));
            }
            _ => {}
        }
    }

    /// Brings configuration space up to date, before it is read: an engine that executes
    /// descriptors has transactions pending. Nothing else that it does reaches memory once
    /// bus mastering is off: that is looked at with the channel's lock held.
    pub(super) fn refresh_config(&self) {
        self.pci.show_pending(self.channels.iter().any(|channel| channel.lock().running));
    }

    /// A register was read.
    pub(super) fn taken(&self, reg: Reg) {
        if reg == Reg::AttentionStatus {
            // The line fell when the bits were cleared, and rises again for one that was set
            // since: without that, MSI would miss it.
            self.restart_line();
        }
    }

    /// A register was written.
    pub(super) fn written(&self, reg: Reg, write: Write) {
        match reg {
            Reg::Channel(index, reg) => {
                if let Some(channel) = self.channels.get(usize::from(index)) {
                    self.channel_written(channel, reg, write);
                }
            }
            Reg::InterruptControl => self.update_line(),
            _ => {}
        }
    }

    // Interrupts.

    /// The channel wants an interrupt. Returns whether it is to be delivered now: not while
    /// the channel is not rearmed, and not before the delay has passed. It is held until
    /// then, and joined by others.
    pub(super) fn want_interrupt(&self, channel: &Channel, state: &mut State) -> bool {
        state.interrupt = true;
        self.take_interrupt(channel, state)
    }

    /// Whether a wanted interrupt is to be delivered now; it is taken then.
    pub(super) fn take_interrupt(&self, channel: &Channel, state: &mut State) -> bool {
        let disabled = self.bar.get(channel.ids.control) & CHANCTRL_INTERRUPT_DISABLED != 0;
        if !state.interrupt || disabled {
            return false;
        }
        let delay = Duration::from_micros(self.bar.get(self.ids.delay) & INTRDELAY_TIME);
        if !delay.is_zero() {
            let now = Instant::now();
            let due = *state.interrupt_due.get_or_insert(now + delay);
            if now < due {
                return false;
            }
        }
        state.interrupt = false;
        state.interrupt_due = None;
        self.bar.set_bits(channel.ids.control, CHANCTRL_INTERRUPT_DISABLED);
        true
    }

    /// Raises a channel's interrupt: its MSI-X vector, or the line that MSI and INTx share.
    /// The channel must not be locked.
    pub(super) fn deliver(&self, channel: &Channel) {
        count(&self.counters.interrupts);
        self.bar.set_bits(self.ids.attention, 1 << channel.index);
        if self.msix_in_use() {
            if self.pci.may_issue_requests() {
                if let Some(meter) = &self.config.meter {
                    meter.msi();
                }
                self.interrupts.signal(IrqKind::MsiX, channel.index.into());
            }
        } else {
            self.update_line();
        }
    }

    fn msix_in_use(&self) -> bool {
        self.interrupts.connected(IrqKind::MsiX) || self.pci.msix_enabled()
    }

    fn msi_in_use(&self) -> bool {
        self.interrupts.connected(IrqKind::Msi) || self.pci.msi_enabled()
    }

    /// The line fell, or leads elsewhere now: an attention that is there makes it rise.
    pub(super) fn restart_line(&self) {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.update_line();
    }

    /// Brings the line up to date with ATTNSTATUS, INTRCTRL and the Command register.
    pub(super) fn update_line(&self) {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let enabled = self.bar.get(self.ids.interrupt_control) & INTRCTRL_ENABLE != 0;
        let attention = self.bar.get(self.ids.attention) != 0;
        let high = enabled && attention && !self.msix_in_use();
        let msi = self.msi_in_use();
        if high && msi && !*line && self.pci.may_issue_requests() {
            if let Some(meter) = &self.config.meter {
                meter.msi();
            }
            self.interrupts.signal(IrqKind::Msi, 0);
        }
        *line = high;
        self.pci.show_interrupt(high && !msi);
        self.interrupts.set_level(high && !msi && !self.pci.intx_disabled());
    }

    // Reset.

    /// A function-level reset: every engine is quiet and every register has its reset value
    /// when this returns.
    pub(super) fn reset(&self) {
        for channel in &self.channels {
            let mut state = channel.lock();
            state.reset = true;
            if state.busy {
                channel.abort();
            }
            channel.poke(&state);
        }
        for channel in &self.channels {
            let mut state = channel.wait_quiet(channel.lock());
            if state.busy {
                log::error!("channel {}: the engine does not stop", channel.index);
            }
            state.power_cycle();
        }
        count(&self.counters.resets);
        self.pci.reset();
        self.bar.reset();
        self.interrupts.reset();
        self.restart_line();
    }
}
