//! Copies a text with whichever engine a device is: `cargo run --example copy -- model`, or with
//! a PCI address, or the path of a vfio-user socket.
use std::process::ExitCode;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::open_copy_engine;
use vfio_dma::dma::{Direction, Request};

mod common;

fn main() -> ExitCode {
    common::run("Copies a text with whichever copy engine the device is.", copy)
}

fn copy(device: Device) -> common::Result<()> {
    let mut engine = open_copy_engine(device)?;
    let mut source = engine.allocate(&Request::new(19, Direction::ToDevice))?;
    let target = engine.allocate(&Request::new(19, Direction::FromDevice))?;
    source.write(0, b"the same everywhere")?;
    let (_, target) = engine.copy(source, target, Duration::from_secs(5))?;
    let mut text = [0; 19];
    target.buffers()[0].read(0, &mut text)?;
    println!("{}", String::from_utf8_lossy(&text));
    Ok(())
}
