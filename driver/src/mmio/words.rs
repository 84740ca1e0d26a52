//! Memory that a device reads and writes while the processor does: descriptors and
//! completion words.

use std::ptr::NonNull;

use super::barrier;

/// A run of 64-bit little-endian words that a device shares.
///
/// Each access is one volatile load or store of a whole word, which the device sees or
/// makes as a whole. Nothing refers into the memory.
#[derive(Debug)]
pub(crate) struct Words {
    base: NonNull<u64>,
    count: usize,
}

// SAFETY: every access is a volatile load or store of memory that is shared with a device
// anyway, and stores need `&mut self`.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Words from `base` on.
    ///
    /// # Safety
    ///
    /// `base` must be aligned to 8, and `count` words from there on must stay valid for
    /// reads and writes as long as the value is used. No reference may point there.
    pub(crate) unsafe fn new(base: NonNull<u8>, count: usize) -> Words {
        Words { base: base.cast(), count }
    }

    /// Stores words one after another, in ascending order for the processor alone: what
    /// orders them for the device is the doorbell's barrier.
    ///
    /// # Panics
    ///
    /// When the range is not inside the memory, as indexing a slice does.
    #[inline]
    pub(crate) fn store(&mut self, index: usize, values: &[u64]) {
        let last = self.count.checked_sub(values.len());
        assert!(last.is_some_and(|last| index <= last), "inside the memory");
        for (i, value) in values.iter().enumerate() {
            // SAFETY: index + i < index + len <= count, as asserted.
            let at = unsafe { self.base.add(index + i) };
            // SAFETY: the address is valid and aligned by the contract of `new`.
            unsafe { at.write_volatile(value.to_le()) };
        }
    }

    /// Loads a word; every later load and store of the program comes after it.
    ///
    /// # Panics
    ///
    /// When the index is not inside the memory, as indexing a slice does.
    #[inline]
    pub(crate) fn load_acquire(&self, index: usize) -> u64 {
        assert!(index < self.count, "inside the memory");
        // SAFETY: index < count, as asserted.
        let at = unsafe { self.base.add(index) };
        // SAFETY: the address is valid and aligned by the contract of `new`.
        let raw = unsafe { at.read_volatile() };
        barrier::after_read();
        u64::from_le(raw)
    }
}
