//! What the parts of one opened function share: the only way to its command register.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::{DecodeOff, DeviceError};
use crate::backend::{Affected, Backend, BackendError, Event, Lending, Region};
use crate::dma::peer::PeerMemory;
use crate::events::{Events, Watch};
use crate::irq;
use crate::mmio::{Bar, poll_until};
use crate::pci::capability::{Body, PciExpress, id};
use crate::pci::config::{Command, reg};
use crate::pci::{Address, Capabilities, ConfigSpace};
use crate::sync::{Mutex, MutexGuard};

/// How long a PCI Express function is given to finish its transactions; completion
/// timeouts end at 64 s, those of nearly every device within 50 ms (PCIe Base 4.0, 2.8).
const PENDING_LIMIT: Duration = Duration::from_secs(1);

/// Offset of the control and status register in the power management capability (PCI Power
/// Management 1.2, 3.2.4); its bits 1:0 are the power state.
const PMCSR: u16 = 4;

/// One opened function, shared by its device, and by what must be able to stop it.
///
/// Everything that changes the command register goes through the lock here: a read, a
/// change and a write are one step, so that nothing gives bus mastering back that was
/// taken away meanwhile.
pub(crate) struct Function {
    backend: Arc<dyn Backend>,
    location: String,
    /// Offset of PMCSR, where the function has one.
    pmcsr: Option<u16>,
    /// Offset of the device status register of PCI Express.
    device_status: Option<u16>,
    control: Mutex<Control>,
    vectors: irq::Claim,
    /// Held by every BAR with a mapping.
    mapped: Arc<()>,
    events: Events,
    _watches: Vec<Watch>,
}

