//! Memory put aside early: when a device is opened, before memory is fragmented.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;

use super::{Cause, Constraints, Request, Site, Strategy, Verdict, place};
use crate::backend::{Backend, Translation};
use crate::dma::{
    AddressSpace, Buffer, Direction, DmaError, FrameError, Iova, IovaAllocator, IovaError, PageSize,
};

/// A block to put aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// Bytes, rounded up to whole pages.
    pub len: usize,
    /// The pages that it is made of.
    pub page_size: PageSize,
}

/// How full a pool is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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
    blocks: Vec<Buffer>,
    state: Mutex<State>,
    space: Arc<AddressSpace>,
}

impl Pool {
    /// Reserves and maps every block, and lets [`Strategy::Pool`] take from them for as
    /// long as the pool or a buffer in it lives.
    ///
    /// # Errors
    ///
    /// [`DmaError::NoPlacement`] for the first block that cannot be had; nothing is
    /// reserved then.
    pub fn reserve(
        space: &Arc<AddressSpace>,
        device: &Arc<dyn Backend>,
        reservations: &[Reservation],
        constraints: Constraints,
    ) -> Result<Arc<Pool>, DmaError> {
        let block = |reservation: &Reservation| {
            let Reservation { len, page_size } = *reservation;
            let whole = len.checked_next_multiple_of(page_size.bytes());
            let strategy = match space.translation() {
                Translation::Iommu => Strategy::IommuContiguous(page_size),
                Translation::Physical => Strategy::PhysicalContiguous(page_size),
            };
            let len = whole.ok_or(DmaError::TooLong { len })?;
            let request = Request::new(len, Direction::Bidirectional)
                .constraints(constraints)
                .order([strategy]);
            place(space, device, &request)
        };
        let blocks = reservations.iter().map(block).collect::<Result<Vec<_>, _>>()?;
        let granule = space.granule().max(4096);
        let windows = blocks.iter().flat_map(Buffer::segments).map(|segment| {
            IovaAllocator::new(
                granule,
                &[segment.iova.0..=segment.iova.0 + (segment.len as u64 - 1)],
            )
        });
        let capacity = blocks.iter().map(|block| block.len() as u64).sum();
        let usage = PoolUsage { capacity, ..PoolUsage::default() };
        let state = Mutex::new(State { free: windows.collect(), usage });
        let pool = Arc::new(Pool { blocks, state, space: Arc::clone(space) });
        space.add_pool(&pool);
        Ok(pool)
    }

    /// How full it is.
    #[must_use]
    pub fn usage(&self) -> PoolUsage {
        self.lock().usage
    }

    /// The blocks' own reports.
    pub fn reports(&self) -> impl Iterator<Item = &super::Report> {
        self.blocks.iter().map(Buffer::report)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete before anything that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A piece of the first block that has one.
    fn take(self: &Arc<Pool>, len: usize, constraints: &Constraints) -> Result<Lease, IovaError> {
        let mut state = self.lock();
        let mut refused = IovaError::BadRequest { len: len as u64, align: constraints.alignment };
        for (block, free) in state.free.iter_mut().enumerate() {
            match free.allocate(len as u64, constraints.alignment, constraints.address_mask) {
                Ok(iova) => {
                    // What the allocator rounded it up to.
                    let whole = (len as u64).next_multiple_of(free.granule());
                    let usage = &mut state.usage;
                    usage.used += whole;
                    usage.high_water = usage.high_water.max(usage.used);
                    usage.buffers += 1;
                    usage.taken += 1;
                    return Ok(Lease { pool: Arc::clone(self), block, iova, len: whole });
                }
                Err(error) => refused = worse(refused, error),
            }
        }
        state.usage.refused += 1;
        Err(refused)
    }

    fn give_back(&self, lease: &Lease) {
        let mut state = self.lock();
        match state.free[lease.block].free(lease.iova, lease.len) {
            Ok(()) => {
                state.usage.used -= lease.len;
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
pub(in crate::dma) struct Lease {
    pool: Arc<Pool>,
    block: usize,
    iova: Iova,
    len: u64,
}

impl Lease {
    /// The first device address.
    pub(in crate::dma) fn iova(&self) -> Iova {
        self.iova
    }

    /// Whether the block around it was migrated, see [`Buffer::has_moved`].
    pub(in crate::dma) fn has_moved(&self) -> Result<bool, FrameError> {
        self.pool.blocks[self.block].has_moved()
    }

    /// A part of it for volatile copies.
    pub(in crate::dma) fn slice(
        &self,
        offset: usize,
        len: usize,
    ) -> Result<VolatileSlice<'_>, DmaError> {
        let block = &self.pool.blocks[self.block];
        let start = self.iova.0 - block.segments()[0].iova.0;
        block.slice(start as usize + offset, len)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.give_back(self);
    }
}

/// Takes from the first pool that has room.
pub(super) fn take(site: &Site<'_>) -> Verdict {
    let request = site.request;
    let pools = site.space.pools();
    let mut refused = None;
    for pool in &pools {
        match pool.take(request.len, &request.constraints) {
            Ok(lease) => {
                let mut buffer = Buffer::leased(site, lease);
                buffer.clear().map_err(|error| site.failed(&error, 1))?;
                return Ok(Site::won(buffer, 1));
            }
            Err(error) => refused = Some(refused.map_or(error.clone(), |r| worse(r, error))),
        }
    }
    let usages = pools.iter().map(|pool| pool.usage());
    let (capacity, used) =
        usages.fold((0, 0), |(c, u), usage| (c + usage.capacity, u + usage.used));
    Err(match refused {
        None => site.skipped(Cause::NoPool),
        Some(IovaError::MaskTooSmall { mask, lowest }) => {
            site.declined(Cause::AddressMask { mask, lowest }, 1)
        }
        Some(error) => {
            let longest = if let IovaError::NoRun { longest, .. } = error { longest } else { 0 };
            site.declined(Cause::PoolSpent { capacity, free: capacity - used, longest }, 1)
        }
    })
}
