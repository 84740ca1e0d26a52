//! A comparison as text of at most 100 columns, the verdict first.

use std::fmt::{self, Write as _};

use super::{Change, Comparison, Judgement, ROUNDS, Row, Subject, THRESHOLD, Verdict};
use crate::bench::results::Series;
use crate::bench::table;
use crate::bench::units::{bytes, nanoseconds, rate};

/// Columns for what was measured.
const SUBJECT: usize = 46;
/// A change of the median that is shown even if it is within the noise.
const DOUBTFUL: f64 = 0.25;

pub(super) fn write(comparison: &Comparison, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let Comparison { before, after, warnings, rows, only_before, only_after } = comparison;
    wrapped(f, "", &verdict(comparison))?;
    wrapped(f, "", &format!("before: {before}, after: {after}"))?;
    for warning in warnings {
        wrapped(f, "warning: ", warning)?;
    }
    wrapped(
        f,
        "",
        &format!(
            "A change is beyond the noise when the middle halves of the rounds (p25 to p75) do \
             not overlap and the medians differ by more than {:.0}%; + is better, - is worse. \
             Figures from fewer than {ROUNDS} rounds are not judged.",
            THRESHOLD * 100.0
        ),
    )?;
    let changed = |row: &Row| matches!(row.verdict(), Verdict::Worse | Verdict::Better);
    if rows.iter().any(changed) {
        wrapped(
            f,
            "",
            "What holds for a whole run, such as which processors its threads got, is in no \
             spread: a change that another pair of runs does not repeat is none.",
        )?;
    }
    let sections = [
        (Verdict::Worse, "worse"),
        (Verdict::Better, "better"),
        (Verdict::Machine, "the processor's own copy changed: the machine's speed differs"),
        (
            Verdict::WithMachine,
            "memcpy changed as well: the rate changed, its share of memcpy did not",
        ),
        (
            Verdict::AgainstMachine,
            "memcpy changed alone: the share of memcpy changed, the rate did not with it",
        ),
    ];
    for (verdict, title) in sections {
        section(f, title, comparison.with(verdict).collect())?;
    }
    let doubtful = |row: &&Row| row.figure.change.abs() > DOUBTFUL;
    section(
        f,
        "no change beyond the noise, though the medians differ by more than a quarter: \
         the rounds differ as much",
        comparison.with(Verdict::Same).filter(doubtful).collect(),
    )?;
    let same = comparison.with(Verdict::Same).count();
    writeln!(f, "\nno change beyond the noise: {same} of {}", rows.len())?;
    latencies(f, rows)?;
    for (title, subjects) in [("only before", only_before), ("only after", only_after)] {
        if !subjects.is_empty() {
            writeln!(f, "\n{title}: {}", subjects.len())?;
            for subject in subjects {
                wrapped(f, "  ", &describe(subject))?;
            }
        }
    }
    Ok(())
}

/// What changed, in a sentence or two.
fn verdict(comparison: &Comparison) -> String {
    let rows = |verdict| comparison.with(verdict).collect::<Vec<&Row>>();
    let figures = |count: usize| format!("{count} figure{}", if count == 1 { "" } else { "s" });
    let side = |rows: &[&Row], word: &str| {
        let change = |row: &&&Row| (row.figure.change.abs() * 1e6) as u64;
        let most = rows.iter().max_by_key(change).map(|row| {
            let name = describe(&row.subject);
            format!(", most of all {name} ({:+.1}%)", row.figure.change * 100.0)
        });
        format!("{} {word}{}", figures(rows.len()), most.unwrap_or_default())
    };
    let (worse, better) = (rows(Verdict::Worse), rows(Verdict::Better));
    let all = comparison.rows.len();
    if worse.is_empty() && better.is_empty() {
        let machine = comparison.with(Verdict::Machine).next().is_some();
        let but = if machine { "; the machine's own speed differs" } else { "" };
        return format!("No change beyond the noise in {}{but}.", figures(all));
    }
    format!("Of {}: {}; {}.", figures(all), side(&worse, "worse"), side(&better, "better"))
}