#[derive(Default)]
struct Control {
    /// Kept until the function is known quiet.
    parked: Vec<Box<dyn Any + Send>>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Function {
    /// Takes a function over: bus mastering is off then.
    pub(super) fn new(backend: Arc<dyn Backend>) -> Result<Arc<Function>, DeviceError> {
        let location = backend.location();
        let config = ConfigSpace::new(&*backend);
        let capabilities = Capabilities::read(&config)?;
        let power = capabilities.find(id::POWER_MANAGEMENT);
        let pmcsr = power.filter(|power| matches!(power.body, Body::PowerManagement(_)));
        let device_status =
            capabilities.pci_express().map(|(offset, _)| offset + PciExpress::DEVICE_STATUS);
        let events = Events::new(location.clone())?;
        let _watches = events.watch(&backend);
        let function = Function {
            location,
            pmcsr: pmcsr.map(|power| power.offset + PMCSR),
            device_status,
            control: Mutex::default(),
            vectors: irq::Claim::default(),
            mapped: Arc::default(),
            events,
            _watches,
            backend,
        };
        function.set_command(Command::BUS_MASTER, false)?;
        Ok(Arc::new(function))
    }

    pub(super) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    pub(crate) fn location(&self) -> &str {
        &self.location
    }

    pub(super) fn vectors(&self) -> &irq::Claim {
        &self.vectors
    }

    pub(super) fn events(&self) -> &Events {
        &self.events
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        // Nothing that can panic runs between two changes that belong together.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn config(&self) -> ConfigSpace<&dyn Backend> {
        ConfigSpace::new(&*self.backend)
    }

    pub(super) fn set_bus_master(&self, on: bool) -> Result<(), DeviceError> {
        self.set_command(Command::BUS_MASTER, on)
    }

    fn set_command(&self, bits: Command, on: bool) -> Result<(), DeviceError> {
        let _control = self.lock();
        self.set_command_bits(bits, on)
    }

    /// Changes bits of the command register, with the lock held. While a BAR is mapped the
    /// memory space bit is written as set, whatever it reads: somebody else may have cleared
    /// it past this process, and VFIO takes a mapping away when it is written as clear.
    fn set_command_bits(&self, bits: Command, on: bool) -> Result<(), DeviceError> {
        let config = self.config();
        if self.is_mapped() {
            config.set_command_keeping(bits, on, Command::MEMORY_SPACE)?;
        } else {
            config.set_command(bits, on)?;
        }
        Ok(())
    }

    fn is_mapped(&self) -> bool {
        Arc::strong_count(&self.mapped) > 1
    }

    /// Opens a BAR, if a mapping of it would be answered.
    pub(super) fn bar(&self, region: Region) -> Result<Bar, DeviceError> {
        // Held until the BAR counts as mapped: no write can get in between.
        let _control = self.lock();
        if !self.backend.region_info(region)?.mappable.is_empty()
            && let Some(reason) = self.decode_off()?
        {
            return Err(DeviceError::NotDecoding { location: self.location.clone(), reason });
        }
        Ok(Bar::open(&self.backend, region, &self.events, &self.mapped)?)
    }

    /// Takes a part of a BAR for another device, if it would answer; it counts as mapped then.
    pub(super) fn lend(
        &self,
        way: Lending,
        region: Region,
        range: Range<u64>,
    ) -> Result<PeerMemory, DeviceError> {
        let _control = self.lock();
        if let Some(reason) = self.decode_off()? {
            return Err(DeviceError::NotDecoding { location: self.location.clone(), reason });
        }
        Ok(PeerMemory::lend(way, &self.backend, region, range, &self.mapped)?)
    }

    fn decode_off(&self) -> Result<Option<DecodeOff>, DeviceError> {
        if let Some(pmcsr) = self.pmcsr
            && let state @ 1.. = self.config().read_u8(pmcsr)? & 3
        {
            return Ok(Some(DecodeOff::PowerState { state }));
        }
        let memory = self.config().command()?.contains(Command::MEMORY_SPACE);
        Ok((!memory).then_some(DecodeOff::MemorySpace))
    }

    /// Writes to configuration space for the device's owner.
    ///
    /// The bus master bit stays as it is. A write that would stop the function from
    /// answering is refused while a BAR is mapped: an access to the mapping would be a
    /// SIGBUS.
    pub(super) fn write_config(&self, offset: u16, data: &[u8]) -> Result<(), DeviceError> {
        let _control = self.lock();
        let byte_at = |register: u16| register.checked_sub(offset).map(usize::from);
        let refuse = |reason| DeviceError::BarsMapped {
            location: self.location.clone(),
            offset,
            len: data.len(),
            reason,
        };
        let is_mapped = self.is_mapped();
        if let Some(&state) = self.pmcsr.and_then(byte_at).and_then(|at| data.get(at))
            && let state @ 1.. = state & 3
            && is_mapped
        {
            return Err(refuse(DecodeOff::PowerState { state }));
        }
        let Some(at) = byte_at(reg::COMMAND).filter(|&at| at < data.len()) else {
            return Ok(self.backend.region_write(Region::Config, offset.into(), data)?);
        };
        let (memory, master) =
            (Command::MEMORY_SPACE.bits() as u8, Command::BUS_MASTER.bits() as u8);
        if data[at] & memory == 0 && is_mapped {
            return Err(refuse(DecodeOff::MemorySpace));
        }
        let mut data = data.to_vec();
        data[at] = data[at] & !master | self.config().read_u8(reg::COMMAND)? & master;
        Ok(self.backend.region_write(Region::Config, offset.into(), &data)?)
    }

    /// Whether transactions that the function began are pending; `None` where it has no bit
    /// that tells.
    pub(super) fn transactions_pending(&self) -> Result<Option<bool>, DeviceError> {
        let Some(register) = self.device_status else { return Ok(None) };
        self.config().check_present()?;
        let status = self.config().read_u16(register)?;
        Ok(Some(status & PciExpress::TRANSACTIONS_PENDING != 0))
    }

    /// Takes bus mastering away and waits until what the function had begun is done; drops
    /// what was parked then.
    ///
    /// A function that is to be removed and does not answer is closed: the kernel stops it
    /// then, and nobody is to use it any more.
    pub(crate) fn quiesce(&self) -> Result<(), DeviceError> {
        let mut control = self.lock();
        if !self.events.is_closed()
            && let Err(error) = self.stop()
        {
            let is_leaving = self.events.pending() == Some(Event::Removal);
            if !is_leaving || !self.events.revoke(&*self.backend) {
                return Err(error);
            }
        }
        let parked = std::mem::take(&mut control.parked);
        drop(control);
        // Outside of the lock: what is dropped may come back to the function.
        drop(parked);
        Ok(())
    }

    /// Takes bus mastering away and waits for what is under way, with the lock held.
    fn stop(&self) -> Result<(), DeviceError> {
        self.set_command_bits(Command::BUS_MASTER, false)?;
        // Reading the command register back has flushed the function's posted writes
        // (PCI 3.0, 3.2.5); reads that it has begun may still be on their way.
        let idle = poll_until(PENDING_LIMIT, || {
            let pending = self.transactions_pending()?.unwrap_or(false);
            Ok::<_, DeviceError>((!pending).then_some(()))
        })?;
        idle.ok_or_else(|| DeviceError::StillBusy {
            location: self.location.clone(),
            waited: PENDING_LIMIT,
        })
    }

    /// Resets the function; what was parked is dropped, for a function that was reset has
    /// forgotten every address it was told.
    pub(super) fn reset(&self) -> Result<(), DeviceError> {
        reset_together(&mut [self], || Ok(self.backend.reset()?))
    }

    /// What a reset of its slot or bus hits, if this process owns all of it.
    pub(super) fn check_bus_reset(&self) -> Result<Vec<Affected>, DeviceError> {
        let scope = self.backend.bus_reset_scope()?;
        let foreign = scope.iter().filter(|affected| !affected.owned);
        let functions: Vec<Address> = foreign.map(|affected| affected.address).collect();
        if functions.is_empty() {
            return Ok(scope);
        }
        Err(BackendError::not_owned(self.location.clone(), functions).into())
    }

    /// Resets all functions of its slot or bus, which the caller owns: this one and the others.
    pub(super) fn reset_bus(&self, others: &[&Function]) -> Result<(), DeviceError> {
        let scope = self.check_bus_reset()?;
        let mut hit: Vec<&Function> = others.iter().copied().chain([self]).collect();
        let is_named = |affected: &Affected| {
            let address = affected.address.to_string();
            hit.iter().any(|function| function.location == address)
        };
        let left = scope.iter().filter(|affected| affected.open_here && !is_named(affected));
        let functions: Vec<Address> = left.map(|affected| affected.address).collect();
        if !functions.is_empty() {
            let location = self.location.clone();
            return Err(DeviceError::ResetHits { location, functions });
        }
        // One that the reset does not reach has not forgotten its addresses.
        let addresses: Vec<String> =
            scope.iter().map(|affected| affected.address.to_string()).collect();
        hit.retain(|function| addresses.contains(&function.location));
        reset_together(&mut hit, || Ok(self.backend.reset_bus()?))
    }

    /// Keeps something until the function is known quiet.
    pub(crate) fn park(&self, item: Box<dyn Any + Send>) {
        self.lock().parked.push(item);
    }
}

/// Resets functions at once; what was parked for any of them is dropped.
fn reset_together(
    functions: &mut [&Function],
    reset: impl FnOnce() -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    // In one order, whoever calls: each waits for the same lock first.
    functions.sort_by_key(|function| std::ptr::from_ref(*function).addr());
    let mut controls: Vec<_> = functions.iter().map(|function| function.lock()).collect();
    reset()?;
    let mut parked = Vec::new();
    let mut outcome = Ok(());
    for (function, control) in functions.iter().zip(&mut controls) {
        function.events.was_reset();
        match function.set_command_bits(Command::BUS_MASTER, false) {
            Ok(()) => parked.append(&mut control.parked),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    drop(controls);
    // Outside of the locks: what is dropped may come back to a function.
    drop(parked);
    outcome
}

impl Drop for Function {
    fn drop(&mut self) {
        let parked = std::mem::take(&mut self.lock().parked);
        if parked.is_empty() {
            return;
        }
        match self.quiesce() {
            Ok(()) => drop(parked),
            Err(error) => {
                log::error!(
                    "{}: what it may still reach stays mapped and allocated: {error}",
                    self.location
                );
                std::mem::forget(parked);
            }
        }
    }
}
