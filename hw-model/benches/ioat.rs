//! How fast the embedded engine copies, and how soon it answers.
//!
//! The copy and the plain `memcpy` beside it work on the same buffers, in alternating rounds
//! of one run, because two runs on a busy machine cannot be compared.

use std::hint::black_box;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use vfio_dma::backend::{Backend, DmaAccess, MapRequest, Region};
use vfio_dma_model::embedded::{Attached, Embedded};
use vfio_dma_model::ioat::IoatConfig;

const BASE: u64 = 0x1000_0000;
const SIZE: usize = 64 << 20;
const RING: u64 = BASE + 0x1000;
const SOURCE: u64 = BASE + (1 << 20);
const TARGET: u64 = BASE + (32 << 20);
const IDLE: u64 = 1;

struct Rig {
    device: Attached,
    model: Arc<Embedded>,
    memory: NonNull<u8>,
    count: u16,
}

impl Rig {
    fn new() -> Rig {
        let size = NonZeroUsize::new(SIZE).expect("not zero");
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice; it is never unmapped.
        let memory = unsafe { mmap_anonymous(None, size, protection, flags) }.expect("memory");
        let model = Embedded::new(IoatConfig::default()).expect("a model");
        let device = model.attach().expect("nobody has it");
        let rig = Rig { device, model, memory: memory.cast(), count: 0 };
        let request = MapRequest {
            iova: BASE,
            host: rig.memory,
            len: SIZE,
            access: DmaAccess::ReadWrite,
            file: None,
        };
        // SAFETY: the memory stays mapped, and is only reached through raw pointers.
        unsafe { rig.model.iommu().map(&request) }.expect("mapped");
        rig.device.region_write(Region::Config, 0x04, &6u16.to_le_bytes()).expect("bus master");
        rig.write(0x98, 8, BASE);
        rig
    }

    fn write(&self, offset: u64, len: usize, value: u64) {
        let bytes = value.to_le_bytes();
        self.device.region_write(Region::Bar(0), offset, &bytes[..len]).expect("a register");
    }

    fn at(&self, iova: u64) -> *mut u8 {
        self.memory.as_ptr().wrapping_add((iova - BASE) as usize)
    }

    fn word(&self, iova: u64) -> &AtomicU64 {
        // SAFETY: an aligned address inside of the mapping, accessed atomically only.
        unsafe { AtomicU64::from_ptr(self.at(iova).cast()) }
    }

    /// A ring of one copy that points at itself.
    fn prepare(&mut self, size: u64) {
        self.write(0x84, 1, 0x20);
        let fields = [size | 1 << 35, SOURCE, TARGET, RING];
        for (n, field) in fields.into_iter().enumerate() {
            self.word(RING + 8 * n as u64).store(field, Ordering::Relaxed);
        }
        self.write(0x90, 8, RING);
        self.count = 0;
    }

    /// One copy, from the doorbell to the completion word.
    fn copy(&mut self) {
        self.count = self.count.wrapping_add(1);
        let word = self.word(BASE);
        word.store(0, Ordering::Relaxed);
        self.write(0x86, 2, self.count.into());
        while word.load(Ordering::Acquire) != RING | IDLE {
            std::hint::spin_loop();
        }
    }

    fn memcpy(&self, size: u64) {
        // SAFETY: both lie inside of the mapping, do not overlap, and the engine is idle.
        unsafe {
            self.at(TARGET).copy_from_nonoverlapping(self.at(SOURCE), size as usize);
        }
        black_box(self.at(TARGET));
    }
}

/// Median and tenths of what `f` takes.
fn times(rounds: usize, mut f: impl FnMut()) -> Vec<Duration> {
    let mut times: Vec<_> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed()
        })
        .collect();
    times.sort();
    times
}

fn copies(c: &mut Criterion) {
    const LEN: u64 = 1 << 20;
    let mut rig = Rig::new();
    rig.prepare(LEN);
    let mut group = c.benchmark_group("1 MiB");
    group.throughput(Throughput::Bytes(LEN)).sample_size(20);
    group.measurement_time(Duration::from_secs(2));
    group.bench_function("engine", |b| b.iter(|| rig.copy()));
    group.bench_function("memcpy", |b| b.iter(|| rig.memcpy(LEN)));
    group.finish();
    let mut ratios: Vec<f64> = (0..20)
        .map(|_| {
            let plain = times(100, || rig.memcpy(LEN))[50];
            let engine = times(100, || rig.copy())[50];
            plain.as_secs_f64() / engine.as_secs_f64()
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "1 MiB copies reach {:.1}% of memcpy (median of 20 alternating rounds; {:.1}% to {:.1}%)",
        100.0 * ratios[10],
        100.0 * ratios[0],
        100.0 * ratios[19]
    );
}

fn latency(c: &mut Criterion) {
    let mut rig = Rig::new();
    rig.prepare(64);
    let mut group = c.benchmark_group("64 bytes");
    group.measurement_time(Duration::from_secs(2));
    group.bench_function("doorbell to completion", |b| b.iter(|| rig.copy()));
    group.finish();
    let times = times(100_000, || rig.copy());
    let at = |share: f64| times[(times.len() as f64 * share) as usize];
    println!("64 bytes, one at a time: p50 {:?}, p90 {:?}, p99 {:?}", at(0.5), at(0.9), at(0.99));
}

criterion_group!(benches, copies, latency);
criterion_main!(benches);
