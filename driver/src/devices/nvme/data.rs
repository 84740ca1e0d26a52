//! Data pointers: PRP entries and lists, and SGLs, of any list of segments (NVM Express Base
//! 1.4, 4.3 and 4.4).
//!
//! A PRP entry is a page; only the first may begin inside of one, and only the last may end
//! inside of one. An SGL descriptor is any run of bytes. A list that does not fit a command's
//! list pages, or is longer than a command may be, becomes several commands: each takes as many
//! whole blocks as it can.

use super::command::{DataPointer, PointerKind};
use crate::dma::{LimitExceeded, Segment};

/// How commands tell the controller where their data is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum DataMethod {
    /// By what suits the shape of the list: PRPs where they can describe it, SGLs where they
    /// are offered and the segments are long or PRPs cannot, a bounce buffer where neither can.
    #[default]
    Auto,
    /// By PRPs; a list that they cannot describe is refused.
    Prp,
    /// By SGLs; refused where they are not offered or cannot describe a list.
    Sgl,
    /// Through a buffer of the driver's own, with a copy by the processor.
    Bounce,
}

/// From this average length of a segment on, in bytes, a list of more than two pages becomes
/// an SGL where both could be used: fewer descriptors than pages.
const SGL_THRESHOLD: u64 = 32 << 10;

/// SGL descriptor types (4.4, figure 112), in bits 127:124.
const DATA_BLOCK: u64 = 0;
const SEGMENT: u64 = 2 << 60;
const LAST_SEGMENT: u64 = 3 << 60;

/// Bytes of a PRP entry.
const PRP_BYTES: u64 = 8;
/// Bytes of an SGL descriptor.
const SGL_BYTES: u64 = 16;

/// What a command's data may look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of a page of the controller.
    pub(super) page: u64,
    /// Bytes of a block: a command has whole ones.
    pub(super) block: u64,
    /// The most bytes of a command, a multiple of a block.
    pub(super) max_bytes: u64,
    /// Pages for the lists of a command, at least 1.
    pub(super) list_pages: u64,
    /// The most pieces of a command, at least 2 pages' worth of blocks.
    pub(super) max_pieces: u64,
    /// The alignment of addresses and lengths in an SGL, in bytes; `None` where none is taken.
    pub(super) sgl_alignment: Option<u64>,
}

/// The pages for a command's lists.
pub(super) trait ListMemory {
    /// The device address of a page.
    fn address(&self, page: usize) -> u64;
    /// Writes a word of a page.
    fn write(&mut self, page: usize, word: usize, value: u64);
}

/// A place in a list of segments.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    segment: usize,
    offset: u64,
}

impl Cursor {
    /// The next run of at most `most` bytes that `cut` leaves of where it begins and how long
    /// it could be.
    #[inline]
    fn next(
        &mut self,
        segments: &[Segment],
        most: u64,
        cut: impl Fn(u64, u64) -> u64,
    ) -> Option<(u64, u64)> {
        let segment = segments.get(self.segment)?;
        let at = segment.iova.0 + self.offset;
        let left = segment.len as u64 - self.offset;
        let len = cut(at, left.min(most));
        self.offset += len;
        if len == left {
            *self = Cursor { segment: self.segment + 1, offset: 0 };
        }
        Some((at, len))
    }
}

/// How a transfer's data is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Described {
    Prp,
    Sgl,
}

impl Shape {
    /// How to describe a list; an error says why a forced method, or any, cannot.
    #[inline]
    pub(super) fn describe(
        &self,
        segments: &[Segment],
        method: DataMethod,
    ) -> Result<Described, LimitExceeded> {
        match method {
            DataMethod::Prp => self.check_prp(segments).map(|()| Described::Prp),
            DataMethod::Sgl => self.check_sgl(segments).map(|()| Described::Sgl),
            DataMethod::Auto | DataMethod::Bounce => match self.check_prp(segments) {
                Ok(()) if !self.prefers_sgl(segments) => Ok(Described::Prp),
                Ok(()) => Ok(self.check_sgl(segments).map_or(Described::Prp, |()| Described::Sgl)),
                Err(why) if self.sgl_alignment.is_none() => Err(why),
                Err(_) => self.check_sgl(segments).map(|()| Described::Sgl),
            },
        }
    }

