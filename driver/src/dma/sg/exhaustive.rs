//! Every cut of small lists, against all cuts that there could be.

use super::*;

/// Limits of every kind in every combination that is valid, all small.
fn limits(longest: u64) -> Vec<DmaLimits> {
    let powers = [None, Some(1), Some(2), Some(4)];
    let mut all = Vec::new();
    for max_segment in (1..=longest).chain([u64::MAX]) {
        for alignment in [1, 2, 4] {
            for granularity in [1, 2, 4] {
                for boundary in powers.into_iter().chain([Some(8)]) {
                    for virt_boundary in powers {
                        let limits = DmaLimits {
                            max_segment,
                            alignment,
                            granularity,
                            boundary,
                            virt_boundary,
                            ..DmaLimits::default()
                        };
                        if limits.validate().is_ok() {
                            all.push(limits);
                        }
                    }
                }
            }
        }
    }
    all
}

/// Whether a device takes a segment of so many bytes there, byte by byte.
fn takes(limits: &DmaLimits, at: u64, len: u64) -> bool {
    let in_one =
        |last: u64| limits.boundary.is_none_or(|multiple| at / multiple == last / multiple);
    (1..=limits.max_segment).contains(&len)
        && at.is_multiple_of(limits.alignment)
        && len.is_multiple_of(limits.granularity)
        && (at..at + len).all(in_one)
}

/// Whether one segment may end and the next begin there.
fn may_meet(limits: &DmaLimits, end: u64, start: u64) -> bool {
    let multiple = limits.virt_boundary.unwrap_or(1);
    end.is_multiple_of(multiple) && start.is_multiple_of(multiple)
}

/// The addresses of the bytes of a list, in order.
fn addresses(list: &[Segment]) -> Vec<u64> {
    list.iter().flat_map(|s| (0..s.len as u64).map(move |n| s.iova.0 + n)).collect()
}

/// The fewest segments that such bytes can be cut into, of several lists at the same places;
/// `None` when there is no way.
fn fewest(lists: &[Vec<u64>], limits: &DmaLimits) -> Option<u64> {
    let len = lists[0].len();
    // Of the bytes before each place.
    let mut best = vec![None; len + 1];
    best[0] = Some(0u64);
    for end in 1..=len {
        for begin in 0..end {
            let Some(before) = best[begin] else { continue };
            let is_legal = lists.iter().all(|bytes| {
                let run = &bytes[begin..end];
                let is_run = run.windows(2).all(|pair| pair[1] == pair[0] + 1);
                let meets = begin == 0 || may_meet(limits, bytes[begin - 1] + 1, bytes[begin]);
                is_run && meets && takes(limits, run[0], run.len() as u64)
            });
            if is_legal && best[end].is_none_or(|known| before + 1 < known) {
                best[end] = Some(before + 1);
            }
        }
    }
    best[len]
}

/// Whether cutting at the longest segment keeps every other limit: then no cut is coarser, and no
/// list is refused that could be cut.
fn is_whole(limits: &DmaLimits) -> bool {
    limits.aligned().max_segment == limits.max_segment || limits.max_segment == u64::MAX
}

fn check_cut(segments: &[Segment], limits: &DmaLimits) {
    let list = SgList::new(segments.iter().copied()).unwrap();
    let bytes = addresses(segments);
    let fewest = fewest(std::slice::from_ref(&bytes), limits);
    let cut = match list.cut(limits) {
        Ok(cut) => cut,
        Err(SgError::Exceeded(_)) => {
            let is_needed = fewest.is_none() || !is_whole(limits);
            assert!(is_needed, "{segments:?} can be cut by {limits:?}");
            return;
        }
        Err(other) => panic!("{other}"),
    };
    assert_eq!(addresses(&cut), bytes, "{segments:?} {limits:?}");
    for piece in &cut {
        assert!(takes(limits, piece.iova.0, piece.len as u64), "{piece:?} {limits:?}");
    }
    for pair in cut.windows(2) {
        let end = pair[0].iova.0 + pair[0].len as u64;
        assert!(may_meet(limits, end, pair[1].iova.0), "{pair:?} {limits:?}");
    }
    let count = cut.len() as u64;
    let fewest = fewest.expect("this is a way");
    assert!(fewest <= count && (fewest == count || !is_whole(limits)), "{segments:?} {limits:?}");
    // As many as there are, and no fewer.
    assert!(list.cut(&DmaLimits { max_segments: count, ..*limits }).is_ok());
    assert!(list.cut(&DmaLimits { max_segments: count - 1, ..*limits }).is_err());
}

