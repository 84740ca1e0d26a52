#![doc = include_str!("../README.md")]
//!
//! ## Layers
//!
//! The crate is built in layers, each using only those above it in this list:
//!
//! - [`registers`]: registers and their fields by name;
//! - [`pci`]: addresses, configuration space and its capabilities, what sysfs says of one
//!   function; [`Remedy`]: what mends an error;
//! - `host` (feature `host`): what is on the bus, and which driver has what;
//! - [`backend`]: how a device is reached: VFIO, a vfio-user socket, or a model;
//! - [`events`]: errors of a function's link, and that the kernel wants it back;
//! - [`mmio`]: register access, the only place with volatile loads and stores;
//! - [`irq`]: interrupt vectors over eventfds;
//! - [`dma`]: IOVAs, memory, buffers and where they are placed;
//! - [`device`]: an opened PCI device, which ties the former together and has one owner;
//! - [`queue`]: the parts that every queue is built from;
//! - [`session`]: several devices that share an address space;
//! - [`devices`]: drivers for particular devices.
//!
//! What nearly every program names is at the root too: a [`Session`] opens a [`Device`] at an
//! [`Address`] with a [`PciDriver`], a [`Request`] becomes a [`Buffer`], and an [`SgTable`]
//! is what a transfer takes. The modules hold the rest.

pub mod backend;
mod deadline;
pub mod device;
pub mod devices;
pub mod dma;
pub mod events;
#[cfg(feature = "host")]
pub mod host;
pub mod irq;
pub mod mmio;
pub mod pci;
pub mod queue;
pub mod registers;
pub mod session;
mod sync;
#[cfg(test)]
mod testing;

pub use device::Device;
pub use devices::PciDriver;
pub use dma::{Buffer, Direction, DmaError, DmaLimits, Placement, Request, SgTable};
pub use pci::{Address, Remedy};
pub use session::Session;
