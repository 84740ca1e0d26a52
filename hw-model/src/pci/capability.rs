//! The capabilities of a PCI function, as tables of fields.

use super::config::{Field, field};

/// A capability in the first 256 bytes: its ID, where it is, and its fields after the
/// two-byte header.
#[derive(Debug)]
pub struct Capability {
    /// Capability ID.
    pub id: u8,
    /// Offset in configuration space.
    pub offset: u32,
    /// The fields, at absolute offsets.
    pub fields: Vec<Field>,
}

/// An extended capability, from 0x100 on.
#[derive(Debug)]
pub struct ExtendedCapability {
    /// Extended capability ID.
    pub id: u16,
    /// Capability version.
    pub version: u8,
    /// Offset in configuration space.
    pub offset: u32,
    /// The fields after the four-byte header, at absolute offsets.
    pub fields: Vec<Field>,
}

/// Power management without D1, D2 and PME, and without a reset on the way from D3hot to D0
/// (PCI Power Management Interface Specification 1.2, section 3.2).
#[must_use]
pub fn power_management(at: u32) -> Capability {
    const NO_SOFT_RESET: u64 = 1 << 3;
    Capability {
        id: 0x01,
        offset: at,
        fields: vec![
            field("PMC", at + 2, 2, 0x0003),
            field("PMCSR", at + 4, 2, NO_SOFT_RESET).writable(0x3),
            field("PMCSR_BSE and Data", at + 6, 2, 0),
        ],
    }
}

/// MSI with one vector and a 64-bit address (PCI Local Bus Specification 3.0, section 6.8.1).
#[must_use]
pub fn msi(at: u32) -> Capability {
    msi_vectors(at, 1)
}

/// MSI with a 64-bit address and 1, 2, 4, 8, 16 or 32 vectors; another number is rounded up.
#[must_use]
pub fn msi_vectors(at: u32, vectors: u8) -> Capability {
    const ADDRESS_64: u64 = 1 << 7;
    let capable = u64::from(vectors.clamp(1, 32).next_power_of_two().trailing_zeros());
    // Bit 0 enables, bits 6:4 are how many vectors software gives: only where there are several.
    let writable = if capable == 0 { 0x1 } else { 0x71 };
    Capability {
        id: 0x05,
        offset: at,
        fields: vec![
            field("MSI Message Control", at + 2, 2, ADDRESS_64 | capable << 1).writable(writable),
            field("MSI Message Address", at + 4, 4, 0).writable(0xffff_fffc),
            field("MSI Message Upper Address", at + 8, 4, 0).writable(0xffff_ffff),
            field("MSI Message Data", at + 12, 2, 0).writable(0xffff),
        ],
    }
}

/// MSI-X with its table and pending bits at offsets of one BAR, which are multiples of 8
/// (PCI Local Bus Specification 3.0, section 6.8.2).
#[must_use]
pub fn msix(at: u32, vectors: u16, bar: u8, table: u32, pending: u32) -> Capability {
    Capability {
        id: 0x11,
        offset: at,
        fields: vec![
            field("MSI-X Message Control", at + 2, 2, u64::from(vectors.saturating_sub(1)))
                .writable(0xc000),
            field("MSI-X Table Offset", at + 4, 4, u64::from(table | u32::from(bar))),
            field("MSI-X PBA Offset", at + 8, 4, u64::from(pending | u32::from(bar))),
        ],
    }
}

/// PCI Express, version 2, of a root-complex integrated endpoint that can be reset by
/// function (PCI Express Base Specification 3.0, section 7.8).
#[must_use]
pub fn express_integrated_endpoint(at: u32) -> Capability {
    express_with_payload(at, 256, 128)
}

/// As [`express_integrated_endpoint`], with the largest payload that the function supports and
/// the one that Device Control begins with, in bytes: powers of two from 128 to 4096.
#[must_use]
pub fn express_with_payload(at: u32, supported: u16, initial: u16) -> Capability {
    let code = |bytes: u16| u64::from(bytes.clamp(128, 4096).ilog2() - 7);
    const VERSION_2: u64 = 2;
    const INTEGRATED_ENDPOINT: u64 = 9 << 4;
    const ROLE_BASED_ERRORS: u64 = 1 << 15;
    const FLR: u64 = 1 << 28;
    const TIMEOUT_RANGES: u64 = 0xf;
    const TIMEOUT_DISABLE: u64 = 1 << 4;
    Capability {
        id: 0x10,
        offset: at,
        fields: vec![
            field("PCI Express Capabilities", at + 0x02, 2, VERSION_2 | INTEGRATED_ENDPOINT),
            field("Device Capabilities", at + 0x04, 4, code(supported) | ROLE_BASED_ERRORS | FLR),
            // Error reporting, relaxed ordering, payload, no snoop, read request size. Bit 15
            // initiates a reset and is never stored.
            field("Device Control", at + 0x08, 2, 0x2810 | code(initial) << 5)
                .writable(0x78ff)
                .command(),
            field("Device Status", at + 0x0a, 2, 0).write_one_to_clear(0xf),
            field("Device Capabilities 2", at + 0x24, 4, TIMEOUT_RANGES | TIMEOUT_DISABLE),
            field("Device Control 2", at + 0x28, 2, 0).writable(0x1f),
        ],
    }
}

/// Advanced error reporting; the model never reports an error there (PCI Express Base
/// Specification 3.0, section 7.10).
#[must_use]
pub fn advanced_error_reporting(at: u32) -> ExtendedCapability {
    /// Data link, poisoned, flow control, timeout, abort, unexpected, overflow, malformed,
    /// ECRC, unsupported.
    const UNCORRECTABLE: u64 = 0x001f_f010;
    /// Receiver, bad TLP, bad DLLP, rollover, replay timeout, advisory.
    const CORRECTABLE: u64 = 0x31c1;
    ExtendedCapability {
        id: 0x0001,
        version: 1,
        offset: at,
        fields: vec![
            field("Uncorrectable Error Status", at + 0x04, 4, 0).write_one_to_clear(UNCORRECTABLE),
            field("Uncorrectable Error Mask", at + 0x08, 4, 0).writable(UNCORRECTABLE),
            field("Uncorrectable Error Severity", at + 0x0c, 4, 0x0006_2010)
                .writable(UNCORRECTABLE),
            field("Correctable Error Status", at + 0x10, 4, 0).write_one_to_clear(CORRECTABLE),
            field("Correctable Error Mask", at + 0x14, 4, 0x2000).writable(CORRECTABLE),
            field("Capabilities and Control", at + 0x18, 4, 0),
            field("Header Log 0", at + 0x1c, 4, 0),
            field("Header Log 1", at + 0x20, 4, 0),
            field("Header Log 2", at + 0x24, 4, 0),
            field("Header Log 3", at + 0x28, 4, 0),
        ],
    }
}
