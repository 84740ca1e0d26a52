//! Copies a text through QEMU's edu device: `cargo run --example edu_copy -- 0000:00:05.0`.
//!
//! The device must be bound to vfio-pci (`vfio-dma bind 0000:00:05.0`).

use std::process::ExitCode;

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Config, Edu};
use vfio_dma::dma::{Direction, Request};

mod common;

fn main() -> ExitCode {
    common::run("Copies a text through QEMU's edu device and back.", edu_copy)
}

fn edu_copy(device: Device) -> common::Result<()> {
    let mut edu = Edu::probe(device, Config::default())?;

    let text = b"through the IOMMU and back";
    let mut source = edu.allocate(&Request::new(text.len(), Direction::ToDevice))?;
    let target = edu.allocate(&Request::new(text.len(), Direction::FromDevice))?;
    source.write(0, text)?;

    // The device owns both buffers until `wait` gives them back.
    let (_, target) = edu.copy(source, 0, target, 0, text.len())?.wait()?;

    let mut arrived = [0; 26];
    target.read(0, &mut arrived)?;
    println!("{}\n{}", String::from_utf8_lossy(&arrived), target.report());
    Ok(())
}
