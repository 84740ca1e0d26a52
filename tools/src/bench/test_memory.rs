//! The memory that is copied: one source and one target, mapped for the device in as many
//! ways as there are sizes of segments.
//!
//! Every variant moves the same bytes between the same pages of the same size; only the
//! device's addresses of them differ. So does the processor's own copy.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap};
use vfio_dma::backend::Translation;
use vfio_dma::dma::{
    Allocator, Buffer, Direction, Pattern, Placement, Request, SgTable, Slot, SlotPool,
};
use vm_memory::VolatileSlice;

use super::error::BenchError;
use super::segments::{pieces, scattered};

/// Bytes compared at a time.
const CHUNK: usize = 64 << 10;

/// Bytes after which the source's repeat: a prime number.
const PERIOD: usize = 65_521;

/// Memory of this process that is never given back: a device that cannot be stopped may
/// reach it until the process ends.
struct Side {
    file: File,
    base: NonNull<u8>,
    len: usize,
}

impl Side {
    fn new(len: usize) -> Result<Side, BenchError> {
        let failed = |source| BenchError::NoMemory { len, source };
        let file = File::from(memfd_create("bench", MFdFlags::MFD_CLOEXEC).map_err(failed)?);
        file.set_len(len as u64)?;
        let whole = NonZeroUsize::new(len).ok_or(BenchError::State("a benchmark of no bytes"))?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let base = unsafe { mmap(None, whole, access, MapFlags::MAP_SHARED, &file, 0) };
        let base = base.map_err(failed)?;
        // Filled in at once, so that no copy meets a page that is not there; one that cannot be
        // had is an error here, and a signal when it is touched.
        // SAFETY: mapped just now; the advice takes nothing away.
        unsafe { madvise(base, len, MmapAdvise::MADV_POPULATE_WRITE) }.map_err(failed)?;
        let base = base.cast();
        Ok(Side { file, base, len })
    }

    /// A part of it for volatile copies: a device may be using the rest.
    fn slice(&self, offset: usize, len: usize) -> VolatileSlice<'_> {
        // SAFETY: the mapping is never undone, and no reference points into it.
        let whole = unsafe { VolatileSlice::new(self.base.as_ptr(), self.len) };
        whole.subslice(offset, len).expect("inside the memory")
    }

    fn write(&self, offset: usize, from: &[u8]) {
        self.slice(offset, from.len()).copy_from(from);
    }

    fn read(&self, offset: usize, into: &mut [u8]) {
        self.slice(offset, into.len()).copy_to(into);
    }

    /// Maps it for the device.
    fn map(&self, allocator: &Allocator, request: &Request) -> Result<Buffer, BenchError> {
        let buffer = if allocator.space().needs_fd() {
            allocator.adopt_file(&self.file, 0, request)
        } else {
            // SAFETY: the mapping is never undone, and no Rust reference points into it:
            // `read`, `write` and `copy` use its address alone.
            unsafe { allocator.adopt(self.base, request) }
        };
        Ok(buffer?)
    }
}

/// Both sides as the device sees them with one size of segments.
struct Layout {
    source: Arc<Buffer>,
    target: Arc<Buffer>,
    /// Map calls that the two took for each of their segments.
    calls_per_segment: f64,
}

/// Orders of segments that are tried.
const ORDERS: u32 = 100;

/// The slots of one side.
pub(super) type Pool = (Arc<SlotPool>, Vec<Slot>);

/// Source and target tables of one transfer.
pub(super) type Pair = (SgTable, SgTable);

/// The memory that is copied.
pub(super) struct TestMemory {
    allocator: Allocator,
    source: Side,
    target: Side,
    /// By bytes of a segment; `None` is contiguous.
    layouts: BTreeMap<Option<u64>, Layout>,
    seed: u64,
}

impl TestMemory {
    /// Takes memory for source and target, `len` bytes each, and fills the source with a
    /// pattern of the seed.
    ///
    /// # Errors
    ///
    /// Fails when there is no memory.
    pub(super) fn new(
        allocator: &Allocator,
        len: usize,
        seed: u64,
    ) -> Result<TestMemory, BenchError> {
        let len = len.next_multiple_of(allocator.space().granule().max(4096) as usize);
        let (source, target) = (Side::new(len)?, Side::new(len)?);
        // Repeated, for making bytes is slow; at no distance of whole segments, so that one
        // in the place of another shows.
        let mut repeated = vec![0; PERIOD];
        Pattern::new(seed).bytes(0, &mut repeated);
        for offset in (0..len).step_by(PERIOD) {
            source.write(offset, &repeated[..PERIOD.min(len - offset)]);
        }
        let allocator = allocator.clone();
        Ok(TestMemory { allocator, source, target, layouts: BTreeMap::new(), seed })
    }

