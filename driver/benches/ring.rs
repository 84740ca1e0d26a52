//! What it costs the processor to submit and to reap: the ring alone, and an I/OAT channel
//! on the embedded model.
//!
//! Of the channel only the driver's own time is counted, as `tools/instructions.sh` counts
//! its instructions: the doorbell, which is a call into the model here, and the wait for
//! the engine are left out. Two looks at the clock for each batch are in.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Config, Ioat, Token, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Request, SgTable};
use vfio_dma::queue::SubmissionRing;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

const BATCHES: [usize; 3] = [1, 32, 256];
const RING: u32 = 1024;

fn ring(c: &mut Criterion) {
    let model = Embedded::new(IoatConfig::default()).expect("a model");
    let device = Device::open(model.attach().expect("nobody else")).expect("a device");
    let entries = device.coherent::<[u64; 8]>(RING as usize, 64).expect("memory");
    let mut ring = SubmissionRing::new(entries).expect("a ring");
    let mut group = c.benchmark_group("ring: fill, publish, reap");
    for batch in BATCHES {
        group.throughput(Throughput::Elements(batch as u64));
        let commands = vec![[64u64, 0x1000, 0x2000]; batch];
        // What a device would write, handed over instead of stored by another processor.
        let reap = |ring: &mut SubmissionRing<[u64; 8]>| {
            black_box(ring.publish());
            let last = ring.address(ring.producer().published() - 1).0;
            let slot = ring.slot_at(black_box(last)).expect("an entry");
            let producer = ring.producer_mut();
            let end = producer.behind_slot(slot).expect("the last one that was filled");
            let done = producer.complete_to(end).expect("published");
            assert_eq!(done.end - done.start, batch as u64);
        };
        group.bench_function(BenchmarkId::new("one by one", batch), |b| {
            b.iter(|| {
                for command in black_box(&commands) {
                    ring.push(command).expect("an empty ring");
                }
                reap(&mut ring);
            });
        });
        group.bench_function(BenchmarkId::new("from an iterator", batch), |b| {
            b.iter(|| {
                ring.fill_from(u32::MAX, black_box(&commands).iter());
                reap(&mut ring);
            });
        });
    }
    group.finish();
}

fn table(ioat: &Ioat, segments: usize, direction: Direction) -> SgTable {
    let buffer = Arc::new(ioat.allocate(&Request::new(segments * 128, direction)).expect("memory"));
    let ranges = (0..segments).map(|n| (Arc::clone(&buffer), n * 128, 64));
    SgTable::gather(ranges).expect("ranges inside the buffer")
}

fn channel(c: &mut Criterion) {
    let model = Embedded::new(IoatConfig::default()).expect("a model");
    let device = Device::open(model.attach().expect("nobody else")).expect("a device");
    let config = Config { wait: WaitMode::Poll, ring_size: RING, ..Config::default() };
    let ioat = Ioat::probe(device, config).expect("an I/OAT");
    let mut channel = ioat.channel(0).expect("a channel");
    let mut group = c.benchmark_group("ioat: submit and reap");
    for batch in BATCHES {
        group.throughput(Throughput::Elements(batch as u64));
        for (name, transfers) in [("one transfer", 1), ("a transfer each", batch)] {
            let segments = batch / transfers;
            let side = |direction| table(&ioat, segments, direction);
            let pair = |_| (side(Direction::ToDevice), side(Direction::FromDevice));
            let mut pairs: Vec<_> = (0..transfers).map(pair).collect();
            let mut tokens: Vec<Token> = Vec::with_capacity(transfers);
            group.bench_function(BenchmarkId::new(name, batch), |b| {
                b.iter_custom(|batches| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..batches {
                        // A marker behind each quarter of the ring, and behind the last.
                        let all = batch as u64 + (batch as u64).div_ceil(u64::from(RING / 4 - 1));
                        let ended = model.function().stats().descriptors + all;
                        let begin = Instant::now();
                        for (source, target) in pairs.drain(..) {
                            let token = channel.copy(source, target, WhenFull::Return);
                            tokens.push(token.expect("room in the ring"));
                        }
                        spent += begin.elapsed();
                        channel.issue().expect("a doorbell");
                        while model.function().stats().descriptors < ended {
                            std::thread::yield_now();
                        }
                        let begin = Instant::now();
                        channel.poll().expect("a channel that works");
                        for token in tokens.drain(..) {
                            let finished = channel.take(token).expect("its token");
                            let tables = finished.expect("it ended").into_result();
                            let tables = tables.expect("it went well");
                            pairs.extend(tables.source.map(|source| (source, tables.target)));
                        }
                        spent += begin.elapsed();
                    }
                    spent
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = ring, channel
}
criterion_main!(benches);
