//! This project's own driver for I/OAT, through a real kernel's VFIO and an emulated IOMMU,
//! on the model.

use std::time::Duration;

use vfio_dma::backend::IrqKind;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Config, Ioat, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Pattern, Request};
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
