//! An opened PCI device.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::{Backend, BackendError, IrqKind, Region, backend_error};
use crate::dma::{self, AddressSpace, Buffer, Constraints, DmaError, Pool, Reservation};
use crate::irq::{Interrupts, IrqError};
use crate::mmio::{Bar, MmioError};
use crate::pci::capability::PciExpress;
use crate::pci::{Capabilities, ConfigSpace, PciError, Remedy};

/// Opening a device, or talking to its generic parts, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Configuration space could not be read, or did not take a write.
    #[error(transparent)]
    Config(PciError),
    /// A BAR could not be opened.
    #[error(transparent)]
    Mmio(#[from] MmioError),
    /// Interrupts could not be set up.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// The address space could not be set up.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// The device is to be opened in an address space that is not its own.
    #[error("{location} does not translate through the address space it is to be opened in")]
    ForeignSpace {
        /// The device.
        location: String,
    },
    /// The device did not finish what it had begun after bus mastering was switched off.
    #[error("{location} still has transactions pending {} ms after bus mastering was switched off", .waited.as_millis())]
    StillBusy {
        /// The device.
        location: String,
        /// How long was waited.
        waited: Duration,
    },
}

impl From<PciError> for DeviceError {
    fn from(error: PciError) -> DeviceError {
        backend_error(error).map_or_else(DeviceError::Config, DeviceError::Backend)
    }
}

impl DeviceError {
    /// What the reader can do about it, where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<&Remedy> {
        match self {
            DeviceError::Backend(error)
            | DeviceError::Mmio(MmioError::Backend(error))
            | DeviceError::Irq(IrqError::Backend(error))
            | DeviceError::Dma(DmaError::Backend(error)) => error.remedy(),
            DeviceError::Config(error) => error.remedy(),
            _ => None,
        }
    }
}

/// How long a PCI Express function is given to finish its transactions; completion
/// timeouts end at 64 s, those of nearly every device within 50 ms (PCIe Base 4.0, 2.8).
const PENDING_LIMIT: Duration = Duration::from_secs(1);

/// An opened PCI device: configuration space, BARs, interrupts and an address space.
///
/// Bus mastering is off until [`Device::set_bus_master`] switches it on, and is switched
/// off again when the device is dropped.
#[derive(Debug)]
pub struct Device {
    backend: Arc<dyn Backend>,
    space: Arc<AddressSpace>,
    /// Put aside for as long as the device is open.
    pools: Mutex<Vec<Arc<Pool>>>,
}

impl Device {
    /// Opens a device in an address space of its own.
    ///
    /// # Errors
    ///
    /// Fails when configuration space or the IOMMU do not answer.
    pub fn open(backend: Arc<dyn Backend>) -> Result<Arc<Device>, DeviceError> {
        let space = AddressSpace::new(backend.iommu())?;
        Device::open_in(backend, &space)
    }

    /// Opens a device in an address space that other devices use too.
    ///
    /// # Errors
    ///
    /// Fails when the backend translates through another IOMMU, or does not answer.
    pub fn open_in(
        backend: Arc<dyn Backend>,
        space: &Arc<AddressSpace>,
    ) -> Result<Arc<Device>, DeviceError> {
        if !Arc::ptr_eq(backend.iommu(), space.iommu()) {
            return Err(DeviceError::ForeignSpace { location: backend.location() });
        }
        space.refresh()?;
        let device = Device { backend, space: Arc::clone(space), pools: Mutex::default() };
        device.config().check_present()?;
        device.set_bus_master(false)?;
        Ok(Arc::new(device))
    }

    /// How the device is reached.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// The address space that its buffers are mapped in.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Its configuration space.
    #[must_use]
    pub fn config(&self) -> ConfigSpace<&dyn Backend> {
        ConfigSpace::new(&*self.backend)
    }

    /// Its capabilities.
    ///
    /// # Errors
    ///
    /// Fails when configuration space cannot be read.
    pub fn capabilities(&self) -> Result<Capabilities, DeviceError> {
        Ok(Capabilities::read(&self.config())?)
    }

    /// Whether transactions that the function began are pending (PCI Express Base 4.0,
    /// 7.5.3.5); `None` for a function without the capability, which has no such bit.
    ///
    /// # Errors
    ///
    /// Fails when configuration space cannot be read.
    pub fn transactions_pending(&self) -> Result<Option<bool>, DeviceError> {
        self.device_status()?.map(|register| self.is_pending(register)).transpose()
    }

