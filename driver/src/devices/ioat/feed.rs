//! The pieces of a transfer as descriptors: the loop in which submission spends its time.
//!
//! Almost every piece of a long transfer is a whole segment of one of its lists at least.
//! Runs of those are filled by loops that keep what they need in registers; what begins,
//! ends or interrupts a run is filled by [`Walk::next`], which knows every case.

use super::descriptor::{Command, Descriptor};
use crate::dma::{Piece, Segment, SgLimits, Walk};
use crate::ring::Reservation;

/// A pattern as it goes on after `done` bytes.
pub(super) fn turned(pattern: u64, done: u64) -> u64 {
    // The least significant byte is the first in memory.
    pattern.rotate_right((done % 8) as u32 * 8)
}

/// Fills a batch with the pieces of a transfer, as far as it goes; returns what is left.
///
/// `quarter` is a number of slots less one: every so many descriptors, and the last, have
/// the bits of `tell` besides `control`. `source_word` gives the source word of a piece,
/// from the bytes that were left before it.
#[inline]
pub(super) fn fill_ring(
    mut batch: Reservation<'_, Descriptor>,
    (source, target): (&[Segment], &[Segment]),
    limits: &SgLimits,
    (mut walk, mut left): (Walk, u64),
    quarter: u64,
    (control, tell): (u32, u32),
    source_word: impl Fn(&Piece, u64) -> u64,
) -> (Walk, u64) {
    let command = |piece: Piece, left: &mut u64, control| {
        let source = source_word(&piece, *left);
        *left -= piece.len;
        // A length is at most 2^31, by the limits.
        Command { len: piece.len as u32, control, source, target: piece.target.0 }
    };
    while !batch.is_full() {
        let Some(piece) = walk.next(source, target, limits) else { break };
        let told = piece.len == left || batch.position() & quarter == quarter;
        let told = if told { control | tell } else { control };
        if batch.fill(&command(piece, &mut left, told)).is_err() || left == 0 {
            break;
        }
        // Until the next quarter only the last one tells.
        let most = quarter - (batch.position() & quarter);
        let before = left;
        let silent = |piece| command(piece, &mut left, control);
        let passed = if walk.is_between() {
            batch.fill_from(most, walk.whole(source, target, limits).map(silent))
        } else if walk.is_in_target() {
            batch.fill_from(most, walk.gathered(source, limits).map(silent))
        } else {
            batch.fill_from(most, walk.scattered(target, limits).map(silent))
        };
        walk.pass(passed, before - left);
        if passed > 0 {
            continue;
        }
        // No run begins here.
        let rest = std::iter::from_fn(|| {
            let piece = walk.next(source, target, limits)?;
            let last = if piece.len == left { tell } else { 0 };
            Some(command(piece, &mut left, control | last))
        });
        batch.fill_from(most, rest);
    }
    batch.commit();
    (walk, left)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::descriptor::{COMPLETION, OP_COPY};
    use super::*;
    use crate::dma::{Iova, SgList};
    use crate::ring::{Format, Ring};
    use crate::testing::buffer;

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
        /// Every shape and ring, streamed through in batches, against the pieces one by one.
        #[test]
        fn descriptors_are_the_pieces_of_the_walk(
            (from, to, total) in (lens(), lens(), 1usize..10_000),
            log in 1u32..8,
            max_len in prop_oneof![Just(64), Just(1 << 20), 20u64..300],
            batches in proptest::collection::vec(0u32..100, 1..20),
        ) {
            let size = 1 << log;
            let (memory, host) = buffer(Ring::<Descriptor>::bytes(size));
            let mut ring = Ring::<Descriptor>::new(memory, size).unwrap();
            let (source, target) = (list(1 << 20, &from, total), list(1 << 40, &to, total));
            let (sources, targets) = (source.segments(), target.segments());
            let limits = SgLimits { max_len, ..SgLimits::default() };
            let quarter = u64::from(size / 4).max(1) - 1;
            let (mut walk, mut expected) = (Walk::default(), Walk::default());
            let (mut left, mut expected_left) = (total as u64, total as u64);
            for (n, &batch) in batches.iter().cycle().enumerate().take(30_000) {
                if left == 0 {
                    break;
                }
                // Every size of batch sometimes, and never none for ever.
                let room = ring.free().min(if n % 2 == 0 { batch } else { 7 });
                let reserved = ring.reserve(room).unwrap();
                let begin = reserved.position();
                let flags = (OP_COPY, COMPLETION);
                (walk, left) = fill_ring(
                    reserved, (sources, targets), &limits, (walk, left), quarter, flags,
                    |piece, before| piece.source.0 ^ before << 48,
                );
                prop_assert!(left == 0 || ring.filled() == begin + u64::from(room));
                for position in begin..ring.filled() {
                    let piece = expected.next(sources, targets, &limits).unwrap();
                    let before = expected_left;
                    expected_left -= piece.len;
                    let tells = expected_left == 0 || position & quarter == quarter;
                    let command = Command {
                        len: piece.len as u32,
                        control: OP_COPY | if tells { COMPLETION } else { 0 },
                        source: piece.source.0 ^ before << 48,
                        target: piece.target.0,
                    };
                    let next = ring.address(position + 1);
                    for (word, value) in Descriptor::encode(&command, next).into_iter().enumerate() {
                        let at = ring.address(position).0 + 8 * word as u64;
                        prop_assert_eq!(host.load(at), Some(value), "{} word {}", position, word);
                    }
                }
                prop_assert_eq!(left, expected_left);
                ring.publish();
                let last = ring.address(ring.filled().wrapping_sub(1)).0;
                if ring.filled() > 0 {
                    host.store(ring.completion_address().0, last).unwrap();
                    ring.reap().unwrap();
                }
            }
            prop_assert_eq!(left, 0);
            prop_assert_eq!(expected.next(sources, targets, &limits), None);
        }
    }

    #[test]
    fn a_pattern_goes_on_where_it_was_left() {
        assert_eq!(turned(0x0807_0605_0403_0201, 0), 0x0807_0605_0403_0201);
        assert_eq!(turned(0x0807_0605_0403_0201, 11), 0x0302_0108_0706_0504);
    }
}
