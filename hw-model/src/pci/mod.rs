//! The parts that every model of a PCI function needs: configuration space, MSI-X
//! registers, and interrupts.
//!
//! [`ConfigSpace`] is built from a [`Header`] and capabilities, each a table of registers
//! with its reset values and masks; [`Interrupts`] turns what the device raises into
//! eventfds, whichever kind of interrupt the driver chose.

pub mod capability;
mod config;
mod interrupts;
pub mod msix;

pub use config::{Builder, ConfigSpace, ConfigWrite, Field, Header, PowerState};
pub use interrupts::Interrupts;

/// Bits of the Command register (PCI Local Bus Specification 3.0, section 6.2.2).
pub mod command {
    /// The function answers accesses to its memory BARs.
    pub const MEMORY: u64 = 1 << 1;
    /// The function may issue requests: DMA and message-signalled interrupts.
    pub const BUS_MASTER: u64 = 1 << 2;
    /// The function may not assert INTx.
    pub const INTX_DISABLE: u64 = 1 << 10;
}
