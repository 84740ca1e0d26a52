//! Many small operations between slots of pools: the path that costs least for each.
//!
//! What is written for an operation is what the device reads, and two numbers that say whose
//! slots they are. How many there were, and which entries of the ring they have, is noted once
//! for a run of them; everything else is done once for a batch.

mod parts;

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use super::descriptor::{Descriptor, NEXT, OP_COPY, OP_FILL, words};
use super::{Channel, IoatError};
use crate::dma::{Coherent, Direction, Slot, SlotError, SlotPool, SlotTable, Unborrowed};
use crate::queue::SlotPair;

pub use parts::SlotPart;

/// An operation that was not taken on, and its slots.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.error)]
pub struct SlotsRefused(#[source] Box<Refusal>);

#[derive(Debug, thiserror::Error)]
#[error("{error}")]
struct Refusal {
    #[source]
    error: IoatError,
    slots: SlotPair,
}

impl SlotsRefused {
    fn new(error: IoatError, slots: SlotPair) -> SlotsRefused {
        // Boxed, so that what goes well moves fewer bytes.
        SlotsRefused(Box::new(Refusal { error, slots }))
    }

    /// Why.
    #[must_use]
    pub fn error(&self) -> &IoatError {
        &self.0.error
    }

    /// Why, and the slots.
    #[must_use]
    pub fn into_parts(self) -> (IoatError, SlotPair) {
        (self.0.error, self.0.slots)
    }
}

/// Bytes of a record, and how many times as many an entry of the ring has.
pub(super) const RECORD: isize = size_of::<SlotPair>() as isize;
pub(super) const ENTRY_RECORDS: isize = Coherent::<Descriptor>::STRIDE as isize / RECORD;

/// Where the next descriptor and its slots go, up to the next marker or the ring's end.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The ends of the run of entries, and of their records.
    entries: Unborrowed<Descriptor>,
    records: NonNull<SlotPair>,
    /// Bytes from the end of the records to the next one: 0, or negative.
    at: isize,
    /// The same when the run began.
    begin: isize,
}

/// Operations between the slots of two pools, or of one, that the device is told of together:
/// what [`Channel::batch`] lends.
///
/// An operation takes its slots, and [`Channel::reap`] gives them back. Operations end in their
/// order. An operation of several segments is one descriptor for each; [`Batch::gather`] and
/// [`Batch::scatter`] say how they come back.
pub struct Batch<'a> {
    channel: &'a mut Channel,
    pools: [&'a SlotPool; 2],
    /// Where the slots of source and target are; without any when nothing has room.
    tables: [SlotTable<'a>; 2],
    /// Bytes of the shorter slot of both sides.
    max_len: usize,
    place: Place,
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("pools", &self.pools).finish_non_exhaustive()
    }
}

impl Place {
    /// How many entries were filled.
    #[inline(always)]
    fn filled(&self) -> usize {
        (self.at - self.begin) as usize / RECORD as usize
    }
}

/// The device address of a part of a slot.
fn address(
    pool: &SlotPool,
    slot: &Option<Slot>,
    offset: usize,
    len: usize,
) -> Result<u64, SlotError> {
    let slot = slot.as_ref().ok_or(SlotError::Missing)?;
    let address = pool.address(slot).ok_or(SlotError::Foreign { index: slot.index() })?;
    let slot_len = pool.slot_len();
    if !is_inside(offset, len, slot_len) {
        return Err(SlotError::Range { offset, len, slot_len });
    }
    Ok(address.0 + offset as u64)
}

#[inline(always)]
fn is_inside(offset: usize, len: usize, slot_len: usize) -> bool {
    len != 0 && len <= slot_len && offset <= slot_len - len
}

