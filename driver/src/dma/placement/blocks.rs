//! As few and as large blocks as can be had.
//!
//! Through an IOMMU a block is a free run of IOVAs, over the largest pages that there
//! are. Without one it is physically contiguous memory: huge pages of the kernel's pools
//! first, then runs found among small pages. The processor sees one range in both cases.

use std::cmp::Reverse;
use std::ops::Range;

use super::physical::{Frames, locked};
use super::scatter::under_mask;
use super::{Cause, Declined, Site, Verdict};
use crate::backend::Translation;
use crate::dma::buffer::physical_runs;
use crate::dma::memory::frames::{FRAME, runs};
use crate::dma::memory::physical::Blocks;
use crate::dma::{Buffer, DmaError, Memory, PageSize};

pub(super) fn place(site: &Site<'_>, frames: Frames<'_>) -> Verdict {
    match site.space.translation() {
        Translation::Iommu => through_iommu(site)
            .map(|buffer| Site::won(buffer, 1))
            .map_err(|error| site.failed(&error, 1)),
        Translation::Physical => physical(site, frames),
    }
}

fn through_iommu(site: &Site<'_>) -> Result<Buffer, DmaError> {
    let len = site.whole_pages()?;
    let runs = site.runs(len, 0, usize::MAX, site.request.least_block)?;
    let memory = match Memory::assemble(len, site.space.needs_fd()) {
        Ok(memory) => memory,
        Err(error) => {
            site.space.give_back(&runs);
            return Err(error.into());
        }
    };
    Buffer::map(site, memory, 0, runs)
}

fn physical(site: &Site<'_>, frames: Frames<'_>) -> Verdict {
    let failed = |tries| move |error: DmaError| site.failed(&error, tries);
    let len = site.whole_pages().map_err(failed(1))?;
    let mut blocks = Blocks::reserve(len).map_err(DmaError::from).map_err(failed(1))?;
    blocks.fill(PageSize::Huge1G);
    blocks.fill(PageSize::Huge2M);
    let mut held = Vec::new();
    let (mut longest, mut tries) = (0, 0);
    while blocks.missing() > 0 {
        if tries == site.request.tries.max(1) {
            return Err(not_contiguous(site, &blocks, longest, &held, tries));
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
                return Err(not_contiguous(site, &blocks, longest, &held, tries - 1));
            }
            Err(error) => return Err(site.failed(&error, tries)),
        };
        let found = frames(&round).map_err(DmaError::from).map_err(failed(tries))?;
        let mut runs = runs(&found);
        runs.retain(|run| reaches(site, &found, run));
        runs.sort_by_key(|run| Reverse(run.len()));
        longest = runs.first().map_or(0, |run| (run.len() * FRAME) as u64).max(longest);
        for run in runs {
            let missing = blocks.missing();
            if missing == 0 || run.len() * FRAME < site.request.least_block.min(missing) {
                break;
            }
            let pages = run.start..run.start + run.len().min(missing / FRAME);
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
    under_mask(site, &runs, 0).map_err(failed(tries))?;
    Ok(Site::won(Buffer::physical(site, memory, 0, &runs), tries))
}

/// Whether all of a run lies under the device's mask.
fn reaches(site: &Site<'_>, frames: &[u64], run: &Range<usize>) -> bool {
    frames[run.end - 1] <= site.request.constraints.address_mask / FRAME as u64
}

fn not_contiguous(
    site: &Site<'_>,
    blocks: &Blocks,
    longest: u64,
    held: &[Memory],
    tries: u32,
) -> Declined {
    let needed = site.request.least_block.min(blocks.missing()) as u64;
    let held = held.iter().map(|memory| memory.len() as u64).sum();
    site.declined(Cause::NotContiguous { needed, longest, held }, tries)
}
