//! Two scatter/gather lists walked together.

use super::{Iova, Segment, SgError, SgLimits, SgList};

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
        limits: &SgLimits,
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
    /// segment of both lists, and not the last of either: those need no arithmetic. Who
    /// takes some of them says so with [`Walk::pass`].
    #[inline]
    pub(crate) fn whole<'a>(
        &self,
        source: &'a [Segment],
        target: &'a [Segment],
        limits: &SgLimits,
    ) -> impl Iterator<Item = Piece> + use<'a> {
        let between = self.source.left | self.target.left == 0 && limits.boundary.is_none();
        let max_len = limits.max_len;
        let rest = |list: &'a [Segment], cursor: Cursor| match list {
            [others @ .., _] if between => others.get(cursor.next..).unwrap_or_default(),
            _ => &[],
        };
        let (source, target) = (rest(source, self.source), rest(target, self.target));
        source.iter().zip(target).map_while(move |(from, to)| {
            let len = from.len as u64;
            let whole = from.len == to.len && len <= max_len;
            whole.then_some(Piece { source: from.iova, target: to.iova, len })
        })
    }

    /// Goes behind the first `count` pieces of [`Walk::whole`].
    #[inline]
    pub(crate) fn pass(&mut self, count: u64) {
        self.source.next += count as usize;
        self.target.next += count as usize;
    }
}

/// The pieces of a copy between two lists of the same length.
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    source: &'a SgList,
    target: &'a SgList,
    limits: SgLimits,
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
        limits: &SgLimits,
    ) -> Result<Pieces<'a>, SgError> {
        Pieces::within(source, target, limits.checked()?)
    }

    /// As [`Pieces::new`], for limits that were checked.
    #[inline]
    pub(crate) fn within(
        source: &'a SgList,
        target: &'a SgList,
        limits: SgLimits,
    ) -> Result<Pieces<'a>, SgError> {
        if source.len() != target.len() {
            let (source_len, target_len) = (source.len(), target.len());
            return Err(SgError::Lengths { source_len, target_len });
        }
        target.check_disjoint()?;
        source.check_apart(target)?;
        let pieces = Pieces { source, target, limits, walk: Walk::default() };
        if limits.alignment > 1 || pieces.at_most() > limits.max_segments {
            pieces.check_each()?;
        }
        Ok(pieces)
    }

    /// A number that the pieces do not exceed, known without a walk.
    ///
    /// A piece ends where a segment of either list does, at a multiple of the boundary on
    /// either side, or because it is as long as can be.
    #[must_use]
    pub fn at_most(&self) -> u64 {
        let (sources, targets) = (self.source.segments().len(), self.target.segments().len());
        let ends = (sources + targets) as u64 - 1;
        let full = self.source.len() / self.limits.max_len;
        let crossings = |segments: usize| match self.limits.boundary {
            // A segment of n bytes crosses at most n / boundary + 1 multiples.
            Some(boundary) => self.source.len() / boundary + segments as u64,
            None => 0,
        };
        ends + full + crossings(sources) + crossings(targets)
    }

    fn check_each(&self) -> Result<(), SgError> {
        let mut needed = 0;
        for piece in self.clone() {
            self.limits.check_start(piece.source.0)?;
            self.limits.check_start(piece.target.0)?;
            needed += 1;
        }
        if needed > self.limits.max_segments {
            let limit = self.limits.max_segments;
            return Err(SgError::TooManySegments { needed, limit, len: self.source.len() });
        }
        Ok(())
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    #[inline]
    fn next(&mut self) -> Option<Piece> {
        self.walk.next(self.source.segments(), self.target.segments(), &self.limits)
    }
}
