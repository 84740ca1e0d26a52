//! What goes wrong when memory is mapped, and when a device reaches for it.

use std::fmt;

use nix::errno::Errno;
use vfio_dma::backend::DmaAccess;

/// A change of the DMA map that was refused; the map is as it was before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// A range of no bytes.
    #[error("IOVA {iova:#x}: a range of 0 bytes cannot be mapped")]
    Empty {
        /// First address of the range.
        iova: u64,
    },
    /// The range does not end inside the 64-bit address space.
    #[error("IOVA {iova:#x}: a range of {len:#x} bytes exceeds the 64-bit address space")]
    Wraps {
        /// First address of the range.
        iova: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Part of the range is mapped already.
    #[error(
        "IOVA {iova:#x}: {len:#x} bytes overlap the mapping of {other_len:#x} bytes at {other:#x}; \
         unmap that first"
    )]
    Overlap {
        /// First address of the range.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// First address of a mapping in the way.
        other: u64,
        /// Its length in bytes.
        other_len: u64,
    },
    /// The range to unmap contains a part of a mapping, but not all of it.
    #[error(
        "IOVA {iova:#x}: unmapping {len:#x} bytes would cut the mapping of {other_len:#x} bytes \
         at {other:#x}; mappings go whole"
    )]
    Cut {
        /// First address of the range.
        iova: u64,
        /// Length in bytes.
        len: u64,
        /// First address of the mapping that would be cut.
        other: u64,
        /// Its length in bytes.
        other_len: u64,
    },
    /// The map holds as much as it may.
    #[error("the DMA map has its limit of {limit} {what}; unmap something first")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// How much there may be.
        limit: u64,
    },
    /// The file ends before the range does: touching the rest would raise SIGBUS.
    #[error(
        "the backing file has {size:#x} bytes, the range needs {len:#x} from offset {offset:#x} on"
    )]
    FileTooShort {
        /// Where the range starts in the file.
        offset: u64,
        /// Length of the range in bytes.
        len: u64,
        /// Size of the file in bytes; 0 for what is not a regular file.
        size: u64,
    },
    /// The descriptor was not opened for what the device may do.
    #[error("the descriptor does not allow what the mapping asks for ({access})")]
    DescriptorMode {
        /// What the device was to be allowed.
        access: DmaAccess,
    },
    /// The file is on a file system whose pages may never come.
    #[error("the backing file is not memory: a memfd, or a file in tmpfs or hugetlbfs is needed")]
    NotMemory,
    /// A page of the file could not be had while it was mapped: it was cut short, or had no room.
    #[error(
        "a page of the backing file could not be had (it was cut short, or its file system is \
         full): unmap its ranges, and map it anew"
    )]
    Lost,
    /// A system call on the descriptor failed.
    #[error("{call} of the backing file: {errno}{}", remedy(*.errno))]
    Os {
        /// The system call.
        call: &'static str,
        /// The operating system's reason.
        errno: Errno,
    },
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOMEM => {
            "\n  remedy: each backing file is one mapping of this process; raise \
             vm.max_map_count (sysctl) or use fewer files"
        }
        Errno::EMFILE => "\n  remedy: raise the limit of open files (ulimit -n)",
        _ => "",
    }
}

impl MemoryError {
    /// The errno that says this to a vfio-user client.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            MemoryError::Empty { .. }
            | MemoryError::Wraps { .. }
            | MemoryError::Cut { .. }
            | MemoryError::NotMemory
            | MemoryError::FileTooShort { .. } => Errno::EINVAL,
            MemoryError::Overlap { .. } => Errno::EEXIST,
            MemoryError::Full { .. } => Errno::ENOSPC,
            MemoryError::DescriptorMode { .. } => Errno::EACCES,
            MemoryError::Lost => Errno::EFAULT,
            MemoryError::Os { errno, .. } => *errno,
        }
    }
}

/// What the device was doing when a fault arose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Reading memory: the source of a copy.
    Read,
    /// Writing memory: the destination of a copy.
    Write,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Read => "read",
            Direction::Write => "write",
        })
    }
}

/// Why the memory cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultReason {
    /// No range contains the address: it never did, or it was unmapped.
    NotMapped,
    /// The range came without memory of its own, as another device's registers do, or its file
    /// has lost some.
    Unbacked,
    /// The range does not allow this direction.
    Denied,
    /// The transfer does not end inside the 64-bit address space.
    Wraps,
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultReason::NotMapped => "nothing is mapped there",
            FaultReason::Unbacked => "the range has no memory behind it",
            FaultReason::Denied => "the range does not allow it",
            FaultReason::Wraps => "the transfer exceeds the 64-bit address space",
        })
    }
}

/// A transfer that stopped at an address it must not touch.
///
/// In a copy, `direction` says which side failed: [`Direction::Read`] the source,
/// [`Direction::Write`] the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("DMA {direction} at IOVA {iova:#x} after {done} bytes: {reason}")]
pub struct DmaFault {
    /// What was being done.
    pub direction: Direction,
    /// The first address that could not be reached.
    pub iova: u64,
    /// How many bytes of the transfer were completed, from its start on.
    pub done: u64,
    /// Why.
    pub reason: FaultReason,
}
