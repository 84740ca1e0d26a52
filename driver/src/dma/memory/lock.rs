//! Keeping memory resident, and what limits that. What locking does not promise is told in
//! [`crate::dma`].

use nix::sys::resource::{Resource, getrlimit};

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
        const CAP_IPC_LOCK: u32 = 14;
        let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
        };
        let effective = field("CapEff:").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        if limit == libc::RLIM_INFINITY || effective.unwrap_or(0) & (1 << CAP_IPC_LOCK) != 0 {
            return None;
        }
        let kib: u64 = field("VmLck:").and_then(|kib| kib.parse().ok()).unwrap_or(0);
        Some(LockLimit { limit, locked: kib << 10 })
    }

    /// Whether `len` more bytes go over the limit.
    pub(in crate::dma) fn refuses(self, len: u64) -> bool {
        self.locked.saturating_add(len) > self.limit
    }
}
