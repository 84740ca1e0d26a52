//! Ranges of addresses of this process that nothing else may be mapped into.
//!
//! A system call that replaces a mapping (`MAP_FIXED`, `MREMAP_FIXED`) may take away what
//! was there and fail afterwards, for example when a pool of huge pages is exhausted. It
//! leaves a hole, which any other thread may map into from then on. Such a hole is closed
//! again, or given up for good: nothing is mapped there or unmapped from there any more.

use std::ffi::c_void;
use std::fs;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use super::PageSize;
use super::map::position;

pub(super) const READ_WRITE: ProtFlags = ProtFlags::PROT_READ.union(ProtFlags::PROT_WRITE);

pub(super) fn huge_flags(page_size: PageSize) -> MapFlags {
    match page_size {
        PageSize::Base | PageSize::Transparent => MapFlags::empty(),
        PageSize::Huge2M => MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_2MB,
        PageSize::Huge1G => MapFlags::MAP_HUGETLB | MapFlags::MAP_HUGE_1GB,
    }
}

/// A range of addresses of this process, unmapped when dropped.
#[derive(Debug)]
pub(super) struct Addresses {
    base: NonNull<u8>,
    len: usize,
    /// An empty file that is mapped, inaccessible, wherever there are no pages yet. The
    /// kernel tells by it which mappings are still this value's. None once there are pages
    /// everywhere, or when there were no descriptors left.
    mark: Option<OwnedFd>,
    /// What is no longer this value's, as offsets.
    lost: Vec<Range<usize>>,
}

impl Addresses {
    /// What is mapped at `[base, base + len)`.
    ///
    /// # Safety
    ///
    /// The mapping must be the caller's own, who gives it up.
    pub(super) unsafe fn of_mapping(base: NonNull<u8>, len: NonZeroUsize) -> Addresses {
        Addresses { base, len: len.get(), mark: None, lost: Vec::new() }
    }

    /// Addresses without memory, at a multiple of `align`.
    pub(super) fn reserve(len: NonZeroUsize, align: usize) -> nix::Result<Addresses> {
        let whole = len.checked_add(align).ok_or(Errno::ENOMEM)?;
        let mark = memfd_create(c"vfio-dma reserved", MFdFlags::MFD_CLOEXEC).ok();
        let start = inaccessible(None, whole, MapFlags::empty(), mark.as_ref())?;
        let head = start.addr().get().next_multiple_of(align) - start.addr().get();
        // SAFETY: head < align, so the aligned address is inside the mapping.
        let base = unsafe { start.byte_add(head) };
        // SAFETY: head + len <= whole, so the address is at most one past the mapping.
        let tail = unsafe { base.byte_add(len.get()) };
        // SAFETY: the mapping is this function's own, and what is before `base` is not used.
        unsafe { unmap(start, head) };
        // SAFETY: as above, of what is behind the range.
        unsafe { unmap(tail, align - head) };
        Ok(Addresses { base: base.cast(), len: len.get(), mark, lost: Vec::new() })
    }

    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The address of a part that is still this value's.
    fn part(&self, at: usize, len: usize) -> nix::Result<NonNull<u8>> {
        let end = at.checked_add(len).filter(|&end| end <= self.len).ok_or(Errno::EINVAL)?;
        if self.lost.iter().any(|lost| lost.start < end && at < lost.end) {
            return Err(Errno::EFAULT);
        }
        // SAFETY: inside of the range, as was just checked.
        Ok(unsafe { self.base.byte_add(at) })
    }

