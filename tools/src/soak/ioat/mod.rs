//! I/OAT: copies, fills and slots on several channels, each with a thread of its own.

mod slots;
mod transfers;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vfio_dma::devices::ioat::{Channel, Ioat, IoatError, Token, TransferError};
use vfio_dma::dma::{Allocator, Direction, Pool};

use super::SoakError;
use super::counts::{Counts, Place, Shared};
use super::faults::Explained;
use super::memory::{Source, Target};
use super::place::place;
use super::plan::{Await, Placing, Planner, Shape, Step, chance, mix, rng};
use slots::{Ended, Slots};

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
        let slot_len = (64 << dice.u32(0..7)).min(max.next_power_of_two().max(64));
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
            unit: 1,
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
        let is_late = matches!(error, SoakError::Ioat(IoatError::Timeout { .. }));
        let is_silent = is_late && self.round.explained.is_silent();
        if is_late {
            self.note_abort();
            let _ = self.channel.abort();
        }
        let is_lost = self.channel.is_lost();
        self.counts.channels_lost += u64::from(is_lost);
        let is_explained = is_silent || is_lost && self.round.explained.losses();
        if !is_explained {
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
        if !is_lost && !is_silent {
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
        Ended::Done { step, bytes, wrong, is_last } => {
            if round.shared.looked(at(step), "a slot", wrong) {
                counts.succeeded += u64::from(is_last);
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
