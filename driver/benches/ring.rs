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
use vfio_dma::backend::Backend;
use vfio_dma::device::Device;
use vfio_dma::devices::ioat::{Config, Ioat, Token, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Iova, Placement, Request, SgTable};
use vfio_dma::ring::{Format, LastDone, Ring};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

const BATCHES: [usize; 3] = [1, 32, 256];
const RING: u32 = 1024;

/// 64 bytes, of which four words are written, linked; completion by address.
struct Linked;

impl Format for Linked {
    type Command = [u64; 3];
    type Words = [u64; 4];
    const SIZE: usize = 64;
    fn encode(&[first, source, target]: &[u64; 3], next: Iova) -> [u64; 4] {
        [first, source, target, next.0]
    }
    fn last_done(word: u64) -> LastDone {
        if word == 0 { LastDone::None } else { LastDone::Address(word) }
    }
}

fn ring(c: &mut Criterion) {
    let model = Embedded::new(IoatConfig::default()).expect("a model");
    let device = Device::open(model as Arc<dyn Backend>).expect("a device");
    let request = Request::new(Ring::<Linked>::bytes(RING), Direction::Bidirectional)
        .placement(Placement::Contiguous);
    let memory = device.allocate(&request).expect("memory");
    let mut ring = Ring::<Linked>::new(memory, RING).expect("a ring");
    let mut group = c.benchmark_group("ring: reserve, fill, publish, reap");
    for batch in BATCHES {
        group.throughput(Throughput::Elements(batch as u64));
        let commands = vec![[64, 0x1000, 0x2000]; batch];
        // What a device would write, handed over instead of stored by another processor.
        let reap = |ring: &mut Ring<Linked>, last: u64| {
            black_box(ring.publish());
            let word = ring.address(last).0;
            let done = ring.reap_as(black_box(word)).expect("the last one that was filled");
            assert_eq!(done.end - done.start, batch as u64);
        };
        group.bench_function(BenchmarkId::new("one by one", batch), |b| {
            b.iter(|| {
                let mut reserved = ring.reserve(batch as u32).expect("an empty ring");
                for command in black_box(&commands) {
                    reserved.fill(command).expect("as many as were reserved");
                }
                let last = reserved.commit().end - 1;
                reap(&mut ring, last);
            });
        });
        group.bench_function(BenchmarkId::new("from an iterator", batch), |b| {
            b.iter(|| {
                let mut reserved = ring.reserve(batch as u32).expect("an empty ring");
                reserved.fill_from(u64::MAX, black_box(&commands).iter().copied());
                let last = reserved.commit().end - 1;
                reap(&mut ring, last);
            });
        });
    }
    group.finish();
}

fn table(ioat: &Ioat, segments: usize, direction: Direction) -> SgTable {
    let buffer = Arc::new(ioat.allocate(segments * 128, direction).expect("memory"));
    let ranges = (0..segments).map(|n| (Arc::clone(&buffer), n * 128, 64));
    SgTable::gather(ranges).expect("ranges inside the buffer")
}

fn channel(c: &mut Criterion) {
    let model = Embedded::new(IoatConfig::default()).expect("a model");
    let device = Device::open(Arc::clone(&model) as Arc<dyn Backend>).expect("a device");
    let config = Config { wait: WaitMode::Poll, ring_size: RING, ..Config::default() };
    let ioat = Ioat::open(device, config).expect("an I/OAT");
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
                        let ended = model.function().record().descriptors + batch as u64;
                        let begin = Instant::now();
                        for (source, target) in pairs.drain(..) {
                            let token = channel.copy(source, target, WhenFull::Return);
                            tokens.push(token.expect("room in the ring"));
                        }
                        spent += begin.elapsed();
                        channel.issue().expect("a doorbell");
                        while model.function().record().descriptors < ended {
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
