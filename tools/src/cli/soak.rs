//! `vfio-dma soak`: random operations for a long time, with every byte looked at.

use std::cell::RefCell;
use std::process::ExitCode;
use std::time::Duration;

use vfio_dma::devices::ioat::Ioat;
use vfio_dma::devices::nvme::Nvme;
use vfio_dma::devices::{Driver, PciDriver as _};

use super::open::{DeviceArg, MODEL};
use super::run::FaultArg;
use super::size::parse_size;
use super::{Failure, interrupted, output, usage};
use crate::soak::faults::{ALL, Model};
use crate::soak::{self, End, Options, SoakError};

/// Drive a device with random operations for a long time and look at every byte: copies, fills,
/// placements, sizes, offsets, channels, cancellations and, on the model, faults. A drive is read
/// only
#[derive(Debug, clap::Args)]
pub struct Args {
    /// PCI address of a device that is bound to vfio-pci, such as 0000:00:05.0, or its directory
    /// in sysfs; the path of a vfio-user socket; or `model`: the I/OAT model in this process
    #[arg(value_name = "DEVICE")]
    device: String,
    /// How long, with s, m or h
    #[arg(long = "for", value_name = "DURATION", default_value = "1m", value_parser = parse_duration)]
    time: Duration,
    /// End after so many operations, if that is earlier
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    operations: Option<u64>,
    /// Seed of everything that is done [default: another one each time, which is told]
    #[arg(long)]
    seed: Option<u64>,
    /// The longest transfer, with K or M [default: 256K; 4K for edu and litepcie, which are slow]
    #[arg(long, value_name = "SIZE", value_parser = parse_max_size)]
    max_size: Option<usize>,
    /// Channels, or queues of a drive, at a time: ioat and nvme [default: all, at most 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=32))]
    channels: Option<u32>,
    /// Descriptors of a ring, or entries of a queue: ioat and nvme [default: 8 to 1024, another
    /// number each time that the device is opened]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..=32_768))]
    ring: Option<u32>,
    /// What is to go wrong with the model in this process; docs/ioat-model.md has the grammar.
    /// `all` stands for every kind of fault at rates that leave most transfers alone
    #[arg(long, value_name = "SPEC", value_parser = parse_faults)]
    fault: Option<FaultArg>,
    #[command(flatten)]
    reach: DeviceArg,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Channels of the model in this process.
const CHANNELS: u8 = 4;

/// The longest transfer that can be asked for.
const LONGEST: u64 = 16 << 20;

fn parse_duration(text: &str) -> Result<Duration, String> {
    let error = || format!("{text:?} is not a time: it is a number of s, m or h, such as 10m");
    let (digits, seconds) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => return Err(error()),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(error());
    }
    let number: u32 = digits.parse().map_err(|_| error())?;
    match u64::from(number) * seconds {
        0 => Err("there is nothing to do in no time".into()),
        seconds @ 1..=31_536_000 => Ok(Duration::from_secs(seconds)),
        _ => Err("it is a year at most".into()),
    }
}

