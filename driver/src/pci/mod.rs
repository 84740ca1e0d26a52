//! PCI addresses, registers of configuration space, capabilities, and sysfs.

mod address;
pub mod capability;
pub mod registers;
mod sysfs;

pub use address::{Address, ParseAddressError};
pub use capability::Capability;
pub use sysfs::{Binding, DeviceInfo, Sysfs, SysfsError, Unbinding};
