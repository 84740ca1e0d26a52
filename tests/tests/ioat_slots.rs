//! Operations between slots of pools on the embedded model: every shape, several channels, drop
//! and panic. The model's faults are in `ioat_slot_faults.rs`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, mpsc};
use std::thread::sleep;
use std::time::{Duration, Instant};

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{
    Channel, Config, Ioat, IoatError, SlotPart, TransferError, WaitMode,
};
use vfio_dma::dma::{Direction, Placement, Request, Slot, SlotError, SlotPool};
use vfio_dma::queue::{QueueError, SlotPair};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::function::PciFunction;
use vfio_dma_model::ioat::{Fault, FaultPlan, IoatConfig};

const LONG: Duration = Duration::from_secs(20);
const SLOT: usize = 512;

struct Bench {
    model: Arc<Embedded>,
    ioat: Ioat,
}

fn bench(model: IoatConfig, config: Config) -> Bench {
    let model = Embedded::new(model).unwrap();
    let device = Device::open(model.attach().unwrap()).unwrap();
    Bench { ioat: Ioat::probe(device, config).unwrap(), model }
}

fn polled(ring_size: u32) -> Config {
    Config { wait: WaitMode::Poll, ring_size, ..Config::default() }
}

impl Bench {
    fn pool(&self, slots: usize, direction: Direction) -> (Arc<SlotPool>, Vec<Slot>) {
        let buffer = self.ioat.allocate(&Request::new(slots * SLOT, direction)).unwrap();
        SlotPool::new(buffer, SLOT).unwrap()
    }

    /// What the device was refused: too late, or astray.
    fn refused(&self) -> u64 {
        let memory = self.model.function().stats().memory;
        memory.refused_not_mapped + memory.refused_unbacked + memory.refused_denied
    }
}

/// The bytes of a slot that was written with a seed.
fn bytes(seed: u64) -> Vec<u8> {
    (0..SLOT as u64).map(|n| (seed * 31 + n * 7 + n / 256) as u8).collect()
}

fn read(pool: &SlotPool, slot: &Slot) -> Vec<u8> {
    let mut found = vec![0; SLOT];
    pool.read(slot, 0, &mut found).unwrap();
    found
}

/// Waits until nothing is in flight, and expects that all of it went well.
fn reap(channel: &mut Channel, into: &mut Vec<SlotPair>) {
    while channel.slots_in_flight() > 0 {
        let reaped = channel.wait_reap(into, LONG).unwrap();
        assert!(reaped.failed == 0 && reaped.done > 0, "{reaped:?}, {:?}", channel.take_failed());
    }
    assert_eq!(channel.reap(into).unwrap().failed, 0);
}

fn indices(slots: impl IntoIterator<Item = Option<Slot>>) -> HashSet<u32> {
    slots.into_iter().flatten().map(|slot| slot.index()).collect()
}

