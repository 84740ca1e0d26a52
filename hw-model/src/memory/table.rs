//! The ranges, sorted by address, and the walk of a transfer through them.

use vfio_dma::backend::DmaAccess;
use vm_memory::VolatileSlice;

use super::backing::{Backings, Slot};
use super::error::{Direction, FaultReason, MemoryError};
use super::sorted::{Entries, Place, SortedMap};

/// One mapped range. Its last address is its key in the table.
#[derive(Debug)]
struct Entry {
    first: u64,
    /// Where it starts in its backing.
    offset: u64,
    slot: Slot,
    access: DmaAccess,
}

// Eight bytes of key and these; a chunk is at least half used unless ranges were taken out
// of it, so that a range costs less than 100 bytes.
const _: () = assert!(size_of::<Entry>() == 24);

/// All ranges of a DMA map.
///
/// The key is a range's last address: the first key at or after an address belongs to the
/// only range that can contain it, and the ranges after it follow in order.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: SortedMap<Entry>,
    backings: Backings,
}

impl Table {
    /// Checks that `[iova, iova + len)` can be added and returns its last address.
    pub(super) fn vacant(&self, iova: u64, len: u64, limit: usize) -> Result<u64, MemoryError> {
        if len == 0 {
            return Err(MemoryError::Empty { iova });
        }
        let last = iova.checked_add(len - 1).ok_or(MemoryError::Wraps { iova, len })?;
        if let Some((other_last, other)) = self.entries.from(iova).next()
            && other.first <= last
        {
            return Err(MemoryError::Overlap {
                iova,
                len,
                other: other.first,
                other_len: (other_last - other.first).saturating_add(1),
            });
        }
        if self.entries.len() >= limit {
            return Err(MemoryError::Full { what: "ranges", limit: limit as u64 });
        }
        Ok(last)
    }

    /// Adds a range that [`Table::vacant`] allowed.
    pub(super) fn insert(
        &mut self,
        iova: u64,
        last: u64,
        slot: Slot,
        offset: u64,
        access: DmaAccess,
    ) {
        self.entries.insert(last, Entry { first: iova, offset, slot, access });
    }

    /// Removes the ranges inside `[iova, iova + len)` and returns how many bytes they had.
    pub(super) fn remove(&mut self, iova: u64, len: u64) -> Result<u64, MemoryError> {
        if len == 0 {
            return Ok(0);
        }
        let last = iova.checked_add(len - 1).ok_or(MemoryError::Wraps { iova, len })?;
        // Only the range at either end can stick out.
        for address in [iova, last] {
            if let Some((other_last, other)) = self.entries.from(address).next()
                && other.first <= last
                && (other.first < iova || other_last > last)
            {
                return Err(MemoryError::Cut {
                    iova,
                    len,
                    other: other.first,
                    other_len: (other_last - other.first).saturating_add(1),
                });
            }
        }
        let mut bytes = 0u64;
        while let Some((key, _)) = self.entries.from(iova).next().filter(|&(key, _)| key <= last) {
            if let Some(entry) = self.entries.remove(key) {
                bytes = bytes.saturating_add((key - entry.first).saturating_add(1));
                self.backings.release(entry.slot);
            }
        }
        Ok(bytes)
    }

    pub(super) fn backings(&mut self) -> &mut Backings {
        &mut self.backings
    }

    pub(super) fn ranges(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn files(&self) -> usize {
        self.backings.files()
    }

    /// Starts at `iova`, to read or to write; looks first at places that `cache` remembers.
    #[inline]
    pub(super) fn walk(&self, iova: u64, direction: Direction, cache: &LookupCache) -> Walk<'_> {
        let hit = |last, entry: &Entry| entry.first <= iova && iova <= last;
        Walk {
            backings: &self.backings,
            entries: self.entries.near(
                iova,
                cache.next,
                cache.places[LookupCache::slot(iova)],
                hit,
            ),
            place: Place::default(),
            direction,
            iova,
            pointer: std::ptr::null_mut(),
            left: 0,
        }
    }
}

/// Where walks found their ranges: neighbours follow each other, and buffers come again.
///
/// A guess that is wrong, since the table has changed or by chance, costs a search.
#[derive(Debug)]
pub(super) struct LookupCache {
    /// The place behind the last range.
    next: Place,
    /// The last ranges of walks, by a hash of the page that they began at.
    places: [Place; LookupCache::SLOTS],
}

impl Default for LookupCache {
    fn default() -> Self {
        LookupCache { next: Place::default(), places: [Place::default(); LookupCache::SLOTS] }
    }
}

impl LookupCache {
    const SLOTS: usize = 1 << LookupCache::BITS;
    const BITS: u32 = 7;

    #[inline]
    fn slot(iova: u64) -> usize {
        // By the golden ratio: regular distances spread well.
        ((iova >> 12).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - LookupCache::BITS)) as usize
    }
}

/// A position in the address space that moves on through neighbouring ranges.
pub(super) struct Walk<'t> {
    backings: &'t Backings,
    entries: Entries<'t, Entry>,
    /// Where the last range was found.
    place: Place,
    direction: Direction,
    iova: u64,
    /// Where the byte at `iova` is, when `left` is not 0.
    pointer: *mut u8,
    /// How many bytes from there on belong to the same range.
    left: usize,
}

impl<'t> Walk<'t> {
    /// The memory at the position, at most `most` bytes of it and at least one.
    #[inline]
    pub(super) fn memory(&mut self, most: u64) -> Result<VolatileSlice<'t>, FaultReason> {
        if self.left == 0 {
            self.enter()?;
        }
        let len = self.left.min(usize::try_from(most).unwrap_or(usize::MAX));
        // SAFETY: `pointer` is followed by `left` bytes of a mapping that stays as it is for
        // as long as the table is borrowed, which is `'t`.
        Ok(unsafe { VolatileSlice::new(self.pointer, len) })
    }

    /// Moves on by `count` bytes, at most as many as [`Walk::memory`] gave.
    #[inline]
    pub(super) fn advance(&mut self, count: usize) {
        self.pointer = self.pointer.wrapping_add(count);
        self.left -= count;
        self.iova = self.iova.wrapping_add(count as u64);
    }

    /// The address of the position.
    pub(super) fn iova(&self) -> u64 {
        self.iova
    }

    /// Remembers where the walk from `iova` on has come to.
    #[inline]
    pub(super) fn remember(self, iova: u64, cache: &mut LookupCache) {
        cache.next = self.entries.place();
        cache.places[LookupCache::slot(iova)] = self.place;
    }

    #[inline]
    fn enter(&mut self) -> Result<(), FaultReason> {
        let iova = self.iova;
        self.place = self.entries.place();
        let found = self.entries.next().filter(|(_, entry)| entry.first <= iova);
        let (last, entry) = found.ok_or(FaultReason::NotMapped)?;
        let offset = entry.offset + (iova - entry.first);
        let pointer = self.backings.pointer(entry.slot, offset).ok_or(FaultReason::Unbacked)?;
        let allowed = match self.direction {
            Direction::Read => entry.access.reads(),
            Direction::Write => entry.access.writes(),
        };
        if !allowed {
            return Err(FaultReason::Denied);
        }
        self.pointer = pointer;
        self.left = usize::try_from((last - iova).saturating_add(1)).unwrap_or(usize::MAX);
        Ok(())
    }
}
