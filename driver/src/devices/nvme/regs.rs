//! The registers of an NVMe controller, in BAR0 (NVM Express Base 1.4, 3.1). All are accessed
//! 32 bits at a time, 64-bit ones low half first: some controllers take no other access.

use std::time::Duration;

use super::NvmeError;
use crate::mmio::{ReadWrite, Reg, WriteOnly};

/// CAP, 64 bits: see [`Cap`].
pub(super) const CAP: u64 = 0x00;
/// VS: major in bits 31:16, minor in 15:8, tertiary in 7:0.
pub(super) const VS: u64 = 0x08;
/// CC: see `CC_*`.
pub(super) const CC: Reg<u32, ReadWrite> = Reg::at(0x14);
/// CSTS: see `CSTS_*`.
pub(super) const CSTS: u64 = 0x1c;
/// AQA: entries of the admin queues less 1, completion in bits 27:16, submission in 11:0.
pub(super) const AQA: Reg<u32, WriteOnly> = Reg::at(0x24);
/// ASQ, 64 bits: where the admin submission queue lies.
pub(super) const ASQ: u64 = 0x28;
/// ACQ, 64 bits: where the admin completion queue lies.
pub(super) const ACQ: u64 = 0x30;
/// CMBLOC: see [`CmbLocation`].
pub(super) const CMBLOC: u64 = 0x38;
/// CMBSZ: see [`CmbSize`].
pub(super) const CMBSZ: u64 = 0x3c;
/// CMBMSC, 64 bits: the address that the controller has its memory buffer at in bits 63:12.
pub(super) const CMBMSC: u64 = 0x50;
/// CMBSTS: see `CMBSTS_*`.
pub(super) const CMBSTS: u64 = 0x58;
/// CMBMSC.CRE: CMBLOC and CMBSZ can be read.
pub(super) const CMBMSC_REGISTERS: u64 = 1;
/// CMBMSC.CMSE: commands can name the memory buffer.
pub(super) const CMBMSC_SPACE: u64 = 1 << 1;
/// CMBSTS.CBAI: the address is none that it could be at.
pub(super) const CMBSTS_INVALID: u32 = 1;
/// The first doorbell.
pub(super) const DOORBELLS: u64 = 0x1000;

/// CC.EN.
pub(super) const CC_ENABLE: u32 = 1;
/// CC.SHN: a normal shutdown.
pub(super) const CC_SHUTDOWN_NORMAL: u32 = 1 << 14;
/// CC.SHN: an abrupt shutdown.
pub(super) const CC_SHUTDOWN_ABRUPT: u32 = 2 << 14;
/// CC.SHN: its bits.
pub(super) const CC_SHUTDOWN_MASK: u32 = 3 << 14;
/// CSTS.RDY.
pub(super) const CSTS_READY: u32 = 1;
/// CSTS.CFS.
pub(super) const CSTS_FATAL: u32 = 1 << 1;
/// CSTS.SHST: its bits.
pub(super) const CSTS_SHUTDOWN_MASK: u32 = 3 << 2;
/// CSTS.SHST: shutdown is complete.
pub(super) const CSTS_SHUTDOWN_DONE: u32 = 2 << 2;

/// log2 of the bytes of a submission entry, as CC.IOSQES wants it.
const SUBMISSION_LOG: u32 = 6;
/// log2 of the bytes of a completion entry, as CC.IOCQES wants it.
const COMPLETION_LOG: u32 = 4;

/// The largest page that is taken as the smallest of a controller, in bytes: that of the hosts with
/// the largest pages. A list of each command takes at least one.
const MAX_PAGE: u64 = 64 << 10;

/// What CAP says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cap(pub(super) u64);

impl Cap {
    /// The most entries of a queue: MQES is that less 1.
    pub(super) fn max_entries(self) -> u32 {
        (self.0 & 0xffff) as u32 + 1
    }

    /// The longest that RDY takes to follow EN: TO, in units of 500 ms; at least one of them.
    pub(super) fn timeout(self) -> Duration {
        Duration::from_millis(500 * (self.0 >> 24 & 0xff).max(1))
    }

    /// Bytes from one doorbell to the next: 4 << DSTRD.
    pub(super) fn doorbell_stride(self) -> u64 {
        4 << (self.0 >> 32 & 0xf)
    }

    /// Whether the NVM command set is offered: CSS, bit 37.
    pub(super) fn has_nvm_commands(self) -> bool {
        self.0 >> 37 & 1 != 0
    }

    /// The smallest page in bytes: 2^(12 + MPSMIN).
    pub(super) fn min_page(self) -> u64 {
        1 << (12 + (self.0 >> 48 & 0xf))
    }

    /// The largest page in bytes: 2^(12 + MPSMAX).
    pub(super) fn max_page(self) -> u64 {
        1 << (12 + (self.0 >> 52 & 0xf))
    }

    /// Whether the controller has a memory buffer of its own: CMBS, bit 57.
    pub(super) fn has_memory_buffer(self) -> bool {
        self.0 >> 57 & 1 != 0
    }

    /// Refuses what no controller can mean.
    pub(super) fn check(self, location: &str) -> Result<(), NvmeError> {
        let nonsense = |expected| {
            let location = location.to_string();
            Err(NvmeError::Nonsense { location, what: "CAP", value: self.0, expected })
        };
        if self.max_entries() < 2 {
            return nonsense("queues of at least 2 entries");
        }
        if self.min_page() > self.max_page() {
            return nonsense("a smallest page that is not above the largest");
        }
        if self.min_page() > MAX_PAGE {
            return nonsense("a smallest page of at most 64 KiB");
        }
        if !self.has_nvm_commands() {
            return nonsense("the NVM command set");
        }
        Ok(())
    }

