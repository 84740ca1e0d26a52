//! How fast the DMA map finds an address and moves data.
//!
//! The copy and the plain `memcpy` beside it work on the same buffers; compare them inside
//! one run only.

use std::hint::black_box;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vfio_dma_model::memory::{Access, DmaMap};

const PAGE: u64 = 4096;
const RANGES: u64 = 200_000;

fn lookup(c: &mut Criterion) {
    let file = std::fs::File::from(memfd_create("bench", MFdFlags::empty()).expect("memfd"));
    file.set_len(16 * PAGE).expect("a length");
    let map = DmaMap::new();
    for n in 0..RANGES {
        map.map_fd(n * 2 * PAGE, PAGE, file.as_fd(), n % 16 * PAGE, Access::ReadWrite)
            .expect("mapped");
    }
    assert_eq!((map.ranges() as u64, map.files()), (RANGES, 1));
    let mut group = c.benchmark_group("lookup in 200,000 ranges");
    let mut state = 1u64;
    group.bench_function("random", |b| {
        b.iter_batched(
            || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) % RANGES * 2 * PAGE
            },
            |iova| map.load_u64(black_box(iova)).expect("mapped"),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("the same again", |b| {
        b.iter(|| map.load_u64(black_box(777 * 2 * PAGE)).expect("mapped"));
    });
    group.finish();
}

/// Within the caches of most processors, and beyond those of a core.
fn copies(c: &mut Criterion) {
    copy(c, 1 << 20);
    copy(c, 4 << 20);
}

fn copy(c: &mut Criterion, len: usize) {
    let mut source = vec![0x5au8; len + PAGE as usize];
    let mut target = vec![0u8; len + 2 * PAGE as usize];
    let aligned = |bytes: &mut [u8]| {
        let offset = bytes.as_ptr().align_offset(PAGE as usize);
        bytes[offset..].as_mut_ptr()
    };
    let (from, to) = (aligned(&mut source), aligned(&mut target));
    let map = DmaMap::new();
    let pages = DmaMap::new();
    let host = |pointer: *mut u8| NonNull::new(pointer).expect("a vector's memory");
    // SAFETY: both vectors outlive the maps and are not accessed otherwise meanwhile.
    unsafe { map.map_host(0, len as u64, host(from), Access::Read) }.expect("mapped");
    // SAFETY: as above.
    unsafe { map.map_host(1 << 32, len as u64, host(to), Access::Write) }.expect("mapped");
    // A little ahead of the source, within a page: what some processors' `rep movsb` is slow at.
    let ahead = DmaMap::new();
    // SAFETY: as above.
    unsafe { ahead.map_host(0, len as u64, host(from), Access::Read) }.expect("mapped");
    // SAFETY: as above.
    unsafe { ahead.map_host(1 << 32, len as u64 + PAGE, host(to), Access::Write) }.expect("mapped");
    for n in 0..len as u64 / PAGE {
        let at = (n * PAGE) as usize;
        // SAFETY: inside the vectors; and as above.
        unsafe { pages.map_host(n * PAGE, PAGE, host(from.wrapping_add(at)), Access::Read) }
            .expect("mapped");
        let iova = (1 << 32) + n * PAGE;
        // SAFETY: as above.
        unsafe { pages.map_host(iova, PAGE, host(to.wrapping_add(at)), Access::Write) }
            .expect("mapped");
    }
    let mut group = c.benchmark_group(format!("copy {} MiB", len >> 20));
    group.throughput(Throughput::Bytes(len as u64));
    group.bench_function("memcpy", |b| {
        b.iter(|| {
            // SAFETY: two distinct vectors of len bytes.
            unsafe { std::ptr::copy_nonoverlapping(black_box(from), black_box(to), len) }
        });
    });
    // What no engine can be better than whose descriptors are of a page each.
    group.bench_function("memcpy by pages", |b| {
        b.iter(|| {
            for at in (0..len).step_by(PAGE as usize) {
                let (from, to) = (from.wrapping_add(at), to.wrapping_add(at));
                // SAFETY: as above, a page of each.
                unsafe {
                    std::ptr::copy_nonoverlapping(black_box(from), black_box(to), PAGE as usize);
                }
            }
        });
    });
    group.bench_function("one range each", |b| {
        b.iter(|| map.copy(1 << 32, 0, black_box(len as u64)).expect("mapped"));
    });
    group.bench_function("a range for each page", |b| {
        b.iter(|| pages.copy(1 << 32, 0, black_box(len as u64)).expect("mapped"));
    });
    group.bench_function("16 bytes ahead", |b| {
        b.iter(|| ahead.copy((1 << 32) + 16, 0, black_box(len as u64)).expect("mapped"));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = lookup, copies
}
criterion_main!(benches);
