//! Runs I/OAT: a copy from memory to memory.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Channel, Config, Finished, Ioat, IoatError, Stats, Token, WhenFull};
use vfio_dma::dma::{Buffer, Direction, Pattern, Placement, Report, Request, SgTable};

use super::{Args, Context, Failure, count};
use crate::bench::units::{bytes, rate};

/// What a run of I/OAT came to.
#[derive(Debug, Serialize)]
pub(super) struct IoatOutcome {
    address: String,
    version: String,
    channels: u8,
    /// Bytes copied.
    bytes: u64,
    iommu: String,
    placement: Placement,
    /// Where the buffers were placed and what was tried.
    source: Report,
    target: Report,
    #[serde(flatten)]
    cost: Cost,
    verified: bool,
}

/// What a copy took.
#[derive(Debug, Clone, Copy, Serialize)]
pub(in crate::cli) struct Cost {
    /// Segments of source and target, as the device sees them.
    pub(in crate::cli) segments: [usize; 2],
    /// Map calls for both buffers.
    pub(in crate::cli) map_calls: u64,
    /// Descriptors that the copy became.
    pub(in crate::cli) descriptors: u64,
    /// Doorbells rung for them.
    pub(in crate::cli) doorbells: u64,
    /// Time to allocate and map both buffers.
    pub(in crate::cli) placement_nanoseconds: u64,
    /// Time from submitting to completion.
    pub(in crate::cli) nanoseconds: u64,
    pub(in crate::cli) bytes_per_second: u64,
}

/// A copy that was verified, and its buffers.
pub(in crate::cli) struct Copied {
    pub(in crate::cli) cost: Cost,
    pub(in crate::cli) source: Report,
    pub(in crate::cli) target: Report,
}

/// Bytes filled or compared between two looks at Ctrl-C.
const STRIDE: usize = 64 << 20;

/// Longest wait between two looks at Ctrl-C.
const SLICE: Duration = Duration::from_millis(50);

/// Copies a pattern between two new buffers and verifies both.
///
/// # Errors
///
/// Fails when a buffer cannot be placed, the transfer fails, a byte is wrong, or `stop` is
/// set: the transfer in flight is aborted then, and its buffers are freed once the device
/// stands still. `seen` gets what the driver counted, in any case.
pub(in crate::cli) fn copy(
    ioat: &Ioat,
    len: usize,
    placement: Placement,
    seed: u64,
    timeout: Duration,
    stop: &AtomicBool,
    seen: &Cell<Option<Stats>>,
) -> Result<Copied, Failure> {
    // Its ring needs a contiguous run of its own: early, while there is one.
    let mut channel = ioat.channel(0)?;
    let calls = || ioat.space().usage().map_calls;
    let before = calls();
    let begin = Instant::now();
    let place = |direction| ioat.allocate(&Request::new(len, direction).placement(placement));
    let mut source = place(Direction::ToDevice)?;
    let mut target = place(Direction::FromDevice)?;
    let placement = begin.elapsed();
    let map_calls = calls() - before;
    let segments = [source.segments().len(), target.segments().len()];
    let (sent, stale) = (Pattern::new(seed), Pattern::new(!seed));
    stride(len, stop, |at, part| Ok(sent.fill(&mut source, at, part, at as u64)?))?;
    // Bytes that are wrong everywhere, so that what the device leaves out shows.
    stride(len, stop, |at, part| Ok(stale.fill(&mut target, at, part, at as u64)?))?;

    let begin_stats = channel.stats();
    let location = ioat.location();
    log::info!("{location}: copying {len} bytes");
    let begin = Instant::now();
    let token = channel.copy(source.into(), target.into(), WhenFull::Return)?;
    let finished = wait(&mut channel, token, timeout, stop);
    let elapsed = begin.elapsed();
    let stats = channel.stats();
    seen.set(Some(stats));
    let tables = finished?.into_result()?;

    let lost = || Failure::from("the driver did not give the buffers back");
    let buffer =
        |table: SgTable| -> Result<Buffer, Failure> { table.into_buffer().ok_or_else(lost) };
    let source = buffer(tables.source.ok_or_else(lost)?)?;
    let target = buffer(tables.target)?;
    let verify = |buffer, what| {
        stride(len, stop, |at, part| {
            let same = sent.check(buffer, at, part, at as u64)?;
            Ok(same.map_err(|wrong| format!("{location}: {what}: {wrong}"))?)
        })
    };
    verify(&target, "what the device wrote is wrong")?;
    verify(&source, "the source was written to")?;
    let cost = Cost {
        segments,
        map_calls,
        descriptors: stats.descriptors - begin_stats.descriptors,
        doorbells: stats.doorbells - begin_stats.doorbells,
        placement_nanoseconds: u64::try_from(placement.as_nanos())?,
        nanoseconds: u64::try_from(elapsed.as_nanos())?,
        bytes_per_second: (len as f64 / elapsed.as_secs_f64()) as u64,
    };
    Ok(Copied { cost, source: source.report().clone(), target: target.report().clone() })
}

