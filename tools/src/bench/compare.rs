//! Two benchmarks against each other: what changed beyond the noise.
//!
//! Figures are matched by what was measured, and judged by [`Judgement`]. Machines differ in
//! speed: next to each rate stands its share of the processor's own copy, so that a slower
//! machine is not taken for a slower driver.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::results::{Method, Results, Series, Setup, Spread};

mod text;

/// The least difference of two medians that counts as a change.
pub const THRESHOLD: f64 = 0.03;
/// The least number of rounds that quartiles are taken from.
pub const ROUNDS: u32 = 4;

/// What was measured: figures of two benchmarks belong together when this is the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Subject {
    /// A variant of a transfer; judged by its rate, more being better.
    Transfer {
        /// The table that it belongs to.
        series: Series,
        /// Bytes of a transfer.
        transfer: u64,
        /// Bytes of a segment; `null` for contiguous.
        segment: Option<u64>,
        /// Transfers for a doorbell.
        batch: u32,
        /// Channels at once.
        channels: u32,
        /// How the device is told where the data is.
        method: Method,
    },
    /// The processor's own copy; judged by its rate, more being better.
    Memcpy {
        /// Bytes of a copy.
        transfer: u64,
    },
    /// Getting memory; judged by the time that it takes, less being better.
    Allocation {
        /// The strategy.
        strategy: String,
        /// Bytes of a page.
        page_size: Option<u64>,
        /// Bytes of the buffer.
        len: u64,
    },
}

/// What a difference between two figures means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Judgement {
    /// Nothing: the middle halves of the rounds overlap, or the medians differ by less than
    /// [`THRESHOLD`], or there are fewer than [`ROUNDS`] rounds.
    Noise,
    /// Better, beyond the noise.
    Better,
    /// Worse, beyond the noise.
    Worse,
}

/// A figure in both benchmarks.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Change {
    /// In the first one.
    pub before: Spread,
    /// In the second one.
    pub after: Spread,
    /// By how much the median rose, as a share of the first: 0.1 for 10% more.
    pub change: f64,
    /// What that means.
    pub judgement: Judgement,
}

impl Change {
    fn new(before: Spread, after: Spread, more_is_better: bool) -> Change {
        let change = match before.median {
            0.0 => 0.0,
            median => after.median / median - 1.0,
        };
        let apart = after.p25 > before.p75 || after.p75 < before.p25;
        let enough = before.rounds.min(after.rounds) >= ROUNDS;
        let judgement = if !(apart && enough && change.abs() > THRESHOLD) {
            Judgement::Noise
        } else if (change > 0.0) == more_is_better {
            Judgement::Better
        } else {
            Judgement::Worse
        };
        Change { before, after, change, judgement }
    }
}

/// One subject in both benchmarks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// What was measured.
    pub subject: Subject,
    /// Bytes for each second; for an allocation the time it takes, in ns.
    pub figure: Change,
    /// The rate as a share of the processor's copy in the same round, where it is known.
    pub of_memcpy: Option<Change>,
    /// Median and 99% latency in ns, before and after, for information: one distribution
    /// over all rounds has no spread to judge by.
    pub latency: Option<[[u64; 2]; 2]>,
}

impl Row {
    /// What the row says of driver and device: a change that memcpy shares is the machine's.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        use Judgement::{Better, Noise, Worse};
        if matches!(self.subject, Subject::Memcpy { .. }) && self.figure.judgement != Noise {
            return Verdict::Machine;
        }
        let relative = self.of_memcpy.map_or(self.figure.judgement, |share| share.judgement);
        match (self.figure.judgement, relative) {
            (Noise, Noise) => Verdict::Same,
            (Better, Better) => Verdict::Better,
            (Worse, Worse) => Verdict::Worse,
            (Better | Worse, Noise) => Verdict::WithMachine,
            (Noise, Better | Worse) | (Better, Worse) | (Worse, Better) => Verdict::AgainstMachine,
        }
    }
}

/// What a [`Row`] says when the machine's speed is taken into account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// No change beyond the noise.
    Same,
    /// Better, also relative to memcpy.
    Better,
    /// Worse, also relative to memcpy.
    Worse,
    /// The processor's own copy changed.
    Machine,
    /// The rate changed, its share of memcpy did not: the machine's speed differs.
    WithMachine,
    /// The share of memcpy changed and the rate did not follow: the processor's own copy
    /// changed, the transfer did not change with it.
    AgainstMachine,
}

/// What changed from one benchmark to another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// When the first one was taken.
    pub before: String,
    /// When the second one was taken.
    pub after: String,
    /// Where the two are not alike, which makes a comparison doubtful.
    pub warnings: Vec<String>,
    /// What both measured.
    pub rows: Vec<Row>,
    /// What only the first one measured.
    pub only_before: Vec<Subject>,
    /// What only the second one measured.
    pub only_after: Vec<Subject>,
}

