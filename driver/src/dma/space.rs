//! One I/O address space: its IOVAs, and what is mapped in it.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::memory::Files;
use super::{DmaError, Iova, IovaAllocator, IovaError, Memory, Segment};
use crate::backend::{BackendError, DmaAccess, Iommu, IommuInfo, MapRequest, Translation};
use crate::deadline::Deadline;
use crate::sync::{Condvar, Mutex, MutexGuard};

/// What is mapped in an address space, and how often that changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Usage {
    /// Mappings that exist now.
    pub mappings: u64,
    /// Bytes mapped now.
    pub bytes: u64,
    /// Map calls made so far, successful or not.
    pub map_calls: u64,
    /// Time that these map calls took, without what was done around them.
    pub map_time: Duration,
    /// Unmap calls made so far, successful or not.
    pub unmap_calls: u64,
}

#[derive(Debug)]
struct State {
    iovas: IovaAllocator,
    usage: Usage,
    /// How often memory or addresses came back.
    frees: u64,
}

/// Memory could not be mapped.
#[derive(Debug)]
pub(super) struct MapFailed {
    pub(super) error: DmaError,
    /// A part of it was mapped and could not be unmapped: the memory must never be freed.
    pub(super) stays_mapped: bool,
}

/// One I/O address space, shared by every device that is opened in it.
#[derive(Debug)]
pub struct AddressSpace {
    iommu: Arc<dyn Iommu>,
    translation: Translation,
    granule: u64,
    /// Where memory comes from that needs a descriptor.
    files: Option<Files>,
    state: Mutex<State>,
    freed: Condvar,
}

impl AddressSpace {
    /// Reads what the IOMMU offers and sets the address space up from it.
    ///
    /// # Errors
    ///
    /// Fails when the IOMMU cannot be asked. A VFIO container answers once its first
    /// device is open.
    pub fn new(iommu: &Arc<dyn Iommu>) -> Result<Arc<AddressSpace>, DmaError> {
        let info = iommu.info()?;
        let granule = smallest_page(&info);
        let iovas = IovaAllocator::new(granule, &windows(&info));
        let state = State { iovas, usage: Usage::default(), frees: 0 };
        Ok(Arc::new(AddressSpace {
            iommu: Arc::clone(iommu),
            translation: info.translation,
            granule,
            files: info.needs_fd.then(Files::default),
            state: Mutex::new(state),
            freed: Condvar::new(),
        }))
    }

    /// Reads the IOMMU's ranges again: they shrink when another device joins.
    ///
    /// # Errors
    ///
    /// Fails when the IOMMU cannot be asked.
    pub fn refresh(&self) -> Result<(), DmaError> {
        let info = self.iommu.info()?;
        self.lock().iovas.set_windows(&windows(&info));
        Ok(())
    }

    /// The IOMMU behind the address space.
    #[must_use]
    pub fn iommu(&self) -> &Arc<dyn Iommu> {
        &self.iommu
    }

    /// How device addresses become memory.
    #[must_use]
    pub fn translation(&self) -> Translation {
        self.translation
    }

    /// The smallest page that can be mapped, in bytes.
    #[must_use]
    pub fn granule(&self) -> u64 {
        self.granule
    }

    /// Whether mapped memory must have a file descriptor.
    #[must_use]
    pub fn needs_fd(&self) -> bool {
        self.files.is_some()
    }

    /// The files that memory of the address space shares, where it needs any.
    pub(super) fn files(&self) -> Option<&Files> {
        self.files.as_ref()
    }

