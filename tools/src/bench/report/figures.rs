//! The measured figures: a plot and a table of each.

use std::collections::BTreeSet;

use super::axis::Axis;
use super::chart::{Chart, Line, Point, Rule};
use super::costs::{allocations, latency};
use super::small::small_copies;
use super::svg::SERIES;
use crate::bench::link::CHEAP;
use crate::bench::results::{Cell, Results, Series, Spread};
use crate::bench::spread::{is_undecided, is_wide};
use crate::bench::units::{bytes, count, percent, rate};

/// A plot with what belongs to it.
pub(super) struct Figure {
    /// For links to it.
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// How to read it.
    pub(super) caption: String,
    /// `None` when there is nothing to be seen in a plot.
    pub(super) chart: Option<Chart>,
    /// The header and the rows.
    pub(super) head: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
    /// Whether it is calculated, not measured.
    pub(super) calculated: bool,
}

pub(super) const SPREAD: &str =
    "Bars span the middle half of the rounds, p25 to p75; points are medians, pale ones uncertain.";

/// Every measured figure that the results have.
pub(super) fn measured(results: &Results) -> Vec<Figure> {
    let of = |series| results.cells.iter().filter(|cell| cell.series == series).collect();
    let segments: Vec<&Cell> = of(Series::Segments);
    let figures = [
        throughput(results, &segments),
        ratio(&segments),
        batches(&of(Series::Batch)),
        channels(&of(Series::Channels)),
        latency(&of(Series::Latency)),
        small_copies(results, &of(Series::Slots)),
        allocations(&results.allocations),
    ];
    figures.into_iter().flatten().collect()
}

pub(super) fn point(at: f64, spread: &Spread) -> Point {
    Point {
        at,
        value: spread.median,
        spread: Some([spread.p25, spread.p75]),
        marked: true,
        weak: is_wide(spread),
    }
}

/// The place of a size on an axis of sizes.
pub(super) fn log2(size: u64) -> f64 {
    (size.max(1) as f64).log2()
}

/// The transfer sizes that are drawn, of more than fit into a plot: evenly over all, with the
/// first and the last.
pub(super) fn drawn(sizes: BTreeSet<u64>) -> (Vec<u64>, String) {
    let sizes: Vec<u64> = sizes.into_iter().collect();
    let room = usize::from(SERIES);
    if sizes.len() <= room {
        return (sizes, String::new());
    }
    let pick = |n: usize| sizes[n * (sizes.len() - 1) / (room - 1)];
    let note = format!(" {room} of {} sizes are drawn; the table has all.", sizes.len());
    ((0..room).map(pick).collect(), note)
}

/// Sizes of segments, and behind them places for what has none.
pub(super) struct SegmentAxis {
    pub(super) axis: Axis,
    contiguous: f64,
    memcpy: f64,
    step: f64,
    /// The least distance of two segment sizes.
    gap: f64,
}

impl SegmentAxis {
    pub(super) fn new(segments: impl Iterator<Item = u64>, extra: &[&str]) -> SegmentAxis {
        let sizes: BTreeSet<u64> = segments.collect();
        let mut ticks: Vec<(f64, String)> =
            sizes.iter().map(|&size| (log2(size), bytes(size))).collect();
        let last = ticks.last().map_or(0.0, |tick| tick.0);
        // So far apart that their labels have room on a narrow page.
        let span = ticks.first().map_or(0.0, |first| last - first.0);
        let step = ((span + 1.0) * 0.32).max(2.0);
        let gap = least_gap(ticks.iter().map(|tick| tick.0));
        let [contiguous, memcpy] = [last + step, last + 2.0 * step];
        ticks.extend([contiguous, memcpy].into_iter().zip(extra).map(|(at, t)| (at, (*t).into())));
        let mut axis = Axis::named("size of a segment", ticks);
        if !extra.is_empty() {
            // Points stand beside each other there.
            axis.range[1] += step * 0.1;
        }
        SegmentAxis { axis, contiguous, memcpy, step, gap }
    }

