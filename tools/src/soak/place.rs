//! Placing a buffer as it is planned, or as it can be had.

use std::sync::Arc;

use vfio_dma::dma::{Buffer, Direction, Placement, Pool, Request};

use super::plan::{How, Placing};

impl Placing {
    /// Nothing that is placed.
    pub(super) fn none() -> Placing {
        Placing { len: 1, how: How::Auto, alignment: 1 }
    }

    /// With pages that begin at the buffer's first byte.
    pub(super) fn page_aligned(self) -> Placing {
        Placing { alignment: self.alignment.max(4096), ..self }
    }
}

/// Places a buffer: where what is planned cannot be had, as `Placement::Auto` has it.
pub(super) fn place<E>(
    placing: Placing,
    direction: Direction,
    pool: Option<&Arc<Pool>>,
    allocate: impl Fn(&Request) -> Result<Buffer, E>,
) -> Result<Buffer, E> {
    let Placing { len, how, alignment } = placing;
    let request = Request::new(len, direction).alignment(alignment);
    let planned = match (how, pool) {
        (How::Auto, _) | (How::Pool, None) => request,
        (How::Contiguous, _) => request.placement(Placement::Contiguous),
        (How::Pool, Some(pool)) => request.pool(pool),
        (How::Scattered(longest_run), _) => {
            Request { longest_run, ..request.placement(Placement::ScatterGather) }
        }
    };
    allocate(&planned).or_else(|_| allocate(&Request::new(len, direction)))
}
