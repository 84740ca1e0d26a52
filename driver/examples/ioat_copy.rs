//! Copies a text through an I/OAT engine: `cargo run --example ioat_copy -- model`.
use std::process::ExitCode;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Config, Ioat, WhenFull};
use vfio_dma::dma::{Direction, Request};

mod common;

fn main() -> ExitCode {
    common::run("Copies a text through an Intel I/OAT engine.", ioat_copy)
}

fn ioat_copy(device: Device) -> common::Result<()> {
    let ioat = Ioat::probe(device, Config::default())?;
    let mut channel = ioat.channel(0)?;
    let mut source = ioat.allocate(&Request::new(1 << 20, Direction::ToDevice))?;
    let target = ioat.allocate(&Request::new(1 << 20, Direction::FromDevice))?;
    source.write(0, b"from memory to memory")?;
    let token = channel.copy(source.into(), target.into(), WhenFull::Return)?;
    let tables = channel.wait(token, Duration::from_secs(1))?.into_result()?;
    let target = tables.target.into_buffer().ok_or("the buffer has another owner")?;
    let mut text = [0; 21];
    target.read(0, &mut text)?;
    println!("{}\n{}", String::from_utf8_lossy(&text), target.report());
    Ok(())
}