    /// So far from the middle of its place a transfer's point stands, for all of them to be
    /// seen.
    fn beside(&self, number: usize, of: usize) -> f64 {
        beside(number, of, self.step)
    }
}

/// The least distance of two places that follow each other; 1 where there is one place.
pub(super) fn least_gap(places: impl Iterator<Item = f64> + Clone) -> f64 {
    let gaps = places.clone().zip(places.skip(1)).map(|(from, to)| to - from);
    let least = gaps.fold(f64::INFINITY, f64::min);
    if least.is_finite() { least } else { 1.0 }
}

/// How far from their place the points of one of several lines stand, so that no bar hides
/// another.
pub(super) fn beside(number: usize, of: usize, gap: f64) -> f64 {
    (number as f64 - (of.max(1) - 1) as f64 / 2.0) * gap * 0.07
}

/// The lines of transfers over segments: segments joined, the contiguous one by itself.
pub(super) fn over_segments(
    cells: &[&Cell],
    axis: &SegmentAxis,
    value: impl Fn(&Cell) -> Option<Point>,
) -> (Vec<Line>, String) {
    let sizes = cells.iter().filter(|cell| value(cell).is_some()).map(|cell| cell.transfer);
    let (sizes, note) = drawn(sizes.collect());
    let drawn = sizes.len();
    let line = |(n, transfer): (usize, u64)| {
        let beside = axis.beside(n, drawn);
        let among = self::beside(n, drawn, axis.gap);
        let own = cells.iter().filter(|cell| cell.transfer == transfer);
        let (mut joined, mut alone) = (Vec::new(), Vec::new());
        for cell in own {
            match (value(cell), cell.segment) {
                (Some(point), Some(segment)) => {
                    joined.push(Point { at: log2(segment) + among, ..point });
                }
                (Some(point), None) => alone.push(Point { at: axis.contiguous + beside, ..point }),
                (None, _) => {}
            }
        }
        joined.sort_by(|a, b| a.at.total_cmp(&b.at));
        Line { name: format!("{} transfer", bytes(transfer)), pieces: vec![joined, alone] }
    };
    (sizes.into_iter().enumerate().map(line).collect(), note)
}

pub(super) fn values(lines: &[Line]) -> Vec<f64> {
    let points = lines.iter().flat_map(|line| line.pieces.iter().flatten());
    points.flat_map(|p| [p.value].into_iter().chain(p.spread.into_iter().flatten())).collect()
}

/// The middle half, marked as on the terminal when it is too wide to mean much.
pub(super) fn middle_half(spread: &Spread, show: fn(f64) -> String) -> String {
    let mark = if is_wide(spread) { " !" } else { "" };
    format!("{} to {}{mark}", show(spread.p25), show(spread.p75))
}

fn extent(spread: &Spread, show: fn(f64) -> String) -> String {
    format!("{} to {}", show(spread.min), show(spread.max))
}

pub(super) fn segment_name(cell: &Cell) -> String {
    cell.segment.map_or_else(|| "contiguous".to_owned(), bytes)
}

