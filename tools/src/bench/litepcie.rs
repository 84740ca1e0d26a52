//! Runs variants on LitePCIe: copies through the loopback of channel 0, one at a time.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use vfio_dma::devices::litepcie::{Failed, LitePcie};

use super::clock::Clock;
use super::error::BenchError;
use super::plan::{PlanOptions, Spec, plan};
use super::profile::Profile;
use super::results::Series;
use super::subject::{Extent, Sample, Subject};
use super::test_memory::{Pair, TestMemory};

/// A variant that can be run.
struct Ready {
    spec: Spec,
    /// All of them between two runs; one that failed may be the device's.
    pairs: VecDeque<Pair>,
}

/// A card as the subject of a benchmark.
pub(super) struct LitePcieSubject<'a> {
    // Dropped first: a card that still runs is stopped before its tables go.
    card: LitePcie,
    cells: BTreeMap<usize, Ready>,
    memory: TestMemory,
    /// The longest extent of each size of segments.
    extents: BTreeMap<Option<u64>, u64>,
    timeout: Duration,
    clock: Option<&'a Clock>,
}

/// The variants for a card whose bus has words of `word` bytes, and what was left out.
///
/// # Errors
///
/// Fails when what was asked for makes no sense.
pub(super) fn plan_litepcie(
    options: &PlanOptions,
    word: u64,
) -> Result<(Vec<Spec>, Vec<String>), BenchError> {
    let (sizes, segments): (&[u64], &[u64]) = match options.profile {
        Profile::Quick => {
            (&[4 << 10, 64 << 10, 1 << 20], &[128, 1 << 10, 4 << 10, 16 << 10, 64 << 10])
        }
        Profile::Full => (
            &[4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20],
            &[128, 256, 512, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10],
        ),
    };
    let asked = PlanOptions {
        sizes: options.sizes.clone().or_else(|| Some(sizes.to_vec())),
        segments: options
            .segments
            .clone()
            .or_else(|| Some(segments.iter().copied().map(Some).collect())),
        ..options.clone()
    };
    // Its table streams: a transfer may have more descriptors than that.
    let (all, mut notes) = plan(&asked, 1, u64::MAX)?;
    let alone = |spec: Spec| Spec { batch: 1, ..spec };
    let kept = |spec: &Spec| matches!(spec.series, Series::Segments | Series::Latency);
    let fits = |spec: &Spec| {
        spec.transfer.is_multiple_of(word) && spec.segment.is_none_or(|s| s.is_multiple_of(word))
    };
    let (specs, rest): (Vec<Spec>, Vec<Spec>) =
        all.into_iter().filter(kept).map(alone).partition(fits);
    if !rest.is_empty() {
        let list = rest.iter().map(Spec::to_string).collect::<Vec<_>>().join("; ");
        notes.push(format!("left out, for the card moves words of {word} bytes: {list}"));
    }
    if specs.is_empty() {
        return Err(BenchError::State("no variant is of whole words of the card's bus"));
    }
    notes.push(
        "one transfer at a time goes through the loopback of channel 0: batches and channels are \
         not measured; a descriptor is one push into a table of the card, two or three register \
         writes, for each side"
            .into(),
    );
    Ok((specs, notes))
}

impl<'a> LitePcieSubject<'a> {
    /// Takes memory for the variants.
    ///
    /// # Errors
    ///
    /// Fails when there is no memory.
    pub(super) fn new(
        card: LitePcie,
        specs: &[Spec],
        seed: u64,
        timeout: Duration,
        clock: Option<&'a Clock>,
    ) -> Result<LitePcieSubject<'a>, BenchError> {
        let mut extents = BTreeMap::new();
        for spec in specs {
            let extent: &mut u64 = extents.entry(spec.segment).or_default();
            *extent = spec.extent().max(*extent);
        }
        let len = usize::try_from(extents.values().copied().max().unwrap_or(1))?;
        let memory = TestMemory::new(card.device().allocator(), len, seed)?;
        let cells = BTreeMap::new();
        Ok(LitePcieSubject { card, cells, memory, extents, timeout, clock })
    }
}

impl Subject for LitePcieSubject<'_> {
    fn prepare(&mut self, number: usize, spec: &Spec) -> Result<u64, BenchError> {
        let extent = self.extents.get(&spec.segment).copied().unwrap_or(0).max(spec.extent());
        self.memory.map(spec.segment, usize::try_from(extent)?)?;
        let (slots, stride) = (spec.slots() as usize, spec.stride() as usize);
        let (mut pairs, mut map_calls) = (VecDeque::new(), 0);
        for slot in 0..slots {
            let transfer = spec.transfer as usize;
            let (pair, calls) = self.memory.pair(spec.segment, slot * stride, transfer)?;
            map_calls = calls;
            pairs.push_back(pair);
        }
        self.cells.insert(number, Ready { spec: *spec, pairs });
        Ok(map_calls)
    }

    fn run(
        &mut self,
        number: usize,
        extent: Extent,
        latency: &mut Histogram<u64>,
    ) -> Result<Sample, BenchError> {
        let Some(cell) = self.cells.get_mut(&number) else {
            return Err(BenchError::State("a variant that is not prepared"));
        };
        let (least, time) = match extent {
            Extent::Once => (cell.pairs.len() as u64, Duration::ZERO),
            Extent::For(time) => (1, time),
        };
        let before = self.card.descriptors();
        let (begin, mut sample) = (Instant::now(), Sample::default());
        let mut last = begin;
        while sample.transfers < least || last - begin < time {
            let (source, target) = cell
                .pairs
                .pop_front()
                .ok_or(BenchError::State("the device keeps the tables of a failed transfer"))?;
            let start = self.clock.map(Clock::now);
            let copied = self.card.copy(0, source, target, self.timeout);
            let pair = copied.map_err(|Failed { error, .. }| error)?;
            if let (Some(clock), Some(start)) = (self.clock, start) {
                sample.cycles += clock.written_since(start);
            }
            cell.pairs.push_back(pair);
            let now = Instant::now();
            latency.saturating_record(u64::try_from((now - last).as_nanos()).unwrap_or(u64::MAX));
            (sample.transfers, last) = (sample.transfers + 1, now);
        }
        sample.elapsed = last - begin;
        sample.descriptors = self.card.descriptors() - before;
        // Each is told by a write of its own.
        sample.doorbells = sample.descriptors;
        Ok(sample)
    }

    fn spec(&self, number: usize) -> Option<Spec> {
        self.cells.get(&number).map(|cell| cell.spec)
    }

    fn memory(&mut self) -> &mut TestMemory {
        &mut self.memory
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_of_whole_words() {
        let options = PlanOptions {
            profile: Profile::Quick,
            sizes: Some(vec![100, 4096]),
            segments: Some(vec![Some(24), Some(64)]),
            batches: None,
            channels: None,
        };
        let (specs, notes) = plan_litepcie(&options, 16).unwrap();
        assert!(specs.iter().all(|spec| spec.transfer == 4096 && spec.batch == 1), "{specs:?}");
        assert!(specs.iter().any(|spec| spec.segment == Some(64)), "{specs:?}");
        assert!(notes[0].contains("words of 16 bytes: 100 B contiguous"), "{notes:?}");
    }
}
