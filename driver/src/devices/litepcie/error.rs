//! What goes wrong with a LitePCIe card.

use std::time::Duration;

use super::csr::CsrError;
use crate::device::DeviceError;
use crate::dma::{Direction, SgError, SgTable};
use crate::irq::IrqError;
use crate::mmio::MmioError;
use crate::queue::QueueError;

/// An operation on a card that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LitePcieError {
    /// The scratch register does not keep what is written to it.
    #[error(
        "{location} is no LitePCIe card with this map of registers: {wrote:#010x} was written to \
         ctrl_scratch at {offset:#x}, and {read:#010x} was read\n  remedy: give the csr.csv that \
         was generated with the card"
    )]
    NotLitePcie {
        /// The device.
        location: String,
        /// Offset of the register in BAR0.
        offset: u64,
        /// What was written.
        wrote: u32,
        /// What it reads.
        read: u32,
    },
    /// Every register reads all ones.
    #[error("{location} reads all ones: the card is gone, or its memory space is disabled")]
    Gone {
        /// The device.
        location: String,
    },
    /// There is no such channel.
    #[error("channel {channel}: the card has {channels}")]
    NoChannel {
        /// What was asked for.
        channel: u8,
        /// How many there are.
        channels: u8,
    },
    /// The card has one stream of each direction of a channel, which is in use.
    #[error("{location}: channel {channel} runs in loop mode: stop that first")]
    Looping {
        /// The device.
        location: String,
        /// The channel.
        channel: u8,
    },
    /// A transfer did not end in time.
    #[error(
        "{location}, channel {channel}: not done within {} ms: {written} of {wanted} descriptors \
         were written to memory, {read} were read",
        .waited.as_millis()
    )]
    Timeout {
        /// The device.
        location: String,
        /// The channel.
        channel: u8,
        /// The time allowed.
        waited: Duration,
        /// Descriptors that the writer has finished.
        written: u64,
        /// Descriptors that were to be finished.
        wanted: u64,
        /// Descriptors that the reader has asked memory for.
        read: u64,
    },
    /// A transfer was given up.
    #[error(
        "{location}, channel {channel}: interrupted: {written} of {wanted} descriptors were \
         written to memory, {read} were read"
    )]
    Stopped {
        /// The device.
        location: String,
        /// The channel.
        channel: u8,
        /// Descriptors that the writer has finished.
        written: u64,
        /// Descriptors that were to be finished.
        wanted: u64,
        /// Descriptors that the reader has asked memory for.
        read: u64,
    },
    /// A transfer failed before, and the card could not be reset.
    #[error(
        "{location} was stopped in the middle of a transfer and cannot be reset; what it does \
         next is not known\n  remedy: reset the card's bus, or load its bitstream again"
    )]
    NotReset {
        /// The device.
        location: String,
    },
    /// The register is the driver's own.
    #[error("the register {name} is the driver's: it is not written from outside")]
    Reserved {
        /// Its name.
        name: String,
    },
    /// A loop takes at most as many descriptors as the table has.
    #[error("{needed} descriptors are needed, the card's table has {depth}")]
    TableDepth {
        /// How many.
        needed: u64,
        /// The table's entries.
        depth: u32,
    },
    /// A table is mapped in another address space than the card's.
    #[error("a buffer is mapped in another address space than that of {location}")]
    ForeignBuffer {
        /// The device.
        location: String,
    },
    /// A buffer was not mapped for this direction.
    #[error("a buffer mapped for data {have} is used for data {need}")]
    WrongDirection {
        /// What the buffer allows.
        have: Direction,
        /// What the transfer needs.
        need: Direction,
    },
    /// The map of registers is incomplete.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The card reports more than it was given.
    #[error("{0}")]
    Queue(#[from] QueueError),
    /// A register access failed.
    #[error("{0}")]
    Mmio(#[from] MmioError),
    /// An interrupt operation failed.
    #[error("{0}")]
    Irq(#[from] IrqError),
    /// A generic operation of the device failed.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// The lists make no transfer.
    #[error("{0}")]
    Sg(#[from] SgError),
}

/// A transfer that failed, and its tables when the card is known not to use them.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: LitePcieError,
    /// The tables, source first; `None` when the card could not be stopped. They then stay
    /// mapped and allocated until it is, or the process ends.
    pub tables: Option<(SgTable, SgTable)>,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Failed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}
