//! What can go wrong with I/OAT, and what a transfer comes to then.

use std::fmt;
use std::time::Duration;

use super::Loss;
use crate::backend::IrqKind;
use crate::device::DeviceError;
use crate::devices::Identity;
use crate::dma::{Direction, DmaError, Iova, SgError, SgTable, SlotError};
use crate::irq::IrqError;
use crate::mmio::MmioError;
use crate::pci::PciError;
use crate::queue::{QueueError, QueueSetupError};

bitflags::bitflags! {
    /// Why a channel halted: the bits of CHANERR.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct ChannelErrors: u32 {
        /// The source address is not valid.
        const SOURCE_ADDRESS = 1 << 0;
        /// The destination address is not valid.
        const DESTINATION_ADDRESS = 1 << 1;
        /// The address of the next descriptor is not valid.
        const NEXT_ADDRESS = 1 << 2;
        /// A descriptor is not aligned to 64 bytes.
        const DESCRIPTOR_ALIGNMENT = 1 << 3;
        /// CHAINADDR was written with a bad value.
        const CHAIN_ADDRESS = 1 << 4;
        /// CHANCMD was written with a bad value.
        const COMMAND = 1 << 5;
        /// Data was corrupt in the chipset.
        const CHIPSET_INTEGRITY = 1 << 6;
        /// Data was corrupt in the engine.
        const DMA_INTEGRITY = 1 << 7;
        /// Reading failed: data or a descriptor; also what the IOMMU refuses.
        const READ_DATA = 1 << 8;
        /// Writing failed; also what the IOMMU refuses.
        const WRITE_DATA = 1 << 9;
        /// A descriptor's control field is not valid.
        const DESCRIPTOR_CONTROL = 1 << 10;
        /// A descriptor's length is not valid.
        const DESCRIPTOR_LENGTH = 1 << 11;
        /// The completion word could not be written.
        const COMPLETION_ADDRESS = 1 << 12;
        /// The interrupt's address or data is not valid.
        const INTERRUPT_CONFIGURATION = 1 << 13;
        /// A soft error.
        const SOFT = 1 << 14;
        /// An error that no descriptor caused.
        const UNAFFILIATED = 1 << 15;
        /// A CRC, or the first parity of XOR, differs.
        const CRC_OR_XOR_P = 1 << 16;
        /// The second parity of XOR differs.
        const XOR_Q = 1 << 17;
        /// The descriptor count is not valid.
        const DESCRIPTOR_COUNT = 1 << 18;
        const _ = !0;
    }
}

impl fmt::Display for ChannelErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("no error bit");
        }
        for (i, (name, _)) in self.iter_names().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{}", name.to_lowercase().replace('_', " "))?;
        }
        write!(f, " (CHANERR {:#x})", self.bits())
    }
}

