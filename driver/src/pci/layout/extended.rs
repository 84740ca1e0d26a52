//! Extended capabilities (PCI Code and ID Assignment, chapter 3; PCIe Base 4.0, sections 7.7
//! to 7.9; SR-IOV 1.1, section 3.3). Offsets count from the capability's header.

use super::table::{Bits, Row, Values, bits, flag, names, ro, rw, w1c};

/// Name and prefix of the extended capability with this id.
pub(super) fn name(id: u16) -> (&'static str, &'static str) {
    match id {
        0x0000 => ("null", "ENULL"),
        0x0001 => ("advanced error reporting", "AER"),
        0x0002 | 0x0009 => ("virtual channel", "VC"),
        0x0003 => ("device serial number", "DSN"),
        0x0004 => ("power budgeting", "PWR"),
        0x0005 => ("root complex link declaration", "RCLD"),
        0x0006 => ("root complex internal link", "RCILC"),
        0x0007 => ("root complex event collector", "RCEC"),
        0x0008 => ("multi-function virtual channel", "MFVC"),
        0x000a => ("root complex register block", "RCRB"),
        0x000b => ("vendor-specific", "VSEC"),
        0x000c => ("configuration access correlation", "CAC"),
        0x000d => ("access control services", "ACS"),
        0x000e => ("alternative routing-ID", "ARI"),
        0x000f => ("address translation service", "ATS"),
        0x0010 => ("single-root I/O virtualization", "SRIOV"),
        0x0011 => ("multi-root I/O virtualization", "MRIOV"),
        0x0012 => ("multicast", "MCAST"),
        0x0013 => ("page request interface", "PRI"),
        0x0014 => ("reserved for AMD", "AMD"),
        0x0015 => ("resizable BAR", "REBAR"),
        0x0016 => ("dynamic power allocation", "DPA"),
        0x0017 => ("TLP processing hints", "TPH"),
        0x0018 => ("latency tolerance reporting", "LTR"),
        0x0019 => ("secondary PCI Express", "SECPCI"),
        0x001a => ("protocol multiplexing", "PMUX"),
        0x001b => ("process address space ID", "PASID"),
        0x001c => ("LN requester", "LNR"),
        0x001d => ("downstream port containment", "DPC"),
        0x001e => ("L1 PM substates", "L1SS"),
        0x001f => ("precision time measurement", "PTM"),
        0x0020 => ("PCI Express over M-PHY", "MPCIE"),
        0x0021 => ("FRS queueing", "FRSQ"),
        0x0022 => ("readiness time reporting", "RTR"),
        0x0023 => ("designated vendor-specific", "DVSEC"),
        0x0024 => ("VF resizable BAR", "VF_REBAR"),
        0x0025 => ("data link feature", "DLF"),
        0x0026 => ("physical layer 16 GT/s", "PL_16GT"),
        0x0027 => ("lane margining", "LMR"),
        0x0028 => ("hierarchy ID", "HID"),
        0x0029 => ("native PCIe enclosure management", "NPEM"),
        0x002a => ("physical layer 32 GT/s", "PL_32GT"),
        0x002b => ("alternate protocol", "AP"),
        0x002c => ("system firmware intermediary", "SFI"),
        0x002d => ("shadow functions", "SHADOW"),
        0x002e => ("data object exchange", "DOE"),
        0x002f => ("device 3", "DEV3"),
        0x0030 => ("integrity and data encryption", "IDE"),
        0x0031 => ("physical layer 64 GT/s", "PL_64GT"),
        _ => ("unknown", "ECAP"),
    }
}

const UNCORRECTABLE: &[Bits] = &[
    flag("data-link-protocol", 4),
    flag("surprise-down", 5),
    flag("poisoned-tlp", 12),
    flag("flow-control-protocol", 13),
    flag("completion-timeout", 14),
    flag("completer-abort", 15),
    flag("unexpected-completion", 16),
    flag("receiver-overflow", 17),
    flag("malformed-tlp", 18),
    flag("ecrc", 19),
    flag("unsupported-request", 20),
    flag("acs-violation", 21),
    flag("internal", 22),
    flag("mc-blocked-tlp", 23),
    flag("atomic-egress-blocked", 24),
    flag("tlp-prefix-blocked", 25),
    flag("poisoned-tlp-egress-blocked", 26),
];
const CORRECTABLE: &[Bits] = &[
    flag("receiver", 0),
    flag("bad-tlp", 6),
    flag("bad-dllp", 7),
    flag("replay-rollover", 8),
    flag("replay-timeout", 12),
    flag("advisory-non-fatal", 13),
    flag("internal", 14),
    flag("header-log-overflow", 15),
];
const AER_CAP: &[Bits] = &[
    bits("first-error", 0, 5),
    flag("ecrc-generation-capable", 5),
    flag("ecrc-generation", 6),
    flag("ecrc-check-capable", 7),
    flag("ecrc-check", 8),
    flag("multiple-headers-capable", 9),
    flag("multiple-headers", 10),
    flag("tlp-prefix-log", 11),
];

