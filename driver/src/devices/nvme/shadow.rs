//! Shadow doorbells: doorbells in memory, which a controller looks at by itself while it has
//! work, and beside them the values at which it wants to be told by register (NVM Express Base
//! 1.4, 5.7 and annex B.5).

use std::sync::Arc;

use super::regs;
use crate::dma::{Allocator, Coherent, DmaError};
use crate::mmio::{Bar, MmioError, barrier};

/// The shadow doorbell buffer and the EventIdx buffer, a page of the controller each. A doorbell
/// lies in both where its register lies behind the first doorbell's.
#[derive(Debug)]
pub(super) struct Pages {
    shadow: Coherent<u32>,
    event: Coherent<u32>,
}

impl Pages {
    pub(super) fn new(allocator: &Allocator, page: u64) -> Result<Pages, DmaError> {
        let make = || allocator.coherent(page as usize / 4, page);
        Ok(Pages { shadow: make()?, event: make()? })
    }

    /// Where the two lie: what the controller is told.
    pub(super) fn addresses(&self) -> [u64; 2] {
        [&self.shadow, &self.event].map(|page| page.iova(0).0)
    }

    /// Which word of the pages a doorbell is, if it has one.
    #[inline]
    fn index(&self, doorbell: u64) -> Option<usize> {
        let word = usize::try_from(doorbell.checked_sub(regs::DOORBELLS)? / 4).ok()?;
        (word < self.shadow.len()).then_some(word)
    }

    /// Sets all doorbells to 0: for a controller that is about to be told of the pages, while no
    /// doorbell is written.
    pub(super) fn clear(&self) {
        (0..self.shadow.len()).for_each(|word| self.clear_word(word));
    }

    /// Sets doorbells to 0, where they have a place: for a queue that is about to be made.
    pub(super) fn clear_of(&self, doorbells: [u64; 2]) {
        doorbells.iter().filter_map(|&at| self.index(at)).for_each(|word| self.clear_word(word));
    }

    fn clear_word(&self, word: usize) {
        // SAFETY: the doorbell is written by nobody before its queue is made, and whoever
        // makes a queue, or the pages known, has the admin queue locked.
        unsafe { self.shadow.write_shared(word, 0, 0) };
        // SAFETY: as above.
        unsafe { self.event.write_shared(word, 0, 0) };
    }
}

/// What came of a doorbell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rung {
    /// Its register was written.
    Register,
    /// It lies in memory, where the controller finds it without being told.
    Shadow,
}

/// The doorbells of a controller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Doorbells<'a> {
    pub(super) bar: &'a Bar,
    /// The pages, while the controller looks at them.
    pub(super) pages: Option<&'a Arc<Pages>>,
}

impl Doorbells<'_> {
    /// Moves a doorbell of a queue of so many entries from one value on to another, after every
    /// store before it. The controller is told by register when it has no shadow of it, when
    /// `always` says so, or when it wants to know of a value that is passed by that.
    #[inline]
    pub(super) fn ring(
        &self,
        doorbell: u64,
        (old, new): (u32, u32),
        size: u32,
        always: bool,
    ) -> Result<Rung, MmioError> {
        if let Some((pages, word)) = self.pages.and_then(|p| Some((p, p.index(doorbell)?))) {
            // The entries before the shadow doorbell that leads to them: pairs with the
            // controller's read of it.
            barrier::before_write();
            // SAFETY: only who has the queue mutably writes its doorbells.
            unsafe { pages.shadow.write_shared(word, 0, new) };
            // The shadow doorbell before the look at EventIdx: the controller writes EventIdx
            // and then looks at the doorbell once more, so one of both sees the other's.
            barrier::full();
            if !always && !is_passed(pages.event.read(word), old, new, size) {
                return Ok(Rung::Shadow);
            }
        }
        self.bar.write(doorbell, new)?;
        Ok(Rung::Register)
    }
}

/// Whether a value is passed on the way from an old one to a new one, in a queue of so many
/// entries: it lies from the old one on, and before the new one. One that no doorbell has is,
/// whatever the controller means by it.
#[inline]
fn is_passed(event: u32, old: u32, new: u32, size: u32) -> bool {
    if event >= size {
        return true;
    }
    let ahead = |value: u32| if value >= old { value - old } else { value + size - old };
    ahead(event) < ahead(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_passed_from_the_old_one_on_and_before_the_new_one() {
        for size in [2u32, 5, 8] {
            for old in 0..size {
                for steps in 1..size {
                    let new = (old + steps) % size;
                    let passed: Vec<u32> = (0..steps).map(|n| (old + n) % size).collect();
                    for event in 0..size {
                        let is = is_passed(event, old, new, size);
                        assert_eq!(is, passed.contains(&event), "{event}: {old} to {new}, {size}");
                    }
                    assert!(is_passed(size, old, new, size) && is_passed(u32::MAX, old, new, size));
                }
            }
        }
    }
}
