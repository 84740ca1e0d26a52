//! A soak: random operations on a device for a long time, with every byte looked at.
//!
//! It goes in rounds. In each the device is opened, driven in a way that the seed determines
//! (ring, ways of waiting, channels), and closed; then nothing of it may be left. What each
//! operation is, is a function of the seed, the round, the channel and its number, whatever the
//! timing: [`Place`] names it.

mod counts;
mod engine;
mod error;
pub mod faults;
mod ioat;
mod leaks;
mod memory;
mod nvme;
mod place;
mod plan;
mod rounds;
mod summary;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vfio_dma::device::Device;
use vfio_dma::devices::Driver;
use vfio_dma_model::ioat::FaultPlan;

use counts::Shared;
use faults::Model;
use rounds::Rounds;

pub use counts::{Counts, Place, Unexplained, Wrong};
pub use error::SoakError;
pub use leaks::{Held, Leaks};
pub use summary::{End, Fired, SCHEMA, Summary};

/// The fewest and the most descriptors of a ring, when they vary.
pub const RINGS: [u32; 2] = [8, 1024];

/// How a device is soaked.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long.
    pub time: Duration,
    /// How many operations at most.
    pub operations: u64,
    /// What determines every operation.
    pub seed: u64,
    /// Bytes of the longest transfer; the driver's default otherwise.
    pub max_size: Option<usize>,
    /// Channels, or queues, at a time; all that there are otherwise, up to 4.
    pub channels: Option<u32>,
    /// Descriptors of each ring, or entries of each queue; they vary otherwise.
    pub ring: Option<u32>,
    /// The texts of the rules of the model's plan of faults.
    pub rules: Vec<String>,
}

/// Opens the device anew, with its driver.
pub type Open<'a> =
    dyn FnMut() -> Result<(&'static Driver, Device), Box<dyn std::error::Error + Send + Sync>> + 'a;

/// Soaks a device until the time is over, the operations are done, or `stop` is set. `model` is
/// the model behind `open`, if it is that.
///
/// # Errors
///
/// Fails when the device cannot be opened the first time, what is asked for makes no sense, or
/// procfs cannot be read. Whatever happens later is in the summary.
pub fn run(
    options: &Options,
    open: &mut Open<'_>,
    model: Option<&RefCell<Model>>,
    stop: &AtomicBool,
) -> Result<Summary, SoakError> {
    leaks::keep_little();
    let begin = Instant::now();
    let plan = model.map(|model| model.borrow().plan().clone()).unwrap_or_default();
    let shared = Shared::new(stop, begin + options.time, options.operations);
    let mut rounds = Rounds::new(options, &shared)?;
    let mut gave_up = false;
    loop {
        match rounds.next(open, model) {
            Ok(()) => {}
            Err(error) if rounds.done() == 0 => return Err(error),
            Err(error) => {
                rounds.failed(error);
                gave_up = true;
                break;
            }
        }
        if shared.is_over() {
            break;
        }
    }
    let ended = if gave_up || shared.is_hopeless() {
        End::Failures
    } else if shared.is_interrupted() {
        End::Interrupted
    } else if shared.has_all_operations() {
        End::Operations
    } else {
        End::Time
    };
    let done = rounds.finish(model)?;
    let fired = model.map(|model| model.borrow().fired()).unwrap_or_default();
    let [operations, bytes_verified, wrong_bytes] =
        [&shared.operations, &shared.bytes, &shared.wrong_bytes]
            .map(|count| count.load(Ordering::Relaxed));
    let mut findings = shared.into_findings();
    let halts = faults::halts_fired(&plan, &fired);
    if findings.counts.halted > halts {
        findings.unexplained_count += 1;
        findings.unexplained.push(Unexplained {
            place: Place { round: done.rounds, channel: 0, step: 0 },
            error: format!(
                "{} operations failed of halts, and channels were halted on request {halts} times",
                findings.counts.halted
            ),
        });
    }
    let faults_fired = fired.iter().sum();
    let mut summary = Summary {
        schema: SCHEMA,
        location: done.location,
        driver: done.driver.to_string(),
        seed: options.seed,
        ended,
        seconds: begin.elapsed().as_secs_f64(),
        rounds: done.rounds,
        channels: done.channels,
        rings: done.rings,
        operations,
        counts: findings.counts,
        bytes_verified,
        wrong_bytes,
        wrong_operations: findings.wrong_operations,
        wrong: findings.wrong,
        unexplained_failures: findings.unexplained_count,
        unexplained: findings.unexplained,
        faults: options
            .rules
            .iter()
            .zip(&fired)
            .map(|(fault, &fired)| Fired { fault: fault.clone(), fired })
            .collect(),
        faults_fired,
        faults_recovered: recovered(&plan, &fired, done.not_reopened),
        late_accesses: model.map(|model| model.borrow().late_accesses()),
        leaks: done.leaks,
        passed: false,
    };
    summary.passed = summary.judge();
    Ok(summary)
}

/// How many of the faults that took effect were recovered from: all, but for those that ended a
/// model, and those after which a device could not be opened again.
fn recovered(plan: &FaultPlan, fired: &[u64], not_reopened: u64) -> u64 {
    let counted = plan.rules().iter().zip(fired).filter(|(rule, _)| !faults::ends(rule.fault));
    counted.map(|(_, fired)| fired).sum::<u64>().saturating_sub(not_reopened)
}