fn parse_max_size(text: &str) -> Result<usize, String> {
    match parse_size(text) {
        Ok(size @ 1..=LONGEST) => usize::try_from(size).map_err(|error| error.to_string()),
        Ok(_) => Err("a transfer has 1 byte to 16M".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse_faults(text: &str) -> Result<FaultArg, String> {
    let rules: Vec<&str> = text.split(',').map(str::trim).collect();
    let rules: Vec<&str> = rules.into_iter().map(|r| if r == "all" { ALL } else { r }).collect();
    rules.join(",").parse::<FaultArg>().map_err(|error| error.to_string())
}

/// Refuses options that the driver has no use for, and drivers that there is nothing to do for.
fn check(args: &Args, driver: &Driver) -> Result<(), Failure> {
    if driver.name != Nvme::NAME && !driver.is_copy_engine() {
        return Err(usage(format!(
            "{} is driven by {driver}, which moves no data: `{}` runs its tests",
            args.device,
            output::as_typed(&format!("vfio-dma run {}", args.device))
        )));
    }
    let queues: &[&str] = &[Ioat::NAME, Nvme::NAME];
    let given = [("--channels", args.channels.is_some()), ("--ring", args.ring.is_some())];
    match given.iter().find(|(_, given)| *given && !queues.contains(&driver.name)) {
        Some((option, _)) => Err(usage(format!(
            "{option} is for {}: {} is driven by {driver}",
            queues.join(" and "),
            args.device
        ))),
        None => Ok(()),
    }
}

/// Runs the subcommand.
///
/// # Errors
///
/// Fails when the device cannot be opened, and when the user ended it; the summary is printed
/// all the same then.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    if args.fault.is_some() && args.device != MODEL {
        return Err(usage("--fault is for the DEVICE model, whose faults it names"));
    }
    args.reach.check(&args.device)?;
    // The flag is set up before anything is changed, so that Ctrl-C undoes it.
    let interrupted = interrupted()?;
    if args.fault.is_some() && std::env::var_os("RUST_LOG").is_none() {
        // What the faults make the driver and the model say is counted, not told each time.
        log::set_max_level(log::LevelFilter::Off);
    }
    let plan = args.fault.as_ref().map(|fault| fault.plan.clone()).unwrap_or_default();
    let model = RefCell::new(Model::new(CHANNELS, plan));
    let options = Options {
        time: args.time,
        operations: args.operations.unwrap_or(u64::MAX),
        seed: args.seed.unwrap_or_else(|| fastrand::u64(..)),
        max_size: args.max_size,
        channels: args.channels,
        ring: args.ring,
        rules: args.fault.as_ref().map(|fault| fault.rules().to_vec()).unwrap_or_default(),
    };
    let attach = || Ok(model.borrow_mut().attach()?);
    args.reach.drive_often(&args.device, attach, |open| {
        let mut open = || {
            let (driver, device) = open()?;
            check(args, driver)?;
            Ok((driver, device))
        };
        let model = (args.device == MODEL).then_some(&model);
        let summary = soak::run(&options, &mut open, model, &interrupted).map_err(in_options)?;
        // Before the device's driver is restored, which may fail.
        let text = match args.json {
            true => serde_json::to_string_pretty(&summary)?,
            false => summary.to_string(),
        };
        output::print(&(text + "\n"))?;
        if summary.ended == End::Interrupted {
            return Err("interrupted".into());
        }
        Ok(if summary.passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

/// An error of what was asked for, in the words of this command's options.
fn in_options(error: SoakError) -> Failure {
    match error {
        SoakError::Open(failure) => failure,
        SoakError::TooManyChannels { asked, channels } => {
            usage(format!("--channels {asked}: the device has {channels}"))
        }
        error => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use vfio_dma::devices::DRIVERS;
    use vfio_dma::devices::edu::Edu;
    use vfio_dma::devices::pci_testdev::PciTestdev;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn checked(arguments: &[&str], name: &str) -> Result<(), String> {
        let words = ["soak", "x"].iter().chain(arguments);
        let Cli { args } = Cli::try_parse_from(words).unwrap();
        let driver = DRIVERS.iter().find(|driver| driver.name == name).unwrap();
        check(&args, driver).map_err(|failure| failure.to_string())
    }

    #[test]
    fn options_are_for_devices_that_have_a_use_for_them() {
        let all = [Ioat::NAME, Nvme::NAME, Edu::NAME];
        for (option, value, drivers) in [
            ("--channels", "2", &[Ioat::NAME, Nvme::NAME][..]),
            ("--ring", "16", &[Ioat::NAME, Nvme::NAME]),
            ("--max-size", "4K", &all),
            ("--seed", "7", &all),
        ] {
            for name in all {
                let is_fine = checked(&[option, value], name).is_ok();
                assert_eq!(is_fine, drivers.contains(&name), "{option} {name}");
            }
        }
        let refused = checked(&[], PciTestdev::NAME).unwrap_err();
        assert!(refused.contains("moves no data") && refused.contains("run x"), "{refused}");
    }

    #[test]
    fn times_have_a_unit() {
        for (text, seconds) in [("30s", 30), ("10m", 600), ("2h", 7200)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in
            ["", "m", "10", "1.5m", "-1s", "0s", "10 m", "1d", "é", "99999h", "99999999999s"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn all_faults_are_a_word_among_others() {
        let all = parse_faults("all").unwrap();
        assert_eq!(all.rules().len(), ALL.split(',').count());
        let more = parse_faults("all, chanerr=3@/50").unwrap();
        assert_eq!(more.rules().len(), all.rules().len() + 1);
        assert_eq!(more.rules().len(), more.plan.rules().len());
        assert!(parse_faults("every").unwrap_err().contains("every"));
    }
}
