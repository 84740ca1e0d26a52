//! The memory that backs a buffer.

mod access;
mod addresses;
mod error;
mod file;
pub(super) mod frames;
pub(super) mod lock;
mod map;
pub(super) mod node;
mod page_size;
pub(super) mod physical;
mod populate;
mod shared;

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, madvise, mlock};
use vm_memory::VolatileSlice;

use addresses::Addresses;
pub use error::{MemoryAccessError, MemoryError};
pub use frames::FrameError;
pub use page_size::PageSize;
use populate::Access;
use shared::Extent;
pub(super) use shared::Files;

use crate::mmio::BusErrorGuard;

/// A run of memory with one backing.
#[derive(Debug)]
struct Part {
    len: usize,
    file: Option<PartFile>,
}

/// The file behind a run of memory.
#[derive(Debug)]
enum PartFile {
    /// A caller's, and the offset that the run starts at in it.
    Lent(OwnedFd, u64),
    /// A part of a file of the driver's own.
    Own(Extent),
}

impl PartFile {
    /// The file, and the offset that the run starts at in it.
    fn place(&self) -> (BorrowedFd<'_>, u64) {
        match self {
            PartFile::Lent(file, offset) => (file.as_fd(), *offset),
            PartFile::Own(extent) => extent.place(),
        }
    }
}

/// A run of memory that one map call can take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece<'a> {
    pub(super) offset: usize,
    pub(super) len: usize,
    pub(super) file: Option<(BorrowedFd<'a>, u64)>,
}

/// Memory of this process that a device can be given: page-aligned and never reachable
/// through a Rust reference. What is allocated here is zeroed and kept out of children
/// made by `fork`.
pub struct Memory {
    base: NonNull<u8>,
    len: usize,
    page_size: PageSize,
    /// Cover the memory in order.
    parts: Vec<Part>,
    /// Over the pages that can go without the file being cut short; they end before the mapping.
    guards: Vec<BusErrorGuard>,
    /// Unmapped when dropped. None for memory that a caller has lent.
    own: Option<Addresses>,
    /// What this process may do with it.
    access: Access,
    /// It is a file's, which can be cut short: a load or store of what is gone would end the
    /// process.
    may_shrink: bool,
}

