//! Memory put aside early: when a device is opened, before memory is fragmented.

use std::sync::{Arc, PoisonError};

use super::mapping::Mapping;
use super::memory::{Memory, frames};
use super::{AddressSpace, FrameError, Iova, IovaAllocator, IovaError, PageSize, Report, Segment};
use crate::backend::Backend;
use crate::sync::{Mutex, MutexGuard};

/// How full a pool is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct PoolUsage {
    /// Bytes that were reserved.
    pub capacity: u64,
    /// Bytes in use, rounded up to whole pages for each buffer.
    pub used: u64,
    /// The most bytes that were ever in use at a time.
    pub high_water: u64,
    /// Buffers in use.
    pub buffers: u64,
    /// Buffers placed so far.
    pub taken: u64,
    /// Requests that did not fit.
    pub refused: u64,
}

#[derive(Debug)]
struct State {
    /// What is free of each block.
    free: Vec<IovaAllocator>,
    usage: PoolUsage,
}

/// Contiguous blocks that are mapped for a device all the time, and handed out in pieces.
///
/// The device may read and write all of a pool, whatever the direction of a buffer in it.
/// Taking from it and giving back make no map call; a buffer's bytes are zeroed when it is
/// taken.
#[derive(Debug)]
pub struct Pool {
    /// Each block, and what the device sees of it.
    blocks: Vec<(Mapping, Segment)>,
    reports: Vec<Report>,
    state: Mutex<State>,
    space: Arc<AddressSpace>,
}

impl Pool {
    /// A pool of mapped blocks, each at one device address, with the reports of how they were
    /// placed.
    pub(super) fn new(
        space: &Arc<AddressSpace>,
        blocks: Vec<(Mapping, Segment)>,
        reports: Vec<Report>,
    ) -> Arc<Pool> {
        let granule = space.granule().max(PageSize::Base.bytes() as u64);
        let window = |segment: &Segment| {
            let last = segment.iova.0 + (segment.len as u64 - 1);
            IovaAllocator::new(granule, &[segment.iova.0..=last])
        };
        let free = blocks.iter().map(|(_, segment)| window(segment)).collect();
        let capacity = blocks.iter().map(|(_, segment)| segment.len as u64).sum();
        let usage = PoolUsage { capacity, ..PoolUsage::default() };
        let state = Mutex::new(State { free, usage });
        Arc::new(Pool { blocks, reports, state, space: Arc::clone(space) })
    }

    /// The address space that it is mapped in.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// How full it is.
    #[must_use]
    pub fn usage(&self) -> PoolUsage {
        self.lock().usage
    }

    /// The blocks' own reports.
    #[must_use]
    pub fn reports(&self) -> &[Report] {
        &self.reports
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete before anything that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A piece of the first block that has one.
    pub(super) fn take(
        self: &Arc<Pool>,
        len: usize,
        alignment: u64,
        mask: u64,
    ) -> Result<PoolSlice, IovaError> {
        let mut state = self.lock();
        let mut refused = IovaError::BadRequest { len: len as u64, align: alignment };
        for (block, free) in state.free.iter_mut().enumerate() {
            match free.allocate(len as u64, alignment, mask) {
                Ok(iova) => {
                    // What the allocator rounded it up to.
                    let whole = (len as u64).next_multiple_of(free.granule());
                    let usage = &mut state.usage;
                    usage.used += whole;
                    usage.high_water = usage.high_water.max(usage.used);
                    usage.buffers += 1;
                    usage.taken += 1;
                    return Ok(PoolSlice { pool: Arc::clone(self), block, iova, len: whole });
                }
                Err(error) => refused = worse(refused, error),
            }
        }
        state.usage.refused += 1;
        Err(refused)
    }

    fn give_back(&self, slice: &PoolSlice) {
        let mut state = self.lock();
        match state.free[slice.block].free(slice.iova, slice.len) {
            Ok(()) => {
                state.usage.used -= slice.len;
                state.usage.buffers -= 1;
            }
            Err(error) => log::error!("a piece of a pool is lost: {error}"),
        }
        drop(state);
        self.space.note_free();
    }
}

/// A block that is reached but full says more than one that is not reached.
fn worse(a: IovaError, b: IovaError) -> IovaError {
    let free = |error: &IovaError| match error {
        IovaError::NoRun { longest, .. } => longest + 1,
        _ => 0,
    };
    if free(&a) > free(&b) { a } else { b }
}

/// A piece of a pool, given back when dropped.
#[derive(Debug)]
pub(super) struct PoolSlice {
    pool: Arc<Pool>,
    block: usize,
    iova: Iova,
    len: u64,
}

impl PoolSlice {
    /// The first device address.
    pub(super) fn iova(&self) -> Iova {
        self.iova
    }

    pub(super) fn space(&self) -> &Arc<AddressSpace> {
        &self.pool.space
    }

    pub(super) fn owner(&self) -> &Arc<dyn Backend> {
        self.block().0.owner()
    }

    fn block(&self) -> &(Mapping, Segment) {
        &self.pool.blocks[self.block]
    }

    /// Whether the block around it was migrated, see
    /// [`Buffer::has_moved`](super::Buffer::has_moved).
    pub(super) fn has_moved(&self) -> Result<bool, FrameError> {
        let (mapping, segment) = self.block();
        if !mapping.runs().is_empty() {
            return Ok(false);
        }
        let frames = frames::frames(mapping.memory().base(), segment.len)?;
        let first = frames.first().map(|frame| frame * frames::frame_bytes() as u64);
        Ok(frames::runs(&frames).len() != 1 || first != Some(segment.iova.0))
    }

    /// The memory that it is in, and where it begins there.
    pub(super) fn memory(&self) -> (&Memory, usize) {
        let (mapping, segment) = self.block();
        (mapping.memory(), (self.iova.0 - segment.iova.0) as usize)
    }
}

impl Drop for PoolSlice {
    fn drop(&mut self) {
        self.pool.give_back(self);
    }
}