#[test]
fn every_operation_moves_its_bytes_and_gives_its_slots_back_in_order() {
    for ring_size in [16, 64, 1024] {
        let bench = bench(IoatConfig::default(), polled(ring_size));
        let mut channel = bench.ioat.channel(0).unwrap();
        let (from, mut sources) = bench.pool(7, Direction::ToDevice);
        let (to, mut targets) = bench.pool(8, Direction::FromDevice);
        for round in 0..50u64 {
            for (n, slot) in (0..).zip(&mut sources) {
                from.write(slot, 0, &bytes(round + n)).unwrap();
            }
            let (mut s, mut t) = (sources.into_iter(), targets.into_iter());
            let (mut s, mut t) = (|| s.next().unwrap(), || t.next().unwrap());
            let filled = channel.batch(&from, &to, |batch| {
                batch.copy(s(), t(), SLOT)?;
                batch.copy_range((s(), 3), (t(), 100), 77)?;
                batch.fill(t(), 0x8877_6655_4433_2211, 20)?;
                batch.copy_pair(SlotPair { source: Some(s()), target: Some(t()) }, 1)
            });
            filled.unwrap().unwrap();
            let part = |(n, slot): (u32, Slot)| SlotPart { slot, offset: 10 * n, len: 20 * n };
            let mut gathered: Vec<_> = (1..).zip([s(), s(), s()]).map(part).collect();
            let mut back = Vec::new();
            // The smallest ring has room for three until then.
            reap(&mut channel, &mut back);
            let filled = channel.batch(&from, &to, |batch| batch.gather(&mut gathered, t(), 8));
            filled.unwrap().unwrap();
            let mut scattered: Vec<_> = (1..).zip([t(), t(), t()]).map(part).collect();
            reap(&mut channel, &mut back);
            let filled = channel.batch(&from, &to, |batch| batch.scatter(s(), 30, &mut scattered));
            filled.unwrap().unwrap();
            reap(&mut channel, &mut back);
            assert!(gathered.is_empty() && scattered.is_empty());
            // Which of them have both, one or the other.
            let shape: Vec<_> =
                back.iter().map(|p| (p.source.is_some(), p.target.is_some())).collect();
            let (both, source, target) = ((true, true), (true, false), (false, true));
            let expected = [both, both, target, both, source, source, both, target, target, both];
            assert_eq!(shape, expected);
            let found = |n: usize| read(&to, back[n].target.as_ref().unwrap());
            let wrote = |n: u64| bytes(round + n);
            assert_eq!(found(0), wrote(0));
            assert_eq!(found(1)[100..177], wrote(1)[3..80]);
            assert_eq!(found(2)[..10], [17, 34, 51, 68, 85, 102, 119, 136, 17, 34]);
            assert_eq!(found(3)[0], wrote(2)[0]);
            let whole = [&wrote(3)[10..30], &wrote(4)[20..60], &wrote(5)[30..90]].concat();
            assert_eq!(found(6)[8..128], whole);
            assert_eq!(found(7)[10..30], wrote(6)[30..50]);
            assert_eq!(found(8)[20..60], wrote(6)[50..90]);
            assert_eq!(found(9)[30..90], wrote(6)[90..150]);
            sources = back.iter_mut().filter_map(|pair| pair.source.take()).collect();
            targets = back.iter_mut().filter_map(|pair| pair.target.take()).collect();
            assert_eq!((sources.len(), targets.len()), (7, 8));
        }
        assert_eq!((channel.stats().recoveries, bench.refused()), (0, 0));
    }
}

#[test]
fn what_does_not_fit_is_refused_and_comes_back() {
    let bench = bench(IoatConfig::default(), polled(64));
    let mut channel = bench.ioat.channel(0).unwrap();
    let (from, mut sources) = bench.pool(100, Direction::ToDevice);
    let (to, mut targets) = bench.pool(100, Direction::FromDevice);
    let (both, mut others) = bench.pool(2, Direction::Bidirectional);
    let (mut s, mut t) = (|| sources.pop().unwrap(), || targets.pop().unwrap());
    let before = channel.stats();
    channel
        .batch(&from, &to, |batch| {
            let error = |refused: Result<(), vfio_dma::devices::ioat::SlotsRefused>| {
                let (error, slots) = refused.unwrap_err().into_parts();
                assert!(slots.source.is_some() || slots.target.is_some());
                error.to_string()
            };
            for len in [0, SLOT + 1, usize::MAX] {
                assert!(error(batch.copy(s(), t(), len)).contains("of a slot of 512 bytes"));
                assert!(error(batch.fill(t(), 0, len)).contains("of a slot of 512 bytes"));
            }
            for (a, b, len) in [(SLOT, 0, 1), (0, SLOT, 1), (500, 0, 13), (usize::MAX, 0, 2)] {
                let refused = batch.copy_range((s(), a), (t(), b), len);
                assert!(error(refused).contains("of a slot of 512 bytes"));
            }
            assert!(error(batch.copy(others.pop().unwrap(), t(), 1)).contains("another pool"));
            assert!(error(batch.copy(s(), others.pop().unwrap(), 1)).contains("another pool"));
            assert!(error(batch.copy(t(), s(), 1)).contains("another pool"));
            let half = SlotPair { source: Some(s()), target: None };
            assert!(error(batch.copy_pair(half, 1)).contains("lacks one"));
            // A quarter of the ring is 16: a marker and 15.
            for parts in [0, 16] {
                let part = |slot| SlotPart { slot, offset: 0, len: 1 };
                let mut parts: Vec<_> = (0..parts).map(|_| part(s())).collect();
                let count = parts.len();
                assert!(error(batch.gather(&mut parts, t(), 0)).contains("1 to 15"));
                assert_eq!(parts.len(), count);
            }
            let mut parts = vec![SlotPart { slot: s(), offset: 0, len: 300 }];
            assert!(error(batch.gather(&mut parts, t(), 213)).contains("300 bytes at offset 213"));
            assert_eq!(parts.len(), 1);
        })
        .unwrap();
    assert_eq!(channel.stats(), before, "nothing was told");
    // Pools that do not serve.
    let refused = channel.batch(&to, &from, |_| ()).unwrap_err();
    assert!(matches!(refused, IoatError::WrongDirection { .. }), "{refused}");
    let elsewhere = self::bench(IoatConfig::default(), polled(64));
    let (foreign, _) = elsewhere.pool(1, Direction::Bidirectional);
    let refused = channel.batch(&foreign, &to, |_| ()).unwrap_err();
    assert!(matches!(refused, IoatError::ForeignBuffer { .. }), "{refused}");
    let long = bench.ioat.allocate(&Request::new(2 << 20, Direction::Bidirectional)).unwrap();
    let (long, _) = SlotPool::new(long, 2 << 20).unwrap();
    let refused = channel.batch(&long, &to, |_| ()).unwrap_err();
    assert!(matches!(refused, IoatError::LongSlots { max_segment: 1_048_576, .. }), "{refused}");
    assert!(channel.batch(&both, &both, |_| ()).is_ok());
}

