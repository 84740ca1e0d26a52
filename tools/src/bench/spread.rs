//! Figures over rounds, and when a difference between them says nothing.

use super::results::Spread;

/// The widest middle half, as a share of the median, of a figure that means something.
const WIDE: f64 = 0.25;

/// The spread of the rounds' figures; `None` when there are none.
#[must_use]
pub fn spread(rounds: impl IntoIterator<Item = f64>) -> Option<Spread> {
    let mut sorted: Vec<f64> = rounds.into_iter().filter(|figure| figure.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (&min, &max) = (sorted.first()?, sorted.last()?);
    let at = |share: f64| quantile(&sorted, share);
    let rounds = u32::try_from(sorted.len()).unwrap_or(u32::MAX);
    Some(Spread { median: at(0.5), p25: at(0.25), p75: at(0.75), min, max, rounds })
}

/// A quantile, between two figures where it falls between them.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * (place - below as f64)
}

/// Round by round, one figure as a share of another; `None` when no round has both.
#[must_use]
pub fn ratio(figures: &[Option<f64>], of: &[Option<f64>]) -> Option<Spread> {
    let both = figures.iter().zip(of).filter_map(|(figure, of)| Some((*figure)? / (*of)?));
    spread(both)
}

/// Whether the rounds differ so much that the median says little: the middle half spans
/// more than a quarter of it.
#[must_use]
pub fn is_wide(spread: &Spread) -> bool {
    spread.p75 - spread.p25 > WIDE * spread.median.abs()
}

/// Whether a ratio leaves open which of the two is the quicker one: the middle half of the
/// rounds has 1 in it. One that is wide and far from 1 is a finding of little precision.
#[must_use]
pub fn is_undecided(ratio: &Spread) -> bool {
    ratio.p25 <= 1.0 && ratio.p75 >= 1.0
}

/// The marks of a ratio: `~` when it is undecided, `!` when it is wide.
#[must_use]
pub fn marks(ratio: &Spread) -> &'static str {
    match (is_undecided(ratio), is_wide(ratio)) {
        (false, false) => "",
        (false, true) => "!",
        (true, false) => "~",
        (true, true) => "~!",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_lie_between_the_figures() {
        let s = spread([4.0, 1.0, 3.0, 2.0, 5.0]).unwrap();
        assert_eq!((s.min, s.p25, s.median, s.p75, s.max, s.rounds), (1.0, 2.0, 3.0, 4.0, 5.0, 5));
        let s = spread([1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!((s.p25, s.median, s.p75), (1.75, 2.5, 3.25));
        let s = spread([7.0]).unwrap();
        assert_eq!((s.p25, s.median, s.p75), (7.0, 7.0, 7.0));
        assert_eq!(spread([]), None);
        assert_eq!(spread([f64::NAN]), None);
    }

    #[test]
    fn a_ratio_is_taken_in_each_round() {
        // Both halve in the second round: the ratio stays.
        let slow = [Some(5.0), Some(2.5), None, Some(1.0)];
        let fast = [Some(10.0), Some(5.0), Some(1.0), None];
        let s = ratio(&slow, &fast).unwrap();
        assert_eq!((s.min, s.max, s.rounds), (0.5, 0.5, 2));
        assert_eq!(ratio(&slow, &[None; 4]), None);
    }

    #[test]
    fn what_says_nothing_is_known() {
        let of = |p25, median, p75| Spread { median, p25, p75, min: p25, max: p75, rounds: 10 };
        assert!(is_undecided(&of(0.95, 0.98, 1.01)));
        assert!(!is_undecided(&of(0.95, 0.97, 0.99)));
        assert!(!is_undecided(&of(1.01, 1.02, 1.03)));
        // Wide, but 1 is far from it: segments cost at least nine tenths.
        assert!(!is_undecided(&of(0.035, 0.05, 0.07)) && is_wide(&of(0.035, 0.05, 0.07)));
        assert_eq!(marks(&of(0.035, 0.05, 0.07)), "!");
        assert_eq!([marks(&of(0.5, 1.0, 1.5)), marks(&of(0.9, 1.0, 1.1))], ["~!", "~"]);
        assert_eq!(marks(&of(0.69, 0.7, 0.71)), "");
        assert!(is_wide(&of(10.0, 20.0, 30.0)) && !is_wide(&of(18.0, 20.0, 22.0)));
    }
}
