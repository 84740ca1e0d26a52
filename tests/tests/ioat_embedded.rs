//! The I/OAT driver on the embedded model: every way of waiting, every fault.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{
    Channel, Config, Finished, Ioat, IoatError, OnError, SharedChannel, Token, TransferError,
    WaitMode, WhenFull,
};
use vfio_dma::dma::{Buffer, Direction, Pattern, Request, SgTable};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::{Fault, FaultPlan, IoatConfig, Personality};
use vfio_dma_tests::Dice;

const LONG: Duration = Duration::from_secs(20);

struct Bench {
    model: Arc<Embedded>,
    ioat: Ioat,
}

fn bench(model: IoatConfig, config: Config) -> Bench {
    let model = Embedded::new(model).unwrap();
    let device = Device::open(model.attach().unwrap()).unwrap();
    Bench { ioat: Ioat::probe(device, config).unwrap(), model }
}

fn polled() -> Config {
    Config { wait: WaitMode::Poll, ..Config::default() }
}

impl Bench {
    fn channel(&self) -> Channel {
        self.ioat.channel(0).unwrap()
    }

    fn buffer(&self, len: usize) -> Buffer {
        self.ioat.allocate(&Request::new(len, Direction::Bidirectional)).unwrap()
    }

    /// What the device was refused: too late, or astray.
    fn refused(&self) -> u64 {
        let memory = self.model.function().stats().memory;
        memory.refused_not_mapped + memory.refused_unbacked + memory.refused_denied
    }
}

/// One copy, with guards on both sides of the target.
struct Copy {
    len: usize,
    source_offset: usize,
    target_offset: usize,
    seed: u64,
}

const GUARD: usize = 256;

impl Copy {
    fn tables(&self, bench: &Bench, segment: Option<usize>) -> (SgTable, SgTable) {
        let (len, from, to) = (self.len, self.source_offset, self.target_offset);
        let mut source = bench.buffer(from + len + GUARD);
        Pattern::new(self.seed).fill(&mut source, 0, from + len + GUARD, 0).unwrap();
        let mut target = bench.buffer(to + len + GUARD);
        Pattern::new(!self.seed).fill(&mut target, 0, to + len + GUARD, 0).unwrap();
        let Some(segment) = segment else {
            let source = SgTable::range(source, from, len).unwrap();
            return (source, SgTable::range(target, to, len).unwrap());
        };
        // Both sides in pieces, last first: no two are neighbours, and all arrive as one would.
        let mut ranges: Vec<(usize, usize)> =
            (0..len).step_by(segment).map(|at| (at, segment.min(len - at))).collect();
        ranges.reverse();
        let gather = |buffer: Buffer, offset: usize| {
            let buffer = Arc::new(buffer);
            let pieces = ranges.iter().map(|&(at, len)| (Arc::clone(&buffer), offset + at, len));
            SgTable::gather(pieces).unwrap()
        };
        (gather(source, from), gather(target, to))
    }

    /// The source is as it was, the target has it, and the guards are untouched.
    fn check(&self, finished: Finished) {
        let tables = finished.into_result().unwrap();
        let source = &tables.source.as_ref().unwrap().buffers()[0];
        let target = &tables.target.buffers()[0];
        let Copy { len, source_offset: from, target_offset: to, seed } = *self;
        let (copied, guard) = (Pattern::new(seed), Pattern::new(!seed));
        copied.check(source, 0, from + len + GUARD, 0).unwrap().unwrap();
        copied.check(target, to, len, from as u64).unwrap().unwrap();
        guard.check(target, 0, to, 0).unwrap().unwrap();
        guard.check(target, to + len, GUARD, (to + len) as u64).unwrap().unwrap();
    }
}

