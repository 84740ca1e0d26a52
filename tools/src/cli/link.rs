//! `vfio-dma link`: what a PCI Express link makes of a transfer, by calculation.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;
use vfio_dma_model::link::predict::{Operation, ScatterGather, operation_gbps};
use vfio_dma_model::link::{IoTlbConfig, LinkConfig};

use super::output;
use super::size::parse_size;
use crate::bench::units::bytes;

/// Calculate what a PCI Express link makes of reads, writes and both, in Gb/s of payload
///
/// Nothing is measured. The model counts the packets that the work takes and what each costs
/// on the wire; it is an estimate, which measured reads exceed by up to 4%.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The link: generation 1 to 5 and lanes, then what differs from
    /// mps=256,mrrs=512,addr=64,ecrc=0
    #[arg(value_name = "gen3x8[,mps=BYTES,mrrs=BYTES,addr=64|32,ecrc=0|1]")]
    link: LinkConfig,
    /// Transfer sizes
    #[arg(
        long = "size",
        value_name = "SIZE,...",
        value_delimiter = ',',
        value_parser = parse_length,
        default_value = "64,128,256,512,1K,4K,64K,1M"
    )]
    sizes: Vec<u64>,
    /// Also hand each transfer to a scatter/gather engine in segments of this size: a 64-byte
    /// descriptor for each; a doorbell, a completion and an interrupt for the transfer
    #[arg(long, value_name = "SIZE", value_parser = parse_length)]
    segment: Option<u64>,
    /// Also show reads through an IO-TLB of so many entries (an estimate for small reads)
    #[arg(long, value_name = "ENTRIES[,walk=NS,page=BYTES,walkers=N]")]
    iotlb: Option<IoTlbConfig>,
    /// How much memory the reads through the IO-TLB are spread over
    #[arg(long, value_name = "SIZE", value_parser = parse_length, default_value = "16M", requires = "iotlb")]
    window: u64,
    /// Write JSON
    #[arg(long)]
    json: bool,
}

/// The longest transfer that is calculated: 1 TiB.
const LONGEST: u64 = 1 << 40;

