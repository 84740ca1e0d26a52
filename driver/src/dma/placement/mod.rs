//! Where a buffer is placed: strategies in order, each of which succeeds or says why not.

mod blocks;
mod deferred;
mod in_place;
mod iommu;
mod physical;
mod pool;
mod reason;
mod report;
mod scatter;
mod strategy;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Backend, Translation};

use super::{AddressSpace, Buffer, Direction, DmaError};

pub use in_place::{place_in_file, place_in_range};
pub(super) use pool::Lease;
pub use pool::{Pool, PoolUsage, Reservation};
pub use reason::{Cause, Reason};
pub use report::{Attempt, Outcome, Report};
pub use strategy::Strategy;

/// What a device demands of the addresses it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Constraints {
    /// The highest address that the device reaches: 2^28 - 1 for 28 address bits.
    pub address_mask: u64,
    /// Alignment of a buffer's first byte, a power of two in bytes.
    pub alignment: u64,
}

impl Default for Constraints {
    /// All of a 64-bit address space, byte by byte.
    fn default() -> Self {
        Constraints { address_mask: u64::MAX, alignment: 1 }
    }
}

impl Constraints {
    /// What memory has to fulfil so that the byte at `offset` of it fulfils these.
    pub(super) fn at_offset(self, offset: usize) -> Result<Constraints, DmaError> {
        if (offset as u64).is_multiple_of(self.alignment) {
            Ok(self)
        } else {
            Err(DmaError::Misaligned { offset, alignment: self.alignment })
        }
    }
}

/// Which strategies a caller wishes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Placement {
    /// All of them in order: contiguous where that can be had, scatter/gather otherwise.
    #[default]
    Auto,
    /// One segment, or nothing.
    Contiguous,
    /// Scatter/gather at once, in base pages that are not neighbours unless
    /// [`Request::longest_run`] says otherwise.
    ScatterGather,
}

/// A buffer that a caller asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Length in bytes.
    pub len: usize,
    /// Which way data will flow.
    pub direction: Direction,
    /// What the device demands.
    pub constraints: Constraints,
    /// Which strategies are tried.
    pub placement: Placement,
    /// The strategies themselves, instead of [`Strategy::order`]'s.
    pub order: Option<Vec<Strategy>>,
    /// How often physically contiguous memory is tried for, each time holding what was
    /// not contiguous; less than `2 * tries * len` bytes are held. At least 1.
    pub tries: u32,
    /// The smallest block, in bytes, that [`Strategy::SmallerBlocks`] takes.
    pub least_block: usize,
    /// The longest IOVA range, in bytes, that [`Strategy::ScatterGather`] takes at a time;
    /// `None` for as long as they come with [`Placement::Auto`], and for one page with
    /// [`Placement::ScatterGather`]. Physical runs are not cut.
    pub longest_run: Option<usize>,
    /// How long [`Strategy::Deferred`] waits.
    pub patience: Duration,
}

impl Request {
    /// `len` bytes by any strategy, anywhere in 64 bits, without waiting.
    #[must_use]
    pub fn new(len: usize, direction: Direction) -> Request {
        Request {
            len,
            direction,
            constraints: Constraints::default(),
            placement: Placement::Auto,
            order: None,
            tries: 4,
            least_block: 64 << 10,
            longest_run: None,
            patience: Duration::ZERO,
        }
    }

    /// With these demands of the device.
    #[must_use]
    pub fn constraints(self, constraints: Constraints) -> Request {
        Request { constraints, ..self }
    }

    /// With this placement.
    #[must_use]
    pub fn placement(self, placement: Placement) -> Request {
        Request { placement, ..self }
    }

    /// With these strategies, in this order.
    #[must_use]
    pub fn order(self, order: impl Into<Vec<Strategy>>) -> Request {
        Request { order: Some(order.into()), ..self }
    }
}

/// Where and for what a buffer is placed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Site<'a> {
    pub(super) space: &'a Arc<AddressSpace>,
    pub(super) device: &'a Arc<dyn Backend>,
    pub(super) request: &'a Request,
}

/// A strategy that placed a buffer.
#[derive(Debug)]
struct Won {
    buffer: Buffer,
    tries: u32,
    through: Option<Strategy>,
}

/// A strategy that did not; after 0 tries it was skipped.
#[derive(Debug)]
struct Declined {
    reason: Reason,
    tries: u32,
}

