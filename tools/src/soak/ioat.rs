//! I/OAT: copies, fills and slots on several channels, each with a thread of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vfio_dma::devices::ioat::{
    Channel, Finished, Ioat, IoatError, Refused, Tables, Token, TransferError, WhenFull,
};
use vfio_dma::dma::{Allocator, Direction, Pool, SgTable};
use vfio_dma::queue::QueueError;

use super::SoakError;
use super::counts::{Counts, Place, Shared};
use super::faults::Explained;
use super::memory::{Source, Target};
use super::place::place;
use super::plan::{Await, Placing, Planner, Shape, Step, Then, Transfer, Work, chance, mix, rng};
use super::slots::{Ended, Slots};

/// Bytes of the pool that the channels of a round share.
pub(super) const POOL: usize = 4 << 20;
/// Slots of a pool of slots.
const SLOTS: usize = 96;

/// What the channels of a round have in common.
#[derive(Debug)]
pub(super) struct Round<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) explained: &'a Explained,
    pub(super) seed: u64,
    pub(super) number: u64,
    pub(super) max_size: usize,
    pub(super) ring: u32,
    pub(super) lanes: usize,
    /// Steps of each channel.
    pub(super) steps: u64,
    pub(super) ends: Instant,
    /// The longest that anything may take.
    pub(super) limit: Duration,
    pub(super) ioat: &'a Ioat,
    pub(super) pool: Option<Arc<Pool>>,
}

/// What is in flight to a lane's buffer.
#[derive(Debug, Clone, Copy)]
enum InFlight {
    /// Its result is to be taken.
    Waited { token: Token, wait: Await, step: u64, len: usize, aborted: bool },
    /// Nobody asks for its result.
    Detached { step: u64, len: usize, recoveries: u64, aborted: bool },
}

/// A buffer that is written, again and again.
#[derive(Debug)]
struct Lane {
    target: Option<Target>,
    placing: Placing,
    in_flight: Option<InFlight>,
}

/// A channel, and all that it works with.
struct Worker<'a> {
    round: &'a Round<'a>,
    index: u64,
    channel: Channel,
    planner: Planner,
    sources: Vec<Source>,
    lanes: Vec<Lane>,
    slots: Slots,
    counts: Counts,
    expected: Vec<u8>,
    scratch: Vec<u8>,
}

impl Round<'_> {
    /// Works on a channel until the round is over.
    pub(super) fn channel(&self, index: u8) {
        let at = |step| Place { round: self.number, channel: index.into(), step };
        let worker = match Worker::new(self, index) {
            Ok(worker) => worker,
            Err(error) => {
                let lost = matches!(error, SoakError::Ioat(_)) && self.explained.losses();
                if lost {
                    self.shared.count(&Counts { channels_lost: 1, ..Counts::default() });
                } else {
                    self.shared.unexplained(at(0), error);
                }
                self.shared.end_round();
                return;
            }
        };
        worker.run();
    }
}

