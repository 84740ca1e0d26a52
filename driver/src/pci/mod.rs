//! PCI addresses, configuration space, capabilities, and sysfs.

pub mod address;
pub mod capability;
pub mod class;
pub mod config;
mod error;
pub mod sysfs;

pub use address::{Address, AddressError};
pub use capability::Capabilities;
pub use class::ClassCode;
pub use config::{ConfigAccess, ConfigSpace};
pub use error::{Aftermath, Holder, HostDriver, PciError, Result};
pub use sysfs::Sysfs;
