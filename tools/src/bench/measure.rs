//! Rounds: every variant in each, in another order each time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::allocation::Allocations;
use super::error::BenchError;
use super::plan::{Spec, fit, order};
use super::results::{Allocation, Cell, Latency, Memcpy, Noise};
use super::spread::{is_undecided, is_wide, ratio, spread};
use super::subject::{Extent, Sample, Subject, histogram};
use super::units::bytes;
use crate::progress::Step;

/// How it is measured.
pub(super) struct RunConfig<'a> {
    pub(super) rounds: u32,
    /// Time for each variant in a round.
    pub(super) slice: Duration,
    /// Time for all of it.
    pub(super) budget: Duration,
    pub(super) seed: u64,
    /// Set when the user has had enough.
    pub(super) interrupted: &'a AtomicBool,
}

/// Shares of the budget after which a part of the work ends: warming up, the rounds, and
/// comparing the bytes again. The rest is for counting packets and writing files.
const WARM: f64 = 0.3;
const MEASURED: f64 = 0.8;
const VERIFIED: f64 = 0.9;

/// What was measured.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) memcpy: Vec<Memcpy>,
    pub(super) cells: Vec<Cell>,
    pub(super) allocations: Vec<Allocation>,
    pub(super) noise: Noise,
    pub(super) notes: Vec<String>,
    pub(super) ended_early: Option<String>,
}

/// A variant and what its rounds brought.
struct Variant {
    number: usize,
    spec: Spec,
    map_calls: u64,
    /// What a sample takes beyond its time: the transfers that it has in flight then.
    beyond: Duration,
    /// Transfers for each second, by round.
    rates: Vec<Option<f64>>,
    latency: Histogram<u64>,
    total: Sample,
}

/// The processor's copy of one size.
struct Copy {
    spec: Spec,
    /// What a sample takes beyond its time.
    beyond: Duration,
    rates: Vec<Option<f64>>,
}

/// Measures variants on a subject, and allocations beside them. It does not fail: what was
/// measured before a failure is kept, and tells of it.
pub(super) fn measure(
    subject: &mut dyn Subject,
    specs: &[Spec],
    mut allocations: Allocations,
    config: &RunConfig<'_>,
) -> Measured {
    let mut measured = Measured::default();
    let begin = Instant::now();
    let (variants, copies) = warm_up(subject, specs, config, &mut measured);
    let mut rounds = Rounds { variants, copies, slice: config.slice, begin };
    if measured.ended_early.is_none() {
        rounds.fit(config.rounds, config, &mut measured);
        let ended = rounds
            .run(subject, &mut allocations, config, &mut measured)
            .and_then(|()| rounds.verify(subject, config, &mut measured));
        measured.ended_early = ended.err().map(|error| error.to_string());
    }
    if rounds.slice < config.slice {
        let [was, is] = [config.slice, rounds.slice].map(|slice| slice.as_secs_f64() * 1e3);
        measured.notes.push(format!(
            "each variant has down to {is:.1} ms in a round instead of {was:.0}, to fit into the time"
        ));
    }
    measured.allocations = allocations.finish();
    finish(&rounds.variants, &rounds.copies, &mut measured);
    measured
}

/// Prepares, verifies and times every variant once, the cheap ones first.
fn warm_up(
    subject: &mut dyn Subject,
    specs: &[Spec],
    config: &RunConfig<'_>,
    measured: &mut Measured,
) -> (Vec<Variant>, Vec<Copy>) {
    let begin = Instant::now();
    let mut variants: Vec<Variant> = Vec::new();
    let mut sorted: Vec<(usize, Spec)> = specs.iter().copied().enumerate().collect();
    sorted.sort_by_key(|(_, spec)| spec.work());
    let mut slow = Vec::new();
    let limit = config.budget.mul_f64(WARM);
    // What a unit of work took most lately.
    let mut pace = Duration::ZERO;
    let bar = progress(sorted.len() as u64, "warming up");
    for (number, spec) in sorted {
        bar.advance();
        let start = begin.elapsed();
        if start + pace.saturating_mul(u32::try_from(spec.work()).unwrap_or(u32::MAX)) > limit {
            slow.push(spec.to_string());
            continue;
        }
        let map_calls = match subject.prepare(number, &spec) {
            Ok(calls) => calls,
            Err(error) => {
                measured.notes.push(format!("{spec} is left out: {error}"));
                continue;
            }
        };
        let warm = check(config).and_then(|()| subject.verify(number)).and_then(|_| {
            // Once more: now everything is mapped, filled in and seen.
            subject.run(number, Extent::For(Duration::ZERO), &mut histogram())
        });
        match warm {
            Ok(Sample { elapsed: beyond, .. }) => variants.push(Variant {
                number,
                spec,
                map_calls,
                beyond,
                rates: Vec::new(),
                latency: histogram(),
                total: Sample::default(),
            }),
            Err(error) => {
                measured.ended_early = Some(format!("before the first round: {error}"));
                break;
            }
        }
        pace = (begin.elapsed() - start).div_f64(spec.work() as f64);
    }
    if !slow.is_empty() {
        measured.notes.push(format!("left out, for lack of time: {}", slow.join(", ")));
    }
    // As they were planned.
    variants.sort_by_key(|variant| variant.number);
    let mut by_size: BTreeMap<u64, Spec> = BTreeMap::new();
    for variant in variants.iter().filter(|variant| variant.spec.segment.is_none()) {
        by_size.entry(variant.spec.transfer).or_insert(variant.spec);
    }
    let copies = by_size.into_values().map(|spec| {
        let beyond = subject.copy(&spec, Duration::ZERO).elapsed;
        Copy { spec, beyond, rates: Vec::new() }
    });
    let copies = copies.collect();
    (variants, copies)
}