    /// Puts pages at `at`.
    ///
    /// # Safety
    ///
    /// Nothing in the range may be used any more.
    pub(super) unsafe fn put(
        &mut self,
        at: usize,
        len: NonZeroUsize,
        page_size: PageSize,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> nix::Result<NonNull<u8>> {
        let start = self.part(at, len.get())?;
        let addr = Some(start.addr());
        let mapped = match file {
            // SAFETY: the range is this value's own, and the caller gives up what it holds.
            Some((file, offset)) => unsafe {
                let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
                mmap(addr, len, READ_WRITE, flags, file, position(offset)?)
            },
            // SAFETY: as above.
            None => unsafe {
                let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | huge_flags(page_size);
                mmap_anonymous(addr, len, READ_WRITE, flags)
            },
        };
        mapped.inspect_err(|_| self.mend(start, at, len))?;
        Ok(start)
    }

    /// Moves the pages of `[from, from + len)` to `at`; `from` stays mapped, with new zeroed
    /// pages when it is touched again.
    ///
    /// # Safety
    ///
    /// `from` must be the caller's own, outside of this value, private and anonymous, and
    /// nothing in either range may be used any more.
    pub(super) unsafe fn take(
        &mut self,
        at: usize,
        from: NonNull<u8>,
        len: NonZeroUsize,
    ) -> nix::Result<()> {
        let to = self.part(at, len.get())?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED | libc::MREMAP_DONTUNMAP;
        let (old, new) = (from.as_ptr().cast(), to.as_ptr().cast::<c_void>());
        // SAFETY: one range is this value's own, the other the caller's.
        let moved = unsafe { libc::mremap(old, len.get(), len.get(), flags, new) };
        if moved == libc::MAP_FAILED {
            let errno = Errno::last();
            self.mend(to, at, len);
            return Err(errno);
        }
        Ok(())
    }

    /// There are pages everywhere: none are put or taken any more.
    pub(super) fn complete(&mut self) {
        self.mark = None;
    }

    /// After a failure: closes the hole that it may have left, or gives the range up.
    fn mend(&mut self, start: NonNull<u8>, at: usize, len: NonZeroUsize) {
        let flags = MapFlags::MAP_FIXED_NOREPLACE;
        let closed = inaccessible(Some(start), len, flags, self.mark.as_ref());
        let own = match closed {
            Ok(mapped) if mapped == start.cast() => true,
            Ok(elsewhere) => {
                // SAFETY: mapped just now, and not used.
                unsafe { unmap(elsewhere, len.get()) };
                false
            }
            // Something is there: what was there before the failure, or another's mapping.
            Err(Errno::EEXIST) => self.is_marked(start.addr().get(), len.get()),
            Err(_) => false,
        };
        if !own {
            log::warn!("giving up {len:#x} bytes of addresses at {start:?} after a failure");
            self.lost.push(at..at + len.get());
        }
    }

    /// Whether all of `[start, start + len)` is mapped to the mark.
    fn is_marked(&self, start: usize, len: usize) -> bool {
        let stat = self.mark.as_ref().and_then(|mark| nix::sys::stat::fstat(mark).ok());
        let maps = fs::read_to_string("/proc/self/maps").ok();
        let (Some(stat), Some(maps)) = (stat, maps) else { return false };
        let (device, inode) = (stat.st_dev, stat.st_ino);
        let device = format!("{:02x}:{:02x}", libc::major(device), libc::minor(device));
        is_covered(&maps, start..start + len, &device, &inode.to_string())
    }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        self.lost.sort_unstable_by_key(|lost| lost.start);
        let ends = self.lost.iter().map(|lost| lost.start).chain([self.len]);
        let starts = [0].into_iter().chain(self.lost.iter().map(|lost| lost.end));
        for (start, end) in starts.zip(ends) {
            // SAFETY: `start` is at most the length.
            let first = unsafe { self.base.byte_add(start) };
            // SAFETY: this value's own, as it is between what was lost, and as the owner is
            // being dropped nothing reaches it any more.
            unsafe { unmap(first.cast(), end - start) };
        }
    }
}

