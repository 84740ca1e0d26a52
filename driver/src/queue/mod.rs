//! The parts that every queue is built from.

mod in_flight;

pub use in_flight::{InFlight, Slot};
