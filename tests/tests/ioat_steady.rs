//! What the I/OAT driver costs in the steady state: no allocation, one map call for each
//! buffer, and nothing more however long it runs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Config, Ioat, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Request, SgTable};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

thread_local! {
    /// Allocations of this thread: the model's threads are not the driver.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

#[test]
fn a_transfer_allocates_and_maps_nothing() {
    let model = Embedded::new(IoatConfig::default()).unwrap();
    let device = Device::open(model.attach().unwrap()).unwrap();
    let ioat = Ioat::probe(device, Config { wait: WaitMode::Poll, ..Config::default() }).unwrap();
    let mut channel = ioat.channel(0).unwrap();
    // 32 transfers of 1 to 32 segments.
    let mut pairs: Vec<_> = (1..=32)
        .map(|segments| {
            let gather = |direction| {
                let buffer =
                    Arc::new(ioat.allocate(&Request::new(segments * 256, direction)).unwrap());
                let ranges = (0..segments).map(|n| (Arc::clone(&buffer), n * 256, 100));
                SgTable::gather(ranges).unwrap()
            };
            (gather(Direction::ToDevice), gather(Direction::FromDevice))
        })
        .collect();
    let mut tokens = Vec::with_capacity(pairs.len());
    let before = allocations();
    assert!(before > 0, "allocations are counted");
    let mapped = ioat.space().usage();
    for _ in 0..1000 {
        for (source, target) in pairs.drain(..) {
            tokens.push(channel.copy(source, target, WhenFull::Return).unwrap());
        }
        channel.issue().unwrap();
        while channel.in_flight() > 0 {
            channel.poll().unwrap();
        }
        for token in tokens.drain(..) {
            let done = channel.take(token).unwrap().unwrap().into_result().unwrap();
            pairs.push((done.source.unwrap(), done.target));
        }
    }
    assert_eq!(allocations() - before, 0);
    assert_eq!(ioat.space().usage(), mapped);
    // 528 descriptors with data to a batch, and a marker behind each 255 and the last.
    assert_eq!(channel.stats().descriptors, 1000 * (32 * 33 / 2 + 3));
}
