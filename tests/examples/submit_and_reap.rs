//! Submits and reaps batches on the embedded model, for `tools/instructions.sh` to count.
//!
//! `submit_and_reap scattered` makes each batch one transfer between 32 segments and 32 of
//! the same lengths, `submit_and_reap gather` one from 32 segments to a single one, and
//! `submit_and_reap single` 32 transfers of one segment each. What is counted is in the
//! functions whose names begin with `counted_`; what the model does, in other threads and in
//! its registers' functions, is not the driver's.

use std::process::ExitCode;
use std::sync::Arc;

use vfio_dma::backend::Backend;
use vfio_dma::device::Device;
use vfio_dma::devices::ioat::{Channel, Config, Ioat, Token, WaitMode, WhenFull};
use vfio_dma::dma::{Direction, SgTable};
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

const BATCH: usize = 32;

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
    Ok(())
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

/// Segments of 64 bytes for one batch: how many transfers, and of how many segments each
/// side of one is.
type Shape = (usize, usize, usize);

fn pairs(ioat: &Ioat, (transfers, sources, targets): Shape) -> Result<Vec<Pair>, Error> {
    let len = 64 * sources.max(targets);
    let side = |segments: usize, direction| -> Result<SgTable, Error> {
        let buffer = Arc::new(ioat.allocate(2 * len, direction)?);
        let each = len / segments;
        let ranges = (0..segments).map(|n| (Arc::clone(&buffer), n * 2 * each, each));
        let table = SgTable::gather(ranges)?;
        assert_eq!(table.list().segments().len(), segments);
        Ok(table)
    };
    let pair = |_| Ok((side(sources, Direction::ToDevice)?, side(targets, Direction::FromDevice)?));
    (0..transfers).map(pair).collect()
}

fn run(shape: Shape, batches: usize) -> Result<(), Error> {
    let model = Embedded::new(IoatConfig::default())?;
    let device = Device::open(Arc::clone(&model) as Arc<dyn Backend>)?;
    let ioat = Ioat::open(device, Config { wait: WaitMode::Poll, ..Config::default() })?;
    let mut channel = ioat.channel(0)?;
    let mut pairs = pairs(&ioat, shape)?;
    let mut tokens = Vec::with_capacity(BATCH);
    let per_batch = shape.0 as u64;
    for batch in 1..=batches as u64 {
        counted_submit(&mut channel, &mut pairs, &mut tokens)?;
        channel.issue()?;
        // Not counted: how long the model takes.
        while model.function().record().completions < batch * per_batch {
            std::thread::yield_now();
        }
        counted_reap(&mut channel, &mut pairs, &mut tokens)?;
        assert_eq!(channel.stats().descriptors, batch * BATCH as u64);
    }
    println!("{}", batches * BATCH);
    Ok(())
}

fn main() -> ExitCode {
    let shape = match std::env::args().nth(1).as_deref() {
        Some("scattered") => (1, BATCH, BATCH),
        Some("gather") => (1, BATCH, 1),
        Some("single") => (BATCH, 1, 1),
        _ => {
            eprintln!("usage: submit_and_reap scattered|gather|single");
            return ExitCode::from(2);
        }
    };
    match run(shape, 200) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
