//! What it costs to take and to give back I/O virtual addresses.
//!
//! The space is fragmented as a long-running program leaves it: every second page of a
//! large part is in use, so a search may have to pass thousands of runs that are too short.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use vfio_dma::dma::{Iova, IovaAllocator};

const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
const WINDOW: u64 = (1 << 39) - 1;

/// A space whose top has `holes` free pages with a used one after each.
fn fragmented(holes: usize) -> IovaAllocator {
    let mut space = IovaAllocator::new(PAGE, &[PAGE..=WINDOW]);
    let mut take = || space.allocate(PAGE, PAGE, u64::MAX).expect("the window is large");
    let pages: Vec<Iova> = (0..2 * holes).map(|_| take()).collect();
    for &page in pages.iter().step_by(2) {
        space.free(page, PAGE).expect("it was allocated");
    }
    assert_eq!(space.free_runs().count(), holes + 1);
    space
}

fn take_and_give(space: &mut IovaAllocator, len: u64) {
    let iova = space.allocate(black_box(len), len, u64::MAX).expect("there is room");
    space.free(black_box(iova), len).expect("it was allocated");
}

fn one_range(c: &mut Criterion) {
    let mut group = c.benchmark_group("iova: allocate and free");
    for holes in [0, 256, 16_384] {
        let mut space = fragmented(holes);
        group.bench_function(BenchmarkId::new("4 KiB, holes", holes), |b| {
            b.iter(|| take_and_give(&mut space, PAGE));
        });
        // It fits into none of the holes, and is below all of them.
        group.bench_function(BenchmarkId::new("2 MiB, holes", holes), |b| {
            b.iter(|| take_and_give(&mut space, LARGE));
        });
        assert_eq!(space.free_runs().count(), holes + 1);
    }
    group.finish();
}

fn many_ranges(c: &mut Criterion) {
    const HOLES: usize = 1024;
    let mut space = fragmented(HOLES);
    // Only the holes are under the mask of such a device.
    let mask = WINDOW;
    let bottom = space.free_runs().next().map(|run| *run.end()).expect("the rest is free");
    space.reserve(PAGE..=bottom);
    assert_eq!(space.free_bytes(mask), HOLES as u64 * PAGE);
    let mut group = c.benchmark_group("iova: 1 MiB");
    group.bench_function("in 256 holes of 1024", |b| {
        b.iter(|| {
            let runs = space.allocate_runs(256 * PAGE, u64::MAX, PAGE, mask).expect("enough");
            for (iova, len) in black_box(runs) {
                space.free(iova, len).expect("it was allocated");
            }
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = one_range, many_ranges
}
criterion_main!(benches);
