//! Runs variants on I/OAT: several transfers in flight, a doorbell for each batch, polled.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Channel, Config, Ioat, Token, WaitMode, WhenFull};

use super::drive;
use super::error::BenchError;
use super::plan::Spec;
use super::results::Series;
use super::slot_lane::SlotLane;
use super::subject::{Extent, Sample, Subject};
use super::test_memory::{Pair, TestMemory};

/// Descriptors of a channel's ring: two batches of the most transfers fit.
pub(super) const RING: u32 = 4096;

/// Transfers of one channel that take turns.
struct Lane {
    idle: VecDeque<Pair>,
    flying: VecDeque<(Token, Instant)>,
    batch: usize,
    /// Descriptors of a batch.
    needs: u32,
    /// How many may still be begun.
    quota: u64,
}

impl drive::Lane for Lane {
    type Queue = Channel;

    fn submit(&mut self, channel: &mut Channel) -> Result<(), BenchError> {
        while self.quota > 0
            && self.idle.len() >= self.batch
            && (self.flying.is_empty() || channel.free() >= self.needs)
        {
            let begin = Instant::now();
            for _ in 0..self.batch {
                let Some((source, target)) = self.idle.pop_front() else { break };
                let token = channel.copy(source, target, WhenFull::Return)?;
                self.flying.push_back((token, begin));
            }
            channel.issue()?;
            self.quota = self.quota.saturating_sub(self.batch as u64);
        }
        Ok(())
    }

    fn reap(
        &mut self,
        channel: &mut Channel,
        now: Instant,
        latency: &mut Histogram<u64>,
    ) -> Result<u64, BenchError> {
        let mut ended = 0;
        // Those of a batch that end together are recorded together.
        let mut group = (now, 0);
        let mut record = |(begin, count): (Instant, u64)| {
            let ns = u64::try_from((now - begin).as_nanos()).unwrap_or(u64::MAX);
            latency.saturating_record_n(ns, count);
        };
        while let Some(&(token, begin)) = self.flying.front() {
            let Some(finished) = channel.take(token)? else { break };
            self.flying.pop_front();
            let tables = finished.into_result()?;
            let source = tables
                .source
                .ok_or(BenchError::State("the driver did not give the source back"))?;
            self.idle.push_back((source, tables.target));
            ended += 1;
            if group.0 != begin && group.1 > 0 {
                record(group);
                group.1 = 0;
            }
            group = (begin, group.1 + 1);
        }
        if group.1 > 0 {
            record(group);
        }
        Ok(ended)
    }

    fn is_busy(&self) -> bool {
        !self.flying.is_empty()
    }

    fn set_quota(&mut self, quota: u64) {
        self.quota = quota;
    }

    fn poll(channel: &mut Channel) -> Result<usize, BenchError> {
        Ok(channel.poll()?)
    }

    fn check_device(channel: &mut Channel) -> Result<(), BenchError> {
        channel.check_device()?;
        Ok(())
    }
}

/// What a variant moves, on each of its channels.
enum Lanes {
    Transfers(Vec<Lane>),
    Slots(Vec<SlotLane>),
}

/// A variant that can be run.
struct Ready {
    spec: Spec,
    lanes: Lanes,
}

/// I/OAT as the subject of a benchmark.
pub(super) struct IoatSubject {
    // Dropped first: an engine that still runs is stopped before its tables go.
    channels: Vec<Channel>,
    cells: BTreeMap<usize, Ready>,
    memory: TestMemory,
    /// The longest extent of each size of segments.
    extents: BTreeMap<Option<u64>, u64>,
    timeout: Duration,
}

/// Opens the device as it is measured.
///
/// # Errors
///
/// Fails when the driver does.
pub(super) fn open(device: Device) -> Result<Ioat, BenchError> {
    let config = Config { wait: WaitMode::Poll, ring_size: RING, ..Config::default() };
    Ok(Ioat::probe(device, config)?)
}

impl IoatSubject {
    /// Opens the channels that the variants need and takes memory for them.
    ///
    /// # Errors
    ///
    /// Fails when a channel cannot be opened, or there is no memory.
    pub(super) fn new(
        ioat: &Ioat,
        specs: &[Spec],
        seed: u64,
        timeout: Duration,
    ) -> Result<IoatSubject, BenchError> {
        let mut extents = BTreeMap::new();
        for spec in specs {
            let extent: &mut u64 = extents.entry(spec.segment).or_default();
            *extent = spec.extent().max(*extent);
        }
        let len = usize::try_from(extents.values().copied().max().unwrap_or(1))?;
        let memory = TestMemory::new(ioat.allocator(), len, seed)?;
        let count = specs.iter().map(|spec| spec.channels).max().unwrap_or(1);
        let channels = (0..u8::try_from(count)?).map(|n| ioat.channel(n)).collect::<Result<_, _>>();
        let (channels, cells) = (channels?, BTreeMap::new());
        Ok(IoatSubject { channels, cells, memory, extents, timeout })
    }

