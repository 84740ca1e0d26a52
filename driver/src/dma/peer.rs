//! Memory of one device, a part of a BAR of it, where the DMA of another device reaches it.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Allocator, DmaError, Segment};
use crate::backend::{
    Backend, BackendError, DmaAccess, DmaBufRequest, Lending, MapRequest, MappedRegion, Region,
    Translation,
};
use crate::events::Revoke;

/// How a part of a BAR is handed to an IOMMU.
#[derive(Debug)]
enum Lent {
    /// Mapped into this process, and the offset in that mapping.
    Mapped(Box<dyn MappedRegion>, usize),
    /// A dma-buf of just this part.
    DmaBuf(OwnedFd),
}

/// A part of a BAR, to be given to another device.
pub(crate) struct PeerMemory {
    lent: Lent,
    len: usize,
    /// Keeps the memory's device open, and answering.
    _keeps: (Arc<dyn Backend>, Arc<()>),
}

impl PeerMemory {
    /// Takes a part of a BAR, in the way that an IOMMU wants it; `mapped` counts what keeps the
    /// device from being told not to answer.
    pub(crate) fn lend(
        way: Lending,
        backend: &Arc<dyn Backend>,
        region: Region,
        range: Range<u64>,
        mapped: &Arc<()>,
    ) -> Result<PeerMemory, BackendError> {
        let info = backend.region_info(region)?;
        let len = range.end.saturating_sub(range.start) as usize;
        let outside =
            BackendError::OutOfBounds { region, offset: range.start, len, size: info.size };
        let covers = |area: &&Range<u64>| area.start <= range.start && range.end <= area.end;
        let area = info.mappable.iter().find(covers).cloned();
        let Some(area) = area.filter(|_| len > 0) else { return Err(outside) };
        let lent = match way {
            Lending::Mapped => {
                let offset = (range.start - area.start) as usize;
                Lent::Mapped(backend.map_region(region, area)?, offset)
            }
            Lending::DmaBuf => Lent::DmaBuf(backend.dma_buf(region, range)?),
        };
        Ok(PeerMemory { lent, len, _keeps: (Arc::clone(backend), Arc::clone(mapped)) })
    }
}

/// A part of another device's BAR, mapped where the DMA of a device reaches it; unmapped when it
/// is dropped, and when the device that the memory belongs to is taken away. DMA to it fails at
/// the IOMMU from then on.
///
/// Whoever gives its address to the device keeps the value until the device is done with it. The
/// bytes are the other device's: they are read and written through its [`Bar`](crate::mmio::Bar).
pub struct PeerMapping {
    inner: Arc<Inner>,
    segment: Segment,
}

impl fmt::Debug for PeerMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerMapping").field("segment", &self.segment).finish_non_exhaustive()
    }
}

struct Inner {
    allocator: Allocator,
    segment: Segment,
    /// None once it is unmapped.
    memory: Mutex<Option<PeerMemory>>,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Option<PeerMemory>> {
        // It changes in single steps.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unmap(&self) -> Result<(), DmaError> {
        let mut memory = self.lock();
        if memory.is_none() {
            return Ok(());
        }
        self.allocator.space().unmap_peer(self.segment)?;
        let taken = memory.take();
        drop(memory);
        // The mapping of the BAR goes after that of the IOMMU.
        drop(taken);
        Ok(())
    }
}

impl Revoke for Inner {
    fn revoke(&self) {
        if let Err(error) = self.unmap() {
            log::error!("memory of a device that leaves stays mapped for another: {error}");
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.unmap() {
            log::error!(
                "memory of a device stays mapped for another, and the device open: {error}"
            );
            std::mem::forget(self.lock().take());
        }
    }
}

impl PeerMapping {
    /// Maps memory of a device at an address that the allocator's device reaches.
    pub(crate) fn new(
        allocator: &Allocator,
        memory: PeerMemory,
        access: DmaAccess,
    ) -> Result<PeerMapping, DmaError> {
        let (space, mask) = (allocator.space(), allocator.limits().address_mask);
        let granule = space.granule();
        let runs = space.take_run(memory.len, granule, granule, mask)?;
        let segment = runs[0];
        let iommu = space.iommu();
        let mapped = match &memory.lent {
            Lent::Mapped(region, offset) => {
                let iova = segment.iova.0;
                // SAFETY: the part lies inside of the mapping.
                let host = unsafe { region.base().byte_add(*offset) };
                let request = MapRequest { iova, host, len: memory.len, access, file: None };
                space.count_map(memory.len, || {
                    // SAFETY: the mapping of the BAR is dropped after this one, and nothing
                    // refers into it.
                    unsafe { iommu.map(&request) }
                })
            }
            Lent::DmaBuf(dma_buf) => {
                let (iova, len) = (segment.iova.0, memory.len);
                let request = DmaBufRequest { iova, len, access, dma_buf: dma_buf.as_fd() };
                space.count_map(len, || iommu.map_dma_buf(&request))
            }
        };
        if let Err(error) = mapped {
            space.give_back(&runs);
            return Err(error.into());
        }
        let memory = Mutex::new(Some(memory));
        let inner = Arc::new(Inner { allocator: allocator.clone(), segment, memory });
        Ok(PeerMapping { inner, segment })
    }

    /// What unmaps it before its memory goes.
    pub(crate) fn revocable(&self) -> Arc<dyn Revoke> {
        Arc::clone(&self.inner) as _
    }

    /// Where the device reaches it, and its length in bytes.
    #[must_use]
    pub fn segment(&self) -> Segment {
        self.segment
    }

    /// Whether it is still mapped: not once the device that the memory belongs to was taken away.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.inner.lock().is_some()
    }
}

/// How an address space takes memory of another device, as far as it does.
pub(crate) fn way(allocator: &Allocator, range: &Range<u64>) -> Result<Lending, DmaError> {
    let space = allocator.space();
    let name = || space.iommu().name().to_owned();
    if space.translation() == Translation::Physical {
        return Err(DmaError::NoTranslation { name: name() });
    }
    let granule = space.granule();
    if !range.start.is_multiple_of(granule) || !range.end.is_multiple_of(granule) {
        let offset = (range.start % granule).max(range.end % granule) as usize;
        return Err(DmaError::Misaligned { offset, alignment: granule });
    }
    space.iommu().lending().ok_or_else(|| {
        let what = "giving a device memory of another".into();
        BackendError::Unsupported { what, by: name() }.into()
    })
}
