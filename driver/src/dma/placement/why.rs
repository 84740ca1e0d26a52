//! The reason behind an error.

use std::io;

use crate::backend::{BackendError, Translation};
use crate::dma::memory::lock::LockLimit;
use crate::dma::{Cause, DmaError, IovaError, LimitExceeded, MemoryError, Reason};
use crate::pci::Remedy;

/// The reason behind an error, for `asked` bytes.
pub(super) fn reason_of(error: &DmaError, asked: usize) -> Reason {
    let asked = asked as u64;
    let cause = match error {
        DmaError::Memory(error) => of_memory(error, asked),
        DmaError::Iova(error) => of_iova(error),
        DmaError::TooManyMappings { needed, available } => {
            Cause::Mappings { needed: *needed, available: *available }
        }
        DmaError::Frames(error) => Cause::Frames(error.clone()),
        DmaError::Limit(LimitExceeded::AboveMask { address, mask, .. }) => {
            Cause::AddressMask { mask: *mask, lowest: Some(*address) }
        }
        DmaError::Limit(limit) => Cause::Limit(limit.clone()),
        DmaError::NoTranslation { .. } => Cause::Translation(Translation::Physical),
        DmaError::Backend(BackendError::Os {
            remedy: Some(Remedy::RaiseUserMemlock { limit, .. }),
            ..
        }) => Cause::UserMemoryLock { limit: *limit },
        DmaError::Backend(BackendError::Os { source, .. }) => of_map(error, source, asked),
        other => Cause::Other(other.to_string()),
    };
    Reason { asked, cause }
}

fn of_memory(error: &MemoryError, asked: u64) -> Cause {
    let page = error.page_size;
    match (error.action, error.source.raw_os_error()) {
        ("mlock", Some(libc::ENOMEM | libc::EPERM | libc::EAGAIN)) => lock_limit(asked),
        (action, Some(errno)) if action.starts_with("madvise(POPULATE") => {
            Some(Cause::NotPopulated { page, errno })
        }
        ("mmap" | "memfd_create" | "ftruncate", _) if page.pool().is_some() => {
            Some(Cause::HugePages { page, free: page.free() })
        }
        _ => None,
    }
    .unwrap_or_else(|| Cause::Other(error.to_string()))
}

fn of_iova(error: &IovaError) -> Cause {
    match *error {
        IovaError::MaskTooSmall { mask, lowest } => Cause::AddressMask { mask, lowest },
        IovaError::NoRun { len, align, mask, free, longest } => {
            Cause::IovaRun { needed: len, align, mask, free, longest }
        }
        ref other => Cause::Other(other.to_string()),
    }
}

/// What type1 means: ENOMEM for the limit on locked memory, ENOSPC for its own limit.
fn of_map(error: &DmaError, source: &io::Error, asked: u64) -> Cause {
    match source.raw_os_error() {
        Some(libc::ENOMEM) => lock_limit(asked),
        Some(libc::ENOSPC) => Some(Cause::Mappings { needed: 1, available: 0 }),
        _ => None,
    }
    .unwrap_or_else(|| Cause::Other(error.to_string()))
}

fn lock_limit(asked: u64) -> Option<Cause> {
    let limit = LockLimit::of_this_process().filter(|limit| limit.refuses(asked))?;
    Some(Cause::MemoryLock { limit: limit.limit, locked: limit.locked })
}
