//! What the I/OAT driver costs in the steady state: no allocation, one map call for each
//! buffer, and nothing more however long it runs.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Config, Ioat, SlotPart, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Request, SgTable, SlotPool};
use vfio_dma::queue::SlotPair;
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

#[test]
fn operations_between_slots_allocate_nothing_and_read_no_register() {
    const SLOT: usize = 256;
    let model = Embedded::new(IoatConfig::default()).unwrap();
    let device = Device::open(model.attach().unwrap()).unwrap();
    let ioat = Ioat::probe(device, Config { wait: WaitMode::Poll, ..Config::default() }).unwrap();
    let mut channel = ioat.channel(0).unwrap();
    let pool = |direction| {
        SlotPool::new(ioat.allocate(&Request::new(32 * SLOT, direction)).unwrap(), SLOT).unwrap()
    };
    let ((from, sources), (to, targets)) = (pool(Direction::ToDevice), pool(Direction::FromDevice));
    let pair = |(source, target)| SlotPair { source: Some(source), target: Some(target) };
    let mut pairs: Vec<_> = sources.into_iter().zip(targets).map(pair).collect();
    let mut parts = Vec::with_capacity(5);
    let mut rounds = |count: u64| {
        for round in 0..count {
            if round % 2 == 0 {
                assert_eq!(channel.copy_pairs(&from, &to, &mut pairs, SLOT).unwrap(), 32);
            } else {
                let target = pairs[4].target.take().unwrap();
                channel
                    .batch(&from, &to, |batch| {
                        for (n, slots) in pairs.drain(..).enumerate() {
                            if n > 4 {
                                batch.copy_pair(slots, SLOT).unwrap();
                                continue;
                            }
                            let slot = slots.source.unwrap();
                            parts.push(SlotPart { slot, offset: 0, len: 32 });
                            if let Some(target) = slots.target {
                                batch.fill(target, 0, SLOT).unwrap();
                            }
                        }
                        batch.gather(&mut parts, target, 0).unwrap();
                    })
                    .unwrap();
            }
            while channel.slots_in_flight() > 0 {
                assert_eq!(channel.reap(&mut pairs).unwrap().failed, 0);
            }
            // Pairs again, in place: what has one side only meets one with the other.
            for n in 0..pairs.len() {
                if pairs[n].source.is_none()
                    && let Some(other) = (n + 1..pairs.len())
                        .find(|&m| pairs[m].target.is_none() && pairs[m].source.is_some())
                {
                    pairs[n].source = pairs[other].source.take();
                }
            }
            pairs.retain(|pair| pair.source.is_some());
            let targets = pairs.iter().filter(|pair| pair.target.is_some()).count();
            assert_eq!((pairs.len(), targets), (32, 32));
        }
    };
    rounds(10);
    let (before, mapped, record) = (allocations(), ioat.space().usage(), model.function().stats());
    rounds(1000);
    assert_eq!(allocations() - before, 0);
    assert_eq!(ioat.space().usage(), mapped);
    let after = model.function().stats();
    assert_eq!(after.register_reads, record.register_reads);
    assert_eq!(after.doorbells - record.doorbells, 1000);
    assert_eq!(after.register_writes - record.register_writes, 1000);
}
