//! What particular controllers do otherwise than the specification has it.

use std::time::Duration;

use super::super::Identity;

/// Where a controller departs from the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Quirks {
    /// How long CSTS must not be looked at after CC.EN was changed.
    pub(super) ready_delay: Duration,
    /// The most pieces of data of one command.
    pub(super) max_pieces: Option<u64>,
    /// CSTS.SHST never says that a shutdown is complete.
    pub(super) shutdown_is_silent: bool,
}

/// Looking at CSTS sooner makes these fail (Linux, drivers/nvme/host/pci.c: the delay before
/// RDY is checked).
const DELAYED: &[(u16, u16)] = &[
    (0x144d, 0xa821),
    (0x144d, 0xa822),
    (0x144d, 0xa826),
    (0x1c58, 0x0003),
    (0x1c58, 0x0023),
    (0x1c5f, 0x0540),
];

/// QEMU's device takes no more pieces than IOV_MAX in a command (hw/nvme/ctrl.c): by its own
/// id and by the one that `use-intel-id` gives it.
const QEMU: &[(u16, u16)] = &[(0x1b36, 0x0010), (0x8086, 0x5845)];

/// VMware's device, which reports no shutdown as complete (SPDK, nvme_quirks.c).
const SILENT: &[(u16, u16)] = &[(0x15ad, 0x07f0)];

impl Quirks {
    /// Those of a controller.
    pub(super) fn of(identity: &Identity) -> Quirks {
        let is_in = |list: &[(u16, u16)]| list.contains(&(identity.vendor, identity.device));
        Quirks {
            ready_delay: if is_in(DELAYED) { Duration::from_millis(2300) } else { Duration::ZERO },
            max_pieces: is_in(QEMU).then_some(1024),
            shutdown_is_silent: is_in(SILENT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::ClassCode;

    #[test]
    fn quirks_are_by_both_ids() {
        let of = |vendor, device| {
            Quirks::of(&Identity { vendor, device, class: ClassCode::from_code(0x01_0802) })
        };
        assert_eq!(of(0x1b36, 0x0010).max_pieces, Some(1024));
        assert!(!of(0x144d, 0xa822).ready_delay.is_zero() && of(0x15ad, 0x07f0).shutdown_is_silent);
        assert_eq!(of(0x144d, 0x0010), Quirks::default());
    }
}