impl Comparison {
    /// The rows with a verdict.
    pub fn with(&self, verdict: Verdict) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.verdict() == verdict)
    }
}

struct Figures {
    figure: Spread,
    of_memcpy: Option<Spread>,
    latency: Option<[u64; 2]>,
}

fn figures(results: &Results) -> BTreeMap<Subject, Figures> {
    let plain = |figure| Figures { figure, of_memcpy: None, latency: None };
    let cells = results.cells.iter().map(|cell| {
        let subject = Subject::Transfer {
            series: cell.series,
            transfer: cell.transfer,
            segment: cell.segment,
            batch: cell.batch,
            channels: cell.channels,
            method: cell.method,
        };
        let latency = cell.latency.as_ref().map(|latency| [latency.p50, latency.p99]);
        (subject, Figures { figure: cell.bytes_per_second, of_memcpy: cell.of_memcpy, latency })
    });
    let memcpy = results.memcpy.iter().map(|memcpy| {
        (Subject::Memcpy { transfer: memcpy.transfer }, plain(memcpy.bytes_per_second))
    });
    // One that failed has no figure: it is listed where only the other file has one.
    let allocations = results.allocations.iter().filter_map(|allocation| {
        let subject = Subject::Allocation {
            strategy: allocation.strategy.clone(),
            page_size: allocation.page_size,
            len: allocation.len,
        };
        Some((subject, plain(allocation.allocate?)))
    });
    cells.chain(memcpy).chain(allocations).collect()
}

/// Compares a benchmark with an earlier one.
#[must_use]
pub fn compare(before: &Results, after: &Results) -> Comparison {
    let [first, second] = [before, after].map(figures);
    let only = |these: &BTreeMap<Subject, Figures>, those: &BTreeMap<Subject, Figures>| {
        these.keys().filter(|subject| !those.contains_key(*subject)).cloned().collect()
    };
    let rows = first.iter().filter_map(|(subject, old)| {
        let new = second.get(subject)?;
        let more_is_better = !matches!(subject, Subject::Allocation { .. });
        Some(Row {
            subject: subject.clone(),
            figure: Change::new(old.figure, new.figure, more_is_better),
            of_memcpy: old.of_memcpy.zip(new.of_memcpy).map(|(a, b)| Change::new(a, b, true)),
            latency: old.latency.zip(new.latency).map(|(a, b)| [a, b]),
        })
    });
    Comparison {
        before: before.setup.taken.clone(),
        after: after.setup.taken.clone(),
        warnings: warnings(before, after),
        rows: rows.collect(),
        only_before: only(&first, &second),
        only_after: only(&second, &first),
    }
}

/// What of the setups differs that figures depend on.
fn warnings(before: &Results, after: &Results) -> Vec<String> {
    let mut warnings = Vec::new();
    let [old, new] = [before, after].map(|results| aspects(&results.setup));
    for ((name, a), (_, b)) in old.into_iter().zip(new) {
        if a != b {
            warnings.push(format!("{name} differs: {a} before, {b} after"));
        }
    }
    for (which, results) in [("first", before), ("second", after)] {
        if let Some(why) = &results.ended_early {
            warnings.push(format!("the {which} one ended early: {why}"));
        }
        let few: BTreeSet<u32> = figures(results)
            .values()
            .map(|figures| figures.figure.rounds)
            .filter(|&rounds| rounds < ROUNDS)
            .collect();
        if let Some(least) = few.first() {
            warnings.push(format!(
                "the {which} one has figures from only {least} rounds; below {ROUNDS} nothing \
                 is judged"
            ));
        }
    }
    warnings
}

fn aspects(setup: &Setup) -> [(&'static str, String); 15] {
    let (machine, device) = (&setup.machine, &setup.device);
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "none".into());
    [
        ("device", device.location.clone()),
        ("driver", device.driver.clone()),
        ("version of the device", or_none(&device.version)),
        ("ids", device.ids.clone()),
        ("number of channels", device.channels.to_string()),
        ("IOMMU", device.iommu.clone()),
        ("completion", device.completion.clone()),
        ("processor", or_none(&machine.processor)),
        ("number of processors", machine.processors.to_string()),
        ("kernel", format!("{} {}", machine.kernel, machine.architecture)),
        ("hypervisor", or_none(&machine.hypervisor)),
        ("transparent huge pages", or_none(&machine.transparent_huge_pages)),
        ("profile", setup.profile.clone()),
        ("number of rounds", setup.rounds.to_string()),
        ("seed", setup.seed.to_string()),
    ]
}

impl fmt::Display for Comparison {
    /// Tables of at most 100 columns: warnings, what changed, what is in one file only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        text::write(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{others, results, spread};
    use super::*;

