//! Positions of a submission ring.

use std::ops::Range;

use super::QueueError;

/// What was published: each device makes its doorbell's value of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// One past the newest published.
    pub position: u64,
    /// The slot of that position: the tail that devices such as NVMe are told.
    pub tail: u32,
    /// How many were published since the ring began: what devices such as I/OAT are told,
    /// modulo the doorbell's width.
    pub count: u64,
}

/// The producer's side of a submission ring: who fills entries, and who knows which of them
/// the device has.
///
/// Positions are 64-bit numbers that only grow: `done <= published <= filled`. The slot of a
/// position is its remainder by the ring's size, which may be any. One slot stays free, so
/// that a head that equals the tail never means both an empty ring and a full one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producer {
    size: u32,
    /// Positions: one past the last filled, published and done.
    filled: u64,
    published: u64,
    done: u64,
    /// The slot of `filled`.
    tail: u32,
    /// The slot of `done`.
    head: u32,
    /// The position at which the ring began that the doorbell counts.
    origin: u64,
}

impl Producer {
    /// The most entries of a ring: half of what 32 bits count.
    pub const MAX_SIZE: u32 = 1 << 31;

    /// An empty ring of so many entries.
    ///
    /// # Errors
    ///
    /// Fails when there are fewer than 2 or more than [`Producer::MAX_SIZE`].
    pub fn new(size: u32) -> Result<Producer, QueueError> {
        if !(2..=Producer::MAX_SIZE).contains(&size) {
            return Err(QueueError::Size { size, least: 2, most: Producer::MAX_SIZE });
        }
        Ok(Producer { size, filled: 0, published: 0, done: 0, tail: 0, head: 0, origin: 0 })
    }

    /// Begins anew, empty: for a device that was stopped, and has forgotten the ring.
    pub fn clear(&mut self) {
        let size = self.size;
        *self = Producer { size, filled: 0, published: 0, done: 0, tail: 0, head: 0, origin: 0 };
    }

