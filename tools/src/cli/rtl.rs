//! `vfio-dma rtl`: builds simulated hardware, and measures it in cycles of its clock.

use std::process::ExitCode;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::open_copy_engine;
use vfio_dma_model::embedded::{Embedded, IommuOptions};
use vfio_dma_model::link::LinkConfig;

use super::output::{print, table};
use super::size::parse_length;
use super::{Failure, usage};
use crate::bench::link;
use crate::bench::results::LinkView;
use crate::bench::units::bytes;
use crate::rtl::cycles::{Row, cheap_from, measure};
use crate::rtl::{LinuxDriver, RtlConfig, describe, linux_driver};

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
    /// Compile LitePCIe's own Linux driver for the kernel of `vm --kernel full`, and print the
    /// paths of the module and of its test program
    LinuxDriver {
        /// The card: `litepcie`, with properties
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
const SEGMENTS: [usize; 14] = [
    128,
    256,
    512,
    1 << 10,
    2 << 10,
    4 << 10,
    8 << 10,
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    512 << 10,
    1 << 20,
];

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
        Action::LinuxDriver { device } => {
            let options = known(device)?.litepcie_options().cloned();
            let options = options.ok_or_else(|| {
                usage(format!("{device} has no Linux driver that is known\n  remedy: litepcie"))
            })?;
            let LinuxDriver { module, util } = linux_driver(&options)?;
            print(&format!("{}\n{}\n", module.display(), util.display()))?;
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
                let view = on_link(link, &rows);
                let value = serde_json::json!({
                    "device": device,
                    "bytes": size,
                    "bus_width": config.bus_width(),
                    "host_latency": config.function.root.latency,
                    "less_than_5_percent": cheap_from(&rows[1..]),
                    "link": view,
                    "rows": rows,
                });
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

/// What a link's arithmetic (docs/link-cost.md) says of the same copies: memory to memory, by an
/// engine that fetches a descriptor of 64 bytes for each segment.
fn on_link(link: &LinkConfig, rows: &[Row]) -> LinkView {
    let segments: Vec<u64> = rows.iter().map(|row| row.segment as u64).collect();
    link::view(link, segments.first().copied().unwrap_or(0), &segments)
}

fn text(config: &RtlConfig, rows: &[Row], link: &LinkConfig) -> String {
    let header = ["segment", "cycles", "B/cycle", "of cont.", "cycles/seg.", "ms", "link"];
    let mut lines = vec![header.map(str::to_owned)];
    let view = on_link(link, rows);
    for (n, row) in rows.iter().enumerate() {
        let share = view.rows.get(n).map_or(1.0, |row| row.ratio[2]);
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
    let cycles: u64 = rows.iter().map(|row| row.cycles).sum();
    let time: u64 = rows.iter().map(|row| row.nanoseconds).sum();
    let from = |size: Option<u64>| match size {
        Some(size) => format!("from segments of {} on", bytes(size)),
        None => "at no size that was measured".to_owned(),
    };
    let [.., both] = view.less_than_5_percent;
    format!(
        "cycles of the RTL at the bus width {} bits; host latency {} cycles; payload {} bytes\n{}\n\
         Scatter/gather costs less than 5%:\n  on this hardware {};\n  by the arithmetic of a \
         link alone (docs/link-cost.md; column link; {link}) {}.\n{:.2} million cycles a second \
         here. Every byte was verified.\n",
        config.bus_width(),
        config.function.root.latency,
        config.function.max_payload,
        table(&lines).trim_end(),
        from(cheap_from(rows.get(1..).unwrap_or_default()).map(|size| size as u64)),
        from(both),
        cycles as f64 / time as f64 * 1e3,
    )
}
