//! Results as text of at most 80 columns: the answer first, then the tables.

use std::fmt::Write as _;

use super::results::{
    Allocation, Cell, Conditions, Latency, LinkView, Noise, Results, Series, Spread,
};
use super::spread::{is_wide, marks};
use super::units::bytes;
use super::verdict::verdict;

/// The widest line.
const WIDTH: usize = 80;

/// The answer of a benchmark, its setup, its tables, and its notes behind them.
#[must_use]
pub fn table(results: &Results) -> String {
    let mut text = verdict(results).map_or(String::new(), |answer| wrapped("", &answer) + "\n");
    text += &noise(&results.noise);
    text += &setup(results);
    if let Some(why) = &results.ended_early {
        text += &wrapped("ENDED EARLY: ", &format!("{why}; what was measured before follows"));
    }
    let cells = |series| results.cells.iter().filter(move |cell| cell.series == series);
    let unit = Unit::of(cells(Series::Segments));
    section(
        &mut text,
        "Contiguous against scatter/gather",
        segment_head(unit),
        cells(Series::Segments).map(|cell| segment_row(cell, unit)),
    );
    section(
        &mut text,
        "What a transfer takes, and its buffers in map calls",
        work_head(),
        cells(Series::Segments).map(|cell| work_row(cell, results)),
    );
    section(
        &mut text,
        "Transfers for a doorbell",
        batch_head(),
        cells(Series::Batch).map(batch_row),
    );
    section(&mut text, "Channels", channel_head(), cells(Series::Channels).map(channel_row));
    section(
        &mut text,
        "One transfer at a time",
        latency_head(),
        cells(Series::Latency).map(latency_row),
    );
    let memcpy = results.memcpy.iter().map(|memcpy| {
        let Spread { median, .. } = memcpy.bytes_per_second;
        format!(
            "{:>10} {:>7.*} {}",
            bytes(memcpy.transfer),
            digits(median / 1e9),
            median / 1e9,
            range(&memcpy.bytes_per_second)
        )
    });
    section(
        &mut text,
        "The processor's own copy (memcpy)",
        format!("{:>10} {:>7} {:>11}", "size", "GB/s", "p25-p75"),
        memcpy,
    );
    section(
        &mut text,
        "Memory for the device: until it is mapped, and until it is freed",
        allocation_head(),
        allocation_rows(&results.allocations).into_iter(),
    );
    if let Some(view) = &results.link {
        text += &link(view);
    }
    section(
        &mut text,
        "Calculated, not measured: these transfers on that link, and what they take of it",
        share_head(),
        cells(Series::Segments).filter_map(share_row),
    );
    if !results.notes.is_empty() {
        text += "\nNotes\n";
        for note in &results.notes {
            text += &wrapped("- ", note);
        }
    }
    text
}

fn setup(results: &Results) -> String {
    let setup = &results.setup;
    let (device, machine) = (&setup.device, &setup.machine);
    let mut text = String::new();
    let version = device.version.as_deref().map(|v| format!(" {v}")).unwrap_or_default();
    text += &wrapped(
        "device   ",
        &format!(
            "{} {}{version} ({}), channels: {}, through {}, {}",
            device.location,
            device.driver,
            device.ids,
            device.channels,
            device.iommu,
            device.completion
        ),
    );
    let hypervisor = machine.hypervisor.as_deref().unwrap_or("none");
    text += &wrapped(
        "machine  ",
        &format!(
            "{}, {} processors, {:.1} GiB, Linux {} {}, hypervisor: {hypervisor}",
            machine.processor.as_deref().unwrap_or("unnamed processor"),
            machine.processors,
            machine.memory as f64 / f64::from(1 << 30),
            machine.kernel,
            machine.architecture
        ),
    );
    text += &wrapped(
        "measured ",
        &format!(
            "{}, {} rounds, profile {}, seed {}, {:.1} s, peak memory {}",
            setup.taken,
            setup.rounds,
            setup.profile,
            setup.seed,
            setup.elapsed as f64 / 1e9,
            setup.peak_memory.map_or("unknown".into(), |bytes| format!("{} MiB", bytes >> 20))
        ),
    );
    if let Some(during) = &setup.conditions {
        text += &wrapped("load     ", &conditions(during));
    }
    text
}

/// How much of what was measured is uncertain; which, is in the JSON.
fn noise(noise: &Noise) -> String {
    let Noise { undecided, wide, of } = noise;
    if undecided.is_empty() && wide.is_empty() {
        return String::new();
    }
    wrapped(
        "noise    ",
        &format!(
            "of {of} variants {} within the noise of contiguous (~: 1 lies in the middle half of \
             the ratio), {} uncertain in size (!: the middle half spans over a quarter of the \
             median); --json lists them",
            undecided.len(),
            wide.len()
        ),
    )
}