fn parse_length(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(size) if (1..=LONGEST).contains(&size) => Ok(size),
        Ok(_) => Err("it is 1 byte to 1024 GiB".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Payload bandwidth in Gb/s; with `both`, that much each way.
#[derive(Debug, Serialize)]
struct Gbps {
    write: f64,
    read: f64,
    both: f64,
}

impl Gbps {
    fn of(bandwidth: impl Fn(Operation) -> f64) -> Gbps {
        Gbps {
            write: bandwidth(Operation::Write),
            read: bandwidth(Operation::Read),
            both: bandwidth(Operation::Both),
        }
    }
}

#[derive(Debug, Serialize)]
struct Row {
    size: u64,
    gbps: Gbps,
    #[serde(skip_serializing_if = "Option::is_none")]
    segmented_gbps: Option<Gbps>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iotlb_read_gbps: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    /// Always `calculation`: a reader of the file alone must not take it for a measurement.
    source: &'static str,
    link: LinkConfig,
    raw_gbps: f64,
    tlp_gbps: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    segment: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    iotlb: Option<IoTlbConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<u64>,
    rows: Vec<Row>,
}

impl Report {
    fn new(args: &Args) -> Report {
        let link = args.link;
        let row = |&size: &u64| Row {
            size,
            gbps: Gbps::of(|operation| operation_gbps(&link, operation, size)),
            segmented_gbps: args.segment.map(|segment| {
                let engine = ScatterGather::ioat(segment);
                Gbps::of(|operation| engine.gbps(&link, operation, size))
            }),
            iotlb_read_gbps: args.iotlb.map(|tlb| tlb.read_gbps(&link, size, args.window)),
        };
        Report {
            source: "calculation",
            link,
            raw_gbps: link.raw_gbps(),
            tlp_gbps: link.tlp_gbps(),
            segment: args.segment,
            iotlb: args.iotlb,
            window: args.iotlb.map(|_| args.window),
            rows: args.sizes.iter().map(row).collect(),
        }
    }

    /// The report for a reader, in lines of less than 100 characters.
    fn text(&self) -> String {
        let mut text = format!(
            "{}: {:.2} Gb/s each way, {:.2} of it for packets\n\
             Gb/s of payload, by calculation; nothing was measured. An estimate, not a bound:\n\
             measured reads exceed it by up to 4%, and it leaves out latency and stalls.\n\n",
            self.link, self.raw_gbps, self.tlp_gbps
        );
        let mut groups = format!("{:>14}  {:^26}", "", "each size by itself");
        let mut columns =
            format!("{:>14}  {:>8} {:>8} {:>8}", "size in bytes", "write", "read", "both");
        if let Some(segment) = self.segment {
            let title = format!("in {} segments", bytes(segment));
            let _ = write!(groups, "  {title:^26}");
            let _ = write!(columns, "  {:>8} {:>8} {:>8}", "write", "read", "both");
        }
        if self.iotlb.is_some() {
            let _ = write!(groups, "  {:>8}", "IO-TLB");
            let _ = write!(columns, "  {:>8}", "read");
        }
        let _ = writeln!(text, "{}\n{columns}", groups.trim_end());
        for row in &self.rows {
            let _ = write!(text, "{:>14}", row.size);
            for Gbps { write, read, both } in [&row.gbps].into_iter().chain(&row.segmented_gbps) {
                let _ = write!(text, "  {write:>8.2} {read:>8.2} {both:>8.2}");
            }
            if let Some(read) = row.iotlb_read_gbps {
                let _ = write!(text, "  {read:>8.2}");
            }
            text.push('\n');
        }
        text.push_str("\nboth: reads and writes at once, this much each way, as a copy does\n");
        if self.segment.is_some() {
            text.push_str(
                "segments: a 64-byte descriptor is fetched for each; a doorbell, a completion and\n\
                 an interrupt come once for each size\n",
            );
        }
        if let (Some(iotlb), Some(window)) = (self.iotlb, self.window) {
            let _ = writeln!(
                text,
                "IO-TLB: {iotlb}\nreads through it are spread over {}: {:.0}% hits",
                bytes(window),
                iotlb.hit_rate(window) * 100.0
            );
        }
        text
    }
}

/// Runs the subcommand.
///
/// # Errors
///
/// Fails when the result cannot be written.
pub fn run(args: &Args) -> Result<ExitCode, super::Failure> {
    let report = Report::new(args);
    let text =
        if args.json { serde_json::to_string_pretty(&report)? + "\n" } else { report.text() };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Cli::try_parse_from([&["link"], words].concat()).map(|cli| cli.args)
    }

    #[test]
    fn the_table_has_the_published_figures_and_says_what_it_is() {
        let args = parse(&["gen3x8", "--size", "64,512"]).unwrap();
        let text = Report::new(&args).text();
        assert!(text.contains("63.02 Gb/s each way, 57.88 of it for packets"), "{text}");
        assert!(text.contains("by calculation; nothing was measured"), "{text}");
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .filter(|words: &Vec<&str>| words.first().is_some_and(|w| w.parse::<u64>().is_ok()))
            .collect();
        assert_eq!(rows, [["64", "42.10", "44.10", "33.08"], ["512", "52.92", "53.69", "50.75"]]);
    }

    #[test]
    fn the_widest_table_fits() {
        let args = parse(&[
            "gen5x16,mps=4096,mrrs=4096,addr=32,ecrc=1",
            "--size=1,1024G",
            "--segment=1024G",
            "--iotlb=65536,walk=4294967295,page=1073741824,walkers=1",
            "--window=1024G",
        ])
        .unwrap();
        let text = Report::new(&args).text();
        for line in text.lines() {
            assert!(line.len() < 100, "{} columns: {line}", line.len());
        }
    }

    #[test]
    fn json_names_its_source_and_all_figures() {
        let args =
            parse(&["gen3x8", "--size=4K", "--segment=512", "--iotlb=64", "--json"]).unwrap();
        let json = serde_json::to_value(Report::new(&args)).unwrap();
        assert_eq!(json["source"], "calculation");
        assert_eq!(json["link"]["generation"], "gen3");
        assert_eq!(json["link"]["address"], 64);
        assert_eq!(json["window"], 16 << 20);
        let row = &json["rows"][0];
        assert_eq!(row["size"], 4096);
        let whole = row["gbps"]["read"].as_f64().unwrap();
        let segmented = row["segmented_gbps"]["read"].as_f64().unwrap();
        assert!(segmented < whole && segmented > 0.5 * whole);
        assert!(row["iotlb_read_gbps"].as_f64().unwrap() <= whole);
    }

    #[test]
    fn wrong_words_are_usage_errors_that_explain() {
        for (words, explanation) in [
            (&["gen9x8"][..], "gen1 to gen5"),
            (&["gen3x8,mps=100"], "128, 256"),
            (&["gen3x8", "--size=0"], "1 byte to 1024 GiB"),
            (&["gen3x8", "--size=64,x"], "is not a size"),
            (&["gen3x8", "--iotlb=0"], "ENTRIES[,walk=NS]"),
            (&["gen3x8", "--window=1M"], "--iotlb"),
            (&[], "gen3x8"),
        ] {
            let error = parse(words).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(explanation), "{error}");
        }
    }
}
