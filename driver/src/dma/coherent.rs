//! Memory that a device and the processor share while both use it: descriptors, completion
//! entries, doorbell shadows.

use std::fmt;
use std::marker::PhantomData;
use std::ptr::NonNull;

use super::{Buffer, DmaError, Iova};
use crate::mmio::{Width, barrier};

mod sealed {
    pub trait Sealed {}
}

/// What a coherent array can hold: little-endian words, or arrays of them. Every pattern of
/// bits that a device may leave is a value.
pub trait Shared: Copy + sealed::Sealed + 'static {
    /// What one access reads or writes as a whole.
    type Word: Width;
    /// Words of an element.
    const WORDS: usize;

    #[doc(hidden)]
    fn from_words(word: impl FnMut(usize) -> Self::Word) -> Self;
    #[doc(hidden)]
    fn words(&self) -> &[Self::Word];
}

macro_rules! shared {
    ($($word:ty),*) => {$(
        impl sealed::Sealed for $word {}
        impl Shared for $word {
            type Word = $word;
            const WORDS: usize = 1;

            #[inline]
            fn from_words(mut word: impl FnMut(usize) -> $word) -> $word {
                word(0)
            }

            #[inline]
            fn words(&self) -> &[$word] {
                std::slice::from_ref(self)
            }
        }
        impl<const N: usize> sealed::Sealed for [$word; N] {}
        impl<const N: usize> Shared for [$word; N] {
            type Word = $word;
            const WORDS: usize = N;

            #[inline]
            fn from_words(word: impl FnMut(usize) -> $word) -> [$word; N] {
                std::array::from_fn(word)
            }

            #[inline]
            fn words(&self) -> &[$word] {
                self
            }
        }
    )*};
}
shared!(u8, u16, u32, u64);

/// A typed array that a device shares, contiguous for it.
///
/// Elements are words (`u32`, `u64`, ...) or arrays of words. Each access of a word is one
/// volatile load or store, which the device sees or makes as a whole; an element of several
/// words is not one access. Nothing refers into the memory. Of a page that whoever else has the file
/// behind the memory has taken out of it, words are 0 or what was stored since.
///
/// # Ordering
///
/// [`Coherent::write`] and [`Coherent::read`] order nothing. What is written before a
/// doorbell is ordered by the doorbell ([`mmio`](crate::mmio), "Ordering");
/// [`Coherent::store_release`] is for devices that look at memory by themselves, and
/// [`Coherent::load_acquire`] for words by which a device says that something else is there.
pub struct Coherent<T: Shared> {
    base: NonNull<T::Word>,
    len: usize,
    iova: Iova,
    /// Keeps the memory mapped, for the processor and for the device.
    buffer: Buffer,
}

// SAFETY: every access is a volatile load or store of memory that is shared with a device
// anyway, and stores need `&mut self`.
unsafe impl<T: Shared> Send for Coherent<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Coherent<T> {}

impl<T: Shared> fmt::Debug for Coherent<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coherent")
            .field("len", &self.len)
            .field("iova", &self.iova)
            .finish_non_exhaustive()
    }
}

impl<T: Shared> Coherent<T> {
    /// Bytes from one element to the next.
    pub const STRIDE: usize = T::WORDS * T::Word::BYTES;

    /// Makes an array of the first `len` elements that a buffer has room for; its bytes are
    /// what they were.
    ///
    /// # Errors
    ///
    /// Fails when the buffer is too short, in several segments, or not aligned to a word.
    pub fn new(buffer: Buffer, len: usize) -> Result<Coherent<T>, DmaError> {
        let unusable = |buffer: &Buffer| DmaError::NotCoherent {
            needed: len.saturating_mul(Self::STRIDE),
            len: buffer.len(),
            segments: buffer.segments().len(),
            iova: buffer.segments()[0].iova,
        };
        let needed = len.checked_mul(Self::STRIDE).filter(|&needed| needed > 0);
        let [segment] = buffer.segments() else { return Err(unusable(&buffer)) };
        let iova = segment.iova;
        let fits = needed.filter(|&needed| needed <= buffer.len());
        let Some(needed) = fits else { return Err(unusable(&buffer)) };
        let slice = buffer.slice(0, needed)?;
        let base = NonNull::new(slice.ptr_guard_mut().as_ptr()).map(NonNull::cast::<T::Word>);
        match base {
            Some(base) if base.is_aligned() && iova.0.is_multiple_of(T::Word::BYTES as u64) => {
                Ok(Coherent { base, len, iova, buffer })
            }
            _ => Err(unusable(&buffer)),
        }
    }

    /// Elements of the array.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: an array has at least one element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The device address of an element.
    ///
    /// # Panics
    ///
    /// When the index is not inside the array, as indexing a slice does; as all that take an
    /// index here.
    #[inline]
    #[must_use]
    pub fn iova(&self, index: usize) -> Iova {
        self.check(index);
        Iova(self.iova.0 + (index * Self::STRIDE) as u64)
    }

