//! PCI addresses, configuration space and its capabilities, and what sysfs says of a function.

pub mod address;
pub mod capability;
pub mod class;
pub mod config;
mod error;
pub mod sysfs;

pub use address::{Address, AddressError};
pub use capability::Capabilities;
pub use class::ClassCode;
pub use config::{ConfigAccess, ConfigSpace, ConfigWrite};
pub use error::{AccessError, PciError, Result};
