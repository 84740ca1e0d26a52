//! Transfers between buffers: how one is submitted, waited for and looked at.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vfio_dma::devices::ioat::{
    Finished, IoatError, Refused, Tables, Token, TransferError, WhenFull,
};
use vfio_dma::dma::{Direction, SgTable};
use vfio_dma::queue::QueueError;

use super::super::SoakError;
use super::super::memory::Target;
use super::super::plan::{Await, Then, Transfer, Work, mix};
use super::{InFlight, Lane, Worker, allocate, count_error, count_placing, slots_ended};

impl Worker<'_> {
    pub(super) fn transfer(&mut self, number: u64, transfer: Transfer) -> Result<(), SoakError> {
        let lane = transfer.lane;
        self.end_lane(lane)?;
        if let Some(placing) = transfer.place {
            self.look_at_all(lane, number)?;
            self.lanes[lane].placing = placing;
            self.lanes[lane].target = None;
        }
        if self.lanes[lane].target.is_none() {
            let placing = self.lanes[lane].placing;
            let buffer =
                allocate(self.round.ioat.allocator(), self.round, placing, Direction::FromDevice)?;
            count_placing(&mut self.counts, buffer.segments().len());
            let seed = mix(self.round.seed ^ mix(number)) ^ self.index;
            self.lanes[lane].target = Some(Target::new(buffer, seed)?);
        }
        self.fill_expected(&transfer);
        let Lane { target, .. } = &mut self.lanes[lane];
        let target = target.as_mut().ok_or(SoakError::State("a lane has a buffer"))?;
        target
            .prepare(&transfer.target, &self.expected)?
            .ok_or(SoakError::State("no transfer has the lane's buffer"))?;
        let table = target.table()?;
        let source = match &transfer.work {
            Work::Fill(_) => None,
            Work::Copy(pieces) => {
                let sources = &self.sources;
                let piece = |&(n, at, len): &(usize, usize, usize)| {
                    (Arc::clone(sources[n].buffer()), at, len)
                };
                Some(SgTable::gather(pieces.iter().map(piece))?)
            }
        };
        match transfer.work {
            Work::Fill(_) => self.counts.fills += 1,
            Work::Copy(_) => self.counts.copies += 1,
        }
        self.round.shared.operations.fetch_add(1, Ordering::Relaxed);
        let token = self.submit(&transfer, Tables { source, target: table })?;
        self.lanes[lane].in_flight = Some(InFlight::Waited {
            token,
            wait: transfer.wait,
            step: number,
            len: transfer.len,
            aborted: false,
        });
        if transfer.issue {
            self.channel.issue()?;
        }
        match transfer.then {
            Then::Take => Ok(()),
            Then::Detach => {
                let recoveries = self.channel.stats().recoveries;
                self.counts.detached += 1;
                self.channel.detach(token)?;
                let (step, len) = (number, transfer.len);
                self.lanes[lane].in_flight =
                    Some(InFlight::Detached { step, len, recoveries, aborted: false });
                Ok(())
            }
            Then::Abort => self.abort(),
        }
    }

    /// The bytes that a transfer is to write, one after another.
    fn fill_expected(&mut self, transfer: &Transfer) {
        self.expected.clear();
        match &transfer.work {
            Work::Fill(pattern) => {
                let bytes = pattern.to_le_bytes();
                self.expected.extend(bytes.iter().cycle().take(transfer.len));
            }
            Work::Copy(pieces) => {
                for &(n, at, len) in pieces {
                    self.expected.extend_from_slice(self.sources[n].bytes(at, len));
                }
            }
        }
    }

    /// Submits a transfer; one that a full ring refuses is submitted again when all before it
    /// are done.
    fn submit(&mut self, transfer: &Transfer, mut tables: Tables) -> Result<Token, SoakError> {
        let limit = self.round.limit;
        for attempt in 0..3 {
            let when_full = match attempt {
                0 if !transfer.wait_for_room => WhenFull::Return,
                _ => WhenFull::Wait(limit),
            };
            let submitted = match (&transfer.work, tables) {
                (Work::Fill(pattern), Tables { target, .. }) => {
                    self.channel.fill(target, *pattern, when_full)
                }
                (Work::Copy(_), Tables { source: Some(source), target }) => {
                    self.channel.copy(source, target, when_full)
                }
                _ => return Err(SoakError::State("a copy has a source")),
            };
            let Refused { error, tables: back } = match submitted {
                Ok(token) => return Ok(token),
                Err(refused) => refused,
            };
            if !matches!(error, IoatError::Queue(QueueError::Full { .. })) {
                return Err(error.into());
            }
            self.counts.full += 1;
            tables = back;
            // Slots that ended keep their room until they are taken.
            self.reap_slots(None)?;
            if attempt > 0 {
                self.channel.wait_all(limit)?;
                self.reap_slots(None)?;
            }
        }
        Err(SoakError::Stuck)
    }

    pub(super) fn reap_slots(&mut self, limit: Option<Duration>) -> Result<(), SoakError> {
        let (round, index, counts) = (self.round, self.index, &mut self.counts);
        let mut ended = |ended| slots_ended(round, index, counts, ended);
        self.slots.reap(&mut self.channel, limit, &mut ended)
    }

    /// Aborts the channel: all that is in flight may end so.
    fn abort(&mut self) -> Result<(), SoakError> {
        self.counts.cancellations += 1;
        self.note_abort();
        Ok(self.channel.abort()?)
    }

    pub(super) fn note_abort(&mut self) {
        self.slots.note_abort();
        for in_flight in self.lanes.iter_mut().filter_map(|lane| lane.in_flight.as_mut()) {
            match in_flight {
                InFlight::Waited { aborted, .. } | InFlight::Detached { aborted, .. } => {
                    *aborted = true;
                }
            }
        }
    }

    /// Waits for what is in flight to a lane, and looks at what came of it.
    pub(super) fn end_lane(&mut self, lane: usize) -> Result<(), SoakError> {
        let limit = self.round.limit;
        match self.lanes[lane].in_flight {
            None => Ok(()),
            Some(InFlight::Waited { token, wait, step, len, .. }) => {
                let finished = self.wait(token, wait)?;
                // An abort may have come while it was waited for.
                let aborted = match self.lanes[lane].in_flight.take() {
                    Some(InFlight::Waited { aborted, .. }) => aborted,
                    _ => false,
                };
                self.ended(lane, finished, step, len, aborted)
            }
            Some(InFlight::Detached { step, len, recoveries, aborted }) => {
                let is_back = |lane: &Lane| lane.target.as_ref().is_none_or(Target::is_back);
                if !is_back(&self.lanes[lane]) {
                    self.channel.wait_all(limit)?;
                }
                self.lanes[lane].in_flight = None;
                let went_well = !aborted && self.channel.stats().recoveries == recoveries;
                self.look(lane, step, if went_well { Some(len) } else { None })
            }
        }
    }

    fn wait(&mut self, token: Token, wait: Await) -> Result<Finished, SoakError> {
        let limit = self.round.limit;
        match wait {
            Await::Transfer => {}
            Await::All => self.channel.wait_all(limit)?,
            Await::Poll => {
                self.channel.issue()?;
                let until = Instant::now() + limit.min(Duration::from_millis(2));
                while !self.channel.is_finished(token)? && Instant::now() < until {
                    self.channel.poll()?;
                    std::thread::yield_now();
                }
            }
            Await::Short => match self.channel.wait(token, Duration::from_micros(5)) {
                Err(IoatError::Timeout { .. }) => self.counts.cancellations += 1,
                finished => return Ok(finished?),
            },
        }
        Ok(self.channel.wait(token, limit)?)
    }

    pub(super) fn ended(
        &mut self,
        lane: usize,
        Finished { result, tables }: Finished,
        step: u64,
        len: usize,
        aborted: bool,
    ) -> Result<(), SoakError> {
        let is_kept = tables.is_none();
        drop(tables);
        match result {
            Ok(()) => return self.look(lane, step, Some(len)),
            Err(error) => self.count_failure(step, &error, aborted),
        }
        if is_kept {
            // The device may be writing it.
            self.counts.buffers_kept += 1;
            self.lanes[lane].target = None;
            return Ok(());
        }
        self.look(lane, step, None)
    }

    fn count_failure(&mut self, step: u64, error: &TransferError, aborted: bool) {
        count_error(&mut self.counts, error);
        if !self.round.explained.transfer(error, aborted) {
            self.round.shared.unexplained(self.at(step), error);
        }
    }

    /// Looks at the bytes of a transfer and those around them; `done` is how many must have
    /// arrived, `None` says that it failed.
    fn look(&mut self, lane: usize, step: u64, done: Option<usize>) -> Result<(), SoakError> {
        let place = self.at(step);
        let Some(target) = &mut self.lanes[lane].target else { return Ok(()) };
        if !target.is_back() {
            self.round.shared.unexplained(place, "the buffer of a transfer did not come back");
            self.lanes[lane].target = None;
            return Ok(());
        }
        let (what, wrong) = match done {
            Some(_) => ("the target", target.check_done(&mut self.scratch)?),
            None => ("the target of what failed", target.check_undone(&mut self.scratch)?),
        };
        let is_right = self.round.shared.looked(place, what, wrong);
        match done {
            Some(len) if is_right => {
                self.counts.succeeded += 1;
                self.round.shared.bytes.fetch_add(len as u64, Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(())
    }

    /// Looks at all of a buffer.
    fn look_at_all(&mut self, lane: usize, step: u64) -> Result<(), SoakError> {
        let place = self.at(step);
        let Some(target) = &mut self.lanes[lane].target else { return Ok(()) };
        let wrong = target.check_all(&mut self.scratch)?;
        self.round.shared.looked(place, "all of a target", wrong);
        Ok(())
    }
}
