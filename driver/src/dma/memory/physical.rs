//! Memory that is put together from physically contiguous blocks.

use std::num::NonZeroUsize;
use std::ops::Range;

use super::{FrameError, Memory, MemoryError, PageSize, Part, frames};

impl Memory {
    /// The physical frame of each page; the memory has to be locked.
    pub(in crate::dma) fn frames(&self) -> Result<Vec<u64>, FrameError> {
        frames::frames(self.base(), self.len())
    }
}

impl Memory {
    /// Makes every page present.
    pub(in crate::dma) fn touch(&self) -> Result<(), MemoryError> {
        self.populate(0, self.len())
    }

    /// Makes every page present, the last one first.
    pub(in crate::dma) fn touch_downwards(&self) -> Result<(), MemoryError> {
        let page = match self.page_size().pool() {
            Some(_) => self.page_size().bytes(),
            None => frames::frame_bytes(),
        };
        (0..self.len()).step_by(page).rev().try_for_each(|offset| self.populate(offset, page))
    }
}

/// One run of addresses that is filled from the left, block by block.
#[derive(Debug)]
pub(in crate::dma) struct Blocks {
    memory: Memory,
    filled: usize,
}

impl Blocks {
    /// Addresses for `len` bytes, without pages.
    pub(in crate::dma) fn reserve(len: usize) -> Result<Blocks, MemoryError> {
        Ok(Blocks { memory: Memory::reserve(len)?, filled: 0 })
    }

    /// Bytes that have no pages yet.
    pub(in crate::dma) fn missing(&self) -> usize {
        self.memory.len - self.filled
    }

    /// Adds as many pages of one of the kernel's pools as are free and fit.
    pub(in crate::dma) fn fill(&mut self, page_size: PageSize) {
        let free = usize::try_from(page_size.free().unwrap_or(0)).unwrap_or(usize::MAX);
        let pages = (self.missing() / page_size.bytes()).min(free);
        let Some(len) = NonZeroUsize::new(pages * page_size.bytes()) else { return };
        // Pages that went elsewhere since they were counted are made up for by small ones; if
        // the addresses were lost with them, the next step says so.
        if let Ok(part) = self.memory.fill(self.filled, len, page_size, None) {
            self.push(part);
        }
    }

    /// Adds pages of another memory, which has new ones in their place afterwards.
    pub(in crate::dma) fn take(
        &mut self,
        from: &Memory,
        pages: Range<usize>,
    ) -> Result<(), MemoryError> {
        let len = pages.len() * frames::frame_bytes();
        self.memory.take_pages(self.filled, from, pages)?;
        self.push(Part { len, file: None });
        Ok(())
    }

    fn push(&mut self, part: Part) {
        self.filled += part.len;
        self.memory.parts.push(part);
    }

    /// The memory, once nothing is missing.
    pub(in crate::dma) fn finish(mut self) -> Result<Memory, MemoryError> {
        debug_assert_eq!(self.missing(), 0);
        self.memory.complete()?;
        Ok(self.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_keep_their_contents_when_they_move() {
        let from = Memory::allocate(4 * 4096, PageSize::Base, false).unwrap();
        for page in 0..4 {
            from.write(page * 4096, &[page as u8 + 1]).unwrap();
        }
        let mut blocks = Blocks::reserve(3 * 4096).unwrap();
        blocks.take(&from, 2..4).unwrap();
        assert_eq!(blocks.missing(), 4096);
        blocks.take(&from, 0..1).unwrap();
        let memory = blocks.finish().unwrap();
        let first = |memory: &Memory, page: usize| {
            let mut byte = [0u8];
            memory.read(page * 4096, &mut byte).unwrap();
            byte[0]
        };
        assert_eq!([0, 1, 2].map(|page| first(&memory, page)), [3, 4, 1]);
        assert_eq!([0, 1, 2, 3].map(|page| first(&from, page)), [0, 2, 0, 0]);
    }
}
