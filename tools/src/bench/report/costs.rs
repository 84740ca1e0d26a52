//! Measured times: latencies, and what it costs to get memory.

use super::axis::Axis;
use super::chart::{Chart, Line, Point};
use super::figures::{Figure, SPREAD, drawn, middle_half, point, segment_name, values};
use crate::bench::results::{Allocation, Cell, Spread};
use crate::bench::units::{bytes, nanoseconds};

/// Where a quantile lies: each further nine is as wide as the one before it.
fn nines(share: f64) -> f64 {
    -(1.0 - share).log10()
}

/// Quantiles with a label.
const SHARES: [f64; 8] = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999];

pub(super) fn latency(cells: &[&Cell]) -> Option<Figure> {
    let cells: Vec<_> = cells.iter().filter_map(|c| Some((*c, c.latency.as_ref()?))).collect();
    let (sizes, note) = drawn(cells.iter().map(|(cell, _)| cell.transfer).collect());
    let own = cells.iter().filter(|(cell, _)| sizes.contains(&cell.transfer));
    let lines: Vec<Line> = own
        .map(|(cell, latency)| {
            // The slowest one has no place among the nines: the table has it.
            let quantiles = latency.quantiles.iter().filter(|(_, q)| (0.0..1.0).contains(q));
            let mut points: Vec<Point> = quantiles
                .map(|&(time, share)| Point {
                    at: nines(share),
                    value: time as f64,
                    spread: None,
                    marked: false,
                    weak: false,
                })
                .collect();
            // There may be a hundred of them: the first one that reaches a label is marked.
            for share in SHARES {
                let reaches = |point: &&mut Point| point.at >= nines(share) - 1e-9;
                if let Some(point) = points.iter_mut().find(reaches) {
                    point.marked = true;
                }
            }
            Line { name: format!("{} transfer", bytes(cell.transfer)), pieces: vec![points] }
        })
        .collect();
    let reached = lines.iter().flat_map(|line| &line.pieces[0]).map(|p| p.at).fold(1.0, f64::max);
    let ticks = SHARES.into_iter().filter(|&share| nines(share) <= reached + 1e-6);
    let mut varied = Axis::named(
        "share of the transfers that were not slower",
        ticks.map(|share| (nines(share), percent_short(share))).collect(),
    );
    varied.range = [-0.1, reached + 0.15];
    let rows = cells.iter().map(|(cell, latency)| {
        let times = [latency.p50, latency.p99, latency.p999, latency.max];
        let times = times.into_iter().map(|time| nanoseconds(time as f64));
        let first = [bytes(cell.transfer), segment_name(cell), latency.samples.to_string()];
        first.into_iter().chain(times).collect()
    });
    (!cells.is_empty()).then(|| Figure {
        id: "latency",
        title: "Latency, one transfer at a time",
        caption: format!(
            "From the submission of a transfer until its completion was seen. To the right are \
             the slow ones: the place at 99% is the time that one in a hundred exceeded.{note}"
        ),
        rows: rows.collect(),
        chart: Some(Chart {
            values: Axis::log("time, log scale", values(&lines), nanoseconds),
            varied,
            lines,
            rules: Vec::new(),
            rows: false,
        }),
        head: vec!["transfer", "segment", "samples", "p50", "p99", "p99.9", "max"],
        calculated: false,
    })
}

fn percent_short(share: f64) -> String {
    let text = format!("{:.4}", share * 100.0);
    format!("{}%", text.trim_end_matches('0').trim_end_matches('.'))
}

/// One of the times of an allocation.
type Part = fn(&Allocation) -> Option<Spread>;

pub(super) fn allocations(allocations: &[Allocation]) -> Option<Figure> {
    let measured = allocations.iter().any(|a| a.allocate.is_some());
    let parts: [(&str, Part); 3] = [
        ("from the request until it is mapped", |a| a.allocate),
        ("map calls in it", |a| a.map),
        ("release", |a| a.release),
    ];
    let mut lines = Vec::new();
    for (name, part) in parts {
        let spreads = allocations.iter().enumerate().filter_map(|(n, a)| Some((n, part(a)?)));
        // Beside each other on their row.
        let points: Vec<Vec<Point>> = spreads
            .map(|(n, spread)| vec![point(n as f64 + 0.13 * (lines.len() as f64 - 0.8), &spread)])
            .collect();
        if !points.is_empty() {
            lines.push(Line { name: name.to_owned(), pieces: points });
        }
    }
    // What failed has its row as well, without a point.
    let ticks = allocations.iter().enumerate().map(|(n, a)| {
        let end = if a.failed.is_some() { ": failed" } else { "" };
        (n as f64, format!("{}, {}{end}", shortened(&a.strategy), bytes(a.len)))
    });
    let show = |spread: Option<Spread>| {
        spread.map_or(["-".to_owned(), "-".to_owned()], |spread| {
            [nanoseconds(spread.median), middle_half(&spread, nanoseconds)]
        })
    };
    let rows = allocations.iter().map(|a| {
        let page = a.page_size.map_or("-".to_owned(), bytes);
        let mut row = vec![a.strategy.clone(), page, bytes(a.len)];
        match &a.failed {
            Some(why) => row.push(format!("failed: {why}")),
            None => {
                row.extend([a.allocate, a.map, a.release].into_iter().flat_map(show));
                row.extend([a.segments.to_string(), a.map_calls.to_string()]);
            }
        }
        row
    });
    (!allocations.is_empty()).then(|| Figure {
        id: "mapping",
        title: "Memory for the device, by strategy and page size",
        caption: format!(
            "What it costs to get a buffer that the device can reach, and to give it back. {SPREAD}"
        ),
        rows: rows.collect(),
        chart: measured.then(|| Chart {
            values: Axis::log("time, log scale", values(&lines), nanoseconds),
            varied: Axis::named("", ticks.collect()),
            lines,
            rules: Vec::new(),
            rows: true,
        }),
        head: vec![
            "strategy",
            "page",
            "buffer",
            "allocate",
            "p25 to p75",
            "map",
            "p25 to p75",
            "release",
            "p25 to p75",
            "segments",
            "map calls",
        ],
        calculated: false,
    })
}

/// At most so many characters as fit on a narrow page.
fn shortened(text: &str) -> String {
    const MOST: usize = 40;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    text.chars().take(MOST - 3).chain("...".chars()).collect()
}