    /// Whether a list would be shorter as an SGL by much.
    fn prefers_sgl(&self, segments: &[Segment]) -> bool {
        let bytes: u64 = segments.iter().map(|segment| segment.len as u64).sum();
        self.sgl_alignment.is_some()
            && bytes > 2 * self.page
            && bytes / segments.len() as u64 >= SGL_THRESHOLD
    }

    fn check_prp(&self, segments: &[Segment]) -> Result<(), LimitExceeded> {
        if let Some(first) = segments.first().filter(|first| first.iova.0 & 3 != 0) {
            return Err(LimitExceeded::Misaligned { iova: first.iova, alignment: 4 });
        }
        for pair in segments.windows(2) {
            let (end, start) = (pair[0].iova.0.wrapping_add(pair[0].len as u64), pair[1].iova.0);
            if (end | start) & (self.page - 1) != 0 {
                return Err(LimitExceeded::Gap { end, start, virt_boundary: self.page });
            }
        }
        Ok(())
    }

    fn check_sgl(&self, segments: &[Segment]) -> Result<(), LimitExceeded> {
        let bytes = segments.iter().map(|segment| segment.len as u64).sum();
        let Some(alignment) = self.sgl_alignment else {
            let needed = segments.len() as u64;
            return Err(LimitExceeded::TooManySegments { needed, limit: 0, len: bytes });
        };
        for &Segment { iova, len } in segments {
            let len = len as u64;
            if iova.0 & (alignment - 1) != 0 {
                return Err(LimitExceeded::Misaligned { iova, alignment });
            }
            if len & (alignment - 1) != 0 {
                return Err(LimitExceeded::Granularity { iova, len, granularity: alignment });
            }
        }
        let limit = self.sgl_capacity();
        if segments.len() as u64 <= limit {
            return Ok(());
        }
        // Segments shorter than a block may be too many for a single one.
        let (mut at, mut left) = (Cursor::default(), bytes);
        while left > 0 {
            let len = self.reach(segments, at, left, limit, |_, len| len.min(u32::MAX.into()));
            if len == 0 {
                let needed = segments.len() as u64;
                return Err(LimitExceeded::TooManySegments { needed, limit, len: self.block });
            }
            left -= len;
            let mut passed = 0;
            while passed < len {
                let Some((_, run)) = at.next(segments, len - passed, |_, len| len) else { break };
                passed += run;
            }
        }
        Ok(())
    }

    /// PRP entries of a command, the first two counted in when they have no list.
    fn prp_capacity(&self) -> u64 {
        let entries = self.page / PRP_BYTES;
        (1 + self.list_pages * entries - (self.list_pages - 1)).min(self.max_pieces)
    }

    fn sgl_capacity(&self) -> u64 {
        let descriptors = self.page / SGL_BYTES;
        (self.list_pages * descriptors - (self.list_pages - 1)).min(self.max_pieces)
    }

    /// How many bytes, of whole blocks, so many pieces describe from a place on; at most `left`.
    #[inline]
    fn reach(
        &self,
        segments: &[Segment],
        mut at: Cursor,
        left: u64,
        pieces: u64,
        cut: impl Fn(u64, u64) -> u64,
    ) -> u64 {
        let most = left.min(self.max_bytes);
        let (mut bytes, mut used) = (0, 0);
        while bytes < most && used < pieces {
            let Some((_, len)) = at.next(segments, most - bytes, &cut) else { break };
            bytes += len;
            used += 1;
        }
        bytes - bytes % self.block
    }

