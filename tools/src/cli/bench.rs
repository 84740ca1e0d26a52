//! `vfio-dma bench`: contiguous against scatter/gather transfers, measured.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::ioat::Ioat;
use vfio_dma::devices::litepcie::LitePcie;
use vfio_dma::devices::nvme::Nvme;
use vfio_dma::devices::{Driver, Identity, PciDriver as _};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;
use vfio_dma_model::link::LinkConfig;

use super::open::{DeviceArg, known, simulated};
use super::size::{parse_size, typed};
use super::{Failure, interrupted, output, usage};
use crate::bench::compare::{Verdict, compare};
use crate::bench::plan::{LONGEST, MOST_BATCH, PlanOptions, SLICE};
use crate::bench::profile::Profile;
use crate::bench::results::{ClockInfo, Results, SCHEMA};
use crate::bench::{self, BenchError, Clock, Kind, Options, Output, Outputs, csv, report, table};
use crate::rtl::is_description;
use crate::vm;

/// Measure contiguous against scatter/gather transfers, batches, channels and latency, with
/// the processor's own copy in the same rounds
#[derive(Debug, clap::Args)]
pub struct Args {
    /// PCI address of a device that is bound to vfio-pci, such as 0000:00:05.0, or its directory
    /// in sysfs; the path of a vfio-user socket; `model`: the I/OAT model in this process; or
    /// `litepcie`, with properties: LitePCIe's gateware, simulated in this process, which is
    /// counted in cycles too
    #[arg(value_name = "DEVICE", required_unless_present = "compare", conflicts_with = "compare")]
    device: Option<String>,
    /// Measure nothing: tell what changed between two files of --json beyond the noise
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], conflicts_with_all = [
        "csv", "report", "plot", "bind", "iommu", "vf_token", "link", "profile", "rounds", "slice", "sizes",
        "segments", "batches", "channels", "seed", "timeout",
    ])]
    compare: Option<Vec<PathBuf>>,
    /// With --compare: exit with 1 when a figure is worse by more than so many per cent, beyond
    /// the noise
    #[arg(long, value_name = "PERCENT", requires = "compare", conflicts_with = "device", value_parser = clap::value_parser!(u32).range(0..=1000))]
    fail_if_worse: Option<u32>,
    /// How much is measured
    #[arg(long, value_enum, default_value_t = Profile::Quick)]
    profile: Profile,
    /// Rounds, in each of which every variant has its turn, at least 10; 10 for quick, 20 for
    /// full
    #[arg(long, value_parser = clap::value_parser!(u32).range(10..=10_000))]
    rounds: Option<u32>,
    /// Milliseconds for each variant in a round
    #[arg(long, value_name = "MS", default_value_t = SLICE.as_millis() as u64, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    slice: u64,
    /// Transfer sizes instead of the profile's, 1 byte to 64M
    #[arg(long = "size", value_name = "SIZE,...", value_delimiter = ',', value_parser = parse_transfer)]
    sizes: Option<Vec<u64>>,
    /// Segment sizes instead of the profile's; contiguous is always measured
    #[arg(long = "segment", value_name = "SIZE|contiguous,...", value_delimiter = ',', value_parser = parse_segment)]
    segments: Option<Vec<Segment>>,
    /// Transfers for each doorbell, 1 to 1024, instead of the profile's
    #[arg(long = "batch", value_name = "N,...", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_BATCH)))]
    batches: Option<Vec<u32>>,
    /// The most channels at once; all that the device has otherwise
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    channels: Option<u32>,
    /// Seed of the data, of the order of segments and of the variants in each round
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds for which no transfer may end
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    timeout: u64,
    #[command(flatten)]
    reach: DeviceArg,
    /// Link that the transfers are calculated for [default: gen3x8]
    #[arg(long, value_name = "gen3x8[,mps=BYTES,mrrs=BYTES,addr=64|32,ecrc=0|1]")]
    link: Option<LinkConfig>,
    /// Write everything that was found as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a row for each figure as CSV
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write one page with plots, which needs nothing else
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Write the plot of throughput over segment size
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

/// Channels of the model in this process.
const CHANNELS: u8 = 4;

/// Bytes of a segment; `None` is contiguous. A type of its own, for an `Option` on the
/// command line is an option that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment(Option<u64>);