    /// Offset of the device status register of PCI Express.
    fn device_status(&self) -> Result<Option<u16>, DeviceError> {
        let capabilities = self.capabilities()?;
        Ok(capabilities.pci_express().map(|(offset, _)| offset + PciExpress::DEVICE_STATUS))
    }

    fn is_pending(&self, device_status: u16) -> Result<bool, DeviceError> {
        let status = self.config().read_u16(device_status)?;
        Ok(status & PciExpress::TRANSACTIONS_PENDING != 0)
    }

    /// Opens BAR `index` (0 to 5), mapped where it can be.
    ///
    /// # Errors
    ///
    /// Fails when the device does not implement the BAR, or a mapping fails.
    pub fn bar(&self, index: u8) -> Result<Bar, DeviceError> {
        if index > 5 {
            return Err(BackendError::NoRegion { region: Region::Bar(index) }.into());
        }
        Ok(Bar::open(&self.backend, Region::Bar(index))?)
    }

    /// Enables `count` interrupt vectors of a kind.
    ///
    /// # Errors
    ///
    /// Fails when the device has fewer, or another kind is enabled.
    pub fn interrupts(&self, kind: IrqKind, count: u32) -> Result<Interrupts, DeviceError> {
        Ok(Interrupts::enable(&self.backend, kind, count)?)
    }

    /// Places a buffer that the device reads or writes.
    ///
    /// # Errors
    ///
    /// Says what was tried and why it failed.
    pub fn allocate(&self, request: &dma::Request) -> Result<Buffer, DeviceError> {
        Ok(dma::place(&self.space, &self.backend, request)?)
    }

    /// Puts contiguous blocks aside, which buffers are taken from until the device is
    /// closed. Devices in the same address space take from them too.
    ///
    /// # Errors
    ///
    /// Says why the first block that failed cannot be had; nothing is reserved then.
    pub fn reserve(
        &self,
        reservations: &[Reservation],
        constraints: Constraints,
    ) -> Result<Arc<Pool>, DeviceError> {
        let pool = Pool::reserve(&self.space, &self.backend, reservations, constraints)?;
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.push(Arc::clone(&pool));
        Ok(pool)
    }

    /// Makes a buffer of a part of a file, see [`dma::place_in_file`].
    ///
    /// # Errors
    ///
    /// As [`dma::place_in_file`].
    pub fn adopt_file(
        &self,
        file: impl AsFd,
        offset: u64,
        request: &dma::Request,
    ) -> Result<Buffer, DeviceError> {
        Ok(dma::place_in_file(&self.space, &self.backend, file, offset, request)?)
    }

    /// Makes a buffer of memory of this process, see [`dma::place_in_range`].
    ///
    /// # Errors
    ///
    /// As [`dma::place_in_range`].
    ///
    /// # Safety
    ///
    /// As [`dma::place_in_range`].
    pub unsafe fn adopt(
        &self,
        base: NonNull<u8>,
        request: &dma::Request,
    ) -> Result<Buffer, DeviceError> {
        // SAFETY: the caller's promise is the same.
        Ok(unsafe { dma::place_in_range(&self.space, &self.backend, base, request) }?)
    }

    /// Switches the device's right to start DMA and to send MSIs on or off.
    ///
    /// # Errors
    ///
    /// Fails when the command register does not take the bit.
    pub fn set_bus_master(&self, on: bool) -> Result<(), DeviceError> {
        Ok(self.config().set_bus_master(on)?)
    }

    /// Resets the function. Bus mastering is off afterwards.
    ///
    /// # Errors
    ///
    /// Fails when the kernel or the device has no way to reset the function alone.
    pub fn reset(&self) -> Result<(), DeviceError> {
        self.backend.reset()?;
        self.set_bus_master(false)
    }

    /// Takes away the device's right to start DMA and waits until what it had begun is done.
    ///
    /// When this succeeds, no buffer is read or written by the device any more.
    ///
    /// # Errors
    ///
    /// Fails when the command register does not take the bit, or a PCI Express function
    /// has transactions pending for longer than 1 s.
    pub fn quiesce(&self) -> Result<(), DeviceError> {
        self.set_bus_master(false)?;
        let Some(register) = self.device_status()? else { return Ok(()) };
        let begin = Instant::now();
        // Reading the command register back has flushed the function's posted writes
        // (PCI 3.0, 3.2.5); reads that it has begun may still be on their way.
        while self.is_pending(register)? {
            if begin.elapsed() > PENDING_LIMIT {
                let location = self.backend.location();
                return Err(DeviceError::StillBusy { location, waited: begin.elapsed() });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = self.set_bus_master(false) {
            log::error!("{}: {error}", self.backend.location());
        }
    }
}
