//! Every fault of the model against operations between slots: each of them ends once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{
    Channel, Config, Ioat, IoatError, OnError, SlotPart, TransferError, WaitMode, WhenFull,
};
use vfio_dma::dma::{Direction, Pattern, Request, Slot, SlotPool};
use vfio_dma::queue::SlotPair;
use vfio_dma_model::embedded::Embedded;
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

/// Runs operations with a fault somewhere among them; each must end once, well or with an error
/// of its own, and the channel must work afterwards unless it is lost.
fn survive(fault: Fault, at: u64, wait: WaitMode, on_error: OnError, mixed: bool) {
    let context = format!("{fault:?} at {at}, {wait:?}, {on_error:?}, mixed {mixed}");
    // Where a command ends it may take long, on a machine that does much else.
    let hangs = matches!(fault, Fault::ResetHang | Fault::SuspendHang | Fault::Exit);
    let command_timeout = Duration::from_millis(if hangs { 30 } else { 2000 });
    let config = Config { wait, on_error, ring_size: 64, command_timeout };
    let bench = bench(IoatConfig::default(), config);
    let mut channel = bench.ioat.channel(0).unwrap();
    let (from, mut sources) = bench.pool(40, Direction::ToDevice);
    let (to, mut targets) = bench.pool(40, Direction::FromDevice);
    for (slot, n) in sources.iter_mut().zip(0..) {
        from.write(slot, 0, &bytes(n)).unwrap();
    }
    let mut transfers = Vec::new();
    let mut transfer = |channel: &mut Channel| {
        let mut source = bench.ioat.allocate(&Request::new(700, Direction::ToDevice)).unwrap();
        Pattern::new(9).fill(&mut source, 0, 700, 0).unwrap();
        let target = bench.ioat.allocate(&Request::new(700, Direction::FromDevice)).unwrap();
        let token = channel.copy(source.into(), target.into(), WhenFull::Return).unwrap();
        transfers.push(token);
    };
    bench.model.function().inject(FaultPlan::at(at, fault));
    // Three doorbells: 6 copies; a gather of 5; 6 copies.
    let begin = Instant::now();
    let mut copies = |channel: &mut Channel, issue: bool| {
        channel
            .batch(&from, &to, |batch| {
                for _ in 0..6 {
                    batch.copy(sources.remove(0), targets.remove(0), SLOT).unwrap();
                }
                if !issue {
                    return;
                }
                let part = |slot| SlotPart { slot, offset: 4, len: 60 };
                let mut parts: Vec<_> = sources.drain(..5).map(part).collect();
                batch.gather(&mut parts, targets.remove(0), 0).unwrap();
            })
            .unwrap();
    };
    copies(&mut channel, false);
    if mixed {
        transfer(&mut channel);
    }
    copies(&mut channel, true);
    if mixed {
        transfer(&mut channel);
        channel.issue().unwrap();
    }
    let count = 17;
    let (mut back, mut failed) = (Vec::new(), Vec::new());
    if matches!(fault, Fault::ResetHang | Fault::SuspendHang) {
        let _ = channel.abort();
    }
    while back.len() + failed.len() < count {
        let limit = if fault == Fault::Exit { Duration::from_millis(100) } else { LONG };
        if let Err(error) = channel.wait_reap(&mut back, limit) {
            let is_late = fault == Fault::Exit && matches!(error, IoatError::Timeout { .. });
            assert!(is_late || channel.is_lost(), "{context}: {error}");
            if is_late {
                let _ = channel.abort();
            }
        }
        failed.extend(channel.take_failed());
        assert!(begin.elapsed() < Duration::from_secs(5), "{context}: {failed:?}");
    }
    assert_eq!(back.len() + failed.len(), count, "{context}");
    // Nobody is told twice, and no slot is there twice.
    let kept = failed.iter().filter(|failed| failed.slots.is_none()).count();
    let mut all: Vec<&SlotPair> = back.iter().collect();
    all.extend(failed.iter().filter_map(|failed| failed.slots.as_ref()));
    let sources: Vec<_> = all.iter().filter_map(|p| p.source.as_ref()).map(Slot::index).collect();
    assert_eq!(sources.iter().collect::<HashSet<_>>().len(), sources.len(), "{context}");
    assert_eq!(sources.len(), count - kept, "{context}");
    assert!(kept == 0 || channel.is_lost(), "{context}");
    let mut gathered = 0;
    for pair in &back {
        let source = pair.source.as_ref().unwrap().index();
        let Some(target) = &pair.target else { continue };
        if source == 16 {
            let whole: Vec<u8> = (12..17).flat_map(|n| bytes(n)[4..64].to_vec()).collect();
            let found = read(&to, target);
            // What failed of it is not there, and then its last part did not go well.
            assert_eq!(found[..300], whole, "{context}");
            gathered += 1;
        } else {
            assert_eq!(read(&to, target), bytes(source.into()), "{context}: slot {source}");
        }
    }
    let mut halted = 0;
    for failed in &failed {
        match (fault, &failed.error) {
            (Fault::Error(bits), TransferError::Halted { errors, len, done, .. }) => {
                halted += 1;
                assert_eq!(errors.bits(), bits.bits(), "{context}");
                assert!([60, SLOT as u64].contains(len) && done % 60 == 0, "{context}");
            }
            (Fault::Halt, TransferError::Halted { .. }) => halted += 1,
            (Fault::Error(_) | Fault::Halt, TransferError::Behind) => {}
            (Fault::Gone | Fault::Exit | Fault::ResetHang, TransferError::Lost(_))
            | (Fault::Exit | Fault::SuspendHang | Fault::ResetHang, TransferError::Aborted) => {}
            (_, error) => panic!("{context}: {error}"),
        }
    }
    if matches!(fault, Fault::Error(_) | Fault::Halt) && !mixed {
        // 6 and a marker, 11 and a marker.
        let (expected, behind) = match (at, on_error) {
            (7 | 19, _) => (0, 0),
            (1..=6, OnError::RunTheRest) | (8..=13, OnError::RunTheRest) => (1, 0),
            // The rest of the gather.
            (_, OnError::RunTheRest) => (1, 18 - at),
            (1..=6, OnError::FailTheRest) => (1, 17 - at),
            (_, OnError::FailTheRest) => (1, 18 - at),
        };
        assert_eq!((halted, failed.len() as u64 - halted), (expected, behind), "{context}");
        assert_eq!(
            gathered,
            u64::from(failed.iter().all(|f| {
                f.slots.as_ref().is_none_or(|p| p.source.as_ref().is_none_or(|s| s.index() < 12))
            })),
            "{context}"
        );
    }
    for token in transfers {
        let finished = channel.take(token).unwrap();
        let waited = || channel.wait(token, LONG).ok();
        let Some(finished) = finished.or_else(waited) else { continue };
        if let Ok(tables) = finished.into_result() {
            let target = &tables.target.buffers()[0];
            Pattern::new(9).check(target, 0, 700, 0).unwrap().unwrap();
        }
    }
    if !channel.is_lost() && fault != Fault::Exit {
        bench.model.function().inject(FaultPlan::default());
        back.retain(|pair| pair.source.is_some() && pair.target.is_some());
        let count = back.len();
        if count > 0 {
            channel.copy_pairs(&from, &to, &mut back, SLOT).unwrap();
            reap(&mut channel, &mut back);
            assert_eq!(back.len(), count, "{context}");
        }
        assert!(channel.detach_pools(), "{context}");
        assert_eq!(from.into_buffer().unwrap().len(), 40 * SLOT);
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
fn every_fault_of_the_model_ends_every_operation_once() {
    for fault in faults() {
        // The 7th and the 19th are markers; from the 14th on it is a gather.
        for at in [1, 6, 7, 8, 14, 16, 18, 19] {
            for (wait, on_error, mixed) in [
                (WaitMode::Poll, OnError::RunTheRest, false),
                (WaitMode::Interrupt(IrqKind::MsiX), OnError::FailTheRest, false),
                (WaitMode::Poll, OnError::RunTheRest, true),
            ] {
                survive(fault, at, wait, on_error, mixed);
            }
        }
    }
    for fault in [Fault::ResetHang, Fault::SuspendHang] {
        survive(fault, 1, WaitMode::Poll, OnError::RunTheRest, false);
    }
}
