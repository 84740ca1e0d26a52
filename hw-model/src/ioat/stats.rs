//! What the model saw and did, for tests and reports.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::AccessStats;

/// What the model counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) doorbells: AtomicU64,
    pub(super) register_reads: AtomicU64,
    pub(super) register_writes: AtomicU64,
    pub(super) config_reads: AtomicU64,
    pub(super) config_writes: AtomicU64,
    pub(super) interrupts: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) resets: AtomicU64,
    pub(super) wakeups: AtomicU64,
}

/// Adds one to a counter.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What the model saw and did since it was made.
///
/// Single numbers may be a little apart while the model works.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Descriptors that were executed to their end.
    pub descriptors: u64,
    /// Writes to DMACOUNT.
    pub doorbells: u64,
    /// Reads of BAR0.
    pub register_reads: u64,
    /// Writes to BAR0, doorbells among them.
    pub register_writes: u64,
    /// Reads of configuration space.
    pub config_reads: u64,
    /// Writes to configuration space.
    pub config_writes: u64,
    /// Accesses that no register answers, in BAR0 and configuration space.
    pub illegal_accesses: u64,
    /// Completion words that were written, also repeatedly or to a wrong address.
    pub completions: u64,
    /// Interrupts that channels raised.
    pub interrupts: u64,
    /// Eventfds that were written.
    pub interrupts_delivered: u64,
    /// Times that a channel halted by itself.
    pub errors: u64,
    /// Function-level resets.
    pub resets: u64,
    /// Times that a channel's thread woke up from sleep.
    pub wakeups: u64,
    /// What the device did with memory; what was refused there came too late, or astray.
    pub memory: AccessStats,
}

impl Counters {
    pub(super) fn stats(
        &self,
        [descriptors, completions]: [u64; 2],
        illegal_accesses: u64,
        interrupts_delivered: u64,
        memory: AccessStats,
    ) -> Stats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            descriptors,
            doorbells: get(&self.doorbells),
            register_reads: get(&self.register_reads),
            register_writes: get(&self.register_writes),
            config_reads: get(&self.config_reads),
            config_writes: get(&self.config_writes),
            illegal_accesses,
            completions,
            interrupts: get(&self.interrupts),
            interrupts_delivered,
            errors: get(&self.errors),
            resets: get(&self.resets),
            wakeups: get(&self.wakeups),
            memory,
        }
    }
}
