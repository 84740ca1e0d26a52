//! Descriptor rings: reserve, fill, publish, reap.
//!
//! A [`Ring`] is a power of two of descriptors in memory that a device reads, closed to a
//! chain, and one word that the device writes to say how far it is. What a descriptor and
//! that word look like is a [`Format`]; the ring knows positions, slots and counts.
//!
//! Positions are 64-bit numbers that only grow: `done <= published <= filled`, and the
//! slot of a position is its low bits. A doorbell carries the low 16 bits of the number of
//! descriptors published since the chain began, which is unambiguous because no ring has
//! more than 2^15. One slot stays free, so that "the last one done" never means both none
//! and all.
//!
//! # Ordering, fence by fence
//!
//! | fence | orders | before | pairs with |
//! |---|---|---|---|
//! | D, in the doorbell's register write (`mmio`, "Ordering") | the stores to the source buffers, the descriptors, and the cleared completion word | the doorbell | the device fetches a descriptor only after the doorbell that made it valid |
//! | C, in the load of the completion word (acquire) | that load | loads from the target buffers | the device's posted writes stay in order: the data, then the completion word (PCIe Base 4.0, 2.4.1); a model stores the word with release |
//! | C, again | that load | stores into the slots that it frees | the device has read a descriptor before it reports it done |
//!
//! Nothing else is needed: descriptors need no order among themselves, since none is looked
//! at before D, and the processor never reads a descriptor back.
//!
//! In the steady state nothing is allocated, no system call is made, a batch costs one
//! doorbell, and polling loads one word of memory that stays in the cache until the device
//! writes it.

#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::dma::{Buffer, Iova};
use crate::mmio::Words;

/// A descriptor ring that cannot be made, is full, or whose device told nonsense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The size is not one that a ring can have.
    #[error("a ring of {size} descriptors: a power of two from 2 to {} is needed", MAX_SIZE)]
    Size {
        /// What was asked for.
        size: u32,
    },
    /// The memory is too short, scattered for the device, or misaligned.
    #[error(
        "a ring needs {needed} bytes, contiguous for the device and aligned to {alignment}: the \
         buffer has {len} bytes in {segments} segments from IOVA {iova} on"
    )]
    Memory {
        /// Bytes needed.
        needed: usize,
        /// Alignment needed, in bytes.
        alignment: usize,
        /// Bytes of the buffer.
        len: usize,
        /// Segments of the buffer.
        segments: usize,
        /// Where it begins.
        iova: Iova,
    },
    /// There is no room now.
    #[error("{needed} descriptors are needed, {free} of {capacity} are free")]
    Full {
        /// Descriptors asked for.
        needed: u32,
        /// Descriptors free now.
        free: u32,
        /// Descriptors that can be in flight at all.
        capacity: u32,
    },
    /// The device says that it completed a descriptor at an address where none is.
    #[error(
        "the device reports descriptor {address:#x} done, the ring's {size} are at {ring} and every \
         {stride} bytes after"
    )]
    OutsideRing {
        /// What the device reported.
        address: u64,
        /// The first descriptor.
        ring: Iova,
        /// Descriptors of the ring.
        size: u32,
        /// Bytes from one to the next.
        stride: usize,
    },
    /// The device says that it completed a descriptor that it was not given.
    #[error("the device reports slot {slot} done, in flight are {in_flight} from slot {first} on")]
    NotInFlight {
        /// What the device reported.
        slot: u32,
        /// The oldest slot in flight.
        first: u32,
        /// Descriptors in flight.
        in_flight: u32,
    },
    /// A restart at a descriptor that is not waiting to be done.
    #[error("position {at} is not among those filled and not done, {done} to {filled}")]
    Position {
        /// Where the ring was to go on.
        at: u64,
        /// The oldest that is not done.
        done: u64,
        /// One past the newest that is filled.
        filled: u64,
    },
}

/// The most descriptors of a ring: half of what a 16-bit doorbell counts.
pub const MAX_SIZE: u32 = 1 << 15;

