//! The predefined header (PCI Local Bus 3.0, section 6.1; PCI-to-PCI Bridge 1.2, section 3.2).

use super::table::{Bits, Row, Values, bits, clears, flag, names, ro, rw, w1c};

const COMMAND: &[Bits] = &[
    flag("io-space", 0),
    flag("memory-space", 1),
    flag("bus-master", 2),
    flag("special-cycles", 3),
    flag("memory-write-invalidate", 4),
    flag("vga-palette-snoop", 5),
    flag("parity-error-response", 6),
    flag("serr", 8),
    flag("fast-back-to-back", 9),
    flag("intx-disable", 10),
];

const DEVSEL: Values = &[(0, "fast"), (1, "medium"), (2, "slow")];

const STATUS: &[Bits] = &[
    flag("intx-pending", 3),
    flag("capability-list", 4),
    flag("66-mhz", 5),
    flag("fast-back-to-back", 7),
    flag("master-data-parity-error", 8),
    names("devsel", 9, 2, DEVSEL),
    flag("signaled-target-abort", 11),
    flag("received-target-abort", 12),
    flag("received-master-abort", 13),
    flag("signaled-system-error", 14),
    flag("detected-parity-error", 15),
];

const LAYOUT: Values = &[(0, "endpoint"), (1, "PCI bridge"), (2, "CardBus bridge")];
const HEADER_TYPE: &[Bits] = &[names("layout", 0, 7, LAYOUT), flag("multi-function", 7)];
const BIST: &[Bits] = &[bits("code", 0, 4), flag("start", 6), flag("capable", 7)];
const PIN: &[Bits] = &[names("pin", 0, 8, &[(0, "none"), (1, "A"), (2, "B"), (3, "C"), (4, "D")])];
const ROM: &[Bits] = &[flag("enable", 0)];

/// What every function has.
pub(super) const COMMON: &[Row] = &[
    ro("VENDOR_ID", 0x00, 2, &[]),
    ro("DEVICE_ID", 0x02, 2, &[]),
    rw("COMMAND", 0x04, 2, COMMAND),
    w1c("STATUS", 0x06, 2, STATUS),
    ro("REVISION_ID", 0x08, 1, &[]),
    ro("CLASS_INTERFACE", 0x09, 1, &[]),
    ro("CLASS_DEVICE", 0x0a, 2, &[]),
    rw("CACHE_LINE_SIZE", 0x0c, 1, &[]),
    rw("LATENCY_TIMER", 0x0d, 1, &[]),
    ro("HEADER_TYPE", 0x0e, 1, HEADER_TYPE),
    rw("BIST", 0x0f, 1, BIST),
];

/// Header type 0.
pub(super) const ENDPOINT: &[Row] = &[
    rw("BASE_ADDRESS_0", 0x10, 4, &[]),
    rw("BASE_ADDRESS_1", 0x14, 4, &[]),
    rw("BASE_ADDRESS_2", 0x18, 4, &[]),
    rw("BASE_ADDRESS_3", 0x1c, 4, &[]),
    rw("BASE_ADDRESS_4", 0x20, 4, &[]),
    rw("BASE_ADDRESS_5", 0x24, 4, &[]),
    rw("CARDBUS_CIS", 0x28, 4, &[]),
    ro("SUBSYSTEM_VENDOR_ID", 0x2c, 2, &[]),
    ro("SUBSYSTEM_ID", 0x2e, 2, &[]),
    rw("ROM_ADDRESS", 0x30, 4, ROM),
    ro("CAPABILITY_LIST", 0x34, 1, &[]),
    rw("INTERRUPT_LINE", 0x3c, 1, &[]),
    ro("INTERRUPT_PIN", 0x3d, 1, PIN),
    ro("MIN_GNT", 0x3e, 1, &[]),
    ro("MAX_LAT", 0x3f, 1, &[]),
];

const BRIDGE_CONTROL: &[Bits] = &[
    flag("parity-error-response", 0),
    flag("serr", 1),
    flag("isa", 2),
    flag("vga", 3),
    flag("vga-16-bit", 4),
    flag("master-abort", 5),
    flag("bus-reset", 6),
    flag("fast-back-to-back", 7),
    flag("primary-discard-timer", 8),
    flag("secondary-discard-timer", 9),
    clears("discard-timer-status", 10),
    flag("discard-timer-serr", 11),
];

/// Header type 1.
pub(super) const BRIDGE: &[Row] = &[
    rw("BASE_ADDRESS_0", 0x10, 4, &[]),
    rw("BASE_ADDRESS_1", 0x14, 4, &[]),
    rw("PRIMARY_BUS", 0x18, 1, &[]),
    rw("SECONDARY_BUS", 0x19, 1, &[]),
    rw("SUBORDINATE_BUS", 0x1a, 1, &[]),
    rw("SEC_LATENCY_TIMER", 0x1b, 1, &[]),
    rw("IO_BASE", 0x1c, 1, &[]),
    rw("IO_LIMIT", 0x1d, 1, &[]),
    w1c("SEC_STATUS", 0x1e, 2, STATUS),
    rw("MEMORY_BASE", 0x20, 2, &[]),
    rw("MEMORY_LIMIT", 0x22, 2, &[]),
    rw("PREF_MEMORY_BASE", 0x24, 2, &[]),
    rw("PREF_MEMORY_LIMIT", 0x26, 2, &[]),
    rw("PREF_BASE_UPPER32", 0x28, 4, &[]),
    rw("PREF_LIMIT_UPPER32", 0x2c, 4, &[]),
    rw("IO_BASE_UPPER16", 0x30, 2, &[]),
    rw("IO_LIMIT_UPPER16", 0x32, 2, &[]),
    ro("CAPABILITY_LIST", 0x34, 1, &[]),
    rw("ROM_ADDRESS", 0x38, 4, ROM),
    rw("INTERRUPT_LINE", 0x3c, 1, &[]),
    ro("INTERRUPT_PIN", 0x3d, 1, PIN),
    rw("BRIDGE_CONTROL", 0x3e, 2, BRIDGE_CONTROL),
];
