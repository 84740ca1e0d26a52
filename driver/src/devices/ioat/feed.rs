//! The pieces of a transfer as descriptors: the loop in which submission spends its time.
//!
//! Almost every piece of a long transfer is a whole segment of one of its lists at least.
//! Runs of those are filled by loops that keep what they need in registers; what interrupts a
//! run is filled by [`Walk::next`], which knows every case.

use super::descriptor::{NEXT, OP_COPY, words};
use super::ring::Ring;
use crate::dma::{DmaLimits, Iova, Piece, Segment, SgList, Walk};

/// A pattern as it goes on after `done` bytes.
pub(super) fn rotated(pattern: u64, done: u64) -> u64 {
    // The least significant byte is the first in memory.
    pattern.rotate_right((done % 8) as u32 * 8)
}

/// How far a transfer is in the ring.
pub(super) struct Passed {
    /// Where the rest begins, and its bytes.
    pub(super) walk: Walk,
    pub(super) left: u64,
}

/// Fills a ring with the first pieces of a copy, up to the end of the ring's memory or the next
/// marker, when each of them is likely to be a whole segment; `None` when it is not.
// By far the most common, and the cheapest: it needs no walk.
#[inline(always)]
pub(super) fn fill_first(
    ring: &mut Ring,
    source: &SgList,
    target: &SgList,
    limits: &DmaLimits,
) -> Option<Passed> {
    let (sources, targets) = (source.segments(), target.segments());
    if sources.len() != targets.len() || source.longest() > limits.max_run() {
        return fill_from_one(ring, source, target, limits);
    }
    let mut run = ring.run();
    let passed = run.fill_pairs(sources, targets, |len, from, to| words(len, OP_COPY, from, to));
    ring.take_run(passed);
    Some(Passed { walk: Walk::behind(passed), left: bytes(&sources[passed..]) })
}

/// As [`fill_first`], of a copy with a single segment on one side.
#[inline(never)]
fn fill_from_one(
    ring: &mut Ring,
    source: &SgList,
    target: &SgList,
    limits: &DmaLimits,
) -> Option<Passed> {
    let mut run = ring.run();
    let is_short = |list: &SgList| list.longest() <= limits.max_run();
    let passed = match (source.segments(), target.segments()) {
        (sources, [one]) if is_short(source) => {
            let mut at = one.iova.0;
            let passed = run.fill(sources, |&Segment { iova, len }| {
                let words = words(len as u64, OP_COPY, iova.0, at);
                // Past the last segment this may be the end of the address space.
                at = at.wrapping_add(len as u64);
                Some(words)
            });
            let left = bytes(&sources[passed..]);
            Passed { walk: Walk::gathered(passed, one, source.len() - left), left }
        }
        ([one], targets) if is_short(target) => {
            let mut at = one.iova.0;
            let passed = run.fill(targets, |&Segment { iova, len }| {
                let words = words(len as u64, OP_COPY, at, iova.0);
                at = at.wrapping_add(len as u64);
                Some(words)
            });
            let left = bytes(&targets[passed..]);
            Passed { walk: Walk::scattered(passed, one, source.len() - left), left }
        }
        _ => return None,
    };
    let filled = run.filled();
    ring.take_run(filled);
    Some(passed)
}

fn bytes(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| segment.len as u64).sum()
}

/// Fills a ring with the pieces of a transfer, as far as there is room; returns what is left.
///
/// `control` is the operation; `source_word` gives the source word of a piece, from its source
/// address and the bytes that were left before it.
#[inline]
pub(super) fn fill_ring(
    ring: &mut Ring,
    (source_list, target_list): (&SgList, &SgList),
    limits: &DmaLimits,
    (mut walk, mut left): (Walk, u64),
    control: u32,
    source_word: impl Fn(u64, u64) -> u64,
) -> (Walk, u64) {
    let (source, target) = (source_list.segments(), target_list.segments());
    let max_len = limits.max_run();
    let is_alike = source.len() > 1 && target.len() > 1 && source_list.longest() <= max_len;
    let descriptor = |Piece { source, target, len }: Piece, left: &mut u64| -> [u64; NEXT] {
        let source = source_word(source.0, *left);
        *left -= len;
        words(len, control, source, target.0)
    };
    while left > 0 {
        let mut run = ring.run();
        while run.left() > 0 && left > 0 {
            if is_alike && walk.is_between() {
                let ((sources, targets), mut at) = (walk.ahead(source, target), left);
                let passed = run.fill_pairs(sources, targets, |len, source, target| {
                    let (source, target) = (Iova(source), Iova(target));
                    descriptor(Piece { source, target, len }, &mut at)
                });
                walk.pass(passed, 0);
                left -= bytes(&sources[..passed]);
                if run.left() == 0 || left == 0 {
                    break;
                }
            }
            let Some(piece) = walk.next(source, target, limits) else { break };
            run.fill_one(descriptor(piece, &mut left));
            if run.left() == 0 || walk.is_between() {
                continue;
            }
            // Whole segments of the one list that lie inside the current one of the other.
            let ((sources, targets), before) = (walk.ahead(source, target), left);
            let is_in_target = walk.in_target().1 > 0;
            let (mut at, mut inside) =
                if is_in_target { walk.in_target() } else { walk.in_source() };
            let mut other = |len: u64| {
                let fits = len <= max_len && len <= inside;
                let here = at;
                (at, inside) = (at.wrapping_add(len), inside.wrapping_sub(len));
                fits.then_some(Iova(here))
            };
            let passed = if is_in_target {
                run.fill(sources, |Segment { iova: source, len }| {
                    let (source, len) = (*source, *len as u64);
                    let target = other(len)?;
                    Some(descriptor(Piece { source, target, len }, &mut left))
                })
            } else {
                run.fill(targets, |Segment { iova: target, len }| {
                    let (target, len) = (*target, *len as u64);
                    let source = other(len)?;
                    Some(descriptor(Piece { source, target, len }, &mut left))
                })
            };
            if passed > 0 {
                walk.pass(passed, before - left);
                continue;
            }
            // No run begins here.
            while run.left() > 0
                && let Some(piece) = walk.next(source, target, limits)
            {
                run.fill_one(descriptor(piece, &mut left));
            }
        }
        let filled = run.filled();
        ring.take_run(filled);
        if filled == 0 {
            break;
        }
    }
    (walk, left)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::descriptor::{COMPLETION, FENCE, SOFTWARE};
    use super::*;
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
            first in any::<bool>(),
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
            // The source words of a fill differ with what was left before.
            let tag = |before: u64| if first { 0 } else { before << 48 };
            if first && let Some(passed) = fill_first(&mut ring, &source, &target, &limits) {
                (walk, left) = (passed.walk, passed.left);
            }
            for &done in dones.iter().cycle().take(30_000) {
                (walk, left) = fill_ring(
                    &mut ring, (&source, &target), &limits, (walk, left), OP_COPY,
                    |from, before| from ^ tag(before),
                );
                prop_assert!(left == 0 || ring.free() == 0);
                ring.publish(0);
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
                    prop_assert_eq!(word(1), piece.source.0 ^ tag(before));
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
