//! `vfio-dma run`: drives a device once, verifies what it did, and says how it went.

mod edu;
mod faults;
mod ioat;
mod litepcie;
mod nvme;
mod testdev;

use std::cell::Cell;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde::Serialize;
use vfio_dma::device::Device;
use vfio_dma::devices::edu::{Completion, Edu};
use vfio_dma::devices::ioat::{Ioat, Stats};
use vfio_dma::devices::litepcie::LitePcie;
use vfio_dma::devices::nvme::Nvme;
use vfio_dma::devices::pci_testdev::PciTestdev;
use vfio_dma::devices::{Driver, PciDriver};
use vfio_dma::dma::Placement;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

use edu::EduOutcome;
pub(super) use faults::{FaultArg, fired_rules};
use faults::{FaultReport, Seen};
use ioat::IoatOutcome;
pub(super) use ioat::{Copied, Cost, copy};
use litepcie::LitePcieOutcome;
use nvme::NvmeOutcome;
use testdev::TestdevOutcome;

use super::open::{DeviceArg, MODEL};
use super::size::parse_length;
use super::{Failure, interrupted, output, usage};

/// Drive a device: move data and verify every byte (edu, ioat, litepcie, nvme), or run the
/// device's own tests (pci-testdev). A drive is read only, unless it is named to be written
#[derive(Debug, clap::Args)]
pub struct Args {
    /// PCI address of a device that is bound to vfio-pci, such as 0000:00:05.0, or its directory
    /// in sysfs; the path of a vfio-user socket; `model`: the I/OAT model in this process; or
    /// `litepcie`, with properties: LitePCIe's gateware, simulated in this process
    #[arg(value_name = "DEVICE")]
    device: String,
    /// Bytes to move, with K, M or G: edu, which is slow, ioat, litepcie and nvme [default: 64K
    /// for edu, 4M for litepcie, 64M for ioat, 16M for nvme]
    #[arg(long, value_parser = parse_length)]
    size: Option<u64>,
    /// Which placement the buffers get: edu, ioat, litepcie, nvme [default: auto]
    #[arg(long, value_enum)]
    placement: Option<PlacementArg>,
    #[command(flatten)]
    reach: DeviceArg,
    /// How completion is learnt: edu [default: msi]
    #[arg(long, value_enum)]
    completion: Option<CompletionArg>,
    /// Address bits that the device drives, edu's property dma_mask: edu [default: 28]
    #[arg(long, value_name = "BITS", value_parser = clap::value_parser!(u32).range(12..=64))]
    address_bits: Option<u32>,
    /// Seed of the pattern that is moved: edu, ioat, litepcie, nvme [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// Matching writes of each test: pci-testdev [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST_WRITES))]
    writes: Option<u32>,
    /// Seconds that the device may take for one piece of 4 KiB (edu) or a transfer (ioat,
    /// litepcie, nvme) [default: 5]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: Option<u64>,
    /// The namespace to read: nvme [default: the first]
    #[arg(long, value_name = "N")]
    namespace: Option<u32>,
    /// Write to the drive with this serial number too: nvme. Its first blocks are lost. A drive
    /// with a partition table, a file system or the like on it is refused
    #[arg(long, value_name = "SERIAL")]
    destroy_data_on: Option<String>,
    /// Write also when there is a partition table, a file system or the like on the drive
    #[arg(long, requires = "destroy_data_on")]
    overwrite_signatures: bool,
    /// What is to go wrong with the model in this process; docs/ioat-model.md has the grammar
    #[arg(long, value_name = "SPEC")]
    fault: Option<FaultArg>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// The most writes of a test: some minutes in a guest.
const MOST_WRITES: i64 = 10_000_000;

impl Args {
    /// A run with the options that every engine has.
    pub(super) fn plain(
        device: &str,
        reach: DeviceArg,
        size: Option<u64>,
        placement: Option<PlacementArg>,
        seed: Option<u64>,
        json: bool,
    ) -> Args {
        Args {
            device: device.to_owned(),
            size,
            placement,
            reach,
            completion: None,
            address_bits: None,
            seed,
            writes: None,
            timeout: None,
            namespace: None,
            destroy_data_on: None,
            overwrite_signatures: false,
            fault: None,
            json,
        }
    }

    /// Refuses options that the driver has no use for.
    fn check(&self, driver: &str) -> Result<(), Failure> {
        let copies: &[&str] = &[Edu::NAME, Ioat::NAME, LitePcie::NAME, Nvme::NAME];
        let options: [(&str, bool, &[&str]); 9] = [
            ("--namespace", self.namespace.is_some(), &[Nvme::NAME]),
            ("--destroy-data-on", self.destroy_data_on.is_some(), &[Nvme::NAME]),
            ("--size", self.size.is_some(), copies),
            ("--placement", self.placement.is_some(), copies),
            ("--seed", self.seed.is_some(), copies),
            ("--timeout", self.timeout.is_some(), copies),
            ("--completion", self.completion.is_some(), &[Edu::NAME]),
            ("--address-bits", self.address_bits.is_some(), &[Edu::NAME]),
            ("--writes", self.writes.is_some(), &[PciTestdev::NAME]),
        ];
        match options.iter().find(|(_, given, drivers)| *given && !drivers.contains(&driver)) {
            Some((option, _, drivers)) => Err(usage(format!(
                "{option} is for {}: {} is driven by {driver}",
                drivers.join(" and "),
                self.device
            ))),
            None => Ok(()),
        }
    }

