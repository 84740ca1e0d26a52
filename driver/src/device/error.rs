//! Why an operation on an opened device failed.

use std::time::Duration;

use crate::backend::{BackendError, backend_error};
use crate::dma::DmaError;
use crate::irq::IrqError;
use crate::mmio::MmioError;
use crate::pci::sysfs::join;
use crate::pci::{Address, PciError, Remedy};

/// Opening a device, or talking to its generic parts, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Configuration space could not be read, or did not take a write.
    #[error(transparent)]
    Config(PciError),
    /// A BAR could not be opened.
    #[error(transparent)]
    Mmio(#[from] MmioError),
    /// Interrupts could not be set up.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// Memory or device addresses could not be had.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// The device is to be opened in an address space that is not its own.
    #[error("{location} does not translate through the address space it is to be opened in")]
    ForeignSpace {
        /// The device.
        location: String,
    },
    /// The device did not finish what it had begun after bus mastering was switched off.
    #[error("{location} still has transactions pending {} ms after bus mastering was switched off", .waited.as_millis())]
    StillBusy {
        /// The device.
        location: String,
        /// How long was waited.
        waited: Duration,
    },
    /// A reset of the bus would hit devices that this process has open and the caller did not
    /// name.
    #[error(
        "a reset of the bus of {location} hits {} too, which this process has open",
        join(.functions)
    )]
    ResetHits {
        /// The device whose bus is to be reset.
        location: String,
        /// The others.
        functions: Vec<Address>,
    },
    /// The function answers no memory accesses, so that a BAR that is mapped now would end
    /// the process at its first access.
    #[error("{location} answers no memory accesses: {reason}")]
    NotDecoding {
        /// The device.
        location: String,
        /// What keeps it from answering.
        reason: DecodeOff,
    },
    /// A configuration write would stop the function from answering while a BAR is mapped:
    /// the next access would end the process.
    #[error(
        "{location}: a write of {len} bytes at {offset:#x} of configuration space has {reason}, \
         while BARs are mapped: drop them first"
    )]
    BarsMapped {
        /// The device.
        location: String,
        /// Offset of the write in configuration space.
        offset: u16,
        /// Length of the write in bytes.
        len: usize,
        /// What the write would do.
        reason: DecodeOff,
    },
}

impl From<PciError> for DeviceError {
    fn from(error: PciError) -> DeviceError {
        backend_error(error).map_or_else(DeviceError::Config, DeviceError::Backend)
    }
}

impl DeviceError {
    /// What the reader can do about it, where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<&Remedy> {
        match self {
            DeviceError::Backend(error)
            | DeviceError::Mmio(MmioError::Backend(error))
            | DeviceError::Dma(DmaError::Backend(error)) => error.remedy(),
            DeviceError::Irq(error) => error.remedy(),
            DeviceError::Config(error) => error.remedy(),
            _ => None,
        }
    }
}

/// Why a function answers no memory accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeOff {
    /// The command register's memory space bit is clear (PCI Local Bus 3.0, 6.2.2).
    #[error("the memory space bit of the command register clear")]
    MemorySpace,
    /// The function is in a power state other than D0 (PCI Power Management 1.2, 5.4).
    #[error("the function in power state D{state}, not D0")]
    PowerState {
        /// The power state: 1 to 3.
        state: u8,
    },
}
