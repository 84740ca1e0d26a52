//! Submits and reaps batches on the embedded model, for `tools/instructions.sh` to count.
//!
//! The argument is the shape of a batch of 32 descriptors of 64 bytes and less:
//!
//! - `scattered`: one transfer between 32 segments and 32 of the same lengths;
//! - `gather`: one transfer from 32 segments to a contiguous target;
//! - `uneven`: one transfer between 16 and 17 segments that never end together;
//! - `single`: 32 transfers of one segment.
//!
//! What is counted is in the functions whose names begin with `counted_`. What the model
//! does is not the driver's: in threads of its own, and in `region_write` for the doorbell.

use std::process::ExitCode;
use std::sync::Arc;

use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Channel, Config, Ioat, Token, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, Request, SgTable};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

const BATCH: usize = 32;
/// One more is the marker of the doorbell.
const DESCRIPTORS: u64 = BATCH as u64 + 1;

type Error = Box<dyn std::error::Error>;
type Pair = (SgTable, SgTable);

#[inline(never)]
fn counted_submit(
    channel: &mut Channel,
    pairs: &mut Vec<Pair>,
    tokens: &mut Vec<Token>,
) -> Result<(), Error> {
    for (source, target) in pairs.drain(..) {
        tokens.push(channel.copy(source, target, WhenFull::Return)?);
    }
    Ok(channel.issue()?)
}

#[inline(never)]
fn counted_reap(
    channel: &mut Channel,
    pairs: &mut Vec<Pair>,
    tokens: &mut Vec<Token>,
) -> Result<(), Error> {
    channel.poll()?;
    for token in tokens.drain(..) {
        let tables = channel.take(token)?.ok_or("not done")?.into_result()?;
        pairs.extend(tables.source.map(|source| (source, tables.target)));
    }
    Ok(())
}

/// How many transfers a batch is, and the lengths of the segments of either side of each.
type Shape = (usize, Vec<usize>, Vec<usize>);

fn shape(name: &str) -> Option<Shape> {
    let scattered = vec![64; BATCH];
    match name {
        "scattered" => Some((1, scattered.clone(), scattered)),
        "gather" => Some((1, scattered, vec![64 * BATCH])),
        "uneven" => {
            let shifted = [vec![32], vec![64; BATCH / 2 - 1], vec![32]].concat();
            Some((1, vec![64; BATCH / 2], shifted))
        }
        "single" => Some((BATCH, vec![64], vec![64])),
        _ => None,
    }
}

fn table(ioat: &Ioat, lens: &[usize], direction: Direction) -> Result<SgTable, Error> {
    // A gap after each, so that no two become one.
    let buffer =
        Arc::new(ioat.allocate(&Request::new(lens.iter().map(|len| len + 64).sum(), direction))?);
    let mut at = 0;
    let table = SgTable::gather(lens.iter().map(|&len| {
        let range = (Arc::clone(&buffer), at, len);
        at += len + 64;
        range
    }))?;
    assert_eq!(table.list().segments().len(), lens.len());
    Ok(table)
}

fn pairs(ioat: &Ioat, (transfers, sources, targets): &Shape) -> Result<Vec<Pair>, Error> {
    let source = || table(ioat, sources, Direction::ToDevice);
    let target = || table(ioat, targets, Direction::FromDevice);
    (0..*transfers).map(|_| Ok((source()?, target()?))).collect()
}

fn run(shape: &Shape, batches: usize) -> Result<(), Error> {
    let model = Embedded::new(IoatConfig::default())?;
    let device = Device::open(model.attach()?)?;
    let ioat = Ioat::probe(device, Config { wait: WaitMode::Poll, ..Config::default() })?;
    let mut channel = ioat.channel(0)?;
    let mut pairs = pairs(&ioat, shape)?;
    let mut tokens = Vec::with_capacity(BATCH);
    for batch in 1..=batches as u64 {
        counted_submit(&mut channel, &mut pairs, &mut tokens)?;
        // Not counted: how long the model takes.
        while model.function().stats().descriptors < batch * DESCRIPTORS {
            std::thread::yield_now();
        }
        counted_reap(&mut channel, &mut pairs, &mut tokens)?;
        assert_eq!(channel.stats().descriptors, batch * DESCRIPTORS);
    }
    println!("{}", batches * BATCH);
    Ok(())
}

fn main() -> ExitCode {
    let Some(shape) = std::env::args().nth(1).as_deref().and_then(shape) else {
        eprintln!("usage: submit_and_reap scattered|gather|uneven|single");
        return ExitCode::from(2);
    };
    match run(&shape, 200) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
