//! The heads and the rows of the tables, and the figures in them.

use super::wrapped;
use crate::bench::results::{Allocation, Cell, Latency, Method, Results, SmallCopy, Spread};
use crate::bench::spread::{is_wide, marks};
use crate::bench::units::bytes;

/// A unit in which the quickest of the cells is readable.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    name: &'static str,
    bytes: f64,
}

impl Unit {
    pub(super) fn of<'a>(cells: impl Iterator<Item = &'a Cell>) -> Unit {
        let quickest = cells.map(|cell| cell.bytes_per_second.median).fold(0.0, f64::max);
        match quickest {
            _ if quickest >= 1e8 => Unit { name: "GB/s", bytes: 1e9 },
            _ if quickest >= 1e5 => Unit { name: "MB/s", bytes: 1e6 },
            _ => Unit { name: "kB/s", bytes: 1e3 },
        }
    }
}

pub(super) fn segment_head(unit: Unit) -> String {
    format!(
        "{:>10} {:>10} {:>6}  {:<12} {:>5} {:<10} {:>6} {:>6} {:>6}",
        "transfer", "segment", unit.name, "p25-p75", "of", "p25-p75", "of mem", "p50", "p99"
    )
}

pub(super) fn segment_row(cell: &Cell, unit: Unit) -> String {
    let rate = cell.bytes_per_second.median / unit.bytes;
    let (ratio, span) = match &cell.of_contiguous {
        Some(ratio) => (percent(ratio.median), format!("{}{}", percents(ratio), marks(ratio))),
        None if cell.segment.is_some() => ("-".into(), String::new()),
        None => (String::new(), String::new()),
    };
    let (p50, p99) = quantiles(cell.latency.as_ref());
    format!(
        "{:>10} {:>10} {:>6.*}  {:<12} {ratio:>5} {span:<10} {:>6} {p50:>6} {p99:>6}",
        bytes(cell.transfer),
        segment_name(cell),
        digits(rate),
        rate,
        scaled(&cell.bytes_per_second, unit.bytes, digits(rate)),
        cell.of_memcpy.as_ref().map_or("-".into(), |of| percent(of.median)),
    )
}

pub(super) fn segment_name(cell: &Cell) -> String {
    cell.segment.map_or("contiguous".into(), bytes)
}

pub(super) fn method_head(unit: Unit) -> String {
    format!(
        "{:>10} {:>10} {:<9} {:>6}  {:<12} {:>6} {:<11} {:>6}",
        "transfer", "segment", "told by", unit.name, "p25-p75", "of PRP", "p25-p75", "p50"
    )
}

/// A row beside the contiguous transfer that is told by PRPs.
pub(super) fn method_row(cell: &Cell, unit: Unit) -> String {
    let rate = cell.bytes_per_second.median / unit.bytes;
    let (ratio, span) = match &cell.of_contiguous {
        Some(ratio) => (percent(ratio.median), format!("{}{}", percents(ratio), marks(ratio))),
        None => (String::new(), String::new()),
    };
    let by = match cell.method {
        Method::Auto => "any",
        Method::Prp => "PRP",
        Method::Sgl => "SGL",
        Method::Verify => "verify",
        Method::OneBlock => "one block",
    };
    format!(
        "{:>10} {:>10} {by:<9} {:>6.*}  {:<12} {ratio:>6} {span:<11} {:>6}",
        bytes(cell.transfer),
        segment_name(cell),
        digits(rate),
        rate,
        scaled(&cell.bytes_per_second, unit.bytes, digits(rate)),
        quantiles(cell.latency.as_ref()).0,
    )
}

pub(super) fn work_head() -> String {
    format!(
        "{:>10} {:>10} {:>12} {:>9} {:>9}",
        "transfer", "segment", "descriptors", "doorbells", "map calls"
    )
}

pub(super) fn work_row(cell: &Cell, results: &Results) -> String {
    let maps = match results.setup.device.iommu.as_str() {
        "noiommu" => "-".into(),
        _ => cell.map_calls.to_string(),
    };
    format!(
        "{:>10} {:>10} {:>12} {:>9} {maps:>9}",
        bytes(cell.transfer),
        segment_name(cell),
        short(cell.descriptors),
        short(cell.doorbells),
    )
}

pub(super) fn cycle_head() -> String {
    format!(
        "{:>10} {:>10} {:>12} {:>8} {:>6} {:>14}",
        "transfer", "segment", "cycles", "B/cycle", "of", "cycles/segment"
    )
}

/// Beside the cycles of the contiguous transfer; `None` when none were counted.
pub(super) fn cycle_row(cell: &Cell, contiguous: Option<f64>) -> Option<String> {
    let cycles = cell.cycles?;
    let mut row = format!(
        "{:>10} {:>10} {cycles:>12.0} {:>8.2}",
        bytes(cell.transfer),
        segment_name(cell),
        cell.transfer as f64 / cycles
    );
    if let (Some(segment), Some(contiguous)) = (cell.segment, contiguous) {
        let pieces = cell.transfer.div_ceil(segment) as f64;
        let each = (cycles - contiguous) / pieces;
        row += &format!(" {:>6} {each:>14.1}", percent(contiguous / cycles));
    }
    Some(row)
}

