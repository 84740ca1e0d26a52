//! Transfers: submitted, fed into the ring piece by piece, ended, taken.

use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::descriptor::{COMPLETION, INTERRUPT, OP_COPY, OP_FILL};
use super::feed::{fill_ring, turned};
use super::{Channel, Finished, IoatError, Refused, Tables, TransferError};
use crate::dma::{Direction, Piece, Pieces, SgLimits, SgTable, Walk};

/// Names a transfer of a channel.
///
/// It can be copied; once the transfer's result was taken, it names nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token {
    key: usize,
    /// Different for every transfer of the process.
    id: u64,
}

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
    id: u64,
    /// `None` when the device could not be stopped and they were leaked.
    pub(super) tables: Option<Tables>,
    /// The 8 bytes of a fill.
    pattern: Option<u64>,
    len: u64,
    /// Position of the first descriptor, and one past the last when all are in the ring.
    first: u64,
    pub(super) end: Option<u64>,
    /// Boxed, so that a transfer that goes well moves fewer bytes.
    pub(super) result: Option<Result<(), Box<TransferError>>>,
    pub(super) waker: Option<Waker>,
    /// Nobody asks for the result.
    detached: bool,
}

/// What of a transfer waits for room in the ring.
#[derive(Debug)]
pub(super) struct Rest {
    key: usize,
    walk: Walk,
    /// Bytes that are not in the ring yet.
    left: u64,
}

impl Job {
    fn new(tables: Tables, pattern: Option<u64>, first: u64) -> Job {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Job {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            len: tables.target.list().len(),
            tables: Some(tables),
            pattern,
            first,
            end: None,
            result: None,
            waker: None,
            detached: false,
        }
    }

    /// Keeps the buffers mapped and allocated for ever: a device may still reach them.
    pub(super) fn leak(mut self) {
        if self.result.is_none() {
            std::mem::forget(self.tables.take());
        }
    }

