//! What the capabilities say.

use std::ops::Range;

use crate::pci::error::Result;
use crate::pci::{ConfigAccess, ConfigSpace};

/// Ids of conventional capabilities (PCI Code and ID Assignment, chapter 2).
pub mod id {
    /// Power management.
    pub const POWER_MANAGEMENT: u8 = 0x01;
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// Vendor-specific.
    pub const VENDOR_SPECIFIC: u8 = 0x09;
    /// PCI Express.
    pub const PCI_EXPRESS: u8 = 0x10;
    /// Message-signalled interrupts, extended.
    pub const MSI_X: u8 = 0x11;
    /// Advanced features of conventional PCI, among them function-level reset.
    pub const ADVANCED_FEATURES: u8 = 0x13;
}

/// A capability's contents at the time of the walk.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Body {
    /// Power management.
    PowerManagement(PowerManagement),
    /// MSI.
    Msi(Msi),
    /// MSI-X.
    MsiX(MsiX),
    /// PCI Express.
    PciExpress(PciExpress),
    /// One that this module does not decode, or a malformed one.
    Other,
}

/// Power management (PCI Power Management 1.2, section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PowerManagement {
    /// Version: PMC bits 2:0.
    pub version: u8,
    /// Current state D0 to D3: PMCSR bits 1:0.
    pub state: u8,
    /// A return from D3hot keeps the device's context: PMCSR bit 3.
    pub no_soft_reset: bool,
}

/// MSI (PCI Local Bus 3.0, section 6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Msi {
    /// Vectors that the device can use, 1 to 32: message control bits 3:1, as log2.
    pub vectors: u8,
    /// Enabled: bit 0.
    pub enabled: bool,
    /// Takes 64-bit message addresses: bit 7.
    pub address_64: bool,
    /// Vectors can be masked one by one: bit 8.
    pub maskable: bool,
}

/// MSI-X (PCI Local Bus 3.0, section 6.8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MsiX {
    /// Vectors, 1 to 2048: message control bits 10:0, biased by one.
    pub vectors: u16,
    /// Enabled: bit 15.
    pub enabled: bool,
    /// All vectors masked: bit 14.
    pub function_masked: bool,
    /// The BAR that holds the vector table, 0 to 5.
    pub table_bar: u8,
    /// Offset of the table in its BAR, a multiple of 8.
    pub table_offset: u32,
    /// The BAR that holds the pending bits, 0 to 5.
    pub pba_bar: u8,
    /// Offset of the pending bits in their BAR, a multiple of 8.
    pub pba_offset: u32,
}

impl MsiX {
    /// The bytes of [`MsiX::table_bar`] that the table takes: 16 for each vector.
    #[must_use]
    pub fn table(&self) -> Range<u64> {
        let start = u64::from(self.table_offset);
        start..start + 16 * u64::from(self.vectors)
    }

    /// The bytes of [`MsiX::pba_bar`] that the pending bits take: 8 for each 64 vectors.
    #[must_use]
    pub fn pba(&self) -> Range<u64> {
        let start = u64::from(self.pba_offset);
        start..start + 8 * u64::from(self.vectors.div_ceil(64))
    }
}

/// The PCI Express capability (PCIe Base, section 7.5.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PciExpress {
    /// Version of the capability: bits 3:0 of its capabilities register.
    pub version: u8,
    /// Device or port type: bits 7:4.
    pub kind: ExpressKind,
    /// Function-level reset is implemented: device capabilities bit 28.
    pub function_level_reset: bool,
    /// Largest payload that the device can send, in bytes: device capabilities bits 2:0.
    pub max_payload_supported: u16,
    /// Largest payload that it is set to send, in bytes: device control bits 7:5.
    pub max_payload: u16,
    /// Largest read request that it is set to send, in bytes: device control bits 14:12.
    pub max_read_request: u16,
}

impl PciExpress {
    /// Offset of the device control register (16 bits) in the capability.
    pub const DEVICE_CONTROL: u16 = 0x08;
    /// Device control: starts a function-level reset; reads as 0.
    pub const INITIATE_FLR: u16 = 1 << 15;
    /// Offset of the device status register (16 bits) in the capability.
    pub const DEVICE_STATUS: u16 = 0x0a;
    /// Device status: requests of the function have not been completed yet.
    pub const TRANSACTIONS_PENDING: u16 = 1 << 5;
}

