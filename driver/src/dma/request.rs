//! What a caller asks for.

use std::sync::Arc;
use std::time::Duration;

use super::{Direction, Placement, Pool, Strategy};

/// The NUMA node that memory is to be on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Node {
    /// The device's, where the firmware says which that is and it has memory left; else any.
    #[default]
    Device,
    /// Whichever the thread's own memory policy has.
    Any,
    /// This one, and no other.
    Only(u32),
}

/// A buffer that a caller asks for.
#[derive(Debug, Clone)]
pub struct Request {
    /// Length in bytes.
    pub len: usize,
    /// Which way data will flow.
    pub direction: Direction,
    /// Alignment of the buffer's first byte, a power of two in bytes, besides the device's.
    pub alignment: u64,
    /// The highest address wished for; the device's own reach holds besides.
    pub address_mask: u64,
    /// What [`Strategy::Pool`] takes from.
    pub pool: Option<Arc<Pool>>,
    /// Which strategies are tried.
    pub placement: Placement,
    /// The strategies themselves, instead of [`Strategy::order`]'s.
    pub order: Option<Vec<Strategy>>,
    /// How often physically contiguous memory is tried for, each time holding what was
    /// not contiguous; less than `2 * tries * len` bytes are held. At least 1.
    pub tries: u32,
    /// The smallest block, in bytes, that [`Strategy::SmallerBlocks`] takes.
    pub least_block: usize,
    /// The longest IOVA range, in bytes, that [`Strategy::ScatterGather`] takes at a time;
    /// `None` for as long as they come with [`Placement::Auto`], and for one page with
    /// [`Placement::ScatterGather`]. Physical runs are not cut.
    pub longest_run: Option<usize>,
    /// How long [`Strategy::Deferred`] waits.
    pub patience: Duration,
    /// The NUMA node that the memory is to be on. What a pool has stays where it is.
    pub node: Node,
}

impl Request {
    /// `len` bytes by any strategy, anywhere that the device reaches, without waiting.
    #[must_use]
    pub fn new(len: usize, direction: Direction) -> Request {
        Request {
            len,
            direction,
            alignment: 1,
            address_mask: u64::MAX,
            pool: None,
            placement: Placement::Auto,
            order: None,
            tries: 4,
            least_block: 64 << 10,
            longest_run: None,
            patience: Duration::ZERO,
            node: Node::Device,
        }
    }

    /// With this alignment of the first byte, a power of two in bytes.
    #[must_use]
    pub fn alignment(self, alignment: u64) -> Request {
        Request { alignment, ..self }
    }

    /// With no address above this one.
    #[must_use]
    pub fn address_mask(self, address_mask: u64) -> Request {
        Request { address_mask, ..self }
    }

    /// Taken from this pool, if it has room.
    #[must_use]
    pub fn pool(self, pool: &Arc<Pool>) -> Request {
        Request { pool: Some(Arc::clone(pool)), ..self }
    }

    /// With this placement.
    #[must_use]
    pub fn placement(self, placement: Placement) -> Request {
        Request { placement, ..self }
    }

    /// On this NUMA node.
    #[must_use]
    pub fn node(self, node: Node) -> Request {
        Request { node, ..self }
    }

    /// With these strategies, in this order.
    #[must_use]
    pub fn order(self, order: impl Into<Vec<Strategy>>) -> Request {
        Request { order: Some(order.into()), ..self }
    }
}
