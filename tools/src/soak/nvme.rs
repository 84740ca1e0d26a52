//! NVMe: the same blocks read twice, on several queues, and compared; nothing is written.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;
use vfio_dma::devices::nvme::{
    DataMethod, Finished, IoQueue, Namespace, Nvme, QueueConfig, Token, WhenFull,
};
use vfio_dma::dma::{Direction, Pattern, Pool};

use super::SoakError;
use super::counts::{Counts, Place, Shared};
use super::memory::{Target, compare};
use super::place::place;
use super::plan::{EDGE, Placing, chance, log_uniform, mix, rng, target};

/// The most pairs of reads that are in flight at a time.
const DEPTH: usize = 12;

/// What the queues of a round have in common.
#[derive(Debug)]
pub(super) struct Round<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) seed: u64,
    pub(super) number: u64,
    pub(super) max_size: usize,
    /// Entries of each queue.
    pub(super) ring: u32,
    pub(super) steps: u64,
    pub(super) ends: Instant,
    pub(super) limit: Duration,
    pub(super) nvme: &'a Nvme,
    pub(super) namespace: Namespace,
    pub(super) pool: Option<Arc<Pool>>,
}

/// Two buffers that the same blocks are read to.
struct Pair {
    targets: [Target; 2],
    len: usize,
}

/// A queue, and what it reads to.
struct Worker<'a> {
    round: &'a Round<'a>,
    index: u64,
    queue: IoQueue,
    pairs: Vec<Option<Pair>>,
    counts: Counts,
    found: [Vec<u8>; 2],
    scratch: Vec<u8>,
    /// The first buffer of the first pair is read to when the queue is dropped.
    dropped: bool,
}

/// What became of one of the two reads.
#[derive(Clone, Copy)]
enum Read {
    Waited(Token),
    Detached,
}

impl Round<'_> {
    /// Works on a queue until the round is over.
    pub(super) fn queue(&self, index: u64) {
        let at = |step| Place { round: self.number, channel: index, step };
        let size = self.ring.clamp(2, self.nvme.max_queue_size());
        let queue = self.nvme.queue(QueueConfig { size, ..QueueConfig::default() });
        let queue = match queue {
            Ok(queue) => queue,
            Err(error) => return self.shared.unexplained(at(0), error),
        };
        let worker = Worker {
            round: self,
            index,
            queue,
            pairs: (0..DEPTH).map(|_| None).collect(),
            counts: Counts::default(),
            found: [Vec::new(), Vec::new()],
            scratch: Vec::new(),
            dropped: false,
        };
        worker.run();
    }
}

