//! Memory that is a part of a file which somebody else has.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::stat::SFlag;

use super::populate::Access;
use super::{Memory, MemoryError, PageSize, Part, PartFile, map, populate};

/// Magic number of huge page file systems (`include/uapi/linux/magic.h`).
const HUGETLBFS: i64 = 0x9584_58f6;

impl Memory {
    /// Maps `len` bytes of a file from `offset` on, shared, in whole pages of the file, and
    /// makes every page present. Returns the memory and the offset of the first byte in it.
    ///
    /// A file that is open for reading only gives memory that is only read. A memfd that is
    /// sealed with `F_SEAL_SHRINK` cannot be cut short; any other file can: what is read or
    /// written of it here goes through a system call then, which fails where the file has
    /// nothing any more.
    ///
    /// # Errors
    ///
    /// Fails when the file ends before the range, cannot be mapped, or has no room for its
    /// pages.
    pub fn of_file(
        file: impl AsFd,
        offset: u64,
        len: usize,
    ) -> Result<(Memory, usize), MemoryError> {
        let error = |action, source: Errno| MemoryError::new(len, PageSize::Base, action, source);
        let stat = nix::sys::stat::fstat(&file).map_err(|errno| error("fstat", errno))?;
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let size = match kind {
            SFlag::S_IFREG => Some(stat.st_size as u64),
            SFlag::S_IFBLK => Some(block_size(&file).map_err(|errno| error("lseek", errno))?),
            // What a character device maps is its driver's decision; it has no size.
            _ => None,
        };
        let fits = |end: &u64| size.is_none_or(|size| *end <= size);
        let end = offset.checked_add(len as u64).filter(fits).filter(|_| len > 0);
        let end = end.ok_or_else(|| error("mapping past the end of the file", Errno::EINVAL))?;
        let fs = nix::sys::statfs::fstatfs(&file).map_err(|errno| error("fstatfs", errno))?;
        let page = if fs.filesystem_type().0 == HUGETLBFS {
            stat.st_blksize as u64
        } else {
            PageSize::Base.bytes() as u64
        };
        let page_size = match page {
            0x4000_0000.. => PageSize::Huge1G,
            0x20_0000.. => PageSize::Huge2M,
            _ => PageSize::Base,
        };
        let first = offset - offset % page;
        let whole = usize::try_from(end.next_multiple_of(page) - first).ok();
        let size =
            whole.and_then(NonZeroUsize::new).ok_or_else(|| error("mmap", Errno::EOVERFLOW))?;
        let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(|errno| error("fcntl", errno))?;
        let access = match OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE {
            OFlag::O_RDONLY => Access::Read,
            _ => Access::Write,
        };
        let own = file.as_fd().try_clone_to_owned();
        let own = own.map_err(|e| MemoryError::new(len, PageSize::Base, "dup", e))?;
        let mapped =
            map::map_file(&own, first, size, access).map_err(|errno| error("mmap", errno))?;
        // Only regular files can be cut short.
        let may_shrink = kind == SFlag::S_IFREG && !is_sealed(&file);
        let parts = vec![Part { len: size.get(), file: Some(PartFile::Lent(own, first)) }];
        let (base, len) = (mapped.base(), size.get());
        let (guards, own) = (Vec::new(), Some(mapped));
        let mut memory = Memory { base, len, page_size, parts, guards, own, access, may_shrink };
        memory.keep_from_children()?;
        memory.watch(0, len, page_size)?;
        // SAFETY: the memory's own mapping, which nothing refers into.
        unsafe { populate::populate(base, size, access) }
            .map_err(|errno| MemoryError::new(len, page_size, access.populating(), errno))?;
        Ok((memory, (offset - first) as usize))
    }
}

/// Whether the file cannot be made shorter. Files without seals say EINVAL.
fn is_sealed(file: impl AsFd) -> bool {
    fcntl(file, FcntlArg::F_GET_SEALS)
        .is_ok_and(|seals| SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK))
}

/// The bytes of a block device, whose `stat` has none. The descriptor's position does not
/// change for whoever shares it.
fn block_size(file: impl AsFd) -> nix::Result<u64> {
    use nix::unistd::{Whence, lseek};
    let before = lseek(&file, 0, Whence::SeekCur)?;
    let size = lseek(&file, 0, Whence::SeekEnd)?;
    lseek(&file, before, Whence::SeekSet)?;
    u64::try_from(size).map_err(|_| Errno::EOVERFLOW)
}
