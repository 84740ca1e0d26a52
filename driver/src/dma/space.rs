//! One I/O address space: its IOVAs, and what is mapped in it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::{DmaAccess, Iommu, IommuInfo, MapRequest, Translation};

use super::{Constraints, DmaError, Iova, IovaAllocator, Memory};

/// What is mapped in an address space, and how often that changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Mappings that exist now.
    pub mappings: u64,
    /// Bytes mapped now.
    pub bytes: u64,
    /// Map calls made so far, successful or not.
    pub map_calls: u64,
    /// Unmap calls made so far, successful or not.
    pub unmap_calls: u64,
}

#[derive(Debug)]
struct State {
    iovas: IovaAllocator,
    usage: Usage,
}

/// One I/O address space, shared by every device that is opened in it.
#[derive(Debug)]
pub struct AddressSpace {
    iommu: Arc<dyn Iommu>,
    translation: Translation,
    granule: u64,
    needs_fd: bool,
    state: Mutex<State>,
}

impl AddressSpace {
    /// Reads what the IOMMU offers and sets the address space up from it.
    ///
    /// # Errors
    ///
    /// Fails when the IOMMU cannot be asked. A VFIO container answers once its first
    /// device is open.
    pub fn new(iommu: &Arc<dyn Iommu>) -> Result<Arc<AddressSpace>, DmaError> {
        let info = iommu.info()?;
        let granule = smallest_page(&info);
        let iovas = IovaAllocator::new(granule, &windows(&info));
        Ok(Arc::new(AddressSpace {
            iommu: Arc::clone(iommu),
            translation: info.translation,
            granule,
            needs_fd: info.needs_fd,
            state: Mutex::new(State { iovas, usage: Usage::default() }),
        }))
    }

    /// Reads the IOMMU's ranges again: they shrink when another device joins.
    ///
    /// # Errors
    ///
    /// Fails when the IOMMU cannot be asked.
    pub fn refresh(&self) -> Result<(), DmaError> {
        let info = self.iommu.info()?;
        self.lock().iovas.set_windows(&windows(&info));
        Ok(())
    }

    /// The IOMMU behind the address space.
    #[must_use]
    pub fn iommu(&self) -> &Arc<dyn Iommu> {
        &self.iommu
    }

    /// The smallest page that can be mapped, in bytes.
    #[must_use]
    pub fn granule(&self) -> u64 {
        self.granule
    }

    /// Whether mapped memory must have a file descriptor.
    #[must_use]
    pub fn needs_fd(&self) -> bool {
        self.needs_fd
    }

    /// What is mapped now, and how often that changed.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.lock().usage
    }

    /// A copy of the IOVA allocator, to look at.
    #[must_use]
    pub fn iovas(&self) -> IovaAllocator {
        self.lock().iovas.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete before anything that can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps the first `len` bytes of `memory` at one IOVA range under the constraints,
    /// aligned to `align` when that can be had and to the granule otherwise.
    ///
    /// # Safety
    ///
    /// The memory must live until [`AddressSpace::unmap`] of the range succeeded.
    pub(super) unsafe fn map(
        &self,
        memory: &Memory,
        len: usize,
        access: DmaAccess,
        constraints: &Constraints,
        align: u64,
    ) -> Result<Iova, DmaError> {
        if self.translation == Translation::Physical {
            return Err(DmaError::NoTranslation { name: self.iommu.name().into() });
        }
        let mask = constraints.address_mask;
        let least = constraints.alignment.max(self.granule);
        let iova = {
            let mut state = self.lock();
            match state.iovas.allocate(len as u64, align.max(least), mask) {
                Ok(iova) => iova,
                Err(_) => state.iovas.allocate(len as u64, least, mask)?,
            }
        };
        let request = MapRequest {
            iova: iova.0,
            host: memory.base(),
            len,
            access,
            file: memory.file().map(|file| (file, 0)),
        };
        // SAFETY: the caller keeps the memory until it is unmapped, and `Memory` lets no
        // reference point into it.
        let mapped = unsafe { self.iommu.map(&request) };
        let mut state = self.lock();
        state.usage.map_calls += 1;
        match mapped {
            Ok(()) => {
                state.usage.mappings += 1;
                state.usage.bytes += len as u64;
                Ok(iova)
            }
            Err(error) => {
                state.iovas.free(iova, len as u64)?;
                Err(error.into())
            }
        }
    }

    /// Unmaps exactly what [`AddressSpace::map`] mapped.
    ///
    /// # Errors
    ///
    /// When the IOMMU refuses; the range then stays mapped and is never handed out again.
    pub(super) fn unmap(&self, iova: Iova, len: usize) -> Result<(), DmaError> {
        let unmapped = self.iommu.unmap(iova.0, len);
        let mut state = self.lock();
        state.usage.unmap_calls += 1;
        unmapped?;
        state.usage.mappings -= 1;
        state.usage.bytes -= len as u64;
        Ok(state.iovas.free(iova, len as u64)?)
    }
}

fn smallest_page(info: &IommuInfo) -> u64 {
    // No page size at all is an answer that makes no sense; 4 KiB is what every IOMMU has.
    if info.page_sizes == 0 { 4096 } else { 1 << info.page_sizes.trailing_zeros() }
}

/// The ranges without page 0: an address of 0 too often means "none" to a device.
fn windows(info: &IommuInfo) -> Vec<std::ops::RangeInclusive<u64>> {
    let granule = smallest_page(info);
    let above_zero = |range: &std::ops::RangeInclusive<u64>| {
        let start = (*range.start()).max(granule);
        (start <= *range.end()).then_some(start..=*range.end())
    };
    info.ranges.iter().filter_map(above_zero).collect()
}
