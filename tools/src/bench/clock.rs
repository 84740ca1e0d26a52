//! The clock of a device that is simulated: cycles beside time.

use std::fmt;

use vfio_dma_model::tlp::Stats;

use super::results::ClockInfo;

/// The clock of a device that is simulated.
pub struct Clock {
    /// What it is the clock of.
    pub info: ClockInfo,
    /// Asks the function.
    pub stats: Box<dyn Fn() -> Stats>,
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("info", &self.info).finish_non_exhaustive()
    }
}

impl Clock {
    /// The present cycle.
    pub(super) fn now(&self) -> u64 {
        (self.stats)().cycles
    }

    /// Cycles from one on until data was last written to memory.
    pub(super) fn written_since(&self, start: u64) -> u64 {
        (self.stats)().written_until.saturating_sub(start)
    }
}
