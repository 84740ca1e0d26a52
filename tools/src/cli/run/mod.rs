//! `vfio-dma run`: drives a device once, verifies what it did, and says how it went.

mod edu;
mod ioat;
mod nvme;
mod testdev;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use vfio_dma::device::Device;
use vfio_dma::devices::edu::{Completion, Edu};
use vfio_dma::devices::ioat::Ioat;
use vfio_dma::devices::nvme::Nvme;
use vfio_dma::devices::pci_testdev::PciTestdev;
use vfio_dma::devices::{Driver, PciDriver};
use vfio_dma::dma::Placement;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::{FaultPlan, IoatConfig, Stats};

use edu::EduOutcome;
use ioat::IoatOutcome;
pub(super) use ioat::{Copied, Cost, copy};
use nvme::NvmeOutcome;
use testdev::TestdevOutcome;

use super::open::{DeviceArg, MODEL};
use super::size::parse_size;
use super::{Failure, interrupted, output};

/// Drive a device: move data and verify every byte (edu, ioat, nvme), or run the device's own
/// tests (pci-testdev). A drive is read only, unless it is named to be written
#[derive(Debug, clap::Args)]
pub struct Args {
    /// PCI address of a device that is bound to vfio-pci, such as 0000:00:05.0, or its directory
    /// in sysfs; the path of a vfio-user socket; or `model`: the I/OAT model in this process
    #[arg(value_name = "DEVICE")]
    device: String,
    /// Bytes to move, with K, M or G; 64K for edu, which is slow, 64M for ioat,
    /// and 16M for nvme
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// Which placement the buffers get
    #[arg(long, value_enum, default_value_t = PlacementArg::Auto)]
    placement: PlacementArg,
    #[command(flatten)]
    reach: DeviceArg,
    /// How completion is learnt (edu)
    #[arg(long, value_enum, default_value_t = CompletionArg::Msi)]
    completion: CompletionArg,
    /// Address bits that the device drives: edu's property dma_mask
    #[arg(long, default_value_t = 28, value_parser = clap::value_parser!(u32).range(12..=64))]
    address_bits: u32,
    /// Seed of the pattern that is moved
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Matching writes of each test (pci-testdev)
    #[arg(long, default_value_t = 1000)]
    writes: u32,
    /// Seconds that the device may take for one piece of 4 KiB (edu) or a transfer (ioat, nvme)
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// The namespace to read (nvme); the first by default
    #[arg(long, value_name = "N")]
    namespace: Option<u32>,
    /// Write to the drive with this serial number too (nvme): its first blocks are lost. A drive
    /// with a partition table, a file system or the like on it is refused
    #[arg(long, value_name = "SERIAL")]
    destroy_data_on: Option<String>,
    /// Write also when there is a partition table, a file system or the like on the drive
    #[arg(long, requires = "destroy_data_on")]
    overwrite_signatures: bool,
    /// What is to go wrong with the model in this process; docs/ioat-model.md has the grammar
    #[arg(long, value_name = "SPEC")]
    fault: Option<FaultPlan>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PlacementArg {
    /// Contiguous where that can be had, scatter/gather otherwise
    Auto,
    /// One segment, or an error
    Contiguous,
    /// Scatter/gather at once, in pages that are not neighbours
    Sg,
}

impl From<PlacementArg> for Placement {
    fn from(arg: PlacementArg) -> Placement {
        match arg {
            PlacementArg::Auto => Placement::Auto,
            PlacementArg::Contiguous => Placement::Contiguous,
            PlacementArg::Sg => Placement::ScatterGather,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum CompletionArg {
    Msi,
    Intx,
    Polled,
}

impl From<CompletionArg> for Completion {
    fn from(arg: CompletionArg) -> Completion {
        match arg {
            CompletionArg::Msi => Completion::Msi,
            CompletionArg::Intx => Completion::Intx,
            CompletionArg::Polled => Completion::Polled,
        }
    }
}

/// The result of `vfio-dma run --json`: one object, tagged by the kind of device.
#[derive(Debug, Serialize)]
#[serde(tag = "device", rename_all = "kebab-case")]
enum Outcome {
    Edu(Box<EduOutcome>),
    PciTestdev(TestdevOutcome),
    Ioat(Box<IoatOutcome>),
    Nvme(Box<NvmeOutcome>),
}

/// Runs the subcommand.
///
/// # Errors
///
/// Fails when the device cannot be opened or driven, or a byte is wrong.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    // The flag is set up before anything is changed, so that Ctrl-C undoes it.
    let interrupted = interrupted()?;
    if args.fault.is_some() && args.device != MODEL {
        let text = "--fault is for the DEVICE model, whose faults it names\n";
        clap::Error::raw(clap::error::ErrorKind::ArgumentConflict, text).exit();
    }
    let mut model = None;
    let make = || {
        let faults = args.fault.clone().unwrap_or_default();
        let made = Embedded::new(IoatConfig { faults, ..IoatConfig::default() })?;
        model = Some(Arc::clone(&made));
        Ok(made.attach()?)
    };
    let outcome = args
        .reach
        .drive(&args.device, make, |driver, device| drive(args, driver, device, &interrupted));
    if let Some(model) = model {
        let Stats { descriptors, memory, .. } = model.function().stats();
        let late = memory.refused_not_mapped;
        log::info!("the model did {descriptors} descriptors, {late} accesses came too late");
    }
    let outcome = outcome?;
    let text = if args.json { serde_json::to_string_pretty(&outcome)? } else { outcome.describe() };
    output::print(&format!("{text}\n"))?;
    Ok(if outcome.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What runs a device of one driver.
type Run = fn(&Args, Device, &AtomicBool) -> Result<Outcome, Failure>;

/// By the driver's name.
const RUNS: [(&str, Run); 4] = [
    (Edu::NAME, |args, device, stop| Ok(Outcome::Edu(Box::new(edu::run(args, device, stop)?)))),
    (Ioat::NAME, |args, device, stop| Ok(Outcome::Ioat(Box::new(ioat::run(args, device, stop)?)))),
    (Nvme::NAME, |args, device, stop| Ok(Outcome::Nvme(Box::new(nvme::run(args, device, stop)?)))),
    (PciTestdev::NAME, |args, device, _| Ok(Outcome::PciTestdev(testdev::run(args, device)?))),
];

fn drive(
    args: &Args,
    driver: &Driver,
    device: Device,
    stop: &AtomicBool,
) -> Result<Outcome, Failure> {
    match RUNS.iter().find(|(name, _)| *name == driver.name) {
        Some((_, run)) => run(args, device, stop),
        None => Err(format!("there is no run for {driver}").into()),
    }
}

impl Outcome {
    fn describe(&self) -> String {
        match self {
            Outcome::Edu(edu) => edu::describe(edu),
            Outcome::PciTestdev(testdev) => testdev::describe(testdev),
            Outcome::Ioat(ioat) => ioat::describe(ioat),
            Outcome::Nvme(nvme) => nvme::describe(nvme),
        }
    }

    /// Whether everything was right; transfers that were not are errors already.
    fn passed(&self) -> bool {
        match self {
            Outcome::Edu(_) | Outcome::Ioat(_) | Outcome::Nvme(_) => true,
            Outcome::PciTestdev(testdev) => testdev.passed,
        }
    }
}
