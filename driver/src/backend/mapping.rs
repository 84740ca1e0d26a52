//! A BAR mapped through its file in sysfs.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

use super::MappedRegion;

/// Pages of a file that the kernel makes of a BAR, and the part of them that is the BAR's.
#[derive(Debug)]
pub(super) struct Mapping {
    pages: NonNull<u8>,
    len: NonZeroUsize,
    part: Range<usize>,
}

impl Mapping {
    /// Maps `len` bytes of a file from `position` on, both whole pages; the bytes of `part`,
    /// which lie in them, are what the mapping is for.
    pub(super) fn new(
        file: impl AsFd,
        position: libc::off_t,
        protection: ProtFlags,
        len: NonZeroUsize,
        part: Range<usize>,
    ) -> nix::Result<Mapping> {
        if part.start > part.end || part.end > len.get() {
            return Err(nix::errno::Errno::EINVAL);
        }
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let pages = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, file, position) }?;
        Ok(Mapping { pages: pages.cast(), len, part })
    }
}

// SAFETY: the mapping is the value's own, and `part` lies in it: device memory that no Rust
// reference points into, which lives until the value is dropped.
unsafe impl MappedRegion for Mapping {
    fn base(&self) -> NonNull<u8> {
        // SAFETY: `new` checked that the part begins inside of the mapping or at its end.
        unsafe { self.pages.add(self.part.start) }
    }

    fn len(&self) -> usize {
        self.part.len()
    }
}

// SAFETY: an address range is not bound to a thread.
unsafe impl Send for Mapping {}
// SAFETY: the value only tells where the range is; accesses are the caller's.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is the value's own; the trait's users do not outlive it.
        if let Err(errno) = unsafe { munmap(self.pages.cast(), self.len.get()) } {
            log::error!("unmapping {} bytes of a BAR at {:?}: {errno}", self.len, self.pages);
        }
    }
}
