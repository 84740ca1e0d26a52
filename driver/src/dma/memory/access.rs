//! Copies in and out of memory, whose pages may be gone.

use std::ptr::NonNull;

use nix::errno::Errno;
use vm_memory::VolatileSlice;

use super::error::lost;
use super::populate::{self, Access};
use super::{Memory, MemoryAccessError, MemoryError, PageSize};
use crate::mmio::BusErrorGuard;

impl Memory {
    /// Watches a range, of pages of a file that others have too: no seal keeps them from taking
    /// huge pages out of it, and this process may find none in the pool then, where pages of
    /// other sizes are zeros anew.
    pub(super) fn watch(
        &mut self,
        at: usize,
        len: usize,
        page_size: PageSize,
    ) -> Result<(), MemoryError> {
        if page_size.pool().is_none() {
            return Ok(());
        }
        // SAFETY: the range is in a mapping that outlives the guards, which are dropped before it,
        // and nothing refers into it.
        let guard = unsafe { BusErrorGuard::watch(self.at(at), len, page_size.bytes()) };
        self.guards.push(guard.map_err(|e| MemoryError::new(len, page_size, "sigaction", e))?);
        Ok(())
    }

    /// Fails once an access has met a page that was gone: what is there instead is no one's.
    pub(in crate::dma) fn check_there(
        &self,
        offset: usize,
        len: usize,
    ) -> Result<(), MemoryAccessError> {
        if self.guards.iter().any(BusErrorGuard::is_lost) {
            return Err(lost(offset, len, Errno::EFAULT));
        }
        Ok(())
    }

    /// Whether a load or store of this process could meet pages that are gone.
    pub(in crate::dma) fn may_shrink(&self) -> bool {
        self.may_shrink
    }

    /// Whether this process may store into it.
    pub(in crate::dma) fn is_writable(&self) -> bool {
        self.access == Access::Write
    }

    /// Copies bytes out of the memory.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the memory, or pages of the file behind it are gone.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), MemoryAccessError> {
        let slice = self.range(offset, into.len())?;
        if !self.may_shrink {
            slice.copy_to(into);
            return self.check_there(offset, into.len());
        }
        let len = into.len();
        populate::guarded_read(self.at(offset), into).map_err(|errno| lost(offset, len, errno))
    }

    /// Copies bytes into the memory, which a device may be using at the same time.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the memory, the memory is only read, or pages of the
    /// file behind it are gone.
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), MemoryAccessError> {
        let slice = self.range(offset, from.len())?;
        if !self.is_writable() {
            return Err(MemoryAccessError::ReadOnly { offset, len: from.len() });
        }
        if !self.may_shrink {
            slice.copy_from(from);
            return self.check_there(offset, from.len());
        }
        populate::guarded_write(self.at(offset), from)
            .map_err(|errno| lost(offset, from.len(), errno))
    }

    /// The address of an offset inside of the memory.
    fn at(&self, offset: usize) -> NonNull<u8> {
        debug_assert!(offset <= self.len);
        // SAFETY: the callers have checked the range.
        unsafe { self.base.byte_add(offset) }
    }

    fn range(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, MemoryAccessError> {
        let slice = self.as_volatile_slice().subslice(offset, len);
        slice.map_err(|_| MemoryAccessError::OutOfBounds { offset, len, size: self.len })
    }
}
