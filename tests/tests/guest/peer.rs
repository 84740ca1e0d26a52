//! DMA of one device into the memory of another: a BAR that is plain memory.

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use vfio_dma::backend::vfio::Access;
use vfio_dma::backend::{BackendError, DmaAccess, Region};
use vfio_dma::device::{Device, DeviceError};
use vfio_dma::dma::{Direction, DmaError, DmaLimits, PeerMapping, Request};
use vfio_dma::mmio::{Bar, ReadWrite, Reg};
use vfio_dma::session::Session;
use vfio_dma_tests::address;
use vfio_dma_tools::vm::{Kernel, VmConfig};

use crate::removal::{LIMIT, unbind};
use crate::support::{bind, open_through};

/// edu, and a card whose BAR 2 is memory.
pub(crate) fn machine() -> VmConfig {
    let own = ["-object", "memory-backend-ram,share=on,id=card,size=1M"];
    VmConfig {
        devices: ["edu", "ivshmem-plain,memdev=card"].map(Into::into).into(),
        qemu_args: own.map(Into::into).into(),
        ..VmConfig::default()
    }
}

pub(crate) fn full() -> VmConfig {
    VmConfig { kernel: Kernel::Full, ..machine() }
}

const MEMORY: u8 = 2;
const SIZE: u64 = 1 << 20;

const SOURCE: Reg<u64, ReadWrite> = Reg::at(0x80);
const TARGET: Reg<u64, ReadWrite> = Reg::at(0x88);
const COUNT: Reg<u64, ReadWrite> = Reg::at(0x90);
const COMMAND: Reg<u64, ReadWrite> = Reg::at(0x98);
const START: u64 = 1;
const TO_MEMORY: u64 = 2;
/// edu's own memory.
const OWN: u64 = 0x4_0000;

struct Engine {
    device: Device,
    bar: Bar,
}

impl Engine {
    fn new(mut device: Device) -> Engine {
        let limits = DmaLimits { address_mask: (1 << 28) - 1, ..DmaLimits::default() };
        device.set_dma_limits(limits).unwrap();
        device.set_bus_master(true).unwrap();
        let bar = device.bar(0).unwrap();
        Engine { device, bar }
    }

