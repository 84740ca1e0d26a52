//! The memory that backs a buffer.

use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use vm_memory::VolatileSlice;

/// The size of a page of memory, as the kernel hands it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub enum PageSize {
    /// The base page: 4 KiB.
    #[serde(rename = "4K")]
    Base,
    /// Base pages that the kernel is asked to make huge (`MADV_HUGEPAGE`), 2 MiB aligned.
    #[serde(rename = "transparent-2M")]
    Transparent,
    /// A page of the 2 MiB pool (`/sys/kernel/mm/hugepages/hugepages-2048kB`).
    #[serde(rename = "2M")]
    Huge2M,
    /// A page of the 1 GiB pool (`/sys/kernel/mm/hugepages/hugepages-1048576kB`).
    #[serde(rename = "1G")]
    Huge1G,
}

impl PageSize {
    /// From the largest to the smallest, in the order that they are worth trying.
    pub const DESCENDING: [PageSize; 4] =
        [PageSize::Huge1G, PageSize::Huge2M, PageSize::Transparent, PageSize::Base];

    /// Alignment and granularity in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            PageSize::Base => 4096,
            PageSize::Transparent | PageSize::Huge2M => 2 << 20,
            PageSize::Huge1G => 1 << 30,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageSize::Base => "4 KiB pages",
            PageSize::Transparent => "transparent huge pages",
            PageSize::Huge2M => "2 MiB huge pages",
            PageSize::Huge1G => "1 GiB huge pages",
        })
    }
}

/// Why memory could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes of {page_size}: {action}: {source}{}", remedy_text(.remedy))]
pub struct MemoryError {
    /// Bytes asked for, rounded up to whole pages.
    pub len: usize,
    /// The pages asked for.
    pub page_size: PageSize,
    /// The step that failed.
    pub action: &'static str,
    /// The kernel's reason.
    pub source: Errno,
    /// What would help.
    pub remedy: Option<String>,
}

fn remedy_text(remedy: &Option<String>) -> String {
    remedy.as_ref().map(|text| format!(" ({text})")).unwrap_or_default()
}

/// Memory of this process that a device can be given: page-aligned, zeroed, kept out of
/// children made by `fork`, never reachable through a Rust reference.
pub struct Memory {
    base: NonNull<u8>,
    len: usize,
    page_size: PageSize,
    file: Option<OwnedFd>,
}

// SAFETY: the mapping belongs to the value alone, and is only reached by volatile copies.
unsafe impl Send for Memory {}
// SAFETY: as above; concurrent volatile accesses to plain memory are as defined as those
// of the device itself.
unsafe impl Sync for Memory {}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory")
            .field("base", &self.base)
            .field("len", &self.len)
            .field("page_size", &self.page_size)
            .finish_non_exhaustive()
    }
}

impl Memory {
    /// Allocates at least `len` bytes in whole pages of the size given.
    ///
    /// With `with_file` the memory is a memfd, which another process can map too.
    ///
    /// # Errors
    ///
    /// Fails when the kernel has no such pages left, or `len` is 0 or too large.
    pub fn allocate(
        len: usize,
        page_size: PageSize,
        with_file: bool,
    ) -> Result<Memory, MemoryError> {
        let error = |len, action, source| MemoryError {
            len,
            page_size,
            action,
            source,
            remedy: remedy(len, page_size, source),
        };
        let rounded =
            len.checked_next_multiple_of(page_size.bytes()).filter(|&l| l <= isize::MAX as usize);
        let Some(size) = rounded.and_then(NonZeroUsize::new) else {
            return Err(error(len, "choosing a size", Errno::EINVAL));
        };
        let len = size.get();
        let file = if with_file {
            Some(memfd(len, page_size).map_err(|(a, e)| error(len, a, e))?)
        } else {
            None
        };
        let base = match page_size {
            PageSize::Transparent => map_aligned(size, page_size.bytes(), file.as_ref()),
            _ => map(size, page_size, file.as_ref()),
        }
        .map_err(|source| error(len, "mmap", source))?;
        // From here on `memory` unmaps on every way out.
        let memory = Memory { base, len, page_size, file };
        memory.advise(MmapAdvise::MADV_DONTFORK).map_err(|e| error(len, "madvise(DONTFORK)", e))?;
        if page_size == PageSize::Transparent {
            memory
                .advise(MmapAdvise::MADV_HUGEPAGE)
                .map_err(|e| error(len, "madvise(HUGEPAGE)", e))?;
        }
        Ok(memory)
    }

    fn advise(&self, advice: MmapAdvise) -> nix::Result<()> {
        // SAFETY: the range is this value's own mapping, and the advice given does not
        // take its contents away from this process.
        unsafe { madvise(self.base.cast(), self.len, advice) }
    }

