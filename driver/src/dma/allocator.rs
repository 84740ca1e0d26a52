//! Where the memory of one device comes from.

use std::fmt;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::{
    AddressSpace, Buffer, Coherent, Direction, DmaError, DmaLimits, Placement, Pool, Request,
    Reservation, Shared, placement,
};
use crate::backend::Backend;
use crate::mmio::Width;

/// Places memory that one device reaches, under the device's limits.
///
/// It is what a driver that shares its device among threads gives to them: clones place
/// memory independently.
#[derive(Clone)]
pub struct Allocator {
    owner: Arc<dyn Backend>,
    space: Arc<AddressSpace>,
    limits: DmaLimits,
}

impl fmt::Debug for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Allocator").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Allocator {
    /// For a device that has no limits.
    pub(crate) fn new(owner: &Arc<dyn Backend>, space: &Arc<AddressSpace>) -> Allocator {
        let (owner, space) = (Arc::clone(owner), Arc::clone(space));
        Allocator { owner, space, limits: DmaLimits::default() }
    }

    pub(crate) fn set_limits(&mut self, limits: DmaLimits) -> Result<(), DmaError> {
        limits.validate()?;
        self.limits = limits;
        Ok(())
    }

    /// The address space that memory is mapped in.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// What the device demands.
    #[must_use]
    pub fn limits(&self) -> &DmaLimits {
        &self.limits
    }

    /// Places a buffer that the device reads or writes.
    ///
    /// # Errors
    ///
    /// [`DmaError::NoPlacement`] with the reason of every strategy when none succeeded.
    pub fn allocate(&self, request: &Request) -> Result<Buffer, DmaError> {
        placement::place(&self.owner, &self.space, &self.limits, request)
    }

    /// Places an array that the device shares, zeroed, contiguous for the device, and aligned
    /// to `alignment` bytes, a power of two.
    ///
    /// # Errors
    ///
    /// As [`Allocator::allocate`].
    pub fn coherent<T: Shared>(&self, len: usize, alignment: u64) -> Result<Coherent<T>, DmaError> {
        let bytes = len.checked_mul(Coherent::<T>::STRIDE);
        let bytes = bytes.ok_or(DmaError::TooLong { len: usize::MAX })?;
        let request = Request::new(bytes, Direction::Bidirectional)
            .alignment(alignment.max(<T::Word as Width>::BYTES as u64))
            .placement(Placement::Contiguous);
        Coherent::new(self.allocate(&request)?, len)
    }

    /// Puts contiguous blocks aside, which requests that name the pool
    /// ([`Request::pool`]) take from, those of other devices in the same address space too.
    ///
    /// # Errors
    ///
    /// [`DmaError::NoPlacement`] for the first block that cannot be had; nothing is reserved
    /// then.
    pub fn reserve(&self, reservations: &[Reservation]) -> Result<Arc<Pool>, DmaError> {
        placement::reserve(&self.owner, &self.space, &self.limits, reservations)
    }

    /// Makes a buffer of a part of a file: a memfd, shared memory, or a file in a huge page
    /// file system. What is written to the buffer is written to the file.
    ///
    /// The part starts `offset` bytes into the file and has the request's length; neither
    /// needs to be a multiple of a page, but the device is given whole pages. A file that is
    /// open for reading only is enough for a device that only reads it
    /// ([`Direction::ToDevice`]). Files on disks can be given to a device that reads them; for
    /// one that writes them, the kernel refuses to pin the pages.
    ///
    /// A file that can be cut short (any but a memfd with `F_SEAL_SHRINK`) is read and written
    /// through system calls by [`Buffer::read`] and [`Buffer::write`], which fail for what is
    /// gone; the device goes on with the pages that were there.
    ///
    /// # Errors
    ///
    /// Fails when the file is too short, cannot be mapped, or the pages cannot be given to
    /// the device; [`DmaError::NoPlacement`] has the reason.
    pub fn adopt_file(
        &self,
        file: impl AsFd,
        offset: u64,
        request: &Request,
    ) -> Result<Buffer, DmaError> {
        placement::place_in_file(&self.owner, &self.space, &self.limits, file, offset, request)
    }

    /// Makes a buffer of an address range of this process: `request.len` bytes from `base` on.
    ///
    /// # Errors
    ///
    /// [`DmaError::NoPlacement`] with the reason when the pages cannot be given to the device.
    ///
    /// # Safety
    ///
    /// Until [`Buffer::release`] returned `Ok` (or the buffer was dropped and nothing was
    /// logged as staying allocated), of the whole pages that hold the range:
    ///
    /// - they stay mapped, readable and writable, at these addresses;
    /// - no Rust reference points into the range, and none to other bytes of these pages that
    ///   a device writing past the range would change;
    /// - without an IOMMU they are not given to a child by `fork` while a device uses them:
    ///   the first write afterwards would move them (`MADV_DONTFORK` prevents that). They stay
    ///   locked (`mlock`) afterwards.
    pub unsafe fn adopt(&self, base: NonNull<u8>, request: &Request) -> Result<Buffer, DmaError> {
        // SAFETY: the caller's promise is the same.
        unsafe { placement::place_in_range(&self.owner, &self.space, &self.limits, base, request) }
    }
}
