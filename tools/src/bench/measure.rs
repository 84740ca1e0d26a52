//! Rounds: every variant in each, in another order each time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};

use super::allocation::Allocations;
use super::plan::{Spec, bytes, fit, order};
use super::results::{Allocation, Cell, Latency, Memcpy};
use super::spread::{is_undecided, is_wide, ratio, spread};
use super::subject::{Extent, Sample, Subject, histogram};
use crate::cli::Failure;

/// How it is measured.
pub(super) struct Conduct<'a> {
    pub(super) rounds: u32,
    /// Time for each variant in a round.
    pub(super) slice: Duration,
    /// Time for all of it.
    pub(super) budget: Duration,
    pub(super) seed: u64,
    /// Set when the user has had enough.
    pub(super) interrupted: &'a AtomicBool,
}

/// What was measured.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) memcpy: Vec<Memcpy>,
    pub(super) cells: Vec<Cell>,
    pub(super) allocations: Vec<Allocation>,
    pub(super) notes: Vec<String>,
    pub(super) ended_early: Option<String>,
}

/// A variant and what its rounds brought.
struct Variant {
    number: usize,
    spec: Spec,
    map_calls: u64,
    /// What one sample takes at least.
    least: Duration,
    /// Transfers for each second, by round.
    rates: Vec<Option<f64>>,
    latency: Histogram<u64>,
    total: Sample,
}

/// The processor's copy of one size.
struct Copy {
    spec: Spec,
    least: Duration,
    rates: Vec<Option<f64>>,
}

/// Measures variants on a subject, and allocations beside them. It does not fail: what was
/// measured before a failure is kept, and tells of it.
pub(super) fn measure(
    subject: &mut dyn Subject,
    specs: &[Spec],
    mut allocations: Allocations,
    conduct: &Conduct<'_>,
) -> Measured {
    let mut measured = Measured::default();
    let begin = Instant::now();
    let (mut variants, mut copies) = warm_up(subject, specs, conduct, &mut measured);
    if measured.ended_early.is_none() {
        let slice = choose(&mut variants, &mut copies, conduct, begin.elapsed(), &mut measured);
        let rounds = Rounds { variants: &mut variants, copies: &mut copies, slice };
        let ended = run_rounds(subject, rounds, &mut allocations, conduct);
        measured.ended_early = ended.err().map(|error| error.to_string());
    }
    measured.allocations = allocations.finish();
    finish(&variants, &copies, &mut measured);
    measured
}

/// Prepares, verifies and times every variant once, the cheap ones first.
fn warm_up(
    subject: &mut dyn Subject,
    specs: &[Spec],
    conduct: &Conduct<'_>,
    measured: &mut Measured,
) -> (Vec<Variant>, Vec<Copy>) {
    let begin = Instant::now();
    let mut variants: Vec<Variant> = Vec::new();
    let mut sorted: Vec<(usize, Spec)> = specs.iter().copied().enumerate().collect();
    sorted.sort_by_key(|(_, spec)| {
        let transfers = u64::from(spec.batch * spec.channels);
        (spec.pieces() * transfers * 4096 + spec.transfer * transfers, spec.segment.is_some())
    });
    let mut slow = Vec::new();
    let bar = progress(sorted.len() as u64, "warm-up");
    for (number, spec) in sorted {
        bar.inc(1);
        if begin.elapsed() > conduct.budget / 3 {
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
        let warm = check(conduct).and_then(|()| subject.verify(number)).and_then(|_| {
            // Once more: now everything is mapped, filled in and seen.
            subject.run(number, Extent::For(Duration::ZERO), &mut histogram())
        });
        match warm {
            Ok(Sample { elapsed: least, .. }) => variants.push(Variant {
                number,
                spec,
                map_calls,
                least,
                rates: Vec::new(),
                latency: histogram(),
                total: Sample::default(),
            }),
            Err(error) => {
                measured.ended_early = Some(format!("before the first round: {error}"));
                break;
            }
        }
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
        let least = subject.copy(&spec, Duration::ZERO).elapsed;
        Copy { spec, least, rates: Vec::new() }
    });
    let copies = copies.collect();
    (variants, copies)
}

