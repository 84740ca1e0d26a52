//! Copies a text through an I/OAT engine: `cargo run --example ioat_copy -- 0000:00:05.0`.
use std::time::Duration;

use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Config, Ioat, WhenFull};
use vfio_dma::dma::{Direction, Request};
use vfio_dma::session::Session;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).ok_or("usage: ioat_copy PCI-ADDRESS")?.parse()?;
    let ioat = Ioat::probe(Session::new().open(address)?, Config::default())?;
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
