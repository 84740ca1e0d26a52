//! Shows what is in a device's configuration space and BARs, as a start for a driver of
//! one's own: `cargo run --example registers -- model`.

use std::process::ExitCode;

use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;

mod common;

fn main() -> ExitCode {
    common::run("Shows what is in a device's configuration space and BARs.", registers)
}

fn registers(device: Device) -> common::Result<()> {
    let config = device.config();
    println!("{} {:04x}:{:04x}", device.location(), config.vendor_id()?, config.device_id()?);
    let capabilities = device.capabilities()?;
    for capability in &capabilities.standard {
        println!("  {capability:x?}");
    }
    for capability in &capabilities.extended {
        println!("  {capability:x?}");
    }
    for kind in [IrqKind::Intx, IrqKind::Msi, IrqKind::MsiX] {
        println!("  {kind}: {} vectors", device.vector_count(kind)?);
    }
    for index in 0..6 {
        // A BAR that the device does not implement is an error.
        let Ok(bar) = device.bar(index) else { continue };
        let mapped: Vec<_> = bar.mapped().collect();
        println!("  BAR{index}: {:#x} bytes, mapped {mapped:x?}", bar.size());
        println!("    first word: {:#010x}", bar.read::<u32>(0)?);
    }
    for range in device.space().iovas().free_runs() {
        println!("  IOVAs {:#x} to {:#x}", range.start(), range.end());
    }
    Ok(())
}