    /// What the descriptor at a position asks for: (number in the transfer, its piece,
    /// bytes before it).
    pub(super) fn piece_at(&self, position: u64, limits: &SgLimits) -> Option<(u64, Piece, u64)> {
        let tables = self.tables.as_ref()?;
        let target = tables.target.list().segments();
        let source = tables.source.as_ref().map_or(target, |source| source.list().segments());
        let number = position.checked_sub(self.first)?;
        let (mut walk, mut before) = (Walk::default(), 0);
        for _ in 0..number {
            before += walk.next(source, target, limits)?.len;
        }
        let mut piece = walk.next(source, target, limits)?;
        if let Some(pattern) = self.pattern {
            piece.source.0 = turned(pattern, before);
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
    pub fn copy(
        &mut self,
        source: SgTable,
        target: SgTable,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        self.submit(Tables { source: Some(source), target }, None, when_full)
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
        self.submit(Tables { source: None, target }, Some(pattern), when_full)
    }

    #[inline]
    fn submit(
        &mut self,
        tables: Tables,
        pattern: Option<u64>,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        let room = self.check(&tables).and_then(|needed| self.make_room(needed, when_full));
        if let Err(error) = room {
            return Err(Refused { error, tables });
        }
        let job = Job::new(tables, pattern, self.ring.filled());
        let (id, left) = (job.id, job.len);
        let key = self.jobs.insert(job);
        self.order.push_back(key);
        self.feed(Rest { key, walk: Walk::default(), left });
        Ok(Token { key, id })
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
            if !side.is_in(engine.device.space()) {
                return Err(IoatError::ForeignBuffer { location: engine.location() });
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
            None => return Err(IoatError::NoFill { location: engine.location() }),
        };
        Ok(u32::try_from(needed).unwrap_or(u32::MAX))
    }

    fn make_room(&mut self, needed: u32, when_full: WhenFull) -> Result<(), IoatError> {
        let enough = needed.min(self.ring.capacity());
        let has_room = |c: &Channel| c.feeding.is_none() && c.ring.free() >= enough;
        if has_room(self) {
            return Ok(());
        }
        if let WhenFull::Wait(limit) = when_full {
            // Saturates to a wait that does not end in practice.
            let deadline = Instant::now().checked_add(limit);
            self.wait_until(deadline, "room in the ring", |c| c.lost || has_room(c)).or_else(
                |error| match error {
                    IoatError::Timeout { .. } => Ok(()),
                    error => Err(error),
                },
            )?;
            self.refuse_when_lost()?;
        }
        if has_room(self) { Ok(()) } else { Err(self.ring.full(needed).into()) }
    }

    /// Fills descriptors with what waits for room in the ring.
    pub(super) fn feed_rest(&mut self) {
        if let Some(rest) = self.feeding.take() {
            self.feed(rest);
        }
    }

    /// Fills as many descriptors of a transfer as are free.
    #[inline]
    fn feed(&mut self, Rest { key, walk, left }: Rest) {
        let Some(job) = self.jobs.get_mut(key) else { return };
        let Some(tables) = &job.tables else { return };
        let target = tables.target.list().segments();
        let source = tables.source.as_ref().map_or(target, |source| source.list().segments());
        let limits = self.engine.cuts();
        let told = match self.engine.interrupts {
            Some(_) => COMPLETION | INTERRUPT,
            None => COMPLETION,
        };
        // Something of a transfer that fills the ring must tell, or it never goes on.
        let quarter = u64::from(self.ring.size() / 4).max(1) - 1;
        let free = self.ring.free();
        // As many as are free can be reserved.
        let Ok(batch) = self.ring.reserve(free) else { return };
        let lists = (source, target);
        let state = (walk, left);
        let (walk, left) = match job.pattern {
            None => {
                fill_ring(batch, lists, &limits, state, quarter, (OP_COPY, told), |piece, _| {
                    piece.source.0
                })
            }
            Some(pattern) => {
                fill_ring(batch, lists, &limits, state, quarter, (OP_FILL, told), |_, left| {
                    turned(pattern, job.len - left)
                })
            }
        };
        if left == 0 {
            job.end = Some(self.ring.filled());
        } else {
            self.feeding = Some(Rest { key, walk, left });
        }
    }

    /// Tells the device of everything that was submitted since the last time, with one
    /// write of its doorbell.
    ///
    /// # Errors
    ///
    /// Fails when the register cannot be reached.
    #[inline]
    pub fn issue(&mut self) -> Result<(), IoatError> {
        if let Some(count) = self.ring.publish() {
            self.engine.bar.set(self.regs.count, count)?;
            self.stats.doorbells += 1;
        }
        Ok(())
    }

    /// Looks at the completion word, in memory, and ends the transfers that are done;
    /// returns how many ended. What waits for room in the ring goes on.
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
        if self.order.is_empty() {
            return Ok(0);
        }
        let word = self.ring.completion();
        if super::recovery::is_halt(word) {
            return self.recover_from_halt();
        }
        match self.ring.reap_as(word) {
            Ok(done) if done.is_empty() => Ok(0),
            Ok(done) => {
                self.stats.descriptors += done.end - done.start;
                self.lies = 0;
                let ended = self.retire();
                if self.feeding.is_some() {
                    self.feed_rest();
                    self.issue()?;
                }
                Ok(ended)
            }
            Err(lie) => self.recover_from_lie(lie),
        }
    }

    /// Ends the transfers whose last descriptor is done.
    #[inline]
    pub(super) fn retire(&mut self) -> usize {
        let mut ended = 0;
        while let Some(&key) = self.order.front() {
            match self.jobs.get(key).and_then(|job| job.end) {
                Some(end) if end <= self.ring.done() => {
                    self.order.pop_front();
                    self.end(key, Ok(()));
                    ended += 1;
                }
                _ => break,
            }
        }
        ended
    }

    /// Ends a transfer that is not in the order any more.
    #[inline]
    pub(super) fn end(&mut self, key: usize, result: Result<(), TransferError>) {
        self.stats.transfers += 1;
        if self.feeding.as_ref().is_some_and(|rest| rest.key == key) {
            self.feeding = None;
        }
        let Some(job) = self.jobs.get_mut(key) else { return };
        job.result = Some(result.map_err(Box::new));
        match (job.waker.take(), &mut self.woken) {
            (Some(waker), Some(woken)) => woken.push(waker),
            (Some(waker), None) => waker.wake(),
            (None, _) => {}
        }
        if job.detached {
            self.jobs.remove(key);
        }
    }

    /// Whether a transfer ended, well or not.
    ///
    /// # Errors
    ///
    /// [`IoatError::NoSuchTransfer`] when its result was taken.
    #[inline]
    pub fn is_finished(&self, token: Token) -> Result<bool, IoatError> {
        Ok(self.job(token)?.result.is_some())
    }

    /// The result of a transfer and its tables; `None` while it is in flight.
    ///
    /// # Errors
    ///
    /// [`IoatError::NoSuchTransfer`] when its result was taken.
    pub fn take(&mut self, token: Token) -> Result<Option<Finished>, IoatError> {
        if !self.is_finished(token)? {
            return Ok(None);
        }
        let Job { result, tables, .. } = self.jobs.remove(token.key);
        Ok(result.map(|result| Finished { result: result.map_err(|error| *error), tables }))
    }

    /// Gives a transfer's result up: its tables are dropped when it ends.
    ///
    /// # Errors
    ///
    /// [`IoatError::NoSuchTransfer`] when its result was taken.
    pub fn detach(&mut self, token: Token) -> Result<(), IoatError> {
        if self.is_finished(token)? {
            self.jobs.remove(token.key);
        } else {
            let job = self.job_mut(token)?;
            job.detached = true;
            job.waker = None;
        }
        Ok(())
    }

    #[inline]
    fn job(&self, token: Token) -> Result<&Job, IoatError> {
        match self.jobs.get(token.key) {
            Some(job) if job.id == token.id && !job.detached => Ok(job),
            _ => Err(IoatError::NoSuchTransfer),
        }
    }

    pub(super) fn job_mut(&mut self, token: Token) -> Result<&mut Job, IoatError> {
        self.job(token)?;
        self.jobs.get_mut(token.key).ok_or(IoatError::NoSuchTransfer)
    }
}
