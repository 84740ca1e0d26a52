//! An opened PCI device.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::mem::{ManuallyDrop, offset_of, size_of};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError, RwLock};

use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use vfio_bindings::bindings::vfio as uapi;

use super::claim::Claim;
use super::describe::Description;
use super::ioctl::done;
use super::region::Mappings;
use super::{hot_reset, ioctl, os_error};
use crate::backend::{
    Affected, Backend, BackendError, Event, Iommu, IrqKind, MappedRegion, Region, RegionInfo,
    Result,
};
use crate::pci::sysfs::Tree;
use crate::pci::{Address, Remedy};

/// A PCI device opened through VFIO, by whichever method: regions, interrupts and reset are
/// requests to its descriptor in all of them.
pub struct Device {
    /// The descriptor; none once the device was revoked. Closed first.
    opened: RwLock<Option<Box<dyn AsRawFd + Send + Sync>>>,
    /// What has to be open as long as memory is mapped for the device: its group.
    _keeps: Box<dyn Any + Send + Sync>,
    mappings: Arc<Mappings>,
    description: Description,
    iommu: Arc<dyn Iommu>,
    numa_node: Option<u32>,
    /// Given back when the descriptor is closed.
    claim: Claim,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("vfio::Device").field("address", &self.address()).finish_non_exhaustive()
    }
}

impl Device {
    /// A device whose descriptor is open as long as `opened` lives; what `keeps` has open is
    /// closed after it.
    pub(super) fn new(
        opened: Box<dyn AsRawFd + Send + Sync>,
        keeps: Box<dyn Any + Send + Sync>,
        claim: Claim,
        iommu: Arc<dyn Iommu>,
    ) -> Result<Device> {
        let address = claim.address();
        let description = Description::read(opened.as_raw_fd()).map_err(|errno| {
            os_error(format!("{address}: asking for regions and interrupts"), errno, None)
        })?;
        let config = description.region(Region::Config);
        if config.is_none_or(|config| config.info.size < 256) {
            return Err(BackendError::Unsupported {
                what: "access to configuration space".into(),
                by: format!("the kernel's VFIO for {address}"),
            });
        }
        let opened = RwLock::new(Some(opened));
        let mappings = Arc::default();
        let numa_node = Tree::new().numa_node(address);
        Ok(Device { opened, _keeps: keeps, mappings, description, iommu, numa_node, claim })
    }

    fn address(&self) -> Address {
        self.claim.address()
    }

    /// Runs with the device's descriptor, which stays open meanwhile.
    fn with_fd<T>(&self, f: impl FnOnce(RawFd) -> T) -> Result<T> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let to_be_removed = || BackendError::ToBeRemoved { location: self.address().to_string() };
        Ok(f(opened.as_ref().ok_or_else(to_be_removed)?.as_raw_fd()))
    }

    /// Runs with the device's descriptor as a file.
    fn with_file<T>(&self, f: impl FnOnce(&File) -> T) -> Result<T> {
        self.with_fd(|fd| {
            // SAFETY: the descriptor is open as long as this runs, and `ManuallyDrop` keeps the
            // file from closing it.
            f(&ManuallyDrop::new(unsafe { File::from_raw_fd(fd) }))
        })
    }

    /// Checks an access and returns its position in the device's descriptor.
    fn position(&self, region: Region, offset: u64, len: usize) -> Result<u64> {
        let Some(placed) = self.description.region(region) else {
            return Err(BackendError::NoRegion { region });
        };
        let size = placed.info.size;
        match offset.checked_add(len as u64) {
            Some(end) if end <= size => Ok(placed.position + offset),
            _ => Err(BackendError::OutOfBounds { region, offset, len, size }),
        }
    }

    fn access_error(
        &self,
        verb: &str,
        region: Region,
        offset: u64,
        len: usize,
        source: io::Error,
    ) -> BackendError {
        let action = format!("{}: {verb} {len} bytes at {region} {offset:#x}", self.address());
        let remedy = (source.raw_os_error() == Some(libc::EIO)).then(|| {
            "memory or I/O space is disabled in the device's command register, or the device \
             is gone"
                .into()
        });
        BackendError::Os { action, source, remedy }
    }

    /// VFIO_DEVICE_SET_IRQS of `count` vectors from `start` on, with eventfds, or with no data
    /// when `events` is `None`.
    fn set_irqs(
        &self,
        index: u32,
        action: u32,
        [start, count]: [u32; 2],
        events: Option<&[BorrowedFd<'_>]>,
    ) -> Result<nix::Result<libc::c_int>> {
        const HEADER: usize = offset_of!(uapi::vfio_irq_set, data);
        let fds = events.unwrap_or_default();
        // u32 elements, so that the structure inside is aligned.
        let mut words = vec![0u32; (HEADER + fds.len() * size_of::<i32>()).div_ceil(4)];
        let data = if events.is_some() {
            uapi::VFIO_IRQ_SET_DATA_EVENTFD
        } else {
            uapi::VFIO_IRQ_SET_DATA_NONE
        };
        let bytes = size_of_val(&words[..]) as u32;
        words[..5].copy_from_slice(&[bytes, data | action, index, start, count]);
        for (word, fd) in words[HEADER / 4..].iter_mut().zip(fds) {
            *word = fd.as_raw_fd() as u32;
        }
        self.with_fd(|fd| {
            // SAFETY: the descriptor is a device, and the structure is followed by as many
            // descriptors as its size says.
            unsafe { ioctl::device_set_irqs(fd, words.as_ptr().cast()) }
        })
    }
}

