//! Pieces of BARs mapped into this process, which can be taken away from whoever uses them.

use std::collections::BTreeMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

use crate::backend::MappedRegion;

/// The mapped pieces of one device: by address, their lengths in bytes.
#[derive(Debug, Default)]
pub(super) struct Mappings(Mutex<BTreeMap<usize, NonZeroUsize>>);

impl Mappings {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, NonZeroUsize>> {
        // The map changes in single steps.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Maps a piece of a device's descriptor.
    pub(super) fn map(
        self: &Arc<Mappings>,
        device: &File,
        position: libc::off_t,
        len: NonZeroUsize,
        protection: ProtFlags,
    ) -> nix::Result<Mapping> {
        let mut mapped = self.lock();
        // SAFETY: a new mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, device, position) }?;
        mapped.insert(base.addr().get(), len);
        Ok(Mapping { base: base.cast(), len, of: Arc::clone(self) })
    }

    /// Puts memory in the place of every piece, for as long as its owner keeps it. An access
    /// that runs meanwhile goes to the device or to the memory: the kernel exchanges them
    /// while no page of either can be brought in.
    pub(super) fn replace(&self) -> nix::Result<()> {
        let mapped = self.lock();
        for (&base, &len) in &*mapped {
            let base = NonZeroUsize::new(base);
            let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_FIXED | MapFlags::MAP_NORESERVE;
            // SAFETY: what is replaced is a piece of the device that is mapped now, as the lock
            // is held; no Rust reference points into it, and its contents are the device's.
            unsafe { mmap_anonymous(base, len, protection, flags) }?;
        }
        Ok(())
    }
}

/// A piece of a BAR mapped into this process.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: NonZeroUsize,
    of: Arc<Mappings>,
}

// SAFETY: the mapping is the value's own, of `len` bytes, which no Rust reference points into,
// and lives until the value is dropped: device memory, or memory in its place.
unsafe impl MappedRegion for Mapping {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn len(&self) -> usize {
        self.len.get()
    }
}

// SAFETY: an address range is not bound to a thread.
unsafe impl Send for Mapping {}
// SAFETY: the value only tells where the range is; accesses are the caller's.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Held until it is unmapped: nothing is put in the place of what is not there.
        let mut mapped = self.of.lock();
        mapped.remove(&self.base.addr().get());
        // SAFETY: the mapping is the value's own; the trait's users do not outlive it.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.len.get()) } {
            log::error!("unmapping {} bytes of a BAR at {:?}: {errno}", self.len, self.base);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_piece_that_is_taken_away_can_still_be_accessed_from_any_thread() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 8192]).unwrap();
        let mappings = Arc::new(Mappings::default());
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let len = NonZeroUsize::new(8192).unwrap();
        let mapping = mappings.map(&file, 0, len, protection).unwrap();
        let gone = mappings.map(&file, 0, len, protection).unwrap();
        drop(gone);
        let is_replaced = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut seen = 0;
                while !is_replaced.load(Ordering::Relaxed) {
                    // SAFETY: inside of the mapping, which lives until the scope ends.
                    let at = unsafe { mapping.base().add(seen % 8192) };
                    // SAFETY: as above.
                    let value = unsafe { at.read_volatile() };
                    assert!(value == 7 || value == 0, "{value}");
                    seen += 1;
                }
            });
            std::thread::sleep(std::time::Duration::from_millis(10));
            for _ in 0..100 {
                mappings.replace().unwrap();
            }
            is_replaced.store(true, Ordering::Relaxed);
        });
        // The file is cut short: an access to it would be a SIGBUS.
        file.set_len(0).unwrap();
        // SAFETY: the mapping is as long.
        let last = unsafe { mapping.base().add(8191) };
        // SAFETY: as above.
        let value = unsafe { last.read_volatile() };
        assert_eq!(value, 0);
    }
}
