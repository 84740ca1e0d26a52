//! I/O virtual addresses and their allocation.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

/// An address as a device puts it on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct Iova(pub u64);

impl Iova {
    /// The address `offset` bytes further on; `None` past the end of the address space.
    #[must_use]
    pub fn checked_add(self, offset: u64) -> Option<Iova> {
        self.0.checked_add(offset).map(Iova)
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::LowerHex for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::LowerHex::fmt(&self.0, f)
    }
}

/// A run of addresses that is contiguous for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Segment {
    /// First device address.
    pub iova: Iova,
    /// Length in bytes.
    pub len: usize,
}

/// Why no IOVA range was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IovaError {
    /// A length of 0, one that overflows when rounded up, or an alignment that is not a
    /// power of two.
    #[error("{len} bytes with an alignment of {align:#x} is not a range that can be allocated")]
    BadRequest {
        /// Length asked for, in bytes.
        len: u64,
        /// Alignment asked for, in bytes.
        align: u64,
    },
    /// Nothing at all lies under the device's address mask.
    #[error(
        "the device reaches addresses up to {mask:#x}, the first that the IOMMU can map is {}: if \
         the device drives more address bits, tell its driver so",
        lowest_text(*.lowest)
    )]
    MaskTooSmall {
        /// The highest address that the device reaches.
        mask: u64,
        /// The lowest address of any window; `None` when there is no window.
        lowest: Option<u64>,
    },
    /// No free run under the mask is long enough.
    #[error(
        "no free IOVA run of {len} bytes aligned to {align:#x} under {mask:#x}: {free} bytes are \
         free there, the longest aligned run has {longest}"
    )]
    NoRun {
        /// Length asked for, in bytes, rounded up to whole pages.
        len: u64,
        /// Alignment asked for, in bytes.
        align: u64,
        /// The highest address allowed.
        mask: u64,
        /// Free bytes under the mask.
        free: u64,
        /// Longest aligned free run under the mask, in bytes.
        longest: u64,
    },
    /// A range was freed that is not allocated.
    #[error("the IOVA range of {len} bytes at {iova:#x} is not allocated")]
    NotAllocated {
        /// First address.
        iova: u64,
        /// Length in bytes.
        len: u64,
    },
}

fn lowest_text(lowest: Option<u64>) -> String {
    lowest.map_or_else(|| "none".into(), |address| format!("{address:#x}"))
}

/// Hands out disjoint ranges of I/O virtual addresses.
///
/// Ranges come from windows (what the IOMMU maps, less what is reserved). The highest
/// range that fits is taken, as Linux does, so that low addresses stay free for devices
/// that reach no others. Freed ranges are merged with free neighbours and used again.
#[derive(Debug, Clone)]
pub struct IovaAllocator {
    /// Granule of every range in bytes; a power of two.
    granule: u64,
    /// Free runs: first address to last address, disjoint and never adjacent.
    free: BTreeMap<u64, u64>,
    /// Allocated ranges: first address to last address.
    used: BTreeMap<u64, u64>,
    /// What may be handed out at all, allocated or not: as `free`.
    windows: BTreeMap<u64, u64>,
}

impl IovaAllocator {
    /// Creates an allocator over the windows, which may overlap and come in any order.
    ///
    /// `granule` is the IOMMU's smallest page in bytes; the windows are shrunk to it.
    ///
    /// # Panics
    ///
    /// When the granule is not a power of two.
    #[must_use]
    pub fn new(granule: u64, windows: &[RangeInclusive<u64>]) -> IovaAllocator {
        assert!(granule.is_power_of_two(), "the granule is a page size");
        let mut allocator = IovaAllocator {
            granule,
            free: BTreeMap::new(),
            used: BTreeMap::new(),
            windows: BTreeMap::new(),
        };
        for window in windows {
            let Some(start) = window.start().checked_next_multiple_of(granule) else {
                continue;
            };
            // The last whole granule; address 2^64 - 1 ends one.
            let end_exclusive = u128::from(*window.end()) + 1;
            let end = end_exclusive - end_exclusive % u128::from(granule);
            if end > u128::from(start) {
                merge(&mut allocator.windows, start, (end - 1) as u64);
            }
        }
        allocator.free = allocator.windows.clone();
        allocator
    }