    /// As [`Subject::prepare`], for copies between slots: each place is one.
    fn prepare_slots(&mut self, number: usize, spec: &Spec) -> Result<u64, BenchError> {
        let depth = spec.depth() as usize;
        let count = depth * spec.channels as usize;
        let ((from, sources), (to, targets), calls) =
            self.memory.pools(spec.stride() as usize, count)?;
        let mut pairs = sources.into_iter().zip(targets);
        let lane = |_| {
            let own = pairs.by_ref().take(depth);
            SlotLane::new(&from, &to, own, spec.batch, spec.transfer as usize)
        };
        let lanes = (0..spec.channels).map(lane).collect();
        self.cells.insert(number, Ready { spec: *spec, lanes: Lanes::Slots(lanes) });
        Ok(calls)
    }

    fn totals(&self) -> (u64, u64) {
        let stats = self.channels.iter().map(Channel::stats);
        stats.fold((0, 0), |(d, b), stats| (d + stats.descriptors, b + stats.doorbells))
    }
}

/// As [`drive::drive`], with a quota for each lane.
fn drive<L: drive::Lane<Queue = Channel>>(
    channels: &mut [Channel],
    lanes: &mut [L],
    quota: u64,
    time: Duration,
    timeout: Duration,
    latency: &mut Histogram<u64>,
) -> Result<(u64, Duration), BenchError> {
    lanes.iter_mut().for_each(|lane| lane.set_quota(quota));
    drive::drive(channels, lanes, time, timeout, latency)
}

impl Subject for IoatSubject {
    fn prepare(&mut self, number: usize, spec: &Spec) -> Result<u64, BenchError> {
        if spec.series == Series::Slots {
            return self.prepare_slots(number, spec);
        }
        let extent = self.extents.get(&spec.segment).copied().unwrap_or(0).max(spec.extent());
        self.memory.map(spec.segment, usize::try_from(extent)?)?;
        let (slots, stride) = (spec.slots() as usize, spec.stride() as usize);
        let (transfer, depth) = (spec.transfer as usize, spec.depth() as usize);
        let needs = u64::from(spec.batch) * spec.pieces().max(spec.transfer.div_ceil(1 << 20));
        let needs = u32::try_from(needs).unwrap_or(u32::MAX);
        let mut map_calls = 0;
        let mut lanes = Vec::new();
        for lane in 0..spec.channels as usize {
            let mut idle = VecDeque::with_capacity(depth);
            for n in 0..depth {
                let slot = (lane * depth + n) % slots;
                let (pair, calls) = self.memory.pair(spec.segment, slot * stride, transfer)?;
                map_calls = calls;
                idle.push_back(pair);
            }
            let (batch, flying) = (spec.batch as usize, VecDeque::with_capacity(depth));
            lanes.push(Lane { idle, flying, batch, needs, quota: 0 });
        }
        self.cells.insert(number, Ready { spec: *spec, lanes: Lanes::Transfers(lanes) });
        Ok(map_calls)
    }

    fn run(
        &mut self,
        number: usize,
        extent: Extent,
        latency: &mut Histogram<u64>,
    ) -> Result<Sample, BenchError> {
        let before = self.totals();
        let cell = self
            .cells
            .get_mut(&number)
            .ok_or(BenchError::State("a variant that is not prepared"))?;
        let (quota, time) = match extent {
            Extent::Once => (cell.spec.depth().into(), Duration::MAX),
            Extent::For(time) => (u64::MAX, time),
        };
        let (channels, timeout) = (&mut self.channels, self.timeout);
        let (transfers, elapsed) = match &mut cell.lanes {
            Lanes::Transfers(lanes) => drive(channels, lanes, quota, time, timeout, latency),
            Lanes::Slots(lanes) => drive(channels, lanes, quota, time, timeout, latency),
        }?;
        let after = self.totals();
        let (descriptors, doorbells) = (after.0 - before.0, after.1 - before.1);
        Ok(Sample { transfers, elapsed, descriptors, doorbells, cycles: 0 })
    }

    fn spec(&self, number: usize) -> Option<Spec> {
        self.cells.get(&number).map(|cell| cell.spec)
    }

    fn memory(&mut self) -> &mut TestMemory {
        &mut self.memory
    }
}
