//! Operations of the driver that end with a certain request to the kernel.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vfio_dma::backend::vfio::{Container, Device, Ioas, IoasOptions, NoIommu, Passed, VfToken};
use vfio_dma::backend::{
    Backend, BackendError, DmaAccess, DmaBufRequest, Event, Iommu, IrqKind, MapRequest, Region,
};
use vfio_dma::dma::{Memory, PageSize};
use vfio_dma::host::Sysfs;
use vfio_dma::pci::Address;
use vfio_dma_tests::address;

use super::kernel::quiet;

pub(crate) type Outcome = Result<(), BackendError>;

/// Whether devices are opened through iommufd, for what both ways have.
pub(crate) static THROUGH_IOMMUFD: AtomicBool = AtomicBool::new(false);

pub(crate) const CARD: u8 = 1;

/// The drive behind a port.
pub(crate) fn drive() -> Address {
    "0000:01:00.0".parse().unwrap()
}

pub(crate) fn node(path: impl AsRef<Path>) -> OwnedFd {
    File::options().read(true).write(true).open(path).unwrap().into()
}

pub(crate) fn container() -> Outcome {
    Container::new().map(drop)
}

pub(crate) fn container_from_fd() -> Outcome {
    Container::from_fd(node("/dev/vfio/vfio")).map(drop)
}

pub(crate) fn open_type1() -> Outcome {
    Container::new()?.open(address(0)).map(drop)
}

pub(crate) fn open_without_iommu() -> Outcome {
    // SAFETY: the device is closed at once, and given no address.
    unsafe { NoIommu::new().open(address(0)) }.map(drop)
}

fn token() -> VfToken {
    VfToken::from_bytes([7; 16])
}

pub(crate) fn open_type1_with_token() -> Outcome {
    Container::new()?.open_with(address(0), Some(&token())).map(drop)
}

/// The second group of a container.
pub(crate) fn join_second() -> Outcome {
    let container = Container::new()?;
    let _first = quiet(|| container.open(address(0)))?;
    container.open(address(CARD)).map(drop)
}

/// A device that was opened before, as another process would.
pub(crate) fn open_passed() -> Outcome {
    let (container, group, device) = quiet(|| {
        let group = node(Sysfs::new().device(address(0)).unwrap().group.unwrap().node());
        let container = node("/dev/vfio/vfio");
        let device = crate::passed::device(&container, &group, address(0));
        (Container::from_fd(container).unwrap(), group, device)
    });
    container.open_passed(address(0), Passed::Device { device, group: Some(group) }, None).map(drop)
}

/// An open device in an address space of its own, whichever way is asked for.
fn opened(address: Address) -> Result<Device, BackendError> {
    if THROUGH_IOMMUFD.load(Ordering::Relaxed) {
        Ioas::new()?.open(address)
    } else {
        Container::new()?.open(address)
    }
}

pub(crate) fn open() -> Outcome {
    opened(address(0)).map(drop)
}

/// Runs with the drive, which was opened by the kernel itself.
fn with_drive(body: impl FnOnce(&Device) -> Outcome) -> Outcome {
    let device = quiet(|| opened(drive()))?;
    let outcome = body(&device);
    quiet(|| drop(device));
    outcome
}

fn events(count: usize) -> Vec<OwnedFd> {
    let event = || nix::sys::eventfd::EventFd::new().unwrap().into();
    std::iter::repeat_with(event).take(count).collect()
}

fn enable(device: &Device, kind: IrqKind, count: usize) -> Outcome {
    let events = events(count);
    let events: Vec<_> = events.iter().map(AsFd::as_fd).collect();
    device.irq_enable(kind, &events)
}

pub(crate) fn enable_messages() -> Outcome {
    with_drive(|device| enable(device, IrqKind::MsiX, 2))
}

pub(crate) fn enable_intx() -> Outcome {
    with_drive(|device| enable(device, IrqKind::Intx, 1))
}

pub(crate) fn trigger() -> Outcome {
    with_drive(|device| {
        quiet(|| enable(device, IrqKind::MsiX, 2))?;
        device.irq_trigger(IrqKind::MsiX, 1)
    })
}

pub(crate) fn mask() -> Outcome {
    with_drive(|device| {
        quiet(|| enable(device, IrqKind::Intx, 1))?;
        device.intx_set_masked(true)
    })
}

pub(crate) fn disable() -> Outcome {
    with_drive(|device| {
        quiet(|| enable(device, IrqKind::MsiX, 2))?;
        device.irq_disable(IrqKind::MsiX)
    })
}

pub(crate) fn notify() -> Outcome {
    let event = events(1).remove(0);
    with_drive(|device| device.notify(Event::Removal, event.as_fd()).map(drop))
}