impl<'a> Worker<'a> {
    fn new(round: &'a Round<'a>, index: u8) -> Result<Worker<'a>, SoakError> {
        let path = [round.number, index.into(), u64::MAX];
        let mut dice = rng(round.seed, &path);
        let (allocator, max) = (round.ioat.allocator(), round.max_size);
        let slot_len = (64 << dice.u32(0..7)).min(max.next_power_of_two().max(64)) as usize;
        let buffer = |placing: Placing, direction| allocate(allocator, round, placing, direction);
        let mut counts = Counts::default();
        let mut sources = Vec::new();
        for n in 0..2 {
            let len = max + dice.usize(0..=max) / 2;
            let placing = Placing::random(&mut dice, len);
            let buffer = buffer(placing, Direction::ToDevice)?;
            count_placing(&mut counts, buffer.segments().len());
            sources.push(Source::new(buffer, mix(round.seed ^ mix(path[0] * 64 + path[1])) + n)?);
        }
        // Slots of up to 4 KiB are contiguous in pages of any order.
        let pages = (SLOTS * slot_len).next_multiple_of(4096);
        let [from, to] = [Direction::ToDevice, Direction::FromDevice]
            .map(|direction| buffer(Placing::random(&mut dice, pages).page_aligned(), direction));
        let slots = Slots::new([from?, to?], slot_len, dice.u64(..))?;
        let most_parts = (round.ring / 4).max(2) as usize - 1;
        let shape = Shape {
            max_size: max,
            sources: sources.iter().map(|source| source.buffer().len()).collect(),
            lanes: round.lanes,
            max_pieces: 32,
            can_fill: round.ioat.can_fill(),
            slots: Some((slot_len, most_parts)),
            cancel: true,
        };
        let placing = Placing::none();
        let lane = || Lane { target: None, placing, in_flight: None };
        Ok(Worker {
            round,
            index: index.into(),
            channel: round.ioat.channel(index)?,
            planner: Planner::new(round.seed, round.number, index.into(), shape),
            sources,
            lanes: (0..round.lanes).map(|_| lane()).collect(),
            slots,
            counts,
            expected: Vec::new(),
            scratch: Vec::new(),
        })
    }

    fn at(&self, step: u64) -> Place {
        Place { round: self.round.number, channel: self.index, step }
    }

    /// Steps until the round is over or the channel is lost, then looks at everything.
    fn run(mut self) {
        let shared = self.round.shared;
        let mut failed = None;
        while self.planner.number() < self.round.steps
            && !shared.round_is_over()
            && Instant::now() < self.round.ends
        {
            let number = self.planner.number();
            if let Err(error) = self.step(number) {
                failed = Some((number, error));
                break;
            }
        }
        let last = self.planner.number();
        let mut dice = rng(self.round.seed, &[self.round.number, self.index, u64::MAX - 1]);
        let drops = failed.is_none() && chance(&mut dice, 1, 3);
        if failed.is_none() && !drops {
            failed = self.finish().err().map(|error| (last, error));
        }
        if let Some((step, error)) = failed {
            self.give_up(step, error);
        }
        self.end(last);
    }

    fn step(&mut self, number: u64) -> Result<(), SoakError> {
        match self.planner.step() {
            Step::Transfer(transfer) => self.transfer(number, transfer),
            Step::Slots(works) => {
                let (round, index) = (self.round, self.index);
                let count = works.len() as u64;
                self.counts.slot_operations += count;
                round.shared.operations.fetch_add(count, Ordering::Relaxed);
                let counts = &mut self.counts;
                let mut ended = |ended| slots_ended(round, index, counts, ended);
                let channel = &mut self.channel;
                self.slots.submit(channel, &works, number, round.limit, &mut ended)?;
                self.slots.reap(channel, None, &mut ended)
            }
        }
    }

    fn transfer(&mut self, number: u64, transfer: Transfer) -> Result<(), SoakError> {
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

    fn reap_slots(&mut self, limit: Option<Duration>) -> Result<(), SoakError> {
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

    fn note_abort(&mut self) {
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
    fn end_lane(&mut self, lane: usize) -> Result<(), SoakError> {
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
        match self.channel.wait(token, limit) {
            Err(error @ IoatError::Timeout { .. }) => {
                if !self.round.explained.goes_silent {
                    return Err(error.into());
                }
                // The engine is silent for good, which its RESET shows.
                self.note_abort();
                let _ = self.channel.abort();
                Ok(self.channel.wait(token, limit)?)
            }
            finished => Ok(finished?),
        }
    }

    fn ended(
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

    /// Waits for everything.
    fn finish(&mut self) -> Result<(), SoakError> {
        for lane in 0..self.lanes.len() {
            self.end_lane(lane)?;
        }
        while self.channel.slots_in_flight() > 0 {
            self.reap_slots(Some(self.round.limit))?;
        }
        self.reap_slots(None)?;
        if !self.channel.detach_pools() {
            let place = self.at(self.planner.number());
            self.round.shared.unexplained(place, "slots did not come back");
        }
        Ok(())
    }

    /// After a failure of the channel itself: stops it, and counts why.
    fn give_up(&mut self, step: u64, error: SoakError) {
        let silent = self.round.explained.goes_silent;
        if matches!(error, SoakError::Ioat(IoatError::Timeout { .. })) && silent {
            self.note_abort();
            let _ = self.channel.abort();
        }
        let is_lost = self.channel.is_lost();
        self.counts.channels_lost += u64::from(is_lost);
        if !(is_lost && self.round.explained.losses()) {
            self.round.shared.unexplained(self.at(step), error);
        }
        self.round.shared.end_round();
        // What a lost channel gives back has ended.
        for lane in 0..self.lanes.len() {
            let Some(InFlight::Waited { token, step, len, aborted, .. }) =
                self.lanes[lane].in_flight
            else {
                continue;
            };
            if let Ok(Some(finished)) = self.channel.take(token) {
                self.lanes[lane].in_flight = None;
                let ended = self.ended(lane, finished, step, len, aborted);
                self.tell(step, ended);
            }
        }
        let reaped = self.reap_slots(None);
        if !is_lost {
            self.tell(step, reaped);
        }
    }

    fn tell(&self, step: u64, result: Result<(), SoakError>) {
        if let Err(error) = result {
            self.round.shared.unexplained(self.at(step), error);
        }
    }

    /// Drops the channel, with whatever is in flight, and looks at all of its memory then.
    fn end(mut self, last: u64) {
        let stats = self.channel.stats();
        self.counts.recoveries += stats.recoveries;
        self.counts.lost_completions += stats.lost_completions;
        self.counts.stale_completions += stats.stale_completions;
        self.counts.dropped_in_flight += self.channel.in_flight() as u64;
        self.counts.dropped_in_flight += self.channel.slots_in_flight() as u64;
        let place = self.at(last);
        let Worker { round, channel, sources, lanes, mut slots, counts, mut scratch, .. } = self;
        drop(channel);
        let look = || -> Result<(), SoakError> {
            for mut lane in lanes {
                let Some(target) = &mut lane.target else { continue };
                if !target.is_back() {
                    // A channel that cannot be stopped keeps what it may write.
                    continue;
                }
                if lane.in_flight.is_some() {
                    let wrong = target.check_undone(&mut scratch)?;
                    round.shared.looked(place, "the target of what was dropped", wrong);
                }
                let wrong = target.check_all(&mut scratch)?;
                round.shared.looked(place, "all of a target", wrong);
            }
            for source in &sources {
                let wrong = source.check(&mut scratch)?;
                round.shared.looked(place, "a source", wrong);
            }
            let wrong = slots.check_sources()?;
            round.shared.looked(place, "a slot that is read", wrong);
            Ok(())
        };
        if let Err(error) = look() {
            round.shared.unexplained(place, error);
        }
        round.shared.count(&counts);
    }
}

fn count_placing(counts: &mut Counts, segments: usize) {
    match segments {
        1 => counts.placed_contiguous += 1,
        _ => counts.placed_scattered += 1,
    }
}

fn count_error(counts: &mut Counts, error: &TransferError) {
    counts.failed += 1;
    match error {
        TransferError::Halted { .. } => counts.halted += 1,
        TransferError::Behind => counts.behind += 1,
        TransferError::Aborted => counts.aborted += 1,
        TransferError::Completion(_) => counts.bad_completions += 1,
        _ => counts.lost += 1,
    }
}

/// Counts what ended between slots.
fn slots_ended(round: &Round<'_>, channel: u64, counts: &mut Counts, ended: Ended) {
    let at = |step| Place { round: round.number, channel, step };
    match ended {
        Ended::Done { step, bytes, wrong } => {
            if round.shared.looked(at(step), "a slot", wrong) {
                counts.succeeded += 1;
                round.shared.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        }
        Ended::Failed { step, error, wrong, aborted } => {
            round.shared.looked(at(step), "the slot of what failed", wrong);
            count_error(counts, &error);
            if !round.explained.transfer(&error, aborted) {
                round.shared.unexplained(at(step), &error);
            }
        }
    }
}

fn allocate(
    allocator: &Allocator,
    round: &Round<'_>,
    placing: Placing,
    direction: Direction,
) -> Result<vfio_dma::dma::Buffer, SoakError> {
    Ok(place(placing, direction, round.pool.as_ref(), |request| allocator.allocate(request))?)
}
