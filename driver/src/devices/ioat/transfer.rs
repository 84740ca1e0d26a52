//! Transfers: submitted, fed into the ring piece by piece, ended, taken.

use std::task::Waker;
use std::time::Duration;

use super::descriptor::{OP_COPY, OP_FILL};
use super::feed::{Passed, fill_first, fill_ring, rotated};
use super::ring::Look;
use super::{Channel, Finished, IoatError, Refused, Tables, TransferError};
use crate::dma::{Direction, DmaLimits, Piece, Pieces, SgTable, Walk};
use crate::queue::{Slot, Wakers};

/// Names a transfer of a channel.
///
/// It can be copied; once the transfer's result was taken, it names nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub(super) Slot);

/// What a submission does when the ring has too little room.
///
/// Room for a transfer is as many descriptors as it needs, but no more than the ring has:
/// a longer one streams through, and the rest of it is fed by [`Channel::poll`] and by
/// every wait. Until it is in, the ring has no room for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It is refused.
    Return,
    /// It waits for so long, then it is refused.
    Wait(Duration),
}

/// A transfer, from its submission until its result is taken.
#[derive(Debug)]
pub(super) struct Job {
    /// `None` when the device could not be stopped, and keeps them.
    pub(super) tables: Option<Tables>,
    /// The 8 bytes of a fill, which has no source.
    pattern: u64,
    /// Number of its first descriptor among all that carried data.
    first: u64,
    /// Position behind its last descriptor, when all are in the ring; else [`NO_END`].
    end: u64,
    /// It has ended, well if there is no error. Boxed, so that a transfer that goes well moves
    /// fewer bytes.
    has_ended: bool,
    error: Option<Box<TransferError>>,
    waker: Option<Waker>,
    /// Nobody asks for the result.
    detached: bool,
}

/// The end of a transfer that is not in the ring as a whole: no position comes to it.
const NO_END: u64 = u64::MAX;

/// What of a transfer waits for room in the ring.
#[derive(Debug)]
pub(super) struct Remaining {
    slot: Slot,
    walk: Walk,
    /// Bytes that are not in the ring yet.
    left: u64,
}

impl Job {
    /// The position behind its last descriptor, when all are in the ring.
    pub(super) fn end(&self) -> Option<u64> {
        (self.end != NO_END).then_some(self.end)
    }

    /// Ends it; whether nobody asks for the result.
    #[inline]
    fn end_with(&mut self, error: Option<Box<TransferError>>, wakers: &mut Wakers) -> bool {
        self.has_ended = true;
        if error.is_some() {
            self.error = error;
        }
        if let Some(waker) = self.waker.take() {
            wakers.wake.push(waker);
        }
        self.detached
    }

    /// What the descriptor asks for that was the data descriptor with this number of all that
    /// the ring has had: (its number in the transfer, its piece, bytes before it).
    pub(super) fn piece_at(&self, data: u64, limits: &DmaLimits) -> Option<(u64, Piece, u64)> {
        let tables = self.tables.as_ref()?;
        let target = tables.target.list().segments();
        let source = tables.source.as_ref().map_or(target, |source| source.list().segments());
        let number = data.checked_sub(self.first)?;
        let (mut walk, mut before) = (Walk::default(), 0);
        for _ in 0..number {
            before += walk.next(source, target, limits)?.len;
        }
        let mut piece = walk.next(source, target, limits)?;
        if tables.source.is_none() {
            piece.source.0 = rotated(self.pattern, before);
        }
        Some((number, piece, before))
    }
}

impl Channel {
    /// Submits a copy; the device begins with [`Channel::issue`], or with a wait.
    ///
    /// # Errors
    ///
    /// Gives the tables back when the lists do not fit each other, overlap, are mapped
    /// elsewhere or for another direction, the ring has no room, or the channel was lost.
    #[inline]
    pub fn copy(
        &mut self,
        source: SgTable,
        target: SgTable,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        self.submit(Tables { source: Some(source), target }, 0, when_full)
    }

