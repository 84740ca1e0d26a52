//! This project's own driver for I/OAT, through a real kernel's VFIO and an emulated IOMMU,
//! on the model.

use std::time::Duration;

use vfio_dma::backend::IrqKind;
use vfio_dma::devices::ioat::{Config, Ioat, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Pattern, Placement, Request, SgTable};
use vfio_dma_model::ioat::IoatConfig;
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

/// Copies between ranges of two buffers, and verifies what was copied, what lies around it,
/// and that the source is as it was.
fn copy(ioat: &Ioat, placement: Placement, len: usize, from: usize, to: usize) {
    let (size, seed) = (len + from.max(to) + 5, len as u64);
    let place = |direction| ioat.place(&Request::new(size, direction).placement(placement));
    let mut source = place(Direction::ToDevice).unwrap();
    let mut target = place(Direction::FromDevice).unwrap();
    if placement == Placement::ScatterGather && size > 8192 {
        assert!(source.segments().len() > 1, "scattered");
    }
    let (sent, old) = (Pattern::new(seed), Pattern::new(!seed));
    sent.fill(&mut source, 0, size, 0).unwrap();
    old.fill(&mut target, 0, size, 0).unwrap();
    let mut channel = ioat.channel(0).unwrap();
    let (source, target) =
        (SgTable::range(source, from, len).unwrap(), SgTable::range(target, to, len).unwrap());
    let token = channel.copy(source, target, WhenFull::Return).unwrap();
    let tables = channel.wait(token, Duration::from_secs(60)).unwrap().into_result().unwrap();
    let source = tables.source.unwrap().into_buffer().unwrap();
    let target = tables.target.into_buffer().unwrap();
    sent.check(&source, 0, size, 0).unwrap().unwrap();
    old.check(&target, 0, to, 0).unwrap().unwrap();
    sent.check(&target, to, len, from as u64).unwrap().unwrap();
    old.check(&target, to + len, size - to - len, (to + len) as u64).unwrap().unwrap();
}

pub(crate) fn every_placement_moves_the_same_bytes() {
    let ioat = Ioat::open(open(address(0)), Config::default()).unwrap();
    assert_eq!((ioat.version(), ioat.channels()), ((3, 2), 2));
    for placement in [Placement::Auto, Placement::Contiguous, Placement::ScatterGather] {
        for (len, from, to) in
            [(1, 0, 0), (63, 1, 64), (4096, 4095, 1), (100_000, 13, 4099), (4 << 20, 7, 0)]
        {
            copy(&ioat, placement, len, from, to);
        }
    }
    assert_eq!(ioat.device().space().usage().mappings, 0, "all unmapped");
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
        let ioat = Ioat::open(open(address(0)), config).unwrap();
        for round in 0..5 {
            copy(&ioat, Placement::Auto, 10_000 + round, round, 0);
        }
    }
}

pub(crate) fn the_command_line_copies() {
    bind(address(0));
    let device = address(0).to_string();
    // Each page that is mapped alone is a round trip to the model here.
    for (placement, size, bytes) in
        [("auto", "16M", "16777216"), ("contiguous", "16M", "16777216"), ("sg", "1M", "1048576")]
    {
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
        assert!(said.out.contains(bytes) && said.out.contains(end), "{said:#?}");
    }
}
