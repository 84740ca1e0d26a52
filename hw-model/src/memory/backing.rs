//! The memory behind the ranges: one `mmap` for each file, however many ranges use it.

use std::collections::HashMap;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::stat::{FileStat, fstat};
use vfio_dma::backend::DmaAccess;
use vfio_dma::mmio::BusErrorGuard;

use super::error::MemoryError;
use crate::regs::rate::RateLimit;

/// How many files are mapped at most: half of Linux's default for `vm.max_map_count`, so
/// that the process's own allocations find room beside them.
pub(super) const MAX_FILES: usize = 32_765;

/// How many bytes of files are mapped at most, for the same reason: half of the address
/// space of a process.
const MAX_BYTES: u64 = 1 << 46;

/// A client may lose files as often as it likes.
static LOST: RateLimit = RateLimit::new();

/// A file as the kernel tells files apart, and whether it is mapped for writing.
///
/// A file that comes with descriptors of different modes is mapped once for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileKey {
    device: u64,
    inode: u64,
    writable: bool,
}

/// The start of a file, mapped shared into this process; unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: NonZeroUsize,
    /// Until it is dropped: a page that the file does not have any more ends no process.
    guard: Option<BusErrorGuard>,
}

// SAFETY: the mapping belongs to no thread; every access goes through raw pointers, under
// the lock of the table that owns it.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps at least the first `end` bytes of the file, of which `stat` was just taken.
    ///
    /// Space for growth is added so that a file whose ranges arrive in ascending order is
    /// mapped anew only when what is needed has doubled.
    ///
    /// Fails when that is more than `room` bytes.
    fn new(
        fd: impl AsFd,
        stat: &FileStat,
        end: u64,
        writable: bool,
        room: u64,
    ) -> Result<Mapping, MemoryError> {
        let wrong = |call| move |errno| MemoryError::Os { call, errno };
        // st_blksize is the page size of the file system: 4 KiB, or a huge page's.
        let page = u64::try_from(stat.st_blksize).unwrap_or(0).max(4096);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let len = end.checked_next_power_of_two().unwrap_or(end).max(page).min(size);
        let len = len.checked_next_multiple_of(page).and_then(|n| usize::try_from(n).ok());
        let len = len.and_then(NonZeroUsize::new).ok_or(wrong("mmap")(Errno::EOVERFLOW))?;
        if len.get() as u64 > room {
            let what = "bytes of mapped files";
            return Err(MemoryError::Full { what, limit: MAX_BYTES });
        }
        let mut prot = ProtFlags::PROT_READ;
        prot.set(ProtFlags::PROT_WRITE, writable);
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        // SAFETY: without MAP_FIXED the kernel chooses unused addresses.
        let base = unsafe { mmap(None, len, prot, flags, fd, 0) }.map_err(wrong("mmap"))?;
        let mut mapping = Mapping { base: base.cast(), len, guard: None };
        // SAFETY: the guard is dropped before the mapping, of whole pages of the file, which is
        // reached through raw pointers alone.
        let guard = unsafe { BusErrorGuard::watch(mapping.base, len.get(), page as usize) };
        let errno = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        mapping.guard = Some(guard.map_err(|error| wrong("sigaction")(errno(error)))?);
        Ok(mapping)
    }

    fn is_lost(&self) -> bool {
        self.guard.as_ref().is_some_and(BusErrorGuard::is_lost)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: the mapping is this value's own, and the table hands out no pointer that
        // outlives its lock.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.len.get()) } {
            log::error!("munmap of {} bytes at {:p}: {errno}", self.len, self.base);
        }
    }
}

/// Where the bytes of a range are.
#[derive(Debug)]
enum Backing {
    /// Nowhere.
    Unbacked,
    /// In this process, at the address that the range carries as its offset.
    Host,
    /// In a file; lost once a page of it was not to be had.
    File { key: FileKey, mapping: Mapping, users: usize, is_lost: bool },
    /// An empty place in the list.
    Free,
}

/// Names a backing; a range holds one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(u32);

impl Slot {
    /// No memory at all.
    pub(super) const UNBACKED: Slot = Slot(0);
    /// Memory of this process, by address.
    pub(super) const HOST: Slot = Slot(1);
}

/// All memory that ranges refer to.
#[derive(Debug)]
pub(super) struct Backings {
    slots: Vec<Backing>,
    free: Vec<u32>,
    files: HashMap<FileKey, u32>,
    /// Length of all mappings together.
    bytes: u64,
}

impl Default for Backings {
    fn default() -> Self {
        Backings {
            slots: vec![Backing::Unbacked, Backing::Host],
            free: Vec::new(),
            files: HashMap::new(),
            bytes: 0,
        }
    }
}

