//! A BAR whose first page is mapped, whose second is trapped, and whose third is mapped
//! again, as with an MSI-X table in the middle.

use std::os::fd::BorrowedFd;
use std::sync::Mutex;

use super::*;
use crate::backend::{Iommu, IrqKind, RegionInfo};
use crate::dma::{Memory, PageSize};
use crate::testing::Page;

type BackendResult<T> = crate::backend::Result<T>;

const PAGE: u64 = 4096;
const SIZE: u64 = 3 * PAGE;

/// Records trapped accesses as (offset, width, written value).
#[derive(Debug, Default)]
struct Sparse {
    trapped: Mutex<Vec<(u64, usize, Option<u64>)>>,
    /// What it says is mappable, for descriptions that make no sense.
    mappable: Option<Range<u64>>,
}

/// The events of a function that has none.
fn nothing() -> Events {
    Events::new("here".into()).unwrap()
}

impl Backend for Arc<Sparse> {
    fn location(&self) -> String {
        "sparse".into()
    }
    fn region_info(&self, region: Region) -> BackendResult<RegionInfo> {
        let size = if region == Region::Bar(0) { SIZE } else { 0 };
        let both = vec![0..PAGE, 2 * PAGE..SIZE];
        let mappable = self.mappable.clone().map_or(both, |range| vec![range]);
        Ok(RegionInfo { size, readable: true, writable: true, mappable })
    }
    fn region_read(&self, _: Region, offset: u64, data: &mut [u8]) -> BackendResult<()> {
        self.trapped.lock().unwrap().push((offset, data.len(), None));
        for (at, byte) in (offset..).zip(data) {
            *byte = at as u8;
        }
        Ok(())
    }
    fn region_write(&self, _: Region, offset: u64, data: &[u8]) -> BackendResult<()> {
        let mut bytes = [0; 8];
        bytes[..data.len()].copy_from_slice(data);
        let value = Some(u64::from_le_bytes(bytes));
        self.trapped.lock().unwrap().push((offset, data.len(), value));
        Ok(())
    }
    fn map_region(&self, _: Region, _: Range<u64>) -> BackendResult<Box<dyn MappedRegion>> {
        Ok(Box::new(Page(Memory::allocate(PAGE as usize, PageSize::Base, false).unwrap())))
    }
    fn irq_count(&self, _: IrqKind) -> BackendResult<u32> {
        Ok(0)
    }
    fn irq_enable(&self, _: IrqKind, _: &[BorrowedFd<'_>]) -> BackendResult<()> {
        unreachable!("a BAR has no interrupts")
    }
    fn irq_disable(&self, _: IrqKind) -> BackendResult<()> {
        unreachable!("a BAR has no interrupts")
    }
    fn intx_set_masked(&self, _: bool) -> BackendResult<()> {
        unreachable!("a BAR has no interrupts")
    }
    fn reset(&self) -> BackendResult<()> {
        unreachable!("a BAR is not reset")
    }
    fn iommu(&self) -> &Arc<dyn Iommu> {
        unreachable!("a BAR does no DMA")
    }
}

fn sparse() -> (Arc<Sparse>, Bar) {
    let sparse = Arc::new(Sparse::default());
    let backend: Arc<dyn Backend> = Arc::new(Arc::clone(&sparse));
    let bar = Bar::open(&backend, Region::Bar(0), &nothing(), &Arc::default()).unwrap();
    (sparse, bar)
}

#[test]
fn mapped_areas_are_memory_and_the_rest_is_trapped() {
    let (sparse, bar) = sparse();
    for offset in [0, 8, PAGE - 8, 2 * PAGE, SIZE - 8] {
        bar.write(offset, 0x1122_3344_5566_7788_u64).unwrap();
        assert_eq!(bar.read::<u64>(offset).unwrap(), 0x1122_3344_5566_7788);
        assert_eq!(bar.read::<u8>(offset).unwrap(), 0x88, "little endian");
        assert_eq!(bar.read::<u16>(offset + 6).unwrap(), 0x1122);
        assert_eq!(bar.read::<u32>(offset + 4).unwrap(), 0x1122_3344);
    }
    assert!(sparse.trapped.lock().unwrap().is_empty(), "nothing was trapped");
    assert_eq!(bar.read::<u32>(PAGE).unwrap(), 0x0302_0100);
    bar.write(2 * PAGE - 2, 0xabcd_u16).unwrap();
    let trapped = sparse.trapped.lock().unwrap();
    assert_eq!(*trapped, [(PAGE, 4, None), (2 * PAGE - 2, 2, Some(0xabcd))]);
}

#[test]
fn what_is_outside_or_misaligned_is_refused() {
    let (sparse, bar) = sparse();
    for offset in [SIZE, SIZE - 4, u64::MAX, u64::MAX - 7] {
        assert!(matches!(bar.read::<u64>(offset), Err(MmioError::OutOfBounds { .. })));
        assert!(matches!(bar.write(offset, 0u64), Err(MmioError::OutOfBounds { .. })));
    }
    assert!(matches!(bar.read::<u16>(1), Err(MmioError::Misaligned { .. })));
    assert!(matches!(bar.write(PAGE + 2, 0u32), Err(MmioError::Misaligned { .. })));
    assert!(matches!(bar.read::<u64>(4), Err(MmioError::Misaligned { .. })));
    assert!(bar.read64_split(SIZE - 4, SplitOrder::LowFirst).is_err());
    assert!(bar.write64_split(u64::MAX - 3, 0, SplitOrder::HighFirst).is_err());
    assert!(sparse.trapped.lock().unwrap().is_empty(), "the device saw none of it");
}

#[test]
fn halves_are_accessed_in_the_order_named() {
    let (sparse, bar) = sparse();
    let value = 0x1122_3344_5566_7788;
    bar.write64_split(PAGE + 8, value, SplitOrder::LowFirst).unwrap();
    bar.write64_split(PAGE + 8, value, SplitOrder::HighFirst).unwrap();
    bar.read64_split(PAGE + 8, SplitOrder::HighFirst).unwrap();
    let (low, high) = (Some(0x5566_7788), Some(0x1122_3344));
    assert_eq!(
        *sparse.trapped.lock().unwrap(),
        [
            (PAGE + 8, 4, low),
            (PAGE + 12, 4, high),
            (PAGE + 12, 4, high),
            (PAGE + 8, 4, low),
            (PAGE + 12, 4, None),
            (PAGE + 8, 4, None),
        ]
    );
    bar.write64_split(0, value, SplitOrder::LowFirst).unwrap();
    assert_eq!(bar.read64_split(0, SplitOrder::LowFirst).unwrap(), value);
    assert_eq!(bar.read::<u64>(0).unwrap(), value);
}

#[test]
fn a_backend_that_promises_more_than_it_maps_is_refused() {
    #[expect(clippy::reversed_empty_ranges, reason = "what a backend may say")]
    let inverted = 2 * PAGE..PAGE;
    let outside = [SIZE - PAGE..SIZE + PAGE, SIZE..SIZE + PAGE];
    for mappable in [0..2 * PAGE, inverted, PAGE..PAGE].into_iter().chain(outside) {
        let backend: Arc<dyn Backend> =
            Arc::new(Arc::new(Sparse { mappable: Some(mappable), ..Sparse::default() }));
        assert!(matches!(
            Bar::open(&backend, Region::Bar(0), &nothing(), &Arc::default()),
            Err(MmioError::OutOfBounds { .. })
        ));
    }
    let (sparse, _) = sparse();
    let backend: Arc<dyn Backend> = Arc::new(sparse);
    let missing =
        Bar::open(&backend, Region::Bar(3), &nothing(), &Arc::default()).unwrap_err().to_string();
    assert!(missing.contains("BAR3"), "{missing}");
}

#[test]
fn a_mapped_area_of_every_small_size_is_reached_to_its_last_byte() {
    for size in 1..=16 {
        let sparse = Arc::new(Sparse { mappable: Some(0..size), ..Sparse::default() });
        let backend: Arc<dyn Backend> = Arc::new(Arc::clone(&sparse));
        let bar = Bar::open(&backend, Region::Bar(0), &nothing(), &Arc::default()).unwrap();
        for offset in 0..size {
            bar.write(offset, offset as u8 + 1).unwrap();
            assert_eq!(bar.read::<u8>(offset).unwrap(), offset as u8 + 1);
        }
        assert!(sparse.trapped.lock().unwrap().is_empty(), "nothing was trapped");
        // What ends behind it is trapped.
        let last = (size - 1) & !7;
        bar.write(last, 0u64).unwrap();
        assert_eq!(sparse.trapped.lock().unwrap().len(), usize::from(size % 8 != 0));
    }
}

#[test]
fn a_mapping_that_loses_the_alignment_of_registers_is_refused() {
    // Each is mapped at the begin of a page.
    for mappable in [4..PAGE, 2..PAGE, PAGE + 1..2 * PAGE] {
        let backend: Arc<dyn Backend> =
            Arc::new(Arc::new(Sparse { mappable: Some(mappable), ..Sparse::default() }));
        assert!(matches!(
            Bar::open(&backend, Region::Bar(0), &nothing(), &Arc::default()),
            Err(MmioError::Misaligned { width: 8, .. })
        ));
    }
}

/// A mapping of a file that is cut off: what the kernel does to a BAR whose function is removed.
#[derive(Debug)]
struct CutOff(NonNull<u8>);

// SAFETY: the mapping is never unmapped; a page that is not there becomes an error.
unsafe impl MappedRegion for CutOff {
    fn base(&self) -> NonNull<u8> {
        self.0
    }
    fn len(&self) -> usize {
        PAGE as usize
    }
}
// SAFETY: an address range is not bound to a thread.
unsafe impl Send for CutOff {}
// SAFETY: as above.
unsafe impl Sync for CutOff {}

#[test]
fn a_mapping_that_nothing_answers_is_a_typed_error() {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};
    let file = std::fs::File::from(memfd_create("bar", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(PAGE).unwrap();
    let len = std::num::NonZeroUsize::new(PAGE as usize).unwrap();
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let base = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, &file, 0) }.unwrap();
    let (_, mut bar) = sparse();
    let mapping: Box<dyn MappedRegion> = Box::new(CutOff(base.cast()));
    // SAFETY: the bar drops its guards before its mappings, and nothing refers into them.
    bar.guards = vec![unsafe { BusErrorGuard::watch(mapping.base(), mapping.len(), 0) }.unwrap()];
    bar.fast = Fast::new(&(0..PAGE), mapping.base());
    bar.areas = vec![(0..PAGE, mapping)];
    bar.write(0x10, 7_u32).unwrap();
    assert_eq!(bar.read::<u32>(0x10).unwrap(), 7);
    file.set_len(0).unwrap();
    for _ in 0..2 {
        match bar.read::<u32>(0x10) {
            Err(MmioError::BusError { region: Region::Bar(0), offset: 0x10, width: 4 }) => {}
            other => panic!("{other:?}"),
        }
        assert!(matches!(bar.write(0x20, 1_u8), Err(MmioError::BusError { .. })));
    }
}
