//! Drivers for particular devices, and the table that tells which device is which.

pub mod ids;

pub use ids::{Driver, KnownDevice, recognise};
