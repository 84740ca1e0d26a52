//! Keeping memory resident, and what limits that. What locking does not promise is told in
//! [`crate::dma`].

use crate::backend::lock_limit;

/// The limit on locked memory, where there is one for this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dma) struct LockLimit {
    /// `RLIMIT_MEMLOCK` in bytes.
    pub(in crate::dma) limit: u64,
    /// Bytes that are locked or pinned now.
    pub(in crate::dma) locked: u64,
}

impl LockLimit {
    /// `None` for a process that may lock as much as it likes.
    pub(in crate::dma) fn of_this_process() -> Option<LockLimit> {
        let limit = lock_limit()?;
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        let kib = locked.and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
        Some(LockLimit { limit, locked: kib.unwrap_or(0) << 10 })
    }

    /// Whether `len` more bytes go over the limit.
    pub(in crate::dma) fn refuses(self, len: u64) -> bool {
        self.locked.saturating_add(len) > self.limit
    }
}
