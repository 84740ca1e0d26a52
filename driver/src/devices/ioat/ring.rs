//! What a channel shares with its device: the ring of descriptors, the completion word, and
//! the mark.
//!
//! # The mark
//!
//! The completion word names the descriptor that was done last, by its address. A device that
//! writes a word once more, a lap of the ring later, names a descriptor that is in flight
//! again, and nothing in the word tells. So the word only says that it is time to look: how
//! far the device is, says the *mark*, a word that the engine itself copies. Every doorbell,
//! and every quarter of the ring inside of a long transfer, ends with a descriptor that copies
//! the 64-bit position behind it from its own software area to the mark. Positions never
//! repeat, so that an old mark is told from a new one however late it comes. The fence bit of
//! the descriptor before it keeps the mark behind the data.
//!
//! A device could still lie by writing a mark that is in flight, as it could by not copying
//! what it says it copied: that is not to be told.

mod run;

use super::descriptor::{
    COMPLETION, Descriptor, INTERRUPT, NEXT, OP_COPY, SOFTWARE, fenced, last_address, last_done,
    words,
};
use super::regs::State;
use crate::dma::{Allocator, Coherent, Iova};
use crate::queue::{LastDone, Producer, QueueError, QueueSetupError, SubmissionRing};

/// The fewest descriptors of a ring: one slot stays free, one is kept for the mark, and one
/// for data makes three.
pub(super) const LEAST: u32 = 4;
/// The most descriptors of a ring: half of what the 16-bit doorbell counts.
pub(super) const MOST: u32 = 1 << 15;

/// Indices of the words that the device writes.
const WORD: usize = 0;
const MARK: usize = 1;

/// What a look at the completion word came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing is new.
    Same,
    /// So many descriptors more are done.
    Done(u64),
    /// The channel halted.
    Halted,
}

#[derive(Debug)]
pub(super) struct Ring {
    ring: SubmissionRing<Descriptor>,
    /// The completion word and the mark, in one cache line of their own.
    status: Coherent<u64>,
    /// Bytes of all descriptors.
    bytes: u64,
    /// The device addresses of the first descriptor, and of the mark.
    first: u64,
    mark: u64,
    /// One past the last marker, or where the chain began.
    marked: u64,
    /// For each slot, one past the position of the last marker that it held; and how many
    /// markers there ever were.
    markers: Box<[u64]>,
    all_markers: u64,
    /// Data descriptors between two markers of a long transfer.
    quarter: u32,
    /// The address of the newest descriptor that is done: while the completion word names it,
    /// there is nothing new, for the next marker has another slot.
    seen: u64,
    /// The word that was found to be stale last.
    stale: u64,
    stale_words: u64,
    /// The first word of a marker.
    marker: u64,
    /// Entries from the tail on that are known to take data: they are free, in a row, and no
    /// marker is due among them. 0 when that is not known.
    window: u32,
}

impl Ring {
    /// Places a ring of `size` descriptors; `interrupts` says whether markers raise one.
    pub(super) fn new(
        allocator: &Allocator,
        size: u32,
        interrupts: bool,
    ) -> Result<Ring, QueueSetupError> {
        if !(LEAST..=MOST).contains(&size) {
            return Err(QueueError::Size { size, least: LEAST, most: MOST }.into());
        }
        let descriptors = allocator.coherent::<Descriptor>(size as usize, 64)?;
        let status = allocator.coherent::<u64>(2, 64)?;
        let notify = if interrupts { COMPLETION | INTERRUPT } else { COMPLETION };
        let mut ring = Ring {
            bytes: u64::from(size) * Coherent::<Descriptor>::STRIDE as u64,
            first: descriptors.iova(0).0,
            mark: status.iova(MARK).0,
            ring: SubmissionRing::new(descriptors)?,
            status,
            marked: 0,
            markers: vec![0; size as usize].into(),
            all_markers: 0,
            quarter: (size / 4).max(2) - 1,
            seen: 0,
            stale: 0,
            stale_words: 0,
            marker: words(8, OP_COPY | notify, 0, 0)[0],
            window: 0,
        };
        ring.link();
        Ok(ring)
    }