#[test]
fn bytes_arrive_on_both_devices_by_every_way_of_waiting() {
    let spin = Duration::from_micros(20);
    let modes = [
        WaitMode::Poll,
        WaitMode::Interrupt(IrqKind::MsiX),
        WaitMode::Interrupt(IrqKind::Msi),
        WaitMode::Interrupt(IrqKind::Intx),
        WaitMode::Adaptive { irq: IrqKind::MsiX, spin },
    ];
    let mut dice = Dice::seeded();
    for personality in [Personality::Skylake, Personality::IceLake] {
        for wait in modes {
            let bench = bench(
                IoatConfig { personality, ..IoatConfig::default() },
                Config { wait, ring_size: 64, ..Config::default() },
            );
            let mut channel = bench.channel();
            let begin = Instant::now();
            for len in [1, 63, 4097, 65_537, (1 << 20) + 1] {
                for segment in [None, Some(4096), Some(1 << 20)] {
                    let copy = Copy {
                        len,
                        source_offset: dice.roll(5000) as usize,
                        target_offset: dice.roll(5000) as usize,
                        seed: dice.roll(1 << 30),
                    };
                    let (source, target) = copy.tables(&bench, segment);
                    let token = channel.copy(source, target, WhenFull::Return).unwrap();
                    copy.check(channel.wait(token, LONG).unwrap());
                }
            }
            let stats = channel.stats();
            assert_eq!(stats.recoveries, 0, "{wait:?}");
            if matches!(wait, WaitMode::Interrupt(_)) {
                assert!(stats.interrupts > 0, "{wait:?}: {stats:?} in {:?}", begin.elapsed());
            }
        }
    }
}

#[test]
fn eight_channels_work_at_once() {
    let bench = bench(IoatConfig { channels: 8, ..IoatConfig::default() }, Config::default());
    std::thread::scope(|scope| {
        for index in 0..8 {
            let bench = &bench;
            scope.spawn(move || {
                let mut channel = bench.ioat.channel(index).unwrap();
                for seed in 0..20 {
                    let copy =
                        Copy { len: 100_000, source_offset: 1, target_offset: 7, seed: seed + 1 };
                    let (source, target) = copy.tables(bench, Some(4096));
                    let token = channel.copy(source, target, WhenFull::Return).unwrap();
                    copy.check(channel.wait(token, LONG).unwrap());
                }
            });
        }
    });
    assert_eq!(bench.refused(), 0);
}

#[test]
fn a_fill_goes_on_from_segment_to_segment() {
    let bench = bench(IoatConfig::default(), polled());
    let mut channel = bench.channel();
    let buffer = Arc::new(bench.buffer(10_000));
    let ranges = [(9000, 13), (3, 1), (500, 4099)];
    let target = SgTable::gather(ranges.map(|(at, len)| (Arc::clone(&buffer), at, len))).unwrap();
    let pattern = 0x8877_6655_4433_2211_u64;
    let token = channel.fill(target, pattern, WhenFull::Return).unwrap();
    channel.wait(token, LONG).unwrap().into_result().unwrap();
    let mut bytes = pattern.to_le_bytes().into_iter().cycle();
    for (at, len) in ranges {
        let mut found = vec![0; len];
        buffer.read(at, &mut found).unwrap();
        let expected: Vec<u8> = bytes.by_ref().take(len).collect();
        assert_eq!(found, expected, "at {at}");
    }
}

