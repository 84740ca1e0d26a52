//! Runs edu: to the device and back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Completion, Config, Edu};
use vfio_dma::dma::{Direction, Pattern, Placement, Report, Request};

use super::{Args, CompletionArg, Failure, count};
use crate::bench::units::{bytes, rate};
use crate::progress::Step;

/// What a run of edu came to.
#[derive(Debug, Serialize)]
pub(super) struct EduOutcome {
    address: String,
    version: String,
    /// Bytes moved to the device, and as many back.
    bytes: u64,
    completion: Completion,
    address_bits: u32,
    iommu: String,
    placement: Placement,
    /// Where the buffers were placed and what was tried.
    source: Report,
    target: Report,
    nanoseconds: u64,
    /// Bytes that went to the device and back, for each second.
    bytes_per_second: u64,
    verified: bool,
}

/// Bytes copied between two looks at Ctrl-C.
const STRIDE: usize = 16 << 10;

pub(super) fn run(
    args: &Args,
    device: Device,
    interrupted: &AtomicBool,
) -> Result<EduOutcome, Failure> {
    let config = Config {
        completion: args.completion.unwrap_or(CompletionArg::Msi).into(),
        address_bits: args.address_bits.unwrap_or(28),
        timeout: args.timeout(),
    };
    let size = args.size.unwrap_or(64 << 10);
    let len = usize::try_from(size)?;
    let address = device.location().to_string();
    let mut edu = Edu::probe(device, config)?;
    let (major, minor) = edu.version()?;
    let placement = args.placement();
    let place = |direction| edu.allocate(&Request::new(len, direction).placement(placement));
    let mut source = place(Direction::ToDevice)?;
    let mut target = place(Direction::FromDevice)?;
    let (sent, stale) = (Pattern::new(args.seed()), Pattern::new(!args.seed()));
    sent.fill(&mut source, 0, len, 0)?;
    // Bytes that are wrong everywhere, so that what the device leaves out shows.
    stale.fill(&mut target, 0, len, 0)?;

    let what = format!("moving {size} bytes to {address} and back");
    let step = Step::counted(what, size, "{bar:40} {bytes}/{total_bytes} {eta}");
    let begin = Instant::now();
    let mut done = 0;
    while done < len {
        if interrupted.load(Ordering::Relaxed) {
            return Err(format!("interrupted after {done} of {len} bytes").into());
        }
        let part = STRIDE.min(len - done);
        (source, target) = edu.copy(source, done, target, done, part)?.wait()?;
        done += part;
        step.done(done as u64);
    }
    let elapsed = begin.elapsed();
    drop(step);

    sent.check(&target, 0, len, 0)?.map_err(|wrong| {
        let bits = config.address_bits;
        format!(
            "{address}: what came back from the device is wrong: {wrong}\n  remedy: the device \
                 may drive fewer address bits than {bits}, which no register of it tells (edu's \
                 property dma_mask)\n  option: --address-bits N"
        )
    })?;
    sent.check(&source, 0, len, 0)?
        .map_err(|wrong| format!("{address}: the source was written to: {wrong}"))?;
    Ok(EduOutcome {
        address,
        version: format!("{major}.{minor}"),
        bytes: size,
        completion: config.completion,
        address_bits: config.address_bits,
        iommu: edu.device().space().iommu().name().to_string(),
        placement,
        source: source.report().clone(),
        target: target.report().clone(),
        nanoseconds: u64::try_from(elapsed.as_nanos())?,
        bytes_per_second: (size as f64 / elapsed.as_secs_f64()) as u64,
        verified: true,
    })
}

pub(super) fn describe(edu: &EduOutcome) -> String {
    let how = match edu.completion {
        Completion::Msi => "by MSI".into(),
        Completion::Intx => "by INTx".into(),
        Completion::Polled => "polled".into(),
        other => format!("{other:?}"),
    };
    let segments = [&edu.source, &edu.target].map(|report| report.placed().map_or(0, |p| p.1));
    let placed = match segments {
        [1, 1] => "placed contiguous".into(),
        [source, target] => {
            format!("placed in {} and {}", count(source, "segment"), count(target, "segment"))
        }
    };
    let rate = rate(edu.bytes_per_second as f64);
    format!(
        "source: {}\ntarget: {}\n{} edu {}: moved {} to the device and back through {}, \
         completion {how}, {rate}; {placed}; verified: every byte is right",
        edu.source,
        edu.target,
        edu.address,
        edu.version,
        bytes(edu.bytes),
        edu.iommu
    )
}
