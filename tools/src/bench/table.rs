//! Results as text of at most 80 columns: the answer first, then the tables.

use std::fmt::Write as _;

use self::rows::{
    Unit, allocation_head, allocation_rows, batch_head, batch_row, channel_head, channel_row,
    cycle_head, cycle_row, digits, latency_head, latency_row, method_head, method_row, percent,
    range, segment_head, segment_row, share_head, share_row, slot_head, slot_row, small_head,
    small_row, work_head, work_row,
};
use super::results::{
    Cell, ClockInfo, Conditions, LinkView, Noise, Results, Series, SmallCopies, Spread,
};
use super::units::bytes;
use super::verdict::{CHEAP, verdict};

mod rows;

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
    if let Some(clock) = &results.clock {
        text += &cycles(results, clock);
    }
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
    section(
        &mut text,
        "Where data is, told by PRPs and by SGLs, and what a transfer takes without its data",
        method_head(unit),
        cells(Series::Methods).map(|cell| method_row(cell, unit)),
    );
    section(&mut text, "Channels", channel_head(), cells(Series::Channels).map(channel_row));
    section(
        &mut text,
        "One transfer at a time",
        latency_head(),
        cells(Series::Latency).map(latency_row),
    );
    section(
        &mut text,
        "Small copies from slot to slot, 32 for a doorbell",
        slot_head(),
        cells(Series::Slots).map(slot_row),
    );
    if let Some(view) = &results.small_copies {
        text += &small_copies(view);
    }
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

/// What a transfer takes of a simulated device's clock, and from which segment on that is
/// little, with what a link's arithmetic says of the same.
fn cycles(results: &Results, clock: &ClockInfo) -> String {
    let cells: Vec<&Cell> =
        results.cells.iter().filter(|cell| cell.series == Series::Segments).collect();
    let of = |transfer: u64, segment: Option<u64>| {
        let found = cells.iter().find(|c| (c.transfer, c.segment) == (transfer, segment));
        found.and_then(|cell| cell.cycles)
    };
    let rows = cells.iter().filter_map(|cell| cycle_row(cell, of(cell.transfer, None)));
    let mut text = String::new();
    let title = format!(
        "Cycles of the RTL at the bus width {} bits; host latency {} cycles",
        clock.bus_width, clock.host_latency
    );
    section(&mut text, &title, cycle_head(), rows);
    let Some(transfer) = cells.iter().map(|cell| cell.transfer).max() else { return text };
    let mut shares: Vec<(u64, f64)> = cells
        .iter()
        .filter(|cell| cell.transfer == transfer)
        .filter_map(|cell| Some((cell.segment?, of(transfer, None)? / cell.cycles?)))
        .collect();
    shares.sort_unstable_by_key(|share| std::cmp::Reverse(share.0));
    let cheap = shares.iter().take_while(|share| share.1 >= CHEAP).last();
    let name = |segment: Option<u64>| segment.map_or("none".into(), bytes);
    let mut said = format!(
        "less than 5% lost in transfers of {} from a segment of: {}",
        bytes(transfer),
        name(cheap.map(|share| share.0))
    );
    if let Some(view) = &results.link {
        let [.., both] = view.less_than_5_percent;
        said += &format!("; by the arithmetic of a link, below: {}", name(both));
    }
    text + &wrapped("", &said)
}

/// The time of a copy by the processor, the device and a card, and who is quicker.
fn small_copies(view: &SmallCopies) -> String {
    let mut text = String::new();
    section(&mut text, "The time of one small copy", small_head(), view.rows.iter().map(small_row));
    text + &wrapped("", &quicker(view))
}

/// From which size on an engine is quicker than the processor.
pub(super) fn quicker(view: &SmallCopies) -> String {
    let SmallCopies { batch, doorbell, device_from, card_from, .. } = view;
    let from = |size: &Option<u64>| match size {
        Some(size) => format!("from {} on", bytes(*size)),
        None => "at none of these sizes".to_owned(),
    };
    format!(
        "One channel of this device is quicker than the processor {}. A card is, by the link's \
         arithmetic and with a doorbell of {doorbell:.0} ns for {batch} copies, {}.",
        from(device_from),
        from(card_from)
    )
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