pub(super) fn conditions(conditions: &Conditions) -> String {
    let number = |load: Option<f64>| load.map_or("unknown".into(), |load| format!("{load:.2}"));
    let [before, after] = conditions.load.map(number);
    let steal = conditions.steal.map_or("unknown".into(), |steal| format!("{:.1}%", steal * 100.0));
    let governors = match conditions.governors.as_slice() {
        [] => "none".into(),
        list => list.join(" and "),
    };
    let allowed = conditions.allowed.as_deref().unwrap_or("unknown");
    let pinned = if conditions.pinned { "pinned to" } else { "not pinned," };
    format!(
        "{before} before and {after} after, steal {steal}, frequency governor {governors}, \
         {pinned} processors {allowed}"
    )
}

fn section(text: &mut String, title: &str, head: String, rows: impl Iterator<Item = String>) {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return;
    }
    // Writing to a string cannot fail.
    let _ = writeln!(text, "\n{title}\n{}", head.trim_end());
    for row in rows {
        let _ = writeln!(text, "{}", row.trim_end());
    }
}

/// A unit in which the quickest of the cells is readable.
#[derive(Debug, Clone, Copy)]
struct Unit {
    name: &'static str,
    bytes: f64,
}

impl Unit {
    fn of<'a>(cells: impl Iterator<Item = &'a Cell>) -> Unit {
        let quickest = cells.map(|cell| cell.bytes_per_second.median).fold(0.0, f64::max);
        match quickest {
            _ if quickest >= 1e8 => Unit { name: "GB/s", bytes: 1e9 },
            _ if quickest >= 1e5 => Unit { name: "MB/s", bytes: 1e6 },
            _ => Unit { name: "kB/s", bytes: 1e3 },
        }
    }
}

fn segment_head(unit: Unit) -> String {
    format!(
        "{:>10} {:>10} {:>6}  {:<12} {:>5} {:<10} {:>6} {:>6} {:>6}",
        "transfer", "segment", unit.name, "p25-p75", "of", "p25-p75", "of mem", "p50", "p99"
    )
}

