//! Slots that a device has, kept beside the ring that its entries are in.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::Producer;
use crate::device::{Device, Function};
use crate::dma::{Slot, SlotPool};

/// The slots of one entry of a ring, as they come back.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SlotPair {
    /// What was read.
    pub source: Option<Slot>,
    /// What was written.
    pub target: Option<Slot>,
}

/// Entries one after another, and their slots.
#[derive(Debug, Default)]
struct Run {
    /// The position of the first.
    first: u64,
    pairs: Vec<SlotPair>,
}

impl Run {
    #[inline]
    fn end(&self) -> u64 {
        self.first + self.pairs.len() as u64
    }

    /// Gives the slots of the entries before a position back; returns of how many. The vectors
    /// change places where they can, so that nothing is copied.
    #[inline(always)]
    fn give_back(&mut self, done: u64, into: &mut Vec<SlotPair>) -> usize {
        let len = self.pairs.len();
        if done < self.end() || !into.is_empty() {
            return self.move_out(done, into);
        }
        std::mem::swap(into, &mut self.pairs);
        len
    }

    #[inline(never)]
    fn move_out(&mut self, done: u64, into: &mut Vec<SlotPair>) -> usize {
        let ready = done.saturating_sub(self.first).min(self.pairs.len() as u64);
        into.extend(self.pairs.drain(..ready as usize));
        self.first += ready;
        ready as usize
    }
}

/// Owns the slots that a device may touch, by the entries of its ring that name them.
///
/// What is for a buffer [`InFlight`](super::InFlight) is this for the slots of pools: a driver
/// notes the slots of an entry before the device is told of it, and they come back in the
/// order of the entries, in bulk, once the driver says that those are done. The pools stay mapped
/// as long as this refers to them; when this is dropped with slots in flight the function is
/// stopped first, or else they are leaked.
#[derive(Debug)]
pub struct SlotsInFlight {
    function: Arc<Function>,
    /// The latest last.
    pools: Vec<Arc<SlotPool>>,
    /// The addresses of those that were attached last, as source and target.
    latest: [usize; 2],
    /// Bytes of the shorter slot of both.
    slot_len: usize,
    /// Entries whose slots can be held at a time.
    size: u32,
    /// The entries whose slots are held: the newest, which mostly are all of them, and those
    /// before, oldest first.
    newest: Run,
    older: VecDeque<Run>,
    /// Vectors to be used again.
    spare: Vec<Vec<SlotPair>>,
    /// Operations of several entries, oldest first.
    groups: VecDeque<Range<u64>>,
}

impl SlotsInFlight {
    /// No slots in flight on a ring of so many entries.
    #[must_use]
    pub fn new(device: &Device, ring_size: u32) -> SlotsInFlight {
        let size = ring_size as usize;
        SlotsInFlight {
            function: Arc::clone(device.function()),
            pools: Vec::new(),
            latest: [0; 2],
            slot_len: 0,
            size: ring_size,
            newest: Run::default(),
            older: VecDeque::with_capacity(size),
            spare: Vec::with_capacity(size),
            groups: VecDeque::with_capacity(size),
        }
    }

    /// Whether these are what was attached last, as source and target.
    #[inline]
    #[must_use]
    pub fn are_latest(&self, source: &Arc<SlotPool>, target: &Arc<SlotPool>) -> bool {
        // They are kept, so that no other pool can have their addresses.
        self.latest == [source, target].map(|pool| Arc::as_ptr(pool).addr())
    }

    /// Keeps the pools of sources and targets mapped from here on.
    pub fn attach(&mut self, source: &Arc<SlotPool>, target: &Arc<SlotPool>) {
        for pool in [source, target] {
            if !self.pools.iter().any(|known| Arc::ptr_eq(known, pool)) {
                self.pools.push(Arc::clone(pool));
            }
        }
        self.latest = [source, target].map(|pool| Arc::as_ptr(pool).addr());
        self.slot_len = source.slot_len().min(target.slot_len());
    }

    /// Bytes of the shorter slot of the pools that were attached last; 0 before.
    #[inline]
    #[must_use]
    pub fn slot_len(&self) -> usize {
        self.slot_len
    }

    /// Takes no pools for the latest any more: the next ones are looked at.
    pub fn forget_latest(&mut self) {
        self.latest = [0; 2];
    }

    /// Lets go of every pool, unless a slot was not given back; whether it did.
    pub fn detach_all(&mut self) -> bool {
        let is_empty = self.is_empty();
        if is_empty {
            self.pools.clear();
            self.forget_latest();
        }
        is_empty
    }

