//! `vfio-dma model`: a model, or simulated hardware, on a vfio-user socket.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vfio_dma_model::function::PciFunction;
use vfio_dma_model::ioat::{Ioat, IoatConfig, Personality, UnknownPersonality};
use vfio_dma_model::link::{LinkConfig, LinkMeter};
use vfio_dma_model::vfio_user::{Ended, Server, Stop};

use super::output::print;
use super::run::{FaultArg, fired_rules};
use super::{Failure, interrupted, usage};
use crate::rtl::{self, RtlConfig, RtlFunction};

/// Serve a model of the Intel I/OAT engine, or simulated hardware, on a vfio-user socket, until
/// Ctrl-C
///
/// QEMU 10.1 or later attaches it with
/// -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"PATH"}}'
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the socket is made
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Which device it is: ioat-skx (8086:2021, version 3.2) or ioat-icx (8086:0b00, 3.4); or
    /// hardware that is simulated from its Verilog: litepcie, or rtl,top=MODULE,file=PATH, with
    /// properties (docs/bring-your-verilog.md)
    #[arg(long, default_value_t = ModelDevice::Ioat(Personality::default()))]
    device: ModelDevice,
    /// Number of channels of ioat, 1 to 8; real functions have 1 [default: 1]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    channels: Option<u8>,
    /// What is to go wrong with ioat; docs/ioat-model.md has the grammar. Simulated hardware has
    /// the property fault=SPEC
    #[arg(long, value_name = "SPEC")]
    fault: Option<FaultArg>,
    /// Count the packets that a card on this link would send and get, such as
    /// gen3x8,mps=256,mrrs=512
    #[arg(long)]
    link: Option<LinkConfig>,
    /// Seconds after which a client that sends nothing is given up; without this, it holds the
    /// server until it leaves
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    idle_timeout: Option<u64>,
}

/// What is served.
#[derive(Debug, Clone)]
enum ModelDevice {
    Ioat(Personality),
    Rtl(Box<RtlConfig>),
}

impl fmt::Display for ModelDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelDevice::Ioat(personality) => personality.fmt(f),
            ModelDevice::Rtl(config) => f.write_str(config.name),
        }
    }
}

impl FromStr for ModelDevice {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        Ok(match rtl::describe(text)? {
            Some(config) => ModelDevice::Rtl(Box::new(config)),
            None => ModelDevice::Ioat(text.parse().map_err(|unknown: UnknownPersonality| {
                format!("{unknown}; and litepcie and rtl,top=MODULE,file=PATH, which are simulated")
            })?),
        })
    }
}

/// The function that is served.
enum Hardware {
    Ioat(Ioat),
    Rtl(RtlFunction),
}

impl Hardware {
    fn function(&self) -> &dyn PciFunction {
        match self {
            Hardware::Ioat(ioat) => ioat,
            Hardware::Rtl(rtl) => rtl,
        }
    }
}

impl Args {
    /// Refuses options that the device has no use for.
    fn check(&self) -> Result<(), Failure> {
        let ModelDevice::Rtl(config) = &self.device else { return Ok(()) };
        for (option, given, instead) in [
            ("--channels", self.channels.is_some(), "channels=N, where it has channels"),
            ("--fault", self.fault.is_some(), "fault=SPEC"),
        ] {
            if given {
                let name = config.name;
                return Err(usage(format!(
                    "{option} is for ioat: {name} has it as a property, --device {name},{instead}"
                )));
            }
        }
        Ok(())
    }
}

/// Runs the subcommand.
///
/// # Errors
///
/// Fails when the socket cannot be made, or an argument is out of range.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    args.check()?;
    let interrupted = interrupted()?;
    let meter = args.link.as_ref().map(|link| Arc::new(LinkMeter::new(*link)));
    let hardware = match &args.device {
        ModelDevice::Ioat(personality) => Hardware::Ioat(Ioat::new(IoatConfig {
            personality: *personality,
            channels: args.channels.unwrap_or(1),
            meter: meter.clone(),
            faults: args.fault.as_ref().map(|fault| fault.plan.clone()).unwrap_or_default(),
            ..IoatConfig::default()
        })?),
        ModelDevice::Rtl(config) => {
            let mut config = config.clone();
            config.set_meter(meter.clone());
            Hardware::Rtl(config.start()?)
        }
    };
    let mut server = Server::bind(&args.socket)?;
    if let Some(seconds) = args.idle_timeout {
        server = server.idle_timeout(Duration::from_secs(seconds));
    }
    let stop = Stop::new()?;
    // A thread of its own looks at the flag: a signal handler cannot be given the handle.
    let watch = stop.clone();
    std::thread::spawn(move || {
        while !interrupted.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(50));
        }
        watch.stop();
    });
    print(&format!("{} serves {}; Ctrl-C ends it\n", args.socket.display(), args.device))?;
    let begin = Instant::now();
    let ended = server.serve(hardware.function(), &stop)?;
    print(&match (&hardware, &args.device) {
        (Hardware::Rtl(rtl), ModelDevice::Rtl(config)) => {
            fired_rules(&config.faults, &rtl.faults_fired())
        }
        (Hardware::Ioat(ioat), _) => {
            args.fault.as_ref().map_or_else(String::new, |asked| asked.fired(&ioat.faults_fired()))
        }
        _ => String::new(),
    })?;
    if let (Some(meter), Some(link)) = (&meter, &args.link) {
        let counted = match &args.device {
            ModelDevice::Ioat(_) => "By calculation",
            ModelDevice::Rtl(_) => "As they were sent",
        };
        print(&account(counted, meter, link, begin.elapsed()))?;
    }
    Ok(match ended {
        Ended::Stopped => ExitCode::SUCCESS,
        Ended::Exit => {
            log::warn!("a fault on request ended the server");
            ExitCode::FAILURE
        }
    })
}

/// What a card would have put on its link.
fn account(counted: &str, meter: &LinkMeter, link: &LinkConfig, elapsed: Duration) -> String {
    use vfio_dma_model::link::TlpKind;
    let counts = meter.snapshot();
    let mut text = format!(
        "{counted}, on a link of {link}:\n{:<24} {:>14} {:>16}\n",
        "packets of a kind", "packets", "bytes of data"
    );
    for kind in TlpKind::ALL {
        let packets = counts.get(kind);
        text +=
            &format!("{:<24} {:>14} {:>16}\n", format!("{kind:?}"), packets.packets, packets.data);
    }
    let traffic = counts.traffic(link);
    let [up, down] = traffic.share(link, elapsed.as_secs_f64());
    text += &format!(
        "{} bytes upstream, {} downstream: at least {:.6} s of the link, {:.3}% and {:.3}% of the \
         time served\n",
        traffic.upstream,
        traffic.downstream,
        traffic.seconds(link),
        up * 100.0,
        down * 100.0
    );
    text
}
