//! Submits and reaps batches on the embedded model, for `tools/instructions.sh` to count.
//!
//! `submit_and_reap scattered` makes each batch one transfer of 32 segments,
//! `submit_and_reap single` 32 transfers of one. What is counted is in the functions whose
//! names begin with `counted_`; what the model does, in other threads and in its registers'
//! functions, is not the driver's.

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

fn pairs(ioat: &Ioat, segments: usize) -> Result<Vec<Pair>, Error> {
    let gather = |direction| -> Result<SgTable, Error> {
        let buffer = Arc::new(ioat.allocate(segments * 128, direction)?);
        Ok(SgTable::gather((0..segments).map(|n| (Arc::clone(&buffer), n * 128, 64)))?)
    };
    let pair = |_| Ok((gather(Direction::ToDevice)?, gather(Direction::FromDevice)?));
    (0..BATCH / segments).map(pair).collect()
}

fn run(segments: usize, batches: usize) -> Result<(), Error> {
    let model = Embedded::new(IoatConfig::default())?;
    let device = Device::open(Arc::clone(&model) as Arc<dyn Backend>)?;
    let ioat = Ioat::open(device, Config { wait: WaitMode::Poll, ..Config::default() })?;
    let mut channel = ioat.channel(0)?;
    let mut pairs = pairs(&ioat, segments)?;
    let mut tokens = Vec::with_capacity(BATCH);
    let per_batch = (BATCH / segments) as u64;
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
    let segments = match std::env::args().nth(1).as_deref() {
        Some("scattered") => BATCH,
        Some("single") => 1,
        _ => {
            eprintln!("usage: submit_and_reap scattered|single");
            return ExitCode::from(2);
        }
    };
    match run(segments, 200) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
