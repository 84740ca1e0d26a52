//! LitePCIe's gateware, simulated, through a real kernel's VFIO (type1) and an emulated IOMMU.

use std::sync::Arc;
use std::time::Duration;

use vfio_dma::devices::PciDriver;
use vfio_dma::devices::litepcie::{Config, LitePcie};
use vfio_dma::dma::{Direction, Pattern, Request, SgTable};
use vfio_dma_tests::same_program::{Extent, run_in_units};
use vfio_dma_tests::{Dice, Machine, address, vfio_dma};
use vfio_dma_tools::rtl::RtlConfig;
use vfio_dma_tools::rtl::litepcie::Options;
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm::VmConfig;

use crate::support::{bind, open};

/// Bytes of a word of the card's bus.
const WORD: usize = 16;
const LONG: Duration = Duration::from_secs(120);

/// Debian's kernel, one card.
pub(crate) fn machine() -> Machine {
    let card = RtlConfig::litepcie(Options::default()).start();
    let served = Served::of(card.unwrap_or_else(|error| panic!("{error}"))).unwrap();
    let vm = VmConfig { devices: vec![served.device()], ..VmConfig::default() };
    let verify = move || {
        let stats = served.function().stats();
        let wrong = [stats.all_malformed(), stats.faults, stats.host_timeouts];
        match wrong {
            [0, 0, 0] if stats.bytes_written > 0 => Ok(()),
            _ => Err(format!("the card, or the driver, did what it should not: {stats:#?}")),
        }
    };
    Machine { vm, verify: Box::new(verify) }
}

pub(crate) fn the_same_program_moves_the_same_bytes() {
    run_in_units(open(address(0)), &Extent { longest: 1 << 20, limit: LONG }, WORD);
}

pub(crate) fn sixteen_mebibytes_arrive_in_segments_of_any_size() {
    let len = 16 << 20;
    let mut card = LitePcie::probe(open(address(0)), Config::default()).unwrap();
    let mut dice = Dice::seeded();
    let mut source = card.allocate(&Request::new(len, Direction::ToDevice)).unwrap();
    let target = card.allocate(&Request::new(len, Direction::FromDevice)).unwrap();
    Pattern::new(1).fill(&mut source, 0, len, 0).unwrap();
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < len {
        let size = (128 << dice.roll(14)).min(len - at);
        pieces.push((at, size));
        at += size;
    }
    for n in (1..pieces.len()).rev() {
        pieces.swap(n, dice.roll(n as u64 + 1) as usize);
    }
    let table = |buffer| {
        let buffer = Arc::new(buffer);
        SgTable::gather(pieces.iter().map(|&(at, len)| (Arc::clone(&buffer), at, len))).unwrap()
    };
    println!("{} segments", pieces.len());
    let (_, target) = card.copy(0, table(source), table(target), LONG).unwrap();
    // Both sides in the same order: every byte where it was.
    let target = target.into_buffer().unwrap();
    Pattern::new(1).check(&target, 0, len, 0).unwrap().unwrap();
}

pub(crate) fn the_command_line_copies() {
    bind(address(0));
    let device = address(0).to_string();
    let said = vfio_dma(&["run", &device, "--placement", "sg", "--size", "1M", "--timeout", "60"]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.out.contains("litepcie") && said.out.contains("every byte is right"), "{said:#?}");
}
