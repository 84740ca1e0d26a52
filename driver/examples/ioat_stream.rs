//! Streams data through an I/OAT engine, several blocks in flight:
//! `cargo run --example ioat_stream -- 0000:00:05.0`.
//!
//! Blocks are filled while earlier ones are copied, and used again as they come back.

use std::collections::VecDeque;
use std::time::Duration;

use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Config, Ioat, WhenFull};
use vfio_dma::dma::{Direction, Pattern, Request, SgTable};
use vfio_dma::session::Session;

const BLOCK: usize = 64 << 10;
const BLOCKS: u64 = 256;
const IN_FLIGHT: usize = 8;
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).ok_or("usage: ioat_stream PCI-ADDRESS")?.parse()?;
    let ioat = Ioat::probe(Session::new().open(address)?, Config::default())?;
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
    println!("{:?}", channel.stats());
    Ok(())
}
