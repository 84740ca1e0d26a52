//! What a benchmark does with a device, whichever it is.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::error::BenchError;
use super::plan::Spec;

/// How much of a variant is run.
#[derive(Debug, Clone, Copy)]
pub(super) enum Extent {
    /// Each of its places once.
    Once,
    /// Transfers are begun for this long, then they end.
    For(Duration),
}

/// What a run of a variant came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sample {
    pub(super) transfers: u64,
    /// From the first submission to the last completion.
    pub(super) elapsed: Duration,
    pub(super) descriptors: u64,
    pub(super) doorbells: u64,
    /// Cycles of a simulated device's clock; 0 for others.
    pub(super) cycles: u64,
}

impl Sample {
    /// Transfers for each second.
    pub(super) fn rate(&self) -> f64 {
        self.transfers as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// A device whose variants can be run.
pub(super) trait Subject {
    /// Makes all that the variant of this number needs; returns its map calls.
    ///
    /// # Errors
    ///
    /// Fails when there is no memory for it, or no addresses: only this variant is affected.
    fn prepare(&mut self, number: usize, spec: &Spec) -> Result<u64, BenchError>;

    /// Runs a variant that was prepared; records how long each transfer took, in ns.
    ///
    /// # Errors
    ///
    /// Fails when the device does: nothing else can be measured then.
    fn run(
        &mut self,
        number: usize,
        extent: Extent,
        latency: &mut Histogram<u64>,
    ) -> Result<Sample, BenchError>;

    /// Runs each of a variant's places once and compares all bytes.
    ///
    /// # Errors
    ///
    /// Fails when the device does, or a byte is wrong.
    fn verify(&mut self, number: usize) -> Result<Sample, BenchError>;

    /// Copies with the processor, where the variant's transfers are, for this long.
    fn copy(&mut self, spec: &Spec, time: Duration) -> Sample;
}

/// A histogram for times of up to a minute, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    let mut histogram =
        Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are in order");
    // Longer ones count as the longest.
    histogram.auto(false);
    histogram
}