/// The descriptor that a device reports as the last one done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastDone {
    /// None since the chain began.
    None,
    /// The one at this device address.
    Address(u64),
    /// The one with this index in the ring.
    Slot(u64),
}

/// What the descriptors and the completion word of a device look like.
pub trait Format {
    /// What the driver wants done, in its own terms.
    type Command;
    /// The words that are written of a descriptor, from its first on.
    type Words: AsRef<[u64]>;
    /// Size of a descriptor in bytes: a power of two, and at least that of `Words`.
    const SIZE: usize;

    /// The words of a descriptor; `next` is where its successor lies.
    fn encode(command: &Self::Command, next: Iova) -> Self::Words;

    /// What the completion word says. It is the device's, and may say anything.
    fn last_done(word: u64) -> LastDone;
}

/// A ring of descriptors in device-visible memory.
#[derive(Debug)]
pub struct Ring<F> {
    words: Words,
    /// Keeps `words` mapped, for the processor and for the device.
    buffer: Buffer,
    iova: Iova,
    mask: u64,
    /// Positions: one past the last filled, published and done.
    filled: u64,
    published: u64,
    done: u64,
    /// The position at which the chain began that the doorbell counts.
    origin: u64,
    format: std::marker::PhantomData<fn() -> F>,
}

impl<F: Format> Ring<F> {
    const WORDS: usize = {
        assert!(F::SIZE.is_power_of_two() && F::SIZE >= 8, "descriptors are whole words");
        assert!(
            F::SIZE <= 1 << 16 && size_of::<F::Words>() <= F::SIZE,
            "what is written fits a descriptor"
        );
        F::SIZE / 8
    };
    /// Keeps the completion word out of the cache lines of the descriptors.
    const COMPLETION: usize = 64;

    /// The bytes of memory that a ring of `size` descriptors needs.
    #[must_use]
    pub const fn bytes(size: u32) -> usize {
        size as usize * F::SIZE + Self::COMPLETION
    }

    /// Makes a ring in a buffer that the device reads and writes.
    ///
    /// # Errors
    ///
    /// Fails when the size is not a power of two from 2 to [`MAX_SIZE`], or the buffer is
    /// too short, not contiguous, or not aligned to a descriptor and to 64 bytes.
    pub fn new(buffer: Buffer, size: u32) -> Result<Ring<F>, RingError> {
        if !size.is_power_of_two() || !(2..=MAX_SIZE).contains(&size) {
            return Err(RingError::Size { size });
        }
        let needed = Self::bytes(size);
        let alignment = F::SIZE.max(Self::COMPLETION);
        let segments = buffer.segments();
        let iova = segments.first().map_or(Iova(0), |segment| segment.iova);
        let memory = buffer.slice(0, needed).ok().map(|slice| slice.ptr_guard_mut().as_ptr());
        let fits = segments.len() == 1 && iova.0.is_multiple_of(alignment as u64);
        let base = match memory.and_then(std::ptr::NonNull::new) {
            Some(base) if fits && base.cast::<u64>().is_aligned() => base,
            _ => {
                let (len, segments) = (buffer.len(), segments.len());
                return Err(RingError::Memory { needed, alignment, len, segments, iova });
            }
        };
        // SAFETY: the range lies inside the buffer's memory, which does not move and which
        // the ring keeps; a buffer gives no references away.
        let words = unsafe { Words::new(base, needed / 8) };
        let mut ring = Ring {
            words,
            buffer,
            iova,
            mask: u64::from(size - 1),
            filled: 0,
            published: 0,
            done: 0,
            origin: 0,
            format: std::marker::PhantomData,
        };
        ring.clear_completion();
        Ok(ring)
    }

