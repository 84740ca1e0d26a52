//! Mapping pages into this process.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use super::PageSize;
use super::addresses::{Addresses, READ_WRITE, huge_flags};
use super::populate::Access;

/// Maps pages at an address of the kernel's choice, aligned to the page size.
pub(super) fn map(
    len: NonZeroUsize,
    page_size: PageSize,
    file: Option<(BorrowedFd<'_>, u64)>,
) -> nix::Result<Addresses> {
    if page_size == PageSize::Transparent {
        let mut addresses = Addresses::reserve(len, page_size.bytes())?;
        // SAFETY: nothing uses what was reserved just now.
        unsafe { addresses.put(0, len, page_size, file) }?;
        addresses.complete();
        return Ok(addresses);
    }
    let base = match file {
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        Some((file, offset)) => unsafe {
            mmap(None, len, READ_WRITE, MapFlags::MAP_SHARED, file, position(offset)?)
        },
        // SAFETY: as above.
        None => unsafe {
            mmap_anonymous(None, len, READ_WRITE, MapFlags::MAP_PRIVATE | huge_flags(page_size))
        },
    }?;
    // SAFETY: mapped just now.
    Ok(unsafe { Addresses::of_mapping(base.cast(), len) })
}

/// Maps `len` bytes of a file from `offset` on, both multiples of its page size.
pub(super) fn map_file(
    file: impl AsFd,
    offset: u64,
    len: NonZeroUsize,
    access: Access,
) -> nix::Result<Addresses> {
    let protection = match access {
        Access::Read => ProtFlags::PROT_READ,
        Access::Write => READ_WRITE,
    };
    let offset = position(offset)?;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let base = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, file, offset) }?;
    // SAFETY: mapped just now.
    Ok(unsafe { Addresses::of_mapping(base.cast(), len) })
}

/// An offset as system calls take it.
pub(super) fn position(offset: u64) -> nix::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)
}
