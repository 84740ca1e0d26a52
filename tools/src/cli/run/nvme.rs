//! Runs NVMe: the same blocks read into contiguous and into scattered memory, and compared;
//! with the drive named, also written.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::nvme::{
    Config, Consent, ControllerInfo, DataMethod, IoQueue, Namespace, Nvme, NvmeError, QueueConfig,
    Refused, Token, WhenFull, Writable,
};
use vfio_dma::dma::{Buffer, Direction, Pattern, Placement, Report, Request, SgTable};

use super::{Args, Failure, PlacementArg};

/// What a run of NVMe came to.
#[derive(Debug, Serialize)]
pub(super) struct NvmeOutcome {
    address: String,
    controller: ControllerInfo,
    /// I/O queues that were granted, and the most entries of one.
    queues: u16,
    max_queue_size: u32,
    /// Bytes of a PRP entry's page.
    page_size: u64,
    /// How data can be described.
    prp: bool,
    sgl: bool,
    /// Whether there is a controller memory buffer, which is not used.
    memory_buffer: bool,
    namespace: NamespaceOutcome,
    iommu: String,
    /// Bytes of each pass.
    bytes: u64,
    passes: Vec<Pass>,
    /// Whether the drive was written; only when it was named.
    written: bool,
    /// Whether the compare command agreed with what was written; `null` when it was not tried.
    compared: Option<bool>,
    verified: bool,
}

#[derive(Debug, Serialize)]
struct NamespaceOutcome {
    id: u32,
    blocks: u64,
    block_size: u32,
    bytes: u64,
}

/// One pass over the blocks.
#[derive(Debug, Serialize)]
struct Pass {
    what: &'static str,
    placement: Placement,
    /// Segments of the buffer, as the device sees it.
    segments: usize,
    /// Transfers in flight at a time.
    depth: usize,
    /// How the first transfer told where its data is.
    method: DataMethod,
    commands: u64,
    doorbells: u64,
    nanoseconds: u64,
    bytes_per_second: u64,
    /// Where the buffer was placed and what was tried.
    buffer: Report,
}

/// Bytes of one transfer.
const PART: usize = 128 << 10;
/// Transfers in flight of the passes with many.
const DEPTH: usize = 32;
/// Entries of the queue.
const QUEUE: u32 = 128;
/// Longest wait between two looks at Ctrl-C.
const SLICE: Duration = Duration::from_millis(50);
/// Bytes of a run without --size.
const SIZE: u64 = 16 << 20;

/// What a pass needs.
struct Runner<'a> {
    args: &'a Args,
    nvme: Nvme,
    namespace: Namespace,
    queue: IoQueue,
    stop: &'a AtomicBool,
    passes: Vec<Pass>,
}

pub(super) fn run(
    args: &Args,
    device: Device,
    interrupted: &AtomicBool,
) -> Result<NvmeOutcome, Failure> {
    let address = device.location().to_string();
    let nvme = Nvme::probe(device, Config::default())?;
    let namespace = match args.namespace {
        None => nvme.namespaces().first(),
        Some(id) => nvme.namespaces().iter().find(|namespace| namespace.id() == id),
    };
    let namespace = *namespace.ok_or_else(|| {
        let ids: Vec<_> = nvme.namespaces().iter().map(|n| n.id().to_string()).collect();
        format!("{address} has no such namespace; it has: {}", ids.join(", "))
    })?;
    let block = u64::from(namespace.block_size()).max(1);
    let bytes = args.size.unwrap_or(SIZE).min(namespace.bytes());
    let len = usize::try_from(bytes - bytes % block)?;
    if len == 0 {
        return Err(format!("{bytes} bytes are not one block of {block} bytes").into());
    }
    let size = QUEUE.min(nvme.max_queue_size());
    let queue = nvme.queue(QueueConfig { size, ..QueueConfig::default() })?;
    let (passes, stop) = (Vec::new(), interrupted);
    let mut runner = Runner { args, nvme, namespace, queue, stop, passes };
    runner.read_both(len)?;
    let mut compared = None;
    let written = match &args.destroy_data_on {
        Some(serial) => {
            compared = runner.write(serial, len)?;
            true
        }
        None => false,
    };
    let Runner { nvme, passes, queue, .. } = runner;
    drop(queue);
    let info = nvme.info();
    Ok(NvmeOutcome {
        address,
        controller: info.clone(),
        queues: nvme.queues(),
        max_queue_size: nvme.max_queue_size(),
        page_size: nvme.page_size(),
        prp: true,
        sgl: info.takes_sgl(),
        memory_buffer: nvme.has_memory_buffer(),
        namespace: NamespaceOutcome {
            id: namespace.id(),
            blocks: namespace.blocks(),
            block_size: namespace.block_size(),
            bytes: namespace.bytes(),
        },
        iommu: nvme.space().iommu().name().to_string(),
        bytes: len as u64,
        passes,
        written,
        compared,
        verified: true,
    })
}