#[test]
fn segments_of_every_place_and_length_are_cut_into_exactly_their_bytes() {
    let mut cuts = 0u32;
    for limits in limits(6) {
        for at in 8..16 {
            for len in 1..=10 {
                check_cut(&[Segment { iova: Iova(at), len }], &limits);
                cuts += 1;
            }
        }
        // Two that meet, whichever of their addresses is lower.
        for (first, second) in [(8, 32), (32, 8)] {
            for (one, other) in (0..4).flat_map(|one| (0..4).map(move |other| (one, other))) {
                for (len, rest) in (1..5).flat_map(|len| (1..5).map(move |rest| (len, rest))) {
                    let segments = [
                        Segment { iova: Iova(first + one), len },
                        Segment { iova: Iova(second + other), len: rest },
                    ];
                    check_cut(&segments, &limits);
                    cuts += 1;
                }
            }
        }
    }
    assert!(cuts > 200_000, "{cuts} cuts");
}

/// Lists of `len` bytes in up to three segments, each at every place modulo 4.
fn lists(base: u64, len: usize) -> Vec<Vec<Segment>> {
    fn add(lists: &mut Vec<Vec<Segment>>, list: &mut Vec<Segment>, base: u64, left: usize) {
        if left == 0 {
            lists.push(list.clone());
            return;
        }
        for part in 1..=left {
            if list.len() == 2 && part < left {
                continue;
            }
            for offset in 0..4 {
                let iova = Iova(base + 16 * list.len() as u64 + offset);
                list.push(Segment { iova, len: part });
                add(lists, list, base, left - part);
                list.pop();
            }
        }
    }
    let mut all = Vec::new();
    add(&mut all, &mut Vec::new(), base, len);
    all
}

#[test]
fn two_lists_of_every_shape_are_paired_byte_by_byte_in_legal_pieces() {
    let mut pairs = 0u32;
    for len in 1..=3 {
        let (sources, targets) = (lists(64, len), lists(1024, len));
        for limits in limits(3) {
            for source in &sources {
                for target in &targets {
                    check_pieces(source, target, &limits);
                    pairs += 1;
                }
            }
        }
    }
    assert!(pairs > 1_000_000, "{pairs} pairs");
}

fn check_pieces(source: &[Segment], target: &[Segment], limits: &DmaLimits) {
    let lists = [source, target].map(|list| SgList::new(list.iter().copied()).unwrap());
    let bytes = [source, target].map(addresses);
    let fewest = fewest(&bytes, limits);
    let pieces = match Pieces::new(&lists[0], &lists[1], limits) {
        Ok(pieces) => pieces,
        Err(SgError::Exceeded(_)) => {
            let is_needed = fewest.is_none() || !is_whole(limits);
            assert!(is_needed, "{source:?} to {target:?} by {limits:?}");
            return;
        }
        Err(other) => panic!("{other}"),
    };
    let (mut from, mut to, mut count) = (Vec::new(), Vec::new(), 0);
    for Piece { source, target, len } in pieces.clone() {
        for (side, at, known) in [(0, source.0, &mut from), (1, target.0, &mut to)] {
            assert!(takes(limits, at, len), "{at:#x} {len} {limits:?}");
            let meets = known.last().is_none_or(|&last: &u64| may_meet(limits, last + 1, at));
            assert!(meets, "{at:#x} of side {side} {limits:?}");
            known.extend(at..at + len);
        }
        count += 1;
    }
    assert_eq!([from, to], bytes, "{limits:?}");
    assert!(count <= pieces.at_most());
    let fewest = fewest.expect("this is a way");
    assert!(fewest <= count && (fewest == count || !is_whole(limits)), "{source:?} {target:?}");
}
