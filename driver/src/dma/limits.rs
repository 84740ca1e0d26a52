//! What a device demands of the memory that it is given.

use super::{Iova, Segment};

/// Limits of a device's DMA, set once for a device
/// ([`Device::set_dma_limits`](crate::device::Device::set_dma_limits)) and obeyed by placement
/// and by scatter/gather lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DmaLimits {
    /// The highest address that the device reaches: 2^28 - 1 for 28 address bits.
    pub address_mask: u64,
    /// Alignment of every segment's first byte, a power of two in bytes. A segment is cut into
    /// lengths that are multiples of it, but for the last.
    pub alignment: u64,
    /// Longest segment in bytes; what is not a multiple of the alignment, the granularity and the
    /// virtual boundary is rounded down to one.
    pub max_segment: u64,
    /// The most segments of one transfer.
    pub max_segments: u64,
    /// No segment crosses a multiple of this many bytes, a power of two.
    pub boundary: Option<u64>,
    /// Where one segment ends and the next begins, both lie on a multiple of this many bytes,
    /// a power of two: lists that give only the first and the last page in part, such as
    /// NVMe's PRP lists.
    pub virt_boundary: Option<u64>,
    /// Lengths of segments are multiples of this many bytes, a power of two: 4 for a device
    /// that counts in doublewords.
    pub granularity: u64,
}

impl Default for DmaLimits {
    /// No limit at all: every byte of a 64-bit address space, in segments of any length.
    fn default() -> Self {
        DmaLimits {
            address_mask: u64::MAX,
            alignment: 1,
            max_segment: u64::MAX,
            max_segments: u64::MAX,
            boundary: None,
            virt_boundary: None,
            granularity: 1,
        }
    }
}

/// Limits that no segment meets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// A value that has to be a power of two is none.
    #[error("{what} of {value:#x} bytes is not a power of two")]
    NotAPowerOfTwo {
        /// Which of the limits.
        what: &'static str,
        /// Its value, in bytes.
        value: u64,
    },
    /// Two limits exclude each other.
    #[error("{what} of {value:#x} bytes is less than {least_what} of {least:#x} bytes")]
    TooSmall {
        /// Which of the limits.
        what: &'static str,
        /// Its value, in bytes.
        value: u64,
        /// What it must not be less than.
        least_what: &'static str,
        /// The value of that, in bytes.
        least: u64,
    },
    /// No transfer could have a segment.
    #[error("a transfer of no segments moves nothing")]
    NoSegments,
}

/// A list that a device with limits does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitExceeded {
    /// A segment starts where the device cannot start one.
    #[error("a segment starts at IOVA {iova}, the device needs multiples of {alignment:#x}")]
    Misaligned {
        /// Where it starts.
        iova: Iova,
        /// What the device needs, in bytes.
        alignment: u64,
    },
    /// A segment has a length that the device cannot count.
    #[error(
        "a segment has {len} bytes at IOVA {iova}, the device needs multiples of {granularity}"
    )]
    Granularity {
        /// Where it starts.
        iova: Iova,
        /// Its length in bytes.
        len: u64,
        /// What the device needs, in bytes.
        granularity: u64,
    },
    /// Two segments meet where the device's lists allow no gap.
    #[error(
        "segments meet at IOVAs {end:#x} and {start:#x}, the device needs multiples of \
         {virt_boundary:#x} there"
    )]
    Gap {
        /// One past the last byte of the one, 0 at the end of the address space.
        end: u64,
        /// The first byte of the other.
        start: u64,
        /// What the device needs, in bytes.
        virt_boundary: u64,
    },
    /// Memory lies above what the device reaches.
    #[error("{len} bytes at {address:#x} lie above the device's mask {mask:#x}")]
    AboveMask {
        /// First address.
        address: u64,
        /// Length in bytes.
        len: u64,
        /// The highest address that the device reaches.
        mask: u64,
    },
    /// The device takes fewer segments.
    #[error("{needed} segments are needed for {len} bytes, the device takes {limit}")]
    TooManySegments {
        /// Segments needed.
        needed: u64,
        /// Segments that the device takes.
        limit: u64,
        /// Bytes of the list.
        len: u64,
    },
}