    fn placement(&self) -> Placement {
        self.placement.unwrap_or(PlacementArg::Auto).into()
    }

    fn seed(&self) -> u64 {
        self.seed.unwrap_or(1)
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.unwrap_or(5))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum PlacementArg {
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
    Litepcie(Box<LitePcieOutcome>),
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
        return Err(usage("--fault is for the DEVICE model, whose faults it names"));
    }
    args.reach.check(&args.device)?;
    let mut model = None;
    let make = || {
        let faults = args.fault.as_ref().map(|fault| fault.plan.clone()).unwrap_or_default();
        let made = Embedded::new(IoatConfig { faults, ..IoatConfig::default() })?;
        model = Some(Arc::clone(&made));
        Ok(made.attach()?)
    };
    let context = Context { stop: &interrupted, stats: Cell::new(None) };
    let outcome = args
        .reach
        .drive(&args.device, make, |driver, device| drive(args, driver, device, &context));
    let Some(model) = model else {
        let outcome = outcome?;
        output::print(&shown(args, &outcome, outcome.describe())?)?;
        return Ok(if outcome.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    };
    let counts = model.function().stats();
    let (descriptors, late) = (counts.descriptors, counts.memory.refused_not_mapped);
    log::info!("the model did {descriptors} descriptors, {late} accesses came too late");
    let failure = outcome.as_ref().err().map(ToString::to_string);
    let faults = args.fault.as_ref().map_or(Vec::new(), |asked| {
        let seen = Seen { stats: context.stats.get(), failure: failure.as_deref() };
        faults::report(asked, &model.function().faults_fired(), seen)
    });
    let never = faults::never(&faults, descriptors);
    let said = faults::describe(&faults);
    let text = match &outcome {
        Ok(outcome) => {
            let report = Report { outcome, faults };
            shown(args, &report, format!("{said}{}", outcome.describe()))?
        }
        // Without faults there is nothing but the failure to tell.
        Err(_) if faults.is_empty() => String::new(),
        Err(_) => {
            let failed = failure.unwrap_or_default();
            let report = Failed { device: Ioat::NAME, failed, verified: false, faults };
            shown(args, &report, said.trim_end().to_owned())?
        }
    };
    output::print(&text)?;
    outcome?;
    match never {
        Some(never) => Err(never.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// An outcome as JSON or text, with a line's end.
fn shown(args: &Args, outcome: &impl Serialize, text: String) -> Result<String, Failure> {
    let text = if args.json { serde_json::to_string_pretty(outcome)? } else { text };
    Ok(text + "\n")
}

/// An outcome on the model, with what the faults that were asked for came to.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    outcome: &'a Outcome,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    faults: Vec<FaultReport>,
}

/// A run on the model that a fault ended.
#[derive(Debug, Serialize)]
struct Failed {
    device: &'static str,
    /// Why.
    failed: String,
    verified: bool,
    faults: Vec<FaultReport>,
}

/// What a run is given, and what it leaves behind even when it fails.
struct Context<'a> {
    /// Set when the user has had enough.
    stop: &'a AtomicBool,
    /// What the driver of I/OAT counted.
    stats: Cell<Option<Stats>>,
}

/// A number of things: `1 segment`, `2 segments`.
fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What runs a device of one driver.
type Run = fn(&Args, Device, &Context<'_>) -> Result<Outcome, Failure>;

/// By the driver's name.
const RUNS: [(&str, Run); 5] = [
    (Edu::NAME, |args, device, with| {
        Ok(Outcome::Edu(Box::new(edu::run(args, device, with.stop)?)))
    }),
    (Ioat::NAME, |args, device, with| Ok(Outcome::Ioat(Box::new(ioat::run(args, device, with)?)))),
    (LitePcie::NAME, |args, device, with| {
        Ok(Outcome::Litepcie(Box::new(litepcie::run(args, device, with.stop)?)))
    }),
    (Nvme::NAME, |args, device, with| {
        Ok(Outcome::Nvme(Box::new(nvme::run(args, device, with.stop)?)))
    }),
    (PciTestdev::NAME, |args, device, _| Ok(Outcome::PciTestdev(testdev::run(args, device)?))),
];

fn drive(
    args: &Args,
    driver: &Driver,
    device: Device,
    context: &Context<'_>,
) -> Result<Outcome, Failure> {
    args.check(driver.name)?;
    match RUNS.iter().find(|(name, _)| *name == driver.name) {
        Some((_, run)) => run(args, device, context),
        None => Err(format!("there is no run for {driver}").into()),
    }
}

impl Outcome {
    fn describe(&self) -> String {
        match self {
            Outcome::Edu(edu) => edu::describe(edu),
            Outcome::PciTestdev(testdev) => testdev::describe(testdev),
            Outcome::Ioat(ioat) => ioat::describe(ioat),
            Outcome::Litepcie(card) => litepcie::describe(card),
            Outcome::Nvme(nvme) => nvme::describe(nvme),
        }
    }

    /// Whether everything was right; transfers that were not are errors already.
    fn passed(&self) -> bool {
        match self {
            Outcome::Edu(_) | Outcome::Ioat(_) | Outcome::Litepcie(_) | Outcome::Nvme(_) => true,
            Outcome::PciTestdev(testdev) => testdev.passed,
        }
    }
}
