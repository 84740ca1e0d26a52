//! How the driver reaches a device and its IOMMU.
//!
//! [`Backend`] is one device: its configuration space, BARs, interrupts and reset.
//! [`Iommu`] is one I/O address space, which several devices may share: a VFIO
//! container, an IOAS of iommufd, or a model's own map. Everything above this module
//! is written against these two traits, and a model implements them to be driven
//! in the same process.

mod config;
mod error;
mod lock;
#[cfg(feature = "host")]
mod mapping;
mod regions;
#[cfg(feature = "host")]
mod sysfs;
pub mod vfio;
#[cfg(feature = "vfio-user")]
pub mod vfio_user;

use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::pci::Address;

pub(crate) use config::backend_error;
pub use error::BackendError;
pub(crate) use lock::lock_limit;
pub(crate) use regions::Regions;
#[cfg(feature = "host")]
pub(crate) use sysfs::Resource;

/// A region of a PCI device, by its VFIO index (`VFIO_PCI_*_REGION_INDEX` in
/// `include/uapi/linux/vfio.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Region {
    /// Base address register 0 to 5.
    Bar(u8),
    /// The expansion ROM.
    Rom,
    /// Configuration space: 256 bytes, or 4 KiB for PCI Express.
    Config,
}

impl Region {
    /// The region's VFIO index: 0 to 5 for BARs, 6 for the ROM, 7 for configuration space.
    #[must_use]
    pub fn index(self) -> u32 {
        match self {
            Region::Bar(n) => u32::from(n),
            Region::Rom => 6,
            Region::Config => 7,
        }
    }

    /// The region with this VFIO index; `None` for 8 (VGA) and above.
    #[must_use]
    pub fn from_index(index: u32) -> Option<Region> {
        match index {
            0..=5 => Some(Region::Bar(index as u8)),
            6 => Some(Region::Rom),
            7 => Some(Region::Config),
            _ => None,
        }
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Region::Bar(n) => write!(f, "BAR{n}"),
            Region::Rom => f.write_str("expansion ROM"),
            Region::Config => f.write_str("configuration space"),
        }
    }
}

/// What a backend says of a region.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegionInfo {
    /// Size in bytes; 0 when the device does not implement the region.
    pub size: u64,
    /// Reads are allowed.
    pub readable: bool,
    /// Writes are allowed.
    pub writable: bool,
    /// The byte ranges that [`Backend::map_region`] accepts; empty when every access
    /// must be trapped (I/O ports, or a model in the same process).
    pub mappable: Vec<Range<u64>>,
}

/// A kind of interrupt, by its VFIO index (`VFIO_PCI_*_IRQ_INDEX`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IrqKind {
    /// The legacy level-triggered line: one vector, masked by the kernel each time it fires.
    Intx,
    /// Message-signalled interrupts.
    Msi,
    /// Message-signalled interrupts, extended.
    MsiX,
}

impl IrqKind {
    /// The VFIO interrupt index: 0, 1 or 2.
    #[must_use]
    pub fn index(self) -> u32 {
        match self {
            IrqKind::Intx => 0,
            IrqKind::Msi => 1,
            IrqKind::MsiX => 2,
        }
    }
}

impl fmt::Display for IrqKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            IrqKind::Intx => "INTx",
            IrqKind::Msi => "MSI",
            IrqKind::MsiX => "MSI-X",
        })
    }
}

/// An event of a function that is no interrupt of its own, by its VFIO index
/// (`VFIO_PCI_ERR_IRQ_INDEX`, `VFIO_PCI_REQ_IRQ_INDEX`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// PCI Express reported an error that the link did not mend (AER).
    Error,
    /// The kernel wants the function back: it is to be unbound, or leaves the bus.
    Removal,
}

impl Event {
    /// The VFIO interrupt index: 3 or 4.
    #[must_use]
    pub fn index(self) -> u32 {
        match self {
            Event::Error => 3,
            Event::Removal => 4,
        }
    }
}

/// A function that a reset of a whole bus or slot hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Affected {
    /// Which.
    pub address: Address,
    /// This process owns it: it has the function or its IOMMU group open, or, through iommufd,
    /// nobody else can have it open. The reset takes all that it hits.
    pub owned: bool,
    /// This process has the function open.
    pub open_here: bool,
}

/// The result of a backend's operation.
pub type Result<T> = std::result::Result<T, BackendError>;

/// A piece of a region mapped into this process, unmapped when dropped.
///
/// # Safety
///
/// For as long as the value lives, `base()` must point to `len()` bytes that are valid
/// for volatile loads and stores of up to 8 bytes, naturally aligned, and that no Rust
/// reference points into.
pub unsafe trait MappedRegion: Send + Sync + fmt::Debug {
    /// Where the piece starts in this process.
    fn base(&self) -> NonNull<u8>;
    /// Its length in bytes.
    fn len(&self) -> usize;
    /// The size in bytes of the pages that it is made of; the kernel's smallest where that is less.
    /// It is whole pages where they are larger.
    fn page_size(&self) -> usize {
        0
    }
    /// Whether it has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One PCI device.
///
/// Methods take `&self`: a backend serialises what needs it. Offsets are bytes from the
/// start of the region; multi-byte values in `data` are little endian, as on the bus.
pub trait Backend: Send + Sync + fmt::Debug {
    /// How a user names the device: an address such as `0000:00:05.0`, a socket's path, `model`.
    fn location(&self) -> String;

