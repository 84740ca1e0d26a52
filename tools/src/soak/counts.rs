//! What is counted, and what was found.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

use super::memory::WrongBytes;

/// The most findings that are told in full.
const MOST_TOLD: usize = 20;

/// After so many findings of a kind there is no use in going on.
const MOST_FOUND: u64 = 1000;

/// Names an operation: with the seed, it can be made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Which time the device was opened, from 0.
    pub round: u64,
    /// The channel, or queue.
    pub channel: u64,
    /// Its step of the round, from 0.
    pub step: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { round, channel, step } = self;
        write!(f, "round {round}, channel {channel}, step {step}")
    }
}

/// Bytes that were not what they had to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// The operation.
    #[serde(flatten)]
    pub place: Place,
    /// What was looked at.
    pub what: &'static str,
    /// How many bytes are wrong.
    pub bytes: u64,
    /// Offset of the first in its buffer.
    pub offset: usize,
    /// What it must be.
    pub expected: u8,
    /// What it is.
    pub found: u8,
}

/// Something that no fault and no cancellation explains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unexplained {
    /// The operation.
    #[serde(flatten)]
    pub place: Place,
    /// What happened.
    pub error: String,
}

/// Defines the counters once: for each its name and meaning.
macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What was done, and what came of it.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            pub(super) fn add(&mut self, other: &Counts) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counts! {
    /// Copies from buffers to buffers.
    copies,
    /// Fills of buffers.
    fills,
    /// Copies, fills, gathers and scatters between slots.
    slot_operations,
    /// Pairs of reads of the same blocks of a drive.
    reads,
    /// Operations that ended well, whose every byte was looked at.
    succeeded,
    /// Operations, or descriptors of those between slots, that ended with an error.
    failed,
    /// Of these: the channel halted.
    halted,
    /// Of these: one before them failed.
    behind,
    /// Of these: aborted.
    aborted,
    /// Of these: the completion word was wrong.
    bad_completions,
    /// Of these: the channel or the device was lost.
    lost,
    /// Times that a channel was aborted, or a transfer given too little time.
    cancellations,
    /// Transfers whose result nobody asked for.
    detached,
    /// Operations in flight when their channel was dropped.
    dropped_in_flight,
    /// Submissions that a full ring refused, and that were made again.
    full,
    /// Buffers that were placed in one segment.
    placed_contiguous,
    /// Buffers that were placed in several segments.
    placed_scattered,
    /// Buffers that the device keeps, for it could not be stopped.
    buffers_kept,
    /// Channels that were given up.
    channels_lost,
    /// Times that a channel was reset and went on.
    recoveries,
    /// Times that the device was done and had not said so.
    lost_completions,
    /// Completion words of descriptors that the device had not come to.
    stale_completions,
}

impl Counts {
    /// Operations of all kinds.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.copies + self.fills + self.slot_operations + self.reads
    }
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) counts: Counts,
    pub(super) wrong: Vec<Wrong>,
    pub(super) wrong_operations: u64,
    pub(super) unexplained: Vec<Unexplained>,
    pub(super) unexplained_count: u64,
}

/// What the threads of all channels share.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    /// Set when the user has had enough.
    stop: &'a AtomicBool,
    deadline: Instant,
    most_operations: u64,
    pub(super) operations: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) wrong_bytes: AtomicU64,
    /// The round is to end early: a channel is lost.
    end_of_round: AtomicBool,
    hopeless: AtomicBool,
    findings: Mutex<Findings>,
}

