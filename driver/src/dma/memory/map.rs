//! Mapping pages into this process.

use std::ffi::c_void;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::PageSize;

pub(super) fn memfd(len: usize, page_size: PageSize) -> Result<OwnedFd, (&'static str, Errno)> {
    let kind = match page_size {
        PageSize::Base | PageSize::Transparent => MFdFlags::empty(),
        PageSize::Huge2M => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
        PageSize::Huge1G => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_1GB,
    };
    let file = memfd_create(c"vfio-dma", MFdFlags::MFD_CLOEXEC | kind)
        .map_err(|errno| ("memfd_create", errno))?;
    let size = i64::try_from(len).map_err(|_| ("ftruncate", Errno::EFBIG))?;
    nix::unistd::ftruncate(&file, size).map_err(|errno| ("ftruncate", errno))?;
    Ok(file)
}

/// Addresses without memory, at a multiple of `align`.
pub(super) fn reserve(len: NonZeroUsize, align: usize) -> nix::Result<NonNull<u8>> {
    let whole = len.checked_add(align).ok_or(Errno::ENOMEM)?;
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a new inaccessible mapping at an address of the kernel's choice.
    let start = unsafe { mmap_anonymous(None, whole, ProtFlags::PROT_NONE, flags) }?;
    let head = start.addr().get().next_multiple_of(align) - start.addr().get();
    // SAFETY: head < align, so the aligned address is inside the mapping.
    let aligned = unsafe { start.byte_add(head) };
    // SAFETY: head + len <= whole, so the address is at most one past the mapping.
    let tail = unsafe { aligned.byte_add(len.get()) };
    give_back(start, head);
    give_back(tail, align - head);
    Ok(aligned.cast())
}

/// Unmaps what nobody uses.
fn give_back(at: NonNull<c_void>, len: usize) {
    if len > 0 {
        // SAFETY: the callers' ranges are parts of their own reservations.
        if let Err(errno) = unsafe { munmap(at, len) } {
            log::error!("unmapping {len} bytes at {at:?}: {errno}");
        }
    }
}

/// Maps pages at an address of the kernel's choice, aligned to the page size.
pub(super) fn map(
    len: NonZeroUsize,
    page_size: PageSize,
    file: Option<&OwnedFd>,
) -> nix::Result<NonNull<u8>> {
    if page_size == PageSize::Transparent {
        let base = reserve(len, page_size.bytes())?;
        // SAFETY: the range was reserved for this.
        let mapped = unsafe { map_over(base, len, page_size, file) };
        if mapped.is_err() {
            give_back(base.cast(), len.get());
        }
        return mapped.map(|()| base);
    }
    let base = match file {
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        Some(file) => unsafe { mmap(None, len, READ_WRITE, MapFlags::MAP_SHARED, file, 0) },
        // SAFETY: as above.
        None => unsafe {
            mmap_anonymous(None, len, READ_WRITE, MapFlags::MAP_PRIVATE | huge_flags(page_size))
        },
    }?;
    Ok(base.cast())
}

const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

fn huge_flags(page_size: PageSize) -> MapFlags {
    match page_size {
        PageSize::Base | PageSize::Transparent => MapFlags::empty(),
        PageSize::Huge2M => MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB,
        PageSize::Huge1G => MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_1GB,
    }
}

/// Replaces what is mapped at `at` with pages.
///
/// # Safety
///
/// `[at, at + len)` must be the caller's own, with nothing in it that is still used.
pub(super) unsafe fn map_over(
    at: NonNull<u8>,
    len: NonZeroUsize,
    page_size: PageSize,
    file: Option<&OwnedFd>,
) -> nix::Result<()> {
    let addr = Some(at.addr());
    let mapped = match file {
        // SAFETY: the caller gives the range up.
        Some(file) => unsafe {
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
            mmap(addr, len, READ_WRITE, flags, file, 0)
        },
        // SAFETY: as above.
        None => unsafe {
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | huge_flags(page_size);
            mmap_anonymous(addr, len, READ_WRITE, flags)
        },
    };
    mapped.map(drop)
}

/// Maps `len` bytes of a file from `offset` on, both multiples of its page size.
pub(super) fn map_file(
    file: impl AsFd,
    offset: u64,
    len: NonZeroUsize,
) -> nix::Result<NonNull<u8>> {
    let offset = i64::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
    // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
    unsafe { mmap(None, len, READ_WRITE, MapFlags::MAP_SHARED, file, offset) }.map(NonNull::cast)
}

/// Moves the pages of `[from, from + len)` to `to`; `from` stays mapped, with new zeroed
/// pages when it is touched again.
///
/// # Safety
///
/// Both ranges must be the caller's own, disjoint, private and anonymous, and nothing
/// that `to` holds may still be used.
pub(super) unsafe fn move_pages(from: NonNull<u8>, to: NonNull<u8>, len: usize) -> nix::Result<()> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
    // SAFETY: the caller owns both ranges.
    let moved = unsafe {
        libc::mremap(from.as_ptr().cast(), len, len, flags, to.as_ptr().cast::<c_void>())
    };
    if moved == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(()) }
}
