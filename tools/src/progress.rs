//! What takes a while: drawn on a terminal, told in a line now and then elsewhere.

use std::io::Write as _;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, a step that is expected to be short is told of after this time.
const PATIENCE: Duration = Duration::from_secs(15);
/// Without a terminal, how often it is told that a step goes on.
const REMINDER: Duration = Duration::from_secs(60);

/// One step that takes a while.
///
/// It is drawn on standard error when that is a terminal, and vanishes when dropped. Elsewhere
/// it is lines on standard error: at its begin or once it has lasted for 15 seconds, and then
/// each minute.
#[derive(Debug)]
pub(crate) struct Step {
    bar: ProgressBar,
    _lines: Option<Lines>,
}

impl Step {
    /// Begins a step of unknown length, which is expected to be short.
    #[must_use]
    pub(crate) fn new(what: impl Into<String>) -> Step {
        Step::begin(ProgressBar::new_spinner(), what.into(), PATIENCE)
    }

    /// Begins a step of unknown length that is known to take long.
    #[must_use]
    pub(crate) fn long(what: impl Into<String>) -> Step {
        Step::begin(ProgressBar::new_spinner(), what.into(), Duration::ZERO)
    }

    /// Begins a step of `len` parts, drawn as indicatif's `template` says.
    #[must_use]
    pub(crate) fn counted(what: impl Into<String>, len: u64, template: &str) -> Step {
        let style = ProgressStyle::with_template(template);
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Step::begin(ProgressBar::new(len).with_style(style), what.into(), PATIENCE)
    }

    fn begin(bar: ProgressBar, what: String, first: Duration) -> Step {
        log::debug!("{what}");
        // The default target is standard error, hidden unless it is a terminal.
        let bar = bar.with_message(what.clone());
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(120));
            return Step { bar, _lines: None };
        }
        let lines = Lines::begin(what, bar.clone(), first, REMINDER, |line| {
            // There is nowhere else to tell of progress when this fails.
            let _ = writeln!(std::io::stderr(), "vfio-dma: {line}");
        });
        Step { bar, _lines: lines }
    }

    /// Shows how much is done, 0 to 100.
    pub(crate) fn percent(&self, done: f32) {
        if self.bar.length().is_none() {
            self.bar.set_length(100);
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {pos}%") {
                self.bar.set_style(style);
            }
        }
        // A percentage is at most three digits: the conversion saturates and keeps it exact.
        self.bar.set_position(done.clamp(0.0, 100.0) as u64);
    }

    /// Shows how many parts are done.
    pub(crate) fn done(&self, parts: u64) {
        self.bar.set_position(parts);
    }

    /// Says in other words what is going on.
    pub(crate) fn say(&self, what: String) {
        self.bar.set_message(what);
    }

    /// Shows that one more part is done.
    pub(crate) fn advance(&self) {
        self.bar.inc(1);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A thread that tells of a step, until dropped.
#[derive(Debug)]
struct Lines {
    /// Its end wakes the thread.
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Lines {
    /// `None` when there is no thread to be had: the step goes on without lines then.
    fn begin(
        what: String,
        bar: ProgressBar,
        first: Duration,
        reminder: Duration,
        tell: impl Fn(&str) + Send + 'static,
    ) -> Option<Lines> {
        let begin = Instant::now();
        if first.is_zero() {
            tell(&what);
        }
        let (end, ended) = mpsc::channel();
        let work = move || {
            let mut wait = if first.is_zero() { reminder } else { first };
            while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(wait) {
                tell(&line(&bar, begin.elapsed()));
                wait = reminder;
            }
        };
        let thread = std::thread::Builder::new().name("progress".into()).spawn(work).ok()?;
        Some(Lines { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // It only prints: a panic there has told of itself.
            let _ = thread.join();
        }
    }
}

fn line(bar: &ProgressBar, since: Duration) -> String {
    let (what, seconds) = (bar.message(), since.as_secs());
    match bar.length() {
        Some(len) if len > 0 => {
            let share = 100 * bar.position().min(len) / len;
            format!("{what}: {share}% after {seconds} s")
        }
        _ => format!("{what}: for {seconds} s so far"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    const SHORT: Duration = Duration::from_millis(20);
    const NEVER: Duration = Duration::from_secs(3600);

    /// Begins lines, does the work, and returns what was told until the step ended.
    fn told(
        first: Duration,
        reminder: Duration,
        work: impl FnOnce(&dyn Fn() -> usize),
    ) -> Vec<String> {
        let told: Arc<Mutex<Vec<String>>> = Arc::default();
        let (sink, count) = (Arc::clone(&told), Arc::clone(&told));
        let tell = move |line: &str| sink.lock().unwrap().push(line.to_owned());
        let what = "building (log: /l)";
        let bar = ProgressBar::hidden().with_message(what);
        bar.set_length(4);
        bar.set_position(1);
        let lines = Lines::begin(what.into(), bar, first, reminder, tell);
        work(&|| count.lock().unwrap().len());
        drop(lines);
        told.lock().unwrap().clone()
    }

    fn until(count: &dyn Fn() -> usize, least: usize) {
        let begin = Instant::now();
        while count() < least {
            assert!(begin.elapsed() < Duration::from_secs(20), "nothing is told");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_long_step_is_told_at_its_begin_and_now_and_then() {
        let lines = told(Duration::ZERO, SHORT, |count| until(count, 3));
        assert_eq!(lines[0], "building (log: /l)");
        assert_eq!(lines[1], "building (log: /l): 25% after 0 s");
    }

    #[test]
    fn a_short_step_is_silent_unless_it_lasts() {
        assert!(told(NEVER, NEVER, |_| ()).is_empty());
        assert_eq!(told(SHORT, NEVER, |count| until(count, 1)).len(), 1);
    }

    #[test]
    fn what_has_no_length_tells_its_time() {
        let bar = ProgressBar::hidden().with_message("booting");
        let line = line(&bar, Duration::from_secs(75));
        assert_eq!(line, "booting: for 75 s so far");
    }
}
