//! Running a recipe on a card.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::expression::Values;
use super::{Expected, Recipe, RecipeError, Step, Wait, Write};
use crate::backend::Translation;
use crate::device::Device;
use crate::dma::{
    Buffer, Direction, Mismatch, Pattern, Pieces, Placement, Report, Request, SgList,
};
use crate::irq::{IrqError, Vector};
use crate::mmio::{Bar, poll_until};
use crate::queue::InFlight;
use crate::registers::{AccessMode, Register};

type Result<T> = std::result::Result<T, RecipeError>;

/// What is moved.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct LoopbackOptions {
    /// Bytes.
    pub len: usize,
    /// Where the buffers go.
    pub placement: Placement,
    /// Seed of the pattern.
    pub seed: u64,
}

impl LoopbackOptions {
    /// So many bytes of the pattern 1, placed by any strategy.
    #[must_use]
    pub fn new(len: usize) -> LoopbackOptions {
        LoopbackOptions { len, placement: Placement::Auto, seed: 1 }
    }

    /// With this placement.
    #[must_use]
    pub fn placement(self, placement: Placement) -> LoopbackOptions {
        LoopbackOptions { placement, ..self }
    }

    /// With this seed of the pattern.
    #[must_use]
    pub fn seed(self, seed: u64) -> LoopbackOptions {
        LoopbackOptions { seed, ..self }
    }
}

/// What came of a recipe.
#[derive(Debug)]
#[non_exhaustive]
pub struct Loopback {
    /// Bytes that were moved.
    pub bytes: u64,
    /// Transfers that it took.
    pub transfers: u64,
    /// How long they took.
    pub elapsed: Duration,
    /// How the source was placed; none for a card that is not told where to read.
    pub source: Option<Report>,
    /// How the target was placed; none for a card that is not told where to write.
    pub target: Option<Report>,
    /// What the buffers held then.
    pub verdict: Verdict,
}

/// What the buffers held when the card was done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Every byte of the target is that of the source.
    Verified,
    /// A byte of the target is another one than that of the source.
    Wrong(Mismatch),
    /// The card wrote to its source.
    SourceWritten(Mismatch),
    /// The card had no source: so many bytes of the target are others than before.
    Changed {
        /// How many.
        bytes: u64,
    },
    /// The card had no target, so that nothing shows what it read.
    NothingToCompare,
}

impl Verdict {
    /// Whether nothing is wrong, as far as that shows.
    #[must_use]
    pub fn passed(&self) -> bool {
        match self {
            Verdict::Verified | Verdict::NothingToCompare => true,
            Verdict::Changed { bytes } => *bytes > 0,
            Verdict::Wrong(_) | Verdict::SourceWritten(_) => false,
        }
    }
}

impl Recipe {
    /// Moves a pattern through a card, and verifies it. `stop` ends it early.
    ///
    /// The device's limits are set to those of the recipe. Before the buffers are looked at, and
    /// before they are freed on an error, bus mastering is off and what the card had begun is done:
    /// a recipe that is wrong about when a transfer ends corrupts nothing.
    ///
    /// # Errors
    ///
    /// Fails without an IOMMU; when a buffer cannot be placed; when a register cannot be accessed,
    /// a step does not end in time, or a check fails. Wrong data is no error but a [`Verdict`].
    pub fn run(
        &self,
        device: &mut Device,
        options: &LoopbackOptions,
        stop: &AtomicBool,
    ) -> Result<Loopback> {
        let location = device.location().to_owned();
        let info = device.space().iommu().info().map_err(crate::device::DeviceError::from)?;
        if info.translation != Translation::Iommu {
            return Err(RecipeError::NoIommu { location });
        }
        device.set_dma_limits(self.limits)?;
        let place = |is_wanted: bool, direction| -> Result<Option<Buffer>> {
            let request = Request::new(options.len, direction).placement(options.placement);
            let request = request.alignment(self.limits.alignment);
            is_wanted.then(|| device.allocate(&request)).transpose().map_err(Into::into)
        };
        let mut source = place(self.has_source(), Direction::ToDevice)?;
        let mut target = place(self.has_target(), Direction::FromDevice)?;
        let (sent, stale) = (Pattern::new(options.seed), Pattern::new(!options.seed));
        if let Some(source) = &mut source {
            sent.fill(source, 0, options.len, 0)?;
        }
        if let Some(target) = &mut target {
            // Bytes that are wrong everywhere, so that what the card leaves out shows.
            stale.fill(target, 0, options.len, 0)?;
        }
        let reports = [&source, &target].map(|b| b.as_ref().map(|buffer| buffer.report().clone()));
        let pieces = pieces(source.as_ref(), target.as_ref(), self)?;
        let card = Card::open(self, device)?;
        let mut in_flight = InFlight::new(device);
        let slot = in_flight.insert((source, target));
        device.set_bus_master(true)?;
        let begin = Instant::now();
        let (transfers, bytes) = card.run(&pieces, options.len as u64, stop)?;
        let elapsed = begin.elapsed();
        // Whatever the recipe says of the end, the card reaches memory no more.
        device.quiesce()?;
        let (source, target) =
            in_flight.complete(slot).expect("it was put in above, and completed nowhere else");
        let verdict = verdict(source.as_ref(), target.as_ref(), (sent, stale), options.len)?;
        let [source, target] = reports;
        Ok(Loopback { bytes, transfers, elapsed, source, target, verdict })
    }
}