    /// The page that the controller is set to: the host's, as far as it can.
    pub(super) fn page(self, host: u64) -> u64 {
        host.clamp(self.min_page(), self.max_page())
    }
}

/// What CMBLOC says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CmbLocation(pub(super) u32);

impl CmbLocation {
    /// The BAR: BIR, bits 2:0.
    pub(super) fn bar(self) -> u8 {
        self.0 as u8 & 7
    }

    /// Bytes from the begin of the BAR: OFST, bits 31:12, in the units of CMBSZ.
    pub(super) fn offset(self, size: CmbSize) -> Option<u64> {
        u64::from(self.0 >> 12).checked_mul(size.unit()?)
    }
}

/// What CMBSZ says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CmbSize(pub(super) u32);

impl CmbSize {
    /// Bytes of a unit: 4 KiB << 4 * SZU, bits 11:8; `None` for what is reserved.
    fn unit(self) -> Option<u64> {
        match self.0 >> 8 & 0xf {
            unit @ 0..=6 => Some(4096 << (4 * unit)),
            _ => None,
        }
    }

    /// Bytes of the buffer: SZ, bits 31:12, in units; 0 for nonsense.
    pub(super) fn bytes(self) -> u64 {
        self.unit().and_then(|unit| unit.checked_mul((self.0 >> 12).into())).unwrap_or(0)
    }

    /// Whether submission queues can lie in it: SQS, bit 0.
    pub(super) fn takes_submissions(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether completion queues can lie in it: CQS, bit 1.
    pub(super) fn takes_completions(self) -> bool {
        self.0 & 2 != 0
    }
}

/// CC for a page of so many bytes, with EN.
pub(super) fn enable(page: u64) -> u32 {
    COMPLETION_LOG << 20 | SUBMISSION_LOG << 16 | (page.ilog2() - 12) << 7 | CC_ENABLE
}

/// Offsets of the doorbells of a queue: that of its submission tail and of its completion
/// head (3.1.16, 3.1.17).
pub(super) fn doorbells(queue: u16, stride: u64) -> (u64, u64) {
    let first = DOORBELLS + 2 * u64::from(queue) * stride;
    (first, first + stride)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_those_of_the_specification() {
        assert_eq!([CC.offset(), AQA.offset()], [0x14, 0x24]);
        assert_eq!([CAP, VS, CSTS, ASQ, ACQ, DOORBELLS], [0, 8, 0x1c, 0x28, 0x30, 0x1000]);
        assert_eq!(doorbells(0, 4), (0x1000, 0x1004));
        assert_eq!(doorbells(3, 4), (0x1018, 0x101c));
        assert_eq!(doorbells(2, 64), (0x1100, 0x1140));
    }

    #[test]
    fn capabilities_are_read_where_they_lie() {
        // What QEMU 11.1's device reads.
        let cap = Cap(0x0040_0820_0f01_07ff);
        assert_eq!((cap.max_entries(), cap.timeout()), (0x800, Duration::from_millis(7500)));
        assert_eq!((cap.doorbell_stride(), cap.min_page(), cap.max_page()), (4, 4096, 65536));
        assert!(cap.has_nvm_commands() && !cap.has_memory_buffer());
        assert_eq!(cap.check("x").map_err(|e| e.to_string()), Ok(()));
        assert_eq!((cap.page(4096), cap.page(65536), cap.page(1 << 21)), (4096, 65536, 65536));
        assert_eq!(Cap(0x0010_0820_0f01_07ff | 1 << 48).page(4096), 8192);
        for bad in [
            0x0040_0820_0f01_0000,
            0x0040_0800_0f01_07ff,
            0x0001_0020_0f01_07ff,
            0x00f5_0820_0f01_07ff,
        ] {
            assert!(Cap(bad).check("x").is_err(), "{bad:#x}");
        }
    }

    #[test]
    fn the_memory_buffer_is_read_where_it_lies() {
        // What QEMU 11.1's device reads with 16 MiB.
        let (lies, size) = (CmbLocation(0x62), CmbSize(0x1_021d));
        assert_eq!((lies.bar(), lies.offset(size), size.bytes()), (2, Some(0), 16 << 20));
        assert!(size.takes_submissions() && !size.takes_completions());
        let (lies, size) = (CmbLocation(0x3004), CmbSize(0x5003));
        assert_eq!((lies.bar(), lies.offset(size), size.bytes()), (4, Some(3 << 12), 5 << 12));
        assert!(size.takes_completions());
        let size = CmbSize(0x1701);
        assert_eq!((lies.offset(size), size.bytes()), (None, 0));
        assert_eq!(CmbSize(0xffff_f601).bytes(), 0xf_ffff << 36);
        assert_eq!([CMBLOC, CMBSZ, CMBMSC, CMBSTS], [0x38, 0x3c, 0x50, 0x58]);
    }

    #[test]
    fn bits_are_those_of_the_specification() {
        assert_eq!(enable(4096), 0x0046_0001);
        assert_eq!(enable(65536), 0x0046_0201);
        assert_eq!(
            [CC_SHUTDOWN_NORMAL, CC_SHUTDOWN_ABRUPT, CC_SHUTDOWN_MASK],
            [0x4000, 0x8000, 0xc000]
        );
        assert_eq!([CSTS_READY, CSTS_FATAL, CSTS_SHUTDOWN_MASK, CSTS_SHUTDOWN_DONE], [1, 2, 12, 8]);
    }
}
