//! This project's own driver for I/OAT, through a real kernel's VFIO and an emulated IOMMU,
//! on the model.

use std::sync::Arc;
use std::time::Duration;

use vfio_dma::backend::IrqKind;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Config, Ioat, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Pattern, Request, Slot, SlotPool};
use vfio_dma::queue::SlotPair;
use vfio_dma_model::ioat::IoatConfig;
use vfio_dma_tests::same_program::{Extent, run};
use vfio_dma_tests::{Machine, address, vfio_dma};
use vfio_dma_tools::vm::VmConfig;

use crate::support::{bind, open};
use crate::{examples, ioatdma};

/// Debian's kernel, one function with two channels.
pub(crate) fn machine() -> Machine {
    let model = IoatConfig { channels: 2, ..IoatConfig::default() };
    let vm = VmConfig { files: examples::files(), ..VmConfig::default() };
    ioatdma::machine(vm, vec![model])
}

/// 64 MiB of scattered pages are 16,384 mappings on each side: half of type1's limit.
const EXTENT: Extent = Extent { longest: 64 << 20, limit: Duration::from_secs(60) };

pub(crate) fn the_same_program_moves_the_same_bytes() {
    run(open(address(0)), &EXTENT);
}

fn copy(ioat: &Ioat, len: usize) {
    let sent = Pattern::new(len as u64);
    let mut source = ioat.allocate(&Request::new(len, Direction::ToDevice)).unwrap();
    let target = ioat.allocate(&Request::new(len, Direction::FromDevice)).unwrap();
    sent.fill(&mut source, 0, len, 0).unwrap();
    let mut channel = ioat.channel(0).unwrap();
    let token = channel.copy(source.into(), target.into(), WhenFull::Return).unwrap();
    let tables = channel.wait(token, Duration::from_secs(60)).unwrap().into_result().unwrap();
    sent.check(&tables.target.into_buffer().unwrap(), 0, len, 0).unwrap().unwrap();
}

/// The model's record, which the host checks when the guest has ended, has no access to
/// memory that is not mapped any more.
pub(crate) fn a_drop_and_a_panic_in_mid_transfer_stop_the_engine() {
    let ioat = Ioat::probe(open(address(0)), Config::default()).unwrap();
    let space = ioat.space().clone();
    for round in 0..4 {
        let len = 16 << 20;
        let source = ioat.allocate(&Request::new(len, Direction::ToDevice)).unwrap();
        let target = ioat.allocate(&Request::new(len, Direction::FromDevice)).unwrap();
        let mut channel = ioat.channel(0).unwrap();
        channel.copy(source.into(), target.into(), WhenFull::Return).unwrap();
        channel.issue().unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _channel = channel;
            if round % 2 == 1 {
                // A panic without its message.
                std::panic::resume_unwind(Box::new("in mid-transfer"));
            }
        }));
        assert_eq!(panicked.is_err(), round % 2 == 1);
        assert_eq!(space.usage().mappings, 0, "all is unmapped");
        copy(&ioat, 5000);
    }
}

fn slots(
    ioat: &Ioat,
    count: usize,
    len: usize,
    direction: Direction,
) -> (Arc<SlotPool>, Vec<Slot>) {
    let buffer = ioat.allocate(&Request::new(count * len, direction)).unwrap();
    SlotPool::new(buffer, len).unwrap()
}

fn pairs(sources: Vec<Slot>, targets: Vec<Slot>) -> Vec<SlotPair> {
    let pair = |(source, target)| SlotPair { source: Some(source), target: Some(target) };
    sources.into_iter().zip(targets).map(pair).collect()
}