/// Works through `len` bytes in parts, unless it is to stop.
fn stride(
    len: usize,
    stop: &AtomicBool,
    mut work: impl FnMut(usize, usize) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for at in (0..len).step_by(STRIDE) {
        if stop.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        work(at, STRIDE.min(len - at))?;
    }
    Ok(())
}

/// Waits for a transfer; when it is to stop, aborts it.
fn wait(
    channel: &mut Channel,
    token: Token,
    timeout: Duration,
    stop: &AtomicBool,
) -> Result<Finished, Failure> {
    let begin = Instant::now();
    loop {
        let left = timeout.saturating_sub(begin.elapsed());
        match channel.wait(token, SLICE.min(left)) {
            Err(IoatError::Timeout { .. }) if stop.load(Ordering::Relaxed) => {
                // The engine stands still when this returns; a channel that cannot be set up
                // again is kept from memory altogether, and that is told by the driver.
                let aborted = channel.abort();
                let end = if aborted.is_ok() { "was aborted" } else { "and its channel are lost" };
                return Err(format!("interrupted: the transfer {end}").into());
            }
            Err(IoatError::Timeout { .. }) if !left.is_zero() => {}
            Err(IoatError::Timeout { location, channel, what, .. }) => {
                let waited = timeout;
                return Err(IoatError::Timeout { location, channel, what, waited }.into());
            }
            waited => return Ok(waited?),
        }
    }
}

pub(super) fn run(
    args: &Args,
    device: Device,
    context: &Context<'_>,
) -> Result<IoatOutcome, Failure> {
    let size = args.size.unwrap_or(64 << 20);
    let address = device.location().to_string();
    let ioat = Ioat::probe(device, Config::default())?;
    let (placement, seed, timeout) = (args.placement(), args.seed(), args.timeout());
    let (len, Context { stop, stats }) = (usize::try_from(size)?, context);
    let copied = copy(&ioat, len, placement, seed, timeout, stop, stats)?;
    let (major, minor) = ioat.version();
    Ok(IoatOutcome {
        address,
        version: format!("{major}.{minor}"),
        channels: ioat.channels(),
        bytes: size,
        iommu: ioat.space().iommu().name().to_string(),
        placement,
        source: copied.source,
        target: copied.target,
        cost: copied.cost,
        verified: true,
    })
}

pub(super) fn describe(ioat: &IoatOutcome) -> String {
    let Cost { segments: [from, to], map_calls, descriptors, doorbells, .. } = ioat.cost;
    let placed = match (from, to) {
        (1, 1) => "contiguous".to_string(),
        _ => format!("in {} and {}", count(from, "segment"), count(to, "segment")),
    };
    let rate = rate(ioat.cost.bytes_per_second as f64);
    format!(
        "source: {}\ntarget: {}\n{} ioat {}: copied {} through {} with {}, {} and {}, \
         {rate}; placed {placed}; verified: every byte is right",
        ioat.source,
        ioat.target,
        ioat.address,
        ioat.version,
        bytes(ioat.bytes),
        ioat.iommu,
        count(descriptors as usize, "descriptor"),
        count(doorbells as usize, "doorbell"),
        count(map_calls as usize, "map call")
    )
}
