//! `vfio-dma irq`: whether interrupts arrive.

mod raise;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;
use vfio_dma::backend::IrqKind;
use vfio_dma::device::{Device, DeviceError};
use vfio_dma::irq::{IrqError, Vector};
use vfio_dma::pci::config::Command;
use vfio_dma::registers::RegisterFile;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

use super::open::DeviceArg;
use super::remedy::explain;
use super::{Failure, interrupted, output};
use raise::Raise;

/// How long a vector that the kernel triggered may take.
const LOOPBACK_LIMIT: Duration = Duration::from_secs(2);
/// Vectors that are enabled unless more are asked for.
const DEFAULT_VECTORS: u32 = 64;
/// The kinds, the best first.
const KINDS: [IrqKind; 3] = [IrqKind::MsiX, IrqKind::Msi, IrqKind::Intx];

/// Show the interrupt vectors of a card, and test whether interrupts arrive
///
/// Opens the card through VFIO, which resets it. Without an option: each vector is triggered by
/// the kernel, without the card (the loopback test of VFIO). With --wait and --watch bus mastering
/// is on, without which a card sends no messages.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A PCI address, the path of a vfio-user socket, or `model`
    #[arg(value_name = "DEVICE")]
    device: String,
    #[command(flatten)]
    reach: DeviceArg,
    /// The kind of interrupt [default: each; with --wait and --watch the best that there is]
    #[arg(long, value_enum)]
    kind: Option<KindArg>,
    /// At most so many vectors
    #[arg(long, value_name = "N", default_value_t = DEFAULT_VECTORS,
          value_parser = clap::value_parser!(u32).range(1..=2048))]
    vectors: u32,
    /// Wait so many seconds for an interrupt of the card
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait: Option<u64>,
    /// Show how many arrive each second, until Ctrl-C
    #[arg(long, conflicts_with_all = ["wait", "json"])]
    watch: bool,
    /// With --watch: end after so many seconds
    #[arg(long = "for", value_name = "SECONDS", requires = "watch",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    limit: Option<u64>,
    /// A register to write that has the card raise an interrupt, BAR:REGISTER=VALUE; with --watch
    /// before each second
    #[arg(long, value_name = "WRITE")]
    raise: Vec<Raise>,
    /// A file that names the card's registers and their fields (docs/registers.md)
    #[arg(long, value_name = "FILE")]
    registers: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum KindArg {
    Intx,
    Msi,
    #[value(name = "msix")]
    MsiX,
}

impl From<KindArg> for IrqKind {
    fn from(kind: KindArg) -> IrqKind {
        match kind {
            KindArg::Intx => IrqKind::Intx,
            KindArg::Msi => IrqKind::Msi,
            KindArg::MsiX => IrqKind::MsiX,
        }
    }
}

/// What `irq --json` prints. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
struct Report {
    device: String,
    /// Each kind, with the loopback test unless `--wait` was given.
    kinds: Vec<Kind>,
    /// With `--wait`: what came.
    waited: Option<Waited>,
}

/// A kind of interrupt.
#[derive(Debug, Serialize)]
struct Kind {
    /// `INTx`, `MSI`, `MSI-X`.
    kind: String,
    /// Vectors that the card has.
    vectors: u32,
    /// The loopback test; `null` where it was not made.
    loopback: Option<Loopback>,
}