/// Device or port type of a PCI Express function (PCIe Base, section 7.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpressKind {
    /// Endpoint: 0.
    Endpoint,
    /// Legacy endpoint: 1.
    LegacyEndpoint,
    /// Root port: 4.
    RootPort,
    /// Upstream port of a switch: 5.
    SwitchUpstream,
    /// Downstream port of a switch: 6.
    SwitchDownstream,
    /// Endpoint that is part of the root complex and has no link: 9.
    RootComplexEndpoint,
    /// Event collector of the root complex: 10.
    RootComplexEventCollector,
    /// Any other value.
    Other(u8),
}

impl ExpressKind {
    fn from_bits(bits: u8) -> ExpressKind {
        match bits {
            0 => ExpressKind::Endpoint,
            1 => ExpressKind::LegacyEndpoint,
            4 => ExpressKind::RootPort,
            5 => ExpressKind::SwitchUpstream,
            6 => ExpressKind::SwitchDownstream,
            9 => ExpressKind::RootComplexEndpoint,
            10 => ExpressKind::RootComplexEventCollector,
            other => ExpressKind::Other(other),
        }
    }
}

/// How many bytes of a capability [`decode`] reads.
pub(super) fn needed(id: u8) -> u16 {
    match id {
        id::POWER_MANAGEMENT => 6,
        id::MSI => 4,
        id::MSI_X | id::PCI_EXPRESS => 12,
        _ => 2,
    }
}

/// What the capability says; `None` when it holds a reserved value.
pub(super) fn decode<A: ConfigAccess>(
    config: &ConfigSpace<A>,
    id: u8,
    at: u16,
) -> Result<Option<Body>> {
    Ok(Some(match id {
        id::POWER_MANAGEMENT => {
            let state = config.read_u16(at + 4)?;
            Body::PowerManagement(PowerManagement {
                version: (config.read_u16(at + 2)? & 7) as u8,
                state: (state & 3) as u8,
                no_soft_reset: state & 1 << 3 != 0,
            })
        }
        id::MSI => {
            let control = config.read_u16(at + 2)?;
            let log2 = control >> 1 & 7;
            if log2 > 5 {
                return Ok(None);
            }
            Body::Msi(Msi {
                vectors: 1 << log2,
                enabled: control & 1 != 0,
                address_64: control & 1 << 7 != 0,
                maskable: control & 1 << 8 != 0,
            })
        }
        id::MSI_X => {
            let control = config.read_u16(at + 2)?;
            let table = config.read_u32(at + 4)?;
            let pba = config.read_u32(at + 8)?;
            if table & 7 > 5 || pba & 7 > 5 {
                return Ok(None);
            }
            Body::MsiX(MsiX {
                vectors: (control & 0x7ff) + 1,
                enabled: control & 1 << 15 != 0,
                function_masked: control & 1 << 14 != 0,
                table_bar: (table & 7) as u8,
                table_offset: table & !7,
                pba_bar: (pba & 7) as u8,
                pba_offset: pba & !7,
            })
        }
        id::PCI_EXPRESS => {
            let flags = config.read_u16(at + 2)?;
            let device = config.read_u32(at + 4)?;
            let control = config.read_u16(at + PciExpress::DEVICE_CONTROL)?;
            let payload = |bits: u16| 128 << bits;
            let sizes = [(device & 7) as u16, control >> 5 & 7, control >> 12 & 7];
            if sizes.iter().any(|bits| *bits > 5) {
                return Ok(None);
            }
            Body::PciExpress(PciExpress {
                version: (flags & 0xf) as u8,
                kind: ExpressKind::from_bits((flags >> 4 & 0xf) as u8),
                function_level_reset: device & 1 << 28 != 0,
                max_payload_supported: payload(sizes[0]),
                max_payload: payload(sizes[1]),
                max_read_request: payload(sizes[2]),
            })
        }
        _ => Body::Other,
    }))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn register_places_are_those_of_pci_regs_h() {
        assert_eq!(PciExpress::DEVICE_CONTROL, 8);
        assert_eq!(PciExpress::INITIATE_FLR, 0x8000);
        assert_eq!(PciExpress::DEVICE_STATUS, 10);
        assert_eq!(PciExpress::TRANSACTIONS_PENDING, 0x20);
    }

    #[test]
    fn the_pending_bits_take_a_quadword_for_each_64_vectors() {
        let mut bytes = [0x11, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut msi_x = || {
            let config = ConfigSpace::new(Cell::from_mut(&mut bytes[..]).as_slice_of_cells());
            let Some(Body::MsiX(msi_x)) = decode(&config, id::MSI_X, 0).unwrap() else {
                panic!("MSI-X is decoded as something else");
            };
            config.write_u16(2, 0x07ff).unwrap();
            (msi_x.table(), msi_x.pba())
        };
        assert_eq!(msi_x(), (0..65 * 16, 0..16));
        assert_eq!(msi_x(), (0..2048 * 16, 0..256));
    }
}
