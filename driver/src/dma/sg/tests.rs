//! Lists against the addresses of their bytes, one by one.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn segment(iova: u64, len: usize) -> Segment {
    Segment { iova: Iova(iova), len }
}

fn list(segments: &[(u64, usize)]) -> SgList {
    SgList::new(segments.iter().map(|&(iova, len)| segment(iova, len))).unwrap()
}

fn bytes(segments: &[Segment]) -> Vec<u64> {
    segments.iter().flat_map(|s| (0..s.len as u64).map(|i| s.iova.0 + i)).collect()
}

/// Segments in a small space: adjacent, overlapping and empty ones are common.
fn segments() -> impl Strategy<Value = Vec<Segment>> {
    vec((0u64..600, 0usize..40).prop_map(|(iova, len)| segment(iova, len)), 0..12)
}

/// Segments of which no two share a byte, in any order.
fn disjoint() -> impl Strategy<Value = Vec<Segment>> {
    vec((0u64..5, 1usize..40), 1..12)
        .prop_map(|gaps| {
            let mut at = 10_000;
            let place = |(gap, len)| {
                let iova = at + gap;
                at = iova + len as u64;
                segment(iova, len)
            };
            gaps.into_iter().map(place).collect::<Vec<_>>()
        })
        .prop_shuffle()
}

fn limits() -> impl Strategy<Value = DmaLimits> {
    (1u64..70, proptest::option::of(0u32..7)).prop_map(|(max_segment, boundary)| DmaLimits {
        max_segment,
        boundary: boundary.map(|log| 1 << log),
        ..DmaLimits::default()
    })
}

fn crosses(limits: &DmaLimits, iova: u64, len: u64) -> bool {
    limits.boundary.is_some_and(|b| iova / b != (iova + len - 1) / b)
}

proptest! {
    #[test]
    fn a_list_has_the_bytes_of_its_segments_and_no_neighbours(segments in segments()) {
        let wanted = bytes(&segments);
        match SgList::new(segments) {
            Err(SgError::Empty) => prop_assert!(wanted.is_empty()),
            Err(error) => prop_assert!(false, "{error}"),
            Ok(list) => {
                prop_assert_eq!(list.len(), wanted.len() as u64);
                prop_assert_eq!(bytes(list.segments()), wanted);
                for pair in list.segments().windows(2) {
                    prop_assert_ne!(pair[0].iova.0 + pair[0].len as u64, pair[1].iova.0);
                }
            }
        }
    }

    #[test]
    fn overlaps_are_those_of_the_bytes(source in segments(), target in segments()) {
        let (from, to) = (bytes(&source), bytes(&target));
        prop_assume!(!from.is_empty() && !to.is_empty());
        let (source, target) = (SgList::new(source).unwrap(), SgList::new(target).unwrap());
        let distinct: std::collections::HashSet<u64> = to.iter().copied().collect();
        prop_assert_eq!(target.check_disjoint().is_ok(), distinct.len() == to.len());
        let apart = !from.iter().any(|byte| distinct.contains(byte));
        prop_assert_eq!(source.check_apart(&target).is_ok(), apart);
        prop_assert_eq!(target.check_apart(&source).is_ok(), apart);
    }

    #[test]
    fn a_cut_keeps_the_bytes_and_is_as_coarse_as_the_limits_allow(
        segments in disjoint(),
        limits in limits(),
    ) {
        let list = SgList::new(segments).unwrap();
        let cut = list.cut(&limits).unwrap();
        prop_assert_eq!(bytes(&cut), bytes(list.segments()));
        for s in &cut {
            prop_assert!(s.len as u64 <= limits.max_segment && !crosses(&limits, s.iova.0, s.len as u64));
        }
        for pair in cut.windows(2) {
            // One byte more would break a limit, or is not there.
            let (iova, len) = (pair[0].iova.0, pair[0].len as u64);
            let goes_on = iova + len == pair[1].iova.0;
            prop_assert!(!goes_on || len == limits.max_segment || crosses(&limits, iova, len + 1));
        }
        let short = DmaLimits { max_segments: cut.len() as u64 - 1, ..limits };
        let refused = matches!(
            list.cut(&short),
            Err(SgError::Exceeded(LimitExceeded::TooManySegments { needed, limit, .. }))
                if needed == cut.len() as u64 && limit == needed - 1
        );
        // No transfer has less than one.
        prop_assert!(refused || short.validate().is_err());
    }

    #[test]
    fn two_lists_walked_together_pair_their_bytes(
        source in segments(),
        target in disjoint(),
        limits in limits(),
    ) {
        let (from, to) = (bytes(&source), bytes(&target));
        prop_assume!(!from.is_empty());
        let len = from.len().min(to.len());
        let first = |list: SgList| {
            let mut left = len;
            let take = list.segments().to_vec().into_iter().map(move |s| {
                let part = s.len.min(left);
                left -= part;
                segment(s.iova.0, part)
            });
            SgList::new(take).unwrap()
        };
        let source = first(SgList::new(source).unwrap());
        let target = first(SgList::new(target).unwrap());
        let walk = Pieces::new(&source, &target, &limits).unwrap();
        let most = walk.at_most();
        let pieces: Vec<Piece> = walk.clone().collect();
        prop_assert!(pieces.len() as u64 <= most, "{} > {most}", pieces.len());
        for p in &pieces {
            prop_assert!(p.len > 0 && p.len <= limits.max_segment);
            prop_assert!(!crosses(&limits, p.source.0, p.len));
            prop_assert!(!crosses(&limits, p.target.0, p.len));
        }
        let paired = pieces.iter().flat_map(|p| (0..p.len).map(|i| (p.source.0 + i, p.target.0 + i)));
        prop_assert!(paired.eq(from.into_iter().zip(to).take(len)));
        let short = DmaLimits { max_segments: pieces.len() as u64 - 1, ..limits };
        let refused = Pieces::new(&source, &target, &short);
        let too_many = matches!(refused, Err(SgError::Exceeded(LimitExceeded::TooManySegments { .. })));
        prop_assert!(too_many || short.validate().is_err());
    }
}