#[test]
fn a_ring_that_is_full_takes_what_it_has_room_for_and_the_rest_later() {
    for ring_size in [4, 5, 16, 64, 100] {
        let bench = bench(IoatConfig::default(), polled(ring_size));
        let mut channel = bench.ioat.channel(0).unwrap();
        let (from, mut sources) = bench.pool(300, Direction::ToDevice);
        let (to, targets) = bench.pool(300, Direction::FromDevice);
        for (n, slot) in (0..).zip(&mut sources) {
            from.write(slot, 0, &bytes(n)).unwrap();
        }
        let pair = |(source, target)| SlotPair { source: Some(source), target: Some(target) };
        let mut left: Vec<_> = sources.into_iter().zip(targets).map(pair).collect();
        let mut back = Vec::new();
        for round in 0.. {
            let before = left.len();
            if round % 2 == 0 {
                let taken = channel.copy_pairs(&from, &to, &mut left, SLOT).unwrap();
                assert_eq!(taken, before - left.len());
            } else {
                let one_by_one = channel.batch(&from, &to, |batch| {
                    while let Some(pair) = (!left.is_empty()).then(|| left.remove(0)) {
                        if let Err(refused) = batch.copy_pair(pair, SLOT) {
                            let (error, slots) = refused.into_parts();
                            let full = matches!(error, IoatError::Queue(QueueError::Full { .. }));
                            assert!(full, "{error}");
                            return left.insert(0, slots);
                        }
                    }
                });
                one_by_one.unwrap();
            }
            assert!(before == 0 || left.len() < before, "some of them have room");
            if left.is_empty() {
                break;
            }
            assert_eq!(channel.wait_reap(&mut back, LONG).unwrap().failed, 0);
        }
        reap(&mut channel, &mut back);
        let order: Vec<_> = back.iter().map(|p| p.source.as_ref().unwrap().index()).collect();
        assert_eq!(order, (0..300).collect::<Vec<_>>(), "ring of {ring_size}");
        for (n, pair) in (0..).zip(&back) {
            assert_eq!(read(&to, pair.target.as_ref().unwrap()), bytes(n));
        }
        if ring_size < 16 {
            // No room for three.
            continue;
        }
        // A pair that is refused stays, those before it are done.
        back[2].source = None;
        let taken = channel.copy_pairs(&from, &to, &mut back, SLOT);
        assert!(matches!(taken, Err(IoatError::Slot(SlotError::Missing))), "{taken:?}");
        assert_eq!((back.len(), back[0].source.is_none()), (298, true));
        assert_eq!(channel.slots_in_flight(), 2);
    }
}