    /// Closes the chain: each descriptor points to the next, the last to the first.
    fn link(&mut self) {
        let entries = self.ring.entries_mut();
        let len = entries.len();
        for index in 0..len {
            let next = entries.iova((index + 1) % len);
            entries.store_release(index, NEXT, next.0);
        }
    }

    #[inline]
    pub(super) fn producer(&self) -> &Producer {
        self.ring.producer()
    }

    /// Data descriptors that can be in flight: one slot stays free, and one is for the mark.
    #[inline]
    pub(super) fn capacity(&self) -> u32 {
        self.producer().capacity() - 1
    }

    /// Data descriptors that can be filled now.
    #[inline]
    pub(super) fn free(&self) -> u32 {
        self.producer().free().saturating_sub(1)
    }

    /// Says that `count` data descriptors are too many.
    #[cold]
    pub(super) fn full(&self, needed: u32) -> QueueError {
        QueueError::Full { needed, free: self.free(), capacity: self.capacity() }
    }

    /// Words that named a descriptor which the device had not come to.
    pub(super) fn stale_words(&self) -> u64 {
        self.stale_words
    }

    /// How many data descriptors were ever filled.
    #[inline]
    pub(super) fn data_filled(&self) -> u64 {
        self.producer().filled() - self.all_markers
    }

    /// Counts so many data descriptors as filled that were written from the tail on, and adds a
    /// marker behind them.
    ///
    /// They lie in a row, and leave one free for the marker; it is not added when none is.
    // One place calls it on the path whose instructions are counted.
    #[inline(always)]
    fn mark(&mut self, filled: u32) {
        let producer = self.producer();
        if producer.free() <= filled {
            return self.ring.producer_mut().advance(filled);
        }
        let (at, behind) = (producer.tail() + filled, producer.filled() + u64::from(filled) + 1);
        let at = if at >= producer.size() { at - producer.size() } else { at } as usize;
        let before = if at == 0 { producer.size() as usize } else { at } - 1;
        let place = self.first + (at * Coherent::<Descriptor>::STRIDE + 8 * SOFTWARE) as u64;
        self.ring.producer_mut().advance(filled + 1);
        self.window = self.window.saturating_sub(filled + 1);
        self.marked = behind;
        self.markers[at] = behind;
        self.all_markers += 1;
        let marker = [self.marker, place, self.mark];
        let entries = self.ring.entries_mut();
        let last = entries.element(before);
        last.write_word(0, fenced(last.read_word(0)));
        let entry = entries.element(at);
        entry.write_word(SOFTWARE, behind);
        entry.write_words(&marker);
    }

    /// Counts so many descriptors of the window as filled, as [`Ring::advance`], ends what was
    /// filled with a marker and counts it as published; the doorbell's value, or `None` when
    /// there is nothing new.
    #[inline(always)]
    pub(super) fn publish(&mut self, filled: u32) -> Option<u16> {
        if filled > 0 || self.producer().filled() != self.marked {
            self.mark(filled);
        }
        // The doorbell counts modulo 2^16 (DMACOUNT).
        self.ring.publish().map(|published| published.count as u16)
    }

    /// Whether an address, which a descriptor can have, is one of the ring.
    #[inline(always)]
    fn has(&self, address: u64) -> bool {
        address.wrapping_sub(self.first) < self.bytes
    }

    /// As [`Ring::look`], for who finds it most often: so many descriptors more are done; 0 says
    /// that the other has to look.
    #[inline(always)]
    pub(super) fn look_for_more(&mut self) -> u64 {
        let word = self.status.load_acquire(WORD, 0);
        if State::of(word) == State::Halted {
            return 0;
        }
        // One that names none has an address of 0, which no ring has.
        let address = last_address(word);
        if address == self.seen || !self.has(address) {
            return 0;
        }
        let mark = self.status.load_acquire(MARK, 0);
        let (done, published) = (self.producer().done(), self.producer().published());
        let newly = mark.wrapping_sub(done);
        // One that is behind is far ahead in this.
        if newly > published - done {
            return 0;
        }
        if self.ring.producer_mut().complete_to(mark).is_ok() {
            self.note_done();
        }
        newly
    }