    /// The buffer behind it.
    #[must_use]
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    #[inline]
    fn check(&self, index: usize) {
        if index >= self.len {
            outside(index, self.len);
        }
    }

    #[inline]
    fn word(&self, index: usize, word: usize) -> NonNull<T::Word> {
        debug_assert!(index < self.len && word < T::WORDS);
        // SAFETY: the callers have checked that the element lies inside of the buffer, and
        // that the word lies inside of the element.
        unsafe { self.base.add(index * T::WORDS + word) }
    }

    /// Reads an element, word by word.
    #[inline]
    #[must_use]
    pub fn read(&self, index: usize) -> T {
        self.check(index);
        // SAFETY: the address is valid and aligned, as checked when the array was made.
        T::from_words(|word| unsafe { T::Word::load_relaxed(self.word(index, word)) })
    }

    /// Writes an element, word by word.
    #[inline]
    pub fn write(&mut self, index: usize, value: &T) {
        self.check(index);
        for (word, &value) in value.words().iter().enumerate() {
            // SAFETY: the address is valid and aligned, as checked when the array was made.
            unsafe { T::Word::store_relaxed(self.word(index, word), value) };
        }
    }

    /// Writes a word of an element while others have the array too; orders nothing.
    ///
    /// # Safety
    ///
    /// Nothing else of the program accesses this word meanwhile.
    #[inline]
    pub(crate) unsafe fn write_shared(&self, index: usize, word: usize, value: T::Word) {
        self.check(index);
        assert!(word < T::WORDS, "word {word} of an element of {}", T::WORDS);
        // SAFETY: the address is valid and aligned, as checked when the array was made.
        unsafe { T::Word::store_relaxed(self.word(index, word), value) };
    }

    /// Loads one word of an element; every later load and store of the program comes after
    /// it.
    #[inline]
    #[must_use]
    pub fn load_acquire(&self, index: usize, word: usize) -> T::Word {
        self.check(index);
        assert!(word < T::WORDS, "word {word} of an element of {}", T::WORDS);
        // SAFETY: the address is valid and aligned, as checked when the array was made.
        let value = unsafe { T::Word::load_relaxed(self.word(index, word)) };
        barrier::after_read();
        value
    }

    /// Stores one word of an element, after every earlier store of the program.
    #[inline]
    pub fn store_release(&mut self, index: usize, word: usize, value: T::Word) {
        self.check(index);
        assert!(word < T::WORDS, "word {word} of an element of {}", T::WORDS);
        barrier::before_write();
        // SAFETY: the address is valid and aligned, as checked when the array was made.
        unsafe { T::Word::store_relaxed(self.word(index, word), value) };
    }

    /// `count` elements one after another, to be written. That they lie inside the array is
    /// checked here, once for all of them.
    #[inline]
    pub fn elements(&mut self, first: usize, count: usize) -> Elements<'_, T> {
        let last = self.len.checked_sub(count);
        assert!(last.is_some_and(|last| first <= last), "inside the array");
        // SAFETY: first <= len, as asserted.
        let next = unsafe { self.base.add(first * T::WORDS) };
        Elements { next, left: count, array: PhantomData }
    }

    /// One element, to be written.
    #[inline]
    pub fn element(&mut self, index: usize) -> Element<'_, T> {
        self.check(index);
        Element { base: self.word(index, 0), array: PhantomData }
    }

    /// The elements before an index, for who holds the array in another way.
    #[inline]
    pub(crate) fn unborrowed(&mut self, end: usize) -> Unborrowed<T> {
        Unborrowed { end: self.elements(end, 0).next }
    }
}

// By itself, so that the numbers need no place in memory on the way that goes well.
#[cold]
#[inline(never)]
fn outside(index: usize, len: usize) -> ! {
    panic!("element {index} of a coherent array of {len}");
}

/// Elements of a [`Coherent`] array, in the order of their addresses.
#[derive(Debug)]
pub struct Elements<'a, T: Shared> {
    /// The first of the `left` elements that were not handed out: all of them lie inside the
    /// array.
    next: NonNull<T::Word>,
    left: usize,
    array: PhantomData<&'a mut Coherent<T>>,
}

impl<'a, T: Shared> Iterator for Elements<'a, T> {
    type Item = Element<'a, T>;

    #[inline]
    fn next(&mut self) -> Option<Element<'a, T>> {
        self.left = self.left.checked_sub(1)?;
        let element = Element { base: self.next, array: PhantomData };
        // SAFETY: `left` was not 0, so an element begins at `next` and ends inside the array.
        self.next = unsafe { self.next.add(T::WORDS) };
        Some(element)
    }
}

/// Elements of a [`Coherent`] array to be written, without its borrow.
#[derive(Debug)]
pub(crate) struct Unborrowed<T: Shared> {
    /// Behind the last one.
    end: NonNull<T::Word>,
}

impl<T: Shared> Clone for Unborrowed<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Shared> Copy for Unborrowed<T> {}

