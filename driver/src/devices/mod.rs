//! Drivers for particular devices, and the table that tells which device is which.

mod copy_engine;
pub mod edu;
pub mod ioat;
pub mod pci_testdev;
mod registry;

pub use copy_engine::{CopyEngine, CopyError, CopyFailed};
pub use registry::{
    DRIVERS, Driver, Identity, KnownDevice, Match, PciDriver, ProbeFailed, open_copy_engine,
    recognise,
};