// SAFETY: the mapping belongs to the value alone, or its owner vouched for it, and is only
// reached by volatile copies.
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
    /// Allocates at least `len` bytes in whole pages of the size given, all of them present.
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
        Memory::allocate_in(len, page_size, with_file.then(Files::default).as_ref())
    }

    /// As [`Memory::allocate`], in the files that are shared with other memory, if any.
    pub(super) fn allocate_in(
        len: usize,
        page_size: PageSize,
        files: Option<&Files>,
    ) -> Result<Memory, MemoryError> {
        let memory = Memory::absent(len, page_size, files)?;
        memory.populate(0, memory.len)?;
        Ok(memory)
    }

    /// As [`Memory::allocate_in`], with pages that are still to be made present.
    pub(super) fn absent(
        len: usize,
        page_size: PageSize,
        files: Option<&Files>,
    ) -> Result<Memory, MemoryError> {
        let size = whole_pages(len, page_size)?;
        let len = size.get();
        let error = |action, source: Errno| MemoryError::new(len, page_size, action, source);
        let extent = files.map(|files| files.take(len as u64, page_size)).transpose();
        let extent = extent.map_err(|(action, errno)| error(action, errno))?;
        let own = map::map(size, page_size, extent.as_ref().map(Extent::place))
            .map_err(|e| error("mmap", e))?;
        let parts = vec![Part { len, file: extent.map(PartFile::Own) }];
        let (base, own) = (own.base(), Some(own));
        let (access, guards) = (Access::Write, Vec::new());
        let mut memory =
            Memory { base, len, page_size, parts, guards, own, access, may_shrink: false };
        memory.keep_from_children()?;
        if files.is_some() {
            memory.watch(0, len, page_size)?;
        }
        if page_size == PageSize::Transparent {
            memory.advise(MmapAdvise::MADV_HUGEPAGE).map_err(|e| error("madvise(HUGEPAGE)", e))?;
        }
        Ok(memory)
    }

    /// Allocates at least `len` bytes from pages of every size, the largest first: as many
    /// of the pools as are free and fit, transparent huge pages and base pages for the rest.
    /// The processor sees one run.
    ///
    /// # Errors
    ///
    /// Fails when not even base pages are left, or `len` is 0 or too large.
    pub(super) fn assemble(len: usize, files: Option<&Files>) -> Result<Memory, MemoryError> {
        let mut memory = Memory::reserve(len)?;
        let mut at = 0;
        for page_size in PageSize::DESCENDING {
            let fit = (memory.len - at) / page_size.bytes();
            let free =
                if page_size.pool().is_some() { page_size.free().unwrap_or(0) } else { u64::MAX };
            let pages = fit.min(usize::try_from(free).unwrap_or(usize::MAX));
            let Some(run) = NonZeroUsize::new(pages * page_size.bytes()) else { continue };
            match memory.fill(at, run, page_size, files) {
                Ok(part) => {
                    memory.parts.push(part);
                    at += run.get();
                }
                Err(error) if page_size == PageSize::Base => return Err(error),
                // The pages went elsewhere since they were counted: smaller ones follow. If
                // the addresses were lost with them, base pages fail and end this.
                Err(_) => {}
            }
        }
        memory.complete()?;
        Ok(memory)
    }

    /// Addresses for `len` bytes, without pages.
    fn reserve(len: usize) -> Result<Memory, MemoryError> {
        let page_size = PageSize::Base;
        let size = whole_pages(len, page_size)?;
        let len = size.get();
        let fits = |page: &PageSize| page.bytes() <= len;
        let align = PageSize::DESCENDING.into_iter().find(fits).unwrap_or(page_size).bytes();
        let own = Addresses::reserve(size, align)
            .map_err(|errno| MemoryError::new(len, page_size, "reserving addresses", errno))?;
        let (base, parts, own) = (own.base(), Vec::new(), Some(own));
        let (access, guards) = (Access::Write, Vec::new());
        Ok(Memory { base, len, page_size, parts, guards, own, access, may_shrink: false })
    }

    /// Puts pages at `at`, which has none yet.
    fn fill(
        &mut self,
        at: usize,
        len: NonZeroUsize,
        page_size: PageSize,
        files: Option<&Files>,
    ) -> Result<Part, MemoryError> {
        let error = |action, source: Errno| MemoryError::new(len.get(), page_size, action, source);
        let extent = files.map(|files| files.take(len.get() as u64, page_size)).transpose();
        let extent = extent.map_err(|(action, errno)| error(action, errno))?;
        let own = self.own.as_mut().ok_or_else(|| error("mmap", Errno::EPERM))?;
        // SAFETY: the range has no pages that anyone uses.
        let start = unsafe { own.put(at, len, page_size, extent.as_ref().map(Extent::place)) }
            .map_err(|errno| error("mmap", errno))?;
        if page_size == PageSize::Transparent {
            // SAFETY: the range was mapped above. Without transparent huge pages in the
            // kernel the memory is base pages, which is as good.
            let _ = unsafe { madvise(start.cast(), len.get(), MmapAdvise::MADV_HUGEPAGE) };
        }
        // SAFETY: as above.
        unsafe { populate::populate(start, len, self.access) }
            .map_err(|errno| error(self.access.populating(), errno))?;
        if extent.is_some() {
            self.watch(at, len.get(), page_size)?;
        }
        Ok(Part { len: len.get(), file: extent.map(PartFile::Own) })
    }

    /// Makes the pages of a range present.
    fn populate(&self, at: usize, len: usize) -> Result<(), MemoryError> {
        debug_assert!(at + len <= self.len);
        let Some(len) = NonZeroUsize::new(len) else { return Ok(()) };
        // SAFETY: inside of the memory.
        let start = unsafe { self.base.byte_add(at) };
        // SAFETY: the range is mapped.
        unsafe { populate::populate(start, len, self.access) }.map_err(|errno| {
            MemoryError::new(len.get(), self.page_size, self.access.populating(), errno)
        })
    }

    /// Memory that somebody else has mapped and goes on owning: `[base, base + len)`, both
    /// multiples of a base page.
    ///
    /// # Safety
    ///
    /// The range must be mapped for reading and writing for as long as the value lives,
    /// and no Rust reference may point into it meanwhile.
    pub(super) unsafe fn lend(base: NonNull<u8>, len: NonZeroUsize) -> Memory {
        let parts = vec![Part { len: len.get(), file: None }];
        let (len, page_size, access) = (len.get(), PageSize::Base, Access::Write);
        let guards = Vec::new();
        Memory { base, len, page_size, parts, guards, own: None, access, may_shrink: false }
    }

    /// To be called once there are pages everywhere.
    fn complete(&mut self) -> Result<(), MemoryError> {
        self.own.iter_mut().for_each(Addresses::complete);
        self.keep_from_children()
    }

    /// A child that shares the pages would make the next write here move them.
    fn keep_from_children(&self) -> Result<(), MemoryError> {
        self.advise(MmapAdvise::MADV_DONTFORK)
            .map_err(|errno| MemoryError::new(self.len, self.page_size, "madvise(DONTFORK)", errno))
    }

    fn advise(&self, advice: MmapAdvise) -> nix::Result<()> {
        // Miri knows none.
        if cfg!(miri) {
            return Ok(());
        }
        // SAFETY: the range is this value's own mapping, and the advice given does not
        // take its contents away from this process.
        unsafe { madvise(self.base.cast(), self.len, advice) }
    }

    /// Makes every page present and keeps it in memory, see [`lock`].
    pub(super) fn lock(&self) -> Result<(), MemoryError> {
        // SAFETY: locking changes neither contents nor accessibility.
        unsafe { mlock(self.base.cast(), self.len) }
            .map_err(|errno| MemoryError::new(self.len, self.page_size, "mlock", errno))
    }

    /// Moves pages of another memory to `at` of this one; both are private and anonymous.
    fn take_pages(
        &mut self,
        at: usize,
        from: &Memory,
        pages: Range<usize>,
    ) -> Result<(), MemoryError> {
        let len = pages.len() * frames::frame_bytes();
        let offset = pages.start * frames::frame_bytes();
        let error = |errno: Errno| MemoryError::new(len, PageSize::Base, "mremap", errno);
        debug_assert!(offset + len <= from.len);
        let size = NonZeroUsize::new(len).ok_or_else(|| error(Errno::EINVAL))?;
        let own = self.own.as_mut().ok_or_else(|| error(Errno::EPERM))?;
        // SAFETY: inside of `from`.
        let source = unsafe { from.base.byte_add(offset) };
        // SAFETY: two values' own mappings are disjoint, and nothing refers into either.
        unsafe { own.take(at, source, size) }.map_err(error)
    }

    /// The NUMA nodes that its pages are on, with the bytes on each.
    pub(super) fn nodes(&self) -> nix::Result<Vec<(u32, u64)>> {
        let step = match self.page_size {
            // What was made huge may have been split since.
            PageSize::Transparent => PageSize::Base,
            page_size => page_size,
        };
        node::nodes_of(self.base, self.len, step.bytes())
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

    /// The pages it was asked to be made of; the smallest of them when they differ.
    #[must_use]
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// Whether it belongs to a caller, who unmaps it.
    pub(super) fn is_lent(&self) -> bool {
        self.own.is_none()
    }

    /// The file behind it, where there is one that backs all of it.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.parts[..] {
            [Part { file: Some(file), .. }] => Some(file.place().0),
            _ => None,
        }
    }

    /// Cuts a range where the backing changes, if each piece needs its file.
    pub(super) fn pieces(
        &self,
        range: Range<usize>,
        by_file: bool,
    ) -> impl Iterator<Item = Piece<'_>> {
        let whole = (!by_file && self.parts.len() != 1).then_some(Piece {
            offset: range.start,
            len: range.len(),
            file: None,
        });
        let parts = if whole.is_some() { &[] } else { &self.parts[..] };
        let mut start = 0;
        let cut = parts.iter().filter_map(move |part| {
            let first = start.max(range.start);
            let end = (start + part.len).min(range.end);
            let inside = (first - start) as u64;
            start += part.len;
            let file = part.file.as_ref().map(PartFile::place);
            let file = file.map(|(file, at)| (file, at + inside));
            (first < end).then(|| Piece { offset: first, len: end - first, file })
        });
        whole.into_iter().chain(cut)
    }

    /// The memory for volatile copies in and out.
    pub(super) fn as_volatile_slice(&self) -> VolatileSlice<'_> {
        // SAFETY: the mapping is `len` bytes long and lives as long as `self`, which the
        // returned lifetime is tied to; nothing makes a reference into it.
        unsafe { VolatileSlice::new(self.base.as_ptr(), self.len) }
    }
}

