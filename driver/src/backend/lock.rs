//! What limits the memory that this process locks or pins.

use nix::sys::resource::{Resource, getrlimit};

/// `RLIMIT_MEMLOCK` in bytes; none for a process that may lock as much as it likes, which the
/// kernel asks of `CAP_IPC_LOCK` for `mlock`, type1 and iommufd alike.
pub(crate) fn lock_limit() -> Option<u64> {
    const CAP_IPC_LOCK: u32 = 14;
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let capable = effective.unwrap_or(0) & (1 << CAP_IPC_LOCK) != 0;
    (limit != libc::RLIM_INFINITY && !capable).then_some(limit)
}
