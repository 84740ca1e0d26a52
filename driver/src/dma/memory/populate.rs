//! Pages that are there: made present when memory is had, not when it is first touched.
//!
//! `mmap` succeeds where no page can be had afterwards: a limit on huge pages of the cgroup,
//! a file system without room, a memory policy. Whoever touches such memory gets SIGBUS.

use std::io::{IoSlice, IoSliceMut};
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, madvise};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::getpid;

/// What this process may do with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dma) enum Access {
    /// Load.
    Read,
    /// Load and store.
    Write,
}

impl Access {
    /// The name of what [`populate`] does, for errors.
    pub(super) fn populating(self) -> &'static str {
        match self {
            Access::Read => "madvise(POPULATE_READ)",
            Access::Write => "madvise(POPULATE_WRITE)",
        }
    }
}

/// Makes every page of a range present, or says why one cannot be had: EFAULT where touching
/// it would raise SIGBUS (madvise(2)).
///
/// A kernel before Linux 5.14 does not know the advice, and memory of devices has no pages:
/// both are left as they are.
///
/// # Safety
///
/// The range must be mapped.
pub(super) unsafe fn populate(
    base: NonNull<u8>,
    len: NonZeroUsize,
    access: Access,
) -> nix::Result<()> {
    let advice = match access {
        Access::Read => MmapAdvise::MADV_POPULATE_READ,
        Access::Write => MmapAdvise::MADV_POPULATE_WRITE,
    };
    // Miri's memory is all there, and it knows no advice.
    if cfg!(miri) {
        return Ok(());
    }
    // SAFETY: the advice changes neither contents nor accessibility.
    match unsafe { madvise(base.cast(), len.get(), advice) } {
        Err(Errno::EINVAL) => Ok(()),
        outcome => outcome,
    }
}

/// Copies from memory whose pages may be gone: an error instead of a signal.
pub(super) fn guarded_read(base: NonNull<u8>, into: &mut [u8]) -> nix::Result<()> {
    let len = into.len();
    let from = [RemoteIoVec { base: base.addr().get(), len }];
    complete(len, process_vm_readv(getpid(), &mut [IoSliceMut::new(into)], &from))
}

/// Copies to memory whose pages may be gone: an error instead of a signal.
pub(super) fn guarded_write(base: NonNull<u8>, from: &[u8]) -> nix::Result<()> {
    let to = [RemoteIoVec { base: base.addr().get(), len: from.len() }];
    complete(from.len(), process_vm_writev(getpid(), &[IoSlice::new(from)], &to))
}

/// The kernel copies as far as it comes.
fn complete(len: usize, copied: nix::Result<usize>) -> nix::Result<()> {
    match copied {
        Ok(copied) if copied == len => Ok(()),
        Ok(_) => Err(Errno::EFAULT),
        Err(errno) => Err(errno),
    }
}
