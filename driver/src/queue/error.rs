//! What is wrong with a queue, or with what its device says.

use crate::dma::{DmaError, Iova};

/// A queue that cannot be made, is full, or whose device told nonsense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The size is not one that the queue can have.
    #[error("a queue of {size} entries: {least} to {most} are possible")]
    Size {
        /// What was asked for.
        size: u32,
        /// The fewest entries.
        least: u32,
        /// The most entries.
        most: u32,
    },
    /// There is no room now.
    #[error("{needed} entries are needed, {free} of {capacity} are free")]
    Full {
        /// Entries asked for.
        needed: u32,
        /// Entries free now.
        free: u32,
        /// Entries that can be in flight at all.
        capacity: u32,
    },
    /// The device says that it completed an entry at an address where none is.
    #[error(
        "the device reports the entry at {address:#x} done, the ring's {size} are at {ring} and \
         every {stride} bytes after"
    )]
    OutsideRing {
        /// What the device reported.
        address: u64,
        /// The first entry.
        ring: Iova,
        /// Entries of the ring.
        size: u32,
        /// Bytes from one to the next.
        stride: usize,
    },
    /// The device says that it completed an entry that it was not given.
    #[error("the device reports slot {slot} done, in flight are {in_flight} from slot {first} on")]
    NotInFlight {
        /// What the device reported.
        slot: u64,
        /// The oldest slot in flight.
        first: u32,
        /// Entries in flight.
        in_flight: u32,
    },
    /// The device counts more entries done than it was given.
    #[error("the device reports {count} more entries done, in flight are {in_flight}")]
    Count {
        /// Entries that it reports done, beyond those known before.
        count: u64,
        /// Entries in flight.
        in_flight: u32,
    },
    /// The device says that it completed a command that it was not given.
    #[error(
        "the device reports the command with tag {tag:#06x} done, which is none of the {in_flight} in flight"
    )]
    NoCommand {
        /// What the device reported.
        tag: u16,
        /// Commands in flight.
        in_flight: usize,
    },
    /// A position that is not among those that wait to be done.
    #[error("position {at} is not among those filled and not done, {done} to {filled}")]
    Position {
        /// The position.
        at: u64,
        /// The oldest that is not done.
        done: u64,
        /// One past the newest that is filled.
        filled: u64,
    },
}

/// A queue's memory that cannot be had, or a size that cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueSetupError {
    /// The size is not one that the queue can have.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// Its memory cannot be had.
    #[error(transparent)]
    Dma(#[from] DmaError),
}