    /// Descriptors of the ring.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.mask as u32 + 1
    }

    /// Descriptors that can be in flight: one less than the size.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.mask as u32
    }

    /// Descriptors that can be filled now.
    #[inline]
    #[must_use]
    pub fn free(&self) -> u32 {
        (self.mask - (self.filled - self.done)) as u32
    }

    /// Descriptors that are published and not known to be done.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        (self.published - self.done) as u32
    }

    /// The position that the next descriptor gets.
    #[inline]
    #[must_use]
    pub fn filled(&self) -> u64 {
        self.filled
    }

    /// One past the newest descriptor that is done.
    #[inline]
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The device address of a position's descriptor.
    #[must_use]
    pub fn address(&self, position: u64) -> Iova {
        Iova(self.iova.0 + (position & self.mask) * F::SIZE as u64)
    }

    /// The slot of a position.
    #[must_use]
    pub fn slot(&self, position: u64) -> u32 {
        (position & self.mask) as u32
    }

    /// The device address of the completion word.
    #[must_use]
    pub fn completion_address(&self) -> Iova {
        Iova(self.iova.0 + u64::from(self.size()) * F::SIZE as u64)
    }

    /// The buffer behind the ring.
    #[must_use]
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Fills the next descriptor and returns its position.
    ///
    /// # Errors
    ///
    /// [`RingError::Full`] when none is free.
    #[inline]
    pub fn push(&mut self, command: &F::Command) -> Result<u64, RingError> {
        if self.free() == 0 {
            return Err(self.full(1));
        }
        let position = self.filled;
        self.write(position, command);
        self.filled += 1;
        Ok(position)
    }

    /// Takes `count` descriptors to fill, all or none.
    ///
    /// # Errors
    ///
    /// [`RingError::Full`] when fewer are free.
    #[inline]
    pub fn reserve(&mut self, count: u32) -> Result<Reservation<'_, F>, RingError> {
        if self.free() < count {
            return Err(self.full(count));
        }
        let next = self.filled;
        Ok(Reservation { next, end: next + u64::from(count), ring: self })
    }

    /// Says that `count` descriptors are too many.
    #[cold]
    #[must_use]
    pub fn full(&self, count: u32) -> RingError {
        RingError::Full { needed: count, free: self.free(), capacity: self.capacity() }
    }

    /// Counts what was filled as published and returns the doorbell's value for it; `None`
    /// when there is nothing new. The register write that follows is fence D.
    #[inline]
    pub fn publish(&mut self) -> Option<u16> {
        if self.published == self.filled {
            return None;
        }
        self.published = self.filled;
        Some(self.published.wrapping_sub(self.origin) as u16)
    }

    /// The completion word as the device left it (fence C).
    #[inline]
    #[must_use]
    pub fn completion(&self) -> u64 {
        self.words.load_acquire(self.size() as usize * Self::WORDS)
    }

    /// Reads the completion word and returns the positions that are newly done.
    ///
    /// # Errors
    ///
    /// Fails, and counts nothing as done, when the word names a descriptor that is not in
    /// flight.
    #[inline]
    pub fn reap(&mut self) -> Result<Range<u64>, RingError> {
        self.reap_as(self.completion())
    }

    /// Counts as done what `word`, a value of the completion word, says.
    ///
    /// # Errors
    ///
    /// As [`Ring::reap`].
    #[inline]
    pub fn reap_as(&mut self, word: u64) -> Result<Range<u64>, RingError> {
        let before = self.done;
        let slot = match F::last_done(word) {
            LastDone::None => return Ok(before..before),
            LastDone::Slot(slot) if slot <= self.mask => slot,
            LastDone::Slot(slot) => return Err(self.not_in_flight(slot)),
            LastDone::Address(address) => {
                let offset = address.wrapping_sub(self.iova.0);
                let slot = offset / F::SIZE as u64;
                if slot > self.mask || !offset.is_multiple_of(F::SIZE as u64) {
                    return Err(self.outside(address));
                }
                slot
            }
        };
        // From the oldest in flight to one past the reported: 0 when that is the one before.
        let newly = (slot + 1).wrapping_sub(before) & self.mask;
        if newly > self.published - before {
            return Err(self.not_in_flight(slot));
        }
        self.done = before + newly;
        Ok(before..self.done)
    }

    /// Lets the chain begin anew at a position that is filled and not done (or the next to
    /// be filled), and returns where that is: what lies before it counts as done, what is
    /// from it on as not published. The device must be stopped.
    ///
    /// # Errors
    ///
    /// Fails for a position that is not waiting.
    pub fn restart(&mut self, at: u64) -> Result<Iova, RingError> {
        let (done, filled) = (self.done, self.filled);
        if !(done..=filled).contains(&at) {
            return Err(RingError::Position { at, done, filled });
        }
        self.clear_completion();
        self.done = at;
        self.published = at;
        self.origin = at;
        Ok(self.address(at))
    }

    fn clear_completion(&mut self) {
        self.words.store(self.size() as usize * Self::WORDS, &[0]);
    }

    #[inline]
    fn write(&mut self, position: u64, command: &F::Command) {
        let words = F::encode(command, self.address(position + 1));
        self.words.store((position & self.mask) as usize * Self::WORDS, words.as_ref());
    }

    #[cold]
    fn outside(&self, address: u64) -> RingError {
        RingError::OutsideRing { address, ring: self.iova, size: self.size(), stride: F::SIZE }
    }

    #[cold]
    fn not_in_flight(&self, slot: u64) -> RingError {
        let slot = u32::try_from(slot).unwrap_or(u32::MAX);
        RingError::NotInFlight { slot, first: self.slot(self.done), in_flight: self.in_flight() }
    }
}

