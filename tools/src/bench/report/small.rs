//! Small copies from slot to slot, next to the processor's own.

use std::collections::BTreeSet;

use super::axis::Axis;
use super::chart::{Chart, Line, Point};
use super::figures::{Figure, SPREAD, beside, least_gap, log2, operations, point, values};
use crate::bench::results::{Cell, Results};
use crate::bench::table::quicker;
use crate::bench::units::{bytes, nanoseconds, percent, rate};

/// A line over the sizes for each number of channels, and one for the processor.
pub(super) fn small_copies(results: &Results, cells: &[&Cell]) -> Option<Figure> {
    let sizes: BTreeSet<u64> = cells.iter().map(|cell| cell.transfer).collect();
    let channels: BTreeSet<u32> = cells.iter().map(|cell| cell.channels).collect();
    let ticks: Vec<(f64, String)> = sizes.iter().map(|&size| (log2(size), bytes(size))).collect();
    let gap = least_gap(ticks.iter().map(|tick| tick.0));
    let drawn = channels.len() + 1;
    let line = |n: usize, name: String, points: Vec<(u64, Point)>| {
        let beside = beside(n, drawn, gap);
        let points =
            points.into_iter().map(|(size, point)| Point { at: log2(size) + beside, ..point });
        Line { name, pieces: vec![points.collect()] }
    };
    let mut lines: Vec<Line> = channels
        .iter()
        .enumerate()
        .map(|(n, &count)| {
            let own = cells.iter().filter(|cell| cell.channels == count);
            let mut points: Vec<(u64, Point)> =
                own.map(|cell| (cell.transfer, point(0.0, &cell.bytes_per_second))).collect();
            points.sort_by_key(|point| point.0);
            let name = if count == 1 { "1 channel".into() } else { format!("{count} channels") };
            line(n, name, points)
        })
        .collect();
    let copies = results.memcpy.iter().filter(|memcpy| sizes.contains(&memcpy.transfer));
    let copies = copies.map(|memcpy| (memcpy.transfer, point(0.0, &memcpy.bytes_per_second)));
    lines.push(line(drawn - 1, "memcpy".into(), copies.collect()));
    let scale = Axis::fitting("payload bytes for each second", values(&lines), rate);
    let card = |cell: &Cell| {
        let view = results.small_copies.as_ref()?;
        let row = view.rows.iter().find(|row| row.transfer == cell.transfer)?;
        (cell.channels == 1).then(|| nanoseconds(row.card))
    };
    let rows = cells.iter().map(|cell| {
        vec![
            bytes(cell.transfer),
            cell.channels.to_string(),
            operations(cell.operations_per_second.median),
            rate(cell.bytes_per_second.median),
            cell.of_memcpy.map_or("-".into(), |share| percent(share.median)),
            nanoseconds(cell.transfer as f64 / cell.bytes_per_second.median * 1e9),
            card(cell).unwrap_or_default(),
        ]
    });
    let answer = results.small_copies.as_ref().map(quicker).unwrap_or_default();
    (!cells.is_empty()).then(|| Figure {
        id: "slots",
        title: "Small copies from slot to slot",
        caption: format!(
            "{answer} The time on a card is calculated: what the link takes for a copy's packets, \
             and its part of a doorbell. {SPREAD}"
        ),
        rows: rows.collect(),
        chart: Some(Chart {
            varied: Axis::named("size of a copy", ticks),
            values: scale,
            lines,
            rules: Vec::new(),
            rows: false,
        }),
        head: vec!["copy", "channels", "copies per second", "rate", "of memcpy", "time", "card"],
        calculated: false,
    })
}