    /// What the region is; a size of 0 says that it is not there.
    fn region_info(&self, region: Region) -> Result<RegionInfo>;

    /// Reads `data.len()` bytes. A power of two up to 8, naturally aligned, reaches the
    /// device as one access.
    ///
    /// # Errors
    ///
    /// Fails without touching the device when the range is not inside the region.
    fn region_read(&self, region: Region, offset: u64, data: &mut [u8]) -> Result<()>;

    /// Writes `data`, under the rules of [`Backend::region_read`].
    ///
    /// # Errors
    ///
    /// Fails without touching the device when the range is not inside the region.
    fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()>;

    /// Maps one of the region's [`RegionInfo::mappable`] ranges.
    ///
    /// # Errors
    ///
    /// Fails for any other range, and when the mapping fails.
    fn map_region(&self, region: Region, area: Range<u64>) -> Result<Box<dyn MappedRegion>>;

    /// The number of vectors of this kind; 0 when the device has none.
    fn irq_count(&self, kind: IrqKind) -> Result<u32>;

    /// Directs vectors `0..events.len()` of this kind to these eventfds, replacing what
    /// was set for the kind before. The backend keeps its own duplicates as long as it
    /// needs them.
    fn irq_enable(&self, kind: IrqKind, events: &[BorrowedFd<'_>]) -> Result<()>;

    /// Takes all vectors of this kind away again; succeeds when none were enabled.
    fn irq_disable(&self, kind: IrqKind) -> Result<()>;

    /// Has a vector that is enabled fire as if the device had raised it: what arrives shows
    /// that the way from the kernel to this process works, without the device.
    ///
    /// # Errors
    ///
    /// Fails where the backend has no such test, and when the vector is not enabled.
    fn irq_trigger(&self, kind: IrqKind, vector: u32) -> Result<()> {
        Err(BackendError::Unsupported {
            what: format!("triggering {kind} vector {vector} without the device"),
            by: self.location(),
        })
    }

    /// Masks or unmasks INTx. The line is masked by itself each time it fires.
    fn intx_set_masked(&self, masked: bool) -> Result<()>;

    /// Resets the function: it stops DMA and returns to its power-on state, except for
    /// the parts of configuration space that the host owns.
    fn reset(&self) -> Result<()>;

    /// The functions that [`Backend::reset_bus`] would hit, this one among them.
    ///
    /// # Errors
    ///
    /// Fails where there is no such reset.
    fn bus_reset_scope(&self) -> Result<Vec<Affected>> {
        Err(BackendError::Unsupported { what: "a reset of the bus".into(), by: self.location() })
    }

    /// Resets all that is reset together with this function: those of its slot, or of its bus.
    /// Each is as after [`Backend::reset`].
    ///
    /// # Errors
    ///
    /// [`BackendError::NotOwned`] when some of it is not this process's; nothing is reset then.
    fn reset_bus(&self) -> Result<()> {
        Err(BackendError::Unsupported { what: "a reset of the bus".into(), by: self.location() })
    }

    /// A dma-buf of a part of one of the region's [`RegionInfo::mappable`] ranges, which another
    /// device's IOMMU can map ([`Iommu::map_dma_buf`]).
    ///
    /// # Errors
    ///
    /// Fails where the kernel has none.
    fn dma_buf(&self, region: Region, _range: Range<u64>) -> Result<OwnedFd> {
        Err(BackendError::Unsupported {
            what: format!("a dma-buf of {region}"),
            by: self.location(),
        })
    }

    /// Has an eventfd signalled with an event of the function; `false` when the backend cannot
    /// tell of it. It is for as long as the device is open.
    ///
    /// # Errors
    ///
    /// Fails when the backend refuses the eventfd.
    fn notify(&self, _event: Event, _signalled: BorrowedFd<'_>) -> Result<bool> {
        Ok(false)
    }

    /// Closes the device for good, whoever still uses parts of it; `false` when the backend
    /// cannot do that. The device reaches no memory then, every call fails with
    /// [`BackendError::ToBeRemoved`], and mapped regions are memory without a meaning.
    ///
    /// # Errors
    ///
    /// Fails when a mapped region cannot be replaced; the device is still open then.
    fn revoke(&self) -> Result<bool> {
        Ok(false)
    }

    /// The NUMA node that the device is attached to, where that is known.
    fn numa_node(&self) -> Option<u32> {
        None
    }

    /// The address space that the device's DMA goes through.
    fn iommu(&self) -> &Arc<dyn Iommu>;
}

/// What the device may do with mapped memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DmaAccess {
    /// The device reads memory (`VFIO_DMA_MAP_FLAG_READ`).
    Read,
    /// The device writes memory (`VFIO_DMA_MAP_FLAG_WRITE`).
    Write,
    /// Both.
    ReadWrite,
}

impl DmaAccess {
    /// Whether the device may read.
    #[must_use]
    pub fn reads(self) -> bool {
        matches!(self, DmaAccess::Read | DmaAccess::ReadWrite)
    }