    /// Submits a fill with 8 bytes that repeat, the least significant one first.
    ///
    /// # Errors
    ///
    /// As [`Channel::copy`], and when the device does not offer it.
    pub fn fill(
        &mut self,
        target: SgTable,
        pattern: u64,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        self.submit(Tables { source: None, target }, pattern, when_full)
    }

    #[inline]
    fn submit(
        &mut self,
        tables: Tables,
        pattern: u64,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        match self.check(&tables) {
            Ok(needed) if self.has_room(needed) => {}
            Ok(needed) => match self.wait_for_room(needed, when_full) {
                Ok(()) => {}
                Err(error) => return Err(Refused { error, tables }),
            },
            Err(error) => return Err(Refused { error, tables }),
        }
        let (slot, job) = self.jobs.insert_mut(Job {
            tables: Some(tables),
            pattern,
            first: self.ring.data_filled(),
            end: NO_END,
            has_ended: false,
            error: None,
            waker: None,
            detached: false,
        });
        self.order.push_back(slot);
        let limits = self.engine.cuts();
        let passed = match &job.tables {
            Some(Tables { source: Some(source), target }) => {
                fill_first(&mut self.ring, source.list(), target.list(), &limits)
            }
            _ => None,
        };
        match passed {
            // Mostly that is all of it.
            Some(Passed { left: 0, .. }) => job.end = self.ring.producer().filled(),
            Some(Passed { walk, left }) => self.feed(Remaining { slot, walk, left }),
            None => {
                let left = job.tables.as_ref().map_or(0, |tables| tables.target.list().len());
                self.feed(Remaining { slot, walk: Walk::default(), left });
            }
        }
        Ok(Token(slot))
    }

    /// Checks everything that can be known before the device is told anything; returns how
    /// many descriptors the transfer needs, or a number of descriptors that are free and at
    /// least as many.
    #[inline]
    fn check(&self, tables: &Tables) -> Result<u32, IoatError> {
        self.refuse_when_lost()?;
        let engine = &*self.engine;
        let sides = [
            (tables.source.as_ref(), Direction::ToDevice),
            (Some(&tables.target), Direction::FromDevice),
        ];
        for (side, need) in sides {
            let Some(side) = side else { continue };
            if !side.is_in(engine.allocator.space()) {
                return Err(IoatError::ForeignBuffer { location: engine.location.clone() });
            }
            if let Some(have) = side.wrong_direction(need) {
                return Err(IoatError::WrongDirection { have, need });
            }
        }
        let target = tables.target.list();
        let needed = match &tables.source {
            Some(source) => {
                let pieces = Pieces::within(source.list(), target, engine.cuts())?;
                let most = pieces.at_most();
                if most <= self.ring.free().into() { most } else { pieces.count() as u64 }
            }
            None if engine.can_fill => {
                target.check_disjoint()?;
                let (mut walk, mut count) = (Walk::default(), 0);
                let segments = target.segments();
                while walk.next(segments, segments, &engine.cuts()).is_some() {
                    count += 1;
                }
                count
            }
            None => return Err(IoatError::NoFill { location: engine.location.clone() }),
        };
        Ok(u32::try_from(needed).unwrap_or(u32::MAX))
    }

    /// Whether a transfer that needs so many descriptors can begin.
    #[inline]
    fn has_room(&self, needed: u32) -> bool {
        self.feeding.is_none() && self.ring.free() >= needed.min(self.ring.capacity())
    }

    #[cold]
    fn wait_for_room(&mut self, needed: u32, when_full: WhenFull) -> Result<(), IoatError> {
        if let WhenFull::Wait(limit) = when_full {
            let has_room = |c: &Channel| c.is_lost() || c.has_room(needed);
            self.wait_until(limit, "room in the ring", has_room).or_else(|error| match error {
                IoatError::Timeout { .. } => Ok(()),
                error => Err(error),
            })?;
            self.refuse_when_lost()?;
        }
        if self.has_room(needed) { Ok(()) } else { Err(self.ring.full(needed).into()) }
    }

