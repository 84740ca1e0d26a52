//! The PCI Express capability (PCIe Base 4.0, section 7.5.3).

use super::table::{Bits, Row, Values, bits, flag, names, ro, rw, w1c};

const KIND: Values = &[
    (0, "endpoint"),
    (1, "legacy endpoint"),
    (4, "root port"),
    (5, "upstream port"),
    (6, "downstream port"),
    (7, "PCIe-to-PCI bridge"),
    (8, "PCI-to-PCIe bridge"),
    (9, "root complex integrated endpoint"),
    (10, "root complex event collector"),
];
const SIZE: Values = &[
    (0, "128 bytes"),
    (1, "256 bytes"),
    (2, "512 bytes"),
    (3, "1024 bytes"),
    (4, "2048 bytes"),
    (5, "4096 bytes"),
];
const SPEED: Values = &[
    (1, "2.5 GT/s"),
    (2, "5 GT/s"),
    (3, "8 GT/s"),
    (4, "16 GT/s"),
    (5, "32 GT/s"),
    (6, "64 GT/s"),
];
const WIDTH: Values = &[
    (0, "none"),
    (1, "x1"),
    (2, "x2"),
    (4, "x4"),
    (8, "x8"),
    (12, "x12"),
    (16, "x16"),
    (32, "x32"),
];
const ASPM: Values = &[(0, "none"), (1, "L0s"), (2, "L1"), (3, "L0s and L1")];
const TIMEOUT: Values = &[
    (0, "50 us to 50 ms"),
    (1, "50 us to 100 us"),
    (2, "1 ms to 10 ms"),
    (5, "16 ms to 55 ms"),
    (6, "65 ms to 210 ms"),
    (9, "260 ms to 900 ms"),
    (10, "1 s to 3.5 s"),
    (13, "4 s to 13 s"),
    (14, "17 s to 64 s"),
];

const FLAGS: &[Bits] =
    &[bits("version", 0, 4), names("type", 4, 4, KIND), flag("slot", 8), bits("message", 9, 5)];
const DEVCAP: &[Bits] = &[
    names("max-payload", 0, 3, SIZE),
    bits("phantom-functions", 3, 2),
    flag("extended-tags", 5),
    bits("l0s-latency", 6, 3),
    bits("l1-latency", 9, 3),
    flag("role-based-errors", 15),
    bits("slot-power-limit", 18, 8),
    bits("slot-power-scale", 26, 2),
    flag("function-level-reset", 28),
];
const DEVCTL: &[Bits] = &[
    flag("correctable-reporting", 0),
    flag("non-fatal-reporting", 1),
    flag("fatal-reporting", 2),
    flag("unsupported-request-reporting", 3),
    flag("relaxed-ordering", 4),
    names("max-payload", 5, 3, SIZE),
    flag("extended-tags", 8),
    flag("phantom-functions", 9),
    flag("aux-power", 10),
    flag("no-snoop", 11),
    names("max-read-request", 12, 3, SIZE),
    flag("function-level-reset", 15),
];
const DEVSTA: &[Bits] = &[
    flag("correctable-error", 0),
    flag("non-fatal-error", 1),
    flag("fatal-error", 2),
    flag("unsupported-request", 3),
    flag("aux-power", 4),
    flag("transactions-pending", 5),
];
const LNKCAP: &[Bits] = &[
    names("speed", 0, 4, SPEED),
    names("width", 4, 6, WIDTH),
    names("aspm", 10, 2, ASPM),
    bits("l0s-exit-latency", 12, 3),
    bits("l1-exit-latency", 15, 3),
    flag("clock-power-management", 18),
    flag("surprise-down-reporting", 19),
    flag("link-active-reporting", 20),
    flag("bandwidth-notification", 21),
    flag("aspm-optionality", 22),
    bits("port", 24, 8),
];
const LNKCTL: &[Bits] = &[
    names("aspm", 0, 2, ASPM),
    names("read-completion-boundary", 3, 1, &[(0, "64 bytes"), (1, "128 bytes")]),
    flag("disable", 4),
    flag("retrain", 5),
    flag("common-clock", 6),
    flag("extended-synch", 7),
    flag("clock-power-management", 8),
    flag("autonomous-width-disable", 9),
    flag("bandwidth-interrupt", 10),
    flag("autonomous-bandwidth-interrupt", 11),
];
const LNKSTA: &[Bits] = &[
    names("speed", 0, 4, SPEED),
    names("width", 4, 6, WIDTH),
    flag("training", 11),
    flag("slot-clock", 12),
    flag("link-active", 13),
    flag("bandwidth-management", 14),
    flag("autonomous-bandwidth", 15),
];
const SLTCAP: &[Bits] = &[
    flag("attention-button", 0),
    flag("power-controller", 1),
    flag("mrl-sensor", 2),
    flag("attention-indicator", 3),
    flag("power-indicator", 4),
    flag("hot-plug-surprise", 5),
    flag("hot-plug", 6),
    bits("power-limit", 7, 8),
    bits("power-limit-scale", 15, 2),
    flag("interlock", 17),
    flag("no-command-completed", 18),
    bits("slot", 19, 13),
];
const SLTCTL: &[Bits] = &[
    flag("attention-button", 0),
    flag("power-fault", 1),
    flag("mrl-changed", 2),
    flag("presence-changed", 3),
    flag("command-completed", 4),
    flag("hot-plug-interrupt", 5),
    bits("attention-indicator", 6, 2),
    bits("power-indicator", 8, 2),
    flag("power-off", 10),
    flag("interlock", 11),
    flag("link-changed", 12),
];
const SLTSTA: &[Bits] = &[
    flag("attention-button", 0),
    flag("power-fault", 1),
    flag("mrl-changed", 2),
    flag("presence-changed", 3),
    flag("command-completed", 4),
    flag("mrl-open", 5),
    flag("presence", 6),
    flag("interlock", 7),
    flag("link-changed", 8),
];
const RTCTL: &[Bits] = &[
    flag("serr-correctable", 0),
    flag("serr-non-fatal", 1),
    flag("serr-fatal", 2),
    flag("pme-interrupt", 3),
    flag("crs-visible", 4),
];
const RTSTA: &[Bits] =
    &[bits("pme-requester", 0, 16), flag("pme-status", 16), flag("pme-pending", 17)];
