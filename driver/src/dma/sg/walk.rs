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

    /// The pieces that [`Walk::next`] would give from here on, as long as each is a whole
    /// segment of both lists: they need no arithmetic. Who takes
    /// some says so with [`Walk::pass`].
    #[inline]
    pub(crate) fn whole<'a>(
        &self,
        source: &'a [Segment],
        target: &'a [Segment],
        limits: &DmaLimits,
    ) -> impl Iterator<Item = Piece> + use<'a> {
        let (sources, targets) = (self.source.ahead(source), self.target.ahead(target));
        let max_len = limits.max_run();
        sources.iter().zip(targets).map_while(move |(from, to)| {
            let len = from.len as u64;
            let fits = from.len == to.len && len <= max_len;
            fits.then_some(Piece { source: from.iova, target: to.iova, len })
        })
    }

    /// As [`Walk::whole`], as long as each is a whole segment of the source and ends inside
    /// the current segment of the target.
    #[inline]
    pub(crate) fn gathered<'a>(
        &self,
        source: &'a [Segment],
        limits: &DmaLimits,
    ) -> impl Iterator<Item = Piece> + use<'a> {
        let pieces = inside(self.source.ahead(source), self.target, limits.max_run());
        pieces.map(|(from, to, len)| Piece { source: from, target: to, len })
    }

    /// As [`Walk::gathered`], with the sides exchanged.
    #[inline]
    pub(crate) fn scattered<'a>(
        &self,
        target: &'a [Segment],
        limits: &DmaLimits,
    ) -> impl Iterator<Item = Piece> + use<'a> {
        let pieces = inside(self.target.ahead(target), self.source, limits.max_run());
        pieces.map(|(to, from, len)| Piece { source: from, target: to, len })
    }

    /// Whether the next piece begins a segment of both lists.
    #[inline]
    pub(crate) fn is_between(&self) -> bool {
        self.source.left | self.target.left == 0
    }

    /// Whether the next piece begins in the middle of a segment of the target.
    #[inline]
    pub(crate) fn is_in_target(&self) -> bool {
        self.target.left != 0
    }

    /// Goes behind the first `count` pieces, of `len` bytes in all, of [`Walk::whole`],
    /// [`Walk::gathered`] or [`Walk::scattered`].
    #[inline]
    pub(crate) fn pass(&mut self, count: u64, len: u64) {
        for side in [&mut self.source, &mut self.target] {
            match side.left {
                0 => side.next += count as usize,
                _ => side.advance(len),
            }
        }
    }
}

/// Segments that follow each other inside of the segment that a cursor is in: where each
/// starts, where it is on the other side, and its length.
#[inline]
fn inside(
    list: &[Segment],
    Cursor { mut at, mut left, .. }: Cursor,
    max_len: u64,
) -> impl Iterator<Item = (Iova, Iova, u64)> {
    list.iter().map_while(move |segment| {
        let len = segment.len as u64;
        if len > max_len || len > left {
            return None;
        }
        let begin = Iova(at);
        at = at.wrapping_add(len);
        left -= len;
        Some((segment.iova, begin, len))
    })
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
