//! Rounds: the device is opened, driven by a thread for each channel, and closed, and what is
//! left of it is counted.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use fastrand::Rng;
use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;
use vfio_dma::devices::edu::{Completion, Config as EduConfig, Edu};
use vfio_dma::devices::ioat::{Config, Ioat, OnError, WaitMode};
use vfio_dma::devices::litepcie::{Config as LitePcieConfig, LitePcie};
use vfio_dma::devices::nvme::{Config as NvmeConfig, Nvme};
use vfio_dma::devices::{CopyEngine, Driver, PciDriver as _, open_copy_engine};
use vfio_dma::dma::{Allocator, PageSize, Pool, Reservation};

use super::counts::{Place, Shared};
use super::faults::{Explained, Model};
use super::leaks::{Held, Leaks};
use super::plan::{chance, log_uniform, rng};
use super::summary::gibibytes;
use super::{Open, Options, RINGS, SoakError, engine, ioat, nvme};
use crate::bench::units::rate;
use crate::progress::Step;

/// The most channels that are used unless others are asked for.
const CHANNELS: u32 = 4;
/// The most buffers of a channel that are written in turn.
const LANES: usize = 40;
/// The longest transfer, by default, and that of devices which are slow: edu moves 40 KiB/s.
const MAX_SIZE: usize = 256 << 10;
const MAX_SIZE_SLOW: usize = 4 << 10;
/// The most pieces of a side of a copy engine's copy.
const MAX_PIECES: usize = 8;
/// How long anything may take; less where a fault makes the device silent.
const LIMIT: Duration = Duration::from_secs(30);
const LIMIT_SILENT: Duration = Duration::from_secs(5);
/// How long a RESET or SUSPEND may take: a thread of the model waits for its turn on a busy
/// machine.
const COMMAND_LIMIT: Duration = Duration::from_millis(300);
/// How long a round lasts at most.
const ROUND: Duration = Duration::from_secs(5);
/// How often a device that a fault has hit may fail to open.
const OPENS: u32 = 3;
/// After so many rounds the model is made anew, as the other device.
const MODEL_ROUNDS: u64 = 64;

/// What the rounds came to.
pub(super) struct Done {
    pub(super) location: String,
    pub(super) driver: &'static str,
    pub(super) rounds: u64,
    pub(super) channels: u64,
    pub(super) rings: Option<[u32; 2]>,
    pub(super) leaks: Leaks,
    pub(super) not_reopened: u64,
}

/// The rounds of a soak.
pub(super) struct Rounds<'a> {
    options: &'a Options,
    shared: &'a Shared<'a>,
    /// What the faults of the model explain.
    explained: Explained,
    begin: Instant,
    progress: Step,
    number: u64,
    location: String,
    driver: &'static str,
    channels: u64,
    rings: Option<[u32; 2]>,
    /// What is held with every device closed: at first, and after the first round.
    before: Held,
    kept: Held,
    dma_mappings: u64,
    not_reopened: u64,
}

