//! Drivers for particular devices, and the table that tells which device is which.

pub mod edu;
pub mod ids;
pub mod ioat;
pub mod pci_testdev;

pub use ids::{Driver, KnownDevice, recognise};
