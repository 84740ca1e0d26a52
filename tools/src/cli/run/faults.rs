//! What the faults that were asked for came to: whether each took effect, and what the driver
//! did about it.

use std::str::FromStr;

use serde::Serialize;
use vfio_dma::devices::ioat::Stats;
use vfio_dma_model::ioat::{Fault, FaultError, FaultPlan};

/// Faults as they are asked for.
#[derive(Debug, Clone)]
pub(in crate::cli) struct FaultArg {
    pub(in crate::cli) plan: FaultPlan,
    /// The text of each rule of the plan.
    rules: Vec<String>,
}

impl FromStr for FaultArg {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<FaultArg, FaultError> {
        let plan = text.parse()?;
        Ok(FaultArg { plan, rules: text.split(',').map(|rule| rule.trim().to_owned()).collect() })
    }
}

impl FaultArg {
    /// The text of each rule of the plan.
    pub(in crate::cli) fn rules(&self) -> &[String] {
        &self.rules
    }

    /// How often each rule took effect, a line each, for who does not see the driver.
    pub(in crate::cli) fn fired(&self, fired: &[u64]) -> String {
        fired_rules(&self.rules, fired)
    }
}

/// How often each of these rules took effect, a line each.
pub(in crate::cli) fn fired_rules(rules: &[String], fired: &[u64]) -> String {
    let lines = rules.iter().zip(fired);
    lines.map(|(rule, &fired)| format!("fault {rule}: {}\n", times(fired))).collect()
}

fn times(fired: u64) -> String {
    match fired {
        0 => "never fired".into(),
        1 => "fired 1 time".into(),
        _ => format!("fired {fired} times"),
    }
}

/// One fault that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct FaultReport {
    /// The rule, as it was given.
    fault: String,
    /// How often it took effect.
    fired: u64,
    /// What the driver did about it; `null` when it never took effect.
    driver: Option<String>,
}

/// What the driver counted, and how the transfer ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen<'a> {
    pub(super) stats: Option<Stats>,
    pub(super) failure: Option<&'a str>,
}

/// A report of each rule, by how often each took effect.
pub(super) fn report(asked: &FaultArg, fired: &[u64], seen: Seen<'_>) -> Vec<FaultReport> {
    let rules = asked.rules.iter().zip(asked.plan.rules()).zip(fired);
    rules
        .map(|((text, rule), &fired)| FaultReport {
            fault: text.clone(),
            fired,
            driver: (fired > 0).then(|| did(rule.fault, seen)),
        })
        .collect()
}

/// What the driver did about a fault, as far as its counts and the end of the transfer tell.
fn did(fault: Fault, seen: Seen<'_>) -> String {
    let Some(stats) = seen.stats else {
        // The channel was never opened.
        return format!("gave up: {}", first_line(seen.failure.unwrap_or("no reason is known")));
    };
    let counted = |count: u64, what: &str| match count {
        1 => format!("{what} once"),
        _ => format!("{what} {count} times"),
    };
    let what = match fault {
        Fault::NoCompletion | Fault::AstrayCompletion(_) if stats.lost_completions > 0 => {
            counted(stats.lost_completions, "found by the device's own status that it was done,")
        }
        Fault::NoCompletion => "learnt of it by a later completion word".into(),
        Fault::LateCompletion(_) | Fault::TornCompletion(_) => {
            "waited for the whole word, and read the data only then".into()
        }
        Fault::StaleCompletion | Fault::DoubleCompletion(_) if stats.stale_completions > 0 => {
            counted(
                stats.stale_completions,
                "saw a word of descriptors that were not due, and passed it over,",
            )
        }
        Fault::StaleCompletion | Fault::DoubleCompletion(_) => {
            "took the word for no progress, and waited for the next".into()
        }
        Fault::LostInterrupt => "looked at the completion word by itself".into(),
        Fault::SpuriousInterrupt | Fault::DoubleInterrupt => {
            "looked at the completion word, and took nothing from the interrupt alone".into()
        }
        _ if stats.recoveries > 0 => {
            counted(stats.recoveries, "reset the channel and set it up again,")
        }
        _ => "stopped using the channel".into(),
    };
    match seen.failure {
        Some(failure) => format!("{what}; it ended the transfer: {}", first_line(failure)),
        None => format!("{what}; every byte is right"),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or(text)
}

/// The reports as text, a line each.
pub(super) fn describe(reports: &[FaultReport]) -> String {
    let line = |FaultReport { fault, fired, driver }: &FaultReport| {
        let driver = driver.as_ref().map(|did| format!("; the driver {did}")).unwrap_or_default();
        format!("fault {fault}: {}{driver}\n", times(*fired))
    };
    reports.iter().map(line).collect()
}

/// Why a run in which a fault never took effect is a failure; `None` when all did.
pub(super) fn never(reports: &[FaultReport], descriptors: u64) -> Option<String> {
    let never: Vec<&str> = reports
        .iter()
        .filter(|report| report.fired == 0)
        .map(|report| report.fault.as_str())
        .collect();
    (!never.is_empty()).then(|| {
        format!(
            "never fired: {}; the model did {descriptors} descriptors\n  remedy: an @N within \
             those, or a larger --size; a fault of an interrupt needs one that is asked for",
            never.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_says_whether_it_fired_and_what_was_done() {
        let asked: FaultArg = "no-completion@2, chanerr=8@9".parse().unwrap();
        let stats = Stats { lost_completions: 1, ..Stats::default() };
        let seen = Seen { stats: Some(stats), failure: None };
        let reports = report(&asked, &[3, 0], seen);
        let text = describe(&reports);
        assert!(
            text.starts_with("fault no-completion@2: fired 3 times; the driver found"),
            "{text}"
        );
        assert!(text.ends_with("fault chanerr=8@9: never fired\n"), "{text}");
        let why = never(&reports, 7).unwrap();
        assert!(why.starts_with("never fired: chanerr=8@9; the model did 7"), "{why}");
        assert_eq!(never(&reports[..1], 7), None);

        let stats = Stats { recoveries: 1, ..Stats::default() };
        let seen = Seen { stats: Some(stats), failure: Some("read data\n  remedy: none") };
        let text = describe(&report(&asked, &[1, 1], seen));
        let end = "fired 1 time; the driver reset the channel and set it up again, once; it ended \
                   the transfer: read data\n";
        assert!(text.ends_with(end), "{text}");
    }
}