    /// Entries of the ring.
    #[inline]
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Entries that can be in flight: one less than the size.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.size - 1
    }

    /// Entries that can be filled now.
    #[inline]
    #[must_use]
    pub fn free(&self) -> u32 {
        self.size - 1 - (self.filled - self.done) as u32
    }

    /// Entries that are published and not known to be done.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        (self.published - self.done) as u32
    }

    /// The position that the next entry gets.
    #[inline]
    #[must_use]
    pub fn filled(&self) -> u64 {
        self.filled
    }

    /// One past the newest that the device was told of.
    #[inline]
    #[must_use]
    pub fn published(&self) -> u64 {
        self.published
    }

    /// One past the newest that is done.
    #[inline]
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done
    }

    /// The slot that the next entry is written to.
    #[inline]
    #[must_use]
    pub fn tail(&self) -> u32 {
        self.tail
    }

    /// The slot of the newest that is done.
    #[inline]
    #[must_use]
    pub fn last_done_slot(&self) -> u32 {
        if self.head == 0 { self.size - 1 } else { self.head - 1 }
    }

    /// The slot of a position.
    #[must_use]
    pub fn slot(&self, position: u64) -> u32 {
        (position % u64::from(self.size)) as u32
    }

    /// Refuses when fewer than `count` entries are free.
    ///
    /// # Errors
    ///
    /// [`QueueError::Full`] with the figures.
    #[inline]
    pub fn require(&self, count: u32) -> Result<(), QueueError> {
        if count <= self.free() { Ok(()) } else { Err(self.full(count)) }
    }

    /// Says that `count` entries are too many.
    #[cold]
    #[must_use]
    pub fn full(&self, needed: u32) -> QueueError {
        QueueError::Full { needed, free: self.free(), capacity: self.capacity() }
    }

    /// The longest run of free slots from [`Producer::tail`] on that does not wrap.
    #[inline]
    #[must_use]
    pub fn run(&self) -> u32 {
        self.free().min(self.size - self.tail)
    }

    /// Counts `count` entries as filled, which were written from [`Producer::tail`] on.
    ///
    /// # Panics
    ///
    /// When fewer are free: they would overwrite what the device has.
    #[inline]
    pub fn advance(&mut self, count: u32) {
        assert!(count <= self.free(), "only what is free is filled");
        self.filled += u64::from(count);
        self.tail = self.wrap(self.tail, count);
    }

    /// The slot `count` behind another; both are at most the size.
    #[inline]
    fn wrap(&self, slot: u32, count: u32) -> u32 {
        // The size is at most 2^31, so that the sum of both stays below 2^32.
        let next = slot + count;
        if next >= self.size { next - self.size } else { next }
    }

    /// Counts what was filled as published; `None` when there is nothing new.
    #[inline]
    pub fn publish(&mut self) -> Option<Published> {
        if self.published == self.filled {
            return None;
        }
        self.published = self.filled;
        let count = self.published - self.origin;
        Some(Published { position: self.published, tail: self.tail, count })
    }

    /// Counts everything before a position as done; returns what newly is.
    ///
    /// # Errors
    ///
    /// [`QueueError::Count`], and nothing changes, for a position that was not published.
    #[inline]
    pub fn complete_to(&mut self, position: u64) -> Result<Range<u64>, QueueError> {
        let before = self.done;
        let newly = position.wrapping_sub(before);
        if newly > self.published - before {
            return Err(QueueError::Count { count: newly, in_flight: self.in_flight() });
        }
        self.done = position;
        self.head = self.wrap(self.head, newly as u32);
        Ok(before..position)
    }

    /// The position behind the entry in flight that has this slot; the oldest in flight when
    /// the slot is that of the newest done.
    ///
    /// # Errors
    ///
    /// [`QueueError::NotInFlight`] for a slot that is neither.
    #[inline]
    pub fn behind_slot(&self, slot: u64) -> Result<u64, QueueError> {
        if slot < u64::from(self.size) {
            // From the oldest in flight to one past the reported: 0, or the size, when that
            // is the one before.
            let behind = self.wrap(slot as u32, 1);
            let newly = if behind < self.head {
                behind + self.size - self.head
            } else {
                behind - self.head
            };
            if u64::from(newly) <= self.published - self.done {
                return Ok(self.done + u64::from(newly));
            }
        }
        Err(QueueError::NotInFlight { slot, first: self.head, in_flight: self.in_flight() })
    }

    /// Lets the ring begin anew at a position that is filled and not done (or the next to be
    /// filled): what lies before it counts as done, what is from it on as not published. The
    /// device must be stopped.
    ///
    /// # Errors
    ///
    /// Fails for a position that is not waiting.
    pub fn restart(&mut self, at: u64) -> Result<(), QueueError> {
        let (done, filled) = (self.done, self.filled);
        if !(done..=filled).contains(&at) {
            return Err(QueueError::Position { at, done, filled });
        }
        (self.done, self.published, self.origin) = (at, at, at);
        self.head = self.slot(at);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_size_and_every_wrap() {
        for size in 2..12 {
            let mut ring = Producer::new(size).unwrap();
            for round in 0..40u64 {
                let count = (round as u32 * 7) % (ring.free() + 1);
                assert_eq!(ring.tail(), ring.slot(ring.filled()));
                ring.advance(count);
                let published = ring.publish();
                assert_eq!(published.is_some(), count > 0);
                if let Some(published) = published {
                    assert_eq!(published.count, ring.filled());
                    assert_eq!(published.tail, ring.slot(ring.filled()));
                }
                // Each slot in flight stands for one position, every other for none.
                let (done, published) = (ring.done(), ring.published());
                let slots: Vec<u32> = (done..published).map(|p| ring.slot(p)).collect();
                for slot in 0..size {
                    let found = ring.behind_slot(slot.into());
                    match slots.iter().position(|&known| known == slot) {
                        Some(at) => assert_eq!(found, Ok(done + at as u64 + 1)),
                        None if ring.slot(done + u64::from(size) - 1) == slot => {
                            assert_eq!(found, Ok(done), "the one before the oldest");
                        }
                        None => assert!(matches!(found, Err(QueueError::NotInFlight { .. }))),
                    }
                }
                let end = done + u64::from(ring.in_flight()) * (round % 3) / 2;
                let end = end.min(published);
                assert_eq!(ring.complete_to(end), Ok(done..end));
                assert_eq!(ring.last_done_slot(), ring.slot(end + u64::from(size) - 1));
                assert!(ring.complete_to(published + 1).is_err());
                assert!(end == 0 || ring.complete_to(end - 1).is_err());
                assert_eq!(ring.free() + (ring.filled() - ring.done()) as u32, size - 1);
            }
        }
    }

    #[test]
    fn sizes_that_are_none_are_refused() {
        for size in [0, 1, (1 << 31) + 1, u32::MAX] {
            assert!(matches!(Producer::new(size), Err(QueueError::Size { .. })));
        }
        let mut most = Producer::new(Producer::MAX_SIZE).unwrap();
        most.advance(most.capacity());
        assert_eq!(most.publish().unwrap().tail, Producer::MAX_SIZE - 1);
        most.complete_to(most.published()).unwrap();
        most.advance(most.capacity());
        assert_eq!(most.publish().unwrap().tail, Producer::MAX_SIZE - 2);
        assert!(most.behind_slot(u64::MAX).is_err() && most.behind_slot(1 << 31).is_err());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Fill(u32),
        Publish,
        Complete(u32),
        Restart(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0u32..40).prop_map(Step::Fill),
            3 => Just(Step::Publish),
            3 => (0u32..40).prop_map(Step::Complete),
            1 => (0u32..40).prop_map(Step::Restart),
        ]
    }

    proptest! {
        /// Against a queue of the positions themselves.
        #[test]
        fn it_is_a_queue(size in 2u32..40, steps in proptest::collection::vec(step(), 1..300)) {
            let mut ring = Producer::new(size).unwrap();
            // (position, published)
            let mut waiting: std::collections::VecDeque<(u64, bool)> = Default::default();
            let (mut next, mut since) = (0u64, 0u64);
            for step in steps {
                match step {
                    Step::Fill(count) => {
                        let room = size - 1 - waiting.len() as u32;
                        prop_assert_eq!(ring.require(count).is_ok(), count <= room);
                        if count > room {
                            continue;
                        }
                        let mut left = count;
                        while left > 0 {
                            let run = ring.run().min(left);
                            prop_assert!(run > 0 && ring.tail() + run <= size);
                            ring.advance(run);
                            left -= run;
                        }
                        waiting.extend((0..u64::from(count)).map(|n| (next + n, false)));
                        next += u64::from(count);
                    }
                    Step::Publish => {
                        let new = waiting.iter().filter(|(_, published)| !published).count();
                        since += new as u64;
                        waiting.iter_mut().for_each(|(_, published)| *published = true);
                        let published = ring.publish();
                        prop_assert_eq!(published.is_some(), new > 0);
                        prop_assert!(published.is_none_or(|p| p.count == since));
                    }
                    Step::Complete(count) => {
                        let known = waiting.iter().filter(|(_, published)| *published).count();
                        let end = ring.done() + u64::from(count);
                        let fits = count as usize <= known;
                        prop_assert_eq!(ring.complete_to(end).is_ok(), fits);
                        if fits {
                            waiting.drain(..count as usize);
                        }
                    }
                    Step::Restart(count) => {
                        let at = ring.done() + u64::from(count);
                        let fits = count as usize <= waiting.len();
                        prop_assert_eq!(ring.restart(at).is_ok(), fits);
                        if fits {
                            waiting.drain(..count as usize);
                            waiting.iter_mut().for_each(|(_, published)| *published = false);
                            since = 0;
                        }
                    }
                }
                prop_assert_eq!(ring.filled(), next);
                prop_assert_eq!(ring.filled() - ring.done(), waiting.len() as u64);
                let in_flight = waiting.iter().filter(|(_, published)| *published).count();
                prop_assert_eq!(ring.in_flight() as usize, in_flight);
                let oldest = waiting.front().map_or(next, |(position, _)| *position);
                prop_assert_eq!(ring.done(), oldest);
            }
        }
    }
}