    /// Fills descriptors with what waits for room in the ring.
    pub(super) fn feed_remaining(&mut self) {
        if let Some(remaining) = self.feeding.take() {
            self.feed(remaining);
        }
    }

    /// Fills as many descriptors of a transfer as are free.
    #[inline(never)]
    fn feed(&mut self, Remaining { slot, walk, left }: Remaining) {
        let Some(job) = self.jobs.get_mut(slot) else { return };
        let Some(Tables { source, target }) = &job.tables else { return };
        let (limits, ring, target) = (self.engine.cuts(), &mut *self.ring, target.list());
        let state = (walk, left);
        let (walk, left) = match source {
            Some(source) => {
                fill_ring(ring, (source.list(), target), &limits, state, OP_COPY, |from, _| from)
            }
            None => fill_ring(ring, (target, target), &limits, state, OP_FILL, |_, left| {
                rotated(job.pattern, target.len() - left)
            }),
        };
        if left == 0 {
            job.end = self.ring.producer().filled();
        } else {
            self.feeding = Some(Remaining { slot, walk, left });
        }
    }

    /// Tells the device of everything that was submitted since the last time, with one
    /// write of its doorbell.
    ///
    /// # Errors
    ///
    /// Fails when the register cannot be reached, and when there is an event of the function
    /// ([`Ioat::device_events`](super::Ioat::device_events)): the channel is lost then, and every
    /// transfer in flight ended.
    #[inline]
    pub fn issue(&mut self) -> Result<(), IoatError> {
        if self.is_lost() {
            return Ok(());
        }
        self.ring_doorbell(0)
    }

    /// As [`Channel::issue`], of a channel that is not lost, with so many descriptors more that
    /// were written to the ring's window.
    #[inline(always)]
    pub(super) fn ring_doorbell(&mut self, filled: u32) -> Result<(), IoatError> {
        if let Some(count) = self.ring.publish(filled) {
            if self.events.check().is_err() {
                return self.end_by_event().map(drop);
            }
            self.engine.bar.set(self.regs.count, count)?;
            self.stats.doorbells += 1;
        }
        Ok(())
    }

    /// Looks at the completion word, in memory, and ends the transfers that are done;
    /// returns how many ended. What waits for room in the ring goes on. The transfers of one
    /// doorbell end together, once the last of them is done.
    ///
    /// A failure of the device ends transfers too, with their own errors, and is recovered
    /// from as configured; it is not an error of this call.
    ///
    /// # Errors
    ///
    /// Fails when the device cannot be reached or set up again: the channel is lost then,
    /// and every transfer in flight ended.
    #[inline]
    pub fn poll(&mut self) -> Result<usize, IoatError> {
        if !self.is_busy() {
            return Ok(0);
        }
        let ended = match self.ring.look_for_more() {
            0 => return self.look_closer(),
            newly => self.advanced(newly)?,
        };
        self.run_wakers();
        Ok(ended)
    }

    /// As [`Channel::poll`], when nothing is seen to be done at the first glance.
    #[inline(never)]
    pub(super) fn look_closer(&mut self) -> Result<usize, IoatError> {
        let ended = match self.ring.look() {
            Ok(Look::Same) if self.engine.events.check().is_ok() => Ok(0),
            Ok(Look::Same) => self.end_by_event(),
            Ok(Look::Done(newly)) => self.advanced(newly),
            Ok(Look::Halted) => self.recover_from_halt(),
            Err(bogus) => self.recover_from_bogus(bogus),
        };
        self.run_wakers();
        ended
    }

    /// Whether descriptors were filled that are not known to be done.
    #[inline]
    pub(super) fn is_busy(&self) -> bool {
        !self.is_lost() && self.ring.producer().filled() != self.ring.producer().done()
    }

    /// The device is further by so many descriptors.
    #[inline(always)]
    pub(super) fn advanced(&mut self, newly: u64) -> Result<usize, IoatError> {
        self.count_done(newly);
        let ended = self.retire();
        if self.feeding.is_some() {
            self.feed_and_issue()?;
        }
        Ok(ended)
    }