    /// Looks at the completion word, and at the mark if the word is new.
    ///
    /// Fails, and counts nothing as done, when the word names no descriptor of the ring, or
    /// the mark one that is not in flight.
    #[inline]
    pub(super) fn look(&mut self) -> Result<Look, QueueError> {
        let word = self.status.load_acquire(WORD, 0);
        if State::of(word) == State::Halted {
            return Ok(Look::Halted);
        }
        let LastDone::Address(address) = last_done(word) else { return Ok(Look::Same) };
        if address == self.seen {
            return Ok(Look::Same);
        }
        self.ring.slot_at(address)?;
        match self.take_mark()? {
            0 => {
                if word != self.stale {
                    (self.stale, self.stale_words) = (word, self.stale_words + 1);
                }
                Ok(Look::Same)
            }
            newly => Ok(Look::Done(newly)),
        }
    }

    /// Counts as done what the mark says, whatever the completion word says; returns how many
    /// newly are.
    #[inline]
    pub(super) fn take_mark(&mut self) -> Result<u64, QueueError> {
        let mark = self.status.load_acquire(MARK, 0);
        // Marks only grow: one that is behind is old, whoever wrote it.
        if mark <= self.producer().done() {
            return Ok(0);
        }
        let done = self.ring.producer_mut().complete_to(mark)?;
        self.note_done();
        Ok(done.end - done.start)
    }

    /// Counts as done what CHANSTS says; returns how many newly are.
    pub(super) fn take_status(&mut self, status: u64) -> Result<u64, QueueError> {
        let LastDone::Address(address) = last_done(status) else { return Ok(0) };
        let slot = self.ring.slot_at(address)?;
        let producer = self.ring.producer_mut();
        let done = producer.complete_to(producer.behind_slot(slot)?)?;
        self.note_done();
        Ok(done.end - done.start)
    }

    #[inline]
    fn note_done(&mut self) {
        let slot = self.producer().last_done_slot();
        self.seen = self.first + u64::from(slot) * Coherent::<Descriptor>::STRIDE as u64;
    }

    /// Whether a descriptor that is not done is a marker.
    pub(super) fn is_marker(&self, position: u64) -> bool {
        self.markers[self.producer().slot(position) as usize] == position + 1
    }

    /// How many data descriptors were filled before a position that is not done.
    pub(super) fn data_before(&self, position: u64) -> u64 {
        let behind = (position..self.producer().filled()).filter(|&at| self.is_marker(at)).count();
        position - (self.all_markers - behind as u64)
    }

    /// Whether a status names the last descriptor that was published.
    pub(super) fn is_last(&self, status: u64) -> bool {
        let published = self.producer().published();
        let last = published.checked_sub(1).map(|last| self.ring.address(last).0);
        matches!(last_done(status), LastDone::Address(address) if Some(address) == last)
    }

    /// Length, source and target as a descriptor has them that is filled.
    pub(super) fn filled_words(&self, position: u64) -> [u64; NEXT] {
        let words = self.ring.entries().read(self.producer().slot(position) as usize);
        [u64::from(words[0] as u32), words[1], words[2]]
    }

    /// Lets the chain begin anew at a position, see [`Producer::restart`]; returns where that
    /// descriptor is, and where the completion word is. The channel must be stopped.
    pub(super) fn restart(&mut self, at: u64) -> Result<(Iova, Iova), QueueError> {
        self.ring.producer_mut().restart(at)?;
        self.window = 0;
        self.marked = self.marked.max(at);
        self.note_done();
        self.link();
        self.status.write(WORD, &0);
        self.status.write(MARK, &at);
        self.stale = 0;
        Ok((self.ring.address(at), self.status.iova(WORD)))
    }

