//! Tests of data pointers, read back as a controller reads them.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::dma::Iova;

const PAGE: u64 = 4096;
/// Where the list pages of the tests lie; not next to each other.
const LISTS: u64 = 1 << 50;

fn one(iova: Iova, len: usize) -> [Segment; 1] {
    [Segment { iova, len }]
}

/// List pages of so many bytes, and their words.
struct Pages(u64, HashMap<u64, u64>);

impl Pages {
    fn new(page: u64) -> Pages {
        Pages(page, HashMap::new())
    }
}

impl ListMemory for Pages {
    fn address(&self, page: usize) -> u64 {
        LISTS + page as u64 * 3 * self.0
    }
    fn write(&mut self, page: usize, word: usize, value: u64) {
        assert!(word < (self.0 / 8) as usize);
        self.1.insert(self.address(page) + 8 * word as u64, value);
    }
}

/// Reads a PRP data pointer as a controller does; the bytes' addresses as runs.
fn read_prp(pointer: DataPointer, mut left: u64, lists: &Pages) -> Vec<(u64, u64)> {
    let page = lists.0;
    assert_eq!(pointer.kind, PointerKind::Prp);
    let [first, second] = pointer.words;
    assert_eq!(first % 4, 0, "PRP1 is aligned to a doubleword");
    let len = left.min(page - first % page);
    let mut runs = vec![(first, len)];
    left -= len;
    if left == 0 {
        assert_eq!(second, 0, "reserved");
        return runs;
    }
    let mut entry = |address: u64, left: &mut u64| {
        assert_eq!(address % page, 0, "an entry after the first begins its page");
        let len = (*left).min(page);
        runs.push((address, len));
        *left -= len;
    };
    if left <= page {
        entry(second, &mut left);
        return runs;
    }
    let mut at = second;
    assert_eq!(at % 8, 0);
    while left > 0 {
        let word = lists.1[&at];
        if (at + 8).is_multiple_of(page) && left > page {
            assert_eq!(word % page, 0, "a list continues at the begin of a page");
            at = word;
            continue;
        }
        entry(word, &mut left);
        at += 8;
    }
    runs
}

/// Reads an SGL as a controller does.
fn read_sgl(pointer: DataPointer, bytes: u64, lists: &Pages, align: u64) -> Vec<(u64, u64)> {
    let page = lists.0;
    assert_eq!(pointer.kind, PointerKind::Sgl);
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let data = |[address, word]: [u64; 2], runs: &mut Vec<(u64, u64)>| {
        assert_eq!(word >> 32, 0, "a data block, and nothing reserved");
        assert!(word > 0 && address % align == 0 && word % align == 0);
        runs.push((address, word));
    };
    let mut words = pointer.words;
    while words[1] >> 60 != 0 {
        let (kind, len) = (words[1] >> 60, words[1] & 0xffff_ffff);
        assert!(len > 0 && len % 16 == 0 && words[0] % page + len <= page, "inside a page");
        let at = |i: u64| [lists.1[&(words[0] + 16 * i)], lists.1[&(words[0] + 16 * i + 8)]];
        let count = len / 16;
        (0..count - 1).for_each(|i| data(at(i), &mut runs));
        let last = at(count - 1);
        match kind {
            2 => words = last,
            3 => {
                data(last, &mut runs);
                words[1] = 0;
            }
            other => panic!("type {other}"),
        }
        assert_eq!(kind == 2, words[1] >> 60 != 0, "only a last segment ends a list");
    }
    if runs.is_empty() {
        data(pointer.words, &mut runs);
    }
    assert_eq!(runs.iter().map(|run| run.1).sum::<u64>(), bytes);
    runs
}

fn merged(runs: impl IntoIterator<Item = (u64, u64)>) -> Vec<(u64, u64)> {
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for (at, len) in runs {
        match merged.last_mut() {
            Some(last) if last.0 + last.1 == at => last.1 += len,
            _ => merged.push((at, len)),
        }
    }
    merged
}

