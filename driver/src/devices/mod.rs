//! Drivers for particular devices, and the table that tells which device is which.

mod byte_engine;
mod copy_engine;
pub mod edu;
pub mod ioat;
pub mod litepcie;
pub mod nvme;
mod pci_driver;
pub mod pci_testdev;
#[cfg(feature = "host")]
pub mod recipe;
mod registry;

pub use byte_engine::{ByteEngine, ByteLoop, LoopTables, StreamFailed};
pub use copy_engine::{CopyEngine, CopyError, CopyFailed, SlotCopy, SlotCopyFailed, SlotEngine};
pub use pci_driver::{Identity, Match, PciDriver, ProbeFailed};
pub use registry::{DRIVERS, Driver, KnownDevice, open_copy_engine, recognise};
