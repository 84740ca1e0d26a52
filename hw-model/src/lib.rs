//! Models of PCI DMA devices, served over vfio-user or embedded in a process.

mod bus_master;
pub mod embedded;
mod event;
pub mod fault;
pub mod function;
pub mod ioat;
pub mod link;
pub mod memory;
pub mod pci;
pub mod regs;
pub mod rtl;
mod sync;
pub mod tlp;
pub mod vfio_user;
mod worker;
