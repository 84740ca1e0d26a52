//! Slots of pools on a channel: how they come back.

use std::time::Duration;

use super::{Channel, IoatError, TransferError};
use crate::queue::SlotPair;

/// A descriptor between slots that was not done, or not well.
#[derive(Debug)]
pub struct SlotsFailed {
    /// Why.
    pub error: TransferError,
    /// The slots; `None` when the device could not be stopped, and may still reach them. They
    /// do not come back then, and their pool stays mapped and allocated.
    pub slots: Option<SlotPair>,
}

/// What [`Channel::reap`] found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use = "operations may have failed"]
pub struct Reaped {
    /// Descriptors that went well, whose slots were given back.
    pub done: usize,
    /// Descriptors that did not, and were not taken: see [`Channel::take_failed`].
    pub failed: usize,
}

impl Channel {
    /// Looks at the completion word, in memory, and gives back the slots of what is done, in
    /// its order, appended to `into`. What failed is with [`Channel::take_failed`]. The operations
    /// of one doorbell come back together, once the last of them is done.
    ///
    /// It ends other transfers too, as [`Channel::poll`] does. Nothing is allocated while
    /// `into` has room and nothing fails.
    ///
    /// # Errors
    ///
    /// As [`Channel::poll`]; what is in flight then comes back with the next call.
    #[inline]
    pub fn reap(&mut self, into: &mut Vec<SlotPair>) -> Result<Reaped, IoatError> {
        if self.is_busy() {
            match self.ring.look_for_more() {
                newly if newly > 0 && self.order.is_empty() => self.count_done(newly),
                newly => self.reap_others(newly)?,
            }
        }
        Ok(self.take_slots(into))
    }

    /// Ends other transfers, when so many descriptors were seen to be done; looks closer when
    /// none was.
    #[inline(never)]
    fn reap_others(&mut self, newly: u64) -> Result<(), IoatError> {
        match newly {
            0 => self.look_closer()?,
            newly => self.advanced(newly)?,
        };
        self.run_wakers();
        Ok(())
    }

    /// As [`Channel::reap`], once there is something to give back, or nothing in flight.
    ///
    /// # Errors
    ///
    /// [`IoatError::Timeout`] when nothing comes back in time: it is still in flight then, and
    /// can be waited for again, or [`Channel::abort`]ed. As [`Channel::reap`] otherwise.
    pub fn wait_reap(
        &mut self,
        into: &mut Vec<SlotPair>,
        timeout: Duration,
    ) -> Result<Reaped, IoatError> {
        let can_reap = |channel: &Channel| {
            let done = channel.ring.producer().done();
            channel.slots.can_reap(done)
                || !channel.failed_slots.is_empty()
                || channel.slots.in_flight(done) == 0
        };
        self.wait_until(timeout, "operations between slots", can_reap)?;
        Ok(self.take_slots(into))
    }

    #[inline]
    fn take_slots(&mut self, into: &mut Vec<SlotPair>) -> Reaped {
        let done = self.slots.reap(self.ring.producer().done(), into);
        Reaped { done, failed: self.failed_slots.len() }
    }

    /// The descriptors between slots that failed since the last call, in their order.
    pub fn take_failed(&mut self) -> Vec<SlotsFailed> {
        std::mem::take(&mut self.failed_slots)
    }

    /// Descriptors between slots that are submitted and have not ended.
    #[must_use]
    pub fn slots_in_flight(&self) -> usize {
        self.slots.in_flight(self.ring.producer().done())
    }

    /// Ends what has slots among descriptors that are not done, and will not be: the first with
    /// one error, those behind it with another. Returns how many.
    pub(super) fn fail_slots(
        &mut self,
        entries: std::ops::Range<u64>,
        first: TransferError,
        behind: &TransferError,
    ) -> usize {
        let mut error = Some(first);
        let taken = self.slots.take(entries);
        let count = taken.len();
        for (_, pair) in taken {
            let error = error.take().unwrap_or_else(|| behind.clone());
            let slots = (!self.not_quiesced).then_some(pair);
            self.failed_slots.push(SlotsFailed { error, slots });
        }
        count
    }
}