// Every method of the hot path is inlined, and hands out copies of its fields only: so they
// are registers of the caller's loop.
impl Batch<'_> {
    /// Copies the first `len` bytes of a slot to another.
    ///
    /// # Errors
    ///
    /// Gives the slots back when one is of another pool, they are shorter, or the ring is full:
    /// of what the device has, or of what was not [reaped](Channel::reap).
    #[inline(always)]
    pub fn copy(&mut self, source: Slot, target: Slot, len: usize) -> Result<(), SlotsRefused> {
        self.copy_pair(SlotPair { source: Some(source), target: Some(target) }, len)
    }

    /// As [`Batch::copy`], with a pair of slots as one comes back.
    ///
    /// # Errors
    ///
    /// As [`Batch::copy`], and for a pair that has no source or no target.
    #[inline(always)]
    pub fn copy_pair(&mut self, slots: SlotPair, len: usize) -> Result<(), SlotsRefused> {
        let from = self.tables[0].address_of(&slots.source);
        let to = self.tables[1].address_of(&slots.target);
        let (Some(from), Some(to), true) = (from, to, len.wrapping_sub(1) < self.max_len) else {
            return Err(refuse_copy(
                self.channel,
                self.pools[0],
                self.pools[1],
                slots,
                (0, 0),
                len,
            ));
        };
        self.add(words(len as u64, OP_COPY, from.0, to.0), slots);
        Ok(())
    }

    /// Copies `len` bytes from an offset on of a slot to an offset of another: (slot, offset).
    ///
    /// # Errors
    ///
    /// As [`Batch::copy`].
    #[inline(always)]
    pub fn copy_range(
        &mut self,
        (source, from): (Slot, usize),
        (target, to): (Slot, usize),
        len: usize,
    ) -> Result<(), SlotsRefused> {
        let (read, written) = (self.tables[0].address(&source), self.tables[1].address(&target));
        let fits = is_inside(from, len, self.pools[0].slot_len())
            && is_inside(to, len, self.pools[1].slot_len());
        let slots = SlotPair { source: Some(source), target: Some(target) };
        let (Some(read), Some(written), true) = (read, written, fits) else {
            return Err(refuse_copy(
                self.channel,
                self.pools[0],
                self.pools[1],
                slots,
                (from, to),
                len,
            ));
        };
        let (read, written) = (read.0 + from as u64, written.0 + to as u64);
        self.add(words(len as u64, OP_COPY, read, written), slots);
        Ok(())
    }

    /// Fills the first `len` bytes of a slot with 8 bytes that repeat, the least significant
    /// one first.
    ///
    /// # Errors
    ///
    /// As [`Batch::copy`], and when the device does not offer it.
    #[inline(always)]
    pub fn fill(&mut self, target: Slot, pattern: u64, len: usize) -> Result<(), SlotsRefused> {
        let fits = is_inside(0, len, self.pools[1].slot_len()) && self.channel.engine.can_fill;
        let to = self.tables[1].address(&target);
        let slots = SlotPair { source: None, target: Some(target) };
        let (Some(to), true) = (to, fits) else {
            return Err(refuse_fill(self.channel, self.pools[1], slots, len));
        };
        self.add(words(len as u64, OP_FILL, pattern, to.0), slots);
        Ok(())
    }

    /// Fills a descriptor; a table that has slots says that there is room for it.
    #[inline(always)]
    fn add(&mut self, words: [u64; NEXT], slots: SlotPair) {
        let Place { entries, records, at, .. } = self.place;
        debug_assert!(at < 0, "there is room");
        // SAFETY: `at` is that of an entry of the run, as the tables have slots, and the channel,
        // with the ring, is borrowed by the batch, which writes entries nowhere else meanwhile.
        unsafe { entries.write_words(at * ENTRY_RECORDS, &words) };
        // SAFETY: as above: each entry has a record.
        let record = unsafe { records.byte_offset(at) };
        // SAFETY: as above; nothing refers to records while the batch has a place.
        unsafe { record.write(slots) };
        self.place.at = at + RECORD;
        if self.place.at == 0 {
            self.go_on();
        }
    }

    /// Counts what was filled, and finds the next place.
    #[inline(always)]
    fn go_on(&mut self) {
        let Place { entries, records, at, begin } = next_place(self.channel, self.place.filled());
        // Field by field, so that each of them stays a register.
        self.place.entries = entries;
        self.place.records = records;
        self.place.at = at;
        self.place.begin = begin;
        self.tables = match self.place.at {
            0 => [SlotTable::EMPTY; 2],
            _ => self.pools.map(SlotPool::table),
        };
    }
}

/// Counts so many entries as filled at the last place.
#[inline]
fn settle(channel: &mut Channel, filled: usize) {
    hold(channel, filled);
    channel.ring.advance(filled as u32);
}

/// Holds the slots of so many entries that were filled at the last place, and are not counted.
#[inline(always)]
fn hold(channel: &mut Channel, filled: usize) {
    if filled > 0 {
        let pairs = channel.slots.run_at(channel.ring.producer().filled());
        // SAFETY: as many pairs were written behind the vector's end, which has room for them, as
        // entries; the place was found so, and nothing else was filled since.
        unsafe { pairs.set_len(pairs.len() + filled) };
    }
}

/// Where entries can be filled next, and how many in a row.
#[inline(always)]
fn place(channel: &mut Channel) -> Place {
    let (entries, count) = channel.ring.window();
    let begin = -(count as isize) * RECORD;
    let pairs = channel.slots.run_at(channel.ring.producer().filled());
    pairs.reserve(count as usize);
    let spare = pairs.spare_capacity_mut().as_mut_ptr();
    // SAFETY: there is room for as many. The pointer reaches what lies before it too.
    let records = unsafe { spare.add(count as usize) };
    // SAFETY: a pointer into, or behind, the vector's memory.
    let records = unsafe { NonNull::new_unchecked(records.cast()) };
    Place { entries, records, at: begin, begin }
}

