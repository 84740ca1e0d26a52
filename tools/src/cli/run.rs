//! `vfio-dma run`: drives a device once, verifies what it did, and says how it went.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use vfio_dma::backend::vfio::Access;
use vfio_dma::device::Device;
use vfio_dma::devices::edu::{Completion, Config, Edu};
use vfio_dma::devices::pci_testdev::{Membar, PciTestdev, TestResult};
use vfio_dma::devices::{Driver, recognise};
use vfio_dma::dma::{Direction, Pattern, Report};
use vfio_dma::pci::{Address, Sysfs};
use vfio_dma::session::Session;

use super::size::parse_size;
use super::{Failure, interrupted, output};

/// Moves data both ways and verifies every byte (edu), or runs the device's own tests
/// (pci-testdev).
#[derive(Debug, clap::Args)]
pub struct Args {
    /// PCI address of a device that is bound to vfio-pci, such as 0000:00:05.0
    #[arg(value_name = "BDF")]
    device: String,
    /// Bytes to move each way; takes K, M, G (edu)
    #[arg(long, default_value = "64K", value_parser = parse_size)]
    size: u64,
    /// How completion is learnt (edu)
    #[arg(long, value_enum, default_value_t = CompletionArg::Msi)]
    completion: CompletionArg,
    /// Address bits that the device drives: edu's property dma_mask
    #[arg(long, default_value_t = 28, value_parser = clap::value_parser!(u32).range(12..=64))]
    address_bits: u32,
    /// Seed of the pattern that is moved (edu)
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Matching writes of each test (pci-testdev)
    #[arg(long, default_value_t = 1000)]
    writes: u32,
    /// How the device is reached; auto takes type1 or else iommufd, never noiommu
    #[arg(long, value_enum, default_value_t = IommuArg::Auto)]
    iommu: IommuArg,
    /// Seconds that the device may take for one piece of 4 KiB (edu)
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    /// Bind the device to vfio-pci first, and restore its driver afterwards
    #[arg(long)]
    bind: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum IommuArg {
    Auto,
    /// The IOMMU group, in a VFIO container
    Type1,
    /// The device's own character device, in an address space of iommufd
    Iommufd,
    /// VFIO's no-IOMMU mode: the device can reach all memory
    Noiommu,
}

impl From<IommuArg> for Access {
    fn from(arg: IommuArg) -> Access {
        match arg {
            IommuArg::Auto => Access::Auto,
            IommuArg::Type1 => Access::Type1,
            IommuArg::Iommufd => Access::Iommufd,
            IommuArg::Noiommu => Access::NoIommu,
        }
    }
}

/// The result of `vfio-dma run --json`: one object, tagged by the kind of device.
#[derive(Debug, Serialize)]
#[serde(tag = "device", rename_all = "kebab-case")]
enum Outcome {
    Edu(Box<EduOutcome>),
    PciTestdev(TestdevOutcome),
}

#[derive(Debug, Serialize)]
struct EduOutcome {
    address: Address,
    version: String,
    /// Bytes moved to the device, and as many back.
    bytes: u64,
    completion: Completion,
    address_bits: u32,
    iommu: String,
    /// Where the buffers were placed and what was tried.
    source: Report,
    target: Report,
    nanoseconds: u64,
    /// Bytes that went to the device and back, for each second.
    bytes_per_second: u64,
    verified: bool,
}

#[derive(Debug, Serialize)]
struct TestdevOutcome {
    address: Address,
    passed: bool,
    tests: Vec<TestResult>,
    membar: Option<Membar>,
}

/// Runs the subcommand.
///
/// # Errors
///
/// Fails when the device cannot be opened or driven, or a byte is wrong.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let address: Address = args.device.parse()?;
    let sysfs = Sysfs::new();
    let info = sysfs.device(address)?;
    let Some(known) = recognise(info.vendor, info.device) else {
        return Err(format!(
            "{} is {:04x}:{:04x}, which is not a device that vfio-dma drives\n  remedy: `vfio-dma \
             list` marks those it drives",
            address, info.vendor, info.device
        )
        .into());
    };
    // The flag is set up before anything is changed, so that Ctrl-C undoes it.
    let interrupted = interrupted()?;
    let binding = if args.bind { Some(sysfs.bind(address)?) } else { None };
    let result = drive(args, address, known.driver, &interrupted);
    if let Some(binding) = &binding {
        sysfs.restore(binding)?;
    }
    let (outcome, status) = result?;
    let text = if args.json { serde_json::to_string_pretty(&outcome)? } else { describe(&outcome) };
    output::print(&format!("{text}\n"))?;
    Ok(status)
}

fn drive(
    args: &Args,
    address: Address,
    driver: Driver,
    interrupted: &AtomicBool,
) -> Result<(Outcome, ExitCode), Failure> {
    let device = Session::through(args.iommu.into()).open(address)?;
    match driver {
        Driver::Edu => {
            let outcome = run_edu(args, address, device, interrupted)?;
            Ok((Outcome::Edu(Box::new(outcome)), ExitCode::SUCCESS))
        }
        Driver::PciTestdev => {
            let outcome = run_testdev(args, address, device)?;
            let status = if outcome.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            Ok((Outcome::PciTestdev(outcome), status))
        }
        other => Err(format!("{address} is {other}, which this command does not run").into()),
    }
}