fn whole_pages(len: usize, page_size: PageSize) -> Result<NonZeroUsize, MemoryError> {
    let rounded =
        len.checked_next_multiple_of(page_size.bytes()).filter(|&l| l <= isize::MAX as usize);
    rounded
        .and_then(NonZeroUsize::new)
        .ok_or_else(|| MemoryError::new(len, page_size, "choosing a size", Errno::EINVAL))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let mut bytes = [1u8; 3];
            memory.read(99_997, &mut bytes).unwrap();
            assert_eq!(bytes, [0; 3]);
            memory.write(99_997, &[7, 8, 9]).unwrap();
            memory.read(99_997, &mut bytes).unwrap();
            assert_eq!(bytes, [7, 8, 9]);
            let size = memory.len();
            let outside = MemoryAccessError::OutOfBounds { offset: size - 2, len: 3, size };
            assert_eq!(memory.read(size - 2, &mut bytes), Err(outside));
            assert_eq!(memory.write(size - 2, &bytes), Err(outside));
            assert!(memory.read(usize::MAX, &mut bytes).is_err());
        }
    }

    #[test]
    fn what_another_process_gets_cannot_be_cut_short() {
        let memory = Memory::allocate(8192, PageSize::Base, true).unwrap();
        let refused = nix::unistd::ftruncate(memory.file().unwrap(), 4096);
        assert_eq!(refused.unwrap_err(), Errno::EPERM);
        memory.write(8191, &[1]).unwrap();
    }

    #[test]
    fn too_many_open_files_have_their_remedy() {
        let error = MemoryError::new(4096, PageSize::Base, "memfd_create", Errno::EMFILE);
        assert!(error.to_string().contains("ulimit -n"), "{error}");
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