    /// Which layout has segments of this size: that of the size itself, or of the pages that
    /// pieces of it are taken from.
    fn layout_of(&self, segment: Option<u64>) -> Option<u64> {
        let space = self.allocator.space();
        let granule = space.granule();
        match segment {
            // Without an IOMMU segments are where the pages are.
            _ if space.translation() == Translation::Physical => None,
            Some(bytes) if bytes.is_multiple_of(granule) => Some(bytes),
            Some(bytes) if granule.is_multiple_of(bytes) => Some(granule),
            _ => None,
        }
    }

    /// Maps the first `len` bytes of both sides in segments of this size, unless they are.
    ///
    /// # Errors
    ///
    /// Fails when the placement cannot be had: its text has the reason.
    pub(super) fn map(&mut self, segment: Option<u64>, len: usize) -> Result<(), BenchError> {
        let key = self.layout_of(segment);
        let has = |layout: &Layout| layout.source.len() >= len;
        if self.layouts.get(&key).is_some_and(has) {
            return Ok(());
        }
        let before = self.allocator.space().usage().map_calls;
        let place = |side: &Side, direction| {
            let mut request = Request::new(len, direction);
            request.placement = match key {
                Some(_) => Placement::ScatterGather,
                None => Placement::Contiguous,
            };
            request.longest_run = key.map(|bytes| bytes as usize);
            side.map(&self.allocator, &request).map(Arc::new)
        };
        let source = place(&self.source, Direction::ToDevice)?;
        let target = place(&self.target, Direction::FromDevice)?;
        let calls = self.allocator.space().usage().map_calls - before;
        let segments = source.segments().len() + target.segments().len();
        let calls_per_segment = calls as f64 / segments as f64;
        self.layouts.insert(key, Layout { source, target, calls_per_segment });
        Ok(())
    }

    /// Maps the first slots of `slot` bytes of both sides once more, contiguous: sources,
    /// targets, and the map calls that it took.
    ///
    /// # Errors
    ///
    /// Fails when the placement cannot be had.
    pub(super) fn pools(&self, slot: usize, count: usize) -> Result<(Pool, Pool, u64), BenchError> {
        let before = self.allocator.space().usage().map_calls;
        let pool = |side: &Side, direction| -> Result<Pool, BenchError> {
            let request = Request::new(slot * count, direction).placement(Placement::Contiguous);
            let buffer = side.map(&self.allocator, &request)?;
            Ok(SlotPool::new(buffer, slot).map_err(|failed| failed.error)?)
        };
        let source = pool(&self.source, Direction::ToDevice)?;
        let target = pool(&self.target, Direction::FromDevice)?;
        let calls = self.allocator.space().usage().map_calls - before;
        Ok((source, target, calls))
    }

    /// The tables for `transfer` bytes from `offset` on in segments of this size, which are
    /// mapped, and the map calls that memory of that size and layout takes.
    ///
    /// # Errors
    ///
    /// Fails when the range is not mapped.
    pub(super) fn pair(
        &self,
        segment: Option<u64>,
        offset: usize,
        transfer: usize,
    ) -> Result<(Pair, u64), BenchError> {
        let key = self.layout_of(segment);
        let layout =
            self.layouts.get(&key).ok_or(BenchError::State("a layout that is not mapped"))?;
        let runs = |buffer: &Buffer| buffer.segments_of(offset, transfer).map(Iterator::count);
        let runs = runs(&layout.source)? + runs(&layout.target)?;
        let calls = (runs as f64 * layout.calls_per_segment).ceil() as u64;
        let gather = |buffer: &Arc<Buffer>, ranges: &[(usize, usize)]| {
            SgTable::gather(ranges.iter().map(|&(at, len)| (Arc::clone(buffer), at, len)))
        };
        let both = |ranges: &[(usize, usize)]| -> Result<Pair, BenchError> {
            Ok((gather(&layout.source, ranges)?, gather(&layout.target, ranges)?))
        };
        let size = match segment {
            Some(bytes) if key != segment => bytes as usize,
            _ => return Ok((both(&[(offset, transfer)])?, calls)),
        };
        let count = transfer.div_ceil(size);
        let mut random = fastrand::Rng::with_seed(self.seed ^ offset as u64);
        for _ in 0..ORDERS {
            // Each place gets an order of its own, both sides the same one.
            let order = scattered(count, random.u64(..)).into_iter();
            let pieces = order.map(|n| pieces(n, size, transfer));
            let ranges: Vec<_> = pieces.map(|(at, len)| (offset + at, len)).collect();
            let (source, target) = both(&ranges)?;
            // Pages that are no neighbours here may be some for the device.
            if [&source, &target].iter().all(|table| table.list().segments().len() == count) {
                return Ok(((source, target), calls));
            }
        }
        Err(BenchError::Neighbours { orders: ORDERS, segments: count })
    }