#[derive(Debug, Default, Serialize)]
struct Loopback {
    /// Vectors that could be enabled and were triggered.
    tested: u32,
    /// Those of them that arrived.
    arrived: u32,
    /// The numbers of those that did not.
    missing: Vec<u32>,
    /// Median time from trigger to arrival, in ns.
    median_ns: Option<u64>,
    /// Interrupts that came before the trigger, from the card.
    earlier: u64,
    /// Why the test ended early.
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Waited {
    kind: String,
    /// The vectors that fired, and how often.
    fired: Vec<(u32, u64)>,
    /// From the last write, or from the beginning, in ns.
    after_ns: u64,
}

/// Runs the tests that were asked for.
///
/// # Errors
///
/// Fails when the card cannot be opened, when a vector does not arrive, and when nothing comes in
/// the time allowed.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let stop = interrupted()?;
    args.reach.check(&args.device)?;
    let registers = match &args.registers {
        Some(path) => RegisterFile::read(path)?,
        None => RegisterFile::default(),
    };
    let raises: Vec<_> =
        args.raise.iter().map(|raise| raise.resolve(&registers)).collect::<Result<_, _>>()?;
    let model = || Ok(Embedded::new(IoatConfig::default())?.attach()?);
    args.reach.open(&args.device, model, |mut device| {
        let counts = KINDS.iter().map(|kind| Ok((*kind, device.vector_count(*kind)?)));
        let counts: Vec<(IrqKind, u32)> = counts.collect::<Result<_, DeviceError>>()?;
        if args.watch {
            let vectors = enable(args, &mut device, &counts)?;
            return watch(args, &device, &vectors, &raises, &stop);
        }
        if let Some(seconds) = args.wait {
            let vectors = enable(args, &mut device, &counts)?;
            return wait(args, &device, &counts, &vectors, &raises, (seconds, &stop));
        }
        test(args, &device, &counts)
    })
}

/// Enables vectors of the kind that is asked for, or the best that there is, and lets the card
/// send messages.
fn enable(
    args: &Args,
    device: &mut Device,
    counts: &[(IrqKind, u32)],
) -> Result<Vec<Vector>, Failure> {
    let best = || counts.iter().find(|(_, count)| *count > 0).map(|(kind, _)| *kind);
    let Some(kind) = args.kind.map(IrqKind::from).or_else(best) else {
        return Err(format!("{} has no interrupts of any kind", device.location()).into());
    };
    let vectors = device.vectors_up_to(kind, args.vectors)?;
    device.set_bus_master(true)?;
    Ok(vectors)
}

