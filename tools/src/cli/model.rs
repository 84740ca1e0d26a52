//! `vfio-dma model`: the I/OAT model on a vfio-user socket.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vfio_dma_model::ioat::{Ioat, IoatConfig, Personality};
use vfio_dma_model::link::{LinkConfig, LinkMeter};
use vfio_dma_model::vfio_user::{Ended, Server, Stop};

use super::output::print;
use super::run::FaultArg;
use super::{Failure, interrupted};

/// Serve a model of the Intel I/OAT engine on a vfio-user socket, until Ctrl-C
///
/// QEMU 10.1 or later attaches it with
/// -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"PATH"}}'
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the socket is made
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Which device it is: ioat-skx (8086:2021, version 3.2) or ioat-icx (8086:0b00, 3.4)
    #[arg(long, default_value_t = Personality::default())]
    device: Personality,
    /// Number of channels, 1 to 8; real functions have 1
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    channels: u8,
    /// What is to go wrong; docs/ioat-model.md has the grammar
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

/// Runs the subcommand.
///
/// # Errors
///
/// Fails when the socket cannot be made, or an argument is out of range.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let interrupted = interrupted()?;
    let meter = args.link.as_ref().map(|link| Arc::new(LinkMeter::new(*link)));
    let ioat = Ioat::new(IoatConfig {
        personality: args.device,
        channels: args.channels,
        meter: meter.clone(),
        faults: args.fault.as_ref().map(|fault| fault.plan.clone()).unwrap_or_default(),
        ..IoatConfig::default()
    })?;
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
    let ended = server.serve(&ioat, &stop)?;
    if let Some(asked) = &args.fault {
        print(&asked.fired(&ioat.faults_fired()))?;
    }
    if let (Some(meter), Some(link)) = (&meter, &args.link) {
        print(&account(meter, link, begin.elapsed()))?;
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
fn account(meter: &LinkMeter, link: &LinkConfig, elapsed: Duration) -> String {
    use vfio_dma_model::link::TlpKind;
    let counts = meter.snapshot();
    let mut text = format!(
        "By calculation, on a link of {link}:\n{:<24} {:>14} {:>16}\n",
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