impl Backings {
    /// Takes a share of the file's mapping, which afterwards reaches `[offset, offset + len)`.
    pub(super) fn acquire(
        &mut self,
        fd: impl AsFd,
        offset: u64,
        len: u64,
        access: DmaAccess,
    ) -> Result<Slot, MemoryError> {
        let fd = fd.as_fd();
        if !is_memory(fd) {
            return Err(MemoryError::NotMemory);
        }
        let writable = descriptor_mode(fd, access)?;
        seal_against_shrinking(fd);
        let stat = fstat(fd).map_err(|errno| MemoryError::Os { call: "fstat", errno })?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= size)
            .ok_or(MemoryError::FileTooShort { offset, len, size })?;
        let key = FileKey { device: stat.st_dev, inode: stat.st_ino, writable };
        let room = MAX_BYTES - self.bytes;
        if let Some(&slot) = self.files.get(&key) {
            if let Backing::File { mapping, users, is_lost, .. } = &mut self.slots[slot as usize] {
                if *is_lost {
                    return Err(MemoryError::Lost);
                }
                if end > mapping.len.get() as u64 {
                    let grown = Mapping::new(fd, &stat, end, writable, room)?;
                    self.bytes += (grown.len.get() - mapping.len.get()) as u64;
                    *mapping = grown;
                }
                *users += 1;
            }
            return Ok(Slot(slot));
        }
        if self.files.len() >= MAX_FILES {
            return Err(MemoryError::Full { what: "files", limit: MAX_FILES as u64 });
        }
        let mapping = Mapping::new(fd, &stat, end, writable, room)?;
        self.bytes += mapping.len.get() as u64;
        let backing = Backing::File { key, mapping, users: 1, is_lost: false };
        let slot = match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize] = backing;
                slot
            }
            None => {
                self.slots.push(backing);
                (self.slots.len() - 1) as u32
            }
        };
        self.files.insert(key, slot);
        Ok(Slot(slot))
    }

    /// Gives a share back; the last one unmaps the file.
    pub(super) fn release(&mut self, slot: Slot) {
        let place = &mut self.slots[slot.0 as usize];
        if let Backing::File { key, mapping, users, .. } = place {
            *users -= 1;
            if *users == 0 {
                self.bytes -= mapping.len.get() as u64;
                self.files.remove(key);
                *place = Backing::Free;
                self.free.push(slot.0);
            }
        }
    }

    /// The address of byte `offset` of a backing; `None` where there is no memory.
    pub(super) fn pointer(&self, slot: Slot, offset: u64) -> Option<*mut u8> {
        match &self.slots[slot.0 as usize] {
            Backing::Unbacked | Backing::Free | Backing::File { is_lost: true, .. } => None,
            Backing::Host => Some(std::ptr::with_exposed_provenance_mut(offset as usize)),
            // A range lies inside its file's mapping, so this does not leave it.
            Backing::File { mapping, .. } => {
                Some(mapping.base.as_ptr().wrapping_add(offset as usize))
            }
        }
    }

    /// Finds the files of which a page was not to be had: their ranges have no memory any more.
    pub(super) fn find_lost(&mut self) {
        for backing in &mut self.slots {
            if let Backing::File { mapping, is_lost, key, .. } = backing
                && !*is_lost
                && mapping.is_lost()
            {
                LOST.warn(format_args!(
                    "a file of a client (inode {}) was cut short, or has no room for its pages: \
                     none of it is reached any more",
                    key.inode
                ));
                *is_lost = true;
            }
        }
    }

    /// How many files are mapped.
    pub(super) fn files(&self) -> usize {
        self.files.len()
    }
}

/// Whether a file is memory: a memfd, or a file in tmpfs or hugetlbfs.
///
/// Only these have seals (`fcntl(2)`), which the kernel looks up without asking the file
/// system; any other may belong to somebody who does not answer (FUSE), and so may `fstat`
/// and `fstatfs` wait for ever.
pub(crate) fn is_memory(fd: impl AsFd) -> bool {
    fcntl(fd.as_fd(), FcntlArg::F_GET_SEALS).is_ok()
}

/// Whether to map the file for writing; an error when the descriptor forbids `access`.
fn descriptor_mode(fd: impl AsFd, access: DmaAccess) -> Result<bool, MemoryError> {
    let fd = fd.as_fd();
    let flags =
        fcntl(fd, FcntlArg::F_GETFL).map_err(|errno| MemoryError::Os { call: "fcntl", errno })?;
    let sealed = fcntl(fd, FcntlArg::F_GET_SEALS).is_ok_and(|s| {
        let write = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE;
        SealFlag::from_bits_truncate(s).intersects(write)
    });
    let mode = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE;
    let writable = mode == OFlag::O_RDWR && !sealed;
    if mode == OFlag::O_WRONLY || (access.writes() && !writable) {
        return Err(MemoryError::DescriptorMode { access });
    }
    Ok(writable)
}

/// Forbids that the file gets shorter while it is mapped, where the file allows that.
///
/// A file that shrinks under its mapping is lost to its ranges ([`Backings::find_lost`]). A memfd
/// that its owner created sealable (`MFD_ALLOW_SEALING`) is sealed here; guest memory of QEMU's
/// memfd backend comes sealed.
fn seal_against_shrinking(fd: impl AsFd) {
    let fd = fd.as_fd();
    let Ok(seals) = fcntl(fd, FcntlArg::F_GET_SEALS) else {
        log::debug!("descriptor {}: not a memfd, its owner could shrink it", fd.as_raw_fd());
        return;
    };
    if SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK) {
        return;
    }
    if let Err(errno) = fcntl(fd, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)) {
        log::debug!("descriptor {}: cannot be sealed against shrinking: {errno}", fd.as_raw_fd());
    }
}