fn test(args: &Args, device: &Device, counts: &[(IrqKind, u32)]) -> Result<ExitCode, Failure> {
    let mut kinds = Vec::new();
    for (kind, vectors) in counts {
        let wanted = *vectors > 0 && args.kind.is_none_or(|only| IrqKind::from(only) == *kind);
        let loopback = wanted.then(|| loopback(device, *kind, args.vectors));
        kinds.push(Kind { kind: kind.to_string(), vectors: *vectors, loopback });
    }
    let failed = kinds
        .iter()
        .filter_map(|kind| kind.loopback.as_ref())
        .any(|loopback| loopback.error.is_some() || loopback.arrived < loopback.tested);
    print(args, Report { device: device.location().to_owned(), kinds, waited: None })?;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(args: &Args, report: Report) -> Result<(), Failure> {
    output::print(&if args.json {
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        text::compose(&report)
    })
}

/// Triggers each vector through the kernel.
fn loopback(device: &Device, kind: IrqKind, most: u32) -> Loopback {
    let mut found = Loopback::default();
    let mut times = Vec::new();
    let mut test = || -> Result<(), DeviceError> {
        for vector in device.vectors_up_to(kind, most)? {
            found.earlier += vector.take_count()?;
            let begin = Instant::now();
            vector.trigger()?;
            found.tested += 1;
            match vector.wait(LOOPBACK_LIMIT) {
                Ok(_) => {
                    times.push(begin.elapsed());
                    found.arrived += 1;
                }
                Err(IrqError::Timeout { .. }) => found.missing.push(vector.index()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    };
    let outcome = test();
    found.error = outcome.err().map(|error| explain(&error));
    times.sort();
    let median = times.get(times.len() / 2);
    found.median_ns = median.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    found
}

/// What fired since the last look; level-triggered lines may fire again then.
fn take(vectors: &[Vector]) -> Result<Vec<(u32, u64)>, IrqError> {
    let mut fired = Vec::new();
    for vector in vectors {
        let count = vector.take_count()?;
        if count > 0 {
            fired.push((vector.index(), count));
            vector.unmask()?;
        }
    }
    Ok(fired)
}

fn wait(
    args: &Args,
    device: &Device,
    counts: &[(IrqKind, u32)],
    vectors: &[Vector],
    raises: &[raise::Write],
    (seconds, stop): (u64, &AtomicBool),
) -> Result<ExitCode, Failure> {
    raise::write(device, raises)?;
    let begin = Instant::now();
    let limit = Duration::from_secs(seconds);
    let kind = vectors.first().map_or(IrqKind::Intx, Vector::kind);
    let fired = loop {
        let fired = take(vectors)?;
        let is_over = begin.elapsed() >= limit || stop.load(Ordering::SeqCst);
        if !fired.is_empty() || is_over {
            break fired;
        }
        std::thread::sleep(Duration::from_micros(200));
    };
    if fired.is_empty() && stop.load(Ordering::SeqCst) {
        return Err("interrupted".into());
    }
    let after_ns = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
    if fired.is_empty() {
        return Err(nothing_came(device, vectors, seconds));
    }
    let kinds = counts.iter().map(|(kind, vectors)| Kind {
        kind: kind.to_string(),
        vectors: *vectors,
        loopback: None,
    });
    let waited = Some(Waited { kind: kind.to_string(), fired, after_ns });
    let report = Report { device: device.location().to_owned(), kinds: kinds.collect(), waited };
    print(args, report)?;
    Ok(ExitCode::SUCCESS)
}

/// Tells the card's part of the way from the kernel's.
fn nothing_came(device: &Device, vectors: &[Vector], seconds: u64) -> Failure {
    let kind = vectors.first().map_or(IrqKind::Intx, Vector::kind);
    let arrives = vectors.first().is_some_and(|vector| {
        vector.trigger().is_ok() && vector.wait(LOOPBACK_LIMIT).is_ok_and(|count| count > 0)
    });
    let mut text = format!("no interrupt on {} {kind} vectors within {seconds} s", vectors.len());
    text += if arrives {
        "\n  the kernel's part works: vector 0 arrives when the kernel triggers it (the loopback \
         test)\n  remedy: have the card raise one (--raise), look at its masks and causes"
    } else {
        "\n  nor does vector 0 arrive when the kernel triggers it (the loopback test)\n  remedy: \
         the end of `dmesg` may say why"
    };
    match device.config().command() {
        Ok(command) if kind == IrqKind::Intx && command.contains(Command::INTERRUPT_DISABLE) => {
            text += "; the command register keeps the card from raising INTx";
        }
        Ok(command) if !command.contains(Command::BUS_MASTER) => {
            text += "; bus mastering is off, so that the card sends no messages";
        }
        _ => {}
    }
    text.into()
}

fn watch(
    args: &Args,
    device: &Device,
    vectors: &[Vector],
    raises: &[raise::Write],
    stop: &AtomicBool,
) -> Result<ExitCode, Failure> {
    let begin = Instant::now();
    let kind = vectors.first().map_or(IrqKind::Intx, Vector::kind);
    output::print(&format!("{}: {} {kind} vectors\n", device.location(), vectors.len()))?;
    let mut last = begin;
    let is_over = |begin: Instant| {
        args.limit.is_some_and(|limit| begin.elapsed() >= Duration::from_secs(limit))
    };
    while !stop.load(Ordering::SeqCst) && !is_over(begin) {
        raise::write(device, raises)?;
        while last.elapsed() < Duration::from_secs(1) && !stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let fired = take(vectors)?;
        output::print(&text::rates(begin.elapsed(), last.elapsed(), &fired))?;
        last = Instant::now();
    }
    Ok(ExitCode::SUCCESS)
}