#[test]
fn lists_of_whole_pages_allow_no_gap_inside() {
    let pages = DmaLimits { virt_boundary: Some(4096), ..DmaLimits::default() };
    // Only the first begins and only the last ends inside of a page.
    let fits = list(&[(0x1e00, 0x200), (0x8000, 0x2000), (0x4000, 0x123)]);
    assert_eq!(fits.cut(&pages).unwrap(), fits.segments());
    let (ends, begins) = (&[(0x1000, 0x200), (0x8000, 1)], &[(0x1000, 0x1000), (0x8200, 1)]);
    for gap in [ends, begins] {
        let refused = list(gap).cut(&pages);
        assert!(
            matches!(refused, Err(SgError::Exceeded(LimitExceeded::Gap { .. }))),
            "{refused:?}"
        );
    }
    // Where either side of a copy is cut, both are.
    let target = list(&[(0x10_0000, 0x1200), (0x20_0000, 0x1123)]);
    assert!(matches!(
        Pieces::new(&fits, &target, &pages),
        Err(SgError::Exceeded(LimitExceeded::Gap { .. }))
    ));
}

#[test]
fn what_has_to_be_cut_is_cut_where_the_parts_may_meet() {
    let limits = DmaLimits {
        virt_boundary: Some(0x1000),
        max_segment: 0x2fff,
        boundary: Some(0x1_0000),
        ..DmaLimits::default()
    };
    let cut = list(&[(0xc800, 0x5900)]).cut(&limits).unwrap();
    let expected = [(0xc800, 0x1800), (0xe000, 0x2000), (0x1_0000, 0x2000), (0x1_2000, 0x100)];
    assert_eq!(cut, expected.map(|(iova, len)| segment(iova, len)));
    let target = list(&[(0x10_0800, 0x5900)]);
    let source = list(&[(0xc800, 0x5900)]);
    let pieces = Pieces::new(&source, &target, &limits).unwrap();
    let at_most = pieces.at_most();
    let pieces: Vec<u64> = pieces.map(|piece| piece.len).collect();
    assert_eq!(pieces, [0x1800, 0x2000, 0x2000, 0x100]);
    assert!(at_most >= 4);
}

