//! A model of the Intel I/OAT DMA engine (QuickData Technology, CBDMA), register for register.
//!
//! [`Ioat`] is a [`PciFunction`]: it is served on a vfio-user socket, or embedded in the same
//! process by [`Embedded`](crate::embedded::Embedded). It has one to eight channels, each
//! with a thread that executes descriptors: copy, fill and null, with fences, completion
//! words and interrupts. XOR and PQ are not offered.
//!
//! Sources: the QuickData Technology register chapters of the Intel Xeon E5 v2 and Xeon
//! Scalable datasheets (volume 2), and what the public drivers of Linux, DPDK and SPDK rely
//! on. Where these leave something open, the model does this:
//!
//! - An interrupt that is wanted while CHANCTRL bit 0 is not rearmed is held and delivered on
//!   rearming.
//! - A write to DMACOUNT resumes a suspended channel where it stopped.
//! - An address beyond [`IoatConfig::address_bits`] is an address error; one that nothing is
//!   mapped at is a data error, as is DMA while the function is not a bus master.
//! - A masked error (CHANERRMSK) halts the channel too, but does not interrupt and is not
//!   mirrored to CHANERR_INT.
//! - Which kind of interrupt is used follows from what the transport connected, or from what
//!   configuration space enables: MSI-X before MSI before INTx.

mod channel;
mod config;
mod control;
mod descriptor;
mod device;
mod engine;
mod execute;
pub mod fault;
mod registers;
mod stats;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use vfio_dma::backend::{IrqKind, Region};

pub use config::{IoatConfig, IoatError, MAX_CHANNELS, Personality, UnknownPersonality};
pub use fault::{Fault, FaultError, FaultPlan};
pub use registers::ChannelError;
pub use stats::Stats;

use crate::function::{Event, PciFunction};
use crate::link::LinkMeter;
use crate::memory::DmaMap;
use crate::pci::PowerState;
use crate::sync::thread::{self, JoinHandle};
use device::{Device, Life};
use stats::count;

/// An I/OAT function.
///
/// Dropping it stops its threads; none of them touches memory or raises an interrupt after
/// that.
pub struct Ioat {
    device: Arc<Device>,
    engines: Vec<JoinHandle<()>>,
}

impl Ioat {
    /// A function in its power-on state.
    ///
    /// # Errors
    ///
    /// Fails when a number of the configuration is out of range, and when a thread cannot be
    /// started.
    pub fn new(config: IoatConfig) -> Result<Ioat, IoatError> {
        let device = Arc::new(Device::new(config)?);
        let mut ioat = Ioat { device, engines: Vec::new() };
        for (n, channel) in (0u8..).zip(&ioat.device.channels) {
            let device = ioat.device.clone();
            debug_assert_eq!(channel.index, n);
            let engine = thread::Builder::new()
                .name(format!("ioat-channel{n}"))
                .spawn(move || engine::run(&device, &device.channels[usize::from(n)]))
                .map_err(|source| IoatError::Thread { channel: n, source })?;
            ioat.engines.push(engine);
        }
        Ok(ioat)
    }

    /// How the function is set up.
    #[must_use]
    pub fn config(&self) -> &IoatConfig {
        &self.device.config
    }

    /// What the function saw and did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let device = &self.device;
        let illegal = device.bar.illegal_accesses() + device.pci.illegal_accesses();
        let [delivered, _] = device.interrupts.counts();
        let done = device.channels.iter().fold([0, 0], |[descriptors, completions], channel| {
            [descriptors + channel.descriptors.get(), completions + channel.completions.get()]
        });
        device.counters.stats(done, illegal, delivered, device.memory.stats())
    }

    /// The meter that counts packets, when the configuration has one.
    #[must_use]
    pub fn meter(&self) -> Option<&LinkMeter> {
        self.device.config.meter.as_deref()
    }

    /// Puts a fault plan in force in place of the former one; its counts begin now.
    pub fn inject(&self, plan: FaultPlan) {
        self.device.inject(plan);
    }

    /// How often each rule of the fault plan in force took effect, in the order of its rules.
    ///
    /// A fault of a completion word or an interrupt takes effect only at a descriptor that asks
    /// for one.
    #[must_use]
    pub fn faults_fired(&self) -> Vec<u64> {
        self.device.faults_fired()
    }
}

impl fmt::Debug for Ioat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ioat").field("device", &self.device).finish_non_exhaustive()
    }
}

impl Drop for Ioat {
    fn drop(&mut self) {
        for channel in &self.device.channels {
            let mut state = channel.lock();
            state.stop = true;
            channel.abort();
            channel.poke(&state);
        }
        for engine in self.engines.drain(..) {
            if engine.join().is_err() {
                log::error!("a channel's thread panicked");
            }
        }
    }
}

impl PciFunction for Ioat {
    fn region_size(&self, region: Region) -> u64 {
        match region {
            Region::Bar(0) => registers::BAR_SIZE,
            Region::Config => 4096,
            _ => 0,
        }
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        let device = &*self.device;
        if device.life() == Life::Gone {
            data.fill(0xff);
            return;
        }
        match region {
            Region::Bar(0) => {
                count(&device.counters.register_reads);
                if let Some(meter) = &device.config.meter {
                    meter.host_read(data.len() as u64);
                }
                if device.pci.power_state() == PowerState::On {
                    device.bar.read(
                        offset,
                        data,
                        |reg| device.refresh(reg),
                        |reg, _| device.taken(reg),
                    );
                } else {
                    data.fill(0xff);
                }
            }
            Region::Config => {
                count(&device.counters.config_reads);
                device.refresh_config();
                device.pci.read(offset, data);
            }
            _ => data.fill(0xff),
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        let device = &*self.device;
        if device.life() == Life::Gone {
            return;
        }
        match region {
            Region::Bar(0) => {
                count(&device.counters.register_writes);
                if let Some(meter) = &device.config.meter {
                    meter.host_write(data.len() as u64);
                }
                if device.pci.power_state() == PowerState::On {
                    device.bar.write(offset, data, |reg, write| device.written(reg, write));
                }
            }
            Region::Config => {
                count(&device.counters.config_writes);
                if device.pci.write(offset, data).function_level_reset {
                    device.reset();
                } else {
                    device.mirror_written();
                    device.interrupts.mask_all_msix(device.pci.msix_masked());
                    device.update_line();
                }
            }
            _ => {}
        }
    }

    fn irq_count(&self, kind: IrqKind) -> u32 {
        self.device.interrupts.count(kind)
    }

    fn irq_connect(&self, kind: IrqKind, start: u32, events: &[Option<Event>]) {
        self.device.interrupts.connect(kind, start, events);
        self.device.restart_line();
    }

    fn irq_disconnect(&self, kind: IrqKind) {
        self.device.interrupts.disconnect(kind);
        self.device.update_line();
    }

    fn irq_set_masked(&self, kind: IrqKind, vector: u32, masked: bool) {
        self.device.interrupts.set_masked(kind, vector, masked);
    }

    fn irq_trigger(&self, kind: IrqKind, vector: u32) {
        self.device.interrupts.trigger(kind, vector);
    }

    fn reset(&self) {
        if self.device.life() != Life::Gone {
            self.device.reset();
        }
    }

    fn memory(&self) -> &DmaMap {
        &self.device.memory
    }

    fn wants_exit(&self) -> bool {
        self.device.life() == Life::Ended
    }
}