    /// The device address of a position's descriptor.
    #[cfg(test)]
    pub(super) fn address(&self, position: u64) -> Iova {
        self.ring.address(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{HostIommu, allocator};

    /// Runs the chain as the engine does, up to `count` descriptors from an address on.
    fn run(host: &HostIommu, mut at: u64, count: u64, ring: &Ring) -> u64 {
        for _ in 0..count {
            let word = |i: u64| host.load(at + 8 * i).unwrap();
            let (head, source, target, next) = (word(0), word(1), word(2), word(3));
            if head as u32 == 8 {
                host.copy(source, target, 8).unwrap();
            }
            if head >> 32 & u64::from(COMPLETION) != 0 {
                host.store(ring.status.iova(WORD).0, at | 1).unwrap();
            }
            at = next;
        }
        at
    }

    /// Fills data descriptors that the engine of this test passes over.
    fn fill(ring: &mut Ring, count: u32) -> u32 {
        let lens: Vec<u64> = (64..64 + u64::from(count)).collect();
        let mut left = &lens[..];
        while !left.is_empty() {
            let mut run = ring.run();
            let filled = run.fill(left, |&len| Some(words(len, OP_COPY, 0, 0)));
            assert!(filled > 0, "there is room");
            ring.take_run(filled);
            left = &left[filled..];
        }
        count
    }

    #[test]
    fn a_word_that_is_a_lap_old_is_not_believed() {
        for size in [4u32, 5, 8, 16] {
            let (allocator, host) = allocator();
            let mut ring = Ring::new(&allocator, size, false).unwrap();
            let (mut at, completion) = ring.restart(0).unwrap();
            let mut words = Vec::new();
            for round in 0..100u64 {
                let count = 1 + round as u32 % ring.capacity().min(3);
                let room = ring.room();
                let filled = fill(&mut ring, count.min(room));
                let doorbell = ring.publish(0).unwrap();
                let published = ring.producer().in_flight().into();
                assert_eq!(u64::from(doorbell), ring.producer().published());
                // Every word that the device ever wrote, again, and a mark from before.
                let old = ring.producer().done().saturating_sub(1);
                host.store(ring.status.iova(MARK).0, old).unwrap();
                for &word in &words {
                    host.store(completion.0, word).unwrap();
                    assert_eq!(ring.look(), Ok(Look::Same), "size {size}, round {round}");
                }
                at = Iova(run(&host, at.0, published, &ring));
                // The true word may be overwritten too: the mark tells all the same.
                words.push(host.load(completion.0).unwrap());
                words.sort_unstable();
                words.dedup();
                if round % 2 == 0 {
                    let other = words.iter().find(|&&word| word & !7 != ring.seen).unwrap();
                    host.store(completion.0, *other).unwrap();
                }
                assert_eq!(ring.look(), Ok(Look::Done(published)), "{filled} of size {size}");
                assert_eq!(ring.producer().in_flight(), 0);
            }
            assert!(ring.stale_words() > 0);
        }
    }

    #[test]
    fn a_long_transfer_tells_of_itself_before_the_ring_is_full() {
        for size in [4u32, 6, 16, 64] {
            let (allocator, host) = allocator();
            let mut ring = Ring::new(&allocator, size, false).unwrap();
            let (mut at, _) = ring.restart(0).unwrap();
            let mut left = 300u32;
            let mut rounds = 0;
            while left > 0 {
                loop {
                    let room = ring.room().min(left);
                    if room == 0 {
                        break;
                    }
                    left -= fill(&mut ring, room);
                }
                ring.publish(0);
                let in_flight = u64::from(ring.producer().in_flight());
                assert!(in_flight > 0);
                at = Iova(run(&host, at.0, in_flight, &ring));
                assert!(matches!(ring.look(), Ok(Look::Done(_))));
                rounds += 1;
                assert!(rounds < 1000);
            }
        }
    }

    #[test]
    fn nonsense_in_the_word_or_the_mark_is_an_error() {
        let (allocator, host) = allocator();
        let mut ring = Ring::new(&allocator, 32, false).unwrap();
        let (_, completion) = ring.restart(0).unwrap();
        fill(&mut ring, 3);
        ring.publish(0);
        host.store(completion.0, 0x40).unwrap();
        assert!(matches!(ring.look(), Err(QueueError::OutsideRing { address: 0x40, .. })));
        host.store(completion.0, ring.address(3).0).unwrap();
        for mark in [5, u64::MAX] {
            host.store(ring.status.iova(MARK).0, mark).unwrap();
            assert!(matches!(ring.look(), Err(QueueError::Count { .. })));
        }
        host.store(ring.status.iova(MARK).0, 4).unwrap();
        assert_eq!(ring.look(), Ok(Look::Done(4)));
        assert!(ring.is_last(ring.address(3).0 | 1) && !ring.is_last(ring.address(2).0));
        for size in [0, 3, MOST + 1] {
            assert!(Ring::new(&allocator, size, false).is_err());
        }
    }
}
