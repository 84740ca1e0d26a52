//! Physically contiguous memory, where there is no IOMMU.
//!
//! What drivers did before IOMMUs: allocate, look where the pages lie, and if they are not
//! neighbours *hold* them while allocating again, since pages that are given back at once
//! come back at once. After [`Request::tries`](super::Request::tries) rounds everything
//! held is released. With 2 tries that is the method as it was published in 1999. From the
//! third try on, base pages are asked for twice as long, and a run anywhere among them is
//! moved to addresses of its own (`mremap`).

use std::ops::Range;

use super::{Attempted, Cause, Context, Placed};
use crate::backend::Translation;
use crate::dma::buffer::{clip, physical_runs};
use crate::dma::memory::frames::{self, frame_bytes};
use crate::dma::memory::physical::Blocks;
use crate::dma::{DmaError, FrameError, LimitExceeded, Memory, PageSize, Segment};

/// Tells the frames of locked memory.
pub(super) type Frames<'a> = &'a mut dyn FnMut(&Memory) -> Result<Vec<u64>, FrameError>;

/// Memory whose pages are present and stay so.
///
/// The kernel hands neighbours out upwards or downwards, depending on what was freed
/// before: odd tries touch the pages from the first to the last, even ones from the last to
/// the first.
pub(super) fn locked(len: usize, page_size: PageSize, tries: u32) -> Result<Memory, DmaError> {
    let memory = Memory::absent(len, page_size, None)?;
    if tries.is_multiple_of(2) {
        memory.touch_downwards()?
    } else {
        memory.touch()?
    }
    memory.lock()?;
    Ok(memory)
}

pub(super) fn contiguous(
    context: &Context<'_>,
    page_size: PageSize,
    frames: Frames<'_>,
) -> Attempted {
    context.require(Translation::Physical)?;
    let request = context.request;
    if page_size != PageSize::Base && request.len < page_size.bytes() {
        return Err(context.skipped(Cause::SmallerThanPage(page_size)));
    }
    let len = context.whole_pages().map_err(|error| context.failed_by(&error, 1))?;
    let mut held: Vec<Memory> = Vec::new();
    let mut longest = 0;
    // Contiguous memory that the device does not reach says more than none at all.
    let mut unreached = None;
    let mut tries = 0;
    for _ in 0..request.tries.max(1) {
        let wider = tries >= 2 && page_size == PageSize::Base;
        let ask = if wider { len.saturating_mul(2) } else { len };
        let memory = match locked(ask, page_size, tries + 1) {
            Ok(memory) => memory,
            Err(error) if held.is_empty() => return Err(context.failed_by(&error, 1)),
            // As much is held as can be had.
            Err(_) => break,
        };
        tries += 1;
        let failed = |error: DmaError| context.failed_by(&error, tries);
        let found = frames(&memory).map_err(DmaError::from).map_err(failed)?;
        let runs = physical_runs(&found);
        if !wider && clip(&runs, 0, request.len).len() == 1 {
            match under_mask(context, &runs, 0) {
                Ok(()) => {
                    return Ok(Placed::new(context.physical(memory, 0, &runs), tries));
                }
                Err(error) => unreached = Some(error),
            }
        } else if wider
            // The lowest one, for the device's mask.
            && let Some(run) = frames::runs(&found)
                .into_iter()
                .filter(|run| run.len() * frame_bytes() >= len)
                .min_by_key(|run| found[run.start])
        {
            let (memory, runs) = moved(&memory, run.start..run.start + len / frame_bytes(), frames)
                .map_err(failed)?;
            match under_mask(context, &runs, 0) {
                Ok(()) if runs.len() == 1 => {
                    return Ok(Placed::new(context.physical(memory, 0, &runs), tries));
                }
                // Migrated while it was moved.
                Ok(()) => {}
                Err(error) => unreached = Some(error),
            }
            held.push(memory);
        }
        longest = runs.iter().map(|run| run.len as u64).max().unwrap_or(0).max(longest);
        held.push(memory);
    }
    if let Some(error) = unreached {
        return Err(context.failed_by(&error, tries));
    }
    let held = held.iter().map(|memory| memory.len() as u64).sum();
    Err(context.failed(Cause::NotContiguous { needed: len as u64, longest, held }, tries))
}

/// Pages of a larger memory at addresses of their own, and where they lie now.
fn moved(
    from: &Memory,
    pages: Range<usize>,
    frames: Frames<'_>,
) -> Result<(Memory, Vec<Segment>), DmaError> {
    let mut blocks = Blocks::reserve(pages.len() * frame_bytes())?;
    blocks.take(from, pages)?;
    let memory = blocks.finish()?;
    memory.lock()?;
    let runs = physical_runs(&frames(&memory)?);
    Ok((memory, runs))
}

/// Whether the device reaches the physical runs of memory, and the first byte is aligned.
pub(super) fn under_mask(
    context: &Context<'_>,
    runs: &[Segment],
    skip: usize,
) -> Result<(), DmaError> {
    let segments = clip(runs, skip, context.request.len);
    let (alignment, mask) = (context.alignment(), context.limits.address_mask);
    for Segment { iova, len } in &segments {
        if iova.0.checked_add(*len as u64 - 1).is_none_or(|last| last > mask) {
            let (address, len) = (iova.0, *len as u64);
            return Err(LimitExceeded::AboveMask { address, len, mask }.into());
        }
    }
    let first = segments.first().map_or(0, |segment| segment.iova.0);
    if first.is_multiple_of(alignment) {
        Ok(())
    } else {
        Err(DmaError::NoAlignedRun { alignment, first })
    }
}
