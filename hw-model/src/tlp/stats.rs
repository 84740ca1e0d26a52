//! What went over the link.

use serde::Serialize;

use super::error::Malformed;

/// What a function with a transaction layer saw and did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Cycles of its clock.
    pub cycles: u64,
    /// The cycle after the last one in which a packet or message went in or out.
    pub active_until: u64,
    /// The cycle of its last write to memory: when the last data of a transfer came.
    pub written_until: u64,
    /// Packets that the endpoint sent.
    pub received: u64,
    /// Its reads.
    pub reads: u64,
    /// Its writes, with messages.
    pub writes: u64,
    /// Bytes that it read.
    pub bytes_read: u64,
    /// Bytes that it wrote.
    pub bytes_written: u64,
    /// Completions that it was sent.
    pub completions: u64,
    /// Reads that were answered as unsupported.
    pub unsupported: u64,
    /// Requests that the DMA map refused.
    pub faults: u64,
    /// Requests while it was no bus master.
    pub not_bus_master: u64,
    /// Writes that were poisoned, and dropped.
    pub poisoned: u64,
    /// Interrupt messages.
    pub interrupts: u64,
    /// Registers that the host read.
    pub host_reads: u64,
    /// Registers that the host wrote.
    pub host_writes: u64,
    /// Reads of the host that the endpoint refused.
    pub host_refused: u64,
    /// Reads of the host that the endpoint did not answer.
    pub host_timeouts: u64,
    /// Resets.
    pub resets: u64,
    /// Malformed packets, by [`Malformed::NAMES`].
    pub malformed: [u64; Malformed::KINDS],
}

impl Stats {
    /// All malformed packets.
    #[must_use]
    pub fn all_malformed(&self) -> u64 {
        self.malformed.iter().sum()
    }
}
