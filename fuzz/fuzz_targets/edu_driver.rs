//! Registers and interrupts of a hostile device to edu's driver: every wait ends within its
//! bound.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Completion, Config, Edu};
use vfio_dma::dma::{Direction, Request};
use vfio_dma_fuzz::{Bytes, Hostile, Plausible};
use vfio_dma_model::embedded::{Embedded, IommuOptions};
use vfio_dma_model::memory::DmaMap;

#[derive(Default)]
struct Registers {
    liveness: u32,
    factorial: u32,
    cause: u32,
    dma: [u64; 4],
}

impl Plausible for Registers {
    const BAR0: u64 = 1 << 20;

    fn read(&mut self, offset: u64, _len: usize, _memory: &DmaMap) -> u64 {
        match offset {
            0x00 => 0x0100_00ed,
            0x04 => u64::from(!self.liveness),
            0x08 => u64::from(self.factorial),
            0x24 => u64::from(self.cause),
            0x80 | 0x88 | 0x90 => self.dma[(offset as usize - 0x80) / 8],
            0x98 => self.dma[3] & !1,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u64, memory: &DmaMap) {
        match offset {
            0x04 => self.liveness = value as u32,
            0x08 => (self.factorial, self.cause) = (120, self.cause | 1),
            0x60 => self.cause |= value as u32,
            0x64 => self.cause &= !(value as u32),
            0x80 | 0x88 | 0x90 => self.dma[(offset as usize - 0x80) / 8] = value,
            0x98 => {
                self.dma[3] = value;
                self.cause |= 0x100;
                if value & 2 != 0 {
                    // An address that is not mapped is refused, as by an IOMMU.
                    let _ = memory.write(self.dma[1], &[7; 64]);
                }
            }
            _ => {}
        }
    }

    fn config(&self, offset: u64) -> u8 {
        match offset {
            0..=3 => [0x34, 0x12, 0xe8, 0x11][offset as usize],
            0xb => 0xff,
            _ => 0,
        }
    }

    fn addresses(&self) -> Vec<u64> {
        self.dma[..2].to_vec()
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let completion = match bytes.u8() % 3 {
        0 => Completion::Polled,
        1 => Completion::Msi,
        _ => Completion::Intx,
    };
    let config = Config { completion, timeout: Duration::from_millis(3), ..Config::default() };
    let function = Hostile::new(Registers::default(), bytes.rest());
    let model = Embedded::with_function(function, IommuOptions::default());
    let start = Instant::now();
    let device = Device::open(model.attach().expect("the only one")).expect("a device");
    let Ok(mut edu) = Edu::probe(device, config) else { return };
    let _ = edu.factorial(5);
    for _ in 0..4 {
        let request = |direction| edu.allocate(&Request::new(4096, direction));
        let (Ok(source), Ok(target)) =
            (request(Direction::ToDevice), request(Direction::FromDevice))
        else {
            break;
        };
        match edu.copy_tables(source.into(), target.into()) {
            Ok(transfer) => drop(transfer.wait()),
            Err(failed) => drop(failed),
        }
    }
    drop(edu);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
});
