//! PCI addresses, configuration space and its capabilities, what sysfs says of a function, and
//! what mends an error.

mod access;
pub mod address;
pub mod capability;
pub mod class;
pub mod config;
mod error;
pub mod layout;
pub(crate) mod remedy;
pub mod sysfs;

pub use access::{ConfigAccess, ConfigWrite, OutOfBounds};
pub use address::{Address, AddressError};
pub use capability::Capabilities;
pub use class::ClassCode;
pub use config::ConfigSpace;
pub use error::{AccessError, PciError, Result};
pub use layout::{Layout, Structure, StructureKind};
pub use remedy::Remedy;
