//! Where a buffer is placed: strategies in order, each of which succeeds or says why not.

mod blocks;
mod deferred;
mod in_place;
mod iommu;
mod node;
mod physical;
mod pool;
mod scatter;
#[cfg(test)]
mod tests;
mod why;

use std::sync::Arc;

use super::{
    AddressSpace, Attempt, Buffer, Cause, DmaError, DmaLimits, NodeReport, Outcome, PageSize,
    Reason, Report, Request, Strategy,
};
use crate::backend::{Backend, Translation};
use crate::dma::mapping::Mapping;
use crate::dma::{Memory, Segment};

pub(super) use in_place::{place_in_file, place_in_range};
pub use pool::Reservation;
pub(super) use pool::reserve;

/// Where and for what a buffer is placed.
#[derive(Debug, Clone, Copy)]
struct Context<'a> {
    space: &'a Arc<AddressSpace>,
    owner: &'a Arc<dyn Backend>,
    /// The device's, with its reach narrowed to what the request wishes.
    limits: DmaLimits,
    request: &'a Request,
}

/// A strategy that placed a buffer.
#[derive(Debug)]
struct Placed {
    buffer: Buffer,
    tries: u32,
    through: Option<Strategy>,
    node: Option<NodeReport>,
}

impl Placed {
    fn new(buffer: Buffer, tries: u32) -> Placed {
        Placed { buffer, tries, through: None, node: None }
    }
}

/// A strategy that did not; after 0 tries it was skipped.
#[derive(Debug)]
struct Failed {
    reason: Reason,
    tries: u32,
}

impl Failed {
    fn attempt(self, strategy: Strategy) -> Attempt {
        let Failed { reason, tries } = self;
        let outcome = if tries == 0 { Outcome::Skipped(reason) } else { Outcome::Failed(reason) };
        Attempt { strategy, tries, outcome }
    }
}

type Attempted = Result<Placed, Failed>;