/// Descriptors taken for one batch; dropped without [`Reservation::commit`], none is used.
#[derive(Debug)]
pub struct Reservation<'a, F> {
    ring: &'a mut Ring<F>,
    next: u64,
    end: u64,
}

impl<F: Format> Reservation<'_, F> {
    /// Whether as many were filled as were reserved.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.next == self.end
    }

    /// The position of the next to be filled.
    #[inline]
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Fills the next descriptor and returns its position.
    ///
    /// # Errors
    ///
    /// [`RingError::Full`] when as many were filled as were reserved.
    #[inline]
    pub fn fill(&mut self, command: &F::Command) -> Result<u64, RingError> {
        if self.next == self.end {
            return Err(self.ring.full(1));
        }
        let position = self.next;
        self.ring.write(position, command);
        self.next += 1;
        Ok(position)
    }

    /// Fills up to `most` descriptors with the commands of an iterator, in their order, and
    /// returns how many; fewer when the iterator ends, or as many as were reserved are
    /// filled. No command is lost: none is asked for that finds no descriptor.
    ///
    /// It does what as many calls of [`Reservation::fill`] do, for less each.
    #[inline]
    pub fn fill_from(&mut self, most: u64, commands: impl IntoIterator<Item = F::Command>) -> u64 {
        let (begin, most) = (self.next, most.min(self.end - self.next));
        let mut commands = commands.into_iter();
        while self.next - begin < most {
            let slot = self.next & self.ring.mask;
            // The slots of a run follow each other, and so do their successors: the last
            // slot of the ring, whose successor is the first, is a run of its own.
            let run = (most - (self.next - begin)).min((self.ring.mask - slot).max(1));
            let mut link = self.ring.address(self.next + 1);
            let first = slot as usize * Ring::<F>::WORDS;
            for record in self.ring.words.records(first, Ring::<F>::WORDS, run as usize) {
                let Some(command) = commands.next() else { return self.next - begin };
                record.store(F::encode(&command, link).as_ref());
                link.0 = link.0.wrapping_add(F::SIZE as u64);
                self.next += 1;
            }
        }
        most
    }

    /// Keeps what was filled, to be published, and gives the rest back.
    #[inline]
    pub fn commit(self) -> Range<u64> {
        let positions = self.ring.filled..self.next;
        self.ring.filled = self.next;
        positions
    }
}
