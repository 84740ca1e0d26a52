//! Registers and descriptors of any content to the I/OAT model: it touches nothing that it was
//! not given, and works again after a reset.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vfio_dma::device::Device;
use vfio_dma::dma::{Buffer, Direction, Pattern, Request};
use vfio_dma_fuzz::Bytes;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

/// How long the engine may take for what is asked here.
const LIMIT: Duration = Duration::from_secs(8);
/// Bytes of each buffer.
const LEN: usize = 4096;

/// Register offsets of channel 0, and of the device.
const REGISTERS: [(u64, usize); 12] = [
    (0x80, 2),
    (0x84, 1),
    (0x86, 2),
    (0x88, 4),
    (0x8c, 4),
    (0x90, 8),
    (0x90, 4),
    (0x94, 4),
    (0x98, 8),
    (0xa8, 4),
    (0xac, 4),
    (0x03, 1),
];

fn iova(buffer: &Buffer) -> u64 {
    buffer.segments()[0].iova.0
}

/// An address: in one of the buffers, mostly.
fn address(bytes: &mut Bytes<'_>, buffers: [u64; 3]) -> u64 {
    let choice = bytes.u8();
    let offset = u64::from(bytes.u16());
    match choice {
        0..=191 => buffers[usize::from(choice % 3)] + (offset & 0xfff),
        192..=223 => (buffers[0] + offset) & !63,
        _ => bytes.edge(),
    }
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let model = Embedded::new(IoatConfig::default()).expect("a model");
    let mut device = Device::open(model.attach().expect("the only one")).expect("a device");
    device.set_bus_master(true).expect("bus mastering");
    let bar = device.bar(0).expect("BAR0");
    let allocate = |direction| device.allocate(&Request::new(LEN, direction)).expect("memory");
    let mut ring = allocate(Direction::Bidirectional);
    let mut source = allocate(Direction::ToDevice);
    let target = allocate(Direction::FromDevice);
    let pattern = Pattern::new(1);
    pattern.fill(&mut source, 0, LEN, 0).expect("inside");
    let places = [iova(&ring), iova(&source), iova(&target)];
    bar.write::<u64>(0x98, places[0] + 0xf00).expect("CHANCMP");
    while !bytes.is_empty() {
        match bytes.u8() % 4 {
            // A descriptor.
            0 | 1 => {
                let slot = usize::from(bytes.u8() % 32) * 64;
                let len = u32::from(bytes.u16()) & 0x1fff;
                let control = u32::from(bytes.u8()) | u32::from(bytes.u8() & 0x83) << 24;
                let mut descriptor = [0; 32];
                descriptor[0..4].copy_from_slice(&len.to_le_bytes());
                descriptor[4..8].copy_from_slice(&control.to_le_bytes());
                for field in [8, 16, 24] {
                    let address = address(&mut bytes, places);
                    let address = if field == 24 { address & !63 } else { address };
                    descriptor[field..field + 8].copy_from_slice(&address.to_le_bytes());
                }
                ring.write(slot, &descriptor).expect("inside");
            }
            2 => {
                let (offset, len) = REGISTERS[usize::from(bytes.u8()) % REGISTERS.len()];
                let value = match offset {
                    0x90 | 0x98 => address(&mut bytes, places) & !7,
                    0x86 => u64::from(bytes.u8() % 64),
                    _ => u64::from(bytes.u32()),
                };
                let _ = match len {
                    1 => bar.write::<u8>(offset, value as u8),
                    2 => bar.write::<u16>(offset, value as u16),
                    4 => bar.write::<u32>(offset, value as u32),
                    _ => bar.write::<u64>(offset, value),
                };
            }
            _ => {
                let _ = bar.read::<u32>(u64::from(bytes.u16() & 0x3ffc));
            }
        }
    }
    // From any state a reset halts, and one copy works.
    bar.write::<u8>(0x84, 0x20).expect("CHANCMD");
    wait("the channel resets", || bar.read::<u8>(0x84).expect("CHANCMD") & 0x20 == 0);
    for errors in [0xa8, 0xac] {
        bar.write::<u32>(errors, if errors == 0xa8 { u32::MAX } else { 0 }).expect("CHANERR");
    }
    device.config_mut().write_u32(0x180, u32::MAX).expect("CHANERR_INT");
    pattern.check(&source, 0, LEN, 0).expect("inside").expect("what is read only is unchanged");
    let mut copy = [0; 64];
    copy[0..4].copy_from_slice(&(LEN as u32).to_le_bytes());
    copy[4..8].copy_from_slice(&8u32.to_le_bytes());
    for (at, address) in [(8, places[1]), (16, places[2]), (24, places[0])] {
        copy[at..at + 8].copy_from_slice(&address.to_le_bytes());
    }
    ring.write(0, &copy).expect("inside");
    ring.write(0xf00, &[0; 8]).expect("inside");
    bar.write::<u64>(0x98, places[0] + 0xf00).expect("CHANCMP");
    bar.write::<u16>(0x80, 0).expect("CHANCTRL");
    bar.write::<u64>(0x90, places[0]).expect("CHAINADDR");
    bar.write::<u16>(0x86, 1).expect("DMACOUNT");
    wait("the copy is done", || {
        let mut word = [0; 8];
        ring.read(0xf00, &mut word).expect("inside");
        u64::from_le_bytes(word) & !0x3f == places[0]
    });
    pattern.check(&target, 0, LEN, 0).expect("inside").expect("the copy is right");
});
