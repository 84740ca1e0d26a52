//! Pages as they come.

use super::physical::{Frames, locked, under_mask};
use super::{Attempted, Context, Placed};
use crate::backend::Translation;
use crate::dma::buffer::physical_runs;
use crate::dma::memory::frames::frame_bytes;
use crate::dma::{Buffer, DmaError, Memory, PageSize, Placement, Segment};

pub(super) fn place(context: &Context<'_>, frames: Frames<'_>) -> Attempted {
    let placed = match context.space.translation() {
        Translation::Iommu => through_iommu(context).map(|buffer| (buffer, 1)),
        Translation::Physical => physical(context, frames),
    };
    placed
        .map(|(buffer, tries)| Placed::new(buffer, tries))
        .map_err(|error| context.failed_by(&error, 1))
}

fn through_iommu(context: &Context<'_>) -> Result<Buffer, DmaError> {
    let len = context.whole_pages()?;
    let memory = Memory::allocate_in(len, PageSize::Base, context.space.files())?;
    let runs = scattered_runs(context, len, 0)?;
    context.map(memory, 0, runs)
}

/// IOVA ranges for `len` bytes, of which the buffer starts `skip` bytes in.
pub(super) fn scattered_runs(
    context: &Context<'_>,
    len: usize,
    skip: usize,
) -> Result<Vec<Segment>, DmaError> {
    let granule = context.space.granule() as usize;
    let longest = match (context.request.longest_run, context.request.placement) {
        (Some(longest), _) => longest.max(granule),
        (None, Placement::ScatterGather) => granule,
        (None, Placement::Auto | Placement::Contiguous) => usize::MAX,
    };
    context.runs(len, skip, longest, granule)
}

impl Context<'_> {
    /// As few IOVA ranges as there are free runs, the first of them aligned as demanded.
    pub(super) fn runs(
        &self,
        len: usize,
        skip: usize,
        longest: usize,
        least: usize,
    ) -> Result<Vec<Segment>, DmaError> {
        let alignment = self.alignment_at(skip)?;
        let runs = self.space.take_runs(len, longest, least, self.limits.address_mask)?;
        let first = runs.first().map_or(0, |run| run.iova.0);
        if !first.is_multiple_of(alignment) {
            self.space.give_back(&runs);
            return Err(DmaError::NoAlignedRun { alignment, first });
        }
        Ok(runs)
    }
}

fn physical(context: &Context<'_>, frames: Frames<'_>) -> Result<(Buffer, u32), DmaError> {
    let len = context.whole_pages()?;
    let mut try_once = |tries| -> Result<_, DmaError> {
        let memory = locked(len, PageSize::Base, tries)?;
        let runs = physical_runs(&frames(&memory)?);
        under_mask(context, &runs, 0)?;
        Ok((memory, runs))
    };
    let (mut memory, mut runs) = try_once(1)?;
    let mut tries = 1;
    // Hardly any neighbours: they may come in the other direction.
    if runs.len() > 1 && runs.len() > len / frame_bytes() / 2 && context.request.tries > 1 {
        tries = 2;
        if let Ok((other, fewer)) = try_once(2)
            && fewer.len() < runs.len()
        {
            (memory, runs) = (other, fewer);
        }
    }
    Ok((context.physical(memory, 0, &runs), tries))
}
