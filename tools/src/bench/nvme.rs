//! Runs variants on NVMe: reads of the drive's first blocks, several in flight, a doorbell for
//! each batch, polled. Nothing is written. A table of its own has reads that are told by PRPs and by
//! SGLs, and what a read takes without its data.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::nvme::{
    Config, DataMethod, IoQueue, Namespace, Nvme, NvmeError, QueueConfig, Token, WhenFull,
};
use vfio_dma::dma::{Direction, Request, SgTable};
use vfio_dma::queue::{QueueError, WaitMode};

use super::drive;
use super::error::BenchError;
use super::plan::{PlanOptions, Spec, plan};
use super::profile::Profile;
use super::results::{Cell, Method, Series};
use super::subject::{Extent, Sample, Subject, histogram};
use super::test_memory::TestMemory;
use super::units::bytes;

/// Entries of a queue.
pub(super) const ENTRIES: u32 = 1024;
/// The most queues at once: one thread looks after all of them.
const QUEUES: u32 = 4;
/// Bytes of a read that fetches what the drive has, to compare with.
const PART: usize = 128 << 10;

/// Reads of one queue that take turns.
struct Lane {
    namespace: Namespace,
    /// First block, and the list that it is read into; `None` for what moves no data.
    idle: VecDeque<(u64, Option<SgTable>)>,
    /// Blocks of a transfer.
    blocks: u64,
    flying: VecDeque<(Token, u64, Instant)>,
    batch: usize,
    /// How many may still be begun.
    quota: u64,
}

impl drive::Lane for Lane {
    type Queue = IoQueue;

    fn submit(&mut self, queue: &mut IoQueue) -> Result<(), BenchError> {
        while self.quota > 0
            && self.idle.len() >= self.batch
            && (self.flying.is_empty() || queue.free() >= self.batch)
        {
            let begin = Instant::now();
            for _ in 0..self.quota.min(self.batch as u64) {
                let Some((lba, table)) = self.idle.pop_front() else { break };
                let submitted = match table {
                    Some(table) => queue.read(&self.namespace, lba, table, WhenFull::Return),
                    None => queue.verify(&self.namespace, lba, self.blocks, WhenFull::Return),
                };
                match submitted {
                    Ok(token) => self.flying.push_back((token, lba, begin)),
                    Err(refused) => {
                        let full =
                            matches!(refused.error, NvmeError::Queue(QueueError::Full { .. }));
                        if full {
                            // A long read of several commands streams through the queue.
                            self.idle.push_front((lba, refused.table));
                            queue.issue()?;
                            return Ok(());
                        }
                        return Err(refused.error.into());
                    }
                }
                // Of those that began: a batch that finds the queue full is begun in part.
                self.quota -= 1;
            }
            queue.issue()?;
        }
        Ok(())
    }

    fn reap(
        &mut self,
        queue: &mut IoQueue,
        now: Instant,
        latency: &mut Histogram<u64>,
    ) -> Result<u64, BenchError> {
        let mut ended = 0;
        while let Some(&(token, lba, begin)) = self.flying.front() {
            let Some(finished) = queue.take(token)? else { break };
            self.flying.pop_front();
            self.idle.push_back((lba, finished.into_result().map_err(NvmeError::from)?));
            let ns = u64::try_from((now - begin).as_nanos()).unwrap_or(u64::MAX);
            latency.saturating_record(ns);
            ended += 1;
        }
        Ok(ended)
    }

    fn is_busy(&self) -> bool {
        !self.flying.is_empty()
    }

    fn set_quota(&mut self, quota: u64) {
        self.quota = quota;
    }

    fn poll(queue: &mut IoQueue) -> Result<usize, BenchError> {
        Ok(queue.poll()?)
    }

    fn check_device(queue: &mut IoQueue) -> Result<(), BenchError> {
        queue.check_device()?;
        Ok(())
    }
}

/// A variant that can be run.
struct Ready {
    spec: Spec,
    lanes: Vec<Lane>,
}

/// An NVMe drive as the subject of a benchmark.
pub(super) struct NvmeSubject {
    // Dropped first: queues that still run are ended before their tables go.
    queues: Vec<IoQueue>,
    namespace: Namespace,
    cells: BTreeMap<usize, Ready>,
    memory: TestMemory,
    /// The longest extent of each size of segments.
    extents: BTreeMap<Option<u64>, u64>,
    timeout: Duration,
}

/// Opens the drive as it is measured, and its first namespace.
///
/// # Errors
///
/// Fails when the driver does, or there is no namespace.
pub(super) fn open(device: Device) -> Result<(Nvme, Namespace), BenchError> {
    let config = Config { wait: Some(WaitMode::Poll), ..Config::default() };
    let nvme = Nvme::probe(device, config)?;
    let namespace = nvme.namespaces().first().copied();
    Ok((nvme, namespace.ok_or(BenchError::State("the drive has no namespace"))?))
}

