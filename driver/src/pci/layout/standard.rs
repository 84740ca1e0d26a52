//! Conventional capabilities (PCI Code and ID Assignment, chapter 2).

use super::table::{Bits, Row, Values, bits, clears, flag, names, ro, rw, w1c};

/// Name and prefix of the capability with this id.
pub(super) fn name(id: u8) -> (&'static str, &'static str) {
    match id {
        0x00 => ("null", "NULL"),
        0x01 => ("power management", "PM"),
        0x02 => ("AGP", "AGP"),
        0x03 => ("vital product data", "VPD"),
        0x04 => ("slot identification", "SLOTID"),
        0x05 => ("MSI", "MSI"),
        0x06 => ("CompactPCI hot swap", "CHSWP"),
        0x07 => ("PCI-X", "PCIX"),
        0x08 => ("HyperTransport", "HT"),
        0x09 => ("vendor-specific", "VNDR"),
        0x0a => ("debug port", "DBG"),
        0x0b => ("CompactPCI resource control", "CCRC"),
        0x0c => ("hot-plug", "HOTPLUG"),
        0x0d => ("subsystem of a bridge", "SSVID"),
        0x0e => ("AGP 8x", "AGP3"),
        0x0f => ("secure device", "SECDEV"),
        0x10 => ("PCI Express", "EXP"),
        0x11 => ("MSI-X", "MSIX"),
        0x12 => ("SATA index and data", "SATA"),
        0x13 => ("advanced features", "AF"),
        0x14 => ("enhanced allocation", "EA"),
        0x15 => ("flattening portal bridge", "FPB"),
        _ => ("unknown", "CAP"),
    }
}

const VECTORS: Values = &[(0, "1"), (1, "2"), (2, "4"), (3, "8"), (4, "16"), (5, "32")];
const STATE: Values = &[(0, "D0"), (1, "D1"), (2, "D2"), (3, "D3hot")];

/// Power management (PCI Power Management 1.2, section 3.2).
pub(super) const POWER: &[Row] = &[
    ro(
        "CAP",
        2,
        2,
        &[
            bits("version", 0, 3),
            flag("pme-clock", 3),
            flag("device-specific-initialisation", 5),
            bits("aux-current", 6, 3),
            flag("d1", 9),
            flag("d2", 10),
            flag("pme-d0", 11),
            flag("pme-d1", 12),
            flag("pme-d2", 13),
            flag("pme-d3hot", 14),
            flag("pme-d3cold", 15),
        ],
    ),
    rw(
        "CTRL",
        4,
        2,
        &[
            names("state", 0, 2, STATE),
            flag("no-soft-reset", 3),
            flag("pme-enable", 8),
            bits("data-select", 9, 4),
            bits("data-scale", 13, 2),
            clears("pme-status", 15),
        ],
    ),
];

const MSI_FLAGS: &[Bits] = &[
    flag("enable", 0),
    names("capable", 1, 3, VECTORS),
    names("enabled-vectors", 4, 3, VECTORS),
    flag("64-bit", 7),
    flag("maskable", 8),
];

/// MSI (PCI Local Bus 3.0, section 6.8.1): the address, 32 or 64 bits wide, and what follows.
pub(super) const MSI_CONTROL: &[Row] = &[rw("FLAGS", 2, 2, MSI_FLAGS), rw("ADDRESS_LO", 4, 4, &[])];
pub(super) const MSI_32: &[Row] = &[rw("DATA", 8, 2, &[])];
pub(super) const MSI_32_MASK: &[Row] = &[rw("MASK", 0x0c, 4, &[]), ro("PENDING", 0x10, 4, &[])];
pub(super) const MSI_64: &[Row] = &[rw("ADDRESS_HI", 8, 4, &[]), rw("DATA", 0x0c, 2, &[])];
pub(super) const MSI_64_MASK: &[Row] = &[rw("MASK", 0x10, 4, &[]), ro("PENDING", 0x14, 4, &[])];

/// MSI-X (PCI Local Bus 3.0, section 6.8.2). Offsets are in units of 8 bytes.
pub(super) const MSI_X: &[Row] = &[
    rw("FLAGS", 2, 2, &[bits("last-vector", 0, 11), flag("masked", 14), flag("enable", 15)]),
    ro("TABLE", 4, 4, &[bits("bar", 0, 3), bits("offset-8", 3, 29)]),
    ro("PBA", 8, 4, &[bits("bar", 0, 3), bits("offset-8", 3, 29)]),
];

/// Vital product data (PCI Local Bus 3.0, appendix I). A write of the address starts a read.
pub(super) const VPD: &[Row] =
    &[rw("ADDR", 2, 2, &[bits("address", 0, 15), flag("flag", 15)]), rw("DATA", 4, 4, &[])];

pub(super) const SUBSYSTEM: &[Row] = &[ro("VENDOR_ID", 4, 2, &[]), ro("DEVICE_ID", 6, 2, &[])];

pub(super) const VENDOR: &[Row] = &[ro("LEN", 2, 1, &[])];

pub(super) const DEBUG_PORT: &[Row] =
    &[ro("PORT", 2, 2, &[bits("offset", 0, 13), bits("bar", 13, 3)])];

/// SATA index and data (AHCI 1.3, section 2.4).
pub(super) const SATA: &[Row] = &[
    ro("REV", 2, 2, &[bits("minor", 0, 4), bits("major", 4, 4)]),
    ro("BAR", 4, 4, &[bits("location", 0, 4), bits("offset-4", 4, 20)]),
];

/// Advanced features (PCI-SIG ECN, Advanced Capabilities for Conventional PCI).
pub(super) const ADVANCED: &[Row] = &[
    ro("LEN", 2, 1, &[]),
    ro("CAP", 3, 1, &[flag("transactions-pending", 0), flag("function-level-reset", 1)]),
    rw("CTRL", 4, 1, &[flag("function-level-reset", 0)]),
    ro("STATUS", 5, 1, &[flag("transactions-pending", 0)]),
];

/// PCI-X (PCI-X Addendum 2.0, section 7.2), of an endpoint.
pub(super) const PCI_X: &[Row] = &[
    rw(
        "CMD",
        2,
        2,
        &[
            flag("data-parity-recovery", 0),
            flag("relaxed-ordering", 1),
            bits("max-read", 2, 2),
            bits("max-split", 4, 3),
        ],
    ),
    w1c("STATUS", 4, 4, &[bits("devfn", 0, 8), bits("bus", 8, 8), flag("64-bit", 16)]),
];

pub(super) const ENHANCED: &[Row] = &[ro("NUM", 2, 1, &[bits("entries", 0, 6)])];