/// Runs transfers with a fault somewhere among them; each must arrive or fail with its own
/// error, once, and the channel must work afterwards unless it is lost.
fn survive(fault: Fault, at: u64, wait: WaitMode, on_error: OnError) {
    let context = format!("{fault:?} at {at}, {wait:?}, {on_error:?}");
    let bench = bench(
        IoatConfig::default(),
        Config { wait, on_error, ring_size: 256, command_timeout: Duration::from_millis(30) },
    );
    let mut channel = bench.channel();
    bench.model.function().inject(FaultPlan::at(at, fault));
    let begin = Instant::now();
    let copies: Vec<Copy> = (0..8)
        .map(|seed| Copy { len: 2_500, source_offset: 3, target_offset: 5, seed: seed + 1 })
        .collect();
    let tokens: Vec<Token> = copies
        .iter()
        .map(|copy| {
            let (source, target) = copy.tables(&bench, Some(512));
            channel.copy(source, target, WhenFull::Return).unwrap()
        })
        .collect();
    if matches!(fault, Fault::ResetHang | Fault::SuspendHang) {
        channel.issue().unwrap();
        let _ = channel.abort();
    }
    let mut failed = 0;
    for (copy, token) in copies.iter().zip(tokens) {
        // A server that has gone answers to nothing, and is told from a slow one by time.
        let limit = if fault == Fault::Exit { Duration::from_millis(100) } else { LONG };
        let finished = match channel.wait(token, limit) {
            Err(IoatError::Timeout { .. }) if fault == Fault::Exit => {
                // Its registers may answer or not; the transfer ends either way.
                let _ = channel.abort();
                channel.take(token).unwrap().unwrap()
            }
            waited => waited.unwrap_or_else(|error| panic!("{context}: {error}")),
        };
        match &finished.result {
            Ok(()) => copy.check(finished),
            Err(error) => {
                failed += 1;
                match (fault, error) {
                    (Fault::Error(bits), TransferError::Halted { errors, .. }) => {
                        assert_eq!(errors.bits(), bits.bits(), "{context}");
                    }
                    (Fault::Halt, TransferError::Halted { errors, piece, done, .. }) => {
                        assert!(errors.is_empty(), "{context}");
                        // 2,500 bytes in 512s are 5 descriptors, the short one first.
                        assert_eq!(*piece, (at - 1) % 5, "{context}");
                        assert_eq!(
                            *done,
                            (2_500 % 512) * (*piece).min(1) + 512 * piece.saturating_sub(1),
                            "{context}"
                        );
                    }
                    (Fault::Error(_) | Fault::Halt, TransferError::Behind) => {
                        assert_eq!(on_error, OnError::FailTheRest, "{context}")
                    }
                    (Fault::Gone | Fault::Exit | Fault::ResetHang, TransferError::Lost(_))
                    | (Fault::Exit, TransferError::Aborted)
                    | (Fault::SuspendHang | Fault::ResetHang, TransferError::Aborted) => {}
                    // Whatever is wrong with a completion or an interrupt is made up for.
                    (_, error) => panic!("{context}: {error}"),
                }
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(5), "{context}");
    }
    if matches!(fault, Fault::Error(_) | Fault::Halt) {
        let expected = match (on_error, at) {
            // What carries no data fails nobody.
            (_, 41..) => 0,
            (OnError::RunTheRest, _) => 1,
            (OnError::FailTheRest, _) => 8 - (at - 1) / 5,
        };
        assert_eq!(failed, expected, "{context}");
    }
    if !channel.is_lost() && fault != Fault::Exit {
        bench.model.function().inject(FaultPlan::default());
        let copy = Copy { len: 100_000, source_offset: 9, target_offset: 1, seed: 99 };
        let (source, target) = copy.tables(&bench, Some(4096));
        let token = channel.copy(source, target, WhenFull::Return).unwrap();
        copy.check(channel.wait(token, LONG).unwrap());
    }
    drop(channel);
    assert_eq!(bench.refused(), 0, "{context}");
}

/// Every fault that the grammar names.
fn faults() -> Vec<Fault> {
    let names = [
        "halt",
        "no-completion",
        "late-completion=5ms",
        "late-completion=50ms",
        "double-completion=1ms",
        "torn-completion=1ms",
        "stale-completion",
        "astray-completion",
        "no-interrupt",
        "spurious-interrupt",
        "double-interrupt",
        "gone",
        "exit",
    ];
    let named = names.map(|name| name.parse::<FaultPlan>().unwrap());
    let bits = (0..=18).map(|bit| format!("chanerr={bit}").parse::<FaultPlan>().unwrap());
    named.into_iter().chain(bits).map(|plan| plan.rules()[0].fault).collect()
}

#[test]
fn every_fault_of_the_model_ends_in_a_typed_error_or_a_recovery() {
    let adaptive = WaitMode::Adaptive { irq: IrqKind::MsiX, spin: Duration::from_micros(50) };
    for fault in faults() {
        // The 41st is the one that tells.
        for at in [1, 5, 18, 40, 41] {
            for (wait, on_error) in [
                (WaitMode::Poll, OnError::RunTheRest),
                (WaitMode::Interrupt(IrqKind::MsiX), OnError::FailTheRest),
                (adaptive, OnError::RunTheRest),
            ] {
                survive(fault, at, wait, on_error);
            }
        }
    }
    for fault in [Fault::ResetHang, Fault::SuspendHang] {
        survive(fault, 1, WaitMode::Poll, OnError::RunTheRest);
    }
}

#[test]
fn a_reset_that_hangs_is_mended_by_opening_the_device_anew() {
    let bench = bench(
        IoatConfig::default(),
        Config { command_timeout: Duration::from_millis(20), ..polled() },
    );
    let mut channel = bench.channel();
    bench.model.function().inject(FaultPlan::at(1, Fault::ResetHang));
    assert!(matches!(channel.abort(), Err(IoatError::Timeout { .. })));
    assert!(channel.is_lost());
    drop(channel);
    let Bench { model, ioat } = bench;
    drop(ioat);
    let device = Device::open(model.attach().unwrap()).unwrap();
    let ioat = Ioat::probe(device, polled()).unwrap();
    let bench = Bench { model, ioat };
    let copy = Copy { len: 5000, source_offset: 0, target_offset: 0, seed: 1 };
    let (source, target) = copy.tables(&bench, None);
    let mut channel = bench.channel();
    let token = channel.copy(source, target, WhenFull::Return).unwrap();
    copy.check(channel.wait(token, LONG).unwrap());
}

#[test]
fn futures_end_on_an_executor_of_ten_lines() {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    fn block_on<F: Future>(future: F) -> F::Output {
        let waker = Arc::new(Unpark(std::thread::current())).into();
        let mut future = std::pin::pin!(future);
        loop {
            match future.as_mut().poll(&mut std::task::Context::from_waker(&waker)) {
                std::task::Poll::Ready(output) => return output,
                std::task::Poll::Pending => std::thread::park(),
            }
        }
    }
    for wait in [WaitMode::Interrupt(IrqKind::MsiX), WaitMode::Poll] {
        let bench = bench(IoatConfig::default(), Config { wait, ..Config::default() });
        let shared = SharedChannel::new(bench.channel()).unwrap();
        for seed in 0..20 {
            let copies =
                [1, 2, 3].map(|n| Copy { len: 50_000, source_offset: n, target_offset: 0, seed });
            let futures = copies.each_ref().map(|copy| {
                let (source, target) = copy.tables(&bench, Some(4096));
                shared.copy(source, target).unwrap()
            });
            for (copy, future) in copies.iter().zip(futures) {
                copy.check(block_on(future).unwrap());
            }
        }
        // A device that dies wakes its tasks too.
        bench.model.function().inject(FaultPlan::at(3, Fault::Gone));
        let copy = Copy { len: 50_000, source_offset: 0, target_offset: 0, seed: 1 };
        let (source, target) = copy.tables(&bench, Some(4096));
        let finished = block_on(shared.copy(source, target).unwrap()).unwrap();
        assert!(matches!(finished.result, Err(TransferError::Lost(_))));
    }
}

#[test]
fn a_batch_costs_one_doorbell_and_polling_costs_no_register_read() {
    let bench = bench(IoatConfig::default(), polled());
    let mut channel = bench.channel();
    let mut tables: Vec<_> = (0..32)
        .map(|seed| Copy { len: 64, source_offset: 0, target_offset: 0, seed }.tables(&bench, None))
        .collect();
    let mut tokens = Vec::with_capacity(32);
    let before = bench.model.function().stats();
    // 99,000 descriptors: the doorbell wraps.
    for _ in 0..3000 {
        for (source, target) in tables.drain(..) {
            tokens.push(channel.copy(source, target, WhenFull::Return).unwrap());
        }
        channel.issue().unwrap();
        while channel.in_flight() > 0 {
            channel.poll().unwrap();
        }
        for token in tokens.drain(..) {
            let done = channel.take(token).unwrap().unwrap().into_result().unwrap();
            tables.push((done.source.unwrap(), done.target));
        }
    }
    let after = bench.model.function().stats();
    assert_eq!(after.doorbells - before.doorbells, 3000);
    assert_eq!(after.register_writes - before.register_writes, 3000);
    assert_eq!(after.register_reads, before.register_reads);
    // A marker for each doorbell.
    assert_eq!(after.descriptors - before.descriptors, 99_000);
}