/// Cuts a whole list into commands, and checks each.
pub(super) fn walk(shape: &Shape, described: Described, segments: &[Segment]) -> usize {
    let total: u64 = segments.iter().map(|segment| segment.len as u64).sum();
    let (mut at, mut left, mut runs, mut commands) = (Cursor::default(), total, vec![], 0);
    while left > 0 {
        let mut lists = Pages::new(shape.page);
        let (pointer, bytes) = shape.build(described, segments, &mut at, left, &mut lists);
        assert!(bytes > 0 && bytes <= left && bytes <= shape.max_bytes, "{bytes} of {left}");
        assert_eq!(bytes % shape.block, 0, "whole blocks");
        let read = match described {
            Described::Prp => read_prp(pointer, bytes, &lists),
            Described::Sgl => read_sgl(pointer, bytes, &lists, shape.sgl_alignment.unwrap()),
        };
        assert!(read.len() as u64 <= shape.max_pieces, "{} pieces", read.len());
        let pages: std::collections::HashSet<u64> =
            lists.1.keys().map(|at| at / shape.page).collect();
        assert!(pages.len() as u64 <= shape.list_pages);
        runs.extend(read);
        left -= bytes;
        commands += 1;
    }
    let whole = segments.iter().map(|segment| (segment.iova.0, segment.len as u64));
    assert_eq!(merged(runs), merged(whole), "each byte once, in order");
    commands
}

fn shape() -> impl Strategy<Value = Shape> {
    let blocks = prop_oneof![Just(512u64), Just(4096)];
    let aligned = prop_oneof![Just(1u64), Just(4)];
    (blocks, 1u64..200, 1u64..4, prop_oneof![Just(1024u64), 16..600u64], aligned).prop_map(
        |(block, blocks, list_pages, max_pieces, alignment)| Shape {
            page: PAGE,
            block,
            max_bytes: block * blocks * 8,
            list_pages,
            max_pieces,
            sgl_alignment: Some(alignment),
        },
    )
}

/// Pages in any order, the first and the last in part, as PRPs can describe them.
fn paged(block: u64) -> impl Strategy<Value = Vec<Segment>> {
    let runs = proptest::collection::vec(1u64..40, 1..40);
    (runs, 0u64..1024, 1u64..5000).prop_map(move |(runs, offset, blocks)| {
        let offset = offset * 4;
        let room = runs.iter().sum::<u64>() * PAGE - offset;
        let mut left = (blocks * block).min(room - room % block);
        let mut at = 1 << 20;
        let mut list = Vec::new();
        for (i, run) in runs.into_iter().enumerate() {
            let skip = if i == 0 { offset } else { 0 };
            let len = (run * PAGE - skip).min(left);
            if len > 0 {
                list.push(Segment { iova: Iova(at + skip), len: len as usize });
            }
            left -= len;
            at += (run + 1) * PAGE;
        }
        list
    })
}

/// Runs of any length at any address.
fn any_shape(block: u64, unit: u64) -> impl Strategy<Value = Vec<Segment>> {
    proptest::collection::vec((1u64..9000, 1u64..100), 1..300).prop_map(move |runs| {
        let mut at = 1 << 20;
        let mut list: Vec<Segment> = runs
            .into_iter()
            .map(|(len, gap)| {
                let len = len.div_ceil(unit) * unit;
                let segment = Segment { iova: Iova(at), len: len as usize };
                at += len + gap * unit;
                segment
            })
            .collect();
        let total: usize = list.iter().map(|segment| segment.len).sum();
        let missing = total.next_multiple_of(block as usize) - total;
        list.last_mut().unwrap().len += missing;
        list
    })
}