impl Backend for Device {
    fn location(&self) -> String {
        self.address().to_string()
    }

    fn region_info(&self, region: Region) -> Result<RegionInfo> {
        Ok(self.description.region(region).map(|placed| placed.info.clone()).unwrap_or_default())
    }

    fn region_read(&self, region: Region, offset: u64, data: &mut [u8]) -> Result<()> {
        let position = self.position(region, offset, data.len())?;
        self.with_file(|file| file.read_exact_at(data, position))?
            .map_err(|e| self.access_error("reading", region, offset, data.len(), e))
    }

    fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        let position = self.position(region, offset, data.len())?;
        self.with_file(|file| file.write_all_at(data, position))?
            .map_err(|e| self.access_error("writing", region, offset, data.len(), e))
    }

    fn map_region(&self, region: Region, area: Range<u64>) -> Result<Box<dyn MappedRegion>> {
        let info = self.region_info(region)?;
        let outside = BackendError::OutOfBounds {
            region,
            offset: area.start,
            len: area.end.saturating_sub(area.start) as usize,
            size: info.size,
        };
        if !info.mappable.contains(&area) {
            return Err(outside);
        }
        let Some(len) = NonZeroUsize::new((area.end - area.start) as usize) else {
            return Err(outside);
        };
        let mut protection = ProtFlags::empty();
        protection.set(ProtFlags::PROT_READ, info.readable);
        protection.set(ProtFlags::PROT_WRITE, info.writable);
        let position = self.position(region, area.start, len.get())?;
        let action =
            || format!("{}: mapping {len} bytes of {region} at {:#x}", self.address(), area.start);
        let position = libc::off_t::try_from(position)
            .map_err(|_| os_error(action(), Errno::EOVERFLOW, None))?;
        let mapping = self.with_file(|file| self.mappings.map(file, position, len, protection))?;
        Ok(Box::new(mapping.map_err(|errno| os_error(action(), errno, None))?))
    }

    fn irq_count(&self, kind: IrqKind) -> Result<u32> {
        Ok(self.description.vectors(kind))
    }

    fn irq_enable(&self, kind: IrqKind, events: &[BorrowedFd<'_>]) -> Result<()> {
        let available = self.irq_count(kind)?;
        let requested = u32::try_from(events.len()).unwrap_or(u32::MAX);
        if requested == 0 || requested > available {
            return Err(BackendError::NoVectors { kind, requested, available });
        }
        let trigger = uapi::VFIO_IRQ_SET_ACTION_TRIGGER;
        let enabled = self.set_irqs(kind.index(), trigger, [0, requested], Some(events))?;
        let status = enabled.map_err(|errno| {
            let action = format!("{}: enabling {requested} {kind} vectors", self.address());
            let remedy = match errno {
                Errno::EINVAL => Some(
                    "another kind of interrupt is enabled on the device: disable it first".into(),
                ),
                // `vfio_intx_enable` in the kernel's `drivers/vfio/pci/vfio_pci_intrs.c`.
                Errno::ENODEV | Errno::EBUSY if kind == IrqKind::Intx => Some(
                    "the function's line leads nowhere, or to a line that a driver of the host has \
                     for itself: use MSI or MSI-X"
                        .into(),
                ),
                Errno::ENOSPC => Some(
                    "the machine has no interrupt vector left: close devices that have many, or \
                     use another kind of interrupt"
                        .into(),
                ),
                _ => None,
            };
            os_error(action, errno, remedy)
        })?;
        check_enabled(kind, requested, status)
    }

    fn irq_disable(&self, kind: IrqKind) -> Result<()> {
        let disabled =
            match self.set_irqs(kind.index(), uapi::VFIO_IRQ_SET_ACTION_TRIGGER, [0, 0], None) {
                // With the device everything went that was enabled.
                Err(_) => return Ok(()),
                Ok(status) => done(status),
            };
        match disabled {
            Ok(()) => Ok(()),
            // The kernel says EINVAL when vectors of the kind are not enabled.
            Err(Errno::EINVAL) => Ok(()),
            Err(errno) => {
                Err(os_error(format!("{}: disabling {kind} vectors", self.address()), errno, None))
            }
        }
    }

    fn irq_trigger(&self, kind: IrqKind, vector: u32) -> Result<()> {
        let trigger = uapi::VFIO_IRQ_SET_ACTION_TRIGGER;
        done(self.set_irqs(kind.index(), trigger, [vector, 1], None)?).map_err(|errno| {
            let action = format!("{}: triggering {kind} vector {vector}", self.address());
            let not_enabled = || Remedy::from("the vector is not enabled: enable it first");
            os_error(action, errno, (errno == Errno::EINVAL).then(not_enabled))
        })
    }

    fn intx_set_masked(&self, masked: bool) -> Result<()> {
        let action =
            if masked { uapi::VFIO_IRQ_SET_ACTION_MASK } else { uapi::VFIO_IRQ_SET_ACTION_UNMASK };
        done(self.set_irqs(IrqKind::Intx.index(), action, [0, 1], None)?).map_err(|errno| {
            let verb = if masked { "masking" } else { "unmasking" };
            let not_enabled = || Remedy::from("INTx is not enabled: enable it first");
            let remedy = (errno == Errno::EINVAL).then(not_enabled);
            os_error(format!("{}: {verb} INTx", self.address()), errno, remedy)
        })
    }

    fn reset(&self) -> Result<()> {
        // SAFETY: the descriptor is a device.
        let status = self.with_fd(|fd| unsafe { ioctl::device_reset(fd) })?;
        done(status).map_err(|errno| {
            let remedy = (errno == Errno::ENOTTY || errno == Errno::EINVAL).then(|| {
                format!(
                    "the kernel knows no way to reset this function alone; \
                         /sys/bus/pci/devices/{}/reset_method lists those it has",
                    self.address()
                )
                .into()
            });
            os_error(format!("{}: resetting the function", self.address()), errno, remedy)
        })
    }

    fn bus_reset_scope(&self) -> Result<Vec<Affected>> {
        self.with_fd(|fd| hot_reset::scope(fd, self.address()))?
    }

    fn reset_bus(&self) -> Result<()> {
        self.with_fd(|fd| hot_reset::reset(fd, self.address()))?
    }

    fn dma_buf(&self, region: Region, range: Range<u64>) -> Result<OwnedFd> {
        // The header (8 bytes), that of the feature, and one range.
        const WORDS: usize = (8
            + size_of::<uapi::vfio_device_feature_dma_buf>()
            + size_of::<uapi::vfio_region_dma_range>())
            / 8;
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let flags = uapi::VFIO_DEVICE_FEATURE_GET | uapi::VFIO_DEVICE_FEATURE_DMA_BUF;
        let opened = (libc::O_RDWR | libc::O_CLOEXEC) as u32;
        let words: [u64; WORDS] = [
            pair(8 * WORDS as u32, flags),
            pair(region.index(), opened),
            pair(0, 1),
            range.start,
            range.end - range.start,
        ];
        let made = self.with_fd(|fd| {
            // SAFETY: the descriptor is a device, and the structures are as long as they say.
            unsafe { ioctl::device_feature(fd, words.as_ptr().cast()) }
        })?;
        let dma_buf = made.map_err(|errno| {
            let action = format!("{}: making a dma-buf of {region}", self.address());
            let no_dma_bufs = matches!(errno, Errno::ENOTTY | Errno::EOPNOTSUPP);
            os_error(action, errno, no_dma_bufs.then_some(Remedy::LendThroughType1))
        })?;
        // SAFETY: the kernel has just made the descriptor, for this process to own.
        Ok(unsafe { OwnedFd::from_raw_fd(dma_buf) })
    }

    fn notify(&self, event: Event, signalled: BorrowedFd<'_>) -> Result<bool> {
        let trigger = uapi::VFIO_IRQ_SET_ACTION_TRIGGER;
        match done(self.set_irqs(event.index(), trigger, [0, 1], Some(&[signalled]))?) {
            Ok(()) => Ok(true),
            // A function without PCI Express has no errors of its link, and older kernels have
            // neither event.
            Err(Errno::EINVAL | Errno::ENOTTY) => Ok(false),
            Err(errno) => {
                let action = format!("{}: asking to be told of {event:?}", self.address());
                Err(os_error(action, errno, None))
            }
        }
    }

    fn revoke(&self) -> Result<bool> {
        let mut opened = self.opened.write().unwrap_or_else(PoisonError::into_inner);
        // Each mapping keeps the device open as its descriptor does.
        self.mappings.replace().map_err(|errno| {
            os_error(format!("{}: replacing its mapped BARs", self.address()), errno, None)
        })?;
        // With the last descriptor the kernel takes bus mastering away (`vfio_pci_core_disable`
        // in `drivers/vfio/pci/vfio_pci_core.c`).
        drop(opened.take());
        Ok(true)
    }

    fn numa_node(&self) -> Option<u32> {
        self.numa_node
    }

    fn iommu(&self) -> &Arc<dyn Iommu> {
        &self.iommu
    }
}

