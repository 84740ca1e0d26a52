//! Why a DMA operation failed.

use crate::backend::BackendError;

use super::{
    FrameError, Iova, IovaError, LimitExceeded, LimitsError, MemoryAccessError, MemoryError, Report,
};

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
    /// The address space maps only memory with a file behind it.
    #[error("{name} maps memory through its file: this memory has none (use a memfd)")]
    NeedsFile {
        /// The address space.
        name: String,
    },
    /// The address space has too few mappings left.
    #[error(
        "{needed} mappings are needed, {available} are left: use larger pieces, or raise \
         /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
    )]
    TooManyMappings {
        /// Mappings needed.
        needed: u64,
        /// Mappings left.
        available: u64,
    },
    /// The byte at this offset of its page cannot be aligned as demanded.
    #[error("offset {offset:#x} of a page cannot be aligned to {alignment:#x}")]
    Misaligned {
        /// Offset of the buffer's first byte in its page.
        offset: usize,
        /// The alignment demanded, in bytes.
        alignment: u64,
    },
    /// An alignment that is not a power of two.
    #[error("an alignment of {alignment:#x} bytes is not a power of two")]
    BadAlignment {
        /// The alignment demanded, in bytes.
        alignment: u64,
    },
    /// The addresses found do not begin as aligned as demanded.
    #[error("the first address {first:#x} is not aligned to {alignment:#x}")]
    NoAlignedRun {
        /// The alignment demanded, in bytes.
        alignment: u64,
        /// The first address found.
        first: u64,
    },
    /// The device could not be given what was found.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// The limits of a device cannot be met.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The request names a pool of another address space.
    #[error("the pool lies in another address space than that of {location}")]
    ForeignPool {
        /// The device.
        location: String,
    },
    /// The device translates through another IOMMU than the address space's.
    #[error("{location} does not translate through this address space ({name})")]
    ForeignSpace {
        /// The device.
        location: String,
        /// The address space.
        name: String,
    },
    /// A length that no address space holds.
    #[error("a buffer of {len} bytes does not fit into an address space")]
    TooLong {
        /// Length asked for, in bytes.
        len: usize,
    },
    /// Physical addresses could not be read.
    #[error(transparent)]
    Frames(#[from] FrameError),
    /// A buffer cannot hold an array that a device shares.
    #[error(
        "an array of {needed} bytes, contiguous for the device, does not fit a buffer of {len} \
         bytes in {segments} segments from IOVA {iova} on"
    )]
    NotCoherent {
        /// Bytes needed.
        needed: usize,
        /// Bytes of the buffer.
        len: usize,
        /// Its segments.
        segments: usize,
        /// Where it begins.
        iova: Iova,
    },
    /// The memory cannot be read or written.
    #[error(transparent)]
    Access(#[from] MemoryAccessError),
    /// The buffer is of a file that can be cut short, or is open for reading only: its bytes
    /// are copied in and out, not loaded and stored.
    #[error(
        "{len} bytes at offset {offset} are of a file that can be cut short or is only read: they \
         can be copied, not shared word by word (use a memfd sealed with F_SEAL_SHRINK)"
    )]
    OnlyCopies {
        /// First byte of the access.
        offset: usize,
        /// Length of the access in bytes.
        len: usize,
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
