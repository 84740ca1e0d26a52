//! An opened PCI device, which one owner has.
//!
//! A [`Device`] is unique: a driver takes it by value, and whoever has no driver's handle
//! can change nothing of it. Its parts (BARs, interrupt vectors, buffers) are values of
//! their own, which may go to other threads.
//!
//! ```compile_fail,E0382
//! # use vfio_dma::device::Device;
//! # use vfio_dma::devices::edu::{Config, Edu};
//! # fn f(device: Device) {
//! let first = Edu::open(device, Config::default());
//! let second = Edu::open(device, Config::default()); // the first driver has it
//! # }
//! ```
//!
//! ```compile_fail,E0596
//! # use vfio_dma::device::Device;
//! # fn f(device: &Device) {
//! device.reset(); // only the owner resets it
//! # }
//! ```
//!
//! ```compile_fail,E0596
//! # use vfio_dma::device::Device;
//! # fn f(device: &Device) {
//! device.set_bus_master(true); // or lets it do DMA
//! # }
//! ```

mod config;
mod error;
mod function;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use crate::backend::{Affected, Backend, BackendError, DmaAccess, IrqKind, Region, RegionInfo};
use crate::dma::{
    AddressSpace, Allocator, Buffer, Coherent, DmaLimits, PeerMapping, Pool, Request, Reservation,
    Shared, peer,
};
use crate::events::Events;
use crate::irq::Vector;
use crate::mmio::Bar;
use crate::pci::{Capabilities, ConfigSpace};

pub use config::{Config, ConfigMut};
pub use error::{DecodeOff, DeviceError};
pub(crate) use function::Function;

/// An opened PCI device: configuration space, BARs, interrupts and an address space.
///
/// Bus mastering is off until [`Device::set_bus_master`] switches it on, and is switched
/// off again when the device is dropped.
#[derive(Debug)]
pub struct Device {
    function: Arc<Function>,
    allocator: Allocator,
}

impl Device {
    /// Opens a device in an address space of its own.
    ///
    /// # Errors
    ///
    /// Fails when configuration space or the IOMMU do not answer.
    pub fn open(backend: impl Backend + 'static) -> Result<Device, DeviceError> {
        let backend: Arc<dyn Backend> = Arc::new(backend);
        let space = AddressSpace::new(backend.iommu())?;
        Device::with(backend, &space)
    }

    /// Opens a device in an address space that other devices use too.
    ///
    /// # Errors
    ///
    /// Fails when the backend translates through another IOMMU, or does not answer.
    pub fn open_in(
        backend: impl Backend + 'static,
        space: &Arc<AddressSpace>,
    ) -> Result<Device, DeviceError> {
        if !Arc::ptr_eq(backend.iommu(), space.iommu()) {
            return Err(DeviceError::ForeignSpace { location: backend.location() });
        }
        space.refresh()?;
        Device::with(Arc::new(backend), space)
    }

    fn with(backend: Arc<dyn Backend>, space: &Arc<AddressSpace>) -> Result<Device, DeviceError> {
        let function = Function::new(backend)?;
        let allocator = Allocator::new(function.backend(), space);
        Ok(Device { function, allocator })
    }

    /// How a user names the device: an address such as `0000:00:05.0`, a socket's path, `model`.
    #[must_use]
    pub fn location(&self) -> &str {
        self.function.location()
    }