fn parse_transfer(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(size) if (1..=LONGEST).contains(&size) => Ok(size),
        Ok(_) => Err("a transfer has 1 byte to 64M".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_segment(text: &str) -> Result<Segment, String> {
    match text {
        "contiguous" => Ok(Segment(None)),
        _ => match parse_size(text) {
            Ok(size) if (1..LONGEST).contains(&size) => Ok(Segment(Some(size))),
            Ok(_) => Err("a segment has at least 1 byte and less than 64M".to_owned()),
            Err(error) => Err(format!("{error}; or `contiguous`")),
        },
    }
}

/// Runs the subcommand.
///
/// # Errors
///
/// Fails when the device cannot be opened or fails in the middle, a byte is wrong, or a file
/// cannot be written. What was measured until then is printed and written all the same.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    if let Some([before, after]) = args.compare.as_deref() {
        return changes(before, after, args.json.as_deref(), args.fail_if_worse);
    }
    let device = args.device.as_deref().ok_or("no DEVICE is given")?;
    args.reach.check(device)?;
    // Files that cannot be written are found out before the measurement, not after it.
    let mut outputs = Outputs::default();
    for (path, kind) in [
        (&args.json, json as Kind),
        (&args.csv, csv::to_csv),
        (&args.report, report::page),
        (&args.plot, report::plot),
    ] {
        outputs.add(path.as_deref(), kind).map_err(in_options)?;
    }
    outputs.iter().for_each(warn_of_memory);
    // The flag is set up before anything is changed, so that Ctrl-C undoes it.
    let interrupted = interrupted()?;
    let model = || {
        let config = IoatConfig { channels: CHANNELS, ..IoatConfig::default() };
        Ok(Embedded::new(config)?.attach()?)
    };
    let options = Options {
        plan: PlanOptions {
            profile: args.profile,
            sizes: args.sizes.clone(),
            segments: args.segments.as_ref().map(|list| list.iter().map(|s| s.0).collect()),
            batches: args.batches.clone(),
            channels: args.channels,
        },
        rounds: args.rounds.unwrap_or_else(|| args.profile.rounds()),
        slice: Duration::from_millis(args.slice),
        seed: args.seed,
        timeout: Duration::from_secs(args.timeout),
        link: args.link.unwrap_or_default(),
    };
    let measure = |driver: &'static Driver, device, clock: Option<&Clock>| {
        check(args, driver)?;
        let results =
            bench::run(&options, driver, device, &interrupted, clock).map_err(in_options)?;
        // Before the device's driver is restored, which may fail.
        let mut failures: Vec<Failure> =
            outputs.write(&results).into_iter().map(Failure::from).collect();
        failures.extend(output::print(&table(&results)).err());
        failures.extend(results.ended_early.map(Failure::from));
        if failures.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        let texts: Vec<String> = failures.iter().map(ToString::to_string).collect();
        Err(texts.join("\n").into())
    };
    if !is_description(device) {
        return args.reach.drive(device, model, |driver, device| measure(driver, device, None));
    }
    // Whose cycles can be counted.
    let (config, model) = simulated(device)?;
    let info =
        ClockInfo { bus_width: config.bus_width(), host_latency: config.function.root.latency };
    let opened = Device::open(model.attach()?)?;
    let clock = Clock { info, stats: Box::new(move || model.function().stats()) };
    let driver = known(opened.location(), &Identity::of(&opened)?)?;
    measure(driver, opened, Some(&clock))
}

/// An error of what was asked for, in the words of this command's options.
fn in_options(error: BenchError) -> Failure {
    usage(match error {
        BenchError::TooManyChannels { asked, channels } => {
            format!("--channels {asked}: the device has {channels}")
        }
        BenchError::TooManyVariants { .. } => format!(
            "{error}\n  remedy: fewer sizes (--size), segments (--segment) or batches (--batch) \
             at a time"
        ),
        BenchError::LongSegment { segment, longest } => format!(
            "--segment {}: it is not smaller than any transfer, the longest of which is {}",
            typed(segment),
            typed(longest)
        ),
        BenchError::TooManySegments { segment, most } => {
            format!(
                "--segment {}: every transfer would have more than {most} segments",
                typed(segment)
            )
        }
        BenchError::SameFile { .. } => error.to_string(),
        error => return error.into(),
    })
}

/// Says where a report does not outlive the guest.
fn warn_of_memory(output: &Output) {
    if output.is_lost_with_guest() {
        output::complain(&format!(
            "warning: {} is in this guest's memory and lost when the guest ends\n  remedy: \
             `vfio-dma vm --share DIR` on the host, and a path under {} here",
            output.path().display(),
            vm::SHARE
        ));
    }
}

/// Refuses options that the driver has no use for.
fn check(args: &Args, driver: &Driver) -> Result<(), Failure> {
    let queues: &[&str] = &[Ioat::NAME, Nvme::NAME];
    let given: [(_, _, &[&str]); 3] = [
        ("--batch", args.batches.is_some(), queues),
        ("--channels", args.channels.is_some(), queues),
        ("--link", args.link.is_some(), &[Ioat::NAME, LitePcie::NAME]),
    ];
    match given.iter().find(|(_, given, drivers)| *given && !drivers.contains(&driver.name)) {
        Some((option, _, drivers)) => {
            Err(usage(format!("{option} is for {}, not for {driver}", drivers.join(" and "))))
        }
        None => Ok(()),
    }
}

