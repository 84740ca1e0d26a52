//! What `vfio-dma irq` prints for people.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Loopback, Report};

pub(super) fn compose(report: &Report) -> String {
    let mut text = format!("{}\n", report.device);
    for kind in &report.kinds {
        let vectors = match kind.vectors {
            0 => "no vectors".to_owned(),
            1 => "1 vector".to_owned(),
            n => format!("{n} vectors"),
        };
        let loopback = kind.loopback.as_ref().map(loopback).unwrap_or_default();
        let line = format!("  {:6} {vectors:12} {loopback}", kind.kind);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}", line.trim_end());
    }
    if let Some(waited) = &report.waited {
        for (vector, count) in &waited.fired {
            let times = if *count == 1 { "once".to_owned() } else { format!("{count} times") };
            let _ = writeln!(
                text,
                "  {} vector {vector} fired {times}, after {:.3} ms",
                waited.kind,
                waited.after_ns as f64 / 1e6
            );
        }
    }
    text
}

fn loopback(found: &Loopback) -> String {
    let mut text = format!("loopback: {} of {} arrived", found.arrived, found.tested);
    if let Some(median) = found.median_ns {
        let _ = write!(text, ", median {:.1} us", median as f64 / 1e3);
    }
    if found.earlier > 0 {
        let _ = write!(text, "; {} came from the card before", found.earlier);
    }
    if !found.missing.is_empty() {
        let numbers: Vec<_> = found.missing.iter().map(ToString::to_string).collect();
        let _ = write!(text, "; MISSING: {}", numbers.join(", "));
    }
    if let Some(error) = &found.error {
        let _ = write!(text, "; {}", error.replace('\n', "\n         "));
    }
    text
}

/// One line: the time, and the rate of each vector that fired.
pub(super) fn rates(at: Duration, over: Duration, fired: &[(u32, u64)]) -> String {
    let seconds = over.as_secs_f64().max(1e-9);
    let rate = |count: u64| format!("{:.0}/s", count as f64 / seconds);
    let total: u64 = fired.iter().map(|(_, count)| count).sum();
    let mut line = format!("{:7.1} s  {:>10}", at.as_secs_f64(), rate(total));
    for (vector, count) in fired {
        let _ = write!(line, "  {vector}: {}", rate(*count));
    }
    line + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Waited};
    use super::*;

    #[test]
    fn each_kind_is_told_with_what_arrived() {
        let tested = Loopback {
            tested: 3,
            arrived: 2,
            missing: vec![1],
            median_ns: Some(12_345),
            ..Loopback::default()
        };
        let kind = |kind: &str, vectors, loopback| Kind { kind: kind.into(), vectors, loopback };
        let kinds = vec![kind("MSI-X", 3, Some(tested)), kind("MSI", 0, None)];
        let waited =
            Some(Waited { kind: "MSI-X".into(), fired: vec![(2, 1)], after_ns: 1_500_000 });
        let text = compose(&Report { device: "model".into(), kinds, waited });
        assert_eq!(
            text,
            "model\n  MSI-X  3 vectors    loopback: 2 of 3 arrived, median 12.3 us; MISSING: 1\n  \
             MSI    no vectors\n  MSI-X vector 2 fired once, after 1.500 ms\n"
        );
        let line = rates(Duration::from_secs(3), Duration::from_secs(2), &[(0, 20), (4, 2)]);
        assert_eq!(line, "    3.0 s        11/s  0: 10/s  4: 1/s\n");
    }
}