pub(crate) fn reset() -> Outcome {
    with_drive(|device| device.reset())
}

pub(crate) fn bus_reset_scope() -> Outcome {
    with_drive(|device| device.bus_reset_scope().map(drop))
}

pub(crate) fn reset_bus() -> Outcome {
    with_drive(|device| device.reset_bus())
}

fn part_of_a_bar(device: &Device) -> Result<OwnedFd, BackendError> {
    device.dma_buf(Region::Bar(2), 0..4096)
}

pub(crate) fn dma_buf() -> Outcome {
    let card = quiet(|| opened(address(CARD)))?;
    part_of_a_bar(&card).map(drop)
}

pub(crate) fn open_iommufd() -> Outcome {
    Ioas::new()?.open(address(0)).map(drop)
}

pub(crate) fn open_iommufd_with_token() -> Outcome {
    Ioas::new()?.open_with(address(0), Some(&token())).map(drop)
}

/// Closes a device that the kernel opened by itself.
pub(crate) fn close_iommufd() -> Outcome {
    let device = quiet(|| Ioas::new()?.open(address(0)))?;
    drop(device);
    Ok(())
}

pub(crate) fn ioas() -> Outcome {
    Ioas::new().map(drop)
}

/// Only an address space of an iommufd that was passed is destroyed by itself.
pub(crate) fn destroy_ioas() -> Outcome {
    let passed = IoasOptions { iommufd: Some(node("/dev/iommu")), ..IoasOptions::default() };
    let ioas = quiet(|| Ioas::with(passed))?;
    drop(ioas);
    Ok(())
}

pub(crate) fn ioas_info() -> Outcome {
    quiet(Ioas::new)?.info().map(drop)
}

/// A container with a group, as long as the device is open.
fn type1() -> (Arc<Container>, Device) {
    let container = Container::new().unwrap();
    let device = container.open(address(0)).unwrap();
    (container, device)
}

pub(crate) const IOVA: u64 = 0x10_0000;
pub(crate) const LEN: usize = 8192;

pub(crate) fn memory() -> Memory {
    Memory::allocate(LEN, PageSize::Base, false).unwrap()
}

/// Maps this memory of the process, whatever lies there.
///
/// # Safety
///
/// As [`Iommu::map`]; memory that is not there is refused.
pub(crate) unsafe fn map(iommu: &dyn Iommu, iova: u64, host: NonNull<u8>) -> Outcome {
    let access = DmaAccess::ReadWrite;
    // SAFETY: the caller vouches for the memory.
    unsafe { iommu.map(&MapRequest { iova, host, len: LEN, access, file: None }) }
}

fn maps(iommu: &dyn Iommu) -> Outcome {
    let memory = memory();
    // SAFETY: the memory lives until the range is unmapped, or was refused.
    unsafe { map(iommu, IOVA, memory.base()) }?;
    quiet(|| iommu.unmap(IOVA, LEN))
}

fn unmaps(iommu: &dyn Iommu) -> Outcome {
    let memory = memory();
    // SAFETY: the memory lives until the range is unmapped.
    quiet(|| unsafe { map(iommu, IOVA, memory.base()) })?;
    let outcome = iommu.unmap(IOVA, LEN);
    if outcome.is_err() {
        quiet(|| iommu.unmap(IOVA, LEN))?;
    }
    outcome
}

pub(crate) fn type1_info() -> Outcome {
    let (container, _device) = quiet(type1);
    container.info().map(drop)
}

pub(crate) fn type1_map() -> Outcome {
    let (container, _device) = quiet(type1);
    maps(&*container)
}

pub(crate) fn type1_unmap() -> Outcome {
    let (container, _device) = quiet(type1);
    unmaps(&*container)
}

pub(crate) fn ioas_map() -> Outcome {
    maps(&*quiet(Ioas::new)?)
}

pub(crate) fn ioas_unmap() -> Outcome {
    unmaps(&*quiet(Ioas::new)?)
}

pub(crate) fn ioas_map_file() -> Outcome {
    let (ioas, _card, dma_buf) = quiet(|| -> Result<_, BackendError> {
        let ioas = Ioas::new()?;
        let card = ioas.open(address(CARD))?;
        let dma_buf = part_of_a_bar(&card)?;
        Ok((ioas, card, dma_buf))
    })?;
    let (iova, len, access) = (0x20_0000, 4096, DmaAccess::ReadWrite);
    ioas.map_dma_buf(&DmaBufRequest { iova, len, access, dma_buf: dma_buf.as_fd() })?;
    quiet(|| ioas.unmap(iova, len))
}

/// The descriptors that this process has open.
pub(crate) fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The device's character device, open.
pub(crate) fn character_device() -> OwnedFd {
    node(Sysfs::new().tree().vfio_nodes(address(0)).pop().unwrap())
}
