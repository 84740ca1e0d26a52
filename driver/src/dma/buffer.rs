//! A buffer that a device reads or writes.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use crate::backend::{Backend, DmaAccess};

use super::memory::frames;
use super::placement::{Lease, Site};
use super::{AddressSpace, DmaError, FrameError, Iova, Memory, Report, Request};

/// Which way data flows through a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Direction {
    /// From memory to the device: the device only reads.
    ToDevice,
    /// From the device to memory: the device only writes.
    FromDevice,
    /// Both.
    Bidirectional,
}

impl Direction {
    /// What the device may do with memory for this direction.
    #[must_use]
    pub fn access(self) -> DmaAccess {
        match self {
            Direction::ToDevice => DmaAccess::Read,
            Direction::FromDevice => DmaAccess::Write,
            Direction::Bidirectional => DmaAccess::ReadWrite,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::ToDevice => "to the device",
            Direction::FromDevice => "from the device",
            Direction::Bidirectional => "both ways",
        })
    }
}

/// A run of a buffer that is contiguous for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Segment {
    /// First device address.
    pub iova: Iova,
    /// Length in bytes.
    pub len: usize,
}

/// Where a buffer's bytes are.
#[derive(Debug)]
enum Backing {
    /// In memory of its own, or lent by the caller.
    Own {
        memory: ManuallyDrop<Memory>,
        /// IOVA ranges that the memory is mapped at, one after another; none where the
        /// device sees physical addresses.
        runs: Vec<Segment>,
        /// A former range could not be unmapped: the memory is never freed.
        stuck: bool,
        /// The buffer's first byte in the memory.
        skip: usize,
    },
    /// In a pool.
    Leased(Lease),
}

/// Memory that is mapped for a device and owned by the processor.
///
/// Dropping it unmaps it, then frees it. A driver that hands a buffer to a device keeps
/// it until the device is done or known to be quiet; when memory cannot be unmapped it is
/// never freed.
pub struct Buffer {
    space: Arc<AddressSpace>,
    backing: Backing,
    segments: Vec<Segment>,
    /// Offset in the buffer that each segment starts at.
    starts: Vec<usize>,
    map_calls: u64,
    request: Request,
    report: Report,
    /// Mapped, and to be unmapped.
    live: bool,
    /// Keeps the device's group in its container: the mapping lives no longer than that.
    device: Arc<dyn Backend>,
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
    /// Maps `memory` at the IOVA ranges, which cover it from its start; the buffer begins
    /// `skip` bytes into it.
    pub(super) fn map(
        site: &Site<'_>,
        memory: Memory,
        skip: usize,
        runs: Vec<Segment>,
    ) -> Result<Buffer, DmaError> {
        let memory = ManuallyDrop::new(memory);
        // SAFETY: the buffer owns the memory and frees it only after unmapping succeeded.
        let mapped = unsafe { site.space.map(&memory, &runs, site.request.direction.access()) };
        match mapped {
            Ok(map_calls) => {
                let segments = clip(&runs, skip, site.request.len);
                let backing = Backing::Own { memory, runs, stuck: false, skip };
                Ok(Buffer::new(site, backing, segments, map_calls))
            }
            Err(failed) => {
                if failed.stuck {
                    log::error!("{} bytes stay allocated: {}", memory.len(), failed.error);
                } else {
                    drop(ManuallyDrop::into_inner(memory));
                }
                Err(failed.error)
            }
        }
    }

    /// Memory whose physical addresses are known; `runs` cover it from its start.
    pub(super) fn physical(
        site: &Site<'_>,
        memory: Memory,
        skip: usize,
        runs: &[Segment],
    ) -> Buffer {
        let segments = clip(runs, skip, site.request.len);
        let memory = ManuallyDrop::new(memory);
        let backing = Backing::Own { memory, runs: Vec::new(), stuck: false, skip };
        Buffer::new(site, backing, segments, 0)
    }

    /// A piece of a pool.
    pub(super) fn leased(site: &Site<'_>, lease: Lease) -> Buffer {
        let segments = vec![Segment { iova: lease.iova(), len: site.request.len }];
        Buffer::new(site, Backing::Leased(lease), segments, 0)
    }

    fn new(site: &Site<'_>, backing: Backing, segments: Vec<Segment>, map_calls: u64) -> Buffer {
        let starts = segments.iter().scan(0, |next, segment| {
            let start = *next;
            *next += segment.len;
            Some(start)
        });
        Buffer {
            space: Arc::clone(site.space),
            backing,
            starts: starts.collect(),
            segments,
            map_calls,
            request: site.request.clone(),
            report: Report::new(site.request),
            live: true,
            device: Arc::clone(site.device),
        }
    }

    pub(super) fn set_report(&mut self, report: Report) {
        self.report = report;
    }

    pub(super) fn request(&self) -> &Request {
        &self.request
    }

    pub(super) fn device(&self) -> &Arc<dyn Backend> {
        &self.device
    }

