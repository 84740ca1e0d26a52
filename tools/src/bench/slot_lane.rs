//! Copies between slots on one channel of I/OAT, in batches.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use hdrhistogram::Histogram;
use vfio_dma::devices::ioat::Channel;
use vfio_dma::dma::{Slot, SlotPool};
use vfio_dma::queue::SlotPair;

use super::drive;
use super::error::BenchError;

/// Pairs of slots that take turns.
pub(super) struct SlotLane {
    from: Arc<SlotPool>,
    to: Arc<SlotPool>,
    idle: Vec<SlotPair>,
    /// What is told together, and what came back: used again.
    batch: Vec<SlotPair>,
    back: Vec<SlotPair>,
    /// When each batch in flight was begun, and its copies that did not end.
    flying: VecDeque<(Instant, usize)>,
    most: usize,
    len: usize,
    /// How many may still be begun.
    quota: u64,
}

impl SlotLane {
    /// Copies of `len` bytes between these slots, so many to a batch.
    pub(super) fn new(
        from: &Arc<SlotPool>,
        to: &Arc<SlotPool>,
        slots: impl Iterator<Item = (Slot, Slot)>,
        batch: u32,
        len: usize,
    ) -> SlotLane {
        let pair = |(source, target)| SlotPair { source: Some(source), target: Some(target) };
        let idle: Vec<SlotPair> = slots.map(pair).collect();
        SlotLane {
            from: Arc::clone(from),
            to: Arc::clone(to),
            batch: Vec::with_capacity(idle.len()),
            back: Vec::with_capacity(idle.len()),
            flying: VecDeque::with_capacity(idle.len()),
            idle,
            most: batch as usize,
            len,
            quota: 0,
        }
    }
}

impl drive::Lane for SlotLane {
    type Queue = Channel;

    fn submit(&mut self, channel: &mut Channel) -> Result<(), BenchError> {
        while self.quota > 0 && self.idle.len() >= self.most {
            // The oldest first: those that came back last are behind.
            self.batch.extend(self.idle.drain(..self.most));
            let begin = Instant::now();
            let taken = channel.copy_pairs(&self.from, &self.to, &mut self.batch, self.len)?;
            self.idle.append(&mut self.batch);
            if taken == 0 {
                break;
            }
            self.flying.push_back((begin, taken));
            self.quota = self.quota.saturating_sub(taken as u64);
        }
        Ok(())
    }

    fn reap(
        &mut self,
        channel: &mut Channel,
        now: Instant,
        latency: &mut Histogram<u64>,
    ) -> Result<u64, BenchError> {
        if channel.reap(&mut self.back)?.failed > 0 {
            let failed = channel.take_failed().into_iter().next();
            let none = BenchError::State("a copy that failed and is not there");
            return Err(failed.map_or(none, |failed| failed.error.into()));
        }
        let ended = self.back.len();
        self.idle.append(&mut self.back);
        let mut left = ended;
        while left > 0
            && let Some((begin, count)) = self.flying.front_mut()
        {
            let some = left.min(*count);
            let ns = u64::try_from((now - *begin).as_nanos()).unwrap_or(u64::MAX);
            latency.saturating_record_n(ns, some as u64);
            (left, *count) = (left - some, *count - some);
            if *count == 0 {
                self.flying.pop_front();
            }
        }
        Ok(ended as u64)
    }

    fn is_busy(&self) -> bool {
        !self.flying.is_empty()
    }

    fn set_quota(&mut self, quota: u64) {
        self.quota = quota;
    }

    /// Descriptors that were done: no transfer ends with copies between slots.
    fn poll(channel: &mut Channel) -> Result<usize, BenchError> {
        let before = channel.stats().descriptors;
        channel.poll()?;
        Ok(usize::try_from(channel.stats().descriptors - before)?)
    }

    fn check_device(channel: &mut Channel) -> Result<(), BenchError> {
        channel.check_device()?;
        Ok(())
    }
}