/// Whether mappings of one file cover a range, by the lines of `/proc/self/maps`, which
/// ascend: `start-end permissions offset device inode path`.
fn is_covered(maps: &str, range: Range<usize>, device: &str, inode: &str) -> bool {
    let mut reached = range.start;
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let Some((start, end)) = fields.next().and_then(|field| field.split_once('-')) else {
            continue;
        };
        let hex = |text| usize::from_str_radix(text, 16).unwrap_or(0);
        let (start, end) = (hex(start), hex(end));
        let same = fields.nth(2) == Some(device) && fields.next() == Some(inode);
        if same && (start..end).contains(&reached) {
            reached = end;
        }
    }
    reached >= range.end
}

/// A new inaccessible mapping, of the file if there is one.
fn inaccessible(
    at: Option<NonNull<u8>>,
    len: NonZeroUsize,
    flags: MapFlags,
    mark: Option<&OwnedFd>,
) -> nix::Result<NonNull<c_void>> {
    let flags = flags | MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    let addr = at.map(NonNull::addr);
    match mark {
        // SAFETY: the callers' flags let no mapping be replaced.
        Some(mark) => unsafe { mmap(addr, len, ProtFlags::PROT_NONE, flags, mark, 0) },
        // SAFETY: as above.
        None => unsafe { mmap_anonymous(addr, len, ProtFlags::PROT_NONE, flags) },
    }
}

