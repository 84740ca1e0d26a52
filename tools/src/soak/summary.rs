//! What a soak came to.

use std::fmt;

use serde::Serialize;

use super::counts::{Counts, Unexplained, Wrong};
use super::leaks::Leaks;
use crate::bench::units::rate;

/// Version of the schema of the JSON form.
pub const SCHEMA: u32 = 1;

/// Why a soak ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// Its time was over.
    Time,
    /// It had done its operations.
    Operations,
    /// The user ended it.
    Interrupted,
    /// So much was wrong that there was no use in going on, or the device could not be opened
    /// again.
    Failures,
}

/// A fault that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fired {
    /// The rule, as it was given.
    pub fault: String,
    /// How often it took effect.
    pub fired: u64,
}

/// What a soak came to.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// [`SCHEMA`].
    pub schema: u32,
    /// How a user names the device.
    pub location: String,
    /// Its driver.
    pub driver: String,
    /// With it, every operation can be made again.
    pub seed: u64,
    /// Why it ended.
    pub ended: End,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Times that the device was opened.
    pub rounds: u64,
    /// Channels, or queues, that were used at a time, at most.
    pub channels: u64,
    /// The fewest and the most descriptors of a ring, or entries of a queue.
    pub rings: Option<[u32; 2]>,
    /// Operations of all kinds.
    pub operations: u64,
    /// What they were, and what came of them.
    #[serde(flatten)]
    pub counts: Counts,
    /// Bytes that arrived, each of which was looked at.
    pub bytes_verified: u64,
    /// Bytes that were not what they had to be.
    pub wrong_bytes: u64,
    /// Operations that these belong to.
    pub wrong_operations: u64,
    /// The first of them.
    pub wrong: Vec<Wrong>,
    /// Failures that no fault and no cancellation explains.
    pub unexplained_failures: u64,
    /// The first of them.
    pub unexplained: Vec<Unexplained>,
    /// The faults of the model.
    pub faults: Vec<Fired>,
    /// How often faults took effect.
    pub faults_fired: u64,
    /// Of these: how often the channel went on, or was opened again.
    pub faults_recovered: u64,
    /// Accesses of the model to memory that was unmapped already; `null` for another device.
    pub late_accesses: Option<u64>,
    /// What is held more than before.
    pub leaks: Leaks,
    /// Whether there is nothing wrong.
    pub passed: bool,
}

impl Summary {
    /// Whether there is nothing wrong.
    pub(super) fn judge(&self) -> bool {
        self.wrong_bytes == 0
            && self.wrong_operations == 0
            && self.unexplained_failures == 0
            && self.late_accesses.unwrap_or(0) == 0
            && !self.leaks.any()
    }
}

/// A large number of bytes.
pub(super) fn gibibytes(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { counts, .. } = self;
        let end = match self.ended {
            End::Time => "",
            End::Operations => ", all operations done",
            End::Interrupted => ", interrupted",
            End::Failures => ", given up",
        };
        writeln!(
            f,
            "{} {}: {:.1} s, {} rounds, seed {}{end}",
            self.location, self.driver, self.seconds, self.rounds, self.seed
        )?;
        let seconds = self.seconds.max(1e-9);
        writeln!(
            f,
            "operations: {} ({:.0}/s): {} copies, {} fills, {} between slots, {} reads",
            self.operations,
            self.operations as f64 / seconds,
            counts.copies,
            counts.fills,
            counts.slot_operations,
            counts.reads
        )?;
        writeln!(
            f,
            "verified: {} ({} bytes), {}; {} wrong bytes{}",
            gibibytes(self.bytes_verified),
            self.bytes_verified,
            rate(self.bytes_verified as f64 / seconds),
            self.wrong_bytes,
            match self.wrong_operations {
                0 => String::new(),
                operations => format!(" of {operations} operations"),
            }
        )?;
        for Wrong { place, what, bytes, offset, expected, found } in &self.wrong {
            writeln!(
                f,
                "  {place}: {what}: {bytes} wrong bytes, the first at {offset}: {found:#04x}, it \
                 should be {expected:#04x}"
            )?;
        }
        if let Some([fewest, most]) = self.rings {
            writeln!(
                f,
                "channels: {}, with rings of {fewest} to {most}; buffers placed: {} contiguous, {} \
                 scattered",
                self.channels, counts.placed_contiguous, counts.placed_scattered
            )?;
        }
        writeln!(
            f,
            "cancelled: {} aborts and short waits, {} detached, {} dropped in flight",
            counts.cancellations, counts.detached, counts.dropped_in_flight
        )?;
        writeln!(
            f,
            "failed, as they may: {} ({} halted, {} behind, {} aborted, {} bad completion words, {} \
             lost); {} channels lost, {} recoveries",
            counts.failed,
            counts.halted,
            counts.behind,
            counts.aborted,
            counts.bad_completions,
            counts.lost,
            counts.channels_lost,
            counts.recoveries
        )?;
        if !self.faults.is_empty() {
            writeln!(
                f,
                "faults: {} fired, {} recovered",
                self.faults_fired, self.faults_recovered
            )?;
            for Fired { fault, fired } in &self.faults {
                writeln!(f, "  {fault}: {fired}")?;
            }
        }
        if let Some(late @ 1..) = self.late_accesses {
            writeln!(f, "the model touched memory that was unmapped already: {late} times")?;
        }
        if self.unexplained_failures > 0 {
            writeln!(f, "unexplained failures: {}", self.unexplained_failures)?;
            for Unexplained { place, error } in &self.unexplained {
                writeln!(f, "  {place}: {error}")?;
            }
        }
        writeln!(f, "{}", self.leaks)?;
        f.write_str(if self.passed { "passed" } else { "FAILED" })
    }
}
