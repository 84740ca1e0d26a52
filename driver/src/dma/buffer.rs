//! A buffer that a device reads or writes.

use std::fmt;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use super::mapping::Mapping;
use super::memory::{Memory, frames};
use super::pool::PoolSlice;
use super::{
    AddressSpace, Direction, DmaError, DmaLimits, FrameError, Iova, Report, Request, Segment,
};
use crate::backend::Backend;

/// Where a buffer's bytes are.
#[derive(Debug)]
enum Backing {
    /// In memory of its own, or lent by the caller.
    Mapped {
        mapping: Mapping,
        /// The buffer's first byte in the memory.
        skip: usize,
    },
    /// In a pool.
    Pooled(PoolSlice),
}

/// Memory that is mapped for a device and owned by the processor.
///
/// Dropping it unmaps it, then frees it. A driver that hands a buffer to a device keeps
/// it until the device is done or known to be quiet
/// ([`InFlight`](crate::queue::InFlight)); when memory cannot be unmapped it is never freed.
pub struct Buffer {
    backing: Backing,
    segments: Vec<Segment>,
    /// Offset in the buffer that each segment starts at.
    starts: Vec<usize>,
    /// Those that it was placed under.
    limits: DmaLimits,
    request: Request,
    report: Report,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("len", &self.len())
            .field("direction", &self.direction())
            .field("segments", &self.segments)
            .finish_non_exhaustive()
    }
}

impl Buffer {
    /// A part of a mapping, from `skip` bytes on; what the device sees of the mapping is
    /// `runs`, from its start.
    pub(super) fn mapped(
        mapping: Mapping,
        skip: usize,
        runs: &[Segment],
        limits: &DmaLimits,
        request: &Request,
    ) -> Buffer {
        let segments = clip(runs, skip, request.len);
        Buffer::new(Backing::Mapped { mapping, skip }, segments, limits, request)
    }

    /// A piece of a pool.
    pub(super) fn pooled(slice: PoolSlice, limits: &DmaLimits, request: &Request) -> Buffer {
        let segments = vec![Segment { iova: slice.iova(), len: request.len }];
        Buffer::new(Backing::Pooled(slice), segments, limits, request)
    }

    fn new(
        backing: Backing,
        segments: Vec<Segment>,
        limits: &DmaLimits,
        request: &Request,
    ) -> Buffer {
        let starts = starts(&segments);
        let report = Report::new(request.len, request.direction);
        Buffer { backing, segments, starts, limits: *limits, request: request.clone(), report }
    }

    pub(super) fn set_report(&mut self, report: Report) {
        self.report = report;
    }

    pub(super) fn limits(&self) -> &DmaLimits {
        &self.limits
    }

    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    pub(super) fn owner(&self) -> &Arc<dyn Backend> {
        match &self.backing {
            Backing::Mapped { mapping, .. } => mapping.owner(),
            Backing::Pooled(slice) => slice.owner(),
        }
    }

    /// Map calls that placing it took.
    pub(super) fn map_calls(&self) -> u64 {
        match &self.backing {
            Backing::Mapped { mapping, .. } => mapping.map_calls(),
            Backing::Pooled(_) => 0,
        }
    }

    /// The NUMA nodes that its memory is on; `None` for a piece of a pool.
    pub(super) fn nodes(&self) -> Option<nix::Result<Vec<(u32, u64)>>> {
        match &self.backing {
            Backing::Mapped { mapping, .. } => Some(mapping.memory().nodes()),
            Backing::Pooled(_) => None,
        }
    }

    /// Whether the memory belongs to the caller, so that the bytes cannot go elsewhere.
    pub(super) fn is_lent(&self) -> bool {
        matches!(&self.backing, Backing::Mapped { mapping, .. } if mapping.memory().is_lent())
    }

    /// The mapping behind it; `None` for a piece of a pool.
    pub(super) fn into_mapping(self) -> Option<Mapping> {
        match self.backing {
            Backing::Mapped { mapping, .. } => Some(mapping),
            Backing::Pooled(_) => None,
        }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.request.len
    }