    /// The granule of every range, in bytes.
    #[must_use]
    pub fn granule(&self) -> u64 {
        self.granule
    }

    /// Takes a range out of what can be handed out, for good.
    ///
    /// Allocated ranges are not affected until they are freed.
    pub fn reserve(&mut self, range: RangeInclusive<u64>) {
        let (start, end) = (*range.start(), *range.end());
        if start > end {
            return;
        }
        let start = start - start % self.granule;
        let end = end | (self.granule - 1);
        cut(&mut self.free, start, end);
        cut(&mut self.windows, start, end);
    }

    /// Replaces the windows, keeping what is allocated: an address space shrinks when
    /// another device joins it.
    pub fn set_windows(&mut self, windows: &[RangeInclusive<u64>]) {
        let mut next = IovaAllocator::new(self.granule, windows);
        for (&first, &last) in &self.used {
            cut(&mut next.free, first, last);
        }
        (self.free, self.windows) = (next.free, next.windows);
    }

    /// Allocates `len` bytes, rounded up to whole granules, at a multiple of `align`, with
    /// every address at or below `mask`.
    ///
    /// # Errors
    ///
    /// Says what is free under the mask when nothing fits.
    pub fn allocate(&mut self, len: u64, align: u64, mask: u64) -> Result<Iova, IovaError> {
        let bad = IovaError::BadRequest { len, align };
        if len == 0 || !align.is_power_of_two() {
            return Err(bad);
        }
        let align = align.max(self.granule);
        let len = len.checked_next_multiple_of(self.granule).ok_or(bad)?;
        let found = self.free.range(..=mask).rev().find_map(|(&first, &last)| {
            let start = highest_start(first, last.min(mask), len, align)?;
            Some((first, last, start))
        });
        let Some((first, last, start)) = found else {
            return Err(self.explain(len, align, mask));
        };
        let end = start + (len - 1);
        self.free.remove(&first);
        if first < start {
            self.free.insert(first, start - 1);
        }
        if end < last {
            self.free.insert(end + 1, last);
        }
        self.used.insert(start, end);
        Ok(Iova(start))
    }

    /// Allocates `len` bytes, rounded up to whole granules, as few ranges at or below
    /// `mask`: the longest free runs first, each range of at most `longest` bytes and,
    /// except for the last, of at least `least`.
    ///
    /// # Errors
    ///
    /// Says what is free under the mask when the runs of at least `least` bytes are not
    /// enough; nothing is allocated then.
    pub fn allocate_runs(
        &mut self,
        len: u64,
        longest: u64,
        least: u64,
        mask: u64,
    ) -> Result<Vec<(Iova, u64)>, IovaError> {
        let bad = IovaError::BadRequest { len, align: self.granule };
        let longest = longest - longest % self.granule;
        if len == 0 || longest == 0 {
            return Err(bad);
        }
        let len = len.checked_next_multiple_of(self.granule).ok_or(bad)?;
        let runs = self.free.range(..=mask).filter_map(|(&first, &last)| {
            let run = (last.min(mask) - first).saturating_add(1);
            let run = run - run % self.granule;
            (run > 0).then_some((run, first))
        });
        let mut runs: Vec<(u64, u64)> = runs.collect();
        runs.sort_unstable_by(|a, b| b.cmp(a));
        let mut plan = Vec::new();
        let mut missing = len;
        for (run, first) in runs {
            let mut end = first + (run - 1);
            let mut left = run;
            // From the top of the run down, as single ranges are taken.
            while missing > 0 && left > 0 {
                let part = missing.min(longest).min(left);
                if part < least.min(missing) {
                    break;
                }
                plan.push((end - (part - 1), part));
                (left, missing) = (left - part, missing - part);
                end = end.saturating_sub(part);
            }
        }
        if missing > 0 {
            return Err(self.explain(least.clamp(self.granule, len), self.granule, mask));
        }
        for &(start, part) in &plan {
            cut(&mut self.free, start, start + (part - 1));
            self.used.insert(start, start + (part - 1));
        }
        Ok(plan.into_iter().map(|(start, part)| (Iova(start), part)).collect())
    }