/// What goes through the rounds.
struct Rounds {
    variants: Vec<Variant>,
    copies: Vec<Copy>,
    /// Time for each of them in a round.
    slice: Duration,
    begin: Instant,
}

impl Rounds {
    /// Leaves out what does not fit into the time that so many rounds have.
    fn fit(&mut self, rounds: u32, config: &RunConfig<'_>, measured: &mut Measured) {
        let left = config.budget.mul_f64(MEASURED).saturating_sub(self.begin.elapsed());
        let variants = self.variants.iter().map(|variant| variant.beyond);
        let beyond: Vec<Duration> =
            variants.chain(self.copies.iter().map(|copy| copy.beyond)).collect();
        let fits = fit(&beyond, rounds, self.slice, left);
        let mut keep = fits.keep.into_iter();
        let mut slow = Vec::new();
        self.variants.retain(|variant| {
            let kept = keep.next().unwrap_or(false);
            if !kept {
                slow.push(variant.spec.to_string());
            }
            kept
        });
        self.copies.retain(|copy| {
            let kept = keep.next().unwrap_or(false);
            if !kept {
                slow.push(format!("memcpy of {}", bytes(copy.spec.transfer)));
            }
            kept
        });
        if !slow.is_empty() {
            let (budget, slow) = (config.budget.as_secs(), slow.join(", "));
            measured.notes.push(format!("left out, too slow for {budget} s in all: {slow}"));
        }
        self.slice = fits.slice;
    }

    fn run(
        &mut self,
        subject: &mut dyn Subject,
        allocations: &mut Allocations,
        config: &RunConfig<'_>,
        measured: &mut Measured,
    ) -> Result<(), BenchError> {
        let bar = progress(u64::from(config.rounds), "measuring");
        for round in 0..config.rounds {
            self.round(subject, config, round).map_err(|error| {
                let (round, rounds) = (round + 1, config.rounds);
                BenchError::Round { round, rounds, source: error.into() }
            })?;
            allocations.round();
            bar.advance();
            // Slower than it was before the rounds: what is left has to fit again.
            self.fit(config.rounds - round - 1, config, measured);
        }
        Ok(())
    }

    fn round(
        &mut self,
        subject: &mut dyn Subject,
        config: &RunConfig<'_>,
        round: u32,
    ) -> Result<(), BenchError> {
        let Rounds { variants, copies, slice, .. } = self;
        variants.iter_mut().for_each(|variant| variant.rates.push(None));
        copies.iter_mut().for_each(|copy| copy.rates.push(None));
        for index in order(variants.len() + copies.len(), config.seed, round) {
            check(config)?;
            let start = Instant::now();
            if let Some(copy) = index.checked_sub(variants.len()).map(|i| &mut copies[i]) {
                let sample = subject.copy(&copy.spec, *slice);
                set_last(&mut copy.rates, sample.rate());
                copy.beyond = copy.beyond.max(start.elapsed().saturating_sub(*slice));
                continue;
            }
            let variant = &mut variants[index];
            let extent = Extent::For(*slice);
            let sample = subject.run(variant.number, extent, &mut variant.latency)?;
            set_last(&mut variant.rates, sample.rate());
            variant.beyond = variant.beyond.max(start.elapsed().saturating_sub(*slice));
            variant.total.transfers += sample.transfers;
            variant.total.descriptors += sample.descriptors;
            variant.total.doorbells += sample.doorbells;
            variant.total.cycles += sample.cycles;
        }
        Ok(())
    }