    /// The data pointer of the next command of a transfer, whose list passed [`Shape::describe`],
    /// and how many bytes it describes; moves the place on. `left` is what the transfer has
    /// left. 0 bytes when it cannot describe a block, which [`Shape::describe`] rules out.
    #[inline]
    pub(super) fn build(
        &self,
        described: Described,
        segments: &[Segment],
        at: &mut Cursor,
        left: u64,
        lists: &mut impl ListMemory,
    ) -> (DataPointer, u64) {
        match described {
            Described::Prp => self.build_prp(segments, at, left, lists),
            Described::Sgl => self.build_sgl(segments, at, left, lists),
        }
    }

    /// What is left of the page that holds an address, at most `len`.
    #[inline]
    fn in_page(&self, at: u64, len: u64) -> u64 {
        len.min(self.page - (at & (self.page - 1)))
    }

    fn build_prp(
        &self,
        segments: &[Segment],
        at: &mut Cursor,
        left: u64,
        lists: &mut impl ListMemory,
    ) -> (DataPointer, u64) {
        let cut = |at, len| self.in_page(at, len);
        let bytes = self.reach(segments, *at, left, self.prp_capacity(), cut);
        let mut todo = bytes;
        let mut next = || {
            let (address, len) = at.next(segments, todo, cut)?;
            todo -= len;
            Some((address, todo))
        };
        let mut words = [0; 2];
        let kind = PointerKind::Prp;
        let Some((first, more)) = next().filter(|_| bytes > 0) else {
            return (DataPointer { kind, words }, 0);
        };
        words[0] = first;
        if more > 0
            && let Some((second, mut more)) = next()
        {
            words[1] = second;
            if more > 0 {
                // A list, and its first entry is what PRP2 would have been.
                words[1] = lists.address(0);
                lists.write(0, 0, second);
                let last = (self.page / PRP_BYTES) as usize - 1;
                let (mut page, mut word) = (0, 1);
                while more > 0 {
                    let Some((address, rest)) = next() else { break };
                    if word == last && rest > 0 {
                        // The last entry of a page leads to the next when more than one is left.
                        lists.write(page, word, lists.address(page + 1));
                        (page, word) = (page + 1, 0);
                    }
                    lists.write(page, word, address);
                    (word, more) = (word + 1, rest);
                }
            }
        }
        (DataPointer { kind, words }, bytes)
    }

    fn build_sgl(
        &self,
        segments: &[Segment],
        at: &mut Cursor,
        left: u64,
        lists: &mut impl ListMemory,
    ) -> (DataPointer, u64) {
        let cut = |_, len: u64| len.min(u32::MAX.into());
        let bytes = self.reach(segments, *at, left, self.sgl_capacity(), cut);
        // How many descriptors that takes.
        let (mut ahead, mut count, mut passed) = (*at, 0usize, 0);
        while passed < bytes {
            let Some((_, len)) = ahead.next(segments, bytes - passed, cut) else { break };
            (passed, count) = (passed + len, count + 1);
        }
        let kind = PointerKind::Sgl;
        let per_page = (self.page / SGL_BYTES) as usize;
        // A segment with so many descriptors to come: it is the last when they fit its page.
        let segment = |address: u64, count: usize| {
            let (len, last) = (count.min(per_page), count <= per_page);
            let len = len as u64 * SGL_BYTES;
            [address, len | if last { LAST_SEGMENT } else { SEGMENT }]
        };
        let mut words = [0; 2];
        if count > 1 {
            words = segment(lists.address(0), count);
        }
        let (mut todo, mut page, mut slot) = (bytes, 0, 0);
        for n in 0..count {
            let Some((address, len)) = at.next(segments, todo, cut) else { break };
            todo -= len;
            let block = [address, len | DATA_BLOCK];
            if count == 1 {
                words = block;
                break;
            }
            if slot == per_page - 1 && count - n > 1 {
                let next = segment(lists.address(page + 1), count - n);
                lists.write(page, 2 * slot, next[0]);
                lists.write(page, 2 * slot + 1, next[1]);
                (page, slot) = (page + 1, 0);
            }
            lists.write(page, 2 * slot, block[0]);
            lists.write(page, 2 * slot + 1, block[1]);
            slot += 1;
        }
        (DataPointer { kind, words }, bytes)
    }
}