    /// Entries that can be filled until as many hold slots as the ring has.
    #[inline]
    #[must_use]
    pub fn room(&self, producer: &Producer) -> u32 {
        let held = match self.oldest() {
            run if run.pairs.is_empty() => 0,
            run => (producer.filled() - run.first) as u32,
        };
        self.size.saturating_sub(held)
    }

    /// Notes the slots of the entry that is filled next, whose pools are attached.
    ///
    /// # Panics
    ///
    /// When a pool is not attached.
    pub fn push(&mut self, producer: &Producer, pair: SlotPair) {
        let known = |slot: &Option<Slot>| {
            let in_pool = |slot| self.pools.iter().any(|pool| pool.address(slot).is_some());
            slot.as_ref().is_none_or(in_pool)
        };
        assert!(known(&pair.source) && known(&pair.target), "the pool is attached");
        self.run_at(producer.filled()).push(pair);
    }

    /// Where the slots of the entries from a position on go, which is the next to be filled.
    #[inline]
    pub(crate) fn run_at(&mut self, position: u64) -> &mut Vec<SlotPair> {
        if self.newest.pairs.is_empty() {
            self.newest.first = position;
        } else if self.newest.end() != position {
            self.begin_run(position);
        }
        &mut self.newest.pairs
    }

    #[cold]
    fn begin_run(&mut self, first: u64) {
        let run = Run { first, pairs: self.spare.pop().unwrap_or_default() };
        self.older.push_back(std::mem::replace(&mut self.newest, run));
    }

    /// The oldest run; one of no entries when there is none.
    #[inline]
    fn oldest(&self) -> &Run {
        if self.older.is_empty() { &self.newest } else { &self.older[0] }
    }

    fn runs(&self) -> impl DoubleEndedIterator<Item = &Run> {
        self.older.iter().chain([&self.newest]).filter(|run| !run.pairs.is_empty())
    }

    /// Whether no slot is held.
    #[inline]
    fn is_empty(&self) -> bool {
        self.older.is_empty() && self.newest.pairs.is_empty()
    }

    /// Makes entries one operation, which fails as a whole.
    pub(crate) fn group(&mut self, entries: Range<u64>) {
        self.groups.push_back(entries);
    }

    /// Gives the slots of every entry before a position back, in their order; returns of how
    /// many entries. The device is done with them, whoever calls this says.
    #[inline]
    pub fn reap(&mut self, done: u64, into: &mut Vec<SlotPair>) -> usize {
        // Mostly one doorbell told of everything that is in flight.
        if self.older.is_empty() && self.groups.is_empty() {
            return self.newest.give_back(done, into);
        }
        self.reap_runs(done, into)
    }

    #[inline(never)]
    fn reap_runs(&mut self, done: u64, into: &mut Vec<SlotPair>) -> usize {
        self.groups.retain(|group| group.end > done);
        let mut reaped = 0;
        while let Some(run) = self.older.front_mut() {
            reaped += run.give_back(done, into);
            if !run.pairs.is_empty() {
                return reaped;
            }
            self.spare.extend(self.older.pop_front().map(|run| run.pairs));
        }
        reaped + self.newest.give_back(done, into)
    }

    /// Whether [`SlotsInFlight::reap`] would give something back.
    #[inline]
    #[must_use]
    pub fn can_reap(&self, done: u64) -> bool {
        let run = self.oldest();
        !run.pairs.is_empty() && run.first < done
    }

    /// Entries with slots that are not done.
    #[inline]
    #[must_use]
    pub fn in_flight(&self, done: u64) -> usize {
        let behind = |run: &Run| (run.end() - done.clamp(run.first, run.end())) as usize;
        self.runs().rev().take_while(|run| run.end() > done).map(behind).sum()
    }

    /// The positions of the operation that an entry belongs to; `None` when it has no slots.
    #[must_use]
    pub fn operation(&self, position: u64) -> Option<Range<u64>> {
        let is_ours = self.runs().any(|run| (run.first..run.end()).contains(&position));
        let group = self.groups.iter().find(|group| group.contains(&position));
        is_ours.then(|| group.cloned().unwrap_or(position..position + 1))
    }

    /// Takes the slots of entries out that the device does no more: (position, slots).
    pub fn take(&mut self, entries: Range<u64>) -> Vec<(u64, SlotPair)> {
        let mut taken = Vec::new();
        let mut kept = VecDeque::with_capacity(self.older.capacity());
        let newest = std::mem::take(&mut self.newest);
        for Run { first, mut pairs } in self.older.drain(..).chain([newest]) {
            let end = first + pairs.len() as u64;
            let from = entries.start.clamp(first, end);
            let to = entries.end.clamp(from, end);
            let behind = pairs.split_off((to - first) as usize);
            taken.extend((from..).zip(pairs.drain((from - first) as usize..)));
            kept.extend([Run { first, pairs }, Run { first: to, pairs: behind }]);
        }
        kept.retain(|run| !run.pairs.is_empty());
        self.newest = kept.pop_back().unwrap_or_default();
        self.older = kept;
        self.groups.retain(|group| !entries.contains(&(group.end - 1)));
        taken
    }

