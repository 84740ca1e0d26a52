//! The descriptor of I/OAT: 64 bytes, little endian, each with the address of the next.

use crate::queue::LastDone;

/// Words of a descriptor: size and control, source, destination, next; the other four are
/// software's.
pub(super) type Descriptor = [u64; 8];

/// The word that holds the address of the next descriptor.
pub(super) const NEXT: usize = 3;
/// The first word that the device does not look at.
pub(super) const SOFTWARE: usize = 4;

/// Control: interrupt when done.
pub(super) const INTERRUPT: u32 = 1 << 0;
/// Control: write the completion word when done.
pub(super) const COMPLETION: u32 = 1 << 3;
/// Control: nothing after it begins before it is done.
pub(super) const FENCE: u32 = 1 << 4;
/// Control, bits 31:24: copy from the source address.
pub(super) const OP_COPY: u32 = 0x00 << 24;
/// Control, bits 31:24: fill with the 8 bytes that lie where a copy has its source address.
pub(super) const OP_FILL: u32 = 0x01 << 24;

/// CHANSTS and completion word: the bits of a descriptor's address.
const ADDRESS: u64 = !0x3f;

/// The words of a descriptor before the address of the next: `len` is at most 2^XFERCAP, and
/// that 2^31; `source` an address or the pattern of a fill, the least significant byte first.
#[inline(always)]
pub(super) fn words(len: u64, control: u32, source: u64, target: u64) -> [u64; NEXT] {
    debug_assert!(len <= 1 << 31);
    [u64::from(control) << 32 | len, source, target]
}

/// The first word of a descriptor, with the fence besides its control bits.
#[inline]
pub(super) fn fenced(first: u64) -> u64 {
    first | u64::from(FENCE) << 32
}

/// The address in a completion word, or CHANSTS, of the descriptor that was done last; 0 for none.
/// It is the device's, and may be anything.
#[inline(always)]
pub(super) fn last_address(word: u64) -> u64 {
    word & ADDRESS
}

/// What a completion word, or CHANSTS, says.
#[inline]
pub(super) fn last_done(word: u64) -> LastDone {
    match last_address(word) {
        0 => LastDone::None,
        address => LastDone::Address(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::Coherent;

    #[test]
    fn fields_lie_where_the_datasheet_has_them() {
        let control = OP_FILL | COMPLETION | INTERRUPT;
        let first = words(0x0010_0000, control, 0x1112_1314_1516_1718, 0x2122_2324_2526_2728);
        let bytes: Vec<u8> = first.into_iter().flat_map(u64::to_le_bytes).collect();
        assert_eq!((Coherent::<Descriptor>::STRIDE, bytes.len(), NEXT * 8), (64, 24, 24));
        assert_eq!(bytes[0..4], [0x00, 0x00, 0x10, 0x00], "size");
        assert_eq!(bytes[4..8], [0x09, 0x00, 0x00, 0x01], "control");
        assert_eq!(bytes[8..16], [0x18, 0x17, 0x16, 0x15, 0x14, 0x13, 0x12, 0x11], "source");
        assert_eq!(bytes[16..24], [0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21], "destination");
        assert_eq!(fenced(first[0]).to_le_bytes()[4..8], [0x19, 0x00, 0x00, 0x01], "fence");
        assert_eq!(SOFTWARE * 8, 32);
    }

    #[test]
    fn the_completion_word_is_an_address_and_a_state() {
        assert_eq!(last_done(0), LastDone::None);
        assert_eq!(last_done(0x3), LastDone::None);
        assert_eq!(last_done(0x1041), LastDone::Address(0x1040));
        assert_eq!(last_done(u64::MAX), LastDone::Address(0xffff_ffff_ffff_ffc0));
    }
}