fn throughput(results: &Results, cells: &[&Cell]) -> Option<Figure> {
    if cells.is_empty() && results.memcpy.is_empty() {
        return None;
    }
    let axis =
        SegmentAxis::new(cells.iter().filter_map(|cell| cell.segment), &["contig.", "memcpy"]);
    let value = |cell: &Cell| Some(point(0.0, &cell.bytes_per_second));
    let (mut lines, note) = over_segments(cells, &axis, value);
    let drawn = lines.len();
    for (n, line) in lines.iter_mut().enumerate() {
        let at = axis.memcpy + axis.beside(n, drawn);
        let own = results
            .memcpy
            .iter()
            .filter(|memcpy| line.name == format!("{} transfer", bytes(memcpy.transfer)));
        line.pieces.extend(own.map(|m| vec![point(at, &m.bytes_per_second)]));
    }
    let rates = Axis::fitting("payload bytes for each second", values(&lines), rate);
    let mut rows: Vec<Vec<String>> = cells
        .iter()
        .map(|cell| {
            let memcpy = cell.of_memcpy.map_or("-".into(), |share| percent(share.median));
            let mut row = vec![bytes(cell.transfer), segment_name(cell)];
            row.extend(rate_columns(&cell.bytes_per_second));
            row.extend([memcpy, cell.batch.to_string(), count(cell.descriptors)]);
            row.extend([count(cell.doorbells), cell.map_calls.to_string()]);
            row
        })
        .collect();
    rows.extend(results.memcpy.iter().map(|memcpy| {
        let mut row = vec![bytes(memcpy.transfer), "memcpy".to_owned()];
        row.extend(rate_columns(&memcpy.bytes_per_second));
        row.resize(10, String::new());
        row
    }));
    Some(Figure {
        id: "throughput",
        title: "Throughput over segment size",
        caption: format!(
            "A line for each transfer size, from the smallest segment to the largest; beside \
             them the contiguous transfer and the processor's own copy. {SPREAD}{note}"
        ),
        chart: (!lines.is_empty()).then_some(Chart {
            varied: axis.axis,
            values: rates,
            lines,
            rules: Vec::new(),
            rows: false,
        }),
        head: vec![
            "transfer",
            "segment",
            "median",
            "p25 to p75",
            "min to max",
            "of memcpy",
            "batch",
            "descriptors",
            "doorbells",
            "map calls",
        ],
        rows,
        calculated: false,
    })
}

fn rate_columns(spread: &Spread) -> [String; 3] {
    [rate(spread.median), middle_half(spread, rate), extent(spread, rate)]
}

fn ratio(cells: &[&Cell]) -> Option<Figure> {
    let axis = SegmentAxis::new(cells.iter().filter_map(|cell| cell.segment), &[]);
    let value = |cell: &Cell| cell.of_contiguous.as_ref().map(|share| point(0.0, share));
    let (lines, note) = over_segments(cells, &axis, value);
    if lines.is_empty() {
        return None;
    }
    let scale = Axis::linear(
        "share of the contiguous rate",
        values(&lines).into_iter().chain([1.0]),
        |share| format!("{:.0}%", share * 100.0),
    );
    let rows = cells.iter().filter_map(|cell| {
        let share = cell.of_contiguous?;
        let meaning = match share {
            share if is_undecided(&share) => "~ 1 is within the middle half",
            Spread { median, .. } if median >= CHEAP => "costs less than 5%",
            _ => "",
        };
        Some(vec![
            bytes(cell.transfer),
            segment_name(cell),
            percent(share.median),
            middle_half(&share, percent),
            extent(&share, percent),
            meaning.to_owned(),
        ])
    });
    Some(Figure {
        id: "ratio",
        title: "Scatter/gather as a share of contiguous",
        caption: format!(
            "Each round's rate in segments over the contiguous rate of the same round. Above \
             the dashed line scatter/gather costs less than 5%. {SPREAD}{note}"
        ),
        rows: rows.collect(),
        chart: Some(Chart {
            varied: axis.axis,
            values: scale,
            lines,
            rules: vec![five_percent()],
            rows: false,
        }),
        head: vec!["transfer", "segment", "median", "p25 to p75", "min to max", "meaning"],
        calculated: false,
    })
}

pub(super) fn five_percent() -> Rule {
    Rule { value: CHEAP, name: format!("{:.0}%: costs 5%", CHEAP * 100.0) }
}

/// A line for each transfer size over batches or channels.
fn varied(
    cells: &[&Cell],
    at: impl Fn(&Cell) -> f64,
    value: impl Fn(&Cell) -> Spread,
) -> (Vec<Line>, String) {
    let (sizes, note) = drawn(cells.iter().map(|cell| cell.transfer).collect());
    let mut places: Vec<f64> = cells.iter().map(|cell| at(cell)).collect();
    places.sort_by(f64::total_cmp);
    places.dedup();
    let (gap, drawn) = (least_gap(places.into_iter()), sizes.len());
    let line = |(n, transfer): (usize, u64)| {
        let own = cells.iter().filter(|cell| cell.transfer == transfer);
        let beside = beside(n, drawn, gap);
        let mut points: Vec<Point> =
            own.map(|cell| point(at(cell) + beside, &value(cell))).collect();
        points.sort_by(|a, b| a.at.total_cmp(&b.at));
        Line { name: format!("{} transfer", bytes(transfer)), pieces: vec![points] }
    };
    (sizes.into_iter().enumerate().map(line).collect(), note)
}