pub(super) fn batch_head() -> String {
    format!(
        "{:>10} {:>6} {:>9}  {:<12} {:>7} {:>7} {:>7} {:>9}",
        "transfer", "batch", "Mop/s", "p25-p75", "GB/s", "p50", "p99", "bells"
    )
}

pub(super) fn batch_row(cell: &Cell) -> String {
    let (p50, p99) = quantiles(cell.latency.as_ref());
    format!(
        "{:>10} {:>6} {:>9.3}  {:<12} {:>7.*} {p50:>7} {p99:>7} {:>9.6}",
        bytes(cell.transfer),
        cell.batch,
        cell.operations_per_second.median / 1e6,
        scaled(&cell.operations_per_second, 1e6, 3),
        digits(cell.bytes_per_second.median / 1e9),
        cell.bytes_per_second.median / 1e9,
        cell.doorbells
    )
}

pub(super) fn channel_head() -> String {
    format!(
        "{:>10} {:>8} {:>7}  {:<12} {:>6} {:>8} {:>8}",
        "transfer", "channels", "GB/s", "p25-p75", "of mem", "p50", "p99"
    )
}

pub(super) fn channel_row(cell: &Cell) -> String {
    let (p50, p99) = quantiles(cell.latency.as_ref());
    format!(
        "{:>10} {:>8} {:>7.*}  {:<12} {:>6} {p50:>8} {p99:>8}",
        bytes(cell.transfer),
        cell.channels,
        digits(cell.bytes_per_second.median / 1e9),
        cell.bytes_per_second.median / 1e9,
        range(&cell.bytes_per_second),
        cell.of_memcpy.as_ref().map_or("-".into(), |of| percent(of.median)),
    )
}

pub(super) fn latency_head() -> String {
    format!(
        "{:>10} {:>9} {:>8} {:>8} {:>8} {:>9} {:>10}",
        "transfer", "Mop/s", "p50", "p99", "p99.9", "max", "samples"
    )
}

pub(super) fn latency_row(cell: &Cell) -> String {
    let rate = cell.operations_per_second.median / 1e6;
    let head = format!("{:>10} {rate:>9.3}", bytes(cell.transfer));
    match &cell.latency {
        Some(Latency { samples, p50, p99, p999, max, .. }) => format!(
            "{head} {:>8} {:>8} {:>8} {:>9} {samples:>10}",
            time(*p50),
            time(*p99),
            time(*p999),
            time(*max)
        ),
        None => head,
    }
}

pub(super) fn slot_head() -> String {
    format!(
        "{:>10} {:>8} {:>9}  {:<13} {:>6} {:>6} {:>8} {:>8}",
        "copy", "channels", "Mop/s", "p25-p75", "GB/s", "of mem", "p50", "p99"
    )
}

pub(super) fn slot_row(cell: &Cell) -> String {
    let (p50, p99) = quantiles(cell.latency.as_ref());
    format!(
        "{:>10} {:>8} {:>9.3}  {:<13} {:>6.*} {:>6} {p50:>8} {p99:>8}",
        bytes(cell.transfer),
        cell.channels,
        cell.operations_per_second.median / 1e6,
        scaled(&cell.operations_per_second, 1e6, 3),
        digits(cell.bytes_per_second.median / 1e9),
        cell.bytes_per_second.median / 1e9,
        cell.of_memcpy.as_ref().map_or("-".into(), |of| percent(of.median)),
    )
}

pub(super) fn small_head() -> String {
    format!("{:>10} {:>10} {:>10} {:>12}", "copy", "memcpy", "device", "card, calc.")
}

pub(super) fn small_row(row: &SmallCopy) -> String {
    let SmallCopy { transfer, memcpy, device, card } = *row;
    let [memcpy, device, card] = [memcpy, device, card].map(nanoseconds);
    format!("{:>10} {memcpy:>10} {device:>10} {card:>12}", bytes(transfer))
}

/// The time of a copy, short ones to a tenth of a nanosecond.
fn nanoseconds(ns: f64) -> String {
    if ns < 99.95 { format!("{ns:.1}ns") } else { time(ns as u64) }
}

pub(super) fn allocation_head() -> String {
    format!(
        "{:>10} {:>8} {:<15} {:>8} {:>8} {:>8} {:>9}",
        "size", "median", "p25-p75", "mapping", "release", "segments", "map calls"
    )
}

/// A line for each strategy, and under it one for each size.
pub(super) fn allocation_rows(rows: &[Allocation]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut strategy = "";
    for row in rows {
        if row.strategy != strategy {
            strategy = &row.strategy;
            lines.push(format!("  {strategy}"));
        }
        lines.push(allocation_row(row));
    }
    lines
}

