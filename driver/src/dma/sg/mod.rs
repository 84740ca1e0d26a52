//! Scatter/gather lists: what a device sees of memory that need not be contiguous for it.
//!
//! A [`SgList`] is the segments of one side of a transfer, in the order of the bytes, with
//! neighbours merged. [`Pieces`] walks two lists of different shape together and cuts them
//! where the device demands ([`DmaLimits`]). A [`SgTable`] is a list together with the
//! buffers that keep its addresses mapped.

#[cfg(test)]
mod exhaustive;
mod table;
#[cfg(test)]
mod tests;
mod walk;

use super::{Buffer, DmaError, DmaLimits, Iova, LimitExceeded, LimitsError, Segment};

pub use table::SgTable;
pub use walk::{Piece, Pieces, Walk};

/// A scatter/gather list that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SgError {
    /// The list has no bytes.
    #[error("a scatter/gather list has at least one byte")]
    Empty,
    /// A segment runs past the end of the address space.
    #[error("{} bytes at IOVA {} run past the end of the address space", .0.len, .0.iova)]
    Wraps(Segment),
    /// The limits of a device cannot be met.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The device cannot be given such a list.
    #[error(transparent)]
    Exceeded(#[from] LimitExceeded),
    /// The two sides of a copy differ in length.
    #[error("the source has {source_len} bytes, the target {target_len}")]
    Lengths {
        /// Bytes of the source.
        source_len: u64,
        /// Bytes of the target.
        target_len: u64,
    },
    /// Bytes would be written twice, or be read after they were written.
    #[error(
        "{what}: {} bytes at IOVA {} and {} bytes at IOVA {}",
        .first.len, .first.iova, .second.len, .second.iova
    )]
    Overlap {
        /// Which lists overlap.
        what: &'static str,
        /// The one segment.
        first: Segment,
        /// The other segment.
        second: Segment,
    },
    /// A range is not inside its buffer.
    #[error(transparent)]
    Dma(#[from] DmaError),
}

/// The segments of one side of a transfer: never empty, neighbours merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SgList {
    segments: Vec<Segment>,
    /// The segments by address, where that is not their order already.
    sorted: Vec<Segment>,
    /// Two segments that share bytes: a source may have them, a target may not.
    overlap: Option<(Segment, Segment)>,
    len: u64,
    /// The lowest and the highest address, and the length of the longest segment.
    first: u64,
    last: u64,
    longest: u64,
}

impl SgList {
    /// Collects segments in the order of the bytes; empty ones are left out.
    ///
    /// # Errors
    ///
    /// Fails when there are no bytes, or a segment leaves the address space.
    pub fn new(segments: impl IntoIterator<Item = Segment>) -> Result<SgList, SgError> {
        let mut list: Vec<Segment> = Vec::new();
        let mut len = 0u64;
        for segment in segments {
            if segment.len == 0 {
                continue;
            }
            let wraps = || SgError::Wraps(segment);
            segment.iova.checked_add(segment.len as u64 - 1).ok_or_else(wraps)?;
            len = len.checked_add(segment.len as u64).ok_or_else(wraps)?;
            match list.last_mut() {
                Some(last) if end(last) == Some(segment.iova.0) => last.len += segment.len,
                _ => list.push(segment),
            }
        }
        let (sorted, overlap) = in_order(&list);
        let by_address = if sorted.is_empty() { &list } else { &sorted };
        let last = by_address.iter().map(last_byte).max().ok_or(SgError::Empty)?;
        let first = by_address[0].iova.0;
        let longest = list.iter().map(|segment| segment.len as u64).max().unwrap_or(0);
        Ok(SgList { segments: list, sorted, overlap, len, first, last, longest })
    }

    /// What the device sees of a whole buffer.
    ///
    /// # Errors
    ///
    /// As [`SgList::new`].
    pub fn of(buffer: &Buffer) -> Result<SgList, SgError> {
        SgList::new(buffer.segments().iter().copied())
    }

    /// What the device sees of several pieces of buffers: (buffer, offset, length).
    ///
    /// # Errors
    ///
    /// Fails when a range is not inside its buffer, and as [`SgList::new`].
    pub fn of_ranges<'a>(
        ranges: impl IntoIterator<Item = (&'a Buffer, usize, usize)>,
    ) -> Result<SgList, SgError> {
        let mut segments = Vec::new();
        for (buffer, offset, len) in ranges {
            segments.extend(buffer.segments_of(offset, len)?);
        }
        SgList::new(segments)
    }