    /// Map calls that placing it took.
    pub(super) fn map_calls(&self) -> u64 {
        self.map_calls
    }

    /// Whether the memory belongs to the caller, so that the bytes cannot go elsewhere.
    pub(super) fn is_lent(&self) -> bool {
        matches!(&self.backing, Backing::Own { memory, .. } if memory.is_lent())
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
        &self.space
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
        let (memory, skip) = match &self.backing {
            Backing::Leased(lease) => return lease.has_moved(),
            Backing::Own { runs, .. } if !runs.is_empty() => return Ok(false),
            Backing::Own { memory, skip, .. } => (memory, skip),
        };
        let pages = (skip + self.len()).div_ceil(frames::FRAME);
        let frames = frames::frames(memory.base(), pages * frames::FRAME)?;
        Ok(clip(&physical_runs(&frames), *skip, self.len()) != self.segments)
    }

    /// Maps the same memory at one IOVA range instead of several, without a copy.
    pub(super) fn remap(&mut self) -> Result<(), DmaError> {
        let Backing::Own { memory, runs, stuck, skip } = &mut self.backing else {
            return Ok(());
        };
        let len = runs.iter().map(|run| run.len).sum();
        let align = memory.page_size().bytes() as u64;
        let constraints = self.request.constraints.at_offset(*skip)?;
        let one = self.space.take_run(len, align, &constraints)?;
        let access = self.request.direction.access();
        // SAFETY: the buffer owns the memory and frees it only after unmapping succeeded.
        let mapped = unsafe { self.space.map(memory, &one, access) };
        match mapped {
            Ok(map_calls) => {
                self.segments = clip(&one, *skip, self.request.len);
                self.starts = vec![0];
                self.map_calls = map_calls;
                let former = std::mem::replace(runs, one);
                if let Err(error) = self.space.unmap(memory, &former) {
                    log::error!("the memory stays allocated, a device may reach it: {error}");
                    *stuck = true;
                }
                self.space.note_free();
                Ok(())
            }
            Err(failed) => {
                *stuck |= failed.stuck;
                Err(failed.error)
            }
        }
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
        let target = self.slice(0, self.len())?;
        other.slice(0, other.len())?.copy_to_volatile_slice(target);
        Ok(())
    }

    /// Unmaps the buffer and frees it, or returns lent memory to its owner.
    ///
    /// # Errors
    ///
    /// Fails when the IOMMU refuses: the memory is never freed then, and a device may go
    /// on reaching memory that was lent.
    pub fn release(mut self) -> Result<(), DmaError> {
        self.tear_down()
    }

    /// Unmaps and frees once; later calls do nothing.
    fn tear_down(&mut self) -> Result<(), DmaError> {
        if !std::mem::take(&mut self.live) {
            return Ok(());
        }
        // A lease goes back to its pool by itself.
        if let Backing::Own { memory, runs, stuck, .. } = &mut self.backing {
            self.space.unmap(memory, runs)?;
            if !*stuck {
                // SAFETY: `live` was true, so this is the first time, and nothing uses the
                // memory after it.
                unsafe { ManuallyDrop::drop(memory) };
            }
            self.space.note_free();
        }
        Ok(())
    }

    /// Where the processor sees it.
    #[cfg(test)]
    pub(super) fn address(&self) -> usize {
        self.slice(0, 1).expect("a buffer has a byte").ptr_guard().as_ptr().addr()
    }

    /// Copies bytes out of the buffer.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the buffer.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.slice(offset, into.len())?.copy_to(into);
        Ok(())
    }

    /// Copies bytes into the buffer.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the buffer.
    pub fn write(&mut self, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.slice(offset, from.len())?.copy_from(from);
        Ok(())
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), DmaError> {
        if offset.checked_add(len).is_some_and(|end| end <= self.len()) {
            Ok(())
        } else {
            Err(DmaError::OutOfBounds { offset, len, size: self.len() })
        }
    }

    /// The memory of a range, for volatile access.
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, DmaError> {
        self.check(offset, len)?;
        match &self.backing {
            Backing::Leased(lease) => lease.slice(offset, len),
            Backing::Own { memory, skip, .. } => {
                let size = self.len();
                let slice = memory.as_volatile_slice().subslice(skip + offset, len);
                slice.map_err(|_| DmaError::OutOfBounds { offset, len, size })
            }
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Err(error) = self.tear_down() {
            // There may be thousands of segments: the first one tells the buffers apart.
            log::error!(
                "{} bytes in {} segments, from IOVA {:#x} on, stay allocated, a device may still \
                 reach them: {error}",
                self.len(),
                self.segments.len(),
                self.segments.first().map_or(0, |segment| segment.iova.0)
            );
        }
    }
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
    let page = frames::FRAME as u64;
    let runs = frames::runs(frames).into_iter();
    runs.map(|run| Segment { iova: Iova(frames[run.start] * page), len: run.len() * frames::FRAME })
        .collect()
}