/// The variants for a drive, and what was left out.
///
/// # Errors
///
/// Fails when what was asked for makes no sense.
pub(super) fn plan_nvme(
    options: &PlanOptions,
    nvme: &Nvme,
    namespace: &Namespace,
) -> Result<(Vec<Spec>, Vec<String>), BenchError> {
    let (sizes, segments): (&[u64], &[u64]) = match options.profile {
        Profile::Quick => (&[4 << 10, 64 << 10, 1 << 20], &[4 << 10, 64 << 10]),
        Profile::Full => (
            &[4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20],
            &[4 << 10, 16 << 10, 64 << 10, 256 << 10],
        ),
    };
    let asked = PlanOptions {
        sizes: options.sizes.clone().or_else(|| Some(sizes.to_vec())),
        segments: options
            .segments
            .clone()
            .or_else(|| Some(segments.iter().copied().map(Some).collect())),
        ..options.clone()
    };
    let queues = u32::from(nvme.queues()).min(QUEUES);
    let (all, mut notes) = plan(&asked, queues, u64::from(ENTRIES) - 1)?;
    // A quick look at queues is one at 64 KiB.
    let is_quick = options.profile == Profile::Quick && options.sizes.is_none();
    // A drive reads into buffers; slots are an engine's.
    let all = all
        .into_iter()
        .filter(|spec| spec.series != Series::Slots)
        .filter(|spec| !is_quick || spec.series != Series::Channels || spec.transfer == 64 << 10);
    let block = u64::from(namespace.block_size());
    let all = all.chain(methods(options, nvme, block));
    let fits = |spec: &Spec| {
        spec.transfer.is_multiple_of(block)
            && spec.stride().is_multiple_of(block)
            && spec.extent() <= namespace.bytes()
    };
    let (specs, rest): (Vec<Spec>, Vec<Spec>) = all.partition(fits);
    if !rest.is_empty() {
        let list = rest.iter().map(Spec::to_string).collect::<Vec<_>>().join("; ");
        let (block, drive) = (bytes(block), bytes(namespace.bytes()));
        notes.push(format!(
            "left out, for reads are of whole blocks of {block}, inside of {drive}: {list}"
        ));
    }
    if specs.is_empty() {
        return Err(BenchError::State("no variant is of whole blocks inside of the drive"));
    }
    notes.push(
        "reads take what the medium takes, besides what the memory's shape costs: only what \
         differs between variants of the same transfer is the memory's"
            .into(),
    );
    Ok((specs, notes))
}

/// Reads that are told by PRPs and by SGLs, and what they take without their data.
fn methods(options: &PlanOptions, nvme: &Nvme, block: u64) -> Vec<Spec> {
    let own: &[u64] = match options.profile {
        Profile::Quick => &[64 << 10],
        Profile::Full => &[4 << 10, 64 << 10, 512 << 10],
    };
    let asked = options.sizes.clone().unwrap_or_else(|| own.to_vec());
    let info = nvme.info();
    let most = info.max_transfer.unwrap_or(u64::MAX);
    let mut specs = Vec::new();
    for transfer in own.iter().copied().filter(|size| asked.contains(size) && *size <= most) {
        // PRPs describe whole pages.
        let pages = options.segments.iter().flatten().copied().flatten();
        let segment = pages
            .chain([4096])
            .find(|segment| segment.is_multiple_of(nvme.page_size()) && *segment < transfer);
        let batch = ((256 << 10) / transfer).clamp(1, 32) as u32;
        let spec = |segment, method| {
            let series = Series::Methods;
            Spec { series, transfer, segment, batch, channels: 1, method }
        };
        let mut told = vec![Method::Prp];
        told.extend(info.takes_sgl().then_some(Method::Sgl));
        let shapes = [None].into_iter().chain(segment.map(Some));
        specs.extend(shapes.flat_map(|segment| told.iter().map(move |&way| spec(segment, way))));
        let alone = if info.can_verify() { Method::Verify } else { Method::OneBlock };
        if alone == Method::Verify || transfer > block {
            specs.push(spec(None, alone));
        }
    }
    specs
}

/// What of a read is the medium's, as far as that can be told.
pub(super) fn medium(cells: &[Cell]) -> Vec<String> {
    let told = cells.iter().filter_map(|cell| {
        let share = 100.0 / cell.of_contiguous.as_ref()?.median;
        let size = bytes(cell.transfer);
        match cell.method {
            Method::Verify => Some(format!(
                "of a read of {size} into contiguous memory {share:.0}% is the medium's: that is \
                 what it takes to verify the same blocks, which moves no data"
            )),
            Method::OneBlock => Some(format!(
                "of a read of {size} into contiguous memory {share:.0}% is what a read of its \
                 first block takes; what of the rest is the medium's and what the memory's is \
                 not known, for the drive does not offer the verify command"
            )),
            Method::Auto | Method::Prp | Method::Sgl => None,
        }
    });
    told.collect()
}

