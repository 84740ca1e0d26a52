//! What the transfers would put on a link: counted by a model that does each once, apart
//! from what is measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_dma::device::Device;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::{IoatConfig, MAX_CHANNELS};
use vfio_dma_model::link::{LinkConfig, LinkMeter};

use super::error::BenchError;
use super::ioat::{IoatSubject, open};
use super::link::share;
use super::measure::Measured;
use super::plan::Spec;
use super::results::Cell;
use super::subject::{Extent, Subject as _, histogram};

/// Adds a link's share to each cell, the cheap ones first, until the time is over. Why a
/// share is missing becomes a note.
pub(super) fn count(measured: &mut Measured, link: &LinkConfig, seed: u64, budget: Duration) {
    let Measured { cells, notes, .. } = measured;
    let outcome = fill(cells, link, seed, budget);
    relate(cells);
    match outcome {
        Ok(0) => {}
        Ok(left) => notes.push(format!(
            "the model has not counted the packets of {left} variants, for lack of time"
        )),
        Err(error) => notes.push(format!("the model does not count packets: {error}")),
    }
}

fn spec(cell: &Cell) -> Spec {
    let Cell { series, transfer, segment, batch, channels, method, .. } = *cell;
    Spec { series, transfer, segment, batch, channels, method }
}

/// Returns how many cells were left over.
fn fill(
    cells: &mut [Cell],
    link: &LinkConfig,
    seed: u64,
    budget: Duration,
) -> Result<usize, BenchError> {
    let begin = Instant::now();
    let specs: Vec<Spec> = cells.iter().map(spec).collect();
    let Some(channels) = specs.iter().map(|spec| spec.channels).max() else { return Ok(0) };
    let channels = u8::try_from(channels).unwrap_or(MAX_CHANNELS).min(MAX_CHANNELS);
    let meter = Arc::new(LinkMeter::new(*link));
    let config = IoatConfig { channels, meter: Some(Arc::clone(&meter)), ..IoatConfig::default() };
    let engine = open(Device::open(Embedded::new(config)?.attach()?)?)?;
    // A doorbell is a transfer's at any rate: what takes longer is not waited for.
    let mut model = IoatSubject::new(&engine, &specs, seed, Duration::from_secs(5))?;
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by_key(|&n| specs[n].work());
    for (done, &n) in order.iter().enumerate() {
        if begin.elapsed() > budget {
            return Ok(order.len() - done);
        }
        model.prepare(n, &specs[n])?;
        let before = meter.snapshot();
        let sample = model.run(n, Extent::Once, &mut histogram())?;
        let counts = meter.snapshot().since(&before);
        let rate = cells[n].bytes_per_second.median;
        cells[n].link = Some(share(link, &counts, sample.transfers, rate, specs[n].transfer));
    }
    Ok(0)
}

/// Adds what of a contiguous transfer's rate on the link one in segments has.
fn relate(cells: &mut [Cell]) {
    let specs: Vec<Spec> = cells.iter().map(spec).collect();
    for n in 0..cells.len() {
        let reference = specs.iter().position(|spec| *spec == specs[n].reference());
        let contiguous = reference.filter(|&other| other != n).and_then(|other| cells[other].link);
        if let (Some(link), Some(contiguous)) = (&mut cells[n].link, contiguous) {
            link.ratio = (contiguous.gbps > 0.0).then(|| link.gbps / contiguous.gbps);
        }
    }
}
