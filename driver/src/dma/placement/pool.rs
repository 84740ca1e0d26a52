//! Memory put aside early: when a device is opened, before memory is fragmented.

use std::sync::Arc;

use super::{Attempted, Cause, Context, Placed, page_of};
use crate::backend::{Backend, Translation};
use crate::dma::{
    AddressSpace, Buffer, Direction, DmaError, DmaLimits, IovaError, PageSize, Pool, Request,
    Strategy,
};

/// A block to put aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// Bytes, rounded up to whole pages.
    pub len: usize,
    /// The pages that it is made of.
    pub page_size: PageSize,
}

/// Reserves and maps every block of a pool, or none.
pub(in crate::dma) fn reserve(
    owner: &Arc<dyn Backend>,
    space: &Arc<AddressSpace>,
    limits: &DmaLimits,
    reservations: &[Reservation],
) -> Result<Arc<Pool>, DmaError> {
    // A block is cut into buffers, which are cut again where the device demands.
    let limits = DmaLimits { address_mask: limits.address_mask, ..DmaLimits::default() };
    let (mut blocks, mut reports) = (Vec::new(), Vec::new());
    for &Reservation { len, page_size } in reservations {
        let whole = len.checked_next_multiple_of(page_size.bytes().max(page_of(space)));
        let strategy = match space.translation() {
            Translation::Iommu => Strategy::IommuContiguous(page_size),
            Translation::Physical => Strategy::PhysicalContiguous(page_size),
        };
        let len = whole.ok_or(DmaError::TooLong { len })?;
        let request = Request::new(len, Direction::Bidirectional).order([strategy]);
        let buffer = super::place(owner, space, &limits, &request)?;
        reports.push(buffer.report().clone());
        let segment = buffer.segments()[0];
        blocks.extend(buffer.into_mapping().map(|mapping| (mapping, segment)));
    }
    Ok(Pool::new(space, blocks, reports))
}

/// Takes from the pool that the request names.
pub(super) fn take(context: &Context<'_>) -> Attempted {
    let request = context.request;
    let Some(pool) = &request.pool else {
        return Err(context.skipped(Cause::NoPool));
    };
    let error = match pool.take(request.len, context.alignment(), context.limits.address_mask) {
        Ok(slice) => {
            let mut buffer = Buffer::pooled(slice, &context.limits, request);
            buffer.clear().map_err(|error| context.failed_by(&error, 1))?;
            return Ok(Placed::new(buffer, 1));
        }
        Err(error) => error,
    };
    let usage = pool.usage();
    let (capacity, free) = (usage.capacity, usage.capacity - usage.used);
    let cause = match error {
        IovaError::MaskTooSmall { mask, lowest } => Cause::AddressMask { mask, lowest },
        IovaError::NoRun { longest, .. } => Cause::PoolSpent { capacity, free, longest },
        _ => Cause::PoolSpent { capacity, free, longest: 0 },
    };
    Err(context.failed(cause, 1))
}
