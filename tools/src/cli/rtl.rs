//! `vfio-dma rtl`: builds simulated hardware, and measures it in cycles of its clock.

use std::process::ExitCode;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::open_copy_engine;
use vfio_dma_model::embedded::{Embedded, IommuOptions};
use vfio_dma_model::link::LinkConfig;
use vfio_dma_model::link::predict::{Operation, ScatterGather, both_gbps};

use super::output::{print, table};
use super::size::parse_length;
use super::{Failure, usage};
use crate::bench::units::bytes;
use crate::rtl::cycles::{Row, cheap_from, measure};
use crate::rtl::{RtlConfig, describe};

/// Build hardware from its Verilog, or measure what a segment costs it in cycles
///
/// DEVICE is `litepcie`, or `rtl,top=MODULE,file=PATH` with more files and properties;
/// docs/bring-your-verilog.md has them all. `vfio-dma model` and `vm` serve such a device.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Compile it, and print the path of the program that simulates it
    Build {
        /// What is built
        device: String,
    },
    /// Copy contiguously and in segments, in this process, and count cycles
    Bench {
        /// What is measured; a driver of this program must know it as a copy engine
        device: String,
        /// Bytes of each copy
        #[arg(long, default_value = "8M", value_parser = parse_length)]
        size: u64,
        /// The link that the arithmetic beside the measurement is for
        #[arg(long, default_value = "gen3x8")]
        link: LinkConfig,
        /// Seconds that a copy may take
        #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        timeout: u64,
        /// Print the result as JSON
        #[arg(long)]
        json: bool,
    },
}

/// Segments that are measured, in bytes.
const SEGMENTS: [usize; 8] = [128, 256, 512, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20];

/// Runs the subcommand.
///
/// # Errors
///
/// Fails when the hardware cannot be built or driven, or a byte is wrong.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    match &args.action {
        Action::Build { device } => {
            let program = known(device)?.program()?;
            print(&format!("{}\n", program.display()))?;
        }
        Action::Bench { device, size, link, timeout, json } => {
            let config = known(device)?;
            let model = Embedded::with_function(config.start()?, IommuOptions::default());
            let opened = Device::open(model.attach()?)?;
            let mut engine = open_copy_engine(opened).map_err(|failed| failed.into_parts().0)?;
            let len = usize::try_from(*size)?;
            let segments: Vec<usize> = SEGMENTS.into_iter().filter(|&n| n < len).collect();
            let stats = || model.function().stats();
            let limit = Duration::from_secs(*timeout);
            let rows = measure(&mut *engine, stats, len, &segments, limit)?;
            let text = if *json {
                let value = serde_json::json!({ "device": device, "bytes": size, "rows": rows });
                format!("{value:#}\n")
            } else {
                text(&config, &rows, link)
            };
            print(&text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn known(device: &str) -> Result<RtlConfig, Failure> {
    describe(device).map_err(usage)?.ok_or_else(|| {
        usage(format!(
            "{device} is no simulated hardware\n  remedy: litepcie, or rtl,top=MODULE,file=PATH"
        ))
    })
}

fn text(config: &RtlConfig, rows: &[Row], link: &LinkConfig) -> String {
    let header = ["segment", "cycles", "B/cycle", "of cont.", "cycles/seg.", "ms", "link"];
    let mut lines = vec![header.map(str::to_owned)];
    for (n, row) in rows.iter().enumerate() {
        let (len, segment) = (rows[0].segment as u64, row.segment as u64);
        // What the same would cost on a link: a descriptor is three register writes on each
        // side, which are not fetched.
        let lists = ScatterGather { descriptor: 0, ..ScatterGather::ioat(segment) };
        let busier = lists.traffic(link, Operation::Both, len).busier() as f64;
        let share = (len as f64 / busier * link.tlp_gbps()) / both_gbps(link, len);
        lines.push([
            if n == 0 { "contiguous".into() } else { bytes(row.segment as u64) },
            row.cycles.to_string(),
            format!("{:.2}", row.bytes_per_cycle),
            format!("{:.0}%", 100.0 * row.of_contiguous),
            if n == 0 { String::new() } else { format!("{:.1}", row.cycles_per_segment) },
            format!("{:.0}", row.nanoseconds as f64 / 1e6),
            format!("{:.0}%", 100.0 * share),
        ]);
    }
    let root = &config.function.root;
    let cycles: u64 = rows.iter().map(|row| row.cycles).sum();
    let time: u64 = rows.iter().map(|row| row.nanoseconds).sum();
    let cheap = match cheap_from(&rows[1..]) {
        Some(size) => {
            let size = bytes(size as u64);
            format!("Scatter/gather costs less than 5% from segments of {size} on")
        }
        None => "Scatter/gather costs 5% or more at every size".to_owned(),
    };
    format!(
        "{}\n{cheap}.\nCycles of the RTL; host latency {} cycles, {} bytes of payload. `link` is \
         the share by calculation on {link},\nwithout descriptors. {:.2} million cycles a second \
         here. Every byte was verified.\n",
        table(&lines).trim_end(),
        root.latency,
        config.function.max_payload,
        cycles as f64 / time as f64 * 1e3,
    )
}