fn segment_row(cell: &Cell, unit: Unit) -> String {
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

fn segment_name(cell: &Cell) -> String {
    cell.segment.map_or("contiguous".into(), bytes)
}

fn work_head() -> String {
    format!(
        "{:>10} {:>10} {:>12} {:>9} {:>9}",
        "transfer", "segment", "descriptors", "doorbells", "map calls"
    )
}

fn work_row(cell: &Cell, results: &Results) -> String {
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

fn batch_head() -> String {
    format!(
        "{:>10} {:>6} {:>9}  {:<12} {:>7} {:>7} {:>7} {:>9}",
        "transfer", "batch", "Mop/s", "p25-p75", "GB/s", "p50", "p99", "bells"
    )
}

fn batch_row(cell: &Cell) -> String {
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

fn channel_head() -> String {
    format!(
        "{:>10} {:>8} {:>7}  {:<12} {:>6} {:>8} {:>8}",
        "transfer", "channels", "GB/s", "p25-p75", "of mem", "p50", "p99"
    )
}

fn channel_row(cell: &Cell) -> String {
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

fn latency_head() -> String {
    format!(
        "{:>10} {:>9} {:>8} {:>8} {:>8} {:>9} {:>10}",
        "transfer", "Mop/s", "p50", "p99", "p99.9", "max", "samples"
    )
}

fn latency_row(cell: &Cell) -> String {
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

fn allocation_head() -> String {
    format!(
        "{:>10} {:>8} {:<15} {:>8} {:>8} {:>8} {:>9}",
        "size", "median", "p25-p75", "mapping", "release", "segments", "map calls"
    )
}

/// A line for each strategy, and under it one for each size.
fn allocation_rows(rows: &[Allocation]) -> Vec<String> {
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

fn allocation_row(row: &Allocation) -> String {
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

/// What a link would make of it.
fn link(view: &LinkView) -> String {
    let mut text = format!(
        "\nCalculated, not measured, in Gb/s: {} on\n{}\n{:>8} {:>22} {:>22} {:>22}\n{:>8}",
        bytes(view.transfer),
        view.link,
        "",
        "device reads",
        "device writes",
        "memory to memory",
        "segment"
    );
    text += &" contig.    s/g  ratio".repeat(3);
    text.push('\n');
    for row in &view.rows {
        text += &format!("{:>8}", bytes(row.segment));
        for way in 0..3 {
            let (whole, parts) = (row.contiguous_gbps[way], row.segmented_gbps[way]);
            text += &format!(" {whole:>7.2} {parts:>6.2} {:>6}", percent(row.ratio[way]));
        }
        text.push('\n');
    }
    let least = view.less_than_5_percent.map(|least| least.map_or("none".into(), bytes));
    text += &format!("less than 5% lost from a segment of: {}\n", least.join(", "));
    text
}

fn share_head() -> String {
    format!(
        "{:>10} {:>10} {:>9} {:>10} {:>10} {:>7} {:>5} {:>8}",
        "transfer", "segment", "packets", "bytes up", "bytes down", "Gb/s", "of", "share"
    )
}

fn share_row(cell: &Cell) -> Option<String> {
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
fn range(spread: &Spread) -> String {
    scaled(spread, 1e9, digits(spread.median / 1e9))
}

/// The digits behind the point of a rate.
fn digits(rate: f64) -> usize {
    match rate {
        _ if rate < 1.0 => 3,
        _ if rate < 100.0 => 2,
        _ if rate < 1000.0 => 1,
        _ => 0,
    }
}

/// The middle half in a unit, in so many digits as fit, marked when it is wide.
fn scaled(spread: &Spread, unit: f64, digits: usize) -> String {
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

fn percent(share: f64) -> String {
    match share {
        _ if share < 0.0005 => "<0.1%".into(),
        // The bound is where the digits shown would be one more.
        _ if share < 0.0995 => format!("{:.1}%", share * 100.0),
        _ => format!("{:.0}%", share * 100.0),
    }
}

fn percents(share: &Spread) -> String {
    let digits = usize::from(share.p75 < 0.1);
    format!("{:.digits$}-{:.digits$}", share.p25 * 100.0, share.p75 * 100.0)
}

fn quantiles(latency: Option<&Latency>) -> (String, String) {
    latency.map_or(("-".into(), "-".into()), |latency| (time(latency.p50), time(latency.p99)))
}

/// A time with its unit, in three to four digits.
fn time(ns: u64) -> String {
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
fn short(count: f64) -> String {
    match count {
        _ if count >= 1e6 => format!("{:.2}M", count / 1e6),
        _ if count.fract() == 0.0 => format!("{count:.0}"),
        _ if count < 1.0 => format!("{count:.3}"),
        _ if count < 1000.0 => format!("{count:.1}"),
        _ => format!("{count:.0}"),
    }
}

/// A text in lines that fit, all but the first one indented, cut at blanks where there are
/// any.
pub(super) fn wrapped(first: &str, text: &str) -> String {
    let indent = first.chars().count();
    let room = WIDTH - indent;
    let mut lines = first.to_owned();
    let mut used = 0;
    for word in text.split_whitespace() {
        let characters: Vec<char> = word.chars().collect();
        for piece in characters.chunks(room) {
            if used > 0 && used + 1 + piece.len() > room {
                lines.push('\n');
                lines.extend(std::iter::repeat_n(' ', indent));
                used = 0;
            } else if used > 0 {
                lines.push(' ');
                used += 1;
            }
            lines.extend(piece);
            used += piece.len();
        }
    }
    lines + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::super::plan::LONGEST;
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

    #[test]
    fn nothing_is_wider_than_the_terminal() {
        let ratio = |median| Spread {
            median,
            p25: median * 0.5,
            p75: median * 1.5,
            min: 0.0,
            max: median * 2.0,
            rounds: 10,
        };
        for factor in [1e-6, 1e-3, 1.0, 9.9, 1e2] {
            let mut results = fixture::results();
            results.setup.device.location = "/a".repeat(54);
            results.setup.machine.processor = Some("x".repeat(150));
            results.notes.push("y".repeat(350));
            results.ended_early = Some("z".repeat(350));
            for cell in &mut results.cells {
                cell.bytes_per_second = ratio(cell.bytes_per_second.median * factor);
                cell.operations_per_second = ratio(cell.operations_per_second.median * factor);
                cell.of_memcpy = cell.of_memcpy.map(|share| ratio(share.median * factor));
                // Ten times the contiguous rate is more than any device has.
                let share = cell.of_contiguous.map(|share| share.median * factor.min(9.9));
                cell.of_contiguous = share.map(ratio);
                cell.transfer = (cell.transfer * 3 / 2).min(LONGEST) - 1;
                cell.segment = cell.segment.map(|segment| segment * 3 / 2 - 1);
                (cell.descriptors, cell.map_calls) = (f64::from(1 << 20), 1 << 16);
            }
            for row in &mut results.allocations {
                let slow = row.allocate.map(|_| ratio(9_996.0 * factor));
                (row.allocate, row.map, row.release) = (slow, slow, slow);
                row.strategy = "physically contiguous in transparent huge pages".into();
                row.failed = row.failed.as_ref().map(|_| "w".repeat(250));
            }
            let text = table(&results);
            let long: Vec<&str> =
                text.lines().filter(|line| line.chars().count() > WIDTH).collect();
            assert!(long.is_empty(), "{factor}: {}", long.join("\n"));
        }
    }

    #[test]
    fn long_texts_are_wrapped() {
        let text = wrapped("- ", &"word ".repeat(50));
        assert!(
            text.lines().count() == 4 && text.lines().all(|line| line.len() <= WIDTH),
            "{text}"
        );
        assert!(
            text.starts_with("- word") && text.lines().skip(1).all(|l| l.starts_with("  word"))
        );
    }
}