pub(super) fn allocation_row(row: &Allocation) -> String {
    let head = format!("{:>10}", bytes(row.len));
    let nanoseconds = |figure: f64| time(figure as u64);
    match (&row.allocate, &row.failed) {
        (Some(allocate), None) => format!(
            "{head} {:>8} {:<15} {:>8} {:>8} {:>8} {:>9}",
            nanoseconds(allocate.median),
            format!("{}-{}", nanoseconds(allocate.p25), nanoseconds(allocate.p75)),
            row.map.as_ref().map_or("-".into(), |map| nanoseconds(map.median)),
            row.release.as_ref().map_or("-".into(), |release| nanoseconds(release.median)),
            row.segments,
            row.map_calls
        ),
        (_, why) => {
            let why = why.as_deref().unwrap_or("not measured");
            wrapped(&format!("{head} failed: "), why).trim_end().to_owned()
        }
    }
}

pub(super) fn share_head() -> String {
    format!(
        "{:>10} {:>10} {:>9} {:>10} {:>10} {:>7} {:>5} {:>8}",
        "transfer", "segment", "packets", "bytes up", "bytes down", "Gb/s", "of", "share"
    )
}

pub(super) fn share_row(cell: &Cell) -> Option<String> {
    let link = cell.link?;
    Some(format!(
        "{:>10} {:>10} {:>9} {:>10} {:>10} {:>7.2} {:>5} {:>8}",
        bytes(cell.transfer),
        segment_name(cell),
        short(link.tlps),
        short(link.upstream),
        short(link.downstream),
        link.gbps,
        link.ratio.map_or(String::new(), percent),
        percent(link.share)
    ))
}

/// The middle half, in GB/s.
pub(super) fn range(spread: &Spread) -> String {
    scaled(spread, 1e9, digits(spread.median / 1e9))
}

/// The digits behind the point of a rate.
pub(super) fn digits(rate: f64) -> usize {
    match rate {
        _ if rate < 1.0 => 3,
        _ if rate < 100.0 => 2,
        _ if rate < 1000.0 => 1,
        _ => 0,
    }
}

/// The middle half in a unit, in so many digits as fit, marked when it is wide.
pub(super) fn scaled(spread: &Spread, unit: f64, digits: usize) -> String {
    let mark = if is_wide(spread) { "!" } else { "" };
    let (low, high) = (spread.p25 / unit, spread.p75 / unit);
    let digits = match high {
        _ if high < 10.0 => digits,
        _ if high < 100.0 => digits.min(2),
        _ if high < 1000.0 => digits.min(1),
        _ => 0,
    };
    format!("{low:.digits$}-{high:.digits$}{mark}")
}

pub(super) fn percent(share: f64) -> String {
    match share {
        _ if share < 0.0005 => "<0.1%".into(),
        // The bound is where the digits shown would be one more.
        _ if share < 0.0995 => format!("{:.1}%", share * 100.0),
        _ => format!("{:.0}%", share * 100.0),
    }
}

pub(super) fn percents(share: &Spread) -> String {
    let digits = usize::from(share.p75 < 0.1);
    format!("{:.digits$}-{:.digits$}", share.p25 * 100.0, share.p75 * 100.0)
}

pub(super) fn quantiles(latency: Option<&Latency>) -> (String, String) {
    latency.map_or(("-".into(), "-".into()), |latency| (time(latency.p50), time(latency.p99)))
}

/// A time with its unit, in three to four digits.
pub(super) fn time(ns: u64) -> String {
    let ns = ns as f64;
    match ns {
        _ if ns < 1e3 => format!("{ns:.0}ns"),
        // The bounds are where the digits shown would be one more.
        _ if ns < 9.995e3 => format!("{:.2}us", ns / 1e3),
        _ if ns < 999.5e3 => format!("{:.0}us", ns / 1e3),
        _ if ns < 9.995e6 => format!("{:.2}ms", ns / 1e6),
        _ if ns < 999.5e6 => format!("{:.0}ms", ns / 1e6),
        _ => format!("{:.2}s", ns / 1e9),
    }
}

/// A count for each transfer, in at most 6 characters.
pub(super) fn short(count: f64) -> String {
    match count {
        _ if count >= 1e6 => format!("{:.2}M", count / 1e6),
        _ if count.fract() == 0.0 => format!("{count:.0}"),
        _ if count < 1.0 => format!("{count:.3}"),
        _ if count < 1000.0 => format!("{count:.1}"),
        _ => format!("{count:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let times = [999, 1_234, 12_345, 1_234_567, 123_456_789, 1_500_000_000].map(time);
        assert_eq!(times, ["999ns", "1.23us", "12us", "1.23ms", "123ms", "1.50s"]);
        assert_eq!([9_996, 999_600, 9_996_000].map(time), ["10us", "1.00ms", "10ms"]);
        assert_eq!([1.0, 0.03125, 4096.0, 1.5].map(short), ["1", "0.031", "4096", "1.5"]);
        assert_eq!(short(f64::from(1 << 20)), "1.05M");
        assert_eq!([0.974, 0.0482, 0.000_02].map(percent), ["97%", "4.8%", "<0.1%"]);
    }
}
