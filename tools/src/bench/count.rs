//! What the transfers would put on a link: counted by a model that does each once, apart
//! from what is measured.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_dma::device::Device;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::{IoatConfig, MAX_CHANNELS};
use vfio_dma_model::link::{LinkConfig, LinkMeter};

use super::ioat::{IoatSubject, open};
use super::link::share;
use super::measure::Measured;
use super::plan::Spec;
use super::results::Cell;
use super::subject::{Extent, Subject as _, histogram};
use crate::cli::Failure;

/// Adds a link's share to each cell, the cheap ones first, until the time is over. Why a
/// share is missing becomes a note.
pub(super) fn count(measured: &mut Measured, link: &LinkConfig, seed: u64, budget: Duration) {
    let Measured { cells, notes, .. } = measured;
    match fill(cells, link, seed, budget) {
        Ok(0) => {}
        Ok(left) => notes.push(format!(
            "the model has not counted the packets of {left} variants, for lack of time"
        )),
        Err(error) => notes.push(format!("the model does not count packets: {error}")),
    }
}

/// Returns how many cells were left over.
fn fill(
    cells: &mut [Cell],
    link: &LinkConfig,
    seed: u64,
    budget: Duration,
) -> Result<usize, Failure> {
    let begin = Instant::now();
    let spec = |cell: &Cell| Spec {
        series: cell.series,
        transfer: cell.transfer,
        segment: cell.segment,
        batch: cell.batch,
        channels: cell.channels,
    };
    let specs: Vec<Spec> = cells.iter().map(spec).collect();
    let Some(channels) = specs.iter().map(|spec| spec.channels).max() else { return Ok(0) };
    let channels = u8::try_from(channels).unwrap_or(MAX_CHANNELS).min(MAX_CHANNELS);
    let meter = Arc::new(LinkMeter::new(*link));
    let config = IoatConfig { channels, meter: Some(Arc::clone(&meter)), ..IoatConfig::default() };
    let engine = open(Device::open(Embedded::new(config)?)?)?;
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