    /// Where the memory starts in this process.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Length in bytes: whole pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: memory has at least one page.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The pages it was asked to be made of.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The memfd behind it, where there is one; the memory starts at its offset 0.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// The memory for volatile copies in and out.
    #[must_use]
    pub fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`, which the
        // returned lifetime is tied to; nothing makes a reference into it.
        unsafe { VolatileSlice::new(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing can reach it any more.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.len) } {
            log::error!("unmapping {} bytes at {:?}: {errno}", self.len, self.base);
        }
    }
}

fn memfd(len: usize, page_size: PageSize) -> Result<OwnedFd, (&'static str, Errno)> {
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

fn map(len: NonZeroUsize, page_size: PageSize, file: Option<&OwnedFd>) -> nix::Result<NonNull<u8>> {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let huge = match page_size {
        PageSize::Base | PageSize::Transparent => MapFlags::empty(),
        PageSize::Huge2M => MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB,
        PageSize::Huge1G => MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_1GB,
    };
    let base = match file {
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        Some(file) => unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, file, 0) },
        // SAFETY: as above.
        None => unsafe { mmap_anonymous(None, len, protection, MapFlags::MAP_PRIVATE | huge) },
    }?;
    Ok(base.cast())
}

/// Maps with an alignment larger than a page: reserves more than needed and gives the
/// ends back.
fn map_aligned(
    len: NonZeroUsize,
    align: usize,
    file: Option<&OwnedFd>,
) -> nix::Result<NonNull<u8>> {
    let reserved = len.checked_add(align).ok_or(Errno::ENOMEM)?;
    // SAFETY: a new inaccessible mapping at an address of the kernel's choice.
    let start =
        unsafe { mmap_anonymous(None, reserved, ProtFlags::PROT_NONE, MapFlags::MAP_PRIVATE) }?;
    let head = start.addr().get().next_multiple_of(align) - start.addr().get();
    // SAFETY: head < align, so the aligned address is inside the reservation.
    let aligned = unsafe { start.byte_add(head) };
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let at = Some(aligned.addr());
    let mapped = match file {
        // SAFETY: replaces a part of the reservation, which nobody else uses.
        Some(file) => unsafe {
            mmap(at, len, protection, MapFlags::MAP_SHARED | MapFlags::MAP_FIXED, file, 0)
        },
        // SAFETY: as above.
        None => unsafe {
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED;
            mmap_anonymous(at, len, protection, flags)
        },
    };
    let give_back = |at: NonNull<std::ffi::c_void>, len: usize| {
        if len > 0 {
            // SAFETY: the range is a part of the reservation that nobody uses.
            if let Err(errno) = unsafe { munmap(at, len) } {
                log::error!("unmapping {len} bytes at {at:?}: {errno}");
            }
        }
    };
    if let Err(errno) = mapped {
        give_back(start, reserved.get());
        return Err(errno);
    }
    give_back(start, head);
    // SAFETY: head + len <= reserved, so the address is at most one past the reservation.
    let tail = unsafe { aligned.byte_add(len.get()) };
    give_back(tail, align - head);
    Ok(aligned.cast())
}

/// What would help, with the figures of the pool.
fn remedy(len: usize, page_size: PageSize, errno: Errno) -> Option<String> {
    let pool = match page_size {
        PageSize::Huge2M => "hugepages-2048kB",
        PageSize::Huge1G => "hugepages-1048576kB",
        PageSize::Base | PageSize::Transparent => return None,
    };
    if !matches!(errno, Errno::ENOMEM | Errno::EINVAL | Errno::ENOENT | Errno::ENODEV) {
        return None;
    }
    let path = format!("/sys/kernel/mm/hugepages/{pool}");
    let needed = len.div_ceil(page_size.bytes());
    Some(match std::fs::read_to_string(format!("{path}/free_hugepages")) {
        Ok(free) => {
            format!("{needed} needed, {} free: echo {needed} > {path}/nr_hugepages", free.trim())
        }
        Err(_) => format!("the kernel has no pool of {page_size}: {path} is missing"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::VolatileMemory;

    #[test]
    fn every_kind_of_small_page_gives_zeroed_memory_that_keeps_what_is_written() {
        for (page_size, with_file) in [
            (PageSize::Base, false),
            (PageSize::Base, true),
            (PageSize::Transparent, false),
            (PageSize::Transparent, true),
        ] {
            let memory = Memory::allocate(100_000, page_size, with_file).unwrap();
            assert!(memory.len() >= 100_000 && memory.len().is_multiple_of(page_size.bytes()));
            assert_eq!(memory.base().addr().get() % page_size.bytes(), 0);
            assert_eq!(memory.file().is_some(), with_file);
            let slice = memory.as_volatile_slice();
            let mut bytes = [1u8; 3];
            slice.subslice(99_997, 3).unwrap().copy_to(&mut bytes);
            assert_eq!(bytes, [0; 3]);
            slice.subslice(99_997, 3).unwrap().copy_from(&[7u8, 8, 9]);
            slice.get_slice(99_997, 3).unwrap().copy_to(&mut bytes);
            assert_eq!(bytes, [7, 8, 9]);
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        for len in [0, usize::MAX, usize::MAX / 2] {
            assert!(Memory::allocate(len, PageSize::Base, false).is_err());
        }
        let error = Memory::allocate(1 << 46, PageSize::Huge1G, false).unwrap_err();
        assert!(error.to_string().contains("hugepages-1048576kB"), "{error}");
    }
}
