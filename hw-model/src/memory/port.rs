//! An engine's way to the memory: the lookups of one access serve the next.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{VolatileMemory, VolatileSlice};

use super::bulk::Bulk;
use super::error::{Direction, DmaFault, FaultReason};
use super::table::{LookupCache, Table, Walk};
use super::{DmaMap, PIECE};
use crate::sync::RwLockReadGuard;
use crate::worker::{CachePadded, Count};

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
/// The map's shared lock is kept from one access to the next, until somebody wants to change
/// the map, an access fails or [`Port::release`] is called: who changes it waits for a piece,
/// of [`PIECE`] bytes at most, or for the release. So a port must be released before its
/// thread waits for anything, and between its accesses no other way to the same map may be
/// taken.
#[derive(Debug)]
pub(crate) struct Port<'m> {
    map: &'m DmaMap,
    table: Option<RwLockReadGuard<'m, Table>>,
    caches: [LookupCache; 4],
    counters: Option<Arc<PortCounters>>,
    bulk: Bulk,
}

/// The bytes that one port has moved, in both directions; only its port's thread adds to it.
#[derive(Debug, Default)]
pub(super) struct PortCounters(CachePadded<[Count; 2]>);

impl PortCounters {
    #[inline]
    fn add(&self, direction: Direction, bytes: u64) {
        self.0[direction as usize].add(bytes);
    }

    pub(super) fn get(&self, direction: Direction) -> u64 {
        self.0[direction as usize].get()
    }
}

impl<'m> Port<'m> {
    /// With counters of its own when the port is to last; its map must know that.
    pub(super) fn new(map: &'m DmaMap, counters: Option<Arc<PortCounters>>) -> Self {
        Port { map, table: None, caches: Default::default(), counters, bulk: map.bulk }
    }

    /// Lets others change the map.
    #[inline]
    pub(crate) fn release(&mut self) {
        self.table = None;
    }

