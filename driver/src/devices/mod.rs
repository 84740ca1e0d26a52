//! Drivers for particular devices, and the table that tells which device is which.

mod copy_engine;
pub mod edu;
pub mod ids;
pub mod ioat;
pub mod pci_testdev;

pub use copy_engine::{CopyEngine, CopyError, CopyFailed, open_copy_engine};
pub use ids::{Driver, KnownDevice, recognise};