    /// The address space that its buffers are mapped in.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        self.allocator.space()
    }

    /// Its configuration space, to be read.
    #[must_use]
    pub fn config(&self) -> ConfigSpace<Config<'_>> {
        ConfigSpace::new(Config(&self.function))
    }

    /// Its configuration space, to be read and written; see [`ConfigMut`] for what is not
    /// taken.
    #[must_use]
    pub fn config_mut(&mut self) -> ConfigSpace<ConfigMut<'_>> {
        ConfigSpace::new(ConfigMut(&self.function))
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
        self.function.transactions_pending()
    }

    /// What a region of the device is; a size of 0 says that it is not there.
    ///
    /// # Errors
    ///
    /// Fails when the backend does not answer.
    pub fn region(&self, region: Region) -> Result<RegionInfo, DeviceError> {
        Ok(self.function.backend().region_info(region)?)
    }

    /// Opens BAR `index` (0 to 5), mapped where it can be.
    ///
    /// # Errors
    ///
    /// Fails when the device does not implement the BAR, a mapping fails, or the function
    /// would not answer ([`DeviceError::NotDecoding`]).
    pub fn bar(&self, index: u8) -> Result<Bar, DeviceError> {
        if index > 5 {
            return Err(BackendError::NoRegion { region: Region::Bar(index) }.into());
        }
        self.function.bar(Region::Bar(index))
    }

    /// The number of interrupt vectors of a kind; 0 when the device has none.
    ///
    /// # Errors
    ///
    /// Fails when the backend does not answer.
    pub fn vector_count(&self, kind: IrqKind) -> Result<u32, DeviceError> {
        Ok(self.function.backend().irq_count(kind)?)
    }

    /// Enables the first `count` interrupt vectors of a kind and hands them out, in their
    /// order. The kind is disabled again when the last of them is dropped.
    ///
    /// # Errors
    ///
    /// Fails when the device has fewer, when the machine can give it fewer
    /// ([`BackendError::FewerVectors`] has the
    /// number), or vectors of any kind are handed out already.
    pub fn vectors(&self, kind: IrqKind, count: u32) -> Result<Vec<Vector>, DeviceError> {
        let function = &self.function;
        Ok(function.vectors().enable(function.backend(), function.events(), kind, count)?)
    }

    /// Enables as many interrupt vectors of a kind as can be had, `most` or fewer, and hands
    /// them out as [`Device::vectors`] does: the machine may give a device fewer than it has.
    ///
    /// # Errors
    ///
    /// Fails when there is none, or vectors of any kind are handed out already.
    pub fn vectors_up_to(&self, kind: IrqKind, most: u32) -> Result<Vec<Vector>, DeviceError> {
        let function = &self.function;
        Ok(function.vectors().enable_up_to(function.backend(), function.events(), kind, most)?)
    }

    /// What the device demands of the memory that it is given; nothing until
    /// [`Device::set_dma_limits`].
    #[must_use]
    pub fn dma_limits(&self) -> &DmaLimits {
        self.allocator.limits()
    }

    /// Says what the device demands of the memory that it is given: for its driver, once,
    /// before memory is placed. What was placed before stays as it is.
    ///
    /// # Errors
    ///
    /// Refuses limits that nothing meets.
    pub fn set_dma_limits(&mut self, limits: DmaLimits) -> Result<(), DeviceError> {
        Ok(self.allocator.set_limits(limits)?)
    }

    /// Places memory for the device: what a driver gives to threads of its own.
    #[must_use]
    pub fn allocator(&self) -> &Allocator {
        &self.allocator
    }

    /// Places a buffer that the device reads or writes.
    ///
    /// # Errors
    ///
    /// As [`Allocator::allocate`].
    pub fn allocate(&self, request: &Request) -> Result<Buffer, DeviceError> {
        Ok(self.allocator.allocate(request)?)
    }

    /// Places an array that the device shares, see [`Allocator::coherent`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::coherent`].
    pub fn coherent<T: Shared>(
        &self,
        len: usize,
        alignment: u64,
    ) -> Result<Coherent<T>, DeviceError> {
        Ok(self.allocator.coherent(len, alignment)?)
    }

    /// Puts contiguous blocks aside, see [`Allocator::reserve`].
    ///
    /// # Errors
    ///
    /// As [`Allocator::reserve`].
    pub fn reserve(&self, reservations: &[Reservation]) -> Result<Arc<Pool>, DeviceError> {
        Ok(self.allocator.reserve(reservations)?)
    }

    /// The events of the function: an error of its link, or that the kernel wants it back. They
    /// outlive the device, and can go to other threads.
    ///
    /// Register accesses, waits for interrupts and the crate's drivers look at them by themselves.
    /// When the function is to be removed, what keeps it open has to be dropped within
    /// [`GRACE`](crate::events::GRACE): the device, its BARs, vectors and buffers. Then it is
    /// closed, and everything fails that uses it.
    #[must_use]
    pub fn events(&self) -> &Events {
        self.function.events()
    }

    /// Fails when there is an event of the function, for a driver that is to begin or to wait
    /// for something; see [`Device::events`].
    ///
    /// # Errors
    ///
    /// [`BackendError::ToBeRemoved`] or [`BackendError::BusError`].
    #[inline]
    pub fn check_events(&self) -> Result<(), DeviceError> {
        Ok(self.events().check()?)
    }

    /// Gives another device a part of a BAR of this one, for its DMA (peer memory): `range` in
    /// bytes from the start of BAR `index`, whole pages of what the kernel lets be mapped. The
    /// other device reaches it at the address of the mapping that is returned.
    ///
    /// With type1 the BAR is mapped into this process and from there for the other device; with
    /// iommufd it is a dma-buf (Linux 7.3 has these, Linux 6.12 has not). Whether transactions
    /// between the two get through is up to the bridges between them.
    ///
    /// # Errors
    ///
    /// Fails when the range is not one of whole pages, or not of a BAR's memory; where there is no
    /// IOMMU; when the function does not answer ([`DeviceError::NotDecoding`]); with iommufd on a
    /// kernel that has no dma-bufs of BARs ([`Remedy::LendThroughType1`](crate::pci::Remedy)).
    pub fn lend_to(
        &self,
        other: &Device,
        index: u8,
        range: Range<u64>,
        access: DmaAccess,
    ) -> Result<PeerMapping, DeviceError> {
        let way = peer::way(&other.allocator, &range)?;
        let memory = self.function.lend(way, Region::Bar(index), range)?;
        let mapping = PeerMapping::new(&other.allocator, memory, access)?;
        self.events().before_revoke(&mapping.revocable());
        Ok(mapping)
    }

    /// Switches the device's right to start DMA and to send MSIs on or off.
    ///
    /// # Errors
    ///
    /// Fails when the command register does not take the bit.
    pub fn set_bus_master(&mut self, on: bool) -> Result<(), DeviceError> {
        self.function.set_bus_master(on)
    }

    /// Resets the function. Bus mastering is off afterwards.
    ///
    /// # Errors
    ///
    /// Fails when the kernel or the device has no way to reset the function alone.
    pub fn reset(&mut self) -> Result<(), DeviceError> {
        self.function.reset()
    }

    /// The functions that [`Device::reset_bus`] would hit, this one among them.
    ///
    /// # Errors
    ///
    /// Fails where there is no such reset: behind a vfio-user socket, or on a root bus.
    pub fn bus_reset_scope(&self) -> Result<Vec<Affected>, DeviceError> {
        Ok(self.function.backend().bus_reset_scope()?)
    }

    /// Whether this process owns all that [`Device::reset_bus`] would hit.
    ///
    /// # Errors
    ///
    /// [`BackendError::NotOwned`] when it does not, and as [`Device::bus_reset_scope`].
    pub fn check_bus_reset(&self) -> Result<(), DeviceError> {
        self.function.check_bus_reset().map(drop)
    }

    /// Resets all that is reset together with the function: the functions of its slot or bus
    /// (VFIO's hot reset), those of virtual buses behind it too. Each is as after
    /// [`Device::reset`]. `others` are the devices that this process has open among them.
    ///
    /// # Errors
    ///
    /// Nothing is reset when it would hit a function that this process does not own
    /// ([`BackendError::NotOwned`]), or has open and is not among `others`
    /// ([`DeviceError::ResetHits`]).
    pub fn reset_bus(&mut self, others: &mut [&mut Device]) -> Result<(), DeviceError> {
        let others: Vec<&Function> = others.iter().map(|other| &*other.function).collect();
        self.function.reset_bus(&others)
    }

    /// Takes away the device's right to start DMA and waits until what it had begun is done.
    ///
    /// When this succeeds, no buffer is read or written by the device any more.
    ///
    /// # Errors
    ///
    /// Fails when the command register does not take the bit, or a PCI Express function
    /// has transactions pending for longer than 1 s.
    pub fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.function.quiesce()
    }

    /// Keeps a value, memory that the device may still reach, until the function is known to
    /// be quiet, and drops it then: after [`Device::quiesce`] or [`Device::reset`]
    /// succeeded, or when the device is closed. It is leaked when the function never is.
    pub fn park(&self, item: impl Send + 'static) {
        self.function.park(Box::new(item) as Box<dyn Any + Send>);
    }

    /// What can stop the function as long as it lives.
    pub(crate) fn function(&self) -> &Arc<Function> {
        &self.function
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if let Err(error) = self.function.quiesce() {
            log::error!("{}: {error}", self.function.location());
        }
    }
}
