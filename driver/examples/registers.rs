//! Shows what is in a device's configuration space and BARs, as a start for a driver of
//! one's own: `cargo run --example registers -- 0000:00:05.0`.

use vfio_dma::backend::IrqKind;
use vfio_dma::session::Session;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).ok_or("usage: registers PCI-ADDRESS")?.parse()?;
    let device = Session::new().open(address)?;

    let config = device.config();
    println!("{address} {:04x}:{:04x}", config.vendor_id()?, config.device_id()?);
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