fn section(f: &mut fmt::Formatter<'_>, title: &str, rows: Vec<&Row>) -> fmt::Result {
    if rows.is_empty() {
        return Ok(());
    }
    writeln!(f)?;
    wrapped(f, "", &format!("{title}: {}", rows.len()))?;
    head(f)?;
    rows.into_iter().try_for_each(|row| line(f, row))
}

fn head(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    writeln!(
        f,
        "  {:<SUBJECT$}  {:>9}  {:>9}  {:>9}  {:>13}",
        "", "before", "after", "change", "of memcpy"
    )
}

fn line(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    let Change { before, after, .. } = row.figure;
    let [before, after] = [before.median, after.median].map(|value| match row.subject {
        Subject::Allocation { .. } => nanoseconds(value),
        _ => rate(value),
    });
    let share = row.of_memcpy.as_ref().map(signed).unwrap_or_default();
    let text = format!(
        "  {:<SUBJECT$}  {before:>9}  {after:>9}  {:>9}  {share:>13}",
        shortened(&describe(&row.subject)),
        signed(&row.figure)
    );
    writeln!(f, "{}", text.trim_end())
}

/// The change in per cent, with the judgement's mark.
fn signed(change: &Change) -> String {
    let mark = match change.judgement {
        Judgement::Noise => ' ',
        Judgement::Better => '+',
        Judgement::Worse => '-',
    };
    format!("{:+.1}% {mark}", change.change * 100.0)
}

fn latencies(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    let alone = rows.iter().filter_map(|row| match row.subject {
        Subject::Transfer { series: Series::Latency, .. } => Some((row, row.latency?)),
        _ => None,
    });
    let mut begun = false;
    for (row, latency) in alone {
        if !begun {
            writeln!(f, "\nlatency, not judged: one distribution over all rounds has no spread")?;
            writeln!(
                f,
                "  {:<SUBJECT$}  {:>10} {:>10}  {:>10} {:>10}",
                "", "p50 before", "after", "p99 before", "after"
            )?;
            begun = true;
        }
        let [[p50, p99], [new_p50, new_p99]] =
            latency.map(|times| times.map(|time| nanoseconds(time as f64)));
        writeln!(
            f,
            "  {:<SUBJECT$}  {p50:>10} {new_p50:>10}  {p99:>10} {new_p99:>10}",
            shortened(&describe(&row.subject))
        )?;
    }
    Ok(())
}

fn describe(subject: &Subject) -> String {
    match subject {
        Subject::Transfer { series, transfer, segment, batch, channels, method } => {
            let mut text = bytes(*transfer);
            match segment {
                Some(segment) => {
                    let _ = write!(text, " in {} segments", bytes(*segment));
                }
                None => text.push_str(" contiguous"),
            }
            if *batch > 1 || *series == Series::Batch {
                let _ = write!(text, ", batch {batch}");
            }
            if *channels > 1 || *series == Series::Channels {
                let _ = write!(text, ", channels {channels}");
            }
            match series {
                Series::Latency => text.push_str(", one at a time"),
                Series::Slots => text.push_str(", slots"),
                _ => {}
            }
            text.push_str(method.suffix());
            text
        }
        Subject::Memcpy { transfer } => format!("{} memcpy", bytes(*transfer)),
        Subject::Allocation { strategy, len, .. } => {
            format!("{} of memory: {strategy}", bytes(*len))
        }
    }
}

/// At most [`SUBJECT`] characters.
fn shortened(text: &str) -> String {
    if text.chars().count() <= SUBJECT {
        return text.to_owned();
    }
    let begin: String = text.chars().take(SUBJECT - 3).collect();
    begin + "..."
}

/// A text in lines that fit.
fn wrapped(f: &mut fmt::Formatter<'_>, first: &str, text: &str) -> fmt::Result {
    f.write_str(&table::wrapped(first, text))
}
