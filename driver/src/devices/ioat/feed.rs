//! The pieces of a transfer as descriptors: the loop in which submission spends its time.
//!
//! Almost every piece of a long transfer is a whole segment of one of its lists at least.
//! Runs of those are filled by loops that keep what they need in registers; what interrupts a
//! run is filled by [`Walk::next`], which knows every case.

use super::descriptor::{NEXT, words};
use super::ring::Ring;
use crate::dma::{DmaLimits, Piece, Segment, Walk};

/// A pattern as it goes on after `done` bytes.
pub(super) fn rotated(pattern: u64, done: u64) -> u64 {
    // The least significant byte is the first in memory.
    pattern.rotate_right((done % 8) as u32 * 8)
}

/// Fills a ring with the pieces of a transfer, as far as there is room; returns what is left.
///
/// `control` is the operation; `source_word` gives the source word of a piece, from the bytes
/// that were left before it.
#[inline]
pub(super) fn fill_ring(
    ring: &mut Ring,
    (source, target): (&[Segment], &[Segment]),
    limits: &DmaLimits,
    (mut walk, mut left): (Walk, u64),
    control: u32,
    source_word: impl Fn(&Piece, u64) -> u64,
) -> (Walk, u64) {
    let descriptor = |piece: Piece, left: &mut u64| -> [u64; NEXT] {
        let source = source_word(&piece, *left);
        *left -= piece.len;
        // A length is at most 2^31, by the limits.
        words(piece.len as u32, control, source, piece.target.0)
    };
    let both_scattered = source.len() > 1 && target.len() > 1;
    while left > 0 {
        let mut room = ring.room();
        if room == 0 {
            break;
        }
        if both_scattered && walk.is_between() {
            let before = left;
            let next = |piece| descriptor(piece, &mut left);
            let passed = ring.fill(room, walk.whole(source, target, limits).map(next));
            walk.pass(passed.into(), before - left);
            if left == 0 {
                break;
            }
            room -= passed;
            if room == 0 {
                continue;
            }
        }
        let Some(piece) = walk.next(source, target, limits) else { break };
        ring.fill_one(descriptor(piece, &mut left));
        if left == 0 {
            break;
        }
        if walk.is_between() {
            continue;
        }
        let (room, before) = (room - 1, left);
        let next = |piece| descriptor(piece, &mut left);
        let passed = if walk.is_in_target() {
            ring.fill(room, walk.gathered(source, limits).map(next))
        } else {
            ring.fill(room, walk.scattered(target, limits).map(next))
        };
        if passed > 0 {
            walk.pass(passed.into(), before - left);
        } else if room > 0 {
            // No run begins here.
            let rest = std::iter::from_fn(|| {
                Some(descriptor(walk.next(source, target, limits)?, &mut left))
            });
            ring.fill(room, rest);
        }
    }
    (walk, left)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::descriptor::{COMPLETION, FENCE, OP_COPY, SOFTWARE};
    use super::*;
    use crate::dma::{Iova, SgList};
    use crate::testing::allocator;

    /// A list of `total` bytes in segments of these lengths, over and over.
    fn list(base: u64, lens: &[usize], total: usize) -> SgList {
        let (mut left, mut at) = (total, base);
        let segments = lens.iter().cycle().map_while(|&len| {
            let len = len.min(left);
            let segment = Segment { iova: Iova(at), len };
            (left, at) = (left - len, at + len as u64 + 64);
            (len > 0).then_some(segment)
        });
        SgList::new(segments).unwrap()
    }

    fn lens() -> impl Strategy<Value = Vec<usize>> {
        prop_oneof![
            Just(vec![64]),
            Just(vec![10_000]),
            proptest::collection::vec(prop_oneof![Just(64), 1usize..200], 1..6),
        ]
    }

    proptest! {
        /// Every shape and ring, streamed through in parts, against the pieces one by one.
        #[test]
        fn descriptors_are_the_pieces_of_the_walk(
            (from, to, total) in (lens(), lens(), 1usize..10_000),
            size in 4u32..150,
            max_segment in prop_oneof![Just(64), Just(1 << 20), 20u64..300],
            dones in proptest::collection::vec(1u64..100, 1..20),
        ) {
            let (allocator, host) = allocator();
            let mut ring = Ring::new(&allocator, size, false).unwrap();
            ring.restart(0).unwrap();
            let (source, target) = (list(1 << 20, &from, total), list(1 << 40, &to, total));
            let (sources, targets) = (source.segments(), target.segments());
            let limits = DmaLimits { max_segment, ..DmaLimits::default() };
            let (mut walk, mut expected) = (Walk::default(), Walk::default());
            let (mut left, mut expected_left) = (total as u64, total as u64);
            let mut checked = 0;
            for &done in dones.iter().cycle().take(30_000) {
                (walk, left) = fill_ring(
                    &mut ring, (sources, targets), &limits, (walk, left), OP_COPY,
                    |piece, before| piece.source.0 ^ before << 48,
                );
                prop_assert!(left == 0 || ring.free() == 0);
                ring.publish();
                let published = ring.producer().published();
                let mut since_marker = 0;
                let mut markers = Vec::new();
                for position in checked..published {
                    let word = |i: u64| host.load(ring.address(position).0 + 8 * i).unwrap();
                    prop_assert_eq!(word(3), ring.address(position + 1).0, "the chain is closed");
                    let control = (word(0) >> 32) as u32;
                    if control & COMPLETION != 0 {
                        prop_assert!(since_marker > 0, "a marker marks something");
                        prop_assert_eq!(word(1), ring.address(position).0 + 8 * SOFTWARE as u64);
                        prop_assert_eq!((word(0) as u32, word(4)), (8, position + 1));
                        let before = host.load(ring.address(position - 1).0).unwrap();
                        prop_assert!(before >> 32 & u64::from(FENCE) != 0);
                        (since_marker, _) = (0, markers.push(position));
                        continue;
                    }
                    since_marker += 1;
                    prop_assert!(since_marker < (size / 4).max(2));
                    let piece = expected.next(sources, targets, &limits).unwrap();
                    let before = expected_left;
                    expected_left -= piece.len;
                    prop_assert_eq!(control & !FENCE, OP_COPY);
                    prop_assert_eq!(u64::from(word(0) as u32), piece.len);
                    prop_assert_eq!(word(1), piece.source.0 ^ before << 48);
                    prop_assert_eq!(word(2), piece.target.0);
                }
                prop_assert!(markers.last().is_none_or(|last| last + 1 == published));
                checked = published;
                prop_assert_eq!(left, expected_left);
                if left == 0 {
                    break;
                }
                // The device gets some way, by CHANSTS.
                let at = (ring.producer().done() + done).min(published) - 1;
                ring.take_status(ring.address(at).0).unwrap();
            }
            prop_assert_eq!(left, 0);
            prop_assert_eq!(expected.next(sources, targets, &limits), None);
        }
    }

    #[test]
    fn a_pattern_goes_on_where_it_was_left() {
        assert_eq!(rotated(0x0807_0605_0403_0201, 0), 0x0807_0605_0403_0201);
        assert_eq!(rotated(0x0807_0605_0403_0201, 11), 0x0302_0108_0706_0504);
    }
}
