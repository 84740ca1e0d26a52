//! The card that `litepcie_card.py` generates with LitePCIe's gateware.

use crate::pci::Header;
use crate::tlp::TlpConfig;

/// What generates the Verilog; it runs where LitePCIe's packages are.
pub const GENERATOR: &str = include_str!("../../rtl/litepcie_card.py");

/// The packages, at the versions that the generator is written for, with all that it imports.
pub const PACKAGES: [&str; 5] =
    ["litepcie==2024.12", "litex==2024.12", "migen==0.10.0", "packaging==24.2", "colorama==0.4.6"];

/// The function: the ids that Xilinx's core has by default and that LitePCIe's Linux driver
/// looks for, 64 KiB of registers, 32 vectors.
#[must_use]
pub fn config() -> TlpConfig {
    TlpConfig {
        vectors: 32,
        ..TlpConfig::new(Header {
            vendor: 0x10ee,
            device: 0x7024,
            revision: 0,
            // Memory controller, other: what Xilinx's core has by default.
            class: 0x05_80_00,
            subsystem_vendor: 0x10ee,
            subsystem: 0x0007,
            interrupt_pin: 0,
        })
    }
}