impl Worker<'_> {
    fn run(mut self) {
        let (round, index) = (self.round, self.index);
        let mut step = 0;
        while step < round.steps && !round.shared.round_is_over() && Instant::now() < round.ends {
            let mut dice = rng(round.seed, &[round.number, index, step]);
            let at = Place { round: round.number, channel: index, step };
            if let Err(error) = self.step(&mut dice, at) {
                round.shared.unexplained(at, error);
                round.shared.end_round();
                break;
            }
            step += 1;
        }
        let at = Place { round: round.number, channel: index, step };
        let mut dice = rng(round.seed, &[round.number, index, u64::MAX]);
        if let Err(error) = self.drop_in_flight(&mut dice, at) {
            round.shared.unexplained(at, error);
        }
        self.counts.recoveries += self.queue.stats().recoveries;
        let Worker { queue, pairs, counts, mut scratch, dropped, mut found, .. } = self;
        drop(queue);
        let targets = pairs.into_iter().flatten().flat_map(|pair| pair.targets);
        for (n, mut target) in targets.enumerate() {
            if !target.is_back() {
                round.shared.unexplained(at, "the buffer of a read did not come back");
                continue;
            }
            let around = match dropped && n == 0 {
                // What of it arrived is not known.
                true => target.take_found(&mut found[0], &mut scratch),
                false => Ok(None),
            };
            let looks = [around, target.check_all(&mut scratch)];
            for look in looks {
                match look {
                    Ok(wrong) => _ = round.shared.looked(at, "all of a target", wrong),
                    Err(error) => round.shared.unexplained(at, error),
                }
            }
        }
        round.shared.count(&counts);
    }

    /// Reads several pairs together.
    fn step(&mut self, dice: &mut Rng, at: Place) -> Result<(), SoakError> {
        let most = (self.queue.free() / 2).clamp(1, DEPTH);
        let count = dice.usize(1..=most);
        let mut reads = Vec::with_capacity(count);
        for n in 0..count {
            let blocks = self.prepare(dice, n, at)?;
            let (lba, method) = (self.lba(dice, blocks), self.method(dice));
            let mut both = Vec::with_capacity(2);
            for which in 0..2 {
                let token = self.submit(n, which, lba, method)?;
                if chance(dice, 3, 100) {
                    self.queue.detach(token)?;
                    self.counts.detached += 1;
                    both.push(Read::Detached);
                } else {
                    both.push(Read::Waited(token));
                }
            }
            self.counts.reads += 1;
            self.round.shared.operations.fetch_add(1, Ordering::Relaxed);
            reads.push(both);
        }
        if dice.bool() {
            self.queue.issue()?;
        }
        for (n, both) in reads.into_iter().enumerate() {
            for read in both {
                let Read::Waited(token) = read else {
                    self.queue.wait_all(self.round.limit)?;
                    continue;
                };
                let Finished { result, table, .. } = self.queue.wait(token, self.round.limit)?;
                drop(table);
                if let Err(error) = result {
                    self.counts.failed += 1;
                    return Err(SoakError::Lost(error.to_string()));
                }
            }
            self.look(n, at)?;
        }
        Ok(())
    }

    /// Makes both buffers of a pair ready for the same blocks, and returns how many.
    fn prepare(&mut self, dice: &mut Rng, n: usize, at: Place) -> Result<u64, SoakError> {
        let block = self.round.namespace.block_size() as usize;
        let most = (self.round.max_size / block).max(1);
        let mut pair = self.pairs[n].take();
        if pair.is_none() || chance(dice, 1, 30) {
            if let Some(pair) = &mut pair {
                for target in &mut pair.targets {
                    let wrong = target.check_all(&mut self.scratch)?;
                    self.round.shared.looked(at, "all of a target", wrong);
                }
            }
            drop(pair.take());
            let len = block * log_uniform(dice, 1..most + 1) + 2 * EDGE + dice.usize(0..=8192);
            let targets = [self.allocate(dice, len, 1)?, self.allocate(dice, len, 2)?];
            pair = Some(Pair { targets, len });
        }
        let mut pair = pair.ok_or(SoakError::State("a pair has buffers"))?;
        let room = pair.len - 2 * EDGE;
        let blocks = log_uniform(dice, 1..room / block + 1).min(self.most_blocks());
        let bytes = blocks * block;
        // The two differ in each byte before: what is left out of both shows.
        let stale = Pattern::new(dice.u64(..));
        let mut spoil = vec![0; bytes];
        stale.bytes(0, &mut spoil);
        for buffer in &mut pair.targets {
            let pieces = match chance(dice, 1, 2) {
                // As a list of PRPs has it.
                true => vec![((EDGE + dice.usize(0..=room - bytes)) & !3, bytes)],
                false => target(dice, bytes, room, 8),
            };
            buffer.prepare(&pieces, &spoil)?.ok_or(SoakError::State("no read has the buffer"))?;
            spoil.iter_mut().for_each(|byte| *byte = !*byte);
        }
        self.pairs[n] = Some(pair);
        Ok(blocks as u64)
    }

    fn most_blocks(&self) -> usize {
        usize::try_from(self.round.namespace.blocks()).unwrap_or(usize::MAX)
    }

    fn allocate(&mut self, dice: &mut Rng, len: usize, salt: u64) -> Result<Target, SoakError> {
        let placing = Placing::random(dice, len);
        let (pool, nvme) = (self.round.pool.as_ref(), self.round.nvme);
        let buffer = place(placing, Direction::FromDevice, pool, |request| nvme.allocate(request))?;
        match buffer.segments().len() {
            1 => self.counts.placed_contiguous += 1,
            _ => self.counts.placed_scattered += 1,
        }
        Ok(Target::new(buffer, mix(dice.u64(..) ^ salt))?)
    }

    fn lba(&self, dice: &mut Rng, blocks: u64) -> u64 {
        dice.u64(0..=self.round.namespace.blocks() - blocks)
    }

    fn method(&self, dice: &mut Rng) -> DataMethod {
        if chance(dice, 1, 5) { DataMethod::Bounce } else { DataMethod::Auto }
    }

    fn submit(
        &mut self,
        n: usize,
        which: usize,
        lba: u64,
        method: DataMethod,
    ) -> Result<Token, SoakError> {
        let pair = self.pairs[n].as_ref().ok_or(SoakError::State("a pair has buffers"))?;
        let table = pair.targets[which].table()?;
        self.queue.set_method(method);
        let room = WhenFull::Wait(self.round.limit);
        Ok(self.queue.read(&self.round.namespace, lba, table, room)?)
    }

    /// Compares what two reads of the same blocks found.
    fn look(&mut self, n: usize, at: Place) -> Result<(), SoakError> {
        let pair = self.pairs[n].as_mut().ok_or(SoakError::State("a pair has buffers"))?;
        for (target, found) in pair.targets.iter_mut().zip(&mut self.found) {
            if !target.is_back() {
                return Err(SoakError::State("the buffers of a read come back"));
            }
            found.clear();
            let around = target.take_found(found, &mut self.scratch)?;
            self.round.shared.looked(at, "around what was read", around);
        }
        let [one, other] = &self.found;
        let wrong = compare(other, one, 0);
        if self.round.shared.looked(at, "the second of two reads", wrong) {
            self.counts.succeeded += 1;
            self.round.shared.bytes.fetch_add(one.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Leaves reads in flight, now and then, for the queue to be dropped with.
    fn drop_in_flight(&mut self, dice: &mut Rng, at: Place) -> Result<(), SoakError> {
        if !chance(dice, 1, 3) || self.queue.is_lost() {
            return Ok(());
        }
        let blocks = self.prepare(dice, 0, at)?;
        let lba = self.lba(dice, blocks);
        let _token = self.submit(0, 0, lba, DataMethod::Auto)?;
        self.queue.issue()?;
        self.counts.dropped_in_flight += 1;
        self.dropped = true;
        Ok(())
    }
}