proptest! {
    #[test]
    fn prps_are_exactly_the_bytes(
        (shape, segments) in shape().prop_flat_map(|s| (Just(s), paged(s.block))),
    ) {
        prop_assume!(!segments.is_empty());
        prop_assert_eq!(shape.describe(&segments, DataMethod::Prp), Ok(Described::Prp));
        walk(&shape, Described::Prp, &segments);
    }

    #[test]
    fn sgls_are_exactly_the_bytes(
        (shape, segments) in shape()
            .prop_flat_map(|s| (Just(s), any_shape(s.block, s.sgl_alignment.unwrap()))),
    ) {
        match shape.describe(&segments, DataMethod::Sgl) {
            Ok(described) => {
                walk(&shape, described, &segments);
            }
            // Only where a block has more pieces than a command may.
            Err(LimitExceeded::TooManySegments { limit, .. }) => {
                prop_assert!(limit <= shape.block && (segments.len() as u64) > limit);
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    /// What is chosen is legal; what PRPs cannot describe is refused when they are forced.
    #[test]
    fn the_choice_is_one_that_describes_the_list(
        (shape, segments) in shape().prop_flat_map(|s| (Just(s), any_shape(s.block, 1))),
        has_sgl in any::<bool>(),
    ) {
        let shape = Shape { sgl_alignment: shape.sgl_alignment.filter(|_| has_sgl), ..shape };
        let inside = |segment: &Segment| segment.iova.0.is_multiple_of(PAGE);
        let prp_can = segments[0].iova.0.is_multiple_of(4)
            && segments[1..].iter().all(inside)
            && segments.windows(2).all(|pair| {
                (pair[0].iova.0 + pair[0].len as u64).is_multiple_of(PAGE)
            });
        prop_assert_eq!(shape.describe(&segments, DataMethod::Prp).is_ok(), prp_can);
        prop_assert!(has_sgl || shape.describe(&segments, DataMethod::Sgl).is_err());
        if let Ok(described) = shape.describe(&segments, DataMethod::Auto) {
            prop_assert!(described == Described::Prp || has_sgl);
            prop_assert!(described == Described::Sgl || prp_can);
            walk(&shape, described, &segments);
        }
    }
}

const SHAPE: Shape = Shape {
    page: PAGE,
    block: 512,
    max_bytes: 512 << 10,
    list_pages: 1,
    max_pieces: 1024,
    sgl_alignment: Some(1),
};

#[test]
fn short_lists_need_no_memory() {
    let build = |described, segments: &[Segment]| {
        let mut lists = Pages::new(PAGE);
        let total = segments.iter().map(|segment| segment.len as u64).sum();
        let at = &mut Cursor::default();
        let (pointer, bytes) = SHAPE.build(described, segments, at, total, &mut lists);
        assert_eq!((bytes, lists.1.len()), (total, 0));
        pointer.words
    };
    assert_eq!(build(Described::Prp, &one(Iova(0x1_0e00), 512)), [0x1_0e00, 0]);
    assert_eq!(build(Described::Prp, &one(Iova(0x1_0e00), 1024)), [0x1_0e00, 0x1_1000]);
    assert_eq!(build(Described::Prp, &one(Iova(0x1_0000), 8192)), [0x1_0000, 0x1_1000]);
    assert_eq!(build(Described::Sgl, &one(Iova(0x1_0001), 1 << 19)), [0x1_0001, 1 << 19]);
}

#[test]
fn lists_are_chained_when_they_fill_a_page() {
    // 512 entries fill a page of a list, and one more is the first PRP.
    for (pages, list_pages, commands) in
        [(513, 1, 1), (514, 1, 2), (514, 2, 1), (1024, 2, 1), (1025, 2, 2)]
    {
        let shape = Shape { list_pages, max_bytes: 8 << 20, max_pieces: 4096, ..SHAPE };
        let segments = one(Iova(1 << 30), pages * PAGE as usize);
        assert_eq!(walk(&shape, Described::Prp, &segments), commands, "{pages} pages");
    }
    for (count, list_pages, commands) in [(256, 1, 1), (257, 1, 2), (257, 2, 1), (511, 2, 1)] {
        let shape = Shape { list_pages, max_bytes: 8 << 20, ..SHAPE };
        let segment = |i: u64| Segment { iova: Iova(1 << 30 | i << 13), len: 512 };
        let segments: Vec<_> = (0..count).map(segment).collect();
        assert_eq!(walk(&shape, Described::Sgl, &segments), commands, "{count} segments");
    }
}

#[test]
fn the_shape_of_a_list_chooses() {
    let auto = |shape: &Shape, segments: &[Segment]| shape.describe(segments, DataMethod::Auto);
    let two_pages = one(Iova(0x1000), 8192);
    assert_eq!(auto(&SHAPE, &two_pages), Ok(Described::Prp));
    let long = one(Iova(0x1000), 1 << 20);
    assert_eq!(auto(&SHAPE, &long), Ok(Described::Sgl));
    let no_sgl = Shape { sgl_alignment: None, ..SHAPE };
    assert_eq!(auto(&no_sgl, &long), Ok(Described::Prp));
    let pages: Vec<_> =
        (1..9).map(|i| Segment { iova: Iova(i << 13), len: PAGE as usize }).collect();
    assert_eq!(auto(&SHAPE, &pages), Ok(Described::Prp));
    let odd = one(Iova(0x1001), 512);
    assert_eq!(auto(&SHAPE, &odd), Ok(Described::Sgl));
    let aligned = Shape { sgl_alignment: Some(4), ..SHAPE };
    assert!(matches!(auto(&aligned, &odd), Err(LimitExceeded::Misaligned { .. })));
    assert!(matches!(auto(&no_sgl, &odd), Err(LimitExceeded::Misaligned { .. })));
    let gap = [Segment { iova: Iova(0x1000), len: 256 }, Segment { iova: Iova(0x3000), len: 256 }];
    assert!(matches!(auto(&no_sgl, &gap), Err(LimitExceeded::Gap { .. })));
    // A block of single bytes, more of them than a command has descriptors for.
    let bytes: Vec<_> = (0..512).map(|i| Segment { iova: Iova(i << 4), len: 1 }).collect();
    assert!(matches!(auto(&SHAPE, &bytes), Err(LimitExceeded::TooManySegments { .. })));
}