impl NvmeSubject {
    /// Opens the queues that the variants need, takes memory for them, and reads what the drive
    /// has, to compare with.
    ///
    /// # Errors
    ///
    /// Fails when a queue cannot be opened, there is no memory, or the drive cannot be read.
    pub(super) fn new(
        nvme: &Nvme,
        namespace: Namespace,
        specs: &[Spec],
        seed: u64,
        timeout: Duration,
    ) -> Result<NvmeSubject, BenchError> {
        let mut extents = BTreeMap::new();
        for spec in specs {
            let extent: &mut u64 = extents.entry(spec.segment).or_default();
            *extent = spec.extent().max(*extent);
        }
        let len = usize::try_from(extents.values().copied().max().unwrap_or(1))?;
        let mut memory = TestMemory::new(nvme.allocator(), len, seed)?;
        let count = specs.iter().map(|spec| spec.channels).max().unwrap_or(1);
        let size = ENTRIES.min(nvme.max_queue_size());
        let config = QueueConfig { size, timeout, ..QueueConfig::default() };
        let queues = (0..count).map(|_| nvme.queue(config)).collect::<Result<Vec<_>, _>>();
        let mut queues = queues?;
        let mut buffer = nvme.allocate(&Request::new(PART, Direction::FromDevice))?;
        let mut chunk = vec![0; PART];
        for offset in (0..len).step_by(PART) {
            let part = PART.min(len - offset);
            let table = SgTable::range(buffer, 0, part)?;
            let lba = offset as u64 / u64::from(namespace.block_size());
            let token = queues[0].read(&namespace, lba, table, WhenFull::Return);
            let token = token.map_err(|refused| refused.error)?;
            let finished = queues[0].wait(token, timeout)?;
            let table = finished.into_table().map_err(NvmeError::from)?;
            buffer = table.into_buffer().ok_or(BenchError::State("the driver kept the buffer"))?;
            buffer.read(0, &mut chunk[..part])?;
            memory.set_source(offset, &chunk[..part]);
        }
        Ok(NvmeSubject { queues, namespace, cells: BTreeMap::new(), memory, extents, timeout })
    }

    fn totals(&self) -> (u64, u64) {
        let stats = self.queues.iter().map(IoQueue::stats);
        stats.fold((0, 0), |(c, b), stats| (c + stats.commands, b + stats.doorbells))
    }
}

impl Subject for NvmeSubject {
    fn prepare(&mut self, number: usize, spec: &Spec) -> Result<u64, BenchError> {
        let extent = self.extents.get(&spec.segment).copied().unwrap_or(0).max(spec.extent());
        self.memory.map(spec.segment, usize::try_from(extent)?)?;
        let (slots, stride) = (spec.slots() as usize, spec.stride() as usize);
        let (transfer, depth) = (spec.transfer as usize, spec.depth() as usize);
        let block = u64::from(self.namespace.block_size());
        let moved = if spec.method == Method::OneBlock { block as usize } else { transfer };
        let mut map_calls = 0;
        let mut lanes = Vec::new();
        for lane in 0..spec.channels as usize {
            let mut idle = VecDeque::with_capacity(depth);
            for n in 0..depth {
                let offset = (lane * depth + n) % slots * stride;
                let ((_, target), calls) = self.memory.pair(spec.segment, offset, moved)?;
                // Of both sides; only the target is read into.
                map_calls = calls.div_ceil(2);
                let target = Some(target).filter(|_| spec.method != Method::Verify);
                idle.push_back((offset as u64 / block, target));
            }
            let (batch, flying) = (spec.batch as usize, VecDeque::with_capacity(depth));
            let namespace = self.namespace;
            let blocks = spec.transfer / block;
            lanes.push(Lane { namespace, idle, blocks, flying, batch, quota: 0 });
        }
        self.cells.insert(number, Ready { spec: *spec, lanes });
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
        cell.lanes.iter_mut().for_each(|lane| lane.quota = quota);
        let method = match cell.spec.method {
            Method::Prp => DataMethod::Prp,
            Method::Sgl => DataMethod::Sgl,
            Method::Auto | Method::Verify | Method::OneBlock => DataMethod::Auto,
        };
        self.queues.iter_mut().for_each(|queue| queue.set_method(method));
        let (transfers, elapsed) =
            drive::drive(&mut self.queues, &mut cell.lanes, time, self.timeout, latency)?;
        let after = self.totals();
        let (descriptors, doorbells) = (after.0 - before.0, after.1 - before.1);
        Ok(Sample { transfers, elapsed, descriptors, doorbells, cycles: 0 })
    }

    fn verify(&mut self, number: usize) -> Result<Sample, BenchError> {
        match self.spec(number).map(|spec| spec.method) {
            // There is nothing to compare.
            Some(Method::Verify | Method::OneBlock) => {
                self.run(number, Extent::Once, &mut histogram())
            }
            _ => self.verify_bytes(number),
        }
    }

    fn spec(&self, number: usize) -> Option<Spec> {
        self.cells.get(&number).map(|cell| cell.spec)
    }

    fn memory(&mut self) -> &mut TestMemory {
        &mut self.memory
    }
}