    /// Never: a buffer has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Which way data may flow.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.request.direction
    }

    /// How the buffer came to be placed where it is.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The address space it is mapped in.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        match &self.backing {
            Backing::Mapped { mapping, .. } => mapping.space(),
            Backing::Pooled(slice) => slice.space(),
        }
    }

    /// What the device sees, in the order of the bytes; one segment when contiguous.
    /// Neighbours are merged: no segment continues the one before it.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// What the device sees of `len` bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the buffer.
    pub fn segments_of(
        &self,
        offset: usize,
        len: usize,
    ) -> Result<impl Iterator<Item = Segment> + '_, DmaError> {
        self.check(offset, len)?;
        let end = offset + len;
        let first = self.starts.partition_point(|&start| start <= offset).saturating_sub(1);
        let all = self.starts[first..].iter().zip(&self.segments[first..]);
        let inside = all.take_while(move |(start, _)| **start < end && len > 0);
        Ok(inside.map(move |(&start, segment)| {
            let from = offset.max(start) - start;
            let to = (end - start).min(segment.len);
            Segment { iova: Iova(segment.iova.0 + from as u64), len: to - from }
        }))
    }

    /// Whether a page of the buffer left the physical address that a device was given.
    /// Always false behind an IOMMU, which pins what it maps; see the module
    /// documentation for what locking memory does not promise.
    ///
    /// # Errors
    ///
    /// Fails when physical addresses cannot be read.
    pub fn has_moved(&self) -> Result<bool, FrameError> {
        let (mapping, skip) = match &self.backing {
            Backing::Pooled(slice) => return slice.has_moved(),
            Backing::Mapped { mapping, .. } if !mapping.runs().is_empty() => return Ok(false),
            Backing::Mapped { mapping, skip } => (mapping, *skip),
        };
        let page = frames::frame_bytes();
        let pages = (skip + self.len()).div_ceil(page);
        let frames = frames::frames(mapping.memory().base(), pages * page)?;
        Ok(clip(&physical_runs(&frames), skip, self.len()) != self.segments)
    }

    /// Maps the same memory at one IOVA range instead of several, without a copy: the range
    /// has the alignment that `take` is given, and as many bytes.
    pub(super) fn remap(
        &mut self,
        take: impl FnOnce(usize, u64, usize) -> Result<Vec<Segment>, DmaError>,
    ) -> Result<(), DmaError> {
        let Backing::Mapped { mapping, skip } = &mut self.backing else {
            return Ok(());
        };
        let len = mapping.runs().iter().map(|run| run.len).sum();
        let runs = take(len, mapping.memory().page_size().bytes() as u64, *skip)?;
        mapping.remap(runs, self.request.direction.access())?;
        self.segments = clip(mapping.runs(), *skip, self.request.len);
        self.starts = starts(&self.segments);
        Ok(())
    }

    /// Makes every byte 0.
    pub(super) fn clear(&mut self) -> Result<(), DmaError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        for start in (0..self.len()).step_by(ZEROS.len()) {
            self.write(start, &ZEROS[..ZEROS.len().min(self.len() - start)])?;
        }
        Ok(())
    }

    /// Copies the bytes of another buffer of the same length.
    pub(super) fn copy_from(&mut self, other: &Buffer) -> Result<(), DmaError> {
        let mut chunk = [0; 4096];
        for start in (0..self.len()).step_by(chunk.len()) {
            let chunk = &mut chunk[..4096.min(self.len() - start)];
            other.read(start, chunk)?;
            self.write(start, chunk)?;
        }
        Ok(())
    }

    /// Unmaps the buffer and frees it, or returns lent memory to its owner.
    ///
    /// # Errors
    ///
    /// Fails when the IOMMU refuses: the memory is never freed then, and a device may go
    /// on reaching memory that was lent.
    pub fn release(self) -> Result<(), DmaError> {
        match self.backing {
            Backing::Mapped { mapping, .. } => mapping.release(),
            // It goes back to its pool by itself.
            Backing::Pooled(_) => Ok(()),
        }
    }

    /// Where the processor sees it.
    #[cfg(test)]
    pub(super) fn address(&self) -> usize {
        let (memory, skip) = self.memory();
        memory.base().addr().get() + skip
    }

    /// Copies bytes out of the buffer.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the buffer, or pages of the file behind it are gone.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.check(offset, into.len())?;
        let (memory, skip) = self.memory();
        Ok(memory.read(skip + offset, into)?)
    }

    /// Copies bytes into the buffer.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the buffer, when the buffer is of a file that is open
    /// for reading only, or when pages of the file behind it are gone.
    pub fn write(&mut self, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.write_part(offset, from)
    }

    /// As [`Buffer::write`], for who has that part of the buffer alone.
    pub(super) fn write_part(&self, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.check(offset, from.len())?;
        let (memory, skip) = self.memory();
        Ok(memory.write(skip + offset, from)?)
    }

    /// The memory that it is in, and where it begins there.
    fn memory(&self) -> (&Memory, usize) {
        match &self.backing {
            Backing::Mapped { mapping, skip } => (mapping.memory(), *skip),
            Backing::Pooled(slice) => slice.memory(),
        }
    }

    /// Fails once an access has met a page that was gone, for who loads and stores by
    /// [`Buffer::slice`].
    pub(crate) fn check_there(&self, offset: usize, len: usize) -> Result<(), DmaError> {
        Ok(self.memory().0.check_there(offset, len)?)
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), DmaError> {
        if offset.checked_add(len).is_some_and(|end| end <= self.len()) {
            Ok(())
        } else {
            Err(DmaError::OutOfBounds { offset, len, size: self.len() })
        }
    }

    /// The memory of a range, for volatile loads and stores.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the buffer, and when a load or store could raise a
    /// signal: of a file that can be cut short, or is open for reading only.
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, DmaError> {
        self.check(offset, len)?;
        let (memory, skip) = self.memory();
        if memory.may_shrink() || !memory.is_writable() {
            return Err(DmaError::OnlyCopies { offset, len });
        }
        let (size, slice) = (self.len(), memory.as_volatile_slice().subslice(skip + offset, len));
        slice.map_err(|_| DmaError::OutOfBounds { offset, len, size })
    }
}

/// Offsets in a buffer that its segments start at.
fn starts(segments: &[Segment]) -> Vec<usize> {
    let starts = segments.iter().scan(0, |next, segment| {
        let start = *next;
        *next += segment.len;
        Some(start)
    });
    starts.collect()
}

/// The part of IOVA ranges that `len` bytes from `skip` on take, neighbours merged.
pub(super) fn clip(runs: &[Segment], skip: usize, len: usize) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut start = 0;
    for run in runs {
        let first = start.max(skip);
        let end = (start + run.len).min(skip.saturating_add(len));
        if first < end {
            let iova = Iova(run.iova.0 + (first - start) as u64);
            match segments.last_mut() {
                Some(last) if last.iova.checked_add(last.len as u64) == Some(iova) => {
                    last.len += end - first;
                }
                _ => segments.push(Segment { iova, len: end - first }),
            }
        }
        start += run.len;
    }
    segments
}

/// Runs of physically adjacent pages.
pub(super) fn physical_runs(frames: &[u64]) -> Vec<Segment> {
    let page = frames::frame_bytes();
    let runs = frames::runs(frames).into_iter();
    runs.map(|run| Segment { iova: Iova(frames[run.start] * page as u64), len: run.len() * page })
        .collect()
}
