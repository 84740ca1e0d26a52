//! A test device whose BARs are smaller than what its driver touches.

use std::sync::atomic::{AtomicU16, Ordering};

use vfio_dma::backend::{IrqKind, Region};
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::pci_testdev::PciTestdev;
use vfio_dma::mmio::MmioError;
use vfio_dma_model::embedded::{Embedded, IommuOptions};
use vfio_dma_model::function::{Event, PciFunction};
use vfio_dma_model::memory::DmaMap;

/// pci-testdev (1b36:0005) with BAR 0 of one page, and a BAR 2 of so many bytes.
struct Small {
    bar0: u64,
    bar2: u64,
    /// The command register.
    command: AtomicU16,
    memory: DmaMap,
}

impl PciFunction for Small {
    fn region_size(&self, region: Region) -> u64 {
        match region {
            Region::Bar(0) => self.bar0,
            Region::Bar(2) => self.bar2,
            Region::Config => 256,
            _ => 0,
        }
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if region == Region::Config {
            let [low, high] = self.command.load(Ordering::SeqCst).to_le_bytes();
            let header = [0x36, 0x1b, 0x05, 0x00, low, high];
            for (byte, known) in data.iter_mut().zip(header.iter().skip(offset as usize)) {
                *byte = *known;
            }
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        if let (Region::Config, 4, &[low, high, ..]) = (region, offset, data) {
            self.command.store(u16::from_le_bytes([low, high]), Ordering::SeqCst);
        }
    }
    fn irq_count(&self, _: IrqKind) -> u32 {
        0
    }
    fn irq_connect(&self, _: IrqKind, _: u32, _: &[Option<Event>]) {}
    fn irq_disconnect(&self, _: IrqKind) {}
    fn irq_set_masked(&self, _: IrqKind, _: u32, _: bool) {}
    fn irq_trigger(&self, _: IrqKind, _: u32) {}
    fn reset(&self) {}
    fn memory(&self) -> &DmaMap {
        &self.memory
    }
}

/// Whether the BAR has what was accessed, of which the device is not asked otherwise.
fn is_inside<T>(access: Result<T, MmioError>) -> bool {
    match access {
        Ok(_) => true,
        Err(MmioError::OutOfBounds { .. }) => false,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn bars_of_every_small_size_are_no_panic() {
    for bar2 in 1..=16 {
        for bar0 in [1, 3, 7, 12, 16, 4096] {
            let command = AtomicU16::new(2);
            let function = Small { bar0, bar2, command, memory: DmaMap::new() };
            let model = Embedded::with_function(function, IommuOptions::default());
            let device = Device::open(model.attach().unwrap()).unwrap();
            for (index, size) in [(0, bar0), (2, bar2)] {
                let bar = device.bar(index).unwrap();
                assert_eq!(is_inside(bar.read::<u16>(0)), size >= 2);
                assert_eq!(is_inside(bar.read::<u32>(0)), size >= 4);
                assert_eq!(is_inside(bar.write(0, 0u64)), size >= 8);
            }
            let testdev = PciTestdev::probe(device, ()).unwrap();
            let membar = testdev.membar().unwrap().unwrap();
            assert_eq!((membar.size, membar.mapped), (bar2, 0));
            // No test has a width of 0.
            testdev.run(1).unwrap_err();
        }
    }
}
