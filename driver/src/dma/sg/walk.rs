//! Two scatter/gather lists walked together.

use super::{DmaLimits, Iova, Segment, SgError, SgList};

/// A run that is contiguous on both sides and within a device's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where the bytes come from.
    pub source: Iova,
    /// Where they go.
    pub target: Iova,
    /// Length in bytes.
    pub len: u64,
}

/// A place in a list.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Cursor {
    /// The segment after the current one.
    next: usize,
    /// First address that was not passed, and what is left of its segment.
    at: u64,
    left: u64,
}

impl Cursor {
    /// Goes to the next segment when the current one is used up; `false` at the end.
    #[inline]
    fn settle(&mut self, list: &[Segment]) -> bool {
        if self.left == 0 {
            let Some(segment) = list.get(self.next) else { return false };
            *self = Cursor { next: self.next + 1, at: segment.iova.0, left: segment.len as u64 };
        }
        true
    }

    /// The segments that no byte was passed of; none in the middle of one.
    #[inline]
    fn ahead<'a>(&self, list: &'a [Segment]) -> &'a [Segment] {
        if self.left == 0 { list.get(self.next..).unwrap_or_default() } else { &[] }
    }

    #[inline]
    fn advance(&mut self, len: u64) {
        self.at = self.at.wrapping_add(len);
        self.left -= len;
    }
}

/// A place in two lists, which it does not hold: what is left of a transfer.
///
/// It is moved on by [`Walk::next`] with the segments that it began with. Nothing is allocated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Walk {
    source: Cursor,
    target: Cursor,
}

impl Walk {
    /// Behind so many segments of both lists.
    #[inline]
    pub(crate) fn behind(segments: usize) -> Walk {
        let cursor = Cursor { next: segments, ..Cursor::default() };
        Walk { source: cursor, target: cursor }
    }

    /// Behind so many segments of the source, and as many bytes of the one of the target.
    pub(crate) fn gathered(segments: usize, target: &Segment, bytes: u64) -> Walk {
        let Walk { source, mut target } = Walk::behind(segments).in_segment(target);
        target.advance(bytes);
        Walk { source, target }
    }

    /// As [`Walk::gathered`], with the sides exchanged.
    pub(crate) fn scattered(segments: usize, source: &Segment, bytes: u64) -> Walk {
        let Walk { source: target, target: source } = Walk::gathered(segments, source, bytes);
        Walk { source, target }
    }

    /// With the target at the begin of its only segment.
    fn in_segment(self, target: &Segment) -> Walk {
        let target = Cursor { next: 1, at: target.iova.0, left: target.len as u64 };
        Walk { target, ..self }
    }

    /// The next piece, as long as both lists and the limits allow; `None` at the end of the
    /// shorter list.
    #[inline]
    pub fn next(
        &mut self,
        source: &[Segment],
        target: &[Segment],
        limits: &DmaLimits,
    ) -> Option<Piece> {
        if !self.source.settle(source) || !self.target.settle(target) {
            return None;
        }
        let (from, to) = (self.source.at, self.target.at);
        let len = limits.run(to, limits.run(from, self.source.left.min(self.target.left)));
        self.source.advance(len);
        self.target.advance(len);
        Some(Piece { source: Iova(from), target: Iova(to), len })
    }