impl Runner<'_> {
    /// The placements that are tried: contiguous and scattered, or what was asked for.
    fn placements(&self) -> [Placement; 2] {
        match self.args.placement.unwrap_or(PlacementArg::Auto) {
            // The pages come as they come where nothing contiguous can be had.
            PlacementArg::Auto => [Placement::Auto, Placement::ScatterGather],
            PlacementArg::Contiguous => [Placement::Contiguous; 2],
            PlacementArg::Sg => [Placement::ScatterGather; 2],
        }
    }

    fn allocate(
        &self,
        len: usize,
        way: Direction,
        placement: Placement,
    ) -> Result<Buffer, Failure> {
        Ok(self.nvme.allocate(&Request::new(len, way).placement(placement))?)
    }

    /// Reads the same blocks into two buffers and compares them.
    fn read_both(&mut self, len: usize) -> Result<(), Failure> {
        let mut read = Vec::new();
        for (n, placement) in self.placements().into_iter().enumerate() {
            let mut buffer = self.allocate(len, Direction::FromDevice, placement)?;
            for depth in [1, DEPTH] {
                // Bytes that differ from one buffer to the other, so that what the
                // drive leaves out shows.
                let stale = Pattern::new(self.args.seed().wrapping_add(n as u64 + depth as u64));
                stale.fill(&mut buffer, 0, len, 0)?;
                let namespace = self.namespace;
                buffer = self.pass("read", buffer, placement, depth, |queue, lba, table| {
                    queue.read(&namespace, lba, table, WhenFull::Return)
                })?;
            }
            read.push(buffer);
        }
        let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        for at in (0..len).step_by(one.len()) {
            let part = one.len().min(len - at);
            read[0].read(at, &mut one[..part])?;
            read[1].read(at, &mut other[..part])?;
            if let Some(differs) = (0..part).find(|&i| one[i] != other[i]) {
                let (at, location) = (at + differs, self.nvme.location());
                return Err(format!(
                    "{location}: the same blocks differ at byte {at}: {:#04x} in one buffer, \
                     {:#04x} in the other",
                    one[differs], other[differs]
                )
                .into());
            }
        }
        Ok(())
    }

    /// Writes a pattern to the first blocks, reads it back, and has the drive compare it.
    fn write(&mut self, serial: &str, len: usize) -> Result<Option<bool>, Failure> {
        let block = u64::from(self.namespace.block_size());
        let consent = Consent::new(serial, self.namespace.bytes()).blocks(0..len as u64 / block);
        let consent = match self.args.overwrite_signatures {
            true => consent.destroying_signatures(),
            false => consent,
        };
        let timeout = self.args.timeout();
        let writable = self.queue.writable(&self.namespace, &consent, timeout)?;
        let mut compared = None;
        for (n, placement) in self.placements().into_iter().enumerate() {
            let sent = Pattern::new(self.args.seed().wrapping_mul(31).wrapping_add(n as u64));
            let mut buffer = self.allocate(len, Direction::ToDevice, placement)?;
            sent.fill(&mut buffer, 0, len, 0)?;
            let write = |queue: &mut IoQueue, lba, table| write(queue, &writable, lba, table);
            let mut buffer = self.pass("write", buffer, placement, DEPTH, write)?;
            let token = self.queue.flush(&self.namespace, WhenFull::Return)?;
            self.finish(token)?;
            let namespace = self.namespace;
            if self.nvme.info().can_compare() {
                buffer = self.pass("compare", buffer, placement, DEPTH, |queue, lba, table| {
                    queue.compare(&namespace, lba, table, WhenFull::Return)
                })?;
                compared = Some(true);
            }
            drop(buffer);
            let mut back = self.allocate(len, Direction::FromDevice, placement)?;
            Pattern::new(!self.args.seed()).fill(&mut back, 0, len, 0)?;
            let back = self.pass("read back", back, placement, DEPTH, |queue, lba, table| {
                queue.read(&namespace, lba, table, WhenFull::Return)
            })?;
            let location = self.nvme.location();
            sent.check(&back, 0, len, 0)?
                .map_err(|wrong| format!("{location}: what was written is not there: {wrong}"))?;
        }
        Ok(compared)
    }

    /// Moves a whole buffer from or to the first blocks, so many transfers at a time.
    fn pass(
        &mut self,
        what: &'static str,
        buffer: Buffer,
        placement: Placement,
        depth: usize,
        mut submit: impl FnMut(&mut IoQueue, u64, SgTable) -> Result<Token, Refused>,
    ) -> Result<Buffer, Failure> {
        let block = self.namespace.block_size() as usize;
        let buffer = Arc::new(buffer);
        let before = self.queue.stats();
        let begin = Instant::now();
        let (mut flying, mut at, mut method) = (VecDeque::new(), 0, None);
        while at < buffer.len() || !flying.is_empty() {
            while flying.len() < depth && at < buffer.len() {
                let part = PART.min(buffer.len() - at);
                let table = SgTable::range(Arc::clone(&buffer), at, part)?;
                flying.push_back(submit(&mut self.queue, (at / block) as u64, table)?);
                at += part;
            }
            self.queue.issue()?;
            let Some(token) = flying.pop_front() else { break };
            let done = self.finish(token)?;
            method.get_or_insert(done);
        }
        let elapsed = begin.elapsed();
        let stats = self.queue.stats();
        let buffer = Arc::into_inner(buffer).ok_or("the driver did not give the buffer back")?;
        self.passes.push(Pass {
            what,
            placement,
            segments: buffer.segments().len(),
            depth,
            method: method.unwrap_or_default(),
            commands: stats.commands - before.commands,
            doorbells: stats.doorbells - before.doorbells,
            nanoseconds: u64::try_from(elapsed.as_nanos())?,
            bytes_per_second: (buffer.len() as f64 / elapsed.as_secs_f64()) as u64,
            buffer: buffer.report().clone(),
        });
        Ok(buffer)
    }

    /// Waits for a transfer, unless it is to stop: the queue is closed then, which ends it.
    fn finish(&mut self, token: Token) -> Result<DataMethod, Failure> {
        let (begin, limit) = (Instant::now(), self.args.timeout());
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            match self.queue.wait(token, SLICE.min(left)) {
                Err(NvmeError::Timeout { .. }) if self.stop.load(Ordering::Relaxed) => {
                    return Err("interrupted".into());
                }
                Err(NvmeError::Timeout { .. }) if !left.is_zero() => {}
                Err(NvmeError::Timeout { location, what, .. }) => {
                    let waited = limit;
                    return Err(NvmeError::Timeout { location, what, waited }.into());
                }
                waited => {
                    let finished = waited?;
                    let method = finished.method;
                    finished.into_result()?;
                    if self.stop.load(Ordering::Relaxed) {
                        return Err("interrupted".into());
                    }
                    return Ok(method);
                }
            }
        }
    }
}

