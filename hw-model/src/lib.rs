//! Models of PCI DMA devices, served over vfio-user or embedded in a process.

pub mod function;
pub mod link;
pub mod memory;
pub mod vfio_user;
