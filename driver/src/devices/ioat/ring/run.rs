//! Entries of the ring one after another that take data.

use std::marker::PhantomData;

use super::super::descriptor::{Descriptor, NEXT};
use super::Ring;
use crate::dma::{Coherent, Segment, Unborrowed};

/// Free entries one after another, with no marker due among them, to be filled in their order.
///
/// What was filled is the ring's with [`Ring::take_run`].
#[derive(Debug)]
pub(in super::super) struct Run<'a> {
    end: Unborrowed<Descriptor>,
    /// How many there are, and how many of them are not filled.
    room: usize,
    left: usize,
    ring: PhantomData<&'a mut Ring>,
}

impl Run<'_> {
    /// How many are not filled.
    #[inline(always)]
    pub(in super::super) fn left(&self) -> usize {
        self.left
    }

    /// How many are filled.
    #[inline(always)]
    pub(in super::super) fn filled(&self) -> usize {
        self.room - self.left
    }

    /// Fills an entry with the words of each item, until there are none or no entry is left;
    /// returns how many.
    #[inline(always)]
    pub(in super::super) fn fill<T>(
        &mut self,
        items: &[T],
        mut words: impl FnMut(&T) -> Option<[u64; NEXT]>,
    ) -> usize {
        let count = items.len().min(self.left);
        let mut filled = 0;
        for (n, item) in items[..count].iter().enumerate() {
            let Some(words) = words(item) else { break };
            // SAFETY: fewer than were left.
            unsafe { self.write(n, &words) };
            filled = n + 1;
        }
        self.left -= filled;
        filled
    }

    /// Fills an entry with the words for a length, a source and a target of each pair of
    /// segments, until two differ in length, there are none or no entry is left; returns how
    /// many.
    #[inline(always)]
    pub(in super::super) fn fill_pairs(
        &mut self,
        sources: &[Segment],
        targets: &[Segment],
        mut words: impl FnMut(u64, u64, u64) -> [u64; NEXT],
    ) -> usize {
        let count = sources.len().min(targets.len()).min(self.left);
        let mut filled = 0;
        for (n, (from, to)) in sources[..count].iter().zip(&targets[..count]).enumerate() {
            if from.len != to.len {
                break;
            }
            // SAFETY: fewer than were left.
            unsafe { self.write(n, &words(from.len as u64, from.iova.0, to.iova.0)) };
            filled = n + 1;
        }
        self.left -= filled;
        filled
    }

    /// Fills the next one, if one is left.
    #[inline(always)]
    pub(in super::super) fn fill_one(&mut self, words: [u64; NEXT]) {
        self.fill(&[()], |()| Some(words));
    }

    /// Writes the words of an entry, counted from the first that is not filled on.
    ///
    /// # Safety
    ///
    /// So many are left.
    #[inline(always)]
    unsafe fn write(&self, n: usize, words: &[u64; NEXT]) {
        let at = (n as isize - self.left as isize) * Coherent::<Descriptor>::STRIDE as isize;
        // SAFETY: one that is left lies before the end, in the ring's array, and nothing else
        // writes it while this borrows the ring.
        unsafe { self.end.write_words(at, words) };
    }
}

impl Ring {
    /// The entries that can be filled in a row now.
    #[inline(always)]
    pub(in super::super) fn run(&mut self) -> Run<'_> {
        let room = self.room().min(self.producer().size() - self.producer().tail());
        let end = (self.producer().tail() + room) as usize;
        let room = room as usize;
        Run { end: self.ring.entries_mut().unborrowed(end), room, left: room, ring: PhantomData }
    }

    /// Counts so many entries of a run as filled.
    #[inline(always)]
    pub(in super::super) fn take_run(&mut self, filled: usize) {
        self.window = 0;
        self.ring.producer_mut().advance(filled as u32);
    }

    /// Data descriptors that can be filled in a row before a marker is due, or none is free.
    #[inline]
    pub(in super::super) fn room(&mut self) -> u32 {
        let (unmarked, free) = ((self.producer().filled() - self.marked) as u32, self.free());
        if unmarked >= self.quarter && free > 0 {
            return self.room_behind_marker();
        }
        free.min(self.quarter.saturating_sub(unmarked))
    }

    /// The most data descriptors between two markers.
    pub(in super::super) fn longest_run(&self) -> u32 {
        self.quarter
    }

    /// Makes sure that so many data descriptors can be filled without a marker among them;
    /// whether they can.
    pub(in super::super) fn make_run(&mut self, count: u32) -> bool {
        let unmarked = (self.producer().filled() - self.marked) as u32;
        self.window = 0;
        if unmarked + count > self.quarter && unmarked > 0 && self.free() > count {
            self.mark(0);
        }
        self.room() >= count
    }

    /// Opens a window of at most so many entries.
    pub(in super::super) fn open_window(&mut self, most: u32) {
        let room = self.room().min(most);
        self.window = room.min(self.producer().size() - self.producer().tail());
    }

    /// How many entries the window has.
    #[inline(always)]
    pub(in super::super) fn window_len(&self) -> u32 {
        self.window
    }

    /// The entries of the window, and how many there are.
    #[inline(always)]
    pub(in super::super) fn window(&mut self) -> (Unborrowed<Descriptor>, u32) {
        (self.window_of(self.window), self.window)
    }

    /// The first entries of the window.
    #[inline(always)]
    pub(in super::super) fn window_of(&mut self, count: u32) -> Unborrowed<Descriptor> {
        debug_assert!(count <= self.window);
        let end = (self.producer().tail() + count) as usize;
        self.ring.entries_mut().unborrowed(end)
    }

    /// Counts data descriptors as filled that were written to entries of the window.
    #[inline(always)]
    pub(in super::super) fn advance(&mut self, count: u32) {
        self.window -= count;
        self.ring.producer_mut().advance(count);
    }

    #[cold]
    fn room_behind_marker(&mut self) -> u32 {
        self.window = 0;
        self.mark(0);
        self.free().min(self.quarter)
    }
}
