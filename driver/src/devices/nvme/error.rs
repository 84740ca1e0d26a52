//! What can go wrong with an NVMe controller, and what a transfer comes to then.

use std::time::Duration;

use super::signature::Found;
use super::{DataMethod, Status};
use crate::backend::IrqKind;
use crate::device::DeviceError;
use crate::devices::Identity;
use crate::dma::{Direction, DmaError, LimitExceeded, SgError, SgTable};
use crate::irq::IrqError;
use crate::mmio::MmioError;
use crate::pci::PciError;
use crate::queue::{QueueError, QueueSetupError};

/// An operation on a controller or a queue that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeError {
    /// The class code is another than that of NVMe.
    #[error("{location} is {identity}, an NVMe controller has class 010802")]
    NotNvme {
        /// The device.
        location: String,
        /// What it says of itself.
        identity: Identity,
    },
    /// The device says something that makes no sense.
    #[error("{location}: {what} is {value:#x}: expected {expected}")]
    Nonsense {
        /// The device.
        location: String,
        /// What it is that makes no sense.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What it should be.
        expected: &'static str,
    },
    /// BAR0 is smaller than the registers need.
    #[error(
        "{location}: BAR0 has {size:#x} bytes, the doorbells of {queues} queues need {needed:#x}"
    )]
    SmallBar {
        /// The device.
        location: String,
        /// Size of its BAR0 in bytes.
        size: u64,
        /// I/O queues.
        queues: u16,
        /// Bytes needed.
        needed: u64,
    },
    /// Every register reads all ones: the device is gone.
    #[error("{location} reads all ones: the device is gone, or its memory space is disabled")]
    Gone {
        /// The device.
        location: String,
    },
    /// The controller reports a fatal error: CSTS.CFS.
    #[error("{location} reports a fatal status (CSTS {csts:#x})")]
    Fatal {
        /// The device.
        location: String,
        /// What CSTS reads.
        csts: u32,
    },
    /// The controller did not do in time what it was told.
    #[error("{location}: {what} not done within {} ms", .waited.as_millis())]
    Timeout {
        /// The device.
        location: String,
        /// What was waited for.
        what: &'static str,
        /// The time allowed.
        waited: Duration,
    },
    /// A command of the driver's own failed.
    #[error("{location}: {what}: {status}")]
    Command {
        /// The device.
        location: String,
        /// The command.
        what: &'static str,
        /// What came of it.
        status: Status,
    },
    /// The controller was given up after a failure.
    #[error("{location} was given up: {why}")]
    Lost {
        /// The device.
        location: String,
        /// The failure.
        why: String,
    },
    /// All I/O queues are in use.
    #[error("{location}: all of its {queues} I/O queues are in use; Config::queues asks for more")]
    NoQueue {
        /// The device.
        location: String,
        /// How many there are.
        queues: u16,
    },
    /// A queue cannot be waited for by this kind of interrupt.
    #[error(
        "{location}: queue {queue} has no {kind} vector: the function has {vectors} vectors of {}; \
         poll it",
        .enabled.map_or("no kind".to_string(), |kind| kind.to_string())
    )]
    NoVector {
        /// The device.
        location: String,
        /// The queue.
        queue: u16,
        /// The kind asked for.
        kind: IrqKind,
        /// The kind that is enabled.
        enabled: Option<IrqKind>,
        /// How many are enabled.
        vectors: usize,
    },
    /// A namespace has a format that is not driven.
    #[error(
        "{location}: namespace {namespace} has blocks of {block_size} bytes, {metadata} bytes of \
         metadata each and protection of type {protection}: 512 to 4096 bytes without metadata \
         and without protection are driven"
    )]
    Format {
        /// The device.
        location: String,
        /// The namespace.
        namespace: u32,
        /// Bytes of a block, 0 when it is no number that a block can have.
        block_size: u32,
        /// Bytes of metadata.
        metadata: u16,
        /// Type of the protection information.
        protection: u8,
    },
    /// There is no such namespace on this controller.
    #[error("{location} has no active namespace {namespace}, or it is another controller's")]
    NoNamespace {
        /// The device.
        location: String,
        /// The namespace.
        namespace: u32,
    },
    /// The controller does not offer an optional command.
    #[error("{location} does not offer {what}")]
    NotOffered {
        /// The device.
        location: String,
        /// What was asked for.
        what: &'static str,
    },
    /// Blocks are not inside their namespace.
    #[error(
        "{blocks} blocks from {lba} on are not inside of namespace {namespace}'s {size} blocks"
    )]
    OutOfRange {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u64,
        /// The namespace.
        namespace: u32,
        /// Its size in blocks.
        size: u64,
    },
    /// Blocks are to be copied to where some of them lie.
    #[error(
        "{blocks} blocks from {lba} on overlap with the blocks {first} to {end} that they are \
         copied to"
    )]
    Overlap {
        /// First block of the source.
        lba: u64,
        /// Number of its blocks.
        blocks: u64,
        /// The first block that is written.
        first: u64,
        /// One past the last block that is written.
        end: u64,
    },
    /// A list has not a whole number of blocks.
    #[error("{len} bytes are not a whole number of blocks of {block_size} bytes")]
    PartOfBlock {
        /// Bytes of the list.
        len: u64,
        /// Bytes of a block.
        block_size: u32,
    },
    /// A list cannot be described in the way that was asked for.
    #[error("the list cannot be given to the controller by {method:?}: {why}")]
    Undescribable {
        /// The way.
        method: DataMethod,
        /// Why it does not work.
        why: LimitExceeded,
    },
    /// Blocks to be written are outside of what may be written.
    #[error(
        "{blocks} blocks from {lba} on of namespace {namespace} are outside of the blocks \
         {first} to {end} that may be written"
    )]
    NotWritable {
        /// First block.
        lba: u64,
        /// Number of blocks.
        blocks: u64,
        /// The namespace.
        namespace: u32,
        /// The first block that may be written.
        first: u64,
        /// One past the last block that may be written.
        end: u64,
    },
    /// Another drive was named than the one that is to be written.
    #[error("{location} has serial number {serial:?}, {named:?} was named: nothing is written")]
    OtherSerial {
        /// The device.
        location: String,
        /// Its serial number.
        serial: String,
        /// What was named.
        named: String,
    },
    /// Another size was named than that of the namespace that is to be written.
    #[error(
        "{location}: namespace {namespace} has {bytes} bytes, {named} were named: nothing is written"
    )]
    OtherSize {
        /// The device.
        location: String,
        /// The namespace.
        namespace: u32,
        /// Its size in bytes.
        bytes: u64,
        /// What was named.
        named: u64,
    },
    /// A namespace that is to be written has data on it.
    #[error("{location}: namespace {namespace} has {} on it: nothing is written", Found::list(.found))]
    HasData {
        /// The device.
        location: String,
        /// The namespace.
        namespace: u32,
        /// The signatures that were found.
        found: Vec<Found>,
    },
    /// A namespace is write protected.
    #[error("{location}: namespace {namespace} is write protected")]
    WriteProtected {
        /// The device.
        location: String,
        /// The namespace.
        namespace: u32,
    },
    /// A buffer is mapped in another address space than the device's.
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
    /// The token is of another queue, or its transfer was taken already.
    #[error("no such transfer on this queue: its result was taken, or it is another queue's")]
    NoSuchTransfer,
    /// The list makes no transfer.
    #[error("{0}")]
    Sg(#[from] SgError),
    /// A transfer that a method of the driver waited for failed.
    #[error("{0}")]
    Transfer(#[from] TransferError),
    /// The queue is full, or the device told nonsense about it.
    #[error("{0}")]
    Queue(#[from] QueueError),
    /// A queue cannot be made.
    #[error("{0}")]
    QueueSetup(#[from] QueueSetupError),
    /// A register access failed.
    #[error("{0}")]
    Mmio(#[from] MmioError),
    /// An interrupt operation failed.
    #[error("{0}")]
    Irq(#[from] IrqError),
    /// A generic operation of the device failed.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// A buffer operation failed.
    #[error("{0}")]
    Dma(#[from] DmaError),
}

impl From<PciError> for NvmeError {
    fn from(error: PciError) -> NvmeError {
        DeviceError::from(error).into()
    }
}

/// Why a transfer that was begun did not end well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The controller reports an error.
    #[error("{command} of {blocks} blocks from {lba} on: {status}")]
    Status {
        /// The command.
        command: &'static str,
        /// First block of the command, which may be a part of the transfer.
        lba: u64,
        /// Number of blocks.
        blocks: u64,
        /// What the controller says.
        status: Status,
    },
    /// A command did not end in time. The controller gave it up when it was told to, or was
    /// reset.
    #[error("{command} of {blocks} blocks from {lba} on: not done within {} ms", .waited.as_millis())]
    TimedOut {
        /// The command.
        command: &'static str,
        /// First block of the command.
        lba: u64,
        /// Number of blocks.
        blocks: u64,
        /// The time allowed.
        waited: Duration,
    },
    /// The caller aborted it.
    #[error("aborted")]
    Aborted,
    /// The controller was reset while the transfer was in flight.
    #[error("the controller was reset: {0}")]
    Reset(String),
    /// The kernel wants the function back, which was stopped: some of it may be done.
    #[error("not done: the function is to be removed")]
    Removed,
    /// PCI Express reported an error of the function, which was stopped: some of it may be done.
    #[error("not done: PCI Express reported an error")]
    BusError,
    /// The controller cannot be used any more.
    #[error("the controller was lost: {0}")]
    Lost(String),
    /// The bytes that came through a bounce buffer cannot be copied.
    #[error("copying from a bounce buffer: {0}")]
    Bounce(String),
}

/// A transfer that did not begin; nothing of it was done.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// Why.
    #[source]
    pub error: NvmeError,
    /// The list and its buffers; `None` for a command without data.
    pub table: Option<SgTable>,
}

/// What a transfer came to.
#[derive(Debug)]
#[must_use = "a transfer may have failed"]
pub struct Finished {
    /// Whether all of it was done.
    pub result: Result<(), TransferError>,
    /// The list and its buffers; `None` for a command without data, and when the device could
    /// not be stopped: they then stay mapped and allocated until the function is known quiet.
    pub table: Option<SgTable>,
    /// How the controller was told where the data is: [`DataMethod::Auto`] for none.
    pub method: DataMethod,
    /// Commands that it became.
    pub commands: u32,
}

impl Finished {
    /// The table of a transfer that went well, or why it did not.
    ///
    /// # Errors
    ///
    /// The error of the transfer.
    pub fn into_result(self) -> Result<Option<SgTable>, TransferError> {
        self.result.map(|()| self.table)
    }

    /// As [`Finished::into_result`], for a transfer with data.
    ///
    /// # Errors
    ///
    /// The error of the transfer.
    pub fn into_table(self) -> Result<SgTable, TransferError> {
        self.result?;
        // Only a lost controller keeps tables, and its transfers have failed.
        self.table.ok_or_else(|| TransferError::Lost("its buffers are kept".into()))
    }
}
