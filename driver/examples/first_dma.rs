//! The first DMA of a card in twenty lines: `cargo run --example first_dma -- 0000:00:05.0`.
//! The card is QEMU's edu (docs/specs/edu.rst), which moves 4 KiB of its own memory to ours.
use std::process::ExitCode;
use std::time::Duration;

use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;
use vfio_dma::dma::{Direction, DmaLimits, Request};
use vfio_dma::mmio::{ReadOnly, ReadWrite, Reg};
use vfio_dma::queue::InFlight;

mod common;

const ID: Reg<u32, ReadOnly> = Reg::at(0x00);
const SOURCE: Reg<u64, ReadWrite> = Reg::at(0x80);
const TARGET: Reg<u64, ReadWrite> = Reg::at(0x88);
const COUNT: Reg<u64, ReadWrite> = Reg::at(0x90);
const COMMAND: Reg<u64, ReadWrite> = Reg::at(0x98);
const START_TO_MEMORY_WITH_INTERRUPT: u64 = 0x7;

fn main() -> ExitCode {
    common::run("Moves 4 KiB of the memory of QEMU's edu device to ours.", first_dma)
}

fn first_dma(mut device: Device) -> common::Result<()> {
    let (config, location) = (device.config(), device.location().to_string());
    let ids = (config.vendor_id()?, config.device_id()?);
    if ids != (0x1234, 0x11e8) {
        return Err(format!("{location} is {:04x}:{:04x}, not QEMU's edu", ids.0, ids.1).into());
    }
    device.set_dma_limits(DmaLimits { address_mask: (1 << 28) - 1, ..DmaLimits::default() })?;
    let bar = device.bar(0)?;
    println!("{location} identifies itself as {:#010x}", bar.get(ID)?);
    let vector = device.vectors(IrqKind::Msi, 1)?.remove(0);
    let buffer = device.allocate(&Request::new(4096, Direction::FromDevice))?;
    bar.set(SOURCE, 0x4_0000)?;
    bar.set(TARGET, buffer.segments()[0].iova.0)?;
    bar.set(COUNT, 4096)?;
    device.set_bus_master(true)?;
    let mut in_flight = InFlight::new(&device);
    let slot = in_flight.insert(buffer);
    // From here on an early return stops the card first: it never writes to freed memory.
    bar.set(COMMAND, START_TO_MEMORY_WITH_INTERRUPT)?;
    vector.wait(Duration::from_secs(5))?;
    let buffer = in_flight.complete(slot).ok_or("completed twice")?;
    let mut bytes = [0xff; 4096];
    buffer.read(0, &mut bytes)?;
    println!("4096 bytes came, the first are {:02x?}", &bytes[..8]);
    Ok(())
}
