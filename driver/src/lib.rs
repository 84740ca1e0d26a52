//! Userspace drivers for PCI DMA devices through Linux VFIO.
//!
//! The crate is built in layers, each using only those above it in this list:
//!
//! - [`pci`]: addresses, sysfs, configuration space and its capabilities;
//! - [`backend`]: how a device is reached: VFIO, a vfio-user socket, or a model;
//! - [`mmio`]: register access, the only place with volatile loads and stores;
//! - [`irq`]: interrupt vectors over eventfds;
//! - [`dma`]: IOVAs, memory, buffers and where they are placed;
//! - [`ring`]: descriptor rings, generic over the descriptor's format;
//! - [`device`]: an opened PCI device, which ties the former together;
//! - [`session`]: several devices that share an address space;
//! - [`devices`]: drivers for particular devices.

pub mod backend;
mod deadline;
pub mod device;
pub mod devices;
pub mod dma;
pub mod irq;
pub mod mmio;
pub mod pci;
pub mod queue;
pub mod session;
#[cfg(test)]
mod testing;