/// Every slot goes there and comes back, laps of the ring on end, one by one and at once.
pub(crate) fn slots_move_their_bytes_and_come_back() {
    const SLOT: usize = 300;
    let config = Config { ring_size: 64, ..Config::default() };
    let ioat = Ioat::probe(open(address(0)), config).unwrap();
    let mut channel = ioat.channel(1).unwrap();
    let (from, sources) = slots(&ioat, 40, SLOT, Direction::ToDevice);
    let (to, targets) = slots(&ioat, 40, SLOT, Direction::FromDevice);
    let mut free = pairs(sources, targets);
    for round in 0..20u8 {
        for pair in &mut free {
            let source = pair.source.as_mut().unwrap();
            let byte = round ^ source.index() as u8;
            from.write(source, 0, &[byte; SLOT]).unwrap();
        }
        if round % 2 == 0 {
            channel
                .batch(&from, &to, |batch| {
                    free.drain(..).try_for_each(|pair| batch.copy_pair(pair, SLOT))
                })
                .unwrap()
                .unwrap();
        } else {
            assert_eq!(channel.copy_pairs(&from, &to, &mut free, SLOT).unwrap(), 40);
        }
        while free.len() < 40 {
            let reaped = channel.wait_reap(&mut free, Duration::from_secs(60)).unwrap();
            assert_eq!(reaped.failed, 0);
        }
        for SlotPair { source, target } in &free {
            let mut found = [0; SLOT];
            to.read(target.as_ref().unwrap(), 0, &mut found).unwrap();
            assert_eq!(found, [round ^ source.as_ref().unwrap().index() as u8; SLOT]);
        }
    }
    assert!(channel.detach_pools());
    assert_eq!(from.into_buffer().unwrap().len(), 40 * SLOT);
}

/// As [`a_drop_and_a_panic_in_mid_transfer_stop_the_engine`].
pub(crate) fn a_drop_and_a_panic_with_slots_in_flight_stop_the_engine() {
    let ioat = Ioat::probe(open(address(0)), Config::default()).unwrap();
    let space = ioat.space().clone();
    for round in 0..4 {
        let (from, sources) = slots(&ioat, 16, 1 << 20, Direction::ToDevice);
        let (to, targets) = slots(&ioat, 16, 1 << 20, Direction::FromDevice);
        let mut channel = ioat.channel(0).unwrap();
        let mut pairs = pairs(sources, targets);
        assert_eq!(channel.copy_pairs(&from, &to, &mut pairs, 1 << 20).unwrap(), 16);
        assert!(!channel.detach_pools(), "slots are in flight");
        drop((from, to));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _channel = channel;
            if round % 2 == 1 {
                // A panic without its message.
                std::panic::resume_unwind(Box::new("with slots in flight"));
            }
        }));
        assert_eq!(panicked.is_err(), round % 2 == 1);
        assert_eq!(space.usage().mappings, 0, "all is unmapped");
        copy(&ioat, 5000);
    }
}

pub(crate) fn every_way_of_waiting_ends() {
    let spin = Duration::from_micros(50);
    for wait in [
        WaitMode::Poll,
        WaitMode::Interrupt(IrqKind::MsiX),
        WaitMode::Interrupt(IrqKind::Msi),
        WaitMode::Interrupt(IrqKind::Intx),
        WaitMode::Adaptive { irq: IrqKind::MsiX, spin },
    ] {
        let config = Config { wait, ..Config::default() };
        let ioat = Ioat::probe(open(address(0)), config).unwrap();
        for round in 0..5 {
            copy(&ioat, 10_000 + round);
        }
    }
}

pub(crate) fn the_command_line_copies() {
    bind(address(0));
    let device = address(0).to_string();
    // Each page that is mapped alone is a round trip to the model here.
    for (placement, size, copied) in [
        ("auto", "16M", "copied 16 MiB"),
        ("contiguous", "16M", "copied 16 MiB"),
        ("sg", "1M", "copied 1 MiB"),
    ] {
        let said = vfio_dma(&[
            "run",
            &device,
            "--placement",
            placement,
            "--size",
            size,
            "--timeout",
            "60",
        ]);
        assert_eq!(said.status, 0, "{placement}: {said:#?}");
        let end = "every byte is right";
        assert!(said.out.contains(copied) && said.out.contains(end), "{said:#?}");
    }
}
