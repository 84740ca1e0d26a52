//! Keeps a client that does the same wrong thing forever from filling the log.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many messages are let through in each [`PERIOD`].
const BURST: u32 = 8;
const PERIOD: Duration = Duration::from_secs(5);

/// Admits a burst of messages, then drops the rest of the period.
#[derive(Debug, Default)]
pub(crate) struct RateLimit(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    start: Option<Instant>,
    admitted: u32,
    suppressed: u64,
}

impl RateLimit {
    /// A limit for a static place.
    pub(crate) const fn new() -> RateLimit {
        RateLimit(Mutex::new(Window { start: None, admitted: 0, suppressed: 0 }))
    }

    /// Logs a warning, or drops it.
    pub(crate) fn warn(&self, message: fmt::Arguments<'_>) {
        self.log(log::Level::Warn, message);
    }

    /// Logs a message, or drops it.
    pub(crate) fn log(&self, level: log::Level, message: fmt::Arguments<'_>) {
        match self.admit() {
            Some(0) => log::log!(level, "{message}"),
            Some(dropped) => log::log!(level, "{message} ({dropped} more were not logged)"),
            None => {}
        }
    }

    /// Whether to log now: then with the number of messages that were dropped before.
    fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.start.is_none_or(|start| now.duration_since(start) >= PERIOD) {
            window.start = Some(now);
            window.admitted = 0;
        }
        if window.admitted == BURST {
            window.suppressed += 1;
            return None;
        }
        window.admitted += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_is_counted() {
        let limit = RateLimit::default();
        let start = Instant::now();
        assert!((0..BURST).all(|_| limit.admit_at(start) == Some(0)));
        assert!((0..100).all(|_| limit.admit_at(start).is_none()));
        assert_eq!(limit.admit_at(start + PERIOD), Some(100));
        assert_eq!(limit.admit_at(start + PERIOD), Some(0));
    }
}
