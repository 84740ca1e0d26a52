//! What can go wrong in a benchmark.
//!
//! The errors of the libraries are sources, so that whoever shows one finds its remedy.

use std::fmt;
use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use vfio_dma::device::DeviceError;
use vfio_dma::devices::ProbeFailed;
use vfio_dma::devices::edu::{EduError, Failed};
use vfio_dma::devices::ioat::{IoatError, Refused, TransferError};
use vfio_dma::devices::litepcie::LitePcieError;
use vfio_dma::devices::nvme::NvmeError;
use vfio_dma::dma::{DmaError, Mismatch, SgError, SlotPoolError};
use vfio_dma::pci::PciError;
use vfio_dma_model::embedded::AttachError;
use vfio_dma_model::ioat::IoatError as ModelError;

use super::plan::Spec;
use super::units::bytes;

/// Why a benchmark failed, or a file of its results was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// There is no benchmark for the device's driver.
    #[error("there is no benchmark for {driver}")]
    NoBenchmark {
        /// The driver.
        driver: String,
    },
    /// More channels are asked for than the device has.
    #[error("{asked} channels are asked for: the device has {channels}")]
    TooManyChannels {
        /// Channels that were asked for.
        asked: u32,
        /// Channels that there are.
        channels: u32,
    },
    /// More variants are asked for than are measured at a time.
    #[error("{asked} variants are asked for, the most is {most}")]
    TooManyVariants {
        /// Variants that were asked for.
        asked: usize,
        /// The most that are measured.
        most: usize,
    },
    /// No transfer is longer than a segment that was asked for.
    #[error(
        "segments of {}: not smaller than any transfer, the longest of which is {}",
        bytes(*segment), bytes(*longest)
    )]
    LongSegment {
        /// Bytes of the segment.
        segment: u64,
        /// Bytes of the longest transfer.
        longest: u64,
    },
    /// Every transfer would have too many of the segments that were asked for.
    #[error("segments of {}: every transfer would have more than {most} segments", bytes(*segment))]
    TooManySegments {
        /// Bytes of a segment.
        segment: u64,
        /// The most segments of a transfer.
        most: u64,
    },
    /// The user ended it.
    #[error("interrupted")]
    Interrupted,
    /// The device ended no transfer within the timeout.
    #[error("no transfer ended for {seconds} s (timeout)")]
    Timeout {
        /// Seconds of the timeout.
        seconds: u64,
    },
    /// A byte arrived wrong from an engine that copies from memory to memory.
    #[error("{spec}: byte {offset} of the target is {found:#04x}, it should be {expected:#04x}")]
    WrongByte {
        /// The variant.
        spec: Spec,
        /// Where the byte is.
        offset: usize,
        /// The byte of the source.
        expected: u8,
        /// The byte of the target.
        found: u8,
    },
    /// What came back from a device's own memory is wrong.
    #[error(
        "{spec}: what came back from the device: {mismatch}\n  remedy: the device may drive fewer \
         address bits than {address_bits}, which no register of it tells (edu's property dma_mask): \
         `vfio-dma run --address-bits N` finds out"
    )]
    WrongPattern {
        /// The variant.
        spec: Spec,
        /// The first byte that is wrong.
        mismatch: Mismatch,
        /// Address bits that the device is taken to drive.
        address_bits: u32,
    },
    /// A round failed.
    #[error("in round {round} of {rounds}: {source}")]
    Round {
        /// Its number, from 1.
        round: u32,
        /// Rounds in all.
        rounds: u32,
        /// Why.
        source: Box<BenchError>,
    },
    /// Comparing the bytes after the rounds failed.
    #[error("after the last round: {source}")]
    AfterRounds {
        /// Why.
        source: Box<BenchError>,
    },
    /// There is no memory to copy.
    #[error("{len} bytes of memory to copy cannot be had: {source}")]
    NoMemory {
        /// Bytes that were asked for.
        len: usize,
        /// The operating system's reason.
        source: Errno,
    },
    /// No order of the segments was found in which no two are neighbours.
    #[error("in {orders} orders some of {segments} segments are neighbours")]
    Neighbours {
        /// Orders that were tried.
        orders: u32,
        /// Segments of the transfer.
        segments: usize,
    },
    /// The benchmark or a driver lost track of a variant's state.
    #[error("{0}")]
    State(&'static str),
    /// A number does not fit its type.
    #[error("{0}")]
    Range(#[from] std::num::TryFromIntError),

    /// The device's configuration space cannot be read.
    #[error("{0}")]
    Pci(#[from] PciError),
    /// The device failed.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// A buffer cannot be allocated, mapped or accessed.
    #[error("{0}")]
    Dma(#[from] DmaError),
    /// A buffer cannot be cut into slots.
    #[error("{0}")]
    Slots(#[from] SlotPoolError),
    /// Buffers do not make a scatter/gather table.
    #[error("{0}")]
    Sg(#[from] SgError),
    /// The driver of I/OAT failed.
    #[error("{0}")]
    Ioat(#[from] IoatError),
    /// A transfer of I/OAT failed.
    #[error("{0}")]
    Transfer(#[from] TransferError),
    /// The driver of edu failed.
    #[error("{0}")]
    Edu(#[from] EduError),
    /// The driver of NVMe failed.
    #[error("{0}")]
    Nvme(#[from] NvmeError),
    /// The driver of LitePCIe refused or failed.
    #[error("{0}")]
    LitePcie(#[from] LitePcieError),
    /// The model that counts packets cannot be made.
    #[error("{0}")]
    Model(#[from] ModelError),
    /// The model that counts packets cannot be attached to.
    #[error("{0}")]
    Attach(#[from] AttachError),

    /// The path of a file of results is a directory.
    #[error("{} is a directory", path.display())]
    IsDirectory {
        /// The path.
        path: PathBuf,
    },
    /// Two files of results have one path.
    #[error("{}: it is given for two files", path.display())]
    SameFile {
        /// The path.
        path: PathBuf,
    },
    /// A file of results cannot be made.
    #[error("{}: {source}", path.display())]
    CannotWrite {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file of results was not written.
    #[error("{} was not written: {source}", path.display())]
    NotWritten {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// An operating-system call failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Results do not become JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Results do not become CSV.
    #[error("{0}")]
    Csv(#[from] ::csv::Error),
    /// A table is not UTF-8.
    #[error("{0}")]
    Utf8(#[from] std::string::FromUtf8Error),
    /// The table of CSV has no such column.
    #[error("the table has no column {column}")]
    NoColumn {
        /// The column.
        column: String,
    },
    /// The table of CSV has no such figure.
    #[error("the table has no figure {figure}")]
    NoFigure {
        /// The figure.
        figure: String,
    },
    /// There is nothing to plot.
    #[error("there is no transfer that could be drawn")]
    NothingToPlot,
    /// A plot cannot be drawn.
    #[error("drawing {what}: {reason}")]
    Drawing {
        /// The part of it.
        what: &'static str,
        /// What the plotter says.
        reason: String,
    },
}

impl BenchError {
    /// An error of the plotter, which is of a type that depends on its backend.
    pub(super) fn drawing(what: &'static str, reason: impl fmt::Display) -> BenchError {
        BenchError::Drawing { what, reason: reason.to_string() }
    }
}

/// The buffers that come with it are given back.
impl From<Refused> for BenchError {
    fn from(refused: Refused) -> BenchError {
        refused.error.into()
    }
}

/// The buffers that come with it are given back.
impl<T> From<Failed<T>> for BenchError {
    fn from(failed: Failed<T>) -> BenchError {
        failed.error.into()
    }
}

/// The device that comes with it is closed.
impl<E: Into<BenchError>> From<ProbeFailed<E>> for BenchError {
    fn from(failed: ProbeFailed<E>) -> BenchError {
        failed.into_parts().0.into()
    }
}
