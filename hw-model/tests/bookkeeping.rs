//! What 200,000 mapped ranges cost: memory, mappings of the process, and time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vfio_dma_model::memory::{Access, DmaMap};

/// The system's allocator, and how many bytes it has given out.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with its arguments unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn mappings() -> usize {
    std::fs::read_to_string("/proc/self/maps").expect("procfs is mounted").lines().count()
}

// One test only: others in this process would disturb the count.
#[test]
fn two_hundred_thousand_ranges_cost_little() {
    const RANGES: u64 = 200_000;
    const PAGE: u64 = 4096;
    let file = std::fs::File::from(memfd_create("ranges", MFdFlags::empty()).unwrap());
    file.set_len(RANGES * PAGE).unwrap();
    // Ascending, descending, and in no order: 7919 is coprime to the number of ranges.
    let orders: [fn(u64) -> u64; 3] = [|n| n, |n| RANGES - 1 - n, |n| n * 7919 % RANGES];
    for order in orders {
        let map = DmaMap::new();
        let maps_before = mappings();
        let before = ALLOCATED.load(Ordering::Relaxed);
        for page in (0..RANGES).map(order) {
            map.map_fd(page * 2 * PAGE, PAGE, file.as_fd(), page * PAGE, Access::ReadWrite)
                .unwrap();
        }
        let per_range = (ALLOCATED.load(Ordering::Relaxed) - before) as f64 / RANGES as f64;
        println!("{per_range:.1} bytes for each range");
        assert!(per_range <= 100.0, "{per_range} bytes for each range");
        assert_eq!((map.ranges() as u64, map.files()), (RANGES, 1));
        let added = mappings() - maps_before;
        assert!(added <= 8, "{added} mappings of the process for one file");

        map.store_u64((RANGES - 1) * 2 * PAGE, 42).unwrap();
        assert_eq!(map.load_u64((RANGES - 1) * 2 * PAGE), Ok(42));
        for page in (0..RANGES).map(order) {
            assert_eq!(map.unmap(page * 2 * PAGE, PAGE), Ok(PAGE));
        }
        assert_eq!((map.ranges(), map.files()), (0, 0));
    }
}
