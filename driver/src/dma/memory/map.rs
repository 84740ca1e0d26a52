//! Mapping pages into this process.

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use super::PageSize;
use super::addresses::{Addresses, READ_WRITE, huge_flags};
use super::populate::Access;

/// A file in memory that nobody can cut short: whoever gets the descriptor, such as the process
/// that serves a device, cannot take pages away that this process touches.
pub(super) fn memfd(len: usize, page_size: PageSize) -> Result<OwnedFd, (&'static str, Errno)> {
    let kind = match page_size {
        PageSize::Base | PageSize::Transparent => MFdFlags::empty(),
        PageSize::Huge2M => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
        PageSize::Huge1G => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_1GB,
    };
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | kind;
    let file = memfd_create(c"vfio-dma", flags).map_err(|errno| ("memfd_create", errno))?;
    let size = i64::try_from(len).map_err(|_| ("ftruncate", Errno::EFBIG))?;
    nix::unistd::ftruncate(&file, size).map_err(|errno| ("ftruncate", errno))?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(|errno| ("fcntl(F_ADD_SEALS)", errno))?;
    Ok(file)
}

/// Maps pages at an address of the kernel's choice, aligned to the page size.
pub(super) fn map(
    len: NonZeroUsize,
    page_size: PageSize,
    file: Option<&OwnedFd>,
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
        Some(file) => unsafe { mmap(None, len, READ_WRITE, MapFlags::MAP_SHARED, file, 0) },
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
    let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    let base = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, file, offset) }?;
    // SAFETY: mapped just now.
    Ok(unsafe { Addresses::of_mapping(base.cast(), len) })
}
