//! Memory that the caller has already, mapped where it is, without a copy.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::physical::under_mask;
use super::scatter::scattered_runs;
use super::{Attempted, Context, Placed, finish, page_of};
use crate::backend::{Backend, Translation};
use crate::dma::buffer::{clip, physical_runs};
use crate::dma::{
    AddressSpace, Buffer, Cause, DmaError, DmaLimits, Memory, MemoryAccessError, Placement,
    Request, Strategy,
};

/// Makes a buffer of a part of a file, see
/// [`Allocator::adopt_file`](crate::dma::Allocator::adopt_file).
pub(in crate::dma) fn place_in_file(
    owner: &Arc<dyn Backend>,
    space: &Arc<AddressSpace>,
    limits: &DmaLimits,
    file: impl AsFd,
    offset: u64,
    request: &Request,
) -> Result<Buffer, DmaError> {
    let context = Context::new(owner, space, limits, request)?;
    let (memory, skip) = Memory::of_file(file, offset, request.len)?;
    if request.direction.access().writes() && !memory.is_writable() {
        return Err(MemoryAccessError::ReadOnly { offset: skip, len: request.len }.into());
    }
    report(&context, in_place(&context, memory, skip))
}

/// Makes a buffer of an address range of this process.
///
/// # Safety
///
/// As [`Allocator::adopt`](crate::dma::Allocator::adopt).
pub(in crate::dma) unsafe fn place_in_range(
    owner: &Arc<dyn Backend>,
    space: &Arc<AddressSpace>,
    limits: &DmaLimits,
    base: NonNull<u8>,
    request: &Request,
) -> Result<Buffer, DmaError> {
    let context = Context::new(owner, space, limits, request)?;
    let page = page_of(space);
    let skip = base.addr().get() % page;
    let too_long = DmaError::TooLong { len: request.len };
    let whole = request.len.checked_add(skip).and_then(|len| len.checked_next_multiple_of(page));
    let whole = whole.and_then(NonZeroUsize::new).ok_or(too_long)?;
    // SAFETY: the start of the page that holds `base`, which the caller vouches for.
    let first = unsafe { base.byte_sub(skip) };
    // SAFETY: the caller vouches for the pages as long as the buffer lives.
    let memory = unsafe { Memory::lend(first, whole) };
    report(&context, in_place(&context, memory, skip))
}

fn report(context: &Context<'_>, attempted: Attempted) -> Result<Buffer, DmaError> {
    let mut report = context.report();
    match context.checked(attempted) {
        Ok(placed) => Ok(finish(placed, Strategy::InPlace, report)),
        Err(failed) => {
            report.attempts.push(failed.attempt(Strategy::InPlace));
            Err(DmaError::NoPlacement(report))
        }
    }
}

fn in_place(context: &Context<'_>, memory: Memory, skip: usize) -> Attempted {
    match context.space.translation() {
        Translation::Iommu => through_iommu(context, memory, skip)
            .map(|buffer| Placed::new(buffer, 1))
            .map_err(|error| context.failed_by(&error, 1)),
        Translation::Physical => physical(context, memory, skip),
    }
}

fn through_iommu(context: &Context<'_>, memory: Memory, skip: usize) -> Result<Buffer, DmaError> {
    let request = context.request;
    let runs = match request.placement {
        Placement::Contiguous => {
            let (least, mask) = (context.alignment_at(skip)?, context.limits.address_mask);
            context.space.take_run(memory.len(), memory.page_size().bytes() as u64, least, mask)?
        }
        Placement::Auto | Placement::ScatterGather => scattered_runs(context, memory.len(), skip)?,
    };
    context.map(memory, skip, runs)
}

fn physical(context: &Context<'_>, memory: Memory, skip: usize) -> Attempted {
    let failed = |error: DmaError| context.failed_by(&error, 1);
    memory.lock().map_err(DmaError::from).map_err(failed)?;
    let runs = physical_runs(&memory.frames().map_err(DmaError::from).map_err(failed)?);
    under_mask(context, &runs, skip).map_err(failed)?;
    let segments = clip(&runs, skip, context.request.len);
    if context.request.placement == Placement::Contiguous && segments.len() > 1 {
        let longest = segments.iter().map(|segment| segment.len as u64).max().unwrap_or(0);
        let needed = context.request.len as u64;
        return Err(context.failed(Cause::NotContiguous { needed, longest, held: 0 }, 1));
    }
    Ok(Placed::new(context.physical(memory, skip, &runs), 1))
}