impl<'a> Context<'a> {
    /// Refuses what cannot be placed at all.
    fn new(
        owner: &'a Arc<dyn Backend>,
        space: &'a Arc<AddressSpace>,
        limits: &DmaLimits,
        request: &'a Request,
    ) -> Result<Context<'a>, DmaError> {
        if request.len == 0 {
            return Err(DmaError::Empty);
        }
        if !request.alignment.is_power_of_two() {
            return Err(DmaError::BadAlignment { alignment: request.alignment });
        }
        limits.validate()?;
        if !Arc::ptr_eq(owner.iommu(), space.iommu()) {
            let (location, name) = (owner.location(), space.iommu().name().into());
            return Err(DmaError::ForeignSpace { location, name });
        }
        if request.pool.as_ref().is_some_and(|pool| !Arc::ptr_eq(pool.space(), space)) {
            return Err(DmaError::ForeignPool { location: owner.location() });
        }
        let address_mask = limits.address_mask.min(request.address_mask);
        let limits = DmaLimits { address_mask, ..*limits };
        Ok(Context { space, owner, limits, request })
    }

    fn skipped(&self, cause: Cause) -> Failed {
        self.failed(cause, 0)
    }

    fn failed(&self, cause: Cause, tries: u32) -> Failed {
        Failed { reason: Reason { asked: self.request.len as u64, cause }, tries }
    }

    fn failed_by(&self, error: &DmaError, tries: u32) -> Failed {
        Failed { reason: why::reason_of(error, self.request.len), tries }
    }

    /// Alignment of the buffer's first byte.
    fn alignment(&self) -> u64 {
        self.limits.alignment.max(self.request.alignment)
    }

    /// What memory has to be aligned to so that the byte at `offset` of it is as demanded.
    fn alignment_at(&self, offset: usize) -> Result<u64, DmaError> {
        let alignment = self.alignment();
        if (offset as u64).is_multiple_of(alignment) {
            Ok(alignment)
        } else {
            Err(DmaError::Misaligned { offset, alignment })
        }
    }

    /// Bytes of the smallest page that both the IOMMU and the kernel have.
    fn page(&self) -> usize {
        page_of(self.space)
    }

    /// The length in whole pages of the IOMMU and of the kernel.
    fn whole_pages(&self) -> Result<usize, DmaError> {
        let error = DmaError::TooLong { len: self.request.len };
        self.request.len.checked_next_multiple_of(self.page()).ok_or(error)
    }

    fn require(&self, translation: Translation) -> Result<(), Failed> {
        if self.space.translation() == translation {
            Ok(())
        } else {
            Err(self.skipped(Cause::Translation(self.space.translation())))
        }
    }

    /// Maps memory at IOVA ranges that cover it; the buffer begins `skip` bytes into it.
    fn map(&self, memory: Memory, skip: usize, runs: Vec<Segment>) -> Result<Buffer, DmaError> {
        let access = self.request.direction.access();
        let mapping = Mapping::new(self.space, self.owner, memory, runs.clone(), access)?;
        Ok(Buffer::mapped(mapping, skip, &runs, &self.limits, self.request))
    }

    /// Memory whose physical addresses are known; `runs` cover it from its start.
    fn physical(&self, memory: Memory, skip: usize, runs: &[Segment]) -> Buffer {
        let mapping = Mapping::physical(self.space, self.owner, memory);
        Buffer::mapped(mapping, skip, runs, &self.limits, self.request)
    }

    /// Whether the device can be given what was placed.
    fn checked(&self, attempted: Attempted) -> Attempted {
        let placed = attempted?;
        match self.limits.check_placed(placed.buffer.segments()) {
            Ok(()) => Ok(placed),
            Err(limit) => Err(self.failed_by(&limit.into(), placed.tries)),
        }
    }

    /// `seen` is the count of frees before the first strategy was tried, `before` are the
    /// strategies in front of this one.
    fn attempt(&self, strategy: Strategy, seen: u64, before: &[Strategy]) -> Attempted {
        self.checked(match strategy {
            Strategy::Pool => pool::take(self),
            Strategy::IommuContiguous(pages) => iommu::contiguous(self, pages),
            Strategy::PhysicalContiguous(pages) => {
                physical::contiguous(self, pages, &mut Memory::frames)
            }
            Strategy::SmallerBlocks => blocks::place(self, &mut Memory::frames),
            Strategy::Deferred => deferred::wait(self, seen, before),
            Strategy::ScatterGather => scatter::place(self, &mut Memory::frames),
            // These two need memory that exists.
            Strategy::InPlace | Strategy::Remap => {
                Err(self.skipped(Cause::Other("there is no memory yet".into())))
            }
        })
    }

    fn report(&self) -> Report {
        Report::new(self.request.len, self.request.direction)
    }

    /// Tries strategies in order and adds what came of each to the report.
    fn run(&self, order: &[Strategy], mut report: Report) -> Result<Buffer, Report> {
        let seen = self.space.frees();
        let wanted = self.wanted_node();
        let _preferred = wanted.and_then(|node| self.prefer(node));
        for (i, &strategy) in order.iter().enumerate() {
            let attempted = self.attempt(strategy, seen, &order[..i]);
            match self.on_node(attempted, wanted) {
                Ok(placed) => return Ok(finish(placed, strategy, report)),
                Err(failed) => report.attempts.push(failed.attempt(strategy)),
            }
        }
        Err(report)
    }
}

/// Bytes of the smallest page that both an address space and the kernel have.
fn page_of(space: &AddressSpace) -> usize {
    usize::try_from(space.granule()).unwrap_or(usize::MAX).max(PageSize::Base.bytes())
}

/// Gives a buffer its report.
fn finish(placed: Placed, strategy: Strategy, mut report: Report) -> Buffer {
    let Placed { mut buffer, tries, through, node } = placed;
    report.node = node;
    let (segments, map_calls) = (buffer.segments().len(), buffer.map_calls());
    let outcome = Outcome::Placed { segments, map_calls, through };
    report.attempts.push(Attempt { strategy, tries, outcome });
    buffer.set_report(report);
    buffer
}

/// Places a buffer for a device with limits.
///
/// [`DmaError::NoPlacement`] has the reason of every strategy when none succeeded.
pub(super) fn place(
    owner: &Arc<dyn Backend>,
    space: &Arc<AddressSpace>,
    limits: &DmaLimits,
    request: &Request,
) -> Result<Buffer, DmaError> {
    let context = Context::new(owner, space, limits, request)?;
    let standard;
    let order = match &request.order {
        Some(order) => order,
        None => {
            standard = Strategy::order(request.placement, space.translation());
            &standard
        }
    };
    context.run(order, context.report()).map_err(DmaError::NoPlacement)
}
