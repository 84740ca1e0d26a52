use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vfio_dma::backend::DmaAccess;

use super::*;

const PAGE: usize = 4096;

#[repr(C, align(4096))]
struct Page([u8; PAGE]);

fn embedded() -> Arc<Embedded> {
    Embedded::new(IoatConfig::default()).unwrap()
}

fn request(page: &mut Page, iova: u64) -> MapRequest<'static> {
    let host = NonNull::from(page).cast();
    MapRequest { iova, host, len: PAGE, access: DmaAccess::ReadWrite, file: None }
}

/// Maps a page that outlives the address space of each test.
fn map(iommu: &dyn Iommu, iova: u64) -> Result<()> {
    let page = Box::leak(Box::new(Page([0; PAGE])));
    // SAFETY: the page is never freed, and nothing refers to it any more.
    unsafe { iommu.map(&request(page, iova)) }
}

#[test]
fn regions_are_those_of_the_function() {
    let model = embedded().attach().unwrap();
    let bar = model.region_info(Region::Bar(0)).unwrap();
    assert_eq!((bar.size, bar.mappable.len()), (16 << 10, 0));
    assert_eq!(model.region_info(Region::Bar(1)).unwrap().size, 0);
    let mut ids = [0; 4];
    model.region_read(Region::Config, 0, &mut ids).unwrap();
    assert_eq!(u32::from_le_bytes(ids), 0x2021_8086);
    let error = model.region_read(Region::Bar(0), 0x3ffe, &mut ids).unwrap_err();
    assert!(matches!(error, BackendError::OutOfBounds { offset: 0x3ffe, len: 4, .. }));
    let error = model.region_write(Region::Bar(0), u64::MAX, &[0]).unwrap_err();
    assert!(matches!(error, BackendError::OutOfBounds { .. }));
    let error = model.region_write(Region::Rom, 0, &[0]).unwrap_err();
    assert!(matches!(error, BackendError::NoRegion { region: Region::Rom }));
    assert!(model.map_region(Region::Bar(0), 0..4096).is_err());
}

#[test]
fn an_access_of_any_length_is_cut_for_the_bus() {
    let model = embedded().attach().unwrap();
    let mut data = [0; 21];
    model.region_read(Region::Config, 3, &mut data).unwrap();
    // The high byte of the device ID, then the command register with memory space on.
    assert_eq!(data[..3], [0x20, 0x02, 0x00]);
}

#[test]
fn interrupts_are_connected_by_duplicates() {
    let embedded = embedded();
    let model = embedded.attach().unwrap();
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let error = model.irq_enable(IrqKind::MsiX, &[event.as_fd(), event.as_fd()]).unwrap_err();
    assert!(matches!(error, BackendError::NoVectors { requested: 2, available: 1, .. }));
    model.irq_enable(IrqKind::MsiX, &[event.as_fd()]).unwrap();
    embedded.function().irq_trigger(IrqKind::MsiX, 0);
    assert_eq!(event.read(), Ok(1));
    model.irq_disable(IrqKind::MsiX).unwrap();
    model.irq_disable(IrqKind::MsiX).unwrap();
    embedded.function().irq_trigger(IrqKind::MsiX, 0);
    assert!(event.read().is_err());
}

#[test]
fn mappings_follow_the_rules_of_an_iommu() {
    let model = embedded();
    let iommu = &**model.iommu();
    let info = iommu.info().unwrap();
    assert_eq!((info.page_sizes, info.available_mappings), (0x4020_1000, Some(65_535)));
    map(iommu, 0x10_0000).unwrap();
    assert_eq!(iommu.info().unwrap().available_mappings, Some(65_534));
    for (iova, words) in [
        (0x10_0000, "overlap"),
        (0x10_1800, "multiple of the page"),
        (0xf_f000, "none of the IOMMU's ranges"),
        (0xfee0_0000, "none of the IOMMU's ranges"),
        (1 << 48, "none of the IOMMU's ranges"),
    ] {
        let error = map(iommu, iova).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains(&format!("{iova:#x}")), "{error}");
    }
    for (iova, len) in [(0x10_0000, 2 * PAGE), (0x10_1000, PAGE)] {
        assert!(iommu.unmap(iova, len).is_err());
    }
    iommu.unmap(0x10_0000, PAGE).unwrap();
    assert_eq!(iommu.info().unwrap().available_mappings, Some(65_535));
    assert_eq!(model.function().memory().ranges(), 0);
}

#[test]
fn the_number_of_mappings_can_be_limited() {
    let options = IommuOptions { mappings: Some(2), ..IommuOptions::default() };
    let model = Embedded::with_function(Ioat::new(IoatConfig::default()).unwrap(), options);
    let iommu = &**model.iommu();
    map(iommu, 0x10_0000).unwrap();
    map(iommu, 0x10_1000).unwrap();
    let error = map(iommu, 0x10_2000).unwrap_err().to_string();
    assert!(error.contains("all 2 mappings"), "{error}");
    iommu.unmap(0x10_0000, PAGE).unwrap();
    map(iommu, 0x10_2000).unwrap();
}

#[test]
fn a_reset_keeps_what_the_host_owns() {
    let model = embedded().attach().unwrap();
    model.region_write(Region::Config, COMMAND, &[0x06, 0x04]).unwrap();
    model.region_write(Region::Config, 0x10, &0xfe00_0000u32.to_le_bytes()).unwrap();
    // GENCTRL, a register of the device.
    model.region_write(Region::Bar(0), 0x02, &[1]).unwrap();
    model.reset().unwrap();
    let mut data = [0; 4];
    model.region_read(Region::Config, 0x10, &mut data).unwrap();
    assert_eq!(u32::from_le_bytes(data), 0xfe00_0004);
    model.region_read(Region::Config, COMMAND, &mut data[..2]).unwrap();
    assert_eq!(data[..2], [0x06, 0x04]);
    model.region_read(Region::Bar(0), 0x02, &mut data[..1]).unwrap();
    assert_eq!(data[0], 0);
}

#[test]
fn a_driver_has_the_model_alone() {
    let model = embedded();
    let attached = model.attach().unwrap();
    assert_eq!(model.attach().unwrap_err(), AttachError::InUse);
    // GENCTRL: the function is the same one for whoever comes next.
    attached.region_write(Region::Bar(0), 0x02, &[1]).unwrap();
    drop(attached);
    let attached = model.attach().unwrap();
    let mut data = [0];
    attached.region_read(Region::Bar(0), 0x02, &mut data).unwrap();
    assert_eq!(data, [1]);
    // The model may go first.
    drop(model);
    attached.region_read(Region::Bar(0), 0x02, &mut data).unwrap();
}