#[test]
fn words_that_come_again_laps_later_give_no_slot_back() {
    for ring_size in [8, 64] {
        let faults = "double-completion=1ms@/11".parse().unwrap();
        let bench = bench(IoatConfig { faults, ..IoatConfig::default() }, polled(ring_size));
        let mut channel = bench.ioat.channel(0).unwrap();
        let (from, mut sources) = bench.pool(3, Direction::ToDevice);
        let (to, mut targets) = bench.pool(3, Direction::FromDevice);
        let begin = Instant::now();
        let mut seed = 0;
        // On a busy machine it takes longer until a word is seen that is old.
        let is_enough = |channel: &Channel| {
            let has_some = channel.stats().stale_completions > 0;
            begin.elapsed() > if has_some { Duration::from_secs(1) } else { LONG }
        };
        while !is_enough(&channel) {
            seed += 1;
            let mut back = Vec::new();
            for (mut source, target) in sources.drain(..).zip(targets.drain(..)) {
                let wrote = bytes(seed + u64::from(source.index()));
                from.write(&mut source, 0, &wrote).unwrap();
                // Each has a doorbell of its own.
                let copied = channel.batch(&from, &to, |batch| batch.copy(source, target, SLOT));
                copied.unwrap().unwrap();
            }
            while back.len() < 3 {
                let first = back.len();
                // A word that is older than the last hides it, until the device is asked.
                assert_eq!(channel.wait_reap(&mut back, LONG).unwrap().failed, 0);
                for pair in &back[first..] {
                    let expected = bytes(seed + u64::from(pair.source.as_ref().unwrap().index()));
                    assert_eq!(read(&to, pair.target.as_ref().unwrap()), expected);
                }
            }
            sources.extend(back.iter_mut().filter_map(|pair| pair.source.take()));
            targets.extend(back.iter_mut().filter_map(|pair| pair.target.take()));
        }
        let stats = channel.stats();
        assert!(stats.stale_completions > 0, "the case needs some: {stats:?}");
        assert_eq!(stats.recoveries, 0, "{stats:?}");
    }
}

#[test]
fn threads_with_a_channel_each_pass_slots_on() {
    let bench = bench(IoatConfig { channels: 4, ..IoatConfig::default() }, polled(128));
    // A slot goes through all channels, and each copies it to another slot of one pool.
    let (pool, slots) = bench.pool(64, Direction::Bidirectional);
    let mut slots = slots.into_iter();
    let rounds = 50;
    std::thread::scope(|scope| {
        let (first, mut input) = mpsc::channel::<Vec<Slot>>();
        for index in 0..4 {
            let (output, next) = mpsc::channel();
            let input = std::mem::replace(&mut input, next);
            let mut channel = bench.ioat.channel(index).unwrap();
            let (pool, mut own) = (Arc::clone(&pool), slots.by_ref().take(8).collect::<Vec<_>>());
            scope.spawn(move || {
                for sources in input {
                    channel
                        .batch(&pool, &pool, |batch| {
                            for (source, target) in sources.into_iter().zip(own.drain(..)) {
                                batch.copy(source, target, SLOT).unwrap();
                            }
                        })
                        .unwrap();
                    let mut back = Vec::new();
                    reap(&mut channel, &mut back);
                    own.extend(back.iter_mut().filter_map(|pair| pair.source.take()));
                    let targets = back.into_iter().filter_map(|pair| pair.target).collect();
                    if output.send(targets).is_err() {
                        break;
                    }
                }
            });
        }
        let mut sources: Vec<Slot> = slots.by_ref().take(8).collect();
        for round in 0..rounds {
            for (n, slot) in (0..).zip(&mut sources) {
                pool.write(slot, 0, &bytes(round + n)).unwrap();
            }
            first.send(sources).unwrap();
            sources = input.recv().unwrap();
            for (n, slot) in (0..).zip(&sources) {
                assert_eq!(read(&pool, slot), bytes(round + n));
            }
        }
        drop(first);
    });
    assert_eq!(bench.refused(), 0);
}

#[test]
fn a_drop_and_a_panic_with_slots_in_flight_leave_no_late_access() {
    const SIZE: usize = 1 << 20;
    let bench = bench(IoatConfig::default(), Config::default());
    let mut cut_short = 0;
    for round in 0..20 {
        let before = bench.model.function().stats().descriptors;
        let mut channel = bench.ioat.channel(0).unwrap();
        let pool = |direction| {
            SlotPool::new(bench.ioat.allocate(&Request::new(32 * SIZE, direction)).unwrap(), SIZE)
        };
        let ((from, sources), (to, targets)) =
            (pool(Direction::ToDevice).unwrap(), pool(Direction::FromDevice).unwrap());
        let pair = |(source, target)| SlotPair { source: Some(source), target: Some(target) };
        let mut pairs: Vec<_> = sources.into_iter().zip(targets).map(pair).collect();
        channel.copy_pairs(&from, &to, &mut pairs, SIZE).unwrap();
        assert!(!channel.detach_pools(), "slots are in flight");
        assert!(Arc::clone(&from).into_buffer().is_err());
        drop((from, to));
        sleep(Duration::from_micros(50 * round));
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _channel = channel;
            if round % 2 == 1 {
                resume_unwind(Box::new("with slots in flight"));
            }
        }));
        assert_eq!(panicked.is_err(), round % 2 == 1);
        assert_eq!(bench.ioat.space().usage().mappings, 0);
        assert_eq!(PciFunction::memory(bench.model.function()).ranges(), 0, "all is unmapped");
        let done = bench.model.function().stats().descriptors;
        sleep(Duration::from_millis(5));
        assert_eq!(bench.model.function().stats().descriptors, done, "the engine stands");
        assert_eq!((bench.refused(), bench.model.function().stats().errors), (0, 0));
        cut_short += u64::from(done - before < 33);
    }
    assert!(cut_short > 0, "nothing was stopped in the middle");
}