    #[cold]
    fn feed_and_issue(&mut self) -> Result<(), IoatError> {
        self.feed_remaining();
        self.issue()
    }

    #[inline]
    pub(super) fn count_done(&mut self, newly: u64) {
        self.stats.descriptors += newly;
        self.bogus_completions = 0;
    }

    /// Ends the transfers whose last descriptor is done.
    #[inline]
    pub(super) fn retire(&mut self) -> usize {
        let (mut ended, done) = (0, self.ring.producer().done());
        while let Some(&slot) = self.order.front() {
            let Some(job) = self.jobs.get_mut(slot) else { break };
            if job.end > done {
                break;
            }
            self.order.pop_front();
            ended += 1;
            if job.end_with(None, &mut self.wakers) {
                self.jobs.complete(slot);
            }
        }
        self.stats.transfers += ended as u64;
        ended
    }

    /// Ends a transfer that is not in the order any more.
    pub(super) fn end(&mut self, slot: Slot, result: Result<(), TransferError>) {
        self.stats.transfers += 1;
        if self.feeding.as_ref().is_some_and(|remaining| remaining.slot == slot) {
            self.feeding = None;
        }
        let Some(job) = self.jobs.get_mut(slot) else { return };
        if job.end_with(result.err().map(Box::new), &mut self.wakers) {
            self.jobs.complete(slot);
        }
    }

    /// Wakes who waits, unless an owner does that later.
    #[inline]
    pub(super) fn run_wakers(&mut self) {
        if !self.is_shared && !self.wakers.is_empty() {
            std::mem::take(&mut self.wakers).run();
        }
    }

    /// Whether a transfer ended, well or not.
    ///
    /// # Errors
    ///
    /// [`IoatError::NoSuchTransfer`] when its result was taken.
    #[inline]
    pub fn is_finished(&self, token: Token) -> Result<bool, IoatError> {
        match self.jobs.get(token.0) {
            Some(job) if !job.detached => Ok(job.has_ended),
            _ => Err(IoatError::NoSuchTransfer),
        }
    }

    /// The result of a transfer and its tables; `None` while it is in flight.
    ///
    /// # Errors
    ///
    /// [`IoatError::NoSuchTransfer`] when its result was taken.
    #[inline]
    pub fn take(&mut self, token: Token) -> Result<Option<Finished>, IoatError> {
        match self.jobs.get(token.0) {
            Some(job) if job.has_ended => {}
            Some(job) if !job.detached => return Ok(None),
            _ => return Err(IoatError::NoSuchTransfer),
        }
        let Some(Job { error, tables, waker, .. }) = self.jobs.complete(token.0) else {
            return Err(IoatError::NoSuchTransfer);
        };
        if let Some(waker) = waker {
            self.wakers.discard.push(waker);
            self.run_wakers();
        }
        let result = error.map_or(Ok(()), |error| Err(*error));
        Ok(Some(Finished { result, tables }))
    }

    /// Gives a transfer's result up: its tables are dropped when it ends.
    ///
    /// # Errors
    ///
    /// [`IoatError::NoSuchTransfer`] when its result was taken.
    pub fn detach(&mut self, token: Token) -> Result<(), IoatError> {
        if self.is_finished(token)? {
            drop(self.take(token)?);
        } else if let Some(job) = self.jobs.get_mut(token.0) {
            job.detached = true;
            self.wakers.discard.extend(job.waker.take());
            self.run_wakers();
        }
        Ok(())
    }

    /// Has a waker woken when a transfer ends: by the call of [`Channel::service`],
    /// [`Channel::poll`] or a wait that ends it.
    ///
    /// # Errors
    ///
    /// [`IoatError::NoSuchTransfer`] when its result was taken.
    pub fn set_waker(&mut self, token: Token, waker: Waker) -> Result<(), IoatError> {
        let known = self.is_finished(token);
        let displaced = match self.jobs.get_mut(token.0) {
            Some(job) if known.is_ok() => job.waker.replace(waker),
            _ => Some(waker),
        };
        self.wakers.discard.extend(displaced);
        self.run_wakers();
        known.map(drop)
    }
}