    /// Gives every slot up without giving it back, for a driver that knows its device to be
    /// done with all of them.
    pub fn clear(&mut self) {
        self.older.clear();
        self.newest = Run::default();
        self.groups.clear();
    }

    /// Gives the pools to the device to keep until the function is known to be quiet, as
    /// [`Device::park`] does.
    pub fn park(&mut self) {
        self.forget_latest();
        self.function.park(Box::new(std::mem::take(&mut self.pools)));
    }
}

impl Drop for SlotsInFlight {
    fn drop(&mut self) {
        if self.is_empty() || self.pools.is_empty() {
            return;
        }
        if let Err(error) = self.function.quiesce() {
            log::error!(
                "{} cannot be stopped, {} pools of slots stay mapped and allocated: {error}",
                self.function.location(),
                self.pools.len()
            );
            std::mem::forget(std::mem::take(&mut self.pools));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dma::SlotPool;
    use crate::testing::{NoRegisters, Scripted, buffer};

    #[derive(Debug, Clone)]
    enum Step {
        Push(u8),
        Skip(u8),
        Reap(u8),
        Take(u8, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1u8..9).prop_map(Step::Push),
            2 => (1u8..4).prop_map(Step::Skip),
            3 => (0u8..12).prop_map(Step::Reap),
            1 => (0u8..12, 0u8..6).prop_map(|(from, count)| Step::Take(from, count)),
        ]
    }

    proptest! {
        /// Against a list of (position, index): each slot comes back once, in order.
        #[test]
        fn every_slot_comes_back_once(steps in proptest::collection::vec(step(), 1..100)) {
            let (pool, mut free) = SlotPool::new(buffer(64 * 32).0, 32).unwrap();
            let scripted = Scripted::new((1, 1), |_| NoRegisters);
            let device = Device::open(scripted.attach()).unwrap();
            let mut held = SlotsInFlight::new(&device, 64);
            held.attach(&pool, &pool);
            let mut producer = Producer::new(1 << 16).unwrap();
            let mut known: VecDeque<(u64, u32)> = VecDeque::new();
            for step in steps {
                match step {
                    Step::Push(count) => for _ in 0..count {
                        let Some(slot) = free.pop() else { break };
                        known.push_back((producer.filled(), slot.index()));
                        held.push(&producer, SlotPair { source: None, target: Some(slot) });
                        producer.advance(1);
                    },
                    Step::Skip(count) => producer.advance(count.into()),
                    Step::Reap(count) => {
                        let done = (producer.done() + u64::from(count)).min(producer.filled());
                        producer.publish();
                        producer.complete_to(done).unwrap();
                        let mut back = Vec::new();
                        if count % 2 == 0 {
                            back.reserve(1);
                        }
                        prop_assert_eq!(held.can_reap(done), known.front().is_some_and(|k| k.0 < done));
                        prop_assert_eq!(held.reap(done, &mut back), back.len());
                        for pair in back {
                            let slot = pair.target.unwrap();
                            let (position, index) = known.pop_front().unwrap();
                            prop_assert!(position < done && index == slot.index());
                            free.push(slot);
                        }
                        prop_assert!(known.front().is_none_or(|known| known.0 >= done));
                    }
                    Step::Take(from, count) => {
                        let from = producer.done() + u64::from(from);
                        let range = from..from + u64::from(count);
                        let taken = held.take(range.clone());
                        let (out, kept) = known.iter().partition(|known| range.contains(&known.0));
                        known = kept;
                        let out: VecDeque<_> = out;
                        prop_assert_eq!(taken.len(), out.len());
                        for ((position, pair), known) in taken.into_iter().zip(out) {
                            let slot = pair.target.unwrap();
                            prop_assert_eq!((position, slot.index()), known);
                            free.push(slot);
                        }
                    }
                }
                let behind = known.iter().filter(|known| known.0 >= producer.done()).count();
                prop_assert_eq!(held.in_flight(producer.done()), behind);
                for position in producer.done()..producer.filled() {
                    let is_ours = known.iter().any(|known| known.0 == position);
                    prop_assert_eq!(held.operation(position).is_some(), is_ours);
                }
            }
            prop_assert_eq!(free.len() + known.len(), 64);
            held.clear();
            prop_assert!(held.detach_all());
        }
    }
}