/// What VFIO_DEVICE_SET_IRQS says when vectors are to be connected: 0, or how many the
/// machine could give the device of those asked for; none is connected then
/// (`vfio_msi_enable` in the kernel's `drivers/vfio/pci/vfio_pci_intrs.c`).
fn check_enabled(kind: IrqKind, requested: u32, status: libc::c_int) -> Result<()> {
    match u32::try_from(status) {
        Ok(0) => Ok(()),
        available => {
            let available = available.unwrap_or(0).min(requested);
            let remedy = match kind {
                IrqKind::Msi => format!(
                    "ask for {available}, use MSI-X where the device has it, or have the IOMMU \
                     remap interrupts: without that there is one MSI message for each device"
                ),
                _ => format!("ask for {available}"),
            };
            Err(BackendError::FewerVectors { kind, requested, available, remedy: remedy.into() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_vectors_than_asked_for_are_no_success() {
        check_enabled(IrqKind::MsiX, 8, 0).unwrap();
        for (status, expected) in [(1, 1), (7, 7), (-1, 0), (9, 8)] {
            match check_enabled(IrqKind::MsiX, 8, status) {
                Err(BackendError::FewerVectors { requested: 8, available, .. }) => {
                    assert_eq!(available, expected);
                }
                other => panic!("{status}: {other:?}"),
            }
        }
    }
}
