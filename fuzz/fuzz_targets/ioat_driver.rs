//! Completion words, registers and interrupts of a hostile device to the I/OAT driver: every
//! transfer ends once, within a bound, and nothing is given back that is in use.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Config, Ioat, IoatError, OnError, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Request, SgTable};
use vfio_dma_fuzz::{Bytes, Hostile, Plausible};
use vfio_dma_model::embedded::{Embedded, IommuOptions};
use vfio_dma_model::memory::DmaMap;

/// How long a wait in the driver may take.
const PATIENCE: Duration = Duration::from_millis(2);

/// An engine that does at once what it is told, as registers 0x80 on of I/OAT say.
#[derive(Default)]
struct Engine {
    state: u64,
    last: u64,
    word: u64,
    next: u64,
    done: u16,
    chain: u64,
    addresses: Vec<u64>,
}

impl Engine {
    fn run(&mut self, doorbell: u16, memory: &DmaMap) {
        // What a driver has in flight is less than this.
        for _ in 0..doorbell.wrapping_sub(self.done).min(512) {
            let field = |n: u64| memory.load_u64(self.next + 8 * n);
            let (Ok(head), Ok(source), Ok(target), Ok(next)) =
                (field(0), field(1), field(2), field(3))
            else {
                self.state = 3;
                return;
            };
            let len = head & 0xff_ffff;
            if head >> 56 == 0 && memory.copy(target, source, len).is_err() {
                self.state = 3;
                return;
            }
            self.addresses.truncate(30);
            self.addresses.extend([target, self.next]);
            (self.last, self.next, self.done) = (self.next, next, self.done.wrapping_add(1));
            if head >> 35 & 1 == 1 {
                // Where the driver wants no word it has mapped nothing.
                let _ = memory.store_u64(self.word, self.last | 1);
            }
        }
        self.state = 1;
    }
}

impl Plausible for Engine {
    const BAR0: u64 = 0x4000;

    fn read(&mut self, offset: u64, len: usize, _memory: &DmaMap) -> u64 {
        match (offset, len) {
            (0x00, 1) => 2,
            (0x01, 1) => 20,
            (0x08, 1) => 0x32,
            (0x10, 4) => 1 << 6,
            (0x88 | 0x108, 8) => self.last | self.state,
            (0x88 | 0x108, 4) => (self.last | self.state) & 0xffff_ffff,
            (0x8c | 0x10c, 4) => self.last >> 32,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u64, memory: &DmaMap) {
        match offset {
            0x84 if value & 0x20 != 0 => (self.state, self.done) = (3, 0),
            0x84 if value & 0x04 != 0 => self.state = 2,
            0x86 => self.run(value as u16, memory),
            0x90 => {
                (self.chain, self.next, self.done) = (value, value, 0);
                self.state = 4;
            }
            0x98 => {
                self.word = value;
                self.addresses.insert(0, value);
            }
            _ => {}
        }
    }

    fn config(&self, offset: u64) -> u8 {
        match offset {
            0 | 1 => [0x86, 0x80][offset as usize],
            2 | 3 => [0x21, 0x20][offset as usize - 2],
            0xa => 0x80,
            0xb => 0x08,
            _ => 0,
        }
    }

    fn addresses(&self) -> Vec<u64> {
        self.addresses.clone()
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let wait = match bytes.u8() % 3 {
        0 => WaitMode::Interrupt(IrqKind::MsiX),
        1 => WaitMode::Adaptive { irq: IrqKind::Msi, spin: Duration::from_micros(20) },
        _ => WaitMode::Poll,
    };
    let config = Config {
        wait,
        ring_size: 4 + u32::from(bytes.u8() % 40),
        on_error: if bytes.u8() & 1 == 0 { OnError::RunTheRest } else { OnError::FailTheRest },
        command_timeout: PATIENCE,
    };
    let plan = bytes.u16();
    let function = Hostile::new(Engine { state: 3, ..Engine::default() }, bytes.rest());
    let model = Embedded::with_function(function, IommuOptions::default());
    let start = Instant::now();
    let device = Device::open(model.attach().expect("the only one")).expect("a device");
    let Ok(ioat) = Ioat::probe(device, config) else { return };
    let Ok(mut channel) = ioat.channel(0) else { return };
    let mut tokens = Vec::new();
    for round in 0..16u16 {
        let len = 64 << (plan >> (round % 8) & 3);
        let pieces = usize::from(plan >> (round % 11) & 7) + 1;
        let request = |direction| ioat.allocate(&Request::new(len * pieces, direction));
        let (Ok(source), Ok(target)) =
            (request(Direction::ToDevice), request(Direction::FromDevice))
        else {
            break;
        };
        let target = std::sync::Arc::new(target);
        let ranges = (0..pieces).rev().map(|n| (target.clone(), n * len, len));
        let target = SgTable::gather(ranges).expect("ranges of the buffer");
        match channel.copy(source.into(), target, WhenFull::Return) {
            Ok(token) => tokens.push(token),
            Err(refused) => drop(refused),
        }
        if plan >> (round % 16) & 1 == 1 {
            let _ = channel.issue();
            let _ = channel.poll();
        }
        if round % 5 == 4 {
            let _ = channel.check_device();
        }
    }
    let _ = channel.issue();
    for token in tokens {
        if channel.wait(token, PATIENCE).is_ok() {
            let again = channel.take(token);
            assert!(matches!(again, Err(IoatError::NoSuchTransfer)), "it ended twice: {again:?}");
        }
    }
    let _ = channel.abort();
    drop((channel, ioat));
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
});