/// Bytes copied between two looks at Ctrl-C.
const STRIDE: usize = 16 << 10;

fn run_edu(
    args: &Args,
    address: Address,
    device: Arc<Device>,
    interrupted: &AtomicBool,
) -> Result<EduOutcome, Failure> {
    let config = Config {
        completion: args.completion.into(),
        address_bits: args.address_bits,
        timeout: Duration::from_secs(args.timeout),
    };
    let len = usize::try_from(args.size)?;
    let mut edu = Edu::open(device, config)?;
    let (major, minor) = edu.version()?;
    let mut source = edu.allocate(len, Direction::ToDevice)?;
    let mut target = edu.allocate(len, Direction::FromDevice)?;
    let (sent, stale) = (Pattern::new(args.seed), Pattern::new(!args.seed));
    sent.fill(&mut source, 0, len, 0)?;
    // Bytes that are wrong everywhere, so that what the device leaves out shows.
    stale.fill(&mut target, 0, len, 0)?;

    let bar = progress(args.size);
    let begin = Instant::now();
    let mut done = 0;
    while done < len {
        if interrupted.load(Ordering::Relaxed) {
            return Err(format!("interrupted after {done} of {len} bytes").into());
        }
        let part = STRIDE.min(len - done);
        (source, target) = edu.copy(source, done, target, done, part)?.wait()?;
        done += part;
        bar.set_position(done as u64);
    }
    let elapsed = begin.elapsed();
    bar.finish_and_clear();

    sent.check(&target, 0, len, 0)?
        .map_err(|wrong| format!("{address}: what came back from the device is wrong: {wrong}"))?;
    sent.check(&source, 0, len, 0)?
        .map_err(|wrong| format!("{address}: the source was written to: {wrong}"))?;
    Ok(EduOutcome {
        address,
        version: format!("{major}.{minor}"),
        bytes: args.size,
        completion: config.completion,
        address_bits: config.address_bits,
        iommu: edu.device().space().iommu().name().to_string(),
        source: source.report().clone(),
        target: target.report().clone(),
        nanoseconds: u64::try_from(elapsed.as_nanos())?,
        bytes_per_second: (args.size as f64 / elapsed.as_secs_f64()) as u64,
        verified: true,
    })
}

fn progress(len: u64) -> ProgressBar {
    // indicatif draws on standard error, and only if that is a terminal.
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style)
}

fn run_testdev(
    args: &Args,
    address: Address,
    device: Arc<Device>,
) -> Result<TestdevOutcome, Failure> {
    let testdev = PciTestdev::open(device)?;
    let tests = testdev.run(args.writes)?;
    let membar = testdev.membar()?;
    let passed = tests.iter().all(TestResult::passed);
    Ok(TestdevOutcome { address, passed, tests, membar })
}

fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Edu(edu) => describe_edu(edu),
        Outcome::PciTestdev(testdev) => describe_testdev(testdev),
    }
}

fn describe_edu(edu: &EduOutcome) -> String {
    let how = match edu.completion {
        Completion::Msi => "by MSI",
        Completion::Intx => "by INTx",
        Completion::Polled => "polled",
    };
    let rate = edu.bytes_per_second as f64 / 1024.0;
    format!(
        "source: {}\ntarget: {}\n{} edu {}: moved {} bytes to the device and back through {}, \
         completion {how}, {rate:.1} KiB/s; placed contiguous; verified: every byte is right",
        edu.source, edu.target, edu.address, edu.version, edu.bytes, edu.iommu
    )
}

fn describe_testdev(testdev: &TestdevOutcome) -> String {
    let mut text = format!(
        "{:<4} {:<26} {:>5} {:<8} {:>8} {:>8} {:>8} result\n",
        "BAR", "test", "width", "access", "writes", "hits", "expected"
    );
    for test in &testdev.tests {
        let verdict = if test.passed() { "pass" } else { "FAIL" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<4} {:<26} {:>5} {:<8} {:>8} {:>8} {:>8} {verdict}",
            test.bar,
            test.name,
            test.width,
            test.access.to_string(),
            test.writes,
            test.hits,
            test.expected
        );
    }
    match testdev.membar {
        Some(membar) => {
            let Membar { size, mapped } = membar;
            let _ = writeln!(text, "BAR2 membar: {size} bytes, {mapped} of them mapped");
        }
        None => text.push_str("BAR2 membar: not there\n"),
    }
    let failed = testdev.tests.iter().filter(|test| !test.passed()).count();
    let passed = testdev.tests.len() - failed;
    let _ = write!(text, "{} pci-testdev: {passed} passed, {failed} failed", testdev.address);
    text
}