    /// What is mapped now, and how often that changed.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.lock().usage
    }

    /// A copy of the IOVA allocator, to look at.
    #[must_use]
    pub fn iovas(&self) -> IovaAllocator {
        self.lock().iovas.clone()
    }

    /// How often a buffer came back, to its pool or to the kernel: while the number stays,
    /// what failed for want of room in this address space fails again.
    #[must_use]
    pub fn frees(&self) -> u64 {
        self.lock().frees
    }

    /// Waits until [`AddressSpace::frees`] is no longer `seen`, at most until the deadline.
    /// Says whether it changed.
    pub(super) fn wait_for_free(&self, seen: u64, deadline: Deadline) -> bool {
        let mut state = self.lock();
        while state.frees == seen {
            let left = deadline.left();
            if left.is_zero() {
                return false;
            }
            let woken = self.freed.wait_timeout(state, left);
            (state, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    pub(super) fn note_free(&self) {
        self.lock().frees += 1;
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete before anything that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One IOVA range at or below `mask`, aligned to `align` when that can be had and to
    /// `least` otherwise.
    pub(super) fn take_run(
        &self,
        len: usize,
        align: u64,
        least: u64,
        mask: u64,
    ) -> Result<Vec<Segment>, IovaError> {
        let len64 = len as u64;
        let least = least.max(self.granule);
        let mut state = self.lock();
        let iova = match state.iovas.allocate(len64, align.max(least), mask) {
            Ok(iova) => iova,
            Err(_) => state.iovas.allocate(len64, least, mask)?,
        };
        Ok(vec![Segment { iova, len }])
    }

    /// Takes addresses out of the address space, at which nothing will be mapped: for what a
    /// device has there by itself.
    pub(crate) fn reserve_iova(
        self: &Arc<Self>,
        len: u64,
        align: u64,
    ) -> Result<ReservedIova, DmaError> {
        let align = align.max(self.granule);
        let iova = self.lock().iovas.allocate(len, align, u64::MAX)?;
        Ok(ReservedIova { space: Arc::clone(self), iova, len })
    }

    /// As few IOVA ranges as there are free runs, see [`IovaAllocator::allocate_runs`].
    pub(super) fn take_runs(
        &self,
        len: usize,
        longest: usize,
        least: usize,
        mask: u64,
    ) -> Result<Vec<Segment>, IovaError> {
        let runs =
            self.lock().iovas.allocate_runs(len as u64, longest as u64, least as u64, mask)?;
        Ok(runs.into_iter().map(|(iova, len)| Segment { iova, len: len as usize }).collect())
    }

    /// Gives ranges back that nothing is mapped at.
    pub(super) fn give_back(&self, runs: &[Segment]) {
        let mut state = self.lock();
        for run in runs {
            if let Err(error) = state.iovas.free(run.iova, run.len as u64) {
                log::error!("giving an IOVA range back: {error}");
            }
        }
    }

    /// Maps `memory` from its start at these IOVA ranges, one after another, and returns
    /// how many calls that took. The ranges are free again when it fails.
    ///
    /// # Safety
    ///
    /// The memory must live until [`AddressSpace::unmap`] of the ranges succeeded, and
    /// forever when this fails and leaves it stuck.
    pub(super) unsafe fn map(
        &self,
        memory: &Memory,
        runs: &[Segment],
        access: DmaAccess,
    ) -> Result<u64, MapFailed> {
        let pieces = self.pieces(memory, runs);
        let mut done = 0;
        let outcome = self.check_map(&pieces).and_then(|()| {
            for &(iova, piece) in &pieces {
                // SAFETY: the piece is inside of the memory.
                let host = unsafe { memory.base().byte_add(piece.offset) };
                let (len, file) = (piece.len, piece.file);
                let request = MapRequest { iova: iova.0, host, len, access, file };
                self.count_map(len, || {
                    // SAFETY: the caller keeps the memory until it is unmapped, and `Memory`
                    // lets no reference point into it.
                    unsafe { self.iommu.map(&request) }
                })?;
                done += 1;
            }
            Ok(())
        });
        let Err(error) = outcome else {
            return Ok(pieces.len() as u64);
        };
        // The ranges of pieces that stay mapped are never handed out again.
        let stuck: Vec<Iova> = pieces[..done]
            .iter()
            .filter(|(iova, piece)| self.unmap_piece(*iova, piece.len).is_err())
            .map(|(iova, _)| *iova)
            .collect();
        let within = |run: &Segment, iova: &Iova| {
            iova.0.checked_sub(run.iova.0).is_some_and(|offset| offset < run.len as u64)
        };
        for run in runs.iter().filter(|run| !stuck.iter().any(|iova| within(run, iova))) {
            if let Err(error) = self.lock().iovas.free(run.iova, run.len as u64) {
                log::error!("giving an IOVA range back: {error}");
            }
        }
        Err(MapFailed { error, stays_mapped: !stuck.is_empty() })
    }

    /// Makes one map call, and counts it.
    pub(super) fn count_map(
        &self,
        len: usize,
        map: impl FnOnce() -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let begin = Instant::now();
        let mapped = map();
        let took = begin.elapsed();
        let mut state = self.lock();
        state.usage.map_calls += 1;
        state.usage.map_time += took;
        mapped?;
        state.usage.mappings += 1;
        state.usage.bytes += len as u64;
        Ok(())
    }

    /// Unmaps memory of a device, and gives its range back.
    pub(super) fn unmap_peer(&self, segment: Segment) -> Result<(), DmaError> {
        self.unmap_piece(segment.iova, segment.len)?;
        self.give_back(&[segment]);
        Ok(())
    }

    /// Unmaps exactly what [`AddressSpace::map`] mapped, as far as that goes.
    ///
    /// # Errors
    ///
    /// The first refusal of the IOMMU; that range stays mapped and is never handed out
    /// again, the others are unmapped.
    pub(super) fn unmap(&self, memory: &Memory, runs: &[Segment]) -> Result<(), DmaError> {
        let mut outcome = Ok(());
        let mut offset = 0;
        for run in runs {
            let pieces = memory.pieces(offset..offset + run.len, self.needs_fd());
            let mut done = Ok(());
            for piece in pieces {
                let iova = Iova(run.iova.0 + (piece.offset - offset) as u64);
                done = done.and(self.unmap_piece(iova, piece.len));
            }
            offset += run.len;
            let done = done.map_err(DmaError::from);
            let freed = done.and_then(|()| Ok(self.lock().iovas.free(run.iova, run.len as u64)?));
            outcome = outcome.and(freed);
        }
        outcome
    }

    fn pieces<'a>(
        &self,
        memory: &'a Memory,
        runs: &[Segment],
    ) -> Vec<(Iova, super::memory::Piece<'a>)> {
        let mut pieces = Vec::with_capacity(runs.len());
        let mut offset = 0;
        for run in runs {
            let range = offset..offset + run.len;
            pieces.extend(
                memory
                    .pieces(range, self.needs_fd())
                    .map(|piece| (Iova(run.iova.0 + (piece.offset - offset) as u64), piece)),
            );
            offset += run.len;
        }
        pieces
    }

    /// What can be known to fail before the first call.
    fn check_map(&self, pieces: &[(Iova, super::memory::Piece<'_>)]) -> Result<(), DmaError> {
        let name = || self.iommu.name().into();
        if self.translation == Translation::Physical {
            return Err(DmaError::NoTranslation { name: name() });
        }
        if self.needs_fd() && pieces.iter().any(|(_, piece)| piece.file.is_none()) {
            return Err(DmaError::NeedsFile { name: name() });
        }
        // One call tells by itself; asking first saves thousands that would be undone.
        if let needed @ 2.. = pieces.len() as u64
            && let Some(available) = self.iommu.info()?.available_mappings
            && u64::from(available) < needed
        {
            return Err(DmaError::TooManyMappings { needed, available: available.into() });
        }
        Ok(())
    }

    fn unmap_piece(&self, iova: Iova, len: usize) -> Result<(), BackendError> {
        let unmapped = self.iommu.unmap(iova.0, len);
        let mut state = self.lock();
        state.usage.unmap_calls += 1;
        unmapped?;
        state.usage.mappings -= 1;
        state.usage.bytes -= len as u64;
        Ok(())
    }
}

/// Addresses at which nothing is mapped; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct ReservedIova {
    space: Arc<AddressSpace>,
    iova: Iova,
    len: u64,
}

impl ReservedIova {
    /// The first of them.
    pub(crate) fn iova(&self) -> Iova {
        self.iova
    }
}

impl Drop for ReservedIova {
    fn drop(&mut self) {
        if let Err(error) = self.space.lock().iovas.free(self.iova, self.len) {
            log::error!("giving an IOVA range back: {error}");
        }
    }
}

fn smallest_page(info: &IommuInfo) -> u64 {
    // No page size at all is an answer that makes no sense; 4 KiB is what every IOMMU has.
    if info.page_sizes == 0 { 4096 } else { 1 << info.page_sizes.trailing_zeros() }
}

/// The ranges without page 0: an address of 0 too often means "none" to a device.
fn windows(info: &IommuInfo) -> Vec<std::ops::RangeInclusive<u64>> {
    let granule = smallest_page(info);
    let above_zero = |range: &std::ops::RangeInclusive<u64>| {
        let start = (*range.start()).max(granule);
        (start <= *range.end()).then_some(start..=*range.end())
    };
    info.ranges.iter().filter_map(above_zero).collect()
}
