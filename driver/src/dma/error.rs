//! Why a DMA operation failed.

use crate::backend::BackendError;

use super::{IovaError, MemoryError, Report};

/// A DMA operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// The kernel has no such memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// No device address was found.
    #[error(transparent)]
    Iova(#[from] IovaError),
    /// The backend refused to map or to unmap.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No placement strategy succeeded.
    #[error("{0}")]
    NoPlacement(Report),
    /// A buffer of no bytes was asked for.
    #[error("a buffer has at least one byte")]
    Empty,
    /// The address space translates nothing, and mapped buffers need a translation.
    #[error("{name} does not translate addresses: a buffer cannot be mapped in it")]
    NoTranslation {
        /// The address space.
        name: String,
    },
    /// The access does not lie inside the buffer.
    #[error("{len} bytes at offset {offset} are outside of the buffer's {size} bytes")]
    OutOfBounds {
        /// First byte of the access.
        offset: usize,
        /// Length of the access in bytes.
        len: usize,
        /// Length of the buffer in bytes.
        size: usize,
    },
}