pub(super) const AER: &[Row] = &[
    w1c("UNCOR_STATUS", 0x04, 4, UNCORRECTABLE),
    rw("UNCOR_MASK", 0x08, 4, UNCORRECTABLE),
    rw("UNCOR_SEVER", 0x0c, 4, UNCORRECTABLE),
    w1c("COR_STATUS", 0x10, 4, CORRECTABLE),
    rw("COR_MASK", 0x14, 4, CORRECTABLE),
    rw("CAP", 0x18, 4, AER_CAP),
    ro("HEADER_LOG_0", 0x1c, 4, &[]),
    ro("HEADER_LOG_1", 0x20, 4, &[]),
    ro("HEADER_LOG_2", 0x24, 4, &[]),
    ro("HEADER_LOG_3", 0x28, 4, &[]),
];
/// What root ports and event collectors have besides.
pub(super) const AER_ROOT: &[Row] = &[
    rw("ROOT_COMMAND", 0x2c, 4, &[flag("correctable", 0), flag("non-fatal", 1), flag("fatal", 2)]),
    w1c(
        "ROOT_STATUS",
        0x30,
        4,
        &[
            flag("correctable", 0),
            flag("multiple-correctable", 1),
            flag("uncorrectable", 2),
            flag("multiple-uncorrectable", 3),
            flag("first-fatal", 4),
            flag("non-fatal", 5),
            flag("fatal", 6),
            bits("message", 27, 5),
        ],
    ),
    ro("ERR_SRC", 0x34, 4, &[bits("correctable", 0, 16), bits("uncorrectable", 16, 16)]),
];

pub(super) const DSN: &[Row] = &[ro("LO", 4, 4, &[]), ro("HI", 8, 4, &[])];

pub(super) const VC: &[Row] = &[
    ro("PORT_CAP1", 4, 4, &[bits("channels", 0, 3), bits("low-priority", 4, 3)]),
    ro("PORT_CAP2", 8, 4, &[]),
    rw("PORT_CTRL", 0x0c, 2, &[]),
    ro("PORT_STATUS", 0x0e, 2, &[]),
    ro("RES0_CAP", 0x10, 4, &[]),
    rw("RES0_CTRL", 0x14, 4, &[bits("tc-map", 0, 8), bits("id", 24, 3), flag("enable", 31)]),
    ro("RES0_STATUS", 0x1a, 2, &[flag("table-busy", 0), flag("negotiation-pending", 1)]),
];

const ACS_BITS: &[Bits] = &[
    flag("source-validation", 0),
    flag("translation-blocking", 1),
    flag("request-redirect", 2),
    flag("completion-redirect", 3),
    flag("upstream-forwarding", 4),
    flag("egress-control", 5),
    flag("direct-translated", 6),
];
pub(super) const ACS: &[Row] = &[ro("CAP", 4, 2, ACS_BITS), rw("CTRL", 6, 2, ACS_BITS)];

pub(super) const ARI: &[Row] = &[
    ro("CAP", 4, 2, &[flag("mfvc-groups", 0), flag("acs-groups", 1), bits("next", 8, 8)]),
    rw("CTRL", 6, 2, &[flag("mfvc-groups", 0), flag("acs-groups", 1), bits("group", 4, 3)]),
];

pub(super) const ATS: &[Row] = &[
    ro("CAP", 4, 2, &[bits("queue-depth", 0, 5), flag("page-aligned", 5)]),
    rw("CTRL", 6, 2, &[bits("smallest-unit", 0, 5), flag("enable", 15)]),
];

pub(super) const SRIOV: &[Row] = &[
    ro("CAP", 0x04, 4, &[flag("migration", 0), flag("ari-preserved", 1), bits("message", 21, 11)]),
    rw(
        "CTRL",
        0x08,
        2,
        &[
            flag("vf-enable", 0),
            flag("migration", 1),
            flag("migration-interrupt", 2),
            flag("vf-memory-space", 3),
            flag("ari", 4),
        ],
    ),
    w1c("STATUS", 0x0a, 2, &[flag("migration", 0)]),
    ro("INITIAL_VF", 0x0c, 2, &[]),
    ro("TOTAL_VF", 0x0e, 2, &[]),
    rw("NUM_VF", 0x10, 2, &[]),
    ro("FUNC_LINK", 0x12, 1, &[]),
    ro("VF_OFFSET", 0x14, 2, &[]),
    ro("VF_STRIDE", 0x16, 2, &[]),
    ro("VF_DID", 0x1a, 2, &[]),
    ro("SUP_PGSIZE", 0x1c, 4, &[]),
    rw("SYS_PGSIZE", 0x20, 4, &[]),
    rw("BAR_0", 0x24, 4, &[]),
    rw("BAR_1", 0x28, 4, &[]),
    rw("BAR_2", 0x2c, 4, &[]),
    rw("BAR_3", 0x30, 4, &[]),
    rw("BAR_4", 0x34, 4, &[]),
    rw("BAR_5", 0x38, 4, &[]),
];

