//! Memory that a device reads and writes while the processor does: descriptors and
//! completion words.

use std::marker::PhantomData;
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
        for record in self.records(index, values.len(), 1) {
            record.store(values);
        }
    }

    /// `count` records of `stride` words each, one after another from a word on. That they
    /// lie inside the memory is checked here, once for all of them.
    ///
    /// # Panics
    ///
    /// When the range is not inside the memory, as indexing a slice does.
    #[inline]
    pub(crate) fn records(&mut self, index: usize, stride: usize, count: usize) -> Records<'_> {
        let last = stride.checked_mul(count).and_then(|len| self.count.checked_sub(len));
        assert!(last.is_some_and(|last| index <= last), "inside the memory");
        // SAFETY: index <= count, as asserted.
        let next = unsafe { self.base.add(index) };
        Records { next, stride, left: count, words: PhantomData }
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

/// Records of [`Words`], in the order of their addresses.
#[derive(Debug)]
pub(crate) struct Records<'a> {
    /// The first of the `left` records of `stride` words that were not handed out: all of
    /// them lie inside the memory.
    next: NonNull<u64>,
    stride: usize,
    left: usize,
    words: PhantomData<&'a mut Words>,
}

impl<'a> Iterator for Records<'a> {
    type Item = Record<'a>;

    #[inline]
    fn next(&mut self) -> Option<Record<'a>> {
        self.left = self.left.checked_sub(1)?;
        let record = Record { base: self.next, len: self.stride, words: PhantomData };
        // SAFETY: `left` was not 0, so a record begins at `next` and ends inside the memory.
        self.next = unsafe { self.next.add(self.stride) };
        Some(record)
    }
}

/// One record of [`Words`].
#[derive(Debug)]
pub(crate) struct Record<'a> {
    base: NonNull<u64>,
    len: usize,
    words: PhantomData<&'a mut Words>,
}

impl Record<'_> {
    /// Stores its first words, as [`Words::store`] does.
    ///
    /// # Panics
    ///
    /// When there are more values than words.
    #[inline]
    pub(crate) fn store(self, values: &[u64]) {
        assert!(values.len() <= self.len, "inside the record");
        for (i, value) in values.iter().enumerate() {
            // SAFETY: i < len, as asserted, and the record lies inside the memory.
            let at = unsafe { self.base.add(i) };
            // SAFETY: the address is valid and aligned by the contract of `Words::new`.
            unsafe { at.write_volatile(value.to_le()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_lie_one_after_another_and_inside() {
        let mut memory = [0u64; 10];
        let base = NonNull::from(&mut memory).cast::<u8>();
        // SAFETY: the array outlives the words, which alone reach it until it is read back.
        let mut words = unsafe { Words::new(base, 10) };
        for (n, record) in (1u64..).zip(words.records(1, 3, 3)) {
            record.store(&[n, n << 8]);
        }
        assert_eq!(words.records(10, 3, 0).count(), 0);
        words.store(9, &[99]);
        let read: Vec<u64> = (0..10).map(|i| words.load_acquire(i)).collect();
        assert_eq!(read, [0, 1, 1 << 8, 0, 2, 2 << 8, 0, 3, 3 << 8, 99]);
        for (index, stride, count) in
            [(2, 3, 3), (11, 1, 0), (usize::MAX, 1, 1), (0, 4, usize::MAX), (0, 11, 1), (10, 1, 1)]
        {
            let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                words.records(index, stride, count).count()
            }));
            assert!(refused.is_err(), "{count} records of {stride} from {index} on");
        }
        let record = words.records(0, 2, 1).next().unwrap();
        let long = std::panic::AssertUnwindSafe(|| record.store(&[1, 2, 3]));
        assert!(std::panic::catch_unwind(long).is_err());
    }
}