#[cfg(test)]
mod tests {
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

    #[derive(Default)]
    struct Pages(HashMap<u64, u64>);

    impl ListMemory for Pages {
        fn address(&self, page: usize) -> u64 {
            LISTS + page as u64 * 3 * PAGE
        }
        fn write(&mut self, page: usize, word: usize, value: u64) {
            assert!(word < (PAGE / 8) as usize);
            self.0.insert(self.address(page) + 8 * word as u64, value);
        }
    }

    /// Reads a PRP data pointer as a controller does; the bytes' addresses as runs.
    fn read_prp(pointer: DataPointer, mut left: u64, lists: &Pages) -> Vec<(u64, u64)> {
        assert_eq!(pointer.kind, PointerKind::Prp);
        let [first, second] = pointer.words;
        assert_eq!(first % 4, 0, "PRP1 is aligned to a doubleword");
        let len = left.min(PAGE - first % PAGE);
        let mut runs = vec![(first, len)];
        left -= len;
        if left == 0 {
            assert_eq!(second, 0, "reserved");
            return runs;
        }
        let mut entry = |address: u64, left: &mut u64| {
            assert_eq!(address % PAGE, 0, "an entry after the first begins its page");
            let len = (*left).min(PAGE);
            runs.push((address, len));
            *left -= len;
        };
        if left <= PAGE {
            entry(second, &mut left);
            return runs;
        }
        let mut at = second;
        assert_eq!(at % 8, 0);
        while left > 0 {
            let word = lists.0[&at];
            if (at + 8).is_multiple_of(PAGE) && left > PAGE {
                assert_eq!(word % PAGE, 0, "a list continues at the begin of a page");
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
            assert!(len > 0 && len % 16 == 0 && words[0] % PAGE + len <= PAGE, "inside a page");
            let at = |i: u64| [lists.0[&(words[0] + 16 * i)], lists.0[&(words[0] + 16 * i + 8)]];
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
    fn walk(shape: &Shape, described: Described, segments: &[Segment]) -> usize {
        let total: u64 = segments.iter().map(|segment| segment.len as u64).sum();
        let (mut at, mut left, mut runs, mut commands) = (Cursor::default(), total, vec![], 0);
        while left > 0 {
            let mut lists = Pages::default();
            let (pointer, bytes) = shape.build(described, segments, &mut at, left, &mut lists);
            assert!(bytes > 0 && bytes <= left && bytes <= shape.max_bytes, "{bytes} of {left}");
            assert_eq!(bytes % shape.block, 0, "whole blocks");
            let read = match described {
                Described::Prp => read_prp(pointer, bytes, &lists),
                Described::Sgl => read_sgl(pointer, bytes, &lists, shape.sgl_alignment.unwrap()),
            };
            assert!(read.len() as u64 <= shape.max_pieces, "{} pieces", read.len());
            let pages: std::collections::HashSet<u64> =
                lists.0.keys().map(|at| at / PAGE).collect();
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
            let mut lists = Pages::default();
            let total = segments.iter().map(|segment| segment.len as u64).sum();
            let at = &mut Cursor::default();
            let (pointer, bytes) = SHAPE.build(described, segments, at, total, &mut lists);
            assert_eq!((bytes, lists.0.len()), (total, 0));
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
        let gap =
            [Segment { iova: Iova(0x1000), len: 256 }, Segment { iova: Iova(0x3000), len: 256 }];
        assert!(matches!(auto(&no_sgl, &gap), Err(LimitExceeded::Gap { .. })));
        // A block of single bytes, more of them than a command has descriptors for.
        let bytes: Vec<_> = (0..512).map(|i| Segment { iova: Iova(i << 4), len: 1 }).collect();
        assert!(matches!(auto(&SHAPE, &bytes), Err(LimitExceeded::TooManySegments { .. })));
    }
}