type Verdict = Result<Won, Declined>;

impl Site<'_> {
    fn won(buffer: Buffer, tries: u32) -> Won {
        Won { buffer, tries, through: None }
    }

    fn skipped(&self, cause: Cause) -> Declined {
        Declined { reason: Reason { asked: self.request.len as u64, cause }, tries: 0 }
    }

    fn declined(&self, cause: Cause, tries: u32) -> Declined {
        Declined { tries, ..self.skipped(cause) }
    }

    fn failed(&self, error: &DmaError, tries: u32) -> Declined {
        Declined { reason: Reason::of(error, self.request.len), tries }
    }

    /// The length in whole pages of the IOMMU and of the kernel.
    fn whole_pages(&self) -> Result<usize, DmaError> {
        let page = usize::try_from(self.space.granule()).unwrap_or(usize::MAX).max(4096);
        let error = DmaError::TooLong { len: self.request.len };
        self.request.len.checked_next_multiple_of(page).ok_or(error)
    }

    fn require(&self, translation: Translation) -> Result<(), Declined> {
        if self.space.translation() == translation {
            Ok(())
        } else {
            Err(self.skipped(Cause::Translation(self.space.translation())))
        }
    }

    /// `seen` is the count of frees before the first strategy was tried, `before` are the
    /// strategies in front of this one.
    fn attempt(&self, strategy: Strategy, seen: u64, before: &[Strategy]) -> Verdict {
        match strategy {
            Strategy::Pool => pool::take(self),
            Strategy::IommuContiguous(pages) => iommu::contiguous(self, pages),
            Strategy::PhysicalContiguous(pages) => {
                physical::contiguous(self, pages, &mut super::Memory::frames)
            }
            Strategy::SmallerBlocks => blocks::place(self, &mut super::Memory::frames),
            Strategy::Deferred => deferred::wait(self, seen, before),
            Strategy::ScatterGather => scatter::place(self, &mut super::Memory::frames),
            // These two need memory that exists.
            Strategy::InPlace | Strategy::Remap => {
                Err(self.skipped(Cause::Other("there is no memory yet".into())))
            }
        }
    }

    /// Tries strategies in order and adds what came of each to the report.
    fn run(&self, order: &[Strategy], mut report: Report) -> Result<Buffer, Report> {
        let seen = self.space.frees();
        for (i, &strategy) in order.iter().enumerate() {
            match self.attempt(strategy, seen, &order[..i]) {
                Ok(won) => return Ok(finish(won, strategy, report)),
                Err(declined) => report.attempts.push(declined.attempt(strategy)),
            }
        }
        Err(report)
    }
}

impl Declined {
    fn attempt(self, strategy: Strategy) -> Attempt {
        let Declined { reason, tries } = self;
        let outcome = if tries == 0 { Outcome::Skipped(reason) } else { Outcome::Failed(reason) };
        Attempt { strategy, tries, outcome }
    }
}

/// Gives a buffer its report.
fn finish(won: Won, strategy: Strategy, mut report: Report) -> Buffer {
    let Won { mut buffer, tries, through } = won;
    let (segments, map_calls) = (buffer.segments().len(), buffer.map_calls());
    let outcome = Outcome::Placed { segments, map_calls, through };
    report.attempts.push(Attempt { strategy, tries, outcome });
    buffer.set_report(report);
    buffer
}

/// Places a buffer for a device.
///
/// # Errors
///
/// [`DmaError::NoPlacement`] with the reason of every strategy when none succeeded.
pub fn place(
    space: &Arc<AddressSpace>,
    device: &Arc<dyn Backend>,
    request: &Request,
) -> Result<Buffer, DmaError> {
    check(request)?;
    let site = Site { space, device, request };
    let standard;
    let order = match &request.order {
        Some(order) => order,
        None => {
            standard = Strategy::order(request.placement, space.translation());
            &standard
        }
    };
    site.run(order, Report::new(request)).map_err(DmaError::NoPlacement)
}

fn check(request: &Request) -> Result<(), DmaError> {
    let alignment = request.constraints.alignment;
    if request.len == 0 {
        return Err(DmaError::Empty);
    }
    if !alignment.is_power_of_two() {
        return Err(DmaError::BadAlignment { alignment });
    }
    Ok(())
}
