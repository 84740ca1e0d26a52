//! `vfio-dma loopback`: a first DMA test of any card.

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use vfio_dma::devices::recipe::{Loopback, LoopbackOptions, Recipe, Verdict};
use vfio_dma::dma::Report;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

use super::open::DeviceArg;
use super::run::{self, PlacementArg};
use super::size::parse_length;
use super::{Failure, interrupted, output};
use crate::bench::units::{bytes, rate};

/// Move data through a card and verify it: a known engine, or any card by a recipe
///
/// Without --recipe as `run`. With it the file says which registers to write and what to wait for
/// (docs/recipes.md); it takes an IOMMU, which keeps a recipe that is wrong from other memory.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A PCI address, the path of a vfio-user socket, or `model`
    #[arg(value_name = "DEVICE")]
    device: String,
    #[command(flatten)]
    reach: DeviceArg,
    /// What to write to the card, and what to wait for
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Bytes to move, with K, M or G [default: 64K with a recipe, else as `run`]
    #[arg(long, value_parser = parse_length)]
    size: Option<u64>,
    /// Which placement the buffers get [default: auto]
    #[arg(long, value_enum)]
    placement: Option<PlacementArg>,
    /// Seed of the pattern that is moved [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What `loopback --recipe --json` prints. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
struct Outcome {
    device: String,
    iommu: String,
    bytes: u64,
    transfers: u64,
    nanoseconds: u64,
    /// Where the buffers were placed and what was tried; `null` for a side that the recipe does
    /// not name.
    source: Option<Report>,
    target: Option<Report>,
    /// What the buffers held then, in words.
    verdict: String,
    passed: bool,
}

/// Runs the test.
///
/// # Errors
///
/// Fails when the card cannot be opened, the recipe makes no sense, a step does not end, or a byte
/// is wrong.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let Some(path) = &args.recipe else {
        let Args { device, reach, size, placement, seed, json, .. } = args;
        return run::run(&run::Args::plain(device, reach.clone(), *size, *placement, *seed, *json));
    };
    let interrupted = interrupted()?;
    args.reach.check(&args.device)?;
    let recipe = Recipe::read(path)?;
    let options = LoopbackOptions::new(usize::try_from(args.size.unwrap_or(64 << 10))?)
        .placement(args.placement.unwrap_or(PlacementArg::Auto).into())
        .seed(args.seed.unwrap_or(1));
    let model = || Ok(Embedded::new(IoatConfig::default())?.attach()?);
    let outcome = args.reach.open(&args.device, model, |mut device| {
        let done = recipe.run(&mut device, &options, &interrupted)?;
        let iommu = device.space().iommu().name().to_owned();
        Ok(Outcome::new(device.location().to_owned(), iommu, done))
    })?;
    let text =
        if args.json { serde_json::to_string_pretty(&outcome)? + "\n" } else { describe(&outcome) };
    output::print(&text)?;
    Ok(if outcome.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Outcome {
    fn new(device: String, iommu: String, done: Loopback) -> Outcome {
        Outcome {
            device,
            iommu,
            bytes: done.bytes,
            transfers: done.transfers,
            nanoseconds: u64::try_from(done.elapsed.as_nanos()).unwrap_or(u64::MAX),
            passed: done.verdict.passed(),
            verdict: words(&done.verdict),
            source: done.source,
            target: done.target,
        }
    }
}

fn words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Verified => "verified: every byte is right".into(),
        Verdict::Wrong(wrong) => format!(
            "WRONG: {wrong}; bytes that are as before were not reached: look at the address bits, \
             the length's unit and the order of the writes"
        ),
        Verdict::SourceWritten(wrong) => format!("WRONG: the card wrote to its source: {wrong}"),
        Verdict::Changed { bytes: 0 } => {
            "NOTHING of the target changed: look at the address, and at what starts the card".into()
        }
        Verdict::Changed { bytes } => {
            format!("{bytes} bytes of the target changed; the recipe has no source to compare with")
        }
        Verdict::NothingToCompare => {
            "the card was told where to read; the recipe has no target to compare with".into()
        }
        other => format!("{other:?}"),
    }
}

fn describe(outcome: &Outcome) -> String {
    let mut text = String::new();
    for (label, report) in [("source", &outcome.source), ("target", &outcome.target)] {
        if let Some(report) = report {
            text += &format!("{label}: {report}\n");
        }
    }
    let seconds = (outcome.nanoseconds as f64 / 1e9).max(1e-9);
    let transfers = if outcome.transfers == 1 { "transfer" } else { "transfers" };
    text += &format!(
        "{}: moved {} in {} {transfers} through {}, {}; {}\n",
        outcome.device,
        bytes(outcome.bytes),
        outcome.transfers,
        outcome.iommu,
        rate(outcome.bytes as f64 / seconds),
        outcome.verdict
    );
    text
}
