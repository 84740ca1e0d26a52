//! Userspace drivers for PCI DMA devices through Linux VFIO.
//!
//! The crate is built in layers, each using only those above it in this list:
//!
//! - [`pci`]: addresses, configuration space, capabilities, and sysfs;
//! - [`backend`]: how a device is reached: VFIO, or a model;
//! - [`mmio`]: register access, the only place with volatile loads and stores;
//! - [`irq`]: interrupt vectors over eventfds;
//! - [`dma`]: IOVAs, memory, buffers and where they are placed;
//! - [`device`]: an opened PCI device, which ties the former together;
//! - [`devices`]: drivers for particular devices.

pub mod backend;
pub mod devices;
pub mod pci;