const DEVCAP2: &[Bits] = &[
    bits("completion-timeout-ranges", 0, 4),
    flag("completion-timeout-disable", 4),
    flag("ari-forwarding", 5),
    flag("atomic-routing", 6),
    flag("atomic-32", 7),
    flag("atomic-64", 8),
    flag("atomic-128", 9),
    flag("ltr", 11),
    bits("obff", 18, 2),
    flag("extended-fmt", 20),
    flag("end-to-end-prefix", 21),
];
const DEVCTL2: &[Bits] = &[
    names("completion-timeout", 0, 4, TIMEOUT),
    flag("completion-timeout-disable", 4),
    flag("ari-forwarding", 5),
    flag("atomic-requester", 6),
    flag("atomic-egress-block", 7),
    flag("ido-request", 8),
    flag("ido-completion", 9),
    flag("ltr", 10),
    bits("obff", 13, 2),
];
const LNKCAP2: &[Bits] = &[
    flag("2.5-gt", 1),
    flag("5-gt", 2),
    flag("8-gt", 3),
    flag("16-gt", 4),
    flag("32-gt", 5),
    flag("64-gt", 6),
    flag("crosslink", 8),
];
const LNKCTL2: &[Bits] = &[
    names("target-speed", 0, 4, SPEED),
    flag("enter-compliance", 4),
    flag("autonomous-speed-disable", 5),
    flag("selectable-de-emphasis", 6),
    bits("transmit-margin", 7, 3),
];
const LNKSTA2: &[Bits] = &[
    flag("de-emphasis", 0),
    flag("equalization-complete", 1),
    flag("equalization-phase-1", 2),
    flag("equalization-phase-2", 3),
    flag("equalization-phase-3", 4),
    flag("equalization-request", 5),
];

pub(super) const DEVICE: &[Row] = &[
    ro("FLAGS", 0x02, 2, FLAGS),
    ro("DEVCAP", 0x04, 4, DEVCAP),
    rw("DEVCTL", 0x08, 2, DEVCTL),
    w1c("DEVSTA", 0x0a, 2, DEVSTA),
];
pub(super) const LINK: &[Row] =
    &[ro("LNKCAP", 0x0c, 4, LNKCAP), rw("LNKCTL", 0x10, 2, LNKCTL), w1c("LNKSTA", 0x12, 2, LNKSTA)];
pub(super) const SLOT: &[Row] =
    &[ro("SLTCAP", 0x14, 4, SLTCAP), rw("SLTCTL", 0x18, 2, SLTCTL), w1c("SLTSTA", 0x1a, 2, SLTSTA)];
pub(super) const ROOT: &[Row] = &[
    rw("RTCTL", 0x1c, 2, RTCTL),
    ro("RTCAP", 0x1e, 2, &[flag("crs-visible", 0)]),
    w1c("RTSTA", 0x20, 4, RTSTA),
];
pub(super) const DEVICE_2: &[Row] =
    &[ro("DEVCAP2", 0x24, 4, DEVCAP2), rw("DEVCTL2", 0x28, 2, DEVCTL2)];
pub(super) const LINK_2: &[Row] = &[
    ro("LNKCAP2", 0x2c, 4, LNKCAP2),
    rw("LNKCTL2", 0x30, 2, LNKCTL2),
    w1c("LNKSTA2", 0x32, 2, LNKSTA2),
];