pub(super) const PRI: &[Row] = &[
    rw("CTRL", 4, 2, &[flag("enable", 0), flag("reset", 1)]),
    w1c("STATUS", 6, 2, &[flag("failure", 0), flag("index", 1), flag("stopped", 8)]),
    ro("MAX_REQ", 8, 4, &[]),
    rw("ALLOC_REQ", 0x0c, 4, &[]),
];

pub(super) const PASID: &[Row] = &[
    ro("CAP", 4, 2, &[flag("execute", 1), flag("privileged", 2), bits("width", 8, 5)]),
    rw("CTRL", 6, 2, &[flag("enable", 0), flag("execute", 1), flag("privileged", 2)]),
];

pub(super) const REBAR: &[Row] = &[
    ro("CAP", 4, 4, &[bits("sizes-1m-to-128t", 4, 28)]),
    rw("CTRL", 8, 4, &[bits("bar", 0, 3), bits("bars", 5, 3), bits("size-log2-1m", 8, 6)]),
];

const LATENCY: &[Bits] = &[bits("value", 0, 10), bits("scale", 10, 3)];
pub(super) const LTR: &[Row] =
    &[rw("MAX_SNOOP_LAT", 4, 2, LATENCY), rw("MAX_NOSNOOP_LAT", 6, 2, LATENCY)];

pub(super) const DPC: &[Row] = &[
    ro(
        "CAP",
        4,
        2,
        &[bits("message", 0, 5), flag("rp-extensions", 5), flag("software-trigger", 7)],
    ),
    rw("CTL", 6, 2, &[bits("trigger", 0, 2), flag("interrupt", 3)]),
    w1c("STATUS", 8, 2, &[flag("triggered", 0), bits("reason", 1, 2), flag("interrupt", 3)]),
    ro("SOURCE_ID", 0x0a, 2, &[]),
];

pub(super) const L1SS: &[Row] = &[
    ro(
        "CAP",
        4,
        4,
        &[
            flag("pcipm-l1.2", 0),
            flag("pcipm-l1.1", 1),
            flag("aspm-l1.2", 2),
            flag("aspm-l1.1", 3),
            flag("l1-substates", 4),
        ],
    ),
    rw(
        "CTL1",
        8,
        4,
        &[flag("pcipm-l1.2", 0), flag("pcipm-l1.1", 1), flag("aspm-l1.2", 2), flag("aspm-l1.1", 3)],
    ),
    rw("CTL2", 0x0c, 4, &[]),
];

const PTM_ROLE: &[Bits] =
    &[flag("requester", 0), flag("responder", 1), flag("root", 2), bits("granularity-ns", 8, 8)];
pub(super) const PTM: &[Row] = &[
    ro("CAP", 4, 4, PTM_ROLE),
    rw("CTRL", 8, 4, &[flag("enable", 0), flag("root", 1), bits("granularity-ns", 8, 8)]),
];

const TPH_TABLE: Values = &[(0, "none"), (1, "in the capability"), (2, "in MSI-X")];
pub(super) const TPH: &[Row] = &[ro(
    "CAP",
    4,
    4,
    &[
        flag("interrupt-vector-mode", 1),
        flag("device-specific-mode", 2),
        names("table", 9, 2, TPH_TABLE),
        bits("last-entry", 16, 11),
    ],
)];

pub(super) const VSEC: &[Row] =
    &[ro("HEADER", 4, 4, &[bits("id", 0, 16), bits("revision", 16, 4), bits("length", 20, 12)])];

pub(super) const DVSEC: &[Row] = &[
    ro("HEADER1", 4, 4, &[bits("vendor", 0, 16), bits("revision", 16, 4), bits("length", 20, 12)]),
    ro("HEADER2", 8, 2, &[bits("id", 0, 16)]),
];

pub(super) const SECONDARY: &[Row] = &[
    rw("LNKCTL3", 4, 4, &[flag("equalize", 0), flag("equalization-interrupt", 1)]),
    w1c("LANE_ERROR", 8, 4, &[]),
];

pub(super) const DATA_LINK: &[Row] = &[
    ro("CAP", 4, 4, &[bits("features", 0, 23), flag("exchange", 31)]),
    ro("STATUS", 8, 4, &[bits("partner-features", 0, 23), flag("valid", 31)]),
];

const DOE_CTRL: &[Bits] = &[flag("abort", 0), flag("interrupt", 1), flag("go", 31)];
const DOE_STATUS: &[Bits] =
    &[flag("busy", 0), flag("interrupt", 1), flag("error", 2), flag("ready", 31)];
/// Data object exchange. A read of the mailbox takes nothing; a write to it does.
pub(super) const DOE: &[Row] = &[
    ro("CAP", 4, 4, &[flag("interrupt", 0), bits("message", 1, 11)]),
    rw("CTRL", 8, 4, DOE_CTRL),
    ro("STATUS", 0x0c, 4, DOE_STATUS),
];