impl<'a> Shared<'a> {
    pub(super) fn new(stop: &'a AtomicBool, deadline: Instant, most_operations: u64) -> Shared<'a> {
        Shared {
            stop,
            deadline,
            most_operations,
            operations: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            wrong_bytes: AtomicU64::new(0),
            end_of_round: AtomicBool::new(false),
            hopeless: AtomicBool::new(false),
            findings: Mutex::default(),
        }
    }

    pub(super) fn is_interrupted(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn is_hopeless(&self) -> bool {
        self.hopeless.load(Ordering::Relaxed)
    }

    pub(super) fn has_all_operations(&self) -> bool {
        self.operations.load(Ordering::Relaxed) >= self.most_operations
    }

    /// Whether the soak is at its end.
    pub(super) fn is_over(&self) -> bool {
        self.is_interrupted()
            || self.has_all_operations()
            || self.is_hopeless()
            || Instant::now() >= self.deadline
    }

    pub(super) fn begin_round(&self) {
        self.end_of_round.store(false, Ordering::Relaxed);
    }

    /// Lets every channel end the round.
    pub(super) fn end_round(&self) {
        self.end_of_round.store(true, Ordering::Relaxed);
    }

    pub(super) fn round_is_over(&self) -> bool {
        self.end_of_round.load(Ordering::Relaxed) || self.is_over()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Findings> {
        // Every change under the lock is whole before anything that can panic.
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn count(&self, counts: &Counts) {
        self.lock().counts.add(counts);
    }

    /// Counts what a look at bytes found, if anything; whether they are right.
    pub(super) fn looked(
        &self,
        place: Place,
        what: &'static str,
        wrong: Option<WrongBytes>,
    ) -> bool {
        let Some(WrongBytes { count: bytes, first: (offset, expected, found) }) = wrong else {
            return true;
        };
        self.wrong_bytes.fetch_add(bytes, Ordering::Relaxed);
        let wrong = Wrong { place, what, bytes, offset, expected, found };
        log::error!("{place}: {what}: {bytes} wrong bytes, the first at {offset}");
        let mut findings = self.lock();
        findings.wrong_operations += 1;
        self.hopeless.fetch_or(findings.wrong_operations >= MOST_FOUND, Ordering::Relaxed);
        if findings.wrong.len() < MOST_TOLD {
            findings.wrong.push(wrong);
        }
        false
    }

    /// Counts something that nothing explains.
    pub(super) fn unexplained(&self, place: Place, error: impl fmt::Display) {
        let error = error.to_string();
        log::error!("{place}: {error}");
        let mut findings = self.lock();
        findings.unexplained_count += 1;
        self.hopeless.fetch_or(findings.unexplained_count >= MOST_FOUND, Ordering::Relaxed);
        if findings.unexplained.len() < MOST_TOLD {
            findings.unexplained.push(Unexplained { place, error });
        }
    }

    pub(super) fn into_findings(self) -> Findings {
        self.findings.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PLACE: Place = Place { round: 1, channel: 2, step: 3 };

    #[test]
    fn what_was_found_is_told_up_to_a_number_and_counted_beyond() {
        let stop = AtomicBool::new(false);
        let shared = Shared::new(&stop, Instant::now() + Duration::from_secs(60), u64::MAX);
        assert!(shared.looked(PLACE, "the target", None));
        for _ in 0..MOST_FOUND - 1 {
            let wrong = WrongBytes { count: 3, first: (7, 1, 2) };
            assert!(!shared.looked(PLACE, "the target", Some(wrong)));
            shared.unexplained(PLACE, "it failed");
        }
        assert!(!shared.is_over());
        shared.unexplained(PLACE, "once more");
        assert!(shared.is_hopeless() && shared.is_over());
        assert_eq!(shared.wrong_bytes.load(Ordering::Relaxed), 3 * (MOST_FOUND - 1));
        let findings = shared.into_findings();
        assert_eq!((findings.wrong.len(), findings.unexplained.len()), (MOST_TOLD, MOST_TOLD));
        assert_eq!(findings.wrong_operations, MOST_FOUND - 1);
        assert_eq!(findings.unexplained_count, MOST_FOUND);
        let Wrong { place, offset, expected, found, .. } = findings.wrong[0];
        assert_eq!((place, offset, expected, found), (PLACE, 7, 1, 2));
        assert_eq!(PLACE.to_string(), "round 1, channel 2, step 3");
    }

    #[test]
    fn it_ends_at_whichever_comes_first() {
        let stop = AtomicBool::new(false);
        let later = Instant::now() + Duration::from_secs(60);
        let shared = Shared::new(&stop, later, 10);
        assert!(!shared.is_over());
        shared.end_round();
        assert!(shared.round_is_over() && !shared.is_over());
        shared.begin_round();
        shared.operations.store(10, Ordering::Relaxed);
        assert!(shared.round_is_over());
        let shared = Shared::new(&stop, Instant::now(), 10);
        assert!(shared.is_over());
        let shared = Shared::new(&stop, later, 10);
        stop.store(true, Ordering::Relaxed);
        assert!(shared.is_over() && shared.is_interrupted());
    }

    #[test]
    fn counts_add_up() {
        let mut counts = Counts { copies: 1, fills: 2, ..Counts::default() };
        counts.add(&Counts { copies: 10, reads: 5, slot_operations: 100, ..Counts::default() });
        assert_eq!((counts.copies, counts.operations()), (11, 118));
    }
}
