//! Why memory could not be had, or not be read or written.

use std::io;

use nix::errno::Errno;

use super::PageSize;
use crate::pci::Remedy;

/// Why memory could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{len} bytes of {page_size}: {action}: {source}{}", remedy_text(.remedy))]
#[non_exhaustive]
pub struct MemoryError {
    /// Bytes asked for, rounded up to whole pages.
    pub len: usize,
    /// The pages asked for.
    pub page_size: PageSize,
    /// The step that failed.
    pub action: &'static str,
    /// The kernel's reason.
    pub source: io::Error,
    /// What would help.
    pub remedy: Option<String>,
}

impl MemoryError {
    pub(super) fn new(
        len: usize,
        page_size: PageSize,
        action: &'static str,
        source: impl Into<io::Error>,
    ) -> MemoryError {
        let source = source.into();
        let remedy = match action.starts_with("madvise(POPULATE") {
            true => Some(format!("look at {}", page_size.refused_by())),
            false if source.raw_os_error() == Some(libc::EMFILE) => {
                Some(Remedy::RaiseOpenFiles.to_string())
            }
            false => remedy(len, page_size, &source),
        };
        MemoryError { len, page_size, action, source, remedy }
    }
}

fn remedy_text(remedy: &Option<String>) -> String {
    remedy.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
}

/// An access of this process to memory that cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryAccessError {
    /// It does not lie inside the memory.
    #[error("{len} bytes at offset {offset:#x} are outside of the memory's {size} bytes")]
    OutOfBounds {
        /// First byte of the access.
        offset: usize,
        /// Length of the access in bytes.
        len: usize,
        /// Length of the memory in bytes.
        size: usize,
    },
    /// The memory is that of a file which is open for reading only.
    #[error(
        "writing {len} bytes at offset {offset:#x} of memory that is only read: its file is open \
         for reading only"
    )]
    ReadOnly {
        /// First byte of the access.
        offset: usize,
        /// Length of the access in bytes.
        len: usize,
    },
    /// The memory is that of a file which has no such bytes any more.
    #[error(
        "{len} bytes at offset {offset:#x} are gone ({errno}): the file behind the memory was cut \
         short, or has no room for them (a memfd can be sealed with F_SEAL_SHRINK)"
    )]
    Gone {
        /// First byte of the access.
        offset: usize,
        /// Length of the access in bytes.
        len: usize,
        /// The kernel's reason.
        errno: Errno,
    },
}

pub(super) fn lost(offset: usize, len: usize, errno: Errno) -> MemoryAccessError {
    MemoryAccessError::Gone { offset, len, errno }
}

/// What would help, with the figures of the pool.
fn remedy(len: usize, page_size: PageSize, source: &io::Error) -> Option<String> {
    let path = page_size.pool()?;
    let errno = Errno::from_raw(source.raw_os_error()?);
    if !matches!(errno, Errno::ENOMEM | Errno::EINVAL | Errno::ENOENT | Errno::ENODEV) {
        return None;
    }
    let needed = len.div_ceil(page_size.bytes());
    Some(match page_size.free() {
        Some(free) => format!("{needed} needed, {free} free: echo {needed} > {path}/nr_hugepages"),
        None => format!("the kernel has no pool of {page_size}: {path} is missing"),
    })
}
