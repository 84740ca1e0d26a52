//! The IOVA allocator against a list of pages: it agrees on what is free, whatever is asked.
#![no_main]

use std::ops::RangeInclusive;

use libfuzzer_sys::fuzz_target;
use vfio_dma::dma::{Iova, IovaAllocator};
use vfio_dma_fuzz::Bytes;

const PAGE: u64 = 4096;
/// The allocator is given one of two places: the beginning and the end of the address space.
const PAGES: u64 = 128;

/// What each page is.
struct Pages {
    base: u64,
    in_window: Vec<bool>,
    used: Vec<bool>,
}

impl Pages {
    fn new(base: u64, windows: &[RangeInclusive<u64>]) -> Pages {
        let pages = 0..PAGES;
        let mut this = Pages { base, in_window: Vec::new(), used: pages.map(|_| false).collect() };
        this.set_windows(windows);
        this
    }

    fn set_windows(&mut self, windows: &[RangeInclusive<u64>]) {
        self.in_window = (0..PAGES)
            .map(|page| {
                let first = self.base + page * PAGE;
                let last = first + (PAGE - 1);
                // A page is whole in one window, or in several that meet.
                let holds = |address| windows.iter().any(|window| window.contains(&address));
                windows.iter().any(|w| w.contains(&first) && w.contains(&last)) && holds(first)
            })
            .collect();
    }

    fn page(&self, address: u64) -> usize {
        usize::try_from((address - self.base) / PAGE).expect("inside")
    }

    fn free(&self) -> u64 {
        let free =
            self.in_window.iter().zip(&self.used).filter(|(inside, used)| **inside && !**used);
        free.count() as u64
    }

    fn take(&mut self, iova: Iova, len: u64) {
        let first = self.page(iova.0);
        let count = usize::try_from(len.div_ceil(PAGE)).expect("inside");
        for page in first..first + count {
            assert!(self.in_window[page] && !self.used[page], "page {page} is not free");
            self.used[page] = true;
        }
    }

    fn give(&mut self, iova: Iova, len: u64) {
        let first = self.page(iova.0);
        let count = usize::try_from(len.div_ceil(PAGE)).expect("inside");
        self.used[first..first + count].fill(false);
    }
}

/// Windows of whole pages, not next to each other.
fn windows(bytes: &mut Bytes<'_>, base: u64) -> Vec<RangeInclusive<u64>> {
    let mut windows = Vec::new();
    let mut at = 0;
    for _ in 0..bytes.u8() % 5 {
        let first = at + u64::from(bytes.u8() % 32);
        let last = first + u64::from(bytes.u8() % 32);
        if last >= PAGES {
            break;
        }
        windows.push(base + first * PAGE..=base + last * PAGE + (PAGE - 1));
        at = last + 2;
    }
    windows
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let base = if bytes.u8() & 1 == 0 { 0 } else { u64::MAX - (PAGES * PAGE - 1) };
    let first = windows(&mut bytes, base);
    let mut allocator = IovaAllocator::new(PAGE, &first);
    let mut pages = Pages::new(base, &first);
    let mut live: Vec<(Iova, u64)> = Vec::new();
    while !bytes.is_empty() {
        match bytes.u8() % 6 {
            0 | 1 => {
                let len = u64::from(bytes.u16()) * 11;
                let align = 1u64 << (bytes.u8() % 20);
                let mask = base | bytes.edge();
                if let Ok(iova) = allocator.allocate(len, align, mask) {
                    let end = iova.0 + (len.next_multiple_of(PAGE) - 1);
                    assert!(iova.0.is_multiple_of(align) && end <= mask, "{iova} of {len}");
                    pages.take(iova, len);
                    live.push((iova, len));
                }
            }
            2 => {
                let (len, longest) = (u64::from(bytes.u16()) * 7, bytes.edge());
                let (least, mask) = (bytes.edge(), base | bytes.edge());
                if let Ok(runs) = allocator.allocate_runs(len, longest, least, mask) {
                    let sum: u64 = runs.iter().map(|(_, len)| len).sum();
                    assert_eq!(sum, len.next_multiple_of(PAGE));
                    for (iova, len) in runs {
                        assert!(len <= longest && iova.0 + (len - 1) <= mask, "{iova} of {len}");
                        pages.take(iova, len);
                        live.push((iova, len));
                    }
                }
            }
            3 if !live.is_empty() => {
                let (iova, len) = live.swap_remove(usize::from(bytes.u8()) % live.len());
                allocator.free(iova, len).expect("it is allocated");
                pages.give(iova, len);
            }
            4 => {
                let next = windows(&mut bytes, base);
                allocator.set_windows(&next);
                pages.set_windows(&next);
            }
            _ => {
                // What is not allocated is refused and changes nothing.
                let (iova, len) = (Iova(bytes.edge()), bytes.edge());
                let rounded = |len: u64| len.checked_next_multiple_of(PAGE);
                if !live.iter().any(|l| l.0 == iova && rounded(l.1) == rounded(len)) {
                    assert!(allocator.free(iova, len).is_err(), "{iova} of {len}");
                }
            }
        }
        assert_eq!(allocator.free_bytes(u64::MAX), pages.free() * PAGE);
        assert_eq!(allocator.allocated(), live.len());
        assert!(allocator.longest_run(PAGE, u64::MAX) <= pages.free() * PAGE);
    }
});
