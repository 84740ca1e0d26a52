//! That copies on the embedded model allocate nothing once they run.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use vfio_dma::backend::{Backend, DmaAccess, MapRequest, Region};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

/// The system's allocator, and how often it was asked.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator with its arguments unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BASE: u64 = 0x10_0000;
const IDLE: u64 = 1;

#[repr(C, align(4096))]
struct Memory([AtomicU64; 2048]);

static MEMORY: Memory = Memory([const { AtomicU64::new(0) }; 2048]);

// One test only: others in this process would disturb the count.
#[test]
fn copies_allocate_nothing() {
    let model = Embedded::new(IoatConfig::default()).unwrap();
    let request = MapRequest {
        iova: BASE,
        host: NonNull::from(&MEMORY).cast(),
        len: size_of::<Memory>(),
        access: DmaAccess::ReadWrite,
        file: None,
    };
    // SAFETY: the memory is static, and shared as atomics only.
    unsafe { model.iommu().map(&request) }.unwrap();
    let device = model.attach().unwrap();
    let write = |region, offset, bytes: &[u8]| device.region_write(region, offset, bytes).unwrap();
    write(Region::Config, 0x04, &6u16.to_le_bytes());
    write(Region::Bar(0), 0x98, &BASE.to_le_bytes());
    // A ring of 32 copies of 64 bytes, each with a completion word.
    let ring = BASE + 0x1000;
    for n in 0..32u64 {
        let fields = [64 | 8 << 32, BASE + 0x2000, BASE + 0x3000, ring + 64 * ((n + 1) % 32)];
        for (field, value) in fields.into_iter().enumerate() {
            MEMORY.0[512 + 8 * n as usize + field].store(value, Ordering::Relaxed);
        }
    }
    write(Region::Bar(0), 0x90, &ring.to_le_bytes());
    let word = &MEMORY.0[0];
    let mut count = 0u16;
    let mut copy = |batch: u16| {
        count = count.wrapping_add(batch);
        write(Region::Bar(0), 0x86, &count.to_le_bytes());
        let last = (ring + 64 * u64::from(count.wrapping_sub(1) % 32)) | IDLE;
        while word.load(Ordering::Acquire) != last {
            std::thread::yield_now();
        }
    };
    copy(32);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (0..20_000).for_each(|n| copy(n % 31 + 1));
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed), before);
}