/// An operation on the device or a channel that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoatError {
    /// Vendor and device id are of another device.
    #[error("{location} is {identity}, I/OAT is 8086:2021 or 8086:0b00")]
    NotIoat {
        /// The device.
        location: String,
        /// What it says of itself.
        identity: Identity,
    },
    /// The version is not one that the driver knows.
    #[error("{location} has version {}.{}, versions 3.2 to 3.4 are supported", .version >> 4, .version & 0xf)]
    Version {
        /// The device.
        location: String,
        /// CBVER.
        version: u8,
    },
    /// A register of the device holds a value that makes no sense.
    #[error("{location}: {register} reads {value:#x}: {expected}")]
    Nonsense {
        /// The device.
        location: String,
        /// The register.
        register: &'static str,
        /// What it reads.
        value: u64,
        /// What it should be.
        expected: &'static str,
    },
    /// Every register reads all ones: the device is gone.
    #[error("{location} reads all ones: the device is gone, or its memory space is disabled")]
    Gone {
        /// The device.
        location: String,
    },
    /// There is no such channel, or it is open already.
    #[error("{location} has {channels} channels, channel {channel} is not there or in use")]
    NoChannel {
        /// The device.
        location: String,
        /// The channel asked for.
        channel: u8,
        /// How many there are.
        channels: u8,
    },
    /// MSI and INTx have one vector, which two channels cannot wait for separately.
    #[error("{kind} is one vector for all channels: open one channel only, or use MSI-X")]
    SharedVector {
        /// The kind of interrupt.
        kind: IrqKind,
    },
    /// The device did not do in time what it was told.
    #[error("{location} channel {channel}: {what} not done within {} ms", .waited.as_millis())]
    Timeout {
        /// The device.
        location: String,
        /// The channel.
        channel: u8,
        /// What was waited for.
        what: &'static str,
        /// The time allowed.
        waited: Duration,
    },
    /// The channel halted again as soon as it was set up.
    #[error("{location} channel {channel} halts when it is armed: {errors}")]
    NotArmed {
        /// The device.
        location: String,
        /// The channel.
        channel: u8,
        /// Why.
        errors: ChannelErrors,
    },
    /// The channel was given up after a failure. Once every channel is closed it can be opened
    /// again, for which the function is reset.
    #[error(
        "{location} channel {channel} was given up: {loss}\n  remedy: close every channel, and open \
         it anew"
    )]
    ChannelLost {
        /// The device.
        location: String,
        /// The channel.
        channel: u8,
        /// Why.
        loss: Box<Loss>,
    },
    /// The device cannot fill.
    #[error("{location} does not offer block fill")]
    NoFill {
        /// The device.
        location: String,
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
    /// The token is of another channel, or its transfer was taken already.
    #[error("no such transfer on this channel: its result was taken, or it is another channel's")]
    NoSuchTransfer,
    /// Slots are longer than what one descriptor carries.
    #[error("slots of {len} bytes, and a descriptor carries at most {max_segment}")]
    LongSlots {
        /// Bytes of a slot.
        len: u64,
        /// The most bytes of a descriptor.
        max_segment: u64,
    },
    /// A slot cannot be used so.
    #[error("{0}")]
    Slot(#[from] SlotError),
    /// The lists make no transfer.
    #[error("{0}")]
    Sg(#[from] SgError),
    /// The ring is full, or the device told nonsense about it.
    #[error("{0}")]
    Queue(#[from] QueueError),
    /// The ring cannot be made.
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

impl From<PciError> for IoatError {
    fn from(error: PciError) -> IoatError {
        DeviceError::from(error).into()
    }
}

/// Why a transfer that was begun did not end well.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The channel halted on one of its descriptors.
    #[error(
        "the channel halted: {errors}; descriptor {piece} of the transfer, slot {slot}: {len} bytes \
         from {source_address:#x} to {target}; {done} bytes before it arrived"
    )]
    Halted {
        /// What CHANERR said.
        errors: ChannelErrors,
        /// Which descriptor of the transfer, from 0 on.
        piece: u64,
        /// Its slot in the ring.
        slot: u32,
        /// Its source address, or the pattern of a fill.
        source_address: u64,
        /// Its destination.
        target: Iova,
        /// Its length in bytes.
        len: u64,
        /// Bytes of the transfer that arrived before it.
        done: u64,
    },
    /// It waited behind a transfer that failed, and was not to be tried; none of it ran
    /// after the failure.
    #[error("not done: a transfer before it failed, and the channel is to stop then")]
    Behind,
    /// The caller aborted the channel.
    #[error("aborted")]
    Aborted,
    /// The completion word made no sense, so how far the transfer came is not known.
    #[error("the completion word is wrong: {0}")]
    Completion(QueueError),
    /// The kernel wants the function back, which was stopped: part of the target may be
    /// written.
    #[error("not done: the function is to be removed")]
    Removed,
    /// PCI Express reported an error of the function, which was stopped: part of the target may
    /// be written.
    #[error("not done: PCI Express reported an error")]
    BusError,
    /// The channel cannot be used any more.
    #[error("the channel was lost: {0}")]
    Lost(String),
}

/// The two sides of a transfer.
#[derive(Debug)]
pub struct Tables {
    /// What is copied; a fill has none.
    pub source: Option<SgTable>,
    /// Where it goes.
    pub target: SgTable,
}

/// A transfer that did not begin; nothing of it was done.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct Refused {
    /// Why.
    #[source]
    pub error: IoatError,
    /// The lists and their buffers.
    pub tables: Tables,
}

/// What a transfer came to.
#[derive(Debug)]
#[must_use = "a transfer may have failed"]
pub struct Finished {
    /// Whether every byte arrived.
    pub result: Result<(), TransferError>,
    /// The lists and their buffers; `None` when the device could not be stopped. They then
    /// stay mapped and allocated until the process ends.
    pub tables: Option<Tables>,
}

impl Finished {
    /// The tables of a transfer that went well, or why it did not.
    ///
    /// # Errors
    ///
    /// The error of the transfer.
    #[inline]
    pub fn into_result(self) -> Result<Tables, TransferError> {
        self.result?;
        // Only a lost channel keeps tables, and its transfers have failed.
        self.tables.ok_or_else(|| TransferError::Lost("its buffers are kept".into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bits_have_the_numbers_and_names_of_the_datasheet() {
        assert_eq!(ChannelErrors::READ_DATA.bits(), 0x100);
        assert_eq!(ChannelErrors::WRITE_DATA.bits(), 0x200);
        assert_eq!(ChannelErrors::DESCRIPTOR_COUNT.bits(), 0x4_0000);
        let named: Vec<_> = ChannelErrors::from_bits_retain(0x7_ffff).iter_names().collect();
        assert_eq!(named.len(), 19);
        for (bit, (name, flag)) in named.iter().enumerate() {
            assert_eq!(flag.bits(), 1 << bit, "{name}");
        }
        let two = ChannelErrors::from_bits_retain(0x101);
        assert_eq!(two.to_string(), "source address, read data (CHANERR 0x101)");
        assert_eq!(ChannelErrors::empty().to_string(), "no error bit");
        let unknown = ChannelErrors::from_bits_retain(1 << 30).to_string();
        assert!(unknown.contains("0x40000000"), "{unknown}");
    }
}
