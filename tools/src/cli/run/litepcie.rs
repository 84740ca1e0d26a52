//! Runs a LitePCIe card: a copy through its loopback.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::litepcie::{Config, Limit, LitePcie};
use vfio_dma::dma::{Direction, Pattern, Placement, Report, Request};

use super::{Args, Failure, count};
use crate::bench::units::{bytes, rate};

/// What a run of a card came to.
#[derive(Debug, Serialize)]
pub(super) struct LitePcieOutcome {
    address: String,
    channels: u8,
    /// Bytes copied.
    bytes: u64,
    iommu: String,
    placement: Placement,
    /// Where the buffers were placed and what was tried.
    source: Report,
    target: Report,
    segments: [usize; 2],
    nanoseconds: u64,
    bytes_per_second: u64,
    verified: bool,
}

pub(super) fn run(
    args: &Args,
    device: Device,
    interrupted: &AtomicBool,
) -> Result<LitePcieOutcome, Failure> {
    let size = args.size.unwrap_or(4 << 20);
    let len = usize::try_from(size)?;
    let address = device.location().to_string();
    let mut card = LitePcie::probe(device, Config::default())?;
    let placement = args.placement();
    let place = |direction| card.allocate(&Request::new(len, direction).placement(placement));
    let mut source = place(Direction::ToDevice)?;
    let mut target = place(Direction::FromDevice)?;
    let segments = [source.segments().len(), target.segments().len()];
    let source_report = source.report().clone();
    let sent = Pattern::new(args.seed());
    sent.fill(&mut source, 0, len, 0)?;
    // Bytes that are wrong everywhere, so that what the card leaves out shows.
    Pattern::new(!args.seed()).fill(&mut target, 0, len, 0)?;
    let stop = || match interrupted.load(Ordering::Relaxed) {
        true => Err(Failure::from("interrupted")),
        false => Ok(()),
    };
    stop()?;
    let begin = Instant::now();
    let limit = Limit { time: args.timeout(), stop: Some(interrupted) };
    let copied = card.copy(0, source.into(), target.into(), limit);
    let elapsed = begin.elapsed();
    let (_, target) = copied?;
    stop()?;
    let target = target.into_buffer().ok_or("the driver did not give the buffer back")?;
    sent.check(&target, 0, len, 0)?
        .map_err(|wrong| format!("{address}: what the card wrote is wrong: {wrong}"))?;
    Ok(LitePcieOutcome {
        channels: card.channel_count(),
        iommu: card.device().space().iommu().name().to_string(),
        address,
        bytes: size,
        placement,
        source: source_report,
        target: target.report().clone(),
        segments,
        nanoseconds: u64::try_from(elapsed.as_nanos())?,
        bytes_per_second: (len as f64 / elapsed.as_secs_f64()) as u64,
        verified: true,
    })
}

pub(super) fn describe(card: &LitePcieOutcome) -> String {
    let placed = match card.segments {
        [1, 1] => "contiguous".to_string(),
        [from, to] => format!("in {} and {}", count(from, "segment"), count(to, "segment")),
    };
    format!(
        "source: {}\ntarget: {}\n{} litepcie, {}: copied {} through {}, {}; placed {placed}; \
         verified: every byte is right",
        card.source,
        card.target,
        card.address,
        count(card.channels.into(), "channel"),
        bytes(card.bytes),
        card.iommu,
        rate(card.bytes_per_second as f64),
    )
}