/// The addresses and lengths of the transfers; a side that is not there is all zeros.
fn pieces(
    source: Option<&Buffer>,
    target: Option<&Buffer>,
    recipe: &Recipe,
) -> Result<Vec<Values>> {
    let lists = [source, target].map(|buffer| buffer.map(SgList::of).transpose());
    let [source, target] = lists;
    let (source, target) = (source?, target?);
    let limits = &recipe.limits;
    let one = |list: &SgList, at: fn(u64, u64) -> Values| -> Result<Vec<Values>> {
        Ok(list.cut(limits)?.iter().map(|cut| at(cut.iova.0, cut.len as u64)).collect())
    };
    match (source, target) {
        (Some(source), Some(target)) => {
            let pieces = Pieces::new(&source, &target, limits)?;
            Ok(pieces
                .map(|p| Values { source: p.source.0, target: p.target.0, length: p.len })
                .collect())
        }
        (Some(list), None) => one(&list, |source, length| Values { source, target: 0, length }),
        (None, Some(list)) => one(&list, |target, length| Values { source: 0, target, length }),
        (None, None) => Ok(Vec::new()),
    }
}

fn verdict(
    source: Option<&Buffer>,
    target: Option<&Buffer>,
    (sent, stale): (Pattern, Pattern),
    len: usize,
) -> Result<Verdict> {
    if let Some(source) = source
        && let Err(wrong) = sent.check(source, 0, len, 0)?
    {
        return Ok(Verdict::SourceWritten(wrong));
    }
    let Some(target) = target else { return Ok(Verdict::NothingToCompare) };
    if source.is_some() {
        return Ok(match sent.check(target, 0, len, 0)? {
            Ok(()) => Verdict::Verified,
            Err(wrong) => Verdict::Wrong(wrong),
        });
    }
    let (mut found, mut before) = ([0; 4096], [0; 4096]);
    let mut bytes = 0;
    for start in (0..len).step_by(found.len()) {
        let part = found.len().min(len - start);
        target.read(start, &mut found[..part])?;
        stale.bytes(start as u64, &mut before[..part]);
        let differ = found[..part].iter().zip(&before[..part]).filter(|(a, b)| a != b);
        bytes += differ.count() as u64;
    }
    Ok(Verdict::Changed { bytes })
}

/// The parts of a card that a recipe uses.
struct Card<'a> {
    recipe: &'a Recipe,
    location: String,
    bars: Vec<(u8, Bar)>,
    vectors: Vec<Vector>,
}

