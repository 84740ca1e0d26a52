//! An engine's way to the memory: the lookups of one access serve the next.

use std::sync::RwLockReadGuard;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{VolatileMemory, VolatileSlice};

use super::error::{Direction, DmaFault, FaultReason};
use super::sorted::Place;
use super::table::{Table, Walk};
use super::{DmaMap, PIECE};

/// What an access counts for beside its bytes when it is decided how long the lock is kept:
/// an access of one byte takes about as long as one of so many.
const LEAST: u64 = 512;

/// What an access is for: those of one kind tend to follow each other in memory, so each
/// kind begins to search where its last one was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Data that is read.
    Source,
    /// Data that is written.
    Target,
    /// What tells the device what to do.
    Chain,
    /// What tells the driver what was done.
    Word,
}

/// A [`DmaMap`] as one thread uses it.
///
/// The map's shared lock is kept from one access to the next, until [`PIECE`] bytes were
/// moved or [`Port::release`] is called: the map does not change meanwhile, and whoever
/// changes it waits. So a port must be released before its thread waits for anything, and
/// between its accesses no other way to the same map may be taken.
#[derive(Debug)]
pub(crate) struct Port<'m> {
    map: &'m DmaMap,
    table: Option<RwLockReadGuard<'m, Table>>,
    /// How much may be moved before the lock is given up.
    left: u64,
    places: [Place; 4],
    bytes_read: u64,
    bytes_written: u64,
}

impl<'m> Port<'m> {
    pub(super) fn new(map: &'m DmaMap) -> Self {
        let places = [Place::default(); 4];
        Port { map, table: None, left: 0, places, bytes_read: 0, bytes_written: 0 }
    }

    /// Lets others change the map, and shows in its record what was moved.
    pub(crate) fn release(&mut self) {
        self.table = None;
        self.settle();
    }

