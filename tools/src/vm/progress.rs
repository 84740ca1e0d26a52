//! Progress on a terminal; log lines elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// One step that takes a while.
///
/// It is drawn on standard error when that is a terminal, and vanishes when dropped.
#[derive(Debug)]
pub(super) struct Step {
    bar: ProgressBar,
}

impl Step {
    /// Begins a step of unknown length.
    #[must_use]
    pub(super) fn new(what: impl Into<String>) -> Self {
        let what = what.into();
        log::info!("{what}");
        // The default target is standard error, hidden unless it is a terminal.
        let bar = ProgressBar::new_spinner().with_message(what);
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar }
    }

    /// Shows how much is done, 0 to 100.
    pub(super) fn percent(&self, done: f32) {
        if self.bar.length().is_none() {
            self.bar.set_length(100);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}%") {
                self.bar.set_style(style);
            }
        }
        // A percentage is at most three digits: the conversion saturates and keeps it exact.
        self.bar.set_position(done.clamp(0.0, 100.0) as u64);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