/// Leaves out what does not fit into the time; returns the time for each variant.
fn choose(
    variants: &mut Vec<Variant>,
    copies: &mut Vec<Copy>,
    conduct: &Conduct<'_>,
    spent: Duration,
    measured: &mut Measured,
) -> Duration {
    // Allocations have a tenth.
    let left = (conduct.budget * 9 / 10).saturating_sub(spent);
    let variant_least = variants.iter().map(|variant| variant.least);
    let least: Vec<Duration> = variant_least.chain(copies.iter().map(|copy| copy.least)).collect();
    let fits = fit(&least, conduct.rounds, conduct.slice, left);
    let mut keep = fits.keep.into_iter();
    let mut slow = Vec::new();
    variants.retain(|variant| {
        let kept = keep.next().unwrap_or(false);
        if !kept {
            slow.push(variant.spec.to_string());
        }
        kept
    });
    copies.retain(|copy| {
        let kept = keep.next().unwrap_or(false);
        if !kept {
            slow.push(format!("memcpy of {}", bytes(copy.spec.transfer)));
        }
        kept
    });
    if !slow.is_empty() {
        let budget = conduct.budget.as_secs();
        let slow = slow.join(", ");
        measured.notes.push(format!("left out, too slow for {budget} s in all: {slow}"));
    }
    if fits.slice < conduct.slice {
        let (was, is) = (conduct.slice.as_secs_f64() * 1e3, fits.slice.as_secs_f64() * 1e3);
        measured.notes.push(format!(
            "each variant has {is:.1} ms in a round instead of {was:.0}, to fit into the time"
        ));
    }
    fits.slice
}

struct Rounds<'a> {
    variants: &'a mut [Variant],
    copies: &'a mut [Copy],
    slice: Duration,
}

fn run_rounds(
    subject: &mut dyn Subject,
    rounds: Rounds<'_>,
    allocations: &mut Allocations,
    conduct: &Conduct<'_>,
) -> Result<(), Failure> {
    let Rounds { variants, copies, slice } = rounds;
    let count = variants.len() + copies.len();
    let bar = progress(u64::from(conduct.rounds), "round");
    for round in 0..conduct.rounds {
        variants.iter_mut().for_each(|variant| variant.rates.push(None));
        copies.iter_mut().for_each(|copy| copy.rates.push(None));
        let in_round = |error: Failure| -> Failure {
            format!("in round {} of {}: {error}", round + 1, conduct.rounds).into()
        };
        for index in order(count, conduct.seed, round) {
            check(conduct).map_err(in_round)?;
            if let Some(copy) = index.checked_sub(variants.len()).map(|i| &mut copies[i]) {
                let sample = subject.copy(&copy.spec, slice);
                set_last(&mut copy.rates, sample.rate());
                continue;
            }
            let variant = &mut variants[index];
            let sample = subject
                .run(variant.number, Extent::For(slice), &mut variant.latency)
                .map_err(in_round)?;
            set_last(&mut variant.rates, sample.rate());
            variant.total.transfers += sample.transfers;
            variant.total.descriptors += sample.descriptors;
            variant.total.doorbells += sample.doorbells;
        }
        allocations.round();
        bar.inc(1);
    }
    // What was moved while it was measured is right, too.
    for variant in variants.iter() {
        check(conduct).map_err(|error| format!("after the last round: {error}"))?;
        subject.verify(variant.number).map_err(|error| format!("after the last round: {error}"))?;
    }
    Ok(())
}

fn set_last(rates: &mut [Option<f64>], rate: f64) {
    if let Some(last) = rates.last_mut() {
        *last = Some(rate);
    }
}

fn check(conduct: &Conduct<'_>) -> Result<(), Failure> {
    if conduct.interrupted.load(Ordering::Relaxed) { Err("interrupted".into()) } else { Ok(()) }
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
        let reference = reference.filter(|_| spec.segment.is_some());
        let of_contiguous = reference.and_then(|other| ratio(&variant.rates, &other.rates));
        if of_contiguous.as_ref().is_some_and(is_undecided) {
            undecided.push(spec.to_string());
        }
        if is_wide(&bytes_per_second) {
            wide.push(spec.to_string());
        }
        let each = |count: u64| count as f64 / variant.total.transfers.max(1) as f64;
        let cell = Cell {
            series: spec.series,
            transfer: spec.transfer,
            segment: spec.segment,
            batch: spec.batch,
            channels: spec.channels,
            bytes_per_second,
            operations_per_second,
            of_memcpy: memcpy.and_then(|copy| ratio(&variant.rates, &copy.rates)),
            of_contiguous,
            latency: latency(&variant.latency),
            transfers: variant.total.transfers,
            descriptors: each(variant.total.descriptors),
            doorbells: each(variant.total.doorbells),
            map_calls: variant.map_calls,
            link: None,
        };
        measured.cells.push(cell);
    }
    if !undecided.is_empty() {
        measured.notes.push(format!(
            "within the noise, so that nothing follows from the ratio to contiguous (marked ~): {}",
            undecided.join(", ")
        ));
    }
    if !wide.is_empty() {
        measured.notes.push(format!(
            "the rounds differ by more than a quarter of the median (marked !): {}",
            wide.join(", ")
        ));
    }
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

fn progress(len: u64, what: &'static str) -> ProgressBar {
    // indicatif draws on standard error, and only if that is a terminal.
    let style = ProgressStyle::with_template("{msg} {bar:40} {pos}/{len} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style).with_message(what)
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