    fn run(&self, source: u64, target: u64, len: usize, command: u64) {
        self.bar.set(SOURCE, source).unwrap();
        self.bar.set(TARGET, target).unwrap();
        self.bar.set(COUNT, len as u64).unwrap();
        self.bar.set(COMMAND, command | START).unwrap();
        let begin = Instant::now();
        while self.bar.get(COMMAND).unwrap() & START != 0 {
            assert!(begin.elapsed() < 5 * LIMIT, "the transfer does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// From one device address to another.
    fn copy(&self, source: u64, target: u64, len: usize) {
        self.run(source, OWN, len, 0);
        self.run(OWN, target, len, TO_MEMORY);
    }
}

fn two(access: Access) -> (Engine, Device, Session) {
    bind(address(0));
    bind(address(1));
    let mut session = Session::through(access);
    let engine = Engine::new(session.open(address(0)).unwrap());
    let card = session.open(address(1)).unwrap();
    (engine, card, session)
}

fn lend(engine: &Engine, card: &Device) -> PeerMapping {
    card.lend_to(&engine.device, MEMORY, 0x1000..SIZE, DmaAccess::ReadWrite).unwrap()
}

/// Memory of this process to the card's, and back to other memory; the card's is read through its
/// BAR, and what lies around the bytes is as it was.
fn moves_both_ways(access: Access) {
    let (engine, card, _session) = two(access);
    let memory = card.bar(MEMORY).unwrap();
    for at in (0..0x4000).step_by(8) {
        memory.write(at, !at).unwrap();
    }
    let space = engine.device.space().clone();
    let before = space.usage();
    let lent = lend(&engine, &card);
    assert_eq!(lent.segment().len as u64, SIZE - 0x1000);
    assert_eq!(space.usage().mappings, before.mappings + 1);
    let request = Request::new(4096, Direction::Bidirectional);
    let mut buffer = engine.device.allocate(&request).unwrap();
    let sent: Vec<u8> = (0..1000u32).map(|n| (n * 7 % 251) as u8).collect();
    buffer.write(0, &sent).unwrap();
    let (here, there) = (buffer.segments()[0].iova.0, lent.segment().iova.0);
    engine.copy(here, there + 0x800, sent.len());
    let arrived: Vec<u8> = (0..1000).map(|n| memory.read::<u8>(0x1800 + n).unwrap()).collect();
    assert_eq!(arrived, sent);
    for at in (0..0x1800).step_by(8).chain((0x1be8..0x4000).step_by(8)) {
        assert_eq!(memory.read::<u64>(at).unwrap(), !at, "{at:#x}");
    }
    engine.copy(there + 0x800, here + 2048, sent.len());
    let mut back = vec![0; sent.len()];
    buffer.read(2048, &mut back).unwrap();
    assert_eq!(back, sent);

    // The card stays open, and answers, as long as its memory is lent.
    drop(memory);
    let mut card = card;
    let refused = card.config_mut().write_u16(0x04, 0).unwrap_err();
    assert!(refused.to_string().contains("BARs are mapped"), "{refused}");
    drop(card);
    engine.copy(here, there, 8);
    drop(lent);
    assert_eq!(space.usage().mappings, before.mappings + 1, "the buffer's");
}

pub(crate) fn a_device_writes_to_and_reads_from_the_memory_of_another() {
    moves_both_ways(Access::Type1);
}

pub(crate) fn it_does_through_iommufd() {
    moves_both_ways(Access::Iommufd);
}

/// What cannot be lent is refused, and nothing of it stays.
pub(crate) fn what_is_no_memory_of_whole_pages_is_refused() {
    let (engine, card, _session) = two(Access::Auto);
    let space = engine.device.space().clone();
    let access = DmaAccess::ReadWrite;
    let lend = |index, range| card.lend_to(&engine.device, index, range, access).unwrap_err();
    for range in [0..100, 8..4096, 0x1000..0x1fff] {
        let error = lend(MEMORY, range);
        assert!(matches!(error, DeviceError::Dma(DmaError::Misaligned { .. })), "{error}");
    }
    for (index, range) in [
        (MEMORY, 0..SIZE + 4096),
        (MEMORY, SIZE..SIZE + 4096),
        (MEMORY, 4096..4096),
        (MEMORY, Range { start: u64::MAX - 4095, end: 0 }),
        // It has registers at 0 of 256 bytes, and no BAR 5.
        (0, 0..4096),
        (5, 0..4096),
    ] {
        let error = lend(index, range);
        assert!(
            matches!(error, DeviceError::Backend(BackendError::OutOfBounds { .. })),
            "{index}: {error}"
        );
    }
    assert_eq!(card.region(Region::Bar(MEMORY)).unwrap().size, SIZE);
    let full = u64::from(u32::MAX);
    assert!(engine.device.dma_limits().address_mask < full);
    assert_eq!(space.usage().mappings, 0);
}

/// The card is taken away while its memory is lent: the kernel does not wait, the mapping goes
/// before the card does, and the other device goes on.
fn ends_with_its_card(access: Access) {
    let (engine, card, _session) = two(access);
    let lent = lend(&engine, &card);
    let buffer = engine.device.allocate(&Request::new(4096, Direction::Bidirectional)).unwrap();
    let here = buffer.segments()[0].iova.0;
    engine.copy(here, lent.segment().iova.0, 64);
    assert!(lent.is_mapped());
    let took = unbind(address(1)).end();
    assert!(took < LIMIT, "{took:?}");
    assert!(!lent.is_mapped());
    let space = engine.device.space();
    assert_eq!(space.usage().mappings, 1, "the buffer's");
    engine.copy(here, here + 2048, 64);
    let driver = PathBuf::from(format!("/sys/bus/pci/devices/{}/driver", address(1)));
    assert!(!driver.exists());
    drop((lent, card));
    drop(open_through(access, address(1)));
}

pub(crate) fn what_is_lent_ends_with_its_card() {
    ends_with_its_card(Access::Type1);
}

pub(crate) fn what_is_lent_through_iommufd_ends_with_its_card() {
    ends_with_its_card(Access::Iommufd);
}

/// The device that was lent memory leaves first: the card goes on.
pub(crate) fn whoever_was_lent_memory_can_leave_first() {
    let (engine, card, _session) = two(Access::Auto);
    let lent = lend(&engine, &card);
    let took = unbind(address(0)).end();
    assert!(took < LIMIT, "{took:?}");
    let memory = card.bar(MEMORY).unwrap();
    memory.write(0, 0x1234_5678_u32).unwrap();
    assert_eq!(memory.read::<u32>(0).unwrap(), 0x1234_5678);
    drop((engine, lent));
}
