//! A point in time that a wait ends at.

use std::time::{Duration, Instant};

/// When a wait ends; one that lies further ahead than the clock can tell never comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// So long from now.
    pub(crate) fn after(limit: Duration) -> Deadline {
        Deadline(Instant::now().checked_add(limit))
    }

    /// The earlier of both.
    pub(crate) fn min(self, other: Deadline) -> Deadline {
        match (self.0, other.0) {
            (Some(a), Some(b)) => Deadline(Some(a.min(b))),
            (a, b) => Deadline(a.or(b)),
        }
    }

    /// What is left until then; 0 once it has come.
    pub(crate) fn left(self) -> Duration {
        self.0.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()))
    }

    /// Whether it has come.
    pub(crate) fn has_passed(self) -> bool {
        self.left().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_limit_never_comes_and_the_shortest_has() {
        let (never, now) = (Deadline::after(Duration::MAX), Deadline::after(Duration::ZERO));
        assert_eq!((never.left(), never.has_passed()), (Duration::MAX, false));
        assert!(now.has_passed());
        assert!(never.min(now).has_passed() && now.min(never).has_passed());
        assert!(!never.min(never).has_passed());
        assert!(Deadline::after(Duration::from_secs(60)).left() <= Duration::from_secs(60));
    }
}
