//! Streams data through an I/OAT engine, several blocks in flight:
//! `cargo run --example ioat_stream -- model`.
//!
//! Blocks are filled while earlier ones are copied, and used again as they come back.

use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Config, Ioat, WhenFull};
use vfio_dma::dma::{Direction, Pattern, Request, SgTable};

mod common;

const BLOCK: usize = 64 << 10;
const BLOCKS: u64 = 256;
const IN_FLIGHT: usize = 8;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    common::run("Streams data through an Intel I/OAT engine, several blocks in flight.", stream)
}

fn stream(device: Device) -> common::Result<()> {
    let ioat = Ioat::probe(device, Config::default())?;
    let mut channel = ioat.channel(0)?;
    let pattern = Pattern::new(7);

    let mut idle = Vec::new();
    for _ in 0..IN_FLIGHT {
        let source = ioat.allocate(&Request::new(BLOCK, Direction::ToDevice))?;
        idle.push((source, ioat.allocate(&Request::new(BLOCK, Direction::FromDevice))?));
    }
    let mut flying = VecDeque::new();
    let (mut next, mut arrived) = (0, 0);
    while arrived < BLOCKS {
        while next < BLOCKS
            && let Some((mut source, target)) = idle.pop()
        {
            pattern.fill(&mut source, 0, BLOCK, next * BLOCK as u64)?;
            flying.push_back(channel.copy(
                source.into(),
                target.into(),
                WhenFull::Wait(PATIENCE),
            )?);
            channel.issue()?;
            next += 1;
        }
        // Transfers of a channel end in their order.
        let Some(token) = flying.pop_front() else { break };
        let tables = channel.wait(token, PATIENCE)?.into_result()?;
        let source = tables.source.and_then(SgTable::into_buffer).ok_or("no source")?;
        let target = tables.target.into_buffer().ok_or("no target")?;
        pattern.check(&target, 0, BLOCK, arrived * BLOCK as u64)??;
        arrived += 1;
        idle.push((source, target));
    }
    println!("{arrived} blocks of {BLOCK} bytes arrived, every byte is right");
    let stats = channel.stats();
    println!("{} descriptors, {} doorbells", stats.descriptors, stats.doorbells);
    Ok(())
}