impl<'a> Card<'a> {
    fn open(recipe: &'a Recipe, device: &Device) -> Result<Card<'a>> {
        let mut bars: Vec<(u8, Bar)> = Vec::new();
        for index in recipe.bars() {
            if bars.iter().all(|(open, _)| *open != index) {
                bars.push((index, device.bar(index)?));
            }
        }
        let vectors = match recipe.vectors() {
            Some((kind, count)) => device.vectors(kind, count)?,
            None => Vec::new(),
        };
        Ok(Card { recipe, location: device.location().to_owned(), bars, vectors })
    }

    /// Runs every transfer; returns how many, and their bytes.
    fn run(&self, pieces: &[Values], len: u64, stop: &AtomicBool) -> Result<(u64, u64)> {
        let nothing = Values { source: 0, target: 0, length: 0 };
        for write in &self.recipe.setup {
            self.write(write, &nothing)?;
        }
        let mut done = 0;
        for (transfer, values) in (0..).zip(pieces) {
            if stop.load(Ordering::Relaxed) {
                return Err(RecipeError::Interrupted { done, bytes: len });
            }
            for step in &self.recipe.steps {
                self.step(step, values, transfer)?;
            }
            done += values.length;
        }
        Ok((pieces.len() as u64, done))
    }

    fn step(&self, step: &Step, values: &Values, transfer: u64) -> Result<()> {
        if let Wait::Irq { vector, .. } = step.wait {
            // What came before is not of this step.
            self.vector(vector)?.take_count()?;
        }
        for write in &step.writes {
            self.write(write, values)?;
        }
        if let Some(state) = self.wait(step)? {
            return Err(RecipeError::Timeout {
                location: self.location.clone(),
                step: step.name.clone(),
                transfer,
                waited: step.timeout,
                state,
            });
        }
        for check in &step.checks {
            let found = self.read(check)?;
            if found != check.equals {
                return Err(RecipeError::Check {
                    location: self.location.clone(),
                    step: step.name.clone(),
                    transfer,
                    state: state(check, found),
                });
            }
        }
        for write in &step.after {
            self.write(write, values)?;
        }
        if let Wait::Irq { vector, .. } = step.wait {
            self.vector(vector)?.unmask()?;
        }
        Ok(())
    }

    /// What is there instead when the time is over; none when what was waited for came.
    fn wait(&self, step: &Step) -> Result<Option<String>> {
        match &step.wait {
            Wait::Irq { kind, vector } => match self.vector(*vector)?.wait(step.timeout) {
                Ok(_) => Ok(None),
                Err(IrqError::Timeout { .. }) => {
                    Ok(Some(format!("no interrupt came on {kind} vector {vector}")))
                }
                Err(error) => Err(error.into()),
            },
            Wait::Register(expected) => {
                let mut last = 0;
                let came = poll_until(step.timeout, || {
                    last = self.read(expected)?;
                    Ok::<_, RecipeError>((last == expected.equals).then_some(()))
                })?;
                Ok(came.is_none().then(|| state(expected, last)))
            }
        }
    }

    fn vector(&self, index: u32) -> Result<&Vector> {
        let found = self.vectors.iter().find(|vector| vector.index() == index);
        found.ok_or_else(|| RecipeError::value("wait", format!("vector {index} is not enabled")))
    }

    fn bar(&self, index: u8, register: &Register) -> Result<&Bar> {
        let found = self.bars.iter().find(|(open, _)| *open == index);
        found
            .map(|(_, bar)| bar)
            .ok_or_else(|| RecipeError::value(&register.name, format!("BAR{index} is not open")))
    }

    fn write(&self, write: &Write, values: &Values) -> Result<()> {
        let Write { bar, register, field, value } = write;
        let problem = |problem: String| RecipeError::value(&register.name, problem);
        let bar = self.bar(*bar, register)?;
        let value = value.value(values).map_err(|error| problem(error.to_string()))?;
        let value = match field {
            None => value,
            Some(field) => {
                let reads = matches!(register.access, AccessMode::ReadWrite);
                let current = if reads { bar.read_register(register)? } else { 0 };
                let value = value.to_string();
                register
                    .assign(current, [(&**field, &*value)])
                    .map_err(|error| problem(error.to_string()))?
            }
        };
        if value > register.all_ones() {
            let bits = u32::from(register.width) * 8;
            return Err(problem(format!("{value:#x} does not fit its {bits} bits")));
        }
        Ok(bar.write_register(register, value)?)
    }

    fn read(&self, expected: &Expected) -> Result<u64> {
        let Expected { bar, register, field, .. } = expected;
        let value = self.bar(*bar, register)?.read_register(register)?;
        let field = field.as_ref().and_then(|field| register.field(field));
        Ok(field.map_or(value, |field| field.extract(value)))
    }
}

fn state(expected: &Expected, found: u64) -> String {
    let Expected { register, field, equals, .. } = expected;
    let field = field.as_ref().map_or_else(String::new, |field| format!(".{field}"));
    format!("{}{field} is {found:#x}, not {equals:#x}", register.name)
}

impl Recipe {
    /// The BARs that it accesses, some of them more than once.
    fn bars(&self) -> impl Iterator<Item = u8> {
        let of_step = |step: &Step| {
            let writes = step.writes.iter().chain(&step.after).map(|write| write.bar);
            let checks = step.checks.iter().map(|check| check.bar);
            let wait = match &step.wait {
                Wait::Register(expected) => Some(expected.bar),
                Wait::Irq { .. } => None,
            };
            writes.chain(checks).chain(wait).collect::<Vec<_>>()
        };
        let setup = self.setup.iter().map(|write| write.bar);
        setup.chain(self.steps.iter().flat_map(of_step))
    }
}