fn write(
    queue: &mut IoQueue,
    writable: &Writable,
    lba: u64,
    table: SgTable,
) -> Result<Token, Refused> {
    queue.write(writable, lba, table, WhenFull::Return)
}

pub(super) fn describe(nvme: &NvmeOutcome) -> String {
    let info = &nvme.controller;
    let (major, minor, tertiary) = info.version;
    let most = info.max_transfer.map_or("any length".into(), |most| format!("{} KiB", most >> 10));
    let yes = |has| if has { "yes" } else { "no" };
    let NamespaceOutcome { id, blocks, block_size, bytes } = nvme.namespace;
    let mut text = format!(
        "{}: {} (serial number {}, firmware {}), NVMe {major}.{minor}.{tertiary}\n\
         data by PRP: yes, by SGL: {}; commands of {most}; {} queues of up to {} entries; \
         controller memory buffer: {}\n\
         namespace {id}: {blocks} blocks of {block_size} bytes, {} MiB\n",
        nvme.address,
        info.model,
        info.serial,
        info.firmware,
        yes(nvme.sgl),
        nvme.queues,
        nvme.max_queue_size,
        yes(nvme.memory_buffer),
        bytes >> 20,
    );
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{:<9} {:<14} {:>8} {:<7} {:>5} {:>8} {:>5} {:>9} {:>8}",
        "pass", "placed", "segments", "by", "depth", "commands", "bells", "ms", "MB/s"
    );
    for pass in &nvme.passes {
        let placed = if pass.segments == 1 { "contiguous" } else { "scatter/gather" };
        let by = format!("{:?}", pass.method).to_lowercase();
        let _ = writeln!(
            text,
            "{:<9} {placed:<14} {:>8} {by:<7} {:>5} {:>8} {:>5} {:>9.1} {:>8.1}",
            pass.what,
            pass.segments,
            pass.depth,
            pass.commands,
            pass.doorbells,
            pass.nanoseconds as f64 / 1e6,
            pass.bytes_per_second as f64 / 1e6,
        );
    }
    let end = match (nvme.written, nvme.compared) {
        (false, _) => "read, nothing was written; verified: the same bytes in both".to_string(),
        (true, Some(true)) => {
            "written and read back; verified: every byte is right, and the drive's compare command \
             agrees"
                .to_string()
        }
        (true, _) => "written and read back; verified: every byte is right".to_string(),
    };
    let _ = write!(
        text,
        "{} nvme: {} bytes through {} in each pass, {end}",
        nvme.address, nvme.bytes, nvme.iommu
    );
    text
}