impl<'a> Rounds<'a> {
    pub(super) fn new(
        options: &'a Options,
        shared: &'a Shared<'a>,
    ) -> Result<Rounds<'a>, SoakError> {
        let progress = Step::long(format!("soaking with seed {}", options.seed));
        Ok(Rounds {
            options,
            shared,
            explained: Explained::default(),
            begin: Instant::now(),
            progress,
            number: 0,
            location: String::new(),
            driver: "",
            channels: 0,
            rings: None,
            // With the thread that tells of progress.
            before: Held::now()?,
            kept: Held::default(),
            dma_mappings: 0,
            not_reopened: 0,
        })
    }

    /// How many rounds were done.
    pub(super) fn done(&self) -> u64 {
        self.number
    }

    /// Counts a failure that ends the soak.
    pub(super) fn failed(&self, error: SoakError) {
        self.shared.unexplained(Place { round: self.number, channel: 0, step: 0 }, error);
    }

    /// Does one round.
    ///
    /// # Errors
    ///
    /// Fails when the device cannot be opened.
    pub(super) fn next(
        &mut self,
        open: &mut Open<'_>,
        model: Option<&RefCell<Model>>,
    ) -> Result<(), SoakError> {
        self.shared.begin_round();
        let mut tries = 0;
        let (space, mapped) = loop {
            let (driver, device) = open().map_err(SoakError::Open)?;
            self.location = device.location().to_string();
            self.driver = driver.name;
            self.explained = model.map(|model| model.borrow().explained()).unwrap_or_default();
            let space = Arc::clone(device.space());
            let mapped = space.usage();
            match self.drive(driver, device) {
                Ok(()) => break (space, mapped),
                // A fault at the device's opening.
                Err(error) if self.explained.losses() && tries + 1 < OPENS => {
                    log::info!("opening it failed: {error}");
                    tries += 1;
                    self.explained = Explained::default();
                    if let Some(model) = model.filter(|model| model.borrow().has_ended()) {
                        model.borrow_mut().discard();
                    }
                }
                Err(error) => {
                    self.not_reopened += 1;
                    return Err(error);
                }
            }
        };
        // It has the model, which is not to outlive the round.
        self.explained = Explained::default();
        let mappings = space.usage().mappings.saturating_sub(mapped.mappings);
        drop(space);
        let has_ended = model.is_some_and(|model| model.borrow().has_ended());
        if let Some(model) = model
            && (has_ended || self.number.is_multiple_of(MODEL_ROUNDS))
        {
            model.borrow_mut().discard();
        }
        if has_ended && mappings > 0 {
            // The device cannot be told to stop: what it may reach stays for good, and with it
            // the model, which has a thread for each channel, and what these have.
            let known = self.before.plus(self.kept);
            let kept = Held::settled(&known)?.beyond(known);
            let threads = kept.threads.min(model.map_or(0, |model| model.borrow().channels()));
            self.kept = self.kept.plus(Held { threads, ..kept });
        } else {
            self.dma_mappings += mappings;
        }
        if self.number == 0 && !self.shared.is_over() {
            self.before = Held::settled(&self.before)?;
            self.kept = Held::default();
        }
        self.number += 1;
        Ok(())
    }

    /// Compares with the start.
    ///
    /// # Errors
    ///
    /// Fails when procfs cannot be read.
    pub(super) fn finish(mut self, model: Option<&RefCell<Model>>) -> Result<Done, SoakError> {
        self.explained = Explained::default();
        if let Some(model) = model {
            model.borrow_mut().discard();
        }
        let after = Held::settled(&self.before.plus(self.kept))?;
        Ok(Done {
            location: self.location,
            driver: self.driver,
            rounds: self.number,
            channels: self.channels,
            rings: self.rings,
            leaks: Leaks::of(self.before, after, self.kept, self.dma_mappings),
            not_reopened: self.not_reopened,
        })
    }

    fn drive(&mut self, driver: &'static Driver, device: Device) -> Result<(), SoakError> {
        let mut dice = rng(self.options.seed, &[self.number]);
        match driver.name {
            Ioat::NAME => self.ioat(&mut dice, device),
            Nvme::NAME => self.nvme(&mut dice, device),
            Edu::NAME => {
                let completion =
                    [Completion::Msi, Completion::Intx, Completion::Polled][dice.usize(0..3)];
                let config = EduConfig { completion, timeout: LIMIT, ..EduConfig::default() };
                let edu = Edu::probe(device, config)?;
                // Each piece is a turn of the device.
                self.engine(&mut dice, Box::new(edu), 1, 2);
                Ok(())
            }
            LitePcie::NAME => {
                let card = LitePcie::probe(device, LitePcieConfig::default())?;
                let word = usize::try_from(card.device().dma_limits().granularity)?;
                self.engine(&mut dice, Box::new(card), word, MAX_PIECES);
                Ok(())
            }
            _ if driver.is_copy_engine() => {
                let engine = open_copy_engine(device)?;
                self.engine(&mut dice, engine, 1, MAX_PIECES);
                Ok(())
            }
            driver => Err(SoakError::NoSoak { driver }),
        }
    }

    /// When the round ends, and how many steps it has at most: the first one is short, for what
    /// is held is compared with what is held after it.
    fn bounds(&self, dice: &mut Rng) -> (Instant, u64) {
        let part = match self.number {
            0 => 16,
            _ => 4,
        };
        let time = (self.options.time / part).min(ROUND);
        (Instant::now() + time, log_uniform(dice, 200..40_000) as u64)
    }

    fn ring(&mut self, dice: &mut Rng) -> u32 {
        let [fewest, most] = RINGS;
        let varied = match (self.number, dice.u32(0..4)) {
            // As much memory as there ever is.
            (0, _) => most,
            (_, 0) => fewest,
            _ => log_uniform(dice, fewest as usize..most as usize + 1) as u32,
        };
        let ring = self.options.ring.unwrap_or(varied);
        let [low, high] = self.rings.unwrap_or([ring, ring]);
        self.rings = Some([low.min(ring), high.max(ring)]);
        ring
    }

    fn max_size(&self, default: usize) -> usize {
        self.options.max_size.unwrap_or(default)
    }

    fn limit(&self) -> Duration {
        if self.explained.may_be_silent() { LIMIT_SILENT } else { LIMIT }
    }

    /// The channels of a round, of so many that there are.
    fn channels(&mut self, available: u32) -> Result<u32, SoakError> {
        let asked = self.options.channels;
        if let Some(asked) = asked.filter(|&asked| asked > available) {
            return Err(SoakError::TooManyChannels { asked, channels: available });
        }
        let channels = asked.unwrap_or_else(|| available.min(CHANNELS));
        self.channels = self.channels.max(channels.into());
        Ok(channels)
    }

    fn ioat(&mut self, dice: &mut Rng, device: Device) -> Result<(), SoakError> {
        let offers = |kind| device.vector_count(kind).is_ok_and(|count| count > 0);
        let (msix, single) = (
            offers(IrqKind::MsiX),
            [IrqKind::Msi, IrqKind::Intx]
                .into_iter()
                .filter(|&kind| offers(kind))
                .collect::<Vec<_>>(),
        );
        let spin = Duration::from_micros(50);
        let wait = match dice.u32(0..8) {
            0 if self.number > 0 && !single.is_empty() => {
                let irq = single[dice.usize(0..single.len())];
                if dice.bool() {
                    WaitMode::Interrupt(irq)
                } else {
                    WaitMode::Adaptive { irq, spin }
                }
            }
            1 | 2 if msix => WaitMode::Interrupt(IrqKind::MsiX),
            3..=5 if msix => WaitMode::Adaptive { irq: IrqKind::MsiX, spin },
            _ => WaitMode::Poll,
        };
        let on_error = if dice.bool() { OnError::RunTheRest } else { OnError::FailTheRest };
        let ring = self.ring(dice);
        let config = Config { wait, ring_size: ring, on_error, command_timeout: COMMAND_LIMIT };
        let ioat = Ioat::probe(device, config)?;
        let channels = self.channels(ioat.channels().into())?;
        // MSI and INTx are one vector, which channels do not share.
        let is_single = wait.irq().is_some_and(|irq| irq != IrqKind::MsiX);
        let which: Vec<u8> = match is_single {
            true => vec![u8::try_from(dice.u32(0..channels))?],
            false => (0..u8::try_from(channels)?).collect(),
        };
        let (ends, steps) = self.bounds(dice);
        let lanes = if self.number == 0 { LANES } else { log_uniform(dice, 1..LANES + 1) };
        log::info!("round {}: {wait:?}, ring of {ring}, {lanes} lanes, {on_error:?}", self.number);
        let round = ioat::Round {
            shared: self.shared,
            explained: &self.explained,
            seed: self.options.seed,
            number: self.number,
            max_size: self.max_size(MAX_SIZE),
            ring,
            lanes,
            steps,
            ends,
            limit: self.limit(),
            ioat: &ioat,
            pool: reserve(dice, ioat.allocator()),
        };
        let round = &round;
        self.watch(which.into_iter().map(|index| move || round.channel(index)).collect());
        Ok(())
    }

    fn nvme(&mut self, dice: &mut Rng, device: Device) -> Result<(), SoakError> {
        let location = device.location().to_string();
        let available = |kind| device.vector_count(kind).unwrap_or(0);
        let irqs: Vec<IrqKind> =
            [IrqKind::MsiX].into_iter().filter(|&kind| available(kind) > CHANNELS).collect();
        let wait = match (dice.u32(0..4), irqs.first()) {
            (0, _) => Some(WaitMode::Poll),
            (1, Some(&irq)) => Some(WaitMode::Interrupt(irq)),
            _ => None,
        };
        let nvme = Nvme::probe(device, NvmeConfig { wait, ..NvmeConfig::default() })?;
        let namespace = *nvme.namespaces().first().ok_or(SoakError::NoNamespace { location })?;
        let queues = self.channels(nvme.queues().into())?;
        let ring = self.ring(dice);
        let (ends, steps) = self.bounds(dice);
        let round = nvme::Round {
            shared: self.shared,
            seed: self.options.seed,
            number: self.number,
            max_size: self.max_size(MAX_SIZE),
            ring,
            steps,
            ends,
            limit: self.limit(),
            nvme: &nvme,
            namespace,
            pool: reserve(dice, nvme.allocator()),
        };
        let round = &round;
        self.watch((0..queues).map(|index| move || round.queue(index.into())).collect());
        Ok(())
    }

    fn engine(
        &mut self,
        dice: &mut Rng,
        engine: Box<dyn CopyEngine>,
        unit: usize,
        max_pieces: usize,
    ) {
        let (ends, steps) = self.bounds(dice);
        self.channels = 1;
        let round = engine::Round {
            shared: self.shared,
            seed: self.options.seed,
            number: self.number,
            max_size: self.max_size(MAX_SIZE_SLOW),
            unit,
            max_pieces,
            steps,
            ends,
            limit: LIMIT,
        };
        let round = &round;
        self.watch(vec![move || round.run(engine)]);
    }

    /// Runs each in a thread of its own, and tells of progress until all have ended.
    fn watch<F: FnOnce() + Send>(&self, work: Vec<F>) {
        std::thread::scope(|scope| {
            let threads: Vec<_> = work.into_iter().map(|work| scope.spawn(work)).collect();
            while threads.iter().any(|thread| !thread.is_finished()) {
                std::thread::sleep(Duration::from_millis(20));
                self.tell();
            }
            for (channel, thread) in (0..).zip(threads) {
                if thread.join().is_err() {
                    let place = Place { round: self.number, channel, step: 0 };
                    self.shared.unexplained(place, "its thread panicked");
                }
            }
        });
    }

    fn tell(&self) {
        let load = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
        let seconds = self.begin.elapsed().as_secs_f64();
        let (operations, done) = (load(&self.shared.operations), load(&self.shared.bytes));
        self.progress.percent((100.0 * seconds / self.options.time.as_secs_f64()) as f32);
        self.progress.say(format!(
            "soaking {}: round {}, {operations} operations, {:.0}/s, {} verified, {}, {} wrong \
             bytes",
            self.location,
            self.number,
            operations as f64 / seconds.max(1e-9),
            gibibytes(done),
            rate(done as f64 / seconds.max(1e-9)),
            load(&self.shared.wrong_bytes)
        ));
    }
}

/// A pool for the buffers of a round, now and then.
fn reserve(dice: &mut Rng, allocator: &Allocator) -> Option<Arc<Pool>> {
    if chance(dice, 1, 4) {
        return None;
    }
    let reservation = Reservation { len: ioat::POOL, page_size: PageSize::Base };
    // Without it buffers are placed in other ways.
    allocator.reserve(&[reservation]).ok()
}
