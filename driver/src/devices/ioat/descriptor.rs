//! The descriptor of I/OAT: 64 bytes, little endian, each with the address of the next.

use crate::dma::Iova;
use crate::ring::{Format, LastDone};

/// Control: interrupt when done.
pub(super) const INTERRUPT: u32 = 1 << 0;
/// Control: write the completion word when done.
pub(super) const COMPLETION: u32 = 1 << 3;
/// Control, bits 31:24: copy from the source address.
pub(super) const OP_COPY: u32 = 0x00 << 24;
/// Control, bits 31:24: fill with the 8 bytes that lie where a copy has its source address.
pub(super) const OP_FILL: u32 = 0x01 << 24;

/// CHANSTS and completion word: the bits of a descriptor's address.
const ADDRESS: u64 = !0x3f;

/// What one descriptor asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Command {
    /// Length in bytes, at most 2^XFERCAP.
    pub(super) len: u32,
    /// Operation and flags.
    pub(super) control: u32,
    /// Source address, or the pattern of a fill, the least significant byte first.
    pub(super) source: u64,
    /// Destination address.
    pub(super) target: u64,
}

/// The format of I/OAT's ring.
#[derive(Debug)]
pub(super) struct Descriptor;

impl Format for Descriptor {
    type Command = Command;
    /// Size and control, source, destination, next; the other 32 bytes are software's.
    type Words = [u64; 4];
    const SIZE: usize = 64;

    #[inline]
    fn encode(command: &Command, next: Iova) -> [u64; 4] {
        let first = u64::from(command.control) << 32 | u64::from(command.len);
        [first, command.source, command.target, next.0]
    }

    #[inline]
    fn last_done(word: u64) -> LastDone {
        match word & ADDRESS {
            0 => LastDone::None,
            address => LastDone::Address(address),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_datasheet_has_them() {
        let command = Command {
            len: 0x0010_0000,
            control: OP_FILL | COMPLETION | INTERRUPT,
            source: 0x1112_1314_1516_1718,
            target: 0x2122_2324_2526_2728,
        };
        let words = Descriptor::encode(&command, Iova(0x3132_3334_3536_3700));
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        assert_eq!((Descriptor::SIZE, bytes.len()), (64, 32));
        assert_eq!(bytes[0..4], [0x00, 0x00, 0x10, 0x00], "size");
        assert_eq!(bytes[4..8], [0x09, 0x00, 0x00, 0x01], "control");
        assert_eq!(bytes[8..16], [0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11], "source");
        assert_eq!(bytes[16..24], [0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21], "destination");
        assert_eq!(bytes[24..32], [0x00, 0x37, 0x36, 0x35, 0x34, 0x33, 0x32, 0x31], "next");
    }

    #[test]
    fn the_completion_word_is_an_address_and_a_state() {
        assert_eq!(Descriptor::last_done(0), LastDone::None);
        assert_eq!(Descriptor::last_done(0x3), LastDone::None);
        assert_eq!(Descriptor::last_done(0x1041), LastDone::Address(0x1040));
        assert_eq!(Descriptor::last_done(u64::MAX), LastDone::Address(0xffff_ffff_ffff_ffc0));
    }
}
