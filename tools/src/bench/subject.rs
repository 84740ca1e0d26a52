//! What a benchmark does with a device, whichever it is.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::error::BenchError;
use super::plan::Spec;
use super::test_memory::TestMemory;

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
    fn verify(&mut self, number: usize) -> Result<Sample, BenchError> {
        self.verify_bytes(number)
    }

    /// What [`Subject::verify`] is where every transfer moves all of its bytes.
    ///
    /// # Errors
    ///
    /// As there.
    fn verify_bytes(&mut self, number: usize) -> Result<Sample, BenchError> {
        let unprepared = BenchError::State("a variant that is not prepared");
        let spec = self.spec(number).ok_or(unprepared)?;
        let (stride, transfer) = (spec.stride() as usize, spec.transfer as usize);
        let places = (0..spec.slots() as usize).map(|slot| slot * stride);
        places.clone().for_each(|offset| self.memory().spoil(offset, transfer));
        let sample = self.run(number, Extent::Once, &mut histogram())?;
        for offset in places {
            if let Some((at, expected, found)) = self.memory().wrong(offset, transfer) {
                return Err(BenchError::WrongByte { spec, offset: at, expected, found });
            }
        }
        Ok(sample)
    }

    /// Copies with the processor, where the variant's transfers are, for this long.
    fn copy(&mut self, spec: &Spec, time: Duration) -> Sample {
        super::memcpy::copy(self.memory(), spec, time)
    }

    /// The variant of a number, if it was prepared.
    fn spec(&self, number: usize) -> Option<Spec>;

    /// What the transfers of all variants move.
    fn memory(&mut self) -> &mut TestMemory;
}

/// A histogram for times of up to a minute, to three digits.
pub(super) fn histogram() -> Histogram<u64> {
    let mut histogram =
        Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("the bounds are in order");
    // Longer ones count as the longest.
    histogram.auto(false);
    histogram
}