    /// Shows in the map's record what was moved.
    fn settle(&mut self) {
        let counters = &self.map.counters;
        for (bytes, counter) in [
            (&mut self.bytes_read, &counters.bytes_read),
            (&mut self.bytes_written, &counters.bytes_written),
        ] {
            let bytes = std::mem::take(bytes);
            if bytes != 0 {
                counter.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    /// The map, for an access of at most [`PIECE`] bytes.
    #[inline]
    fn enter(&mut self, len: u64) -> (&Table, &mut [Place; 4]) {
        let cost = len.max(LEAST);
        if self.left < cost {
            // Given up before it is taken again: a writer that waits goes first.
            self.table = None;
            self.left = PIECE;
        }
        self.left -= cost;
        let map = self.map;
        (self.table.get_or_insert_with(|| map.look()), &mut self.places)
    }

    /// Reads `data.len()` bytes from `iova` on, as [`DmaMap::read`] does.
    pub(crate) fn read(&mut self, at: Use, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        self.transfer(at, Direction::Read, iova, data.len() as u64, |memory, done| {
            memory.copy_to(&mut data[done as usize..]);
        })
    }

    /// Writes `data` from `iova` on, as [`DmaMap::write`] does.
    pub(crate) fn write(&mut self, at: Use, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        self.transfer(at, Direction::Write, iova, data.len() as u64, |memory, done| {
            memory.copy_from(&data[done as usize..]);
        })
    }

    /// Writes a repeated pattern, as [`DmaMap::fill`] does.
    pub(crate) fn fill(&mut self, iova: u64, pattern: u64, len: u64) -> Result<(), DmaFault> {
        const BLOCK: usize = 4096;
        let mut block = [0u8; BLOCK + 8];
        for chunk in block.chunks_exact_mut(8) {
            chunk.copy_from_slice(&pattern.to_le_bytes());
        }
        self.transfer(Use::Target, Direction::Write, iova, len, |memory, done| {
            // A piece may start at any byte of the pattern.
            let phase = (done % 8) as usize;
            let mut at = 0;
            while let Ok(rest) = memory.offset(at)
                && !rest.is_empty()
            {
                rest.copy_from(&block[phase..phase + BLOCK]);
                at += rest.len().min(BLOCK);
            }
        })
    }

    /// Copies, as [`DmaMap::copy`] does.
    pub(crate) fn copy(&mut self, destination: u64, source: u64, len: u64) -> Result<(), DmaFault> {
        let mut done = 0;
        let mut result = check_wrap(Direction::Read, source, len)
            .and_then(|()| check_wrap(Direction::Write, destination, len));
        while done < len && result.is_ok() {
            let stop = len.min(done + PIECE);
            let (table, places) = self.enter(stop - done);
            let [source_place, target_place, ..] = places;
            let mut from = table.walk(source + done, Direction::Read, *source_place);
            let mut to = table.walk(destination + done, Direction::Write, *target_place);
            result = copy_piece(&mut from, &mut to, &mut done, stop);
            (*source_place, *target_place) = (from.place(), to.place());
        }
        self.bytes_read += done;
        self.bytes_written += done;
        result.inspect_err(|fault| self.map.refused(fault))
    }

    /// Writes 8 bytes, as [`DmaMap::store_u64`] does.
    ///
    /// Who sees them finds what was moved before in the map's record.
    pub(crate) fn store_u64(&mut self, iova: u64, value: u64) -> Result<(), DmaFault> {
        let value = value.to_le();
        let map = self.map;
        self.settle();
        let (table, places) = self.enter(8);
        let place = &mut places[Use::Word as usize];
        let mut walk = table.walk(iova, Direction::Write, *place);
        if let Ok(memory) = walk.memory(8)
            && memory.len() == 8
            && let Ok(word) = memory.get_atomic_ref::<AtomicU64>(0)
        {
            *place = walk.place();
            map.counters.bytes_written.fetch_add(8, Ordering::Relaxed);
            word.store(value, Ordering::Release);
            return Ok(());
        }
        self.write(Use::Word, iova, &value.to_ne_bytes())
    }

    /// Reads 8 bytes, as [`DmaMap::load_u64`] does.
    pub(crate) fn load_u64(&mut self, at: Use, iova: u64) -> Result<u64, DmaFault> {
        let (table, places) = self.enter(8);
        let place = &mut places[at as usize];
        let mut walk = table.walk(iova, Direction::Read, *place);
        if let Ok(memory) = walk.memory(8)
            && memory.len() == 8
            && let Ok(word) = memory.get_atomic_ref::<AtomicU64>(0)
        {
            let value = u64::from_le(word.load(Ordering::Acquire));
            *place = walk.place();
            self.bytes_read += 8;
            return Ok(value);
        }
        let mut bytes = [0; 8];
        self.read(at, iova, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Moves `len` bytes in one direction; `part` gets each piece and how much came before.
    fn transfer(
        &mut self,
        at: Use,
        direction: Direction,
        iova: u64,
        len: u64,
        mut part: impl FnMut(VolatileSlice<'_>, u64),
    ) -> Result<(), DmaFault> {
        let mut done = 0;
        let mut result = check_wrap(direction, iova, len);
        while done < len && result.is_ok() {
            let stop = len.min(done + PIECE);
            let (table, places) = self.enter(stop - done);
            let place = &mut places[at as usize];
            let mut walk = table.walk(iova + done, direction, *place);
            result = (|| {
                while done < stop {
                    let memory = walk
                        .memory(stop - done)
                        .map_err(|reason| fault(direction, walk.iova(), done, reason))?;
                    part(memory, done);
                    walk.advance(memory.len());
                    done += memory.len() as u64;
                }
                Ok(())
            })();
            *place = walk.place();
        }
        match direction {
            Direction::Read => self.bytes_read += done,
            Direction::Write => self.bytes_written += done,
        }
        result.inspect_err(|fault| self.map.refused(fault))
    }
}

impl Drop for Port<'_> {
    fn drop(&mut self) {
        self.release();
    }
}

/// Copies under one lock, from `done` to `stop` bytes.
#[inline]
fn copy_piece(
    from: &mut Walk<'_>,
    to: &mut Walk<'_>,
    done: &mut u64,
    stop: u64,
) -> Result<(), DmaFault> {
    while *done < stop {
        let source = from
            .memory(stop - *done)
            .map_err(|reason| fault(Direction::Read, from.iova(), *done, reason))?;
        let destination = to
            .memory(source.len() as u64)
            .map_err(|reason| fault(Direction::Write, to.iova(), *done, reason))?;
        source.copy_to_volatile_slice(destination);
        let count = destination.len();
        from.advance(count);
        to.advance(count);
        *done += count as u64;
    }
    Ok(())
}

fn fault(direction: Direction, iova: u64, done: u64, reason: FaultReason) -> DmaFault {
    DmaFault { direction, iova, done, reason }
}

#[inline]
fn check_wrap(direction: Direction, iova: u64, len: u64) -> Result<(), DmaFault> {
    match iova.checked_add(len.saturating_sub(1)) {
        Some(_) => Ok(()),
        None => Err(fault(direction, iova, 0, FaultReason::Wraps)),
    }
}
