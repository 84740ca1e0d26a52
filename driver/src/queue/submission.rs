//! A submission ring: positions, and the entries that the device reads.

use super::{Producer, Published, QueueError};
use crate::dma::{Coherent, Iova, Shared};

/// A ring of entries that the processor writes and a device reads.
#[derive(Debug)]
pub struct SubmissionRing<T: Shared> {
    producer: Producer,
    entries: Coherent<T>,
}

impl<T: Shared> SubmissionRing<T> {
    /// A ring of all the elements of an array.
    ///
    /// # Errors
    ///
    /// Fails when there are fewer than 2 or more than [`Producer::MAX_SIZE`].
    pub fn new(entries: Coherent<T>) -> Result<SubmissionRing<T>, QueueError> {
        let size = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        Ok(SubmissionRing { producer: Producer::new(size)?, entries })
    }

    /// Its positions.
    #[inline]
    #[must_use]
    pub fn producer(&self) -> &Producer {
        &self.producer
    }

    /// Its positions, for what the device has said.
    #[inline]
    #[must_use]
    pub fn producer_mut(&mut self) -> &mut Producer {
        &mut self.producer
    }

    /// Its entries.
    #[must_use]
    pub fn entries(&self) -> &Coherent<T> {
        &self.entries
    }

    /// Its entries, for what is written once.
    #[must_use]
    pub fn entries_mut(&mut self) -> &mut Coherent<T> {
        &mut self.entries
    }

    /// Begins anew with slot 0 and position 0, nothing filled: for a device that was stopped,
    /// and has forgotten the ring.
    pub fn clear(&mut self) {
        self.producer.clear();
    }

    /// The device address of a position's entry.
    #[must_use]
    pub fn address(&self, position: u64) -> Iova {
        self.entries.iova(self.producer.slot(position) as usize)
    }

    /// The slot at a device address.
    ///
    /// # Errors
    ///
    /// [`QueueError::OutsideRing`] for an address where no entry begins.
    #[inline]
    pub fn slot_at(&self, address: u64) -> Result<u64, QueueError> {
        let (ring, stride) = (self.entries.iova(0), Coherent::<T>::STRIDE);
        let offset = address.wrapping_sub(ring.0);
        let slot = offset / stride as u64;
        if slot < u64::from(self.producer.size()) && offset.is_multiple_of(stride as u64) {
            return Ok(slot);
        }
        Err(QueueError::OutsideRing { address, ring, size: self.producer.size(), stride })
    }

    /// Fills the next entry, of which only the first words are written.
    ///
    /// # Errors
    ///
    /// [`QueueError::Full`] when none is free.
    #[inline]
    pub fn push(&mut self, words: &[T::Word]) -> Result<u64, QueueError> {
        self.producer.require(1)?;
        let position = self.producer.filled();
        let tail = self.producer.tail() as usize;
        self.entries.element(tail).write_words(words);
        self.producer.advance(1);
        Ok(position)
    }

    /// Fills up to `most` entries with what an iterator gives, in its order, and returns how
    /// many; fewer when the iterator ends or no entry is free. Nothing is asked for that finds
    /// no entry. Only the first words of an entry are written.
    ///
    /// It does what as many calls of [`SubmissionRing::push`] do, for less each.
    #[inline]
    pub fn fill_from<W: AsRef<[T::Word]>>(
        &mut self,
        most: u32,
        words: impl IntoIterator<Item = W>,
    ) -> u32 {
        let mut words = words.into_iter();
        let mut filled = 0;
        while filled < most {
            let run = self.producer.run().min(most - filled);
            let tail = self.producer.tail() as usize;
            let mut written = 0;
            for entry in self.entries.elements(tail, run as usize) {
                let Some(words) = words.next() else { break };
                entry.write_words(words.as_ref());
                written += 1;
            }
            self.producer.advance(written);
            filled += written;
            if written < run || run == 0 {
                break;
            }
        }
        filled
    }

    /// Counts what was filled as published, see [`Producer::publish`]. The doorbell's register
    /// write that follows orders the entries before it.
    #[inline]
    pub fn publish(&mut self) -> Option<Published> {
        self.producer.publish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::buffer;

    #[test]
    fn entries_are_written_in_the_order_of_their_positions_over_every_wrap() {
        for size in [2u32, 3, 5, 8] {
            let (memory, host) = buffer(size as usize * 16);
            let entries = Coherent::<[u64; 2]>::new(memory, size as usize).unwrap();
            let mut ring = SubmissionRing::new(entries).unwrap();
            let mut next = 0u64;
            for round in 0..50u32 {
                let most = round % (size + 2);
                let give = (round * 3) % (size + 1);
                let expected = most.min(give).min(ring.producer().free());
                let words = (next..).map(|n| [n]).take(give as usize);
                assert_eq!(ring.fill_from(most, words), expected);
                for position in next..next + u64::from(expected) {
                    assert_eq!(host.load(ring.address(position).0), Some(position));
                }
                next += u64::from(expected);
                if ring.producer().free() > 0 {
                    assert_eq!(ring.push(&[next]), Ok(next));
                    assert_eq!(host.load(ring.address(next).0), Some(next));
                    next += 1;
                } else {
                    assert!(matches!(ring.push(&[0]), Err(QueueError::Full { needed: 1, .. })));
                }
                ring.publish();
                let end = ring.producer().published() - u64::from(round % 2).min(next);
                let end = end.max(ring.producer().done());
                ring.producer_mut().complete_to(end).unwrap();
            }
        }
    }

    #[test]
    fn an_address_is_that_of_an_entry_or_none() {
        let (memory, _host) = buffer(5 * 64);
        let ring = SubmissionRing::new(Coherent::<[u64; 8]>::new(memory, 5).unwrap()).unwrap();
        let first = ring.address(0).0;
        for slot in 0..5 {
            assert_eq!(ring.slot_at(first + 64 * slot), Ok(slot));
        }
        for address in [0, first - 64, first + 8, first + 320, u64::MAX] {
            assert!(matches!(ring.slot_at(address), Err(QueueError::OutsideRing { .. })));
        }
    }
}