impl DmaLimits {
    /// Refuses limits that no segment meets.
    ///
    /// # Errors
    ///
    /// Says which limit cannot be, or which two exclude each other.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let powers = [
            ("an alignment", Some(self.alignment)),
            ("a boundary", self.boundary),
            ("a virtual boundary", self.virt_boundary),
            ("a granularity", Some(self.granularity)),
        ];
        for (what, value) in powers {
            if let Some(value) = value.filter(|value| !value.is_power_of_two()) {
                return Err(LimitsError::NotAPowerOfTwo { what, value });
            }
        }
        let (least_what, least) = if self.granularity > self.alignment {
            ("a granularity", self.granularity)
        } else {
            ("an alignment", self.alignment)
        };
        for (what, value) in
            [("a longest segment", Some(self.max_segment)), ("a boundary", self.boundary)]
        {
            if let Some(value) = value.filter(|&value| value < least) {
                return Err(LimitsError::TooSmall { what, value, least_what, least });
            }
        }
        // A segment that has to be cut could not be cut where its parts may meet.
        let virt_boundary = self.virt_boundary.unwrap_or(1);
        for (what, value) in
            [("a longest segment", Some(self.max_segment)), ("a boundary", self.boundary)]
        {
            if let Some(value) = value.filter(|&value| value < virt_boundary) {
                let (least_what, least) = ("a virtual boundary", virt_boundary);
                return Err(LimitsError::TooSmall { what, value, least_what, least });
            }
        }
        if self.max_segments == 0 {
            return Err(LimitsError::NoSegments);
        }
        Ok(())
    }

    /// The same limits with the longest segment cut down so that cutting there keeps
    /// alignment, granularity and virtual boundary.
    #[must_use]
    pub(super) fn aligned(self) -> DmaLimits {
        let unit = self.alignment.max(self.granularity).max(self.virt_boundary.unwrap_or(1));
        DmaLimits { max_segment: self.max_segment & !(unit - 1), ..self }
    }

    /// How many of `left` bytes at `iova` one segment may have.
    #[inline]
    pub(super) fn run(&self, iova: u64, left: u64) -> u64 {
        let run = left.min(self.max_segment);
        let run = match self.boundary {
            // The distance to the next multiple: of a power of two, and at least 1.
            Some(boundary) => run.min(boundary - (iova & (boundary - 1))),
            None => run,
        };
        match self.virt_boundary {
            // What is cut off begins at a multiple: the last one within the run, which is as
            // long as from one multiple to the next at least, or ends at one.
            Some(virt_boundary) if run < left => {
                run - (iova.wrapping_add(run) & (virt_boundary - 1))
            }
            _ => run,
        }
    }

    /// How long a segment may be that is not looked at for its address; 0 is none.
    #[inline]
    pub(crate) fn max_run(&self) -> u64 {
        if self.boundary.is_none() { self.max_segment } else { 0 }
    }

    /// Whether segments have to be looked at one by one.
    pub(super) fn is_per_segment(&self) -> bool {
        self.alignment > 1
            || self.granularity > 1
            || self.virt_boundary.is_some()
            || self.address_mask != u64::MAX
    }

    /// Refuses a segment that the device cannot be given.
    pub(super) fn check(&self, iova: u64, len: u64) -> Result<(), LimitExceeded> {
        if iova & (self.alignment - 1) != 0 {
            return Err(LimitExceeded::Misaligned { iova: Iova(iova), alignment: self.alignment });
        }
        if len & (self.granularity - 1) != 0 {
            let (iova, granularity) = (Iova(iova), self.granularity);
            return Err(LimitExceeded::Granularity { iova, len, granularity });
        }
        let last = iova.checked_add(len.saturating_sub(1));
        if last.is_none_or(|last| last > self.address_mask) {
            let mask = self.address_mask;
            return Err(LimitExceeded::AboveMask { address: iova, len, mask });
        }
        Ok(())
    }

    /// Refuses neighbours in a list whose meeting point the device cannot describe; `end` is
    /// one past the last byte of the first.
    pub(super) fn check_gap(&self, end: u64, start: u64) -> Result<(), LimitExceeded> {
        match self.virt_boundary {
            Some(virt_boundary) if (end | start) & (virt_boundary - 1) != 0 => {
                Err(LimitExceeded::Gap { end, start, virt_boundary })
            }
            _ => Ok(()),
        }
    }

    /// Refuses more segments than the device takes.
    pub(super) fn check_count(&self, needed: u64, len: u64) -> Result<(), LimitExceeded> {
        let limit = self.max_segments;
        if needed <= limit {
            return Ok(());
        }
        Err(LimitExceeded::TooManySegments { needed, limit, len })
    }

    /// Refuses what a device cannot be given in one transfer, cut where it demands. Lengths
    /// are not looked at: a transfer may take a part.
    pub(super) fn check_placed(&self, segments: &[Segment]) -> Result<(), LimitExceeded> {
        let limits = DmaLimits { granularity: 1, ..self.aligned() };
        let mut needed = 0u64;
        for segment in segments {
            limits.check(segment.iova.0, segment.len as u64)?;
            let (mut at, mut left) = (segment.iova.0, segment.len as u64);
            if limits.max_run() >= left {
                needed += 1;
                continue;
            }
            if limits.max_segments == u64::MAX {
                continue;
            }
            while left > 0 {
                let run = limits.run(at, left);
                (at, left, needed) = (at.wrapping_add(run), left - run, needed + 1);
            }
        }
        for pair in segments.windows(2) {
            let end = pair[0].iova.0.wrapping_add(pair[0].len as u64);
            limits.check_gap(end, pair[1].iova.0)?;
        }
        let len = segments.iter().map(|segment| segment.len as u64).sum();
        limits.check_count(needed, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(iova: u64, len: usize) -> Segment {
        Segment { iova: Iova(iova), len }
    }

    #[test]
    fn limits_that_exclude_each_other_are_named() {
        let none = DmaLimits::default();
        assert_eq!(none.validate(), Ok(()));
        for (limits, part) in [
            (DmaLimits { alignment: 3, ..none }, "an alignment of 0x3"),
            (DmaLimits { boundary: Some(0), ..none }, "a boundary of 0x0"),
            (DmaLimits { virt_boundary: Some(5), ..none }, "a virtual boundary of 0x5"),
            (DmaLimits { granularity: 0, ..none }, "a granularity of 0x0"),
            (DmaLimits { max_segment: 7, alignment: 8, ..none }, "0x7 bytes is less than"),
            (DmaLimits { max_segment: 0, ..none }, "a longest segment of 0x0"),
            (DmaLimits { boundary: Some(4), granularity: 8, ..none }, "a granularity of 0x8"),
            (DmaLimits { max_segments: 0, ..none }, "no segments"),
            (
                DmaLimits { max_segment: 4095, virt_boundary: Some(4096), ..none },
                "a longest segment of 0xfff bytes is less than a virtual boundary of 0x1000",
            ),
            (DmaLimits { boundary: Some(4), virt_boundary: Some(8), ..none }, "a boundary of 0x4"),
        ] {
            let said = limits.validate().unwrap_err().to_string();
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn what_is_placed_is_cut_and_counted_as_the_device_takes_it() {
        let none = DmaLimits::default();
        let list = [segment(0x1000, 0x3000), segment(0x8000, 0x1001)];
        assert_eq!(none.check_placed(&list), Ok(()));
        let four = DmaLimits { max_segment: 0x1000, max_segments: 4, ..none };
        assert_eq!(
            four.check_placed(&list),
            Err(LimitExceeded::TooManySegments { needed: 5, limit: 4, len: 0x4001 })
        );
        assert_eq!(DmaLimits { max_segments: 5, ..four }.check_placed(&list), Ok(()));
        let bounded = DmaLimits { boundary: Some(0x2000), max_segments: 3, ..none };
        assert_eq!(bounded.check_placed(&list), Ok(()));
        let pages = DmaLimits { virt_boundary: Some(0x1000), ..none };
        assert_eq!(pages.check_placed(&list), Ok(()));
        assert_eq!(pages.check_placed(&[segment(0x1234, 0xdcc), segment(0x5000, 1)]), Ok(()));
        assert_eq!(
            pages.check_placed(&[segment(0x1000, 0x800), segment(0x5000, 1)]),
            Err(LimitExceeded::Gap { end: 0x1800, start: 0x5000, virt_boundary: 0x1000 })
        );
        let low = DmaLimits { address_mask: 0x9000, ..none };
        assert_eq!(low.check_placed(&list), Ok(()));
        let low = DmaLimits { address_mask: 0x8fff, ..none };
        assert!(matches!(low.check_placed(&list), Err(LimitExceeded::AboveMask { .. })));
        let last = [segment(u64::MAX - 0xfff, 0x1000)];
        assert_eq!(none.check_placed(&last), Ok(()), "the end of the address space");
    }
}