impl<T: Shared> Unborrowed<T> {
    /// Writes the first words of the element that begins so many bytes from their end, which is
    /// a negative number.
    ///
    /// # Safety
    ///
    /// It is one of the elements, the array lives, and nothing else writes it.
    // What it costs is counted: see `tools/instructions.sh`.
    #[inline(always)]
    pub(crate) unsafe fn write_words(self, from_end: isize, values: &[T::Word]) {
        // SAFETY: inside the array, as the caller vouches.
        let base = unsafe { self.end.byte_offset(from_end) };
        Element::<'_, T> { base, array: PhantomData }.write_words(values);
    }
}

/// One element of a [`Coherent`] array, to be written.
#[derive(Debug)]
pub struct Element<'a, T: Shared> {
    base: NonNull<T::Word>,
    array: PhantomData<&'a mut Coherent<T>>,
}

impl<T: Shared> Element<'_, T> {
    /// Reads a word.
    ///
    /// # Panics
    ///
    /// When there is no such word; as [`Element::write_word`].
    #[inline]
    #[must_use]
    pub fn read_word(&self, word: usize) -> T::Word {
        assert!(word < T::WORDS, "inside the element");
        // SAFETY: as asserted, and the element lies inside the array.
        let at = unsafe { self.base.add(word) };
        // SAFETY: the address is valid and aligned, as checked when the array was made.
        unsafe { T::Word::load_relaxed(at) }
    }

    /// Writes a word.
    #[inline]
    pub fn write_word(&self, word: usize, value: T::Word) {
        assert!(word < T::WORDS, "inside the element");
        // SAFETY: as asserted, and the element lies inside the array.
        let at = unsafe { self.base.add(word) };
        // SAFETY: the address is valid and aligned, as checked when the array was made.
        unsafe { T::Word::store_relaxed(at, value) };
    }

    /// Writes its first words; the others stay as they are.
    ///
    /// # Panics
    ///
    /// When there are more values than words.
    #[inline]
    pub fn write_words(self, values: &[T::Word]) {
        assert!(values.len() <= T::WORDS, "inside the element");
        for (word, &value) in values.iter().enumerate() {
            // SAFETY: word < T::WORDS, as asserted, and the element lies inside the array.
            let at = unsafe { self.base.add(word) };
            // SAFETY: the address is valid and aligned, as checked when the array was made.
            unsafe { T::Word::store_relaxed(at, value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::buffer;

    #[test]
    fn elements_lie_one_after_another_and_the_device_sees_them() {
        let (memory, host) = buffer(80);
        let mut array = Coherent::<[u64; 3]>::new(memory, 3).unwrap();
        assert_eq!((array.len(), Coherent::<[u64; 3]>::STRIDE), (3, 24));
        for (n, element) in (1u64..).zip(array.elements(0, 3)) {
            element.write_words(&[n, n << 8]);
        }
        array.write(2, &[7, 8, 9]);
        array.store_release(1, 2, 99);
        assert_eq!(array.read(1), [2, 2 << 8, 99]);
        let seen: Vec<u64> = (0..9).map(|i| host.load(array.iova(0).0 + 8 * i).unwrap()).collect();
        assert_eq!(seen, [1, 1 << 8, 0, 2, 2 << 8, 99, 7, 8, 9]);
        host.store(array.iova(2).0 + 8, 55).unwrap();
        assert_eq!((array.load_acquire(2, 1), array.read(2)), (55, [7, 55, 9]));
        assert_eq!(array.elements(3, 0).count(), 0);
    }

    #[test]
    fn words_of_every_width_are_little_endian() {
        let (memory, host) = buffer(16);
        let mut array = Coherent::<u16>::new(memory, 8).unwrap();
        for index in 0..4 {
            array.write(index, &(0x1100 + index as u16));
        }
        assert_eq!(host.load(array.iova(0).0), Some(0x1103_1102_1101_1100));
        assert_eq!(array.read(3), 0x1103);
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let (memory, _host) = buffer(24);
        let mut array = Coherent::<[u64; 1]>::new(memory, 3).unwrap();
        let panics = |f: &mut dyn FnMut()| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err()
        };
        assert!(panics(&mut || _ = array.read(3)));
        assert!(panics(&mut || array.write(3, &[0])));
        assert!(panics(&mut || _ = array.load_acquire(0, 1)));
        assert!(panics(&mut || _ = array.iova(3)));
        for (first, count) in [(2, 2), (4, 0), (usize::MAX, 1), (0, usize::MAX)] {
            assert!(panics(&mut || _ = array.elements(first, count).count()));
        }
        let long = &mut || array.elements(0, 1).next().unwrap().write_words(&[1, 2]);
        assert!(panics(long));
        for len in [0, 4, usize::MAX] {
            let (memory, _host) = buffer(24);
            let refused = Coherent::<u64>::new(memory, len);
            assert!(matches!(refused, Err(DmaError::NotCoherent { .. })), "{refused:?}");
        }
    }
}