    /// Copies with the processor.
    pub(super) fn copy(&mut self, offset: usize, len: usize) {
        let to = self.target.slice(offset, len);
        self.source.slice(offset, len).copy_to_volatile_slice(to);
    }

    /// Changes what the target has to be compared with, where it is not a copy.
    pub(super) fn set_source(&mut self, offset: usize, bytes: &[u8]) {
        self.source.write(offset, bytes);
    }

    /// Makes every byte of the target wrong.
    pub(super) fn spoil(&mut self, offset: usize, len: usize) {
        let mut chunk = vec![0; CHUNK.min(len)];
        for start in (0..len).step_by(CHUNK) {
            let part = CHUNK.min(len - start);
            self.source.read(offset + start, &mut chunk[..part]);
            chunk[..part].iter_mut().for_each(|byte| *byte = !*byte);
            self.target.write(offset + start, &chunk[..part]);
        }
    }

    /// The first byte of a range whose copy is wrong: (offset, expected, found).
    pub(super) fn wrong(&self, offset: usize, len: usize) -> Option<(usize, u8, u8)> {
        let mut expected = vec![0; CHUNK.min(len)];
        let mut found = expected.clone();
        for start in (0..len).step_by(CHUNK) {
            let part = CHUNK.min(len - start);
            let at = offset + start;
            self.source.read(at, &mut expected[..part]);
            self.target.read(at, &mut found[..part]);
            if expected[..part] != found[..part] {
                let i = (0..part).find(|&i| expected[i] != found[i])?;
                return Some((at + i, expected[i], found[i]));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_dma::device::Device;
    use vfio_dma_model::embedded::Embedded;
    use vfio_dma_model::ioat::IoatConfig;

    #[test]
    fn no_two_segments_are_merged() {
        let device =
            Device::open(Embedded::new(IoatConfig::default()).unwrap().attach().unwrap()).unwrap();
        const LEN: usize = 64 << 10;
        let mut memory = TestMemory::new(device.allocator(), 4 * LEN, 1).unwrap();
        for segment in [None, Some(64), Some(1024), Some(3000), Some(4096), Some(8192)] {
            memory.map(segment, 4 * LEN).unwrap();
            let bytes = segment.unwrap_or(LEN as u64) as usize;
            for slot in 0..4 {
                let ((source, target), calls) = memory.pair(segment, slot * LEN, LEN).unwrap();
                for table in [&source, &target] {
                    let list = table.list();
                    assert_eq!(list.segments().len(), LEN.div_ceil(bytes), "{segment:?}");
                    assert_eq!(list.len(), LEN as u64);
                }
                let runs = match segment {
                    Some(8192) => 8,
                    Some(64 | 1024 | 4096) => 16,
                    _ => 1,
                };
                assert_eq!(calls, 2 * runs, "{segment:?}");
            }
        }
        assert_eq!(memory.layouts.len(), 3, "contiguous, in pages, in two pages");
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let device =
            Device::open(Embedded::new(IoatConfig::default()).unwrap().attach().unwrap()).unwrap();
        let mut memory = TestMemory::new(device.allocator(), 1 << 20, 1).unwrap();
        memory.spoil(0, 1 << 20);
        assert!(matches!(memory.wrong(0, 1 << 20), Some((0, _, _))));
        memory.copy(0, 1 << 20);
        assert_eq!(memory.wrong(0, 1 << 20), None);
        memory.spoil(200_001, 1);
        let (at, expected, found) = memory.wrong(100_000, 200_000).unwrap();
        assert_eq!((at, expected), (200_001, !found));
    }
}