    /// The segments of both lists that no byte was passed of. Who takes pieces that end with a
    /// segment itself, without [`Walk::next`], says so with [`Walk::pass`].
    #[inline]
    pub(crate) fn ahead<'a>(
        &self,
        source: &'a [Segment],
        target: &'a [Segment],
    ) -> (&'a [Segment], &'a [Segment]) {
        (self.source.ahead(source), self.target.ahead(target))
    }

    /// Whether the next piece begins a segment of both lists.
    #[inline]
    pub(crate) fn is_between(&self) -> bool {
        self.source.left | self.target.left == 0
    }

    /// The address of the next byte of the source's segment, and what is left of that: 0 between
    /// two segments.
    #[inline]
    pub(crate) fn in_source(&self) -> (u64, u64) {
        (self.source.at, self.source.left)
    }

    /// As [`Walk::in_source`], of the target.
    #[inline]
    pub(crate) fn in_target(&self) -> (u64, u64) {
        (self.target.at, self.target.left)
    }

    /// Goes behind `count` pieces, of `len` bytes in all, each of which was a whole segment of
    /// every list that is between two segments; none reaches beyond the segment that the other
    /// list is in.
    #[inline]
    pub(crate) fn pass(&mut self, count: usize, len: u64) {
        for side in [&mut self.source, &mut self.target] {
            match side.left {
                0 => side.next += count,
                _ => side.advance(len),
            }
        }
    }
}

/// The pieces of a copy between two lists of the same length.
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    source: &'a SgList,
    target: &'a SgList,
    limits: DmaLimits,
    walk: Walk,
}

impl<'a> Pieces<'a> {
    /// Checks that a device with these limits can copy `source` to `target`.
    ///
    /// # Errors
    ///
    /// Fails when the lengths differ, the target overlaps itself or the source, a piece
    /// would start misaligned, or more pieces result than the device takes.
    pub fn new(
        source: &'a SgList,
        target: &'a SgList,
        limits: &DmaLimits,
    ) -> Result<Pieces<'a>, SgError> {
        limits.validate()?;
        Pieces::within(source, target, limits.aligned())
    }

    /// As [`Pieces::new`], for limits that were checked.
    // Otherwise it depends on how the crate is cut into codegen units.
    #[inline(always)]
    pub(crate) fn within(
        source: &'a SgList,
        target: &'a SgList,
        limits: DmaLimits,
    ) -> Result<Pieces<'a>, SgError> {
        if source.len() != target.len() {
            let (source_len, target_len) = (source.len(), target.len());
            return Err(SgError::Lengths { source_len, target_len });
        }
        target.check_disjoint()?;
        source.check_apart(target)?;
        let pieces = Pieces { source, target, limits, walk: Walk::default() };
        if limits.is_per_segment() || pieces.at_most() > limits.max_segments {
            pieces.check_each()?;
        }
        Ok(pieces)
    }

    /// A number that the pieces do not exceed, known without a walk.
    ///
    /// A piece ends where a segment of either list does, at a multiple of the boundary or of
    /// the virtual boundary on either side, or because it is as long as can be.
    #[inline]
    #[must_use]
    pub fn at_most(&self) -> u64 {
        let (sources, targets) = (self.source.segments().len(), self.target.segments().len());
        let ends = (sources + targets) as u64 - 1;
        let full = self.source.len() / self.limits.max_segment;
        let crossings = |segments: usize| match self.limits.boundary {
            // A segment of n bytes crosses at most n / boundary + 1 multiples.
            Some(boundary) => self.source.len() / boundary + segments as u64,
            None => 0,
        };
        // The first piece of a segment may be cut short for the others to begin at a multiple.
        let short = if self.limits.virt_boundary.is_some() { ends + 1 } else { 0 };
        ends + full + short + crossings(sources) + crossings(targets)
    }

    fn check_each(&self) -> Result<(), SgError> {
        let mut needed = 0;
        let mut ends: Option<(u64, u64)> = None;
        for Piece { source: Iova(source), target: Iova(target), len } in self.clone() {
            self.limits.check(source, len)?;
            self.limits.check(target, len)?;
            if let Some((source_end, target_end)) = ends {
                self.limits.check_gap(source_end, source)?;
                self.limits.check_gap(target_end, target)?;
            }
            ends = Some((source.wrapping_add(len), target.wrapping_add(len)));
            needed += 1;
        }
        Ok(self.limits.check_count(needed, self.source.len())?)
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        self.walk.next(self.source.segments(), self.target.segments(), &self.limits)
    }
}
