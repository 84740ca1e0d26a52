//! How a region access becomes accesses of the bus.

use std::ops::Range;

use vfio_dma::backend::Region;

/// Cuts `[offset, offset + len)` into accesses that a bus can carry, as ranges of its bytes.
///
/// Each is a power of two in length and naturally aligned: at most 8 bytes, and at most 4
/// in configuration space, which has no longer accesses. The order is ascending.
pub(crate) fn pieces(
    region: Region,
    offset: u64,
    len: usize,
) -> impl Iterator<Item = Range<usize>> {
    let widest: u64 = if region == Region::Config { 4 } else { 8 };
    let mut start = 0;
    std::iter::from_fn(move || {
        let left = (len - start) as u64;
        if left == 0 {
            return None;
        }
        let at = offset + start as u64;
        let aligned = if at == 0 { widest } else { 1 << at.trailing_zeros().min(3) };
        let longest = 1 << left.ilog2().min(3);
        let piece = start..start + widest.min(aligned).min(longest) as usize;
        start = piece.end;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(region: Region, offset: u64, len: usize) -> Vec<usize> {
        pieces(region, offset, len).map(|piece| piece.len()).collect()
    }

    #[test]
    fn legal_accesses_stay_whole() {
        for (offset, len) in [(0, 8), (8, 8), (4, 4), (6, 2), (7, 1)] {
            assert_eq!(lengths(Region::Bar(0), offset, len), [len]);
        }
        assert_eq!(lengths(Region::Config, 8, 8), [4, 4]);
    }

    #[test]
    fn others_are_cut_at_natural_boundaries() {
        assert_eq!(lengths(Region::Bar(0), 1, 16), [1, 2, 4, 8, 1]);
        assert_eq!(lengths(Region::Bar(0), 4, 8), [4, 4]);
        assert_eq!(lengths(Region::Bar(0), 0, 7), [4, 2, 1]);
        assert_eq!(lengths(Region::Config, 2, 12), [2, 4, 4, 2]);
        assert_eq!(lengths(Region::Bar(2), 0, 0), [0; 0]);
    }

    #[test]
    fn pieces_cover_the_access_exactly() {
        for offset in 0..17 {
            for len in 0..40 {
                let mut at = 0;
                for piece in pieces(Region::Bar(0), offset, len) {
                    assert_eq!(piece.start, at);
                    assert!((offset + piece.start as u64).is_multiple_of(piece.len() as u64));
                    at = piece.end;
                }
                assert_eq!(at, len);
            }
        }
    }
}
