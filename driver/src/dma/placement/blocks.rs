//! As few and as large blocks as can be had.
//!
//! Through an IOMMU a block is a free run of IOVAs, over the largest pages that there
//! are. Without one it is physically contiguous memory: huge pages of the kernel's pools
//! first, then runs found among small pages. The processor sees one range in both cases.

use std::cmp::Reverse;
use std::ops::Range;

use super::physical::{Frames, locked, under_mask};
use super::{Attempted, Cause, Context, Failed, Placed};
use crate::backend::Translation;
use crate::dma::buffer::physical_runs;
use crate::dma::memory::frames::{frame_bytes, runs};
use crate::dma::memory::physical::Blocks;
use crate::dma::{Buffer, DmaError, Memory, PageSize};

pub(super) fn place(context: &Context<'_>, frames: Frames<'_>) -> Attempted {
    match context.space.translation() {
        Translation::Iommu => through_iommu(context)
            .map(|buffer| Placed::new(buffer, 1))
            .map_err(|error| context.failed_by(&error, 1)),
        Translation::Physical => physical(context, frames),
    }
}

fn through_iommu(context: &Context<'_>) -> Result<Buffer, DmaError> {
    let len = context.whole_pages()?;
    let runs = context.runs(len, 0, usize::MAX, context.request.least_block)?;
    let memory = match Memory::assemble(len, context.space.files()) {
        Ok(memory) => memory,
        Err(error) => {
            context.space.give_back(&runs);
            return Err(error.into());
        }
    };
    context.map(memory, 0, runs)
}

fn physical(context: &Context<'_>, frames: Frames<'_>) -> Attempted {
    let failed = |tries| move |error: DmaError| context.failed_by(&error, tries);
    let len = context.whole_pages().map_err(failed(1))?;
    let mut blocks = Blocks::reserve(len).map_err(DmaError::from).map_err(failed(1))?;
    blocks.fill(PageSize::Huge1G);
    blocks.fill(PageSize::Huge2M);
    let mut held = Vec::new();
    let (mut longest, mut tries) = (0, 0);
    while blocks.missing() > 0 {
        if tries == context.request.tries.max(1) {
            return Err(not_contiguous(context, &blocks, longest, &held, tries));
        }
        tries += 1;
        let missing = blocks.missing();
        let page_size = match missing {
            0..0x20_0000 => PageSize::Base,
            _ => PageSize::Transparent,
        };
        let round = match locked(missing, page_size, tries) {
            Ok(memory) => memory,
            Err(_) if tries > 1 => {
                return Err(not_contiguous(context, &blocks, longest, &held, tries - 1));
            }
            Err(error) => return Err(context.failed_by(&error, tries)),
        };
        let found = frames(&round).map_err(DmaError::from).map_err(failed(tries))?;
        let mut runs = runs(&found);
        runs.retain(|run| reaches(context, &found, run));
        runs.sort_by_key(|run| Reverse(run.len()));
        longest = runs.first().map_or(0, |run| (run.len() * frame_bytes()) as u64).max(longest);
        for run in runs {
            let missing = blocks.missing();
            if missing == 0 || run.len() * frame_bytes() < context.request.least_block.min(missing)
            {
                break;
            }
            let pages = run.start..run.start + run.len().min(missing / frame_bytes());
            blocks.take(&round, pages).map_err(DmaError::from).map_err(failed(tries))?;
        }
        // What is left over is held, so that the next round finds other pages.
        held.push(round);
    }
    drop(held);
    let tries = tries.max(1);
    let memory = blocks.finish().map_err(DmaError::from).map_err(failed(tries))?;
    memory.lock().map_err(DmaError::from).map_err(failed(tries))?;
    let runs = physical_runs(&frames(&memory).map_err(DmaError::from).map_err(failed(tries))?);
    under_mask(context, &runs, 0).map_err(failed(tries))?;
    Ok(Placed::new(context.physical(memory, 0, &runs), tries))
}

/// Whether all of a run lies under the device's mask.
fn reaches(context: &Context<'_>, frames: &[u64], run: &Range<usize>) -> bool {
    frames[run.end - 1] <= context.limits.address_mask / frame_bytes() as u64
}

fn not_contiguous(
    context: &Context<'_>,
    blocks: &Blocks,
    longest: u64,
    held: &[Memory],
    tries: u32,
) -> Failed {
    let needed = context.request.least_block.min(blocks.missing()) as u64;
    let held = held.iter().map(|memory| memory.len() as u64).sum();
    context.failed(Cause::NotContiguous { needed, longest, held }, tries)
}
