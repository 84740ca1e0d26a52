//! What can go wrong in a soak, besides what it looks for.

use std::io;

use vfio_dma::device::DeviceError;
use vfio_dma::devices::edu::EduError;
use vfio_dma::devices::ioat::IoatError;
use vfio_dma::devices::litepcie::LitePcieError;
use vfio_dma::devices::nvme::{NvmeError, Refused};
use vfio_dma::devices::{CopyError, ProbeFailed};
use vfio_dma::dma::{DmaError, SgError, SlotError, SlotPoolFailed};
use vfio_dma_model::embedded::AttachError;
use vfio_dma_model::ioat::IoatError as ModelError;

/// Why a soak failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SoakError {
    /// There is no soak for the device's driver.
    #[error("there is no soak for {driver}, which moves no data by DMA")]
    NoSoak {
        /// The driver.
        driver: &'static str,
    },
    /// More channels, or queues, are asked for than the device has.
    #[error("{asked} channels are asked for: the device has {channels}")]
    TooManyChannels {
        /// Channels that were asked for.
        asked: u32,
        /// Channels that there are.
        channels: u32,
    },
    /// The drive has no namespace that can be read.
    #[error("{location} has no namespace")]
    NoNamespace {
        /// The drive.
        location: String,
    },
    /// Nothing is in flight, and still there is no room.
    #[error("the ring has no room for an operation though nothing is in flight")]
    Stuck,
    /// A transfer failed, or its device cannot be stopped.
    #[error("{0}")]
    Lost(String),
    /// What must hold does not.
    #[error("this does not hold: {0}")]
    State(&'static str),
    /// Whoever opens the device failed.
    #[error("{0}")]
    Open(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A number does not fit its type.
    #[error("{0}")]
    Range(#[from] std::num::TryFromIntError),
    /// The device failed.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// A buffer cannot be allocated, mapped or accessed.
    #[error("{0}")]
    Dma(#[from] DmaError),
    /// Buffers do not make a scatter/gather table.
    #[error("{0}")]
    Sg(#[from] SgError),
    /// A slot cannot be used so.
    #[error("{0}")]
    Slot(#[from] SlotError),
    /// A buffer does not become slots.
    #[error("{0}")]
    SlotPool(#[from] SlotPoolFailed),
    /// The driver of I/OAT failed.
    #[error("{0}")]
    Ioat(#[from] IoatError),
    /// The driver of NVMe failed.
    #[error("{0}")]
    Nvme(#[from] NvmeError),
    /// The driver of edu failed.
    #[error("{0}")]
    Edu(#[from] EduError),
    /// The driver of LitePCIe failed.
    #[error("{0}")]
    LitePcie(#[from] LitePcieError),
    /// A copy engine failed.
    #[error("{0}")]
    Copy(#[from] CopyError),
    /// The model cannot be made.
    #[error("{0}")]
    Model(#[from] ModelError),
    /// The model cannot be attached to.
    #[error("{0}")]
    Attach(#[from] AttachError),
    /// An operating-system call failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// The buffers that come with it are given back.
impl From<Refused> for SoakError {
    fn from(refused: Refused) -> SoakError {
        refused.error.into()
    }
}

/// The device that comes with it is closed.
impl<E: Into<SoakError>> From<ProbeFailed<E>> for SoakError {
    fn from(failed: ProbeFailed<E>) -> SoakError {
        failed.into_parts().0.into()
    }
}
