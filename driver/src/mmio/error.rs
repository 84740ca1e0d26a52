//! What can go wrong with a register access.

use std::io;

use crate::backend::{BackendError, Region};

/// A register access that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MmioError {
    /// The register does not lie inside the BAR.
    #[error("{region}: {width}-byte access at {offset:#x} is outside of its {size:#x} bytes")]
    OutOfBounds {
        /// The region accessed.
        region: Region,
        /// Byte offset of the access.
        offset: u64,
        /// Width of the access in bytes.
        width: u64,
        /// Size of the region in bytes.
        size: u64,
    },
    /// The offset is not a multiple of the width.
    #[error("{region}: {width}-byte access at {offset:#x} is not naturally aligned")]
    Misaligned {
        /// The region accessed.
        region: Region,
        /// Byte offset of the access.
        offset: u64,
        /// Width of the access in bytes.
        width: u64,
    },
    /// Nothing answers at the mapping: the function was removed, is suspended or does not
    /// decode memory. The BAR stays so; it is to be opened again.
    #[error(
        "{region}: the {width}-byte access at {offset:#x} is a bus error: the function was removed, \
         is suspended or does not decode memory"
    )]
    BusError {
        /// The region accessed.
        region: Region,
        /// Byte offset of the access.
        offset: u64,
        /// Width of the access in bytes.
        width: u64,
    },
    /// A register of this width is not one access.
    #[error("{region}: a register of {width} bytes at {offset:#x}: it is 1, 2, 4 or 8")]
    Width {
        /// The region.
        region: Region,
        /// Byte offset of the register.
        offset: u64,
        /// Its width in bytes.
        width: u8,
    },
    /// The BAR was opened to be read only.
    #[error("{region} was opened to be read only")]
    ReadOnly {
        /// The region.
        region: Region,
    },
    /// The bus errors of a mapping cannot be watched for.
    #[error("{region}: taking SIGBUS over: {source}")]
    Watch {
        /// The region.
        region: Region,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The backend refused a trapped access.
    #[error(transparent)]
    Backend(#[from] BackendError),
}