/// # Safety
///
/// The range must be the caller's own, and nothing in it used any more.
unsafe fn unmap(at: NonNull<c_void>, len: usize) {
    if len > 0 {
        // SAFETY: the caller's promise.
        if let Err(errno) = unsafe { munmap(at, len) } {
            log::error!("unmapping {len:#x} bytes at {at:?}: {errno}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::slice;

    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    use super::*;

    const HUGE: usize = 2 << 20;

    fn size(len: usize) -> NonZeroUsize {
        NonZeroUsize::new(len).unwrap()
    }

    /// Maps what somebody else would; fails where something is mapped.
    fn take_place(addresses: &Addresses, at: usize, len: usize) -> nix::Result<Addresses> {
        let base = NonNull::new(addresses.base.as_ptr().wrapping_byte_add(at));
        let flags = MapFlags::MAP_FIXED_NOREPLACE;
        let mapped = inaccessible(base, size(len), flags, None)?;
        // SAFETY: mapped just now.
        Ok(unsafe { Addresses::of_mapping(mapped.cast(), size(len)) })
    }

    /// Runs a test again in a process of its own, where no other thread maps anything.
    fn alone(test: &str) {
        let test = format!("dma::memory::addresses::tests::{test}");
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", &test, "--ignored", "--nocapture", "--test-threads=1"]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let passed = output.status.success() && text.contains("1 passed");
        assert!(passed, "{text}{}", String::from_utf8_lossy(&output.stderr));
    }

    #[test]
    fn huge_pages_that_cannot_be_had_leave_no_hole() {
        alone("child_without_huge_pages");
    }

    #[test]
    #[ignore = "huge_pages_that_cannot_be_had_leave_no_hole runs it in a child"]
    fn child_without_huge_pages() {
        // More than any machine has in its pool.
        const LEN: usize = 1 << 44;
        let mut addresses = Addresses::reserve(size(LEN + HUGE), HUGE).unwrap();
        let files = super::super::Files::default();
        let extent = files.take(LEN as u64, PageSize::Huge2M).ok();
        for file in [None, extent.as_ref().map(|extent| extent.place())] {
            // SAFETY: nothing uses the range.
            unsafe { addresses.put(0, size(LEN), PageSize::Huge2M, file) }.unwrap_err();
            assert_eq!(take_place(&addresses, 0, LEN).unwrap_err(), Errno::EEXIST);
            assert!(addresses.lost.is_empty(), "{:?}", addresses.lost);
        }
        // SAFETY: as above.
        let start = unsafe { addresses.put(0, size(4096), PageSize::Base, None) }.unwrap();
        // SAFETY: mapped just now.
        unsafe { start.write_volatile(1) };
    }

    #[test]
    fn a_failure_that_leaves_the_reservation_alone_gives_nothing_up() {
        let mut addresses = Addresses::reserve(size(2 * HUGE), HUGE).unwrap();
        let read_only = fs::File::open("/proc/self/exe").unwrap();
        let read_only = (std::os::fd::AsFd::as_fd(&read_only), 0);
        // SAFETY: nothing uses the range.
        let refused = unsafe { addresses.put(4096, size(4096), PageSize::Base, Some(read_only)) };
        assert_eq!(refused.unwrap_err(), Errno::EACCES);
        assert!(addresses.lost.is_empty(), "{:?}", addresses.lost);
        addresses.mark = None;
        // SAFETY: as above.
        let refused = unsafe { addresses.put(4096, size(4096), PageSize::Base, Some(read_only)) };
        assert_eq!(refused.unwrap_err(), Errno::EACCES);
        // Without the mark it could be anybody's.
        assert_eq!(addresses.lost, slice::from_ref(&(4096..8192)));
        // SAFETY: as above.
        let again = unsafe { addresses.put(0, size(8192), PageSize::Base, None) };
        assert_eq!(again.unwrap_err(), Errno::EFAULT);
    }

    #[test]
    fn only_mappings_of_the_file_count_as_covering() {
        let maps = "1000-3000 ---p 00000000 00:01 77 /memfd:a (deleted)\n\
                    3000-4000 ---p 00000000 00:01 77 /memfd:a (deleted)\n\
                    4000-5000 ---p 00000000 00:00 0\n\
                    6000-7000 ---p 00000000 00:01 77 /memfd:a (deleted)\n";
        let covered = |range| is_covered(maps, range, "00:01", "77");
        assert!(covered(0x1000..0x4000) && covered(0x2000..0x3800) && covered(0x6000..0x7000));
        assert!(!covered(0x1000..0x5000) && !covered(0x0..0x2000) && !covered(0x3000..0x7000));
        assert!(!is_covered(maps, 0x1000..0x2000, "00:02", "77"));
    }

    #[test]
    fn what_another_maps_into_a_hole_outlives_the_reservation() {
        alone("child_without_room");
    }

    #[test]
    #[ignore = "what_another_maps_into_a_hole_outlives_the_reservation runs it in a child"]
    fn child_without_room() {
        const LEN: usize = 64 << 20;
        let mut addresses = Addresses::reserve(size(3 * LEN), 4096).unwrap();
        let mut from = Addresses::reserve(size(LEN), 4096).unwrap();
        // SAFETY: nothing uses the range.
        let start = unsafe { from.put(0, size(LEN), PageSize::Base, None) }.unwrap();
        // The kernel takes the target away first, then finds that it has no room for the move.
        let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
        setrlimit(Resource::RLIMIT_AS, 4 * LEN as u64, hard).unwrap();
        // SAFETY: as above.
        let moved = unsafe { addresses.take(LEN, start, size(LEN)) };
        setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();
        assert_eq!(moved.unwrap_err(), Errno::ENOMEM);
        match take_place(&addresses, LEN, LEN) {
            Ok(mut other) => {
                assert_eq!(addresses.lost, slice::from_ref(&(LEN..2 * LEN)));
                // SAFETY: as above.
                let theirs = unsafe { other.put(0, size(LEN), PageSize::Base, None) }.unwrap();
                // SAFETY: as above.
                let again = unsafe { addresses.put(LEN, size(LEN), PageSize::Base, None) };
                assert_eq!(again.unwrap_err(), Errno::EFAULT);
                let (first, last) = (take_place(&addresses, 0, LEN), 2 * LEN);
                assert!(first.is_err() && take_place(&addresses, last, LEN).is_err());
                drop(addresses);
                // SAFETY: mapped above; had it been unmapped, this would end the process.
                unsafe { theirs.write_volatile(1) };
            }
            // A kernel that checks before it unmaps.
            Err(_) => assert!(addresses.lost.is_empty(), "{:?}", addresses.lost),
        }
    }
}
