//! The calculated figures: what a link would make of the transfers.

use std::collections::BTreeSet;

use super::axis::Axis;
use super::chart::{Chart, Line, Point, Rule};
use super::figures::{
    Figure, SegmentAxis, five_percent, log2, over_segments, segment_name, values,
};
use crate::bench::link::OPERATIONS;
use crate::bench::results::{Cell, LinkView, Results, Series};
use crate::bench::units::{bytes, count, percent};

/// Every calculated figure that the results have.
pub(super) fn calculated(results: &Results) -> Vec<Figure> {
    let name = results.link.as_ref().map_or("the chosen link", |view| view.link.as_str());
    let cells = results.cells.iter().filter(|cell| cell.series == Series::Segments);
    let cells: Vec<&Cell> = cells.filter(|cell| cell.link.is_some()).collect();
    let view = results.link.as_ref().filter(|view| !view.rows.is_empty()).map(predicted);
    [share(&cells, name), view].into_iter().flatten().collect()
}

fn share(cells: &[&Cell], name: &str) -> Option<Figure> {
    let axis = SegmentAxis::new(cells.iter().filter_map(|cell| cell.segment), &["contig."]);
    let value = |cell: &Cell| {
        let link = cell.link?;
        // The share follows the rate, so does its spread.
        let rate = cell.bytes_per_second;
        let at = |bound: f64| link.share * bound / rate.median;
        let spread = (rate.median > 0.0).then(|| [at(rate.p25), at(rate.p75)]);
        Some(Point { at: 0.0, value: link.share, spread, marked: true, weak: false })
    };
    let (lines, note) = over_segments(cells, &axis, value);
    if lines.is_empty() {
        return None;
    }
    let largest = values(&lines).into_iter().fold(0.0, f64::max);
    let whole = Rule { value: 1.0, name: "100%: all that the link carries".to_owned() };
    let rules = if largest > 0.5 { vec![whole] } else { Vec::new() };
    let rows = cells.iter().filter_map(|cell| {
        let link = cell.link?;
        Some(vec![
            bytes(cell.transfer),
            segment_name(cell),
            count(link.tlps),
            count(link.upstream),
            count(link.downstream),
            percent(link.share),
            format!("{:.2}", link.gbps),
            link.ratio.map_or("-".into(), percent),
        ])
    });
    Some(Figure {
        id: "link-share",
        title: "Share of the link that the measured rate would take",
        caption: format!(
            "The packets that the model counted, on {name}, at the rate that was measured: the \
             busier direction. A device behind this link cannot exceed 100%. Bars follow the \
             rate's p25 to p75. The table adds the payload that the link would carry.{note}"
        ),
        rows: rows.collect(),
        chart: Some(Chart {
            varied: axis.axis,
            values: Axis::linear("share of the link", values(&lines), |share| {
                if largest < 0.05 { percent(share) } else { format!("{:.0}%", share * 100.0) }
            }),
            lines,
            rules,
            rows: false,
        }),
        head: vec![
            "transfer",
            "segment",
            "packets",
            "bytes up",
            "bytes down",
            "share",
            "Gb/s at most",
            "of contiguous",
        ],
        calculated: true,
    })
}

fn predicted(view: &LinkView) -> Figure {
    let lines = OPERATIONS.iter().enumerate().map(|(n, (_, name))| {
        let mut points: Vec<Point> = view
            .rows
            .iter()
            .map(|row| Point {
                at: log2(row.segment),
                value: row.ratio[n],
                spread: None,
                marked: true,
                weak: false,
            })
            .collect();
        points.sort_by(|a, b| a.at.total_cmp(&b.at));
        Line { name: (*name).to_owned(), pieces: vec![points] }
    });
    let sizes: BTreeSet<u64> = view.rows.iter().map(|row| row.segment).collect();
    let ticks = sizes.into_iter().map(|size| (log2(size), bytes(size))).collect();
    let cheap = OPERATIONS.iter().zip(view.less_than_5_percent).map(|((_, name), from)| {
        format!("{name}: {}", from.map_or("no segment".to_owned(), bytes))
    });
    let cheap: Vec<String> = cheap.collect();
    let rows = view.rows.iter().map(|row| {
        let mut cells = vec![bytes(row.segment)];
        for n in 0..OPERATIONS.len() {
            cells
                .extend([row.contiguous_gbps[n], row.segmented_gbps[n]].map(|g| format!("{g:.2}")));
            cells.push(percent(row.ratio[n]));
        }
        cells
    });
    Figure {
        id: "link-view",
        title: "Scatter/gather as a share of contiguous, on the link alone",
        caption: format!(
            "A transfer of {} on {} ({:.2} Gb/s for packets each way), one descriptor of 64 \
             bytes fetched for each segment. Scatter/gather costs less than 5% from these \
             segments on (powers of two): {}.",
            bytes(view.transfer),
            view.link,
            view.tlp_gbps,
            cheap.join("; ")
        ),
        rows: rows.collect(),
        chart: Some(Chart {
            varied: Axis::named("size of a segment", ticks),
            values: Axis::linear("share of the contiguous rate", [1.0], |share| {
                format!("{:.0}%", share * 100.0)
            }),
            lines: lines.collect(),
            rules: vec![five_percent()],
            rows: false,
        }),
        head: vec![
            "segment",
            "reads: contiguous Gb/s",
            "in segments Gb/s",
            "ratio",
            "writes: contiguous Gb/s",
            "in segments Gb/s",
            "ratio",
            "memory to memory: contiguous Gb/s",
            "in segments Gb/s",
            "ratio",
        ],
        calculated: true,
    }
}