    #[inline]
    fn count(&self, direction: Direction, bytes: u64) {
        match (&self.counters, direction) {
            (Some(counters), _) => counters.add(direction, bytes),
            (None, Direction::Read) => {
                self.map.counters.bytes_read.fetch_add(bytes, Ordering::Relaxed);
            }
            (None, Direction::Write) => {
                self.map.counters.bytes_written.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    /// Has the processor fetch memory that is about to be read, if it is in one range.
    pub(crate) fn prefetch(&mut self, at: Use, iova: u64, len: u64) {
        let (table, caches) = self.enter();
        let mut walk = table.walk(iova, Direction::Read, &caches[at as usize]);
        #[cfg(target_arch = "x86_64")]
        if let Ok(memory) = walk.memory(len) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            let guard = memory.ptr_guard();
            for offset in (0..memory.len()).step_by(64) {
                // SAFETY: it reads nothing that the program can tell, from any address.
                unsafe { _mm_prefetch(guard.as_ptr().wrapping_add(offset).cast(), _MM_HINT_T0) };
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = walk.memory(len);
    }

    /// The map, for one piece.
    #[inline]
    fn enter(&mut self) -> (&Table, &mut [LookupCache; 4]) {
        let map = self.map;
        if map.is_changing() {
            self.table = None;
            map.let_pass();
        }
        (self.table.get_or_insert_with(|| map.look()), &mut self.caches)
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
            let (begin, bulk) = (done, self.bulk);
            let (table, [sources, targets, ..]) = self.enter();
            let mut from = table.walk(source + begin, Direction::Read, sources);
            let mut to = table.walk(destination + begin, Direction::Write, targets);
            result = copy_piece(bulk, (&mut from, &mut to), &mut done, stop);
            from.remember(source + begin, sources);
            to.remember(destination + begin, targets);
            if self.map.is_unsettled() {
                let sides = [(Direction::Read, source), (Direction::Write, destination)];
                let found = sides
                    .into_iter()
                    .try_for_each(|(direction, at)| self.check(direction, at, begin..done));
                result = found.and(result);
            }
        }
        self.count(Direction::Read, done);
        self.count(Direction::Write, done);
        self.end(result)
    }

    /// Writes 8 bytes, as [`DmaMap::store_u64`] does.
    pub(crate) fn store_u64(&mut self, iova: u64, value: u64) -> Result<(), DmaFault> {
        let value = value.to_le();
        let (table, caches) = self.enter();
        let cache = &mut caches[Use::Word as usize];
        let mut walk = table.walk(iova, Direction::Write, cache);
        if let Ok(memory) = walk.memory(8)
            && memory.len() == 8
            && let Ok(word) = memory.get_atomic_ref::<AtomicU64>(0)
        {
            word.store(value, Ordering::Release);
            walk.remember(iova, cache);
            self.count(Direction::Write, 8);
            return self.check_word(Direction::Write, iova);
        }
        self.write(Use::Word, iova, &value.to_ne_bytes())
    }

    /// Reads 8 bytes, as [`DmaMap::load_u64`] does.
    pub(crate) fn load_u64(&mut self, at: Use, iova: u64) -> Result<u64, DmaFault> {
        let (table, caches) = self.enter();
        let cache = &mut caches[at as usize];
        let mut walk = table.walk(iova, Direction::Read, cache);
        if let Ok(memory) = walk.memory(8)
            && memory.len() == 8
            && let Ok(word) = memory.get_atomic_ref::<AtomicU64>(0)
        {
            let value = u64::from_le(word.load(Ordering::Acquire));
            walk.remember(iova, cache);
            self.count(Direction::Read, 8);
            return self.check_word(Direction::Read, iova).map(|()| value);
        }
        let mut bytes = [0; 8];
        self.read(at, iova, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Fails when a part of what an access has reached, from its first address on, was not its
    /// memory.
    #[cold]
    fn check(
        &mut self,
        direction: Direction,
        iova: u64,
        reached: Range<u64>,
    ) -> Result<(), DmaFault> {
        self.release();
        self.map.settle();
        let (table, _) = self.enter();
        let mut walk = table.walk(iova + reached.start, direction, &LookupCache::default());
        let mut done = reached.start;
        while done < reached.end {
            let memory = match walk.memory(reached.end - done) {
                Ok(memory) => memory,
                Err(reason @ FaultReason::Unbacked) => {
                    return Err(fault(direction, walk.iova(), done, reason));
                }
                // Changed since, when the access had been made.
                Err(_) => return Ok(()),
            };
            walk.advance(memory.len());
            done += memory.len() as u64;
        }
        Ok(())
    }

    /// As [`Port::check`], after an access of 8 bytes.
    #[inline]
    fn check_word(&mut self, direction: Direction, iova: u64) -> Result<(), DmaFault> {
        if !self.map.is_unsettled() {
            return Ok(());
        }
        let result = self.check(direction, iova, 0..8);
        self.end(result)
    }

    /// Ends an access. After a fault the map is let go: what follows is not an access but a
    /// log record or a halt, which may wait for others.
    #[inline]
    fn end(&mut self, result: Result<(), DmaFault>) -> Result<(), DmaFault> {
        if let Err(fault) = &result {
            self.release();
            self.map.refused(fault);
        }
        result
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
            let begin = iova + done;
            let (table, caches) = self.enter();
            let cache = &mut caches[at as usize];
            let mut walk = table.walk(begin, direction, cache);
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
            walk.remember(begin, cache);
            if self.map.is_unsettled() {
                result = self.check(direction, iova, begin - iova..done).and(result);
            }
        }
        self.count(direction, done);
        self.end(result)
    }
}

/// Copies under one lock, from `done` to `stop` bytes.
#[inline]
fn copy_piece(
    bulk: Bulk,
    (from, to): (&mut Walk<'_>, &mut Walk<'_>),
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
        let count = destination.len();
        bulk.copy(&source, destination);
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
