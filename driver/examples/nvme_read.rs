//! Reads block 0 of an NVMe drive: `cargo run --example nvme_read -- 0000:00:05.0`.

use std::time::Duration;

use vfio_dma::devices::PciDriver;
use vfio_dma::devices::nvme::{Config, Nvme, QueueConfig, WhenFull};
use vfio_dma::dma::{Direction, Request};
use vfio_dma::session::Session;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).ok_or("usage: nvme_read PCI-ADDRESS")?.parse()?;
    let nvme = Nvme::probe(Session::new().open(address)?, Config::default())?;
    let namespace = *nvme.namespaces().first().ok_or("the drive has no namespace")?;
    let mut queue = nvme.queue(QueueConfig::default())?;
    let len = namespace.block_size() as usize;
    let buffer = nvme.allocate(&Request::new(len, Direction::FromDevice))?;
    let read = queue.read(&namespace, 0, buffer.into(), WhenFull::Return)?;
    let table = queue.wait(read, Duration::from_secs(30))?.into_table()?;
    let buffer = table.into_buffer().ok_or("the buffer has another owner")?;
    let mut block = vec![0; len];
    buffer.read(0, &mut block)?;
    println!("{}, {} bytes: {:02x?}", nvme.info().model, namespace.bytes(), &block[..16]);
    Ok(())
}
