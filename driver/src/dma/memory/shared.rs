//! Files in memory that the buffers of an address space share: a descriptor for each size of
//! page, however many buffers there are.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::PageSize;

/// The files, by the size of their pages; made when the first memory is taken of each.
#[derive(Debug, Default)]
pub(in crate::dma) struct Files(Mutex<BTreeMap<PageSize, Arc<SharedFile>>>);

/// A memfd, and what of it is free.
#[derive(Debug)]
struct SharedFile {
    file: OwnedFd,
    space: Mutex<Space>,
}

/// The offsets of a file.
#[derive(Debug, Default)]
struct Space {
    size: u64,
    /// Length of each free run by its offset; no two touch.
    free: BTreeMap<u64, u64>,
}

impl Space {
    /// Takes the first free run that is long enough.
    fn take(&mut self, len: u64) -> Option<u64> {
        let (&offset, &run) = self.free.iter().find(|(_, run)| **run >= len)?;
        self.free.remove(&offset);
        if run > len {
            self.free.insert(offset + len, run - len);
        }
        Some(offset)
    }

    fn give_back(&mut self, mut offset: u64, mut len: u64) {
        if let Some(behind) = self.free.remove(&(offset + len)) {
            len += behind;
        }
        if let Some((&before, &run)) = self.free.range(..offset).next_back()
            && before + run == offset
        {
            (offset, len) = (before, len + run);
        }
        self.free.insert(offset, len);
    }

    /// The size that the file gets so that `len` bytes are free at its end: doubled, so that
    /// whoever maps it whole does so seldom.
    fn grown(&self, len: u64) -> Option<u64> {
        let free_at_end = self.free.iter().next_back().filter(|(at, run)| *at + *run == self.size);
        let used = self.size - free_at_end.map_or(0, |(_, run)| *run);
        let size = used.checked_add(len)?.checked_next_power_of_two()?;
        (i64::try_from(size).is_ok()).then_some(size)
    }
}

type Failed = (&'static str, Errno);

impl Files {
    /// Takes `len` bytes, whole pages, of the file with pages of this size.
    pub(super) fn take(&self, len: u64, page_size: PageSize) -> Result<Extent, Failed> {
        let file = {
            let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match files.get(&page_size) {
                Some(file) => Arc::clone(file),
                None => {
                    let file = Arc::new(SharedFile::new(page_size)?);
                    files.insert(page_size, Arc::clone(&file));
                    file
                }
            }
        };
        let mut space = file.space();
        let offset = match space.take(len) {
            Some(offset) => offset,
            None => {
                let (old, new) = (space.size, space.grown(len).ok_or(("ftruncate", Errno::EFBIG))?);
                let end = i64::try_from(new).map_err(|_| ("ftruncate", Errno::EFBIG))?;
                nix::unistd::ftruncate(&file.file, end).map_err(|errno| ("ftruncate", errno))?;
                space.size = new;
                space.give_back(old, new - old);
                space.take(len).ok_or(("ftruncate", Errno::EFBIG))?
            }
        };
        drop(space);
        Ok(Extent { file, offset, len })
    }
}

impl SharedFile {
    /// Nobody can cut it short: whoever gets the descriptor, such as the process that serves a
    /// device, cannot take pages away that this process touches.
    fn new(page_size: PageSize) -> Result<SharedFile, Failed> {
        let kind = match page_size {
            PageSize::Base | PageSize::Transparent => MFdFlags::empty(),
            PageSize::Huge2M => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB,
            PageSize::Huge1G => MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_1GB,
        };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | kind;
        let file = memfd_create(c"vfio-dma", flags).map_err(|errno| ("memfd_create", errno))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))
            .map_err(|errno| ("fcntl(F_ADD_SEALS)", errno))?;
        Ok(SharedFile { file, space: Mutex::default() })
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        // Every change is complete before anything that can panic.
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part of a shared file. Its pages are freed when it is dropped, and read as zeros when
/// they are taken again.
#[derive(Debug)]
pub(super) struct Extent {
    file: Arc<SharedFile>,
    offset: u64,
    len: u64,
}

impl Extent {
    /// The file, and where the part begins.
    pub(super) fn place(&self) -> (BorrowedFd<'_>, u64) {
        (self.file.file.as_fd(), self.offset)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let (offset, len) = (self.offset as i64, self.len as i64);
        match fallocate(&self.file.file, punch, offset, len) {
            Ok(()) => self.file.space().give_back(self.offset, self.len),
            // What was in it must not show in the next buffer.
            Err(errno) => log::error!("{len} bytes of shared memory at {offset:#x} stay: {errno}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_split_joined_and_taken_again() {
        let mut space = Space { size: 16, free: BTreeMap::from([(0, 16)]) };
        assert_eq!((space.take(4), space.take(4), space.take(8)), (Some(0), Some(4), Some(8)));
        assert_eq!((space.take(1), space.grown(8)), (None, Some(32)));
        space.give_back(0, 4);
        space.give_back(8, 8);
        assert_eq!(space.grown(32), Some(64), "what is free at the end counts");
        space.give_back(4, 4);
        assert_eq!(space.free, BTreeMap::from([(0, 16)]));
        assert_eq!(space.grown(u64::MAX), None);
    }

    #[test]
    fn nobody_who_has_the_file_can_cut_it_short() {
        let files = Files::default();
        let extent = files.take(8192, PageSize::Base).unwrap();
        let (file, _) = extent.place();
        let theirs = std::fs::File::from(file.try_clone_to_owned().unwrap());
        let len = theirs.metadata().unwrap().len();
        for short in [0, 4096, len - 1] {
            let error = theirs.set_len(short).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM));
        }
        // Nor is that taken back.
        let seals = FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW);
        assert_eq!(fcntl(&theirs, seals), Err(nix::errno::Errno::EPERM));
        assert_eq!(theirs.metadata().unwrap().len(), len);
    }

    #[test]
    fn what_was_freed_reads_as_zeros() {
        let files = Files::default();
        let write = |extent: &Extent, byte| {
            let (file, offset) = extent.place();
            nix::sys::uio::pwrite(file, &[byte], offset as i64).unwrap();
        };
        let first = files.take(8192, PageSize::Base).unwrap();
        let second = files.take(4096, PageSize::Base).unwrap();
        assert_eq!((first.place().1, second.place().1), (0, 8192));
        write(&first, 7);
        write(&second, 8);
        drop(first);
        let third = files.take(4096, PageSize::Base).unwrap();
        let mut byte = [1];
        nix::sys::uio::pread(third.place().0, &mut byte, 0).unwrap();
        assert_eq!((third.place().1, byte), (0, [0]));
    }
}
