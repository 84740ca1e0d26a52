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
mod exhaustive;
#[cfg(test)]
mod tests;
