//! What it costs to make scatter/gather lists, and to walk two of them together.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use vfio_dma::dma::{DmaLimits, Iova, Pieces, Segment, SgList};

const PAGE: usize = 4096;
/// 64 MiB of pages.
const PAGES: usize = 16_384;
const SOURCE: u64 = 1 << 32;
const TARGET: u64 = 1 << 40;

/// `len` bytes in segments of `each`, `gap` bytes apart.
fn segments(base: u64, each: usize, gap: usize, len: usize) -> Vec<Segment> {
    let at = |n: usize| Iova(base + (n * (each + gap)) as u64);
    (0..len / each).map(|n| Segment { iova: at(n), len: each }).collect()
}

fn list(segments: Vec<Segment>) -> SgList {
    SgList::new(segments).expect("segments inside the address space")
}

fn build(c: &mut Criterion) {
    let adjacent = segments(SOURCE, PAGE, 0, PAGES * PAGE);
    let scattered = segments(SOURCE, PAGE, PAGE, PAGES * PAGE);
    // As memory that was allocated and freed for a while: by a fixed odd step.
    let shuffled: Vec<_> = (0..PAGES).map(|n| scattered[n * 7919 % PAGES]).collect();
    let mut group = c.benchmark_group("sg: list of 16384 pages");
    group.throughput(Throughput::Elements(PAGES as u64));
    for (name, segments, result) in [
        ("adjacent", adjacent, 1),
        ("scattered, ascending", scattered, PAGES),
        ("scattered, in no order", shuffled, PAGES),
    ] {
        assert_eq!(list(segments.clone()).segments().len(), result, "{name}");
        group.bench_function(name, |b| {
            b.iter_batched(|| segments.clone(), list, BatchSize::LargeInput);
        });
    }
    group.finish();
}

fn walk(c: &mut Criterion) {
    const LEN: usize = PAGES * PAGE;
    let limits = DmaLimits { max_segment: 1 << 20, ..DmaLimits::default() };
    let bounded = DmaLimits { boundary: Some(1 << 16), ..limits };
    let one = || list(segments(SOURCE, LEN, 0, LEN));
    let pages = |base| list(segments(base, PAGE, PAGE, LEN));
    let odd = || list(segments(TARGET, 3 * PAGE / 2, 64, LEN / 3 * 3));
    let short = || list(segments(SOURCE, PAGE, PAGE, odd().len() as usize));
    for (name, source, target, limits) in [
        ("contiguous to contiguous", one(), list(segments(TARGET, LEN, 0, LEN)), limits),
        ("contiguous to pages", one(), pages(TARGET), limits),
        ("pages to pages", pages(SOURCE), pages(TARGET), limits),
        ("pages to pages, with a boundary", pages(SOURCE), pages(TARGET), bounded),
        ("pages to 6 KiB", short(), odd(), limits),
    ] {
        let pieces = Pieces::new(&source, &target, &limits).expect("lists that fit");
        let count = pieces.clone().count() as u64;
        assert_eq!(pieces.clone().map(|piece| piece.len).sum::<u64>(), source.len());
        let mut group = c.benchmark_group("sg: pieces of 64 MiB");
        group.throughput(Throughput::Elements(count));
        group.bench_function(name, |b| b.iter(|| pieces.clone().map(black_box).count()));
        group.finish();
    }
    let (source, target) = (pages(SOURCE), pages(TARGET));
    c.bench_function("sg: check 16384 pages against 16384", |b| {
        b.iter(|| Pieces::new(black_box(&source), black_box(&target), &limits).is_ok());
    });
    // Between each other's pages, so that every one has to be looked at.
    let between = list(segments(SOURCE + PAGE as u64, PAGE, PAGE, LEN));
    c.bench_function("sg: check 16384 pages between 16384", |b| {
        b.iter(|| Pieces::new(black_box(&source), black_box(&between), &limits).is_ok());
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = build, walk
}
criterion_main!(benches);