    #[test]
    fn a_change_is_judged_by_quartiles_and_threshold() {
        let judge = |a, b| Change::new(a, b, true).judgement;
        assert_eq!(judge(spread(100.0, 0.02), spread(110.0, 0.02)), Judgement::Better);
        assert_eq!(judge(spread(100.0, 0.02), spread(90.0, 0.02)), Judgement::Worse);
        // Overlapping middle halves; apart but by too little; too few rounds.
        assert_eq!(judge(spread(100.0, 0.2), spread(110.0, 0.2)), Judgement::Noise);
        assert_eq!(judge(spread(100.0, 0.001), spread(102.0, 0.001)), Judgement::Noise);
        let few = Spread { rounds: 3, ..spread(200.0, 0.0) };
        assert_eq!(judge(spread(100.0, 0.0), few), Judgement::Noise);
        // Time: less is better. Nothing to divide by gives no nonsense.
        let shorter = Change::new(spread(100.0, 0.0), spread(50.0, 0.0), false);
        assert_eq!((shorter.judgement, shorter.change), (Judgement::Better, -0.5));
        assert_eq!(judge(spread(0.0, 0.0), spread(1.0, 0.0)), Judgement::Noise);
    }

    #[test]
    fn the_same_machine_on_another_day_is_the_same() {
        let comparison = compare(&results(), &others(8, 1.0, 0.03));
        assert_eq!(comparison.rows.len(), figures(&results()).len());
        assert!(comparison.with(Verdict::Better).next().is_none());
        assert!(comparison.with(Verdict::Worse).next().is_none());
        assert!(comparison.warnings.is_empty(), "{:?}", comparison.warnings);
    }

    #[test]
    fn a_slower_machine_is_no_regression() {
        let comparison = compare(&results(), &others(8, 0.7, 0.03));
        let transfers = |verdict| {
            let rows = comparison.with(verdict);
            rows.filter(|row| matches!(row.subject, Subject::Transfer { .. })).count()
        };
        assert_eq!(transfers(Verdict::Worse), 0);
        assert!(transfers(Verdict::WithMachine) > 50);
        assert_eq!(comparison.with(Verdict::Machine).count(), results().memcpy.len());
        let text = comparison.to_string();
        assert!(text.contains("memcpy changed as well"), "{text}");
        assert!(!text.contains("another pair of runs"), "{text}");
    }

    #[test]
    fn one_slower_variant_is_found_and_strangers_are_listed() {
        let before = results();
        let mut after = others(8, 1.0, 0.03);
        let slow = after.cells.iter_mut().find(|cell| cell.segment == Some(4096)).unwrap();
        slow.bytes_per_second = spread(slow.bytes_per_second.median * 0.8, 0.03);
        slow.of_memcpy = slow.of_memcpy.map(|share| spread(share.median * 0.8, 0.03));
        let slow = slow.transfer;
        after.cells.retain(|cell| cell.series != Series::Channels);
        after.memcpy[0].transfer = 65;
        after.setup.machine.kernel = "6.99".into();
        after.ended_early = Some("the device left".into());
        let comparison = compare(&before, &after);
        let worse: Vec<&Subject> =
            comparison.with(Verdict::Worse).map(|row| &row.subject).collect();
        assert!(
            matches!(worse[..], [Subject::Transfer { transfer, segment: Some(4096), .. }]
                if *transfer == slow),
            "{worse:?}"
        );
        assert_eq!(comparison.only_before.len(), 4);
        assert_eq!(comparison.only_after, [Subject::Memcpy { transfer: 65 }]);
        let text = comparison.to_string();
        for part in [
            "kernel differs: 6.12.9-amd64 x86_64 before, 6.99 x86_64 after",
            "ended early",
            "in 4 KiB segments",
            "another pair of runs",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn medians_that_differ_within_wide_noise_are_shown() {
        let mut after = others(8, 1.0, 0.03);
        let wide = &mut after.cells[4].bytes_per_second;
        *wide = Spread { median: wide.median * 0.5, p25: wide.median * 0.4, ..*wide };
        let comparison = compare(&results(), &after);
        assert!(comparison.with(Verdict::Worse).next().is_none());
        let text = comparison.to_string();
        assert!(text.contains("1 KiB in 64 B segments   "), "{text}");
    }

    #[test]
    fn lines_fit_into_100_columns() {
        let mut after = others(3, 0.4, 0.01);
        after.setup.device.location = "word ".repeat(60) + &"x".repeat(150);
        after.allocations[3].strategy = "a strategy of a very long name ".repeat(4);
        after.cells.truncate(40);
        let text = compare(&results(), &after).to_string();
        let long = text.lines().find(|line| line.chars().count() > 100);
        assert_eq!(long, None, "{text}");
        let json = serde_json::to_value(compare(&results(), &after)).unwrap();
        assert_eq!(json["rows"][0]["subject"]["kind"], "transfer");
    }
}