    /// The segments in the order of the bytes.
    #[inline]
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Length in bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of the longest segment.
    #[inline]
    pub(crate) fn longest(&self) -> u64 {
        self.longest
    }

    /// Never: a list has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The list as a device with these limits takes it.
    ///
    /// # Errors
    ///
    /// Fails when a segment cannot be given to the device, two of them meet where it allows no
    /// gap, or more segments result than it takes.
    pub fn cut(&self, limits: &DmaLimits) -> Result<Vec<Segment>, SgError> {
        limits.validate()?;
        let limits = limits.aligned();
        let mut cut: Vec<Segment> = Vec::new();
        for segment in &self.segments {
            let (mut at, mut left) = (segment.iova.0, segment.len as u64);
            if let Some(last) = cut.last() {
                limits.check_gap(last.iova.0.wrapping_add(last.len as u64), at)?;
            }
            while left > 0 {
                let run = limits.run(at, left);
                limits.check(at, run)?;
                cut.push(Segment { iova: Iova(at), len: run as usize });
                // The end of the address space itself is not a start of another run.
                at = at.wrapping_add(run);
                left -= run;
            }
        }
        limits.check_count(cut.len() as u64, self.len)?;
        Ok(cut)
    }

    /// Refuses a list that a device would write some bytes of twice.
    ///
    /// # Errors
    ///
    /// [`SgError::Overlap`] with two segments that share bytes.
    #[inline]
    pub fn check_disjoint(&self) -> Result<(), SgError> {
        match self.overlap {
            None => Ok(()),
            Some((first, second)) => {
                let what = "segments of the target overlap";
                Err(SgError::Overlap { what, first, second })
            }
        }
    }

    /// Refuses a target that shares bytes with the source: what arrives would depend on the
    /// order in which the device works.
    ///
    /// # Errors
    ///
    /// [`SgError::Overlap`] with two segments that share bytes.
    #[inline]
    pub fn check_apart(&self, target: &SgList) -> Result<(), SgError> {
        // Mostly the lists lie apart as a whole.
        if self.last < target.first || target.last < self.first {
            return Ok(());
        }
        self.check_each_apart(target)
    }

    fn check_each_apart(&self, target: &SgList) -> Result<(), SgError> {
        let (ours, theirs) = (self.by_address(), target.by_address());
        let (mut i, mut j) = (0, 0);
        while i < ours.len() && j < theirs.len() {
            let (a, b) = (&ours[i], &theirs[j]);
            if last_byte(a) < b.iova.0 {
                i += 1;
            } else if last_byte(b) < a.iova.0 {
                j += 1;
            } else {
                let what = "source and target overlap";
                return Err(SgError::Overlap { what, first: *a, second: *b });
            }
        }
        Ok(())
    }

    fn by_address(&self) -> &[Segment] {
        if self.sorted.is_empty() { &self.segments } else { &self.sorted }
    }
}

fn last_byte(segment: &Segment) -> u64 {
    segment.iova.0 + (segment.len as u64 - 1)
}

fn end(segment: &Segment) -> Option<u64> {
    last_byte(segment).checked_add(1)
}

/// The segments by address (empty when they are so already), and two that overlap.
fn in_order(list: &[Segment]) -> (Vec<Segment>, Option<(Segment, Segment)>) {
    if list.windows(2).all(|pair| last_byte(&pair[0]) < pair[1].iova.0) {
        return (Vec::new(), None);
    }
    let mut sorted = list.to_vec();
    sorted.sort_unstable_by_key(|segment| segment.iova);
    let mut overlap = None;
    let mut reach = sorted[0];
    for &segment in &sorted[1..] {
        if segment.iova.0 <= last_byte(&reach) {
            overlap.get_or_insert((reach, segment));
        }
        if last_byte(&segment) > last_byte(&reach) {
            reach = segment;
        }
    }
    if overlap.is_some() {
        // Only a source may overlap itself. Its runs are made disjoint, so that two lists
        // can be compared in one pass.
        sorted = unite(&sorted);
    }
    (sorted, overlap)
}

/// Joins what overlaps in a list that is sorted by address.
fn unite(sorted: &[Segment]) -> Vec<Segment> {
    let mut united: Vec<Segment> = Vec::new();
    for segment in sorted {
        match united.last_mut() {
            Some(last) if segment.iova.0 <= last_byte(last) => {
                let reach = last_byte(last).max(last_byte(segment));
                last.len = (reach - last.iova.0 + 1) as usize;
            }
            _ => united.push(*segment),
        }
    }
    united
}
