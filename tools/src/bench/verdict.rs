//! The answer of a benchmark in one or two sentences: what scatter/gather costs, and from which
//! segment on it costs little.

use std::collections::BTreeMap;

use super::results::{Results, Series, Spread};
use super::spread::{is_undecided, is_wide};
use super::units::bytes;

/// The share of the contiguous rate from which scatter/gather costs less than 5%.
pub const CHEAP: f64 = 0.95;

/// The answer; `None` when nothing was measured in segments.
#[must_use]
pub fn verdict(results: &Results) -> Option<String> {
    let mut transfers: BTreeMap<u64, Vec<(u64, Spread)>> = BTreeMap::new();
    for cell in results.cells.iter().filter(|cell| cell.series == Series::Segments) {
        if let (Some(segment), Some(ratio)) = (cell.segment, cell.of_contiguous) {
            transfers.entry(cell.transfer).or_default().push((segment, ratio));
        }
    }
    // The transfer of which most is known, and of those the shortest.
    let most = transfers.values().map(Vec::len).max()?;
    let (transfer, mut segments) =
        transfers.into_iter().find(|(_, segments)| segments.len() == most)?;
    segments.sort_by_key(|(segment, _)| *segment);
    let costs: Vec<String> = segments
        .iter()
        .map(|(segment, ratio)| format!("{} in {} segments", cost(ratio), bytes(*segment)))
        .collect();
    let first = format!(
        "In transfers of {} scatter/gather costs, against contiguous: {}.",
        bytes(transfer),
        costs.join(", ")
    );
    let dear = segments.iter().rposition(|(_, ratio)| ratio.median < CHEAP);
    let second = match dear {
        None => format!("It is below 5% at each of them, from {} on.", bytes(segments[0].0)),
        Some(last) => match segments.get(last + 1) {
            Some((segment, _)) => format!(
                "It is below 5% from segments of {} on, and not yet at {}.",
                bytes(*segment),
                bytes(segments[last].0)
            ),
            None => "It is below 5% at none of them.".to_owned(),
        },
    };
    Some(format!("{first} {second}"))
}

/// What is lost, in per cent of the contiguous rate.
fn cost(ratio: &Spread) -> String {
    match (is_undecided(ratio), is_wide(ratio)) {
        (true, true) => return "what the noise hides".to_owned(),
        (true, false) => return "nothing that shows".to_owned(),
        _ => {}
    }
    let lost = (1.0 - ratio.median) * 100.0;
    if lost < 0.0 { format!("{:.0}% less than nothing", -lost) } else { format!("{lost:.0}%") }
}

#[cfg(test)]
mod tests {
    use super::super::fixture;
    use super::*;

    fn ratios(list: &[(u64, f64)]) -> Results {
        let mut results = fixture::results();
        let template = results.cells.iter().find(|cell| cell.of_contiguous.is_some()).unwrap();
        let template = template.clone();
        let cell = |&(segment, median): &(u64, f64)| super::super::results::Cell {
            transfer: 1 << 20,
            segment: Some(segment),
            of_contiguous: Some(fixture::spread(median, 0.01)),
            ..template.clone()
        };
        results.cells = list.iter().map(cell).collect();
        results
    }

    #[test]
    fn it_says_what_segments_cost_and_from_where_it_is_little() {
        let text = verdict(&ratios(&[(256, 0.05), (4096, 0.7), (65_536, 0.97)])).unwrap();
        assert_eq!(
            text,
            "In transfers of 1 MiB scatter/gather costs, against contiguous: 95% in 256 B \
             segments, 30% in 4 KiB segments, 3% in 64 KiB segments. It is below 5% from \
             segments of 64 KiB on, and not yet at 4 KiB."
        );
        let text = verdict(&ratios(&[(256, 0.05), (4096, 0.7)])).unwrap();
        assert!(text.ends_with("It is below 5% at none of them."), "{text}");
        let text = verdict(&ratios(&[(256, 1.0), (4096, 0.99)])).unwrap();
        assert!(text.contains("nothing that shows in 256 B segments"), "{text}");
        assert!(text.ends_with("at each of them, from 256 B on."), "{text}");
        // One that is cheap by chance below a dear one is not the point.
        let text = verdict(&ratios(&[(256, 0.96), (4096, 0.7), (65_536, 0.99)])).unwrap();
        assert!(text.contains("from segments of 64 KiB on"), "{text}");
        assert_eq!(verdict(&ratios(&[])), None);
    }
}