#[test]
fn a_device_that_counts_in_doublewords_gets_no_odd_bytes() {
    let dwords = DmaLimits { granularity: 4, max_segment: 1023, ..DmaLimits::default() };
    let cut = list(&[(0x1001, 2048), (0x5000, 8)]).cut(&dwords).unwrap();
    let lens: Vec<usize> = cut.iter().map(|segment| segment.len).collect();
    assert_eq!(lens, [1020, 1020, 8, 8]);
    let refused = list(&[(0x1000, 6)]).cut(&dwords);
    assert!(
        matches!(refused, Err(SgError::Exceeded(LimitExceeded::Granularity { len: 6, .. }))),
        "{refused:?}"
    );
    let low = DmaLimits { address_mask: 0x1fff, ..DmaLimits::default() };
    assert!(list(&[(0x1000, 0x1000)]).cut(&low).is_ok());
    let refused = list(&[(0x1000, 0x1001)]).cut(&low);
    assert!(matches!(refused, Err(SgError::Exceeded(LimitExceeded::AboveMask { .. }))));
}

#[test]
fn adjacent_pages_are_one_segment_for_each_run() {
    // 64 MiB in 4 KiB pages: four runs of 4,096 pages, a page apart.
    let pages = (0..16_384u64).map(|n| segment((n + n / 4096) * 4096, 4096));
    let list = SgList::new(pages).unwrap();
    assert_eq!(list.len(), 64 << 20);
    let run = |n: u64| segment(n * 4097 * 4096, 16 << 20);
    assert_eq!(list.segments(), [run(0), run(1), run(2), run(3)]);
    let one = list_of_one();
    let copies = Pieces::new(&list, &one, &DmaLimits::default()).unwrap();
    assert_eq!(copies.count(), 4);
}

fn list_of_one() -> SgList {
    list(&[(1 << 32, 64 << 20)])
}

#[test]
fn what_a_device_cannot_take_is_refused_with_figures() {
    let source = list(&[(0x1000, 64), (0x2004, 64)]);
    let target = list(&[(0x8000, 128)]);
    let aligned = DmaLimits { alignment: 8, ..DmaLimits::default() };
    let text = |error: SgError| error.to_string();
    assert!(text(source.cut(&aligned).unwrap_err()).contains("0x2004"));
    assert!(text(Pieces::new(&source, &target, &aligned).unwrap_err()).contains("0x2004"));
    let fine = DmaLimits { alignment: 4, max_segment: 30, ..DmaLimits::default() };
    let pieces = Pieces::new(&source, &target, &fine).unwrap();
    assert!(pieces.clone().all(|p| p.source.0 % 4 == 0 && p.target.0 % 4 == 0 && p.len <= 28));
    for bad in [
        DmaLimits { max_segment: 0, ..DmaLimits::default() },
        DmaLimits { alignment: 3, ..DmaLimits::default() },
        DmaLimits { alignment: 8, max_segment: 7, ..DmaLimits::default() },
        DmaLimits { boundary: Some(48), ..DmaLimits::default() },
        DmaLimits { alignment: 8, boundary: Some(4), ..DmaLimits::default() },
    ] {
        assert!(matches!(source.cut(&bad), Err(SgError::Limits(_))), "{bad:?}");
    }
    let short = list(&[(0x8000, 127)]);
    let lengths = Pieces::new(&source, &short, &DmaLimits::default()).unwrap_err().to_string();
    assert!(lengths.contains("128") && lengths.contains("127"), "{lengths}");
}

#[test]
fn the_ends_of_the_address_space_are_addresses_as_any_other() {
    let top = list(&[(u64::MAX - 15, 16), (0, 16)]);
    assert_eq!(top.segments().len(), 2, "the last address and 0 are no neighbours");
    let cut = top.cut(&DmaLimits { max_segment: 8, ..DmaLimits::default() }).unwrap();
    assert_eq!(cut.iter().map(|s| s.len).sum::<usize>(), 32);
    let over = SgList::new([segment(u64::MAX - 15, 17)]).unwrap_err();
    assert!(matches!(over, SgError::Wraps(s) if s.len == 17));
    assert!(matches!(SgList::new([]), Err(SgError::Empty)));
    assert!(matches!(SgList::new([segment(7, 0)]), Err(SgError::Empty)));
}