/// Opens a window of the ring, if there is room for one.
#[cold]
#[inline(never)]
pub(super) fn open_window(channel: &mut Channel) {
    let most = channel.slots.room(channel.ring.producer());
    // The rest of a long transfer comes first.
    channel.ring.open_window(if channel.feeding.is_some() { 0 } else { most });
}

/// Counts so many entries as filled at the last place, and finds the next.
#[cold]
#[inline(never)]
fn next_place(channel: &mut Channel, filled: usize) -> Place {
    settle(channel, filled);
    if channel.ring.window_len() == 0 {
        open_window(channel);
    }
    place(channel)
}

/// Why a copy is refused, if not for want of room.
pub(super) fn check_pair(
    [source, target]: [&SlotPool; 2],
    slots: &SlotPair,
    (from, to): (usize, usize),
    len: usize,
) -> Result<u64, SlotError> {
    address(source, &slots.source, from, len)?;
    address(target, &slots.target, to, len)
}

#[cold]
#[inline(never)]
fn refuse_copy(
    channel: &Channel,
    source: &SlotPool,
    target: &SlotPool,
    slots: SlotPair,
    offsets: (usize, usize),
    len: usize,
) -> SlotsRefused {
    let error = check_pair([source, target], &slots, offsets, len)
        .map_or_else(IoatError::from, |_| channel.ring.full(1).into());
    SlotsRefused::new(error, slots)
}

#[cold]
#[inline(never)]
fn refuse_fill(channel: &Channel, target: &SlotPool, slots: SlotPair, len: usize) -> SlotsRefused {
    let error = match address(target, &slots.target, 0, len) {
        Err(error) => error.into(),
        Ok(_) if channel.engine.can_fill => channel.ring.full(1).into(),
        Ok(_) => IoatError::NoFill { location: channel.engine.location.clone() },
    };
    SlotsRefused::new(error, slots)
}

impl Channel {
    /// Fills a batch of operations from slots of one pool to slots of another, or of the same,
    /// and tells the device with one doorbell; returns what `fill` does.
    ///
    /// Whatever `fill` took on is told, also when it returns an error of its own. When it
    /// panics, the operations since its last marker are left out, and their slots lost.
    ///
    /// The channel keeps the pools mapped from here on, until it is dropped or
    /// [told to let go](Channel::detach_pools).
    ///
    /// # Errors
    ///
    /// Fails, before `fill` is called, when a pool is mapped elsewhere or for another direction,
    /// its slots are longer than what a descriptor carries, or the channel was lost; and when
    /// the doorbell cannot be reached.
    #[inline]
    pub fn batch<R>(
        &mut self,
        source: &Arc<SlotPool>,
        target: &Arc<SlotPool>,
        fill: impl FnOnce(&mut Batch<'_>) -> R,
    ) -> Result<R, IoatError> {
        // A channel that was lost has no latest ones.
        if !self.slots.are_latest(source, target) {
            self.check_pools(source, target)?;
        }
        let pools = [&**source, &**target];
        let max_len = self.slots.slot_len();
        let tables = pools.map(SlotPool::table);
        let place = place(self);
        let mut batch = Batch { channel: self, pools, tables, max_len, place };
        if batch.place.at == 0 {
            batch.go_on();
        }
        let result = fill(&mut batch);
        let Batch { channel, place, .. } = batch;
        hold(channel, place.filled());
        channel.ring_doorbell(place.filled() as u32)?;
        Ok(result)
    }

    #[cold]
    pub(super) fn check_pools(
        &mut self,
        source: &Arc<SlotPool>,
        target: &Arc<SlotPool>,
    ) -> Result<(), IoatError> {
        self.refuse_when_lost()?;
        let allocator = &self.engine.allocator;
        let sides = [(source, Direction::ToDevice), (target, Direction::FromDevice)];
        for (pool, need) in sides {
            if !Arc::ptr_eq(pool.space(), allocator.space()) {
                return Err(IoatError::ForeignBuffer { location: self.engine.location.clone() });
            }
            let have = pool.direction();
            if have != need && have != Direction::Bidirectional {
                return Err(IoatError::WrongDirection { have, need });
            }
            let (len, max_segment) = (pool.slot_len() as u64, allocator.limits().max_segment);
            if len > max_segment {
                return Err(IoatError::LongSlots { len, max_segment });
            }
        }
        self.slots.attach(source, target);
        Ok(())
    }

    /// Lets go of every pool of slots that was used here, so that
    /// [`SlotPool::into_buffer`] gives its buffer back; `false` when a slot is in flight, or was
    /// not [reaped](Channel::reap).
    pub fn detach_pools(&mut self) -> bool {
        self.slots.detach_all()
    }
}