/// Tells what changed between two files.
fn changes(
    before: &Path,
    after: &Path,
    json: Option<&Path>,
    fail_if_worse: Option<u32>,
) -> Result<ExitCode, Failure> {
    let output = json.map(Output::prepare).transpose()?;
    if let Some(output) = &output {
        // What is written replaces the file: it would replace what is compared.
        if [before, after].into_iter().any(|path| output.is(path)) {
            let path = output.path().display();
            return Err(usage(format!("--json {path}: it is one of the files that are compared")));
        }
        warn_of_memory(output);
    }
    let comparison = compare(&read(before)?, &read(after)?);
    if let Some(output) = output {
        output.write(&(serde_json::to_string_pretty(&comparison)? + "\n"))?;
    }
    output::print(&comparison.to_string())?;
    let Some(percent) = fail_if_worse else { return Ok(ExitCode::SUCCESS) };
    let limit = f64::from(percent) / 100.0;
    match comparison.with(Verdict::Worse).filter(|row| row.figure.change.abs() > limit).count() {
        0 => Ok(ExitCode::SUCCESS),
        1 => Err(format!("1 figure is worse by more than {percent}%").into()),
        count => Err(format!("{count} figures are worse by more than {percent}%").into()),
    }
}

/// Reads results back.
fn read(path: &Path) -> Result<Results, Failure> {
    /// What every version of the schema has.
    #[derive(serde::Deserialize)]
    struct Head {
        schema: u32,
    }
    let failed = |error: &dyn std::fmt::Display| -> Failure {
        format!("{}: {error}", path.display()).into()
    };
    let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
    let other = |error: serde_json::Error| {
        failed(&format_args!("not what `vfio-dma bench --json` writes: {error}"))
    };
    let Head { schema } = serde_json::from_str(&text).map_err(other)?;
    if schema != SCHEMA {
        return Err(failed(&format_args!("schema {schema}; this version reads {SCHEMA}")));
    }
    serde_json::from_str(&text).map_err(other)
}

fn json(results: &Results) -> Result<String, BenchError> {
    Ok(serde_json::to_string_pretty(results)? + "\n")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use vfio_dma::devices::DRIVERS;
    use vfio_dma::devices::edu::Edu;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn options_are_for_devices_that_have_a_use_for_them() {
        for (option, value, drivers) in [
            ("--batch", "4", &[Ioat::NAME, Nvme::NAME][..]),
            ("--channels", "2", &[Ioat::NAME, Nvme::NAME]),
            ("--link", "gen3x8", &[Ioat::NAME, LitePcie::NAME]),
            ("--seed", "2", &[Ioat::NAME, Nvme::NAME, Edu::NAME, LitePcie::NAME]),
        ] {
            let Cli { args } = Cli::try_parse_from(["bench", "x", option, value]).unwrap();
            for name in [Ioat::NAME, Nvme::NAME, Edu::NAME, LitePcie::NAME] {
                let driver = DRIVERS.iter().find(|driver| driver.name == name).unwrap();
                let checked = check(&args, driver);
                assert_eq!(checked.is_ok(), drivers.contains(&name), "{option} {name}");
            }
        }
    }

    #[test]
    fn what_was_asked_for_is_refused_by_the_name_of_its_option() {
        for (error, text) in [
            (
                BenchError::TooManyChannels { asked: 3, channels: 2 },
                "--channels 3: the device has 2",
            ),
            (
                BenchError::TooManyVariants { asked: 2000, most: 1000 },
                "2000 variants are asked for, the most is 1000\n  remedy: fewer sizes (--size), \
                 segments (--segment) or batches (--batch) at a time",
            ),
            (
                BenchError::LongSegment { segment: 8192, longest: 4096 },
                "--segment 8K: it is not smaller than any transfer, the longest of which is 4K",
            ),
            (
                BenchError::TooManySegments { segment: 1, most: 1 << 20 },
                "--segment 1: every transfer would have more than 1048576 segments",
            ),
            (BenchError::Interrupted, "interrupted"),
        ] {
            assert_eq!(in_options(error).to_string(), text);
        }
    }

    #[test]
    fn sizes_that_make_no_sense_are_refused() {
        assert_eq!(parse_transfer("64"), Ok(64));
        assert_eq!(parse_transfer("64M"), Ok(64 << 20));
        for text in ["0", "65M", "1G", "-1", "x"] {
            assert!(parse_transfer(text).is_err(), "{text}");
        }
        assert_eq!(parse_segment("contiguous"), Ok(Segment(None)));
        assert_eq!(parse_segment("4K"), Ok(Segment(Some(4096))));
        assert!(parse_segment("0").is_err());
        assert!(parse_segment("any").unwrap_err().contains("contiguous"));
    }
}