#[test]
fn a_panic_in_a_batch_leaves_the_channel_usable() {
    let bench = bench(IoatConfig::default(), polled(64));
    let mut channel = bench.ioat.channel(0).unwrap();
    let (from, mut sources) = bench.pool(20, Direction::ToDevice);
    let (to, mut targets) = bench.pool(20, Direction::FromDevice);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        channel.batch(&from, &to, |batch| {
            batch.copy(sources.pop().unwrap(), targets.pop().unwrap(), SLOT).unwrap();
            resume_unwind(Box::new("in a batch"));
        })
    }));
    assert!(panicked.is_err());
    let mut source = sources.pop().unwrap();
    from.write(&mut source, 0, &bytes(7)).unwrap();
    let target = targets.pop().unwrap();
    channel.batch(&from, &to, |batch| batch.copy(source, target, SLOT)).unwrap().unwrap();
    let mut back = Vec::new();
    reap(&mut channel, &mut back);
    assert_eq!(back.len(), 1, "what the panic left out does not come back");
    assert_eq!(read(&to, back[0].target.as_ref().unwrap()), bytes(7));
    assert_eq!(bench.refused(), 0);
}

#[test]
fn an_engine_that_cannot_be_stopped_keeps_its_slots_mapped() {
    let config = Config { command_timeout: Duration::from_millis(20), ..polled(64) };
    let bench = bench(IoatConfig { channels: 2, ..IoatConfig::default() }, config);
    let mut channel = bench.ioat.channel(0).unwrap();
    // While another channel is open, the function as a whole is not stopped.
    let other = bench.ioat.channel(1).unwrap();
    let (pool, mut slots) = bench.pool(8, Direction::Bidirectional);
    bench.model.function().inject(FaultPlan::at(1, Fault::ResetHang));
    channel
        .batch(&pool, &pool, |batch| {
            batch.copy(slots.pop().unwrap(), slots.pop().unwrap(), SLOT).unwrap();
        })
        .unwrap();
    assert!(channel.abort().is_err() && channel.is_lost());
    let mut back = Vec::new();
    let reaped = channel.reap(&mut back).unwrap();
    let failed = channel.take_failed();
    // Whether it was done before it was aborted, or not.
    assert_eq!((reaped.done + reaped.failed, failed.len()), (1, reaped.failed));
    assert!(failed.iter().all(|failed| failed.slots.is_none()));
    assert!(failed.iter().all(|failed| matches!(failed.error, TransferError::Lost(_))));
    let refused = channel.batch(&pool, &pool, |_| ()).unwrap_err();
    assert!(matches!(refused, IoatError::ChannelLost { .. }), "{refused}");
    drop((channel, other));
    assert_eq!(bench.refused(), 0);
}

#[test]
fn slots_lie_in_scattered_buffers_too() {
    let bench = bench(IoatConfig::default(), polled(64));
    let mut channel = bench.ioat.channel(0).unwrap();
    let pool = |direction| {
        let request = Request::new(8 << 12, direction).placement(Placement::ScatterGather);
        let buffer = bench.ioat.allocate(&request).unwrap();
        assert_eq!(buffer.segments().len(), 8);
        SlotPool::new(buffer, SLOT).unwrap()
    };
    let ((from, mut sources), (to, targets)) =
        (pool(Direction::ToDevice), pool(Direction::FromDevice));
    for (n, slot) in (0..).zip(&mut sources) {
        from.write(slot, 0, &bytes(n)).unwrap();
    }
    let pair = |(source, target)| SlotPair { source: Some(source), target: Some(target) };
    let mut pairs: Vec<_> = sources.into_iter().zip(targets).map(pair).collect();
    let mut back = Vec::new();
    while !pairs.is_empty() {
        channel.copy_pairs(&from, &to, &mut pairs, SLOT).unwrap();
        reap(&mut channel, &mut back);
    }
    for (n, pair) in (0..).zip(&back) {
        assert_eq!(read(&to, pair.target.as_ref().unwrap()), bytes(n));
    }
    let back = indices(back.into_iter().map(|pair| pair.source));
    assert_eq!(back, (0..64).collect());
}