    /// Compares the bytes again, as far as there is time: each variant's were before.
    fn verify(
        &self,
        subject: &mut dyn Subject,
        config: &RunConfig<'_>,
        measured: &mut Measured,
    ) -> Result<(), BenchError> {
        let mut quickest: Vec<&Variant> = self.variants.iter().collect();
        quickest.sort_by_key(|variant| variant.beyond);
        let limit = config.budget.mul_f64(VERIFIED);
        let in_time = |variant: &&&Variant| self.begin.elapsed() + variant.beyond * 2 < limit;
        let mut done = 0;
        for variant in quickest.iter().take_while(in_time) {
            check(config)
                .and_then(|()| subject.verify(variant.number))
                .map_err(|error| BenchError::AfterRounds { source: error.into() })?;
            done += 1;
        }
        if done < quickest.len() {
            measured.notes.push(format!(
                "every byte was compared before the rounds, and after them for {done} of {} \
                 variants, for lack of time",
                quickest.len()
            ));
        }
        Ok(())
    }
}

fn set_last(rates: &mut [Option<f64>], rate: f64) {
    if let Some(last) = rates.last_mut() {
        *last = Some(rate);
    }
}

fn check(config: &RunConfig<'_>) -> Result<(), BenchError> {
    if config.interrupted.load(Ordering::Relaxed) { Err(BenchError::Interrupted) } else { Ok(()) }
}

/// Makes figures of the rounds.
fn finish(variants: &[Variant], copies: &[Copy], measured: &mut Measured) {
    let scaled = |rates: &[Option<f64>], bytes: u64| {
        spread(rates.iter().flatten().map(|rate| rate * bytes as f64))
    };
    for copy in copies {
        let transfer = copy.spec.transfer;
        if let Some(bytes_per_second) = scaled(&copy.rates, transfer) {
            measured.memcpy.push(Memcpy { transfer, bytes_per_second });
        }
    }
    let mut undecided = Vec::new();
    let mut wide = Vec::new();
    for variant in variants {
        let spec = variant.spec;
        let Some(operations_per_second) = spread(variant.rates.iter().flatten().copied()) else {
            continue;
        };
        let Some(bytes_per_second) = scaled(&variant.rates, spec.transfer) else { continue };
        let memcpy = copies.iter().find(|copy| copy.spec.transfer == spec.transfer);
        let reference = variants.iter().find(|other| other.spec == spec.reference());
        let reference = reference.filter(|other| other.spec != spec);
        let of_contiguous = reference.and_then(|other| ratio(&variant.rates, &other.rates));
        if of_contiguous.as_ref().is_some_and(is_undecided) {
            undecided.push(spec.to_string());
        }
        if is_wide(&bytes_per_second) || of_contiguous.as_ref().is_some_and(is_wide) {
            wide.push(spec.to_string());
        }
        let each = |count: u64| count as f64 / variant.total.transfers.max(1) as f64;
        let cell = Cell {
            series: spec.series,
            transfer: spec.transfer,
            segment: spec.segment,
            batch: spec.batch,
            channels: spec.channels,
            method: spec.method,
            bytes_per_second,
            operations_per_second,
            of_memcpy: memcpy.and_then(|copy| ratio(&variant.rates, &copy.rates)),
            of_contiguous,
            latency: latency(&variant.latency),
            transfers: variant.total.transfers,
            descriptors: each(variant.total.descriptors),
            doorbells: each(variant.total.doorbells),
            map_calls: variant.map_calls,
            cycles: (variant.total.cycles > 0).then(|| each(variant.total.cycles)),
            link: None,
        };
        measured.cells.push(cell);
    }
    measured.noise = Noise { undecided, wide, of: measured.cells.len() };
}

fn latency(histogram: &Histogram<u64>) -> Option<Latency> {
    if histogram.is_empty() {
        return None;
    }
    let at = |share: f64| histogram.value_at_quantile(share);
    let mut quantiles: Vec<(u64, f64)> = Vec::new();
    for step in histogram.iter_quantiles(5) {
        let (time, share) = (step.value_iterated_to(), step.quantile());
        match quantiles.last_mut() {
            Some(last) if last.0 == time => last.1 = share,
            _ => quantiles.push((time, share)),
        }
    }
    Some(Latency {
        samples: histogram.len(),
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        max: histogram.max(),
        quantiles,
    })
}

fn progress(len: u64, what: &'static str) -> Step {
    Step::counted(what, len, "{msg} {bar:40} {pos}/{len} {eta}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_rise_to_the_slowest() {
        let mut h = histogram();
        for ns in 1..=10_000 {
            h.record(ns).unwrap();
        }
        // Longer than the bound.
        h.saturating_record(u64::MAX);
        let latency = latency(&h).unwrap();
        assert_eq!(latency.samples, 10_001);
        assert!((4_990..=5_010).contains(&latency.p50), "{latency:?}");
        assert!(latency.p99 < latency.p999 && latency.p999 < latency.max);
        let rising = |two: &[(u64, f64)]| two[0].0 < two[1].0 && two[0].1 <= two[1].1;
        assert!(latency.quantiles.windows(2).all(rising), "{latency:?}");
        assert_eq!(latency.quantiles.last().unwrap().1, 1.0);
        assert!(latency.quantiles.len() < 500);
        assert_eq!(super::latency(&histogram()), None);
    }
}
