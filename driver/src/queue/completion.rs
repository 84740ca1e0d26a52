//! What a device writes to say how far it is: by a word, by a count, or by entries of a ring.

use super::{Producer, QueueError};
use crate::dma::{Coherent, Iova, Shared};
use crate::mmio::Width;

/// The entry that a device reports as the last one done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastDone {
    /// None since the ring began.
    None,
    /// The one at this device address.
    Address(u64),
    /// The one with this slot.
    Slot(u64),
}

/// A counter of completed entries, of which the device writes the low bits.
#[derive(Debug, Clone)]
pub struct CompletionCount {
    mask: u64,
    /// The position at which the device's counter was 0.
    origin: u64,
}

impl CompletionCount {
    /// A counter of so many bits, 1 to 64, which is 0 at a position.
    ///
    /// The ring must have fewer entries than the counter has values, or two states look the
    /// same.
    ///
    /// # Errors
    ///
    /// [`QueueError::Size`] for a ring that is too large for the counter.
    pub fn new(bits: u32, producer: &Producer) -> Result<CompletionCount, QueueError> {
        let mask = u64::MAX >> (64 - bits.clamp(1, 64));
        if u64::from(producer.size()) > mask {
            let most = u32::try_from(mask).unwrap_or(u32::MAX);
            return Err(QueueError::Size { size: producer.size(), least: 2, most });
        }
        Ok(CompletionCount { mask, origin: producer.done() })
    }

    /// The position up to which entries are done when the counter has this value.
    ///
    /// # Errors
    ///
    /// [`QueueError::Count`] when that is more than the device was given.
    #[inline]
    pub fn position(&self, producer: &Producer, value: u64) -> Result<u64, QueueError> {
        let known = producer.done() - self.origin;
        let newly = value.wrapping_sub(known) & self.mask;
        if newly > producer.in_flight().into() {
            return Err(QueueError::Count { count: newly, in_flight: producer.in_flight() });
        }
        Ok(producer.done() + newly)
    }
}

/// The entries that a device writes to a completion ring.
pub trait CompletionEntry: Shared {
    /// The word that holds the phase bit: the device writes it last.
    const PHASE_WORD: usize;

    /// The phase bit of that word.
    fn phase(word: Self::Word) -> bool;
}

/// A ring of completion entries, which turn valid by a phase bit that flips with each lap
/// (NVM Express Base 1.4, 4.6: the phase tag). Entries may come for submissions in any order.
#[derive(Debug)]
pub struct CompletionRing<E: CompletionEntry> {
    entries: Coherent<E>,
    head: u32,
    /// The phase bit of an entry that is new.
    phase: bool,
    /// Entries taken so far.
    taken: u64,
}

impl<E: CompletionEntry> CompletionRing<E> {
    /// A ring whose entries all have a phase bit of 0, as zeroed memory has: the device begins
    /// with 1.
    ///
    /// # Errors
    ///
    /// [`QueueError::Size`] for fewer than 2 or more than [`Producer::MAX_SIZE`] entries.
    pub fn new(entries: Coherent<E>) -> Result<CompletionRing<E>, QueueError> {
        let size = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        Producer::new(size)?;
        let mut ring = CompletionRing { entries, head: 0, phase: true, taken: 0 };
        ring.clear();
        Ok(ring)
    }

    /// Begins anew with slot 0: for a device that was stopped, and has forgotten the ring.
    pub fn clear(&mut self) {
        // Whatever was there would be taken for the device's.
        let len = self.entries.len();
        for entry in self.entries.elements(0, len) {
            entry.fill_zero();
        }
        (self.head, self.phase) = (0, true);
    }

    /// Where the device writes the first entry.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.entries.iova(0)
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The slot that is looked at next: what the device is told at its head doorbell, so that
    /// it may use the slots before it again.
    #[inline]
    #[must_use]
    pub fn head(&self) -> u32 {
        self.head
    }

    /// Entries taken so far.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// The next entry, if the device has written it. The load of its phase bit comes before
    /// those of its other words, and of the memory that the entry tells of.
    #[inline]
    pub fn take(&mut self) -> Option<E> {
        let head = self.head as usize;
        if E::phase(self.entries.load_acquire(head, E::PHASE_WORD)) != self.phase {
            return None;
        }
        let entry = self.entries.read(head);
        self.head += 1;
        if self.head == self.size() {
            self.head = 0;
            self.phase = !self.phase;
        }
        self.taken = self.taken.wrapping_add(1);
        Some(entry)
    }
}

impl<E: CompletionEntry> crate::dma::Element<'_, E> {
    fn fill_zero(self) {
        let zeros: Vec<E::Word> = vec![<E::Word as Width>::ZERO; E::WORDS];
        self.write_words(&zeros);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::buffer;

    #[test]
    fn a_count_is_told_modulo_its_width() {
        let mut ring = Producer::new(7).unwrap();
        let count = CompletionCount::new(3, &ring).unwrap();
        assert!(matches!(CompletionCount::new(2, &ring), Err(QueueError::Size { most: 3, .. })));
        assert!(CompletionCount::new(64, &ring).is_ok());
        let mut device = 0u64;
        for round in 0..100u64 {
            let fill = ring.free().min(1 + round as u32 % 6);
            ring.advance(fill);
            ring.publish();
            let done = u64::from(ring.in_flight()).min(1 + round % 4);
            device += done;
            assert_eq!(count.position(&ring, device & 7), Ok(device));
            let more = u64::from(ring.in_flight()) + 1;
            if more < 8 {
                let bogus = count.position(&ring, ring.done() + more);
                assert!(matches!(bogus, Err(QueueError::Count { .. })), "{bogus:?}");
            }
            ring.complete_to(device).unwrap();
        }
    }

    impl CompletionEntry for [u32; 4] {
        const PHASE_WORD: usize = 3;

        fn phase(word: u32) -> bool {
            word & 1 << 16 != 0
        }
    }

    #[test]
    fn entries_are_taken_once_over_every_wrap_of_the_phase() {
        for size in [2u32, 3, 4, 7] {
            let (memory, host) = buffer(size as usize * 16);
            let base = memory.segments()[0].iova.0;
            // What a former user left looks like an entry.
            for word in 0..u64::from(size) * 2 {
                host.store(base + 8 * word, u64::MAX).unwrap();
            }
            let entries = Coherent::<[u32; 4]>::new(memory, size as usize).unwrap();
            let mut ring = CompletionRing::new(entries).unwrap();
            assert_eq!((ring.iova().0, ring.size(), ring.take()), (base, size, None));
            let mut written = 0u64;
            for round in 0..60u64 {
                // At most a lap ahead, as a device that looks at the head is.
                let ahead = written - ring.taken();
                for _ in 0..(round % 5).min(u64::from(size) - 1 - ahead) {
                    let (slot, lap) = (written % u64::from(size), written / u64::from(size));
                    host.store(base + 16 * slot, written).unwrap();
                    let phase = if lap.is_multiple_of(2) { 1 << 48 } else { 0 };
                    host.store(base + 16 * slot + 8, phase | written & 0xffff).unwrap();
                    written += 1;
                }
                for _ in 0..round % 3 {
                    let (expected, is_there) = (ring.taken() as u32, ring.taken() < written);
                    let taken = ring.take();
                    assert_eq!(taken.map(|entry| entry[0]), is_there.then_some(expected));
                    assert_eq!(u64::from(ring.head()), ring.taken() % u64::from(size));
                }
            }
        }
    }
}
