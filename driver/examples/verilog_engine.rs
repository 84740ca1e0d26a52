//! The engine of the template for one's own Verilog, driven over a socket:
//!
//! ```text
//! vfio-dma model --socket ./engine --device rtl,top=dma_engine,file=hw-model/rtl/template/dma_engine.sv
//! cargo run --example verilog_engine -- ./engine
//! ```
//!
//! The driver is `hw-model/rtl/template/driver.rs`; docs/bring-your-verilog.md walks through it.

use std::process::ExitCode;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::{CopyEngine, PciDriver};
use vfio_dma::dma::{Direction, Pattern, Placement, Request};

#[path = "../../hw-model/rtl/template/driver.rs"]
mod driver;

mod common;

const LEN: usize = 1 << 20;

fn main() -> ExitCode {
    common::run("Copies 1 MiB with the engine of the template for Verilog, in two ways.", copy)
}

fn copy(device: Device) -> common::Result<()> {
    let location = device.location().to_string();
    // What fails gives the device back, for another driver.
    let engine = driver::Engine::probe(device, ());
    let mut engine = engine.map_err(|failed| failed.into_parts().0)?;
    for placement in [Placement::Contiguous, Placement::ScatterGather] {
        let place = |direction| engine.allocate(&Request::new(LEN, direction).placement(placement));
        let (mut source, target) = (place(Direction::ToDevice)?, place(Direction::FromDevice)?);
        Pattern::new(1).fill(&mut source, 0, LEN, 0)?;
        // A quarter of a million cycles; a simulation takes about a second for them.
        let limit = Duration::from_secs(20);
        let (_, target) = engine.copy_tables(source.into(), target.into(), limit)?;
        let target = target.into_buffer().ok_or("the buffer is shared")?;
        Pattern::new(1).check(&target, 0, LEN, 0)??;
        println!("{location}: {LEN} bytes copied, every byte is right; {}", target.report());
    }
    Ok(())
}