    /// Whether the device may write.
    #[must_use]
    pub fn writes(self) -> bool {
        matches!(self, DmaAccess::Write | DmaAccess::ReadWrite)
    }
}

impl fmt::Display for DmaAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DmaAccess::Read => "device reads",
            DmaAccess::Write => "device writes",
            DmaAccess::ReadWrite => "device reads and writes",
        })
    }
}

/// How device addresses become memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translation {
    /// Through an IOMMU: [`Iommu::map`] decides where memory appears.
    Iommu,
    /// Not at all (VFIO's no-IOMMU mode): the device sees physical addresses and
    /// [`Iommu::map`] is refused.
    Physical,
}

/// What an address space offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuInfo {
    /// How device addresses become memory.
    pub translation: Translation,
    /// The address ranges that may be mapped, ascending and disjoint, with reserved
    /// regions already taken out as far as the backend knows them.
    pub ranges: Vec<RangeInclusive<u64>>,
    /// The page sizes that a mapping can be built from: bit n stands for 2^n bytes.
    pub page_sizes: u64,
    /// How many more mappings can be made, where the backend has a limit
    /// (type1: `dma_entry_limit`).
    pub available_mappings: Option<u32>,
    /// Mapped memory must be backed by a file descriptor (another process reaches it).
    pub needs_fd: bool,
}

/// A request to map memory of this process at an I/O virtual address.
#[derive(Debug, Clone, Copy)]
pub struct MapRequest<'a> {
    /// First device address; a multiple of the smallest page size.
    pub iova: u64,
    /// Start of the memory in this process; a multiple of the smallest page size.
    pub host: NonNull<u8>,
    /// Length in bytes; a multiple of the smallest page size, not 0.
    pub len: usize,
    /// What the device may do.
    pub access: DmaAccess,
    /// The file that backs the memory and the offset of `host` in it, where there is one.
    pub file: Option<(BorrowedFd<'a>, u64)>,
}

/// A request to map memory of a device at an I/O virtual address.
#[derive(Debug, Clone, Copy)]
pub struct DmaBufRequest<'a> {
    /// First device address; a multiple of the smallest page size.
    pub iova: u64,
    /// Length in bytes: all of the dma-buf.
    pub len: usize,
    /// What the device may do.
    pub access: DmaAccess,
    /// The memory. The address space keeps it as long as it is mapped.
    pub dma_buf: BorrowedFd<'a>,
}

/// How an address space takes memory of a device, for the DMA of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lending {
    /// As memory of this process: a BAR that is mapped into it ([`Iommu::map`]).
    Mapped,
    /// As a dma-buf ([`Iommu::map_dma_buf`]).
    DmaBuf,
}

/// One I/O address space.
pub trait Iommu: Send + Sync + fmt::Debug {
    /// A few words for reports: `type1v2`, `iommufd`, `model`.
    fn name(&self) -> &str;

    /// What the address space offers now; `available_mappings` changes with use.
    fn info(&self) -> Result<IommuInfo>;

    /// Makes memory reachable for every device in the address space.
    ///
    /// # Errors
    ///
    /// Fails when the range is already mapped, outside [`IommuInfo::ranges`], or when a
    /// limit is reached; nothing is mapped then.
    ///
    /// # Safety
    ///
    /// Until [`Iommu::unmap`] of the same range succeeded, or the address space was
    /// dropped, `[host, host + len)` must stay mapped in this process, and no Rust
    /// reference may point into it: a device may access it at any time.
    unsafe fn map(&self, request: &MapRequest<'_>) -> Result<()>;

    /// How memory of another device is mapped; `None` where it cannot be.
    fn lending(&self) -> Option<Lending> {
        None
    }

    /// Makes memory of another device reachable for every device in the address space, until
    /// [`Iommu::unmap`] of the range.
    ///
    /// # Errors
    ///
    /// As [`Iommu::map`]; also where the address space takes no dma-bufs.
    fn map_dma_buf(&self, _request: &DmaBufRequest<'_>) -> Result<()> {
        Err(BackendError::Unsupported { what: "mapping a dma-buf".into(), by: self.name().into() })
    }

    /// Takes a mapping away. When this returns, no device in the address space reaches
    /// the memory any more.
    ///
    /// # Errors
    ///
    /// Fails when the range is not exactly one former [`Iommu::map`]; the memory must then
    /// be taken as still mapped.
    fn unmap(&self, iova: u64, len: usize) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_and_interrupt_indices_are_those_of_the_uapi_header() {
        for index in 0..8 {
            assert_eq!(Region::from_index(index).unwrap().index(), index);
        }
        assert_eq!(Region::from_index(8), None);
        assert_eq!(Region::Config.index(), 7);
        assert_eq!([IrqKind::Intx, IrqKind::Msi, IrqKind::MsiX].map(IrqKind::index), [0, 1, 2]);
        assert_eq!([Event::Error, Event::Removal].map(Event::index), [3, 4]);
    }
}