fn batches(cells: &[&Cell]) -> Option<Figure> {
    let sizes: BTreeSet<u32> = cells.iter().map(|cell| cell.batch).collect();
    let (lines, note) =
        varied(cells, |cell| log2(cell.batch.into()), |cell| cell.operations_per_second);
    let ticks = sizes.into_iter().map(|batch| (log2(batch.into()), batch.to_string()));
    let values = Axis::fitting("transfers for each second", values(&lines), operations);
    let rows = cells.iter().map(|cell| {
        vec![
            bytes(cell.transfer),
            cell.batch.to_string(),
            operations(cell.operations_per_second.median),
            middle_half(&cell.operations_per_second, operations),
            extent(&cell.operations_per_second, operations),
            rate(cell.bytes_per_second.median),
            count(cell.doorbells),
        ]
    });
    (!cells.is_empty()).then(|| Figure {
        id: "batch",
        title: "Transfers for each doorbell",
        caption: format!(
            "How many transfers get done when so many are submitted at once. {SPREAD}{note}"
        ),
        rows: rows.collect(),
        chart: Some(Chart {
            varied: Axis::named("transfers for each doorbell", ticks.collect()),
            values,
            lines,
            rules: Vec::new(),
            rows: false,
        }),
        head: vec![
            "transfer",
            "batch",
            "transfers per second",
            "p25 to p75",
            "min to max",
            "rate",
            "doorbells",
        ],
        calculated: false,
    })
}

/// A rate of operations.
pub(super) fn operations(per_second: f64) -> String {
    match per_second {
        _ if per_second >= 1e6 => format!("{:.2} M/s", per_second / 1e6),
        _ if per_second >= 1e3 => format!("{:.0} k/s", per_second / 1e3),
        _ => format!("{per_second:.1} /s"),
    }
}

fn channels(cells: &[&Cell]) -> Option<Figure> {
    let counts: BTreeSet<u32> = cells.iter().map(|cell| cell.channels).collect();
    // One channel is nothing to compare.
    if counts.len() < 2 {
        return None;
    }
    let (lines, note) = varied(cells, |cell| cell.channels.into(), |cell| cell.bytes_per_second);
    let ticks = counts.into_iter().map(|n| (f64::from(n), n.to_string()));
    let values = Axis::fitting("payload bytes for each second", values(&lines), rate);
    let rows = cells.iter().map(|cell| {
        let mut row = vec![bytes(cell.transfer), cell.channels.to_string()];
        row.extend(rate_columns(&cell.bytes_per_second));
        row.push(cell.of_memcpy.map_or("-".into(), |share| percent(share.median)));
        row
    });
    Some(Figure {
        id: "channels",
        title: "Channels at once",
        caption: format!("The rate over all channels together. {SPREAD}{note}"),
        rows: rows.collect(),
        chart: Some(Chart {
            varied: Axis::named("channels", ticks.collect()),
            values,
            lines,
            rules: Vec::new(),
            rows: false,
        }),
        head: vec!["transfer", "channels", "median", "p25 to p75", "min to max", "of memcpy"],
        calculated: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fixture;

    #[test]
    fn no_bar_hides_another() {
        for figure in measured(&fixture::results()) {
            let Some(chart) = figure.chart.filter(|_| figure.id != "latency") else { continue };
            let points = chart.lines.iter().flat_map(|line| line.pieces.iter().flatten());
            let mut places: Vec<f64> = points.map(|point| point.at).collect();
            let all = places.len();
            places.sort_by(f64::total_cmp);
            places.dedup();
            assert_eq!(places.len(), all, "{}", figure.id);
        }
    }
}