    /// Gives a range back.
    ///
    /// # Errors
    ///
    /// Refuses, and changes nothing, when this is not exactly one allocated range.
    pub fn free(&mut self, iova: Iova, len: u64) -> Result<(), IovaError> {
        let not_allocated = IovaError::NotAllocated { iova: iova.0, len };
        let rounded = len.checked_next_multiple_of(self.granule).filter(|&len| len > 0);
        let end = rounded.and_then(|len| iova.0.checked_add(len - 1));
        if end.is_none() || self.used.get(&iova.0).copied() != end {
            return Err(not_allocated);
        }
        if let Some(end) = self.used.remove(&iova.0) {
            // Only what a window still has: it may have shrunk meanwhile.
            let windows: Vec<(u64, u64)> = overlapping(&self.windows, iova.0, end).collect();
            for (first, last) in windows {
                merge(&mut self.free, first.max(iova.0), last.min(end));
            }
        }
        Ok(())
    }

    /// Free bytes at or below `mask`.
    #[must_use]
    pub fn free_bytes(&self, mask: u64) -> u64 {
        let runs = self.free.range(..=mask);
        runs.fold(0u64, |sum, (&first, &last)| {
            sum.saturating_add((last.min(mask) - first).saturating_add(1))
        })
    }

    /// The longest free run at or below `mask` that starts at a multiple of `align`, in bytes.
    #[must_use]
    pub fn longest_run(&self, align: u64, mask: u64) -> u64 {
        let align = align.max(self.granule);
        let runs = self.free.range(..=mask);
        runs.filter_map(|(&first, &last)| {
            let start = first.checked_next_multiple_of(align)?;
            let run = last.min(mask).checked_sub(start)?.saturating_add(1);
            Some(run - run % self.granule)
        })
        .max()
        .unwrap_or(0)
    }

    /// The free runs, ascending.
    pub fn free_runs(&self) -> impl Iterator<Item = RangeInclusive<u64>> {
        self.free.iter().map(|(&first, &last)| first..=last)
    }

    /// How many ranges are allocated.
    #[must_use]
    pub fn allocated(&self) -> usize {
        self.used.len()
    }

    fn explain(&self, len: u64, align: u64, mask: u64) -> IovaError {
        let lowest = self.free.keys().chain(self.used.keys()).min().copied();
        // Not even one granule: the mask is the reason, not what is in use.
        match lowest {
            Some(lowest) if mask >= lowest.saturating_add(self.granule - 1) => IovaError::NoRun {
                len,
                align,
                mask,
                free: self.free_bytes(mask),
                longest: self.longest_run(align, mask),
            },
            _ => IovaError::MaskTooSmall { mask, lowest },
        }
    }
}

/// The runs that share addresses with `start..=end`, descending.
fn overlapping(
    runs: &BTreeMap<u64, u64>,
    start: u64,
    end: u64,
) -> impl Iterator<Item = (u64, u64)> + '_ {
    let from_above = runs.range(..=end).rev();
    from_above.take_while(move |&(_, &last)| last >= start).map(|(&first, &last)| (first, last))
}

/// Takes `start..=end` out of runs.
fn cut(runs: &mut BTreeMap<u64, u64>, start: u64, end: u64) {
    let hit: Vec<(u64, u64)> = overlapping(runs, start, end).collect();
    for (first, last) in hit {
        runs.remove(&first);
        if first < start {
            runs.insert(first, start - 1);
        }
        if last > end {
            runs.insert(end + 1, last);
        }
    }
}

/// Adds a run to others, merged with what it touches or overlaps.
fn merge(runs: &mut BTreeMap<u64, u64>, start: u64, end: u64) {
    let (mut start, mut end) = (start, end);
    // Runs that begin at or before the address behind the new one can touch it.
    let reach = end.saturating_add(1);
    while let Some((&first, &last)) = runs.range(..=reach).next_back() {
        if last.saturating_add(1) < start {
            break;
        }
        runs.remove(&first);
        start = start.min(first);
        end = end.max(last);
    }
    runs.insert(start, end);
}

/// The highest aligned start of `len` bytes inside `first..=last`.
fn highest_start(first: u64, last: u64, len: u64, align: u64) -> Option<u64> {
    let start = last.checked_sub(len - 1)?;
    let start = start - start % align;
    (start >= first).then_some(start)
}

#[cfg(test)]
mod exhaustive;
#[cfg(test)]
mod tests;
