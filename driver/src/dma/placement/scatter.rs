//! Pages as they come.

use super::physical::{Frames, locked};
use super::{Placement, Site, Verdict};
use crate::backend::Translation;
use crate::dma::buffer::{clip, physical_runs};
use crate::dma::memory::frames::FRAME;
use crate::dma::{Buffer, DmaError, Memory, PageSize, Segment};

pub(super) fn place(site: &Site<'_>, frames: Frames<'_>) -> Verdict {
    let placed = match site.space.translation() {
        Translation::Iommu => through_iommu(site).map(|buffer| (buffer, 1)),
        Translation::Physical => physical(site, frames),
    };
    placed.map(|(buffer, tries)| Site::won(buffer, tries)).map_err(|error| site.failed(&error, 1))
}

fn through_iommu(site: &Site<'_>) -> Result<Buffer, DmaError> {
    let len = site.whole_pages()?;
    let memory = Memory::allocate(len, PageSize::Base, site.space.needs_fd())?;
    let runs = scattered_runs(site, len, 0)?;
    Buffer::map(site, memory, 0, runs)
}

/// IOVA ranges for `len` bytes, of which the buffer starts `skip` bytes in.
pub(super) fn scattered_runs(
    site: &Site<'_>,
    len: usize,
    skip: usize,
) -> Result<Vec<Segment>, DmaError> {
    let granule = site.space.granule() as usize;
    let longest = match (site.request.longest_run, site.request.placement) {
        (Some(longest), _) => longest.max(granule),
        (None, Placement::ScatterGather) => granule,
        (None, Placement::Auto | Placement::Contiguous) => usize::MAX,
    };
    site.runs(len, skip, longest, granule)
}

impl Site<'_> {
    /// As few IOVA ranges as there are free runs, the first of them aligned as demanded.
    pub(super) fn runs(
        &self,
        len: usize,
        skip: usize,
        longest: usize,
        least: usize,
    ) -> Result<Vec<Segment>, DmaError> {
        let constraints = self.request.constraints.at_offset(skip)?;
        let runs = self.space.take_runs(len, longest, least, constraints.address_mask)?;
        let first = runs.first().map_or(0, |run| run.iova.0);
        if !first.is_multiple_of(constraints.alignment) {
            self.space.give_back(&runs);
            return Err(DmaError::NoAlignedRun { alignment: constraints.alignment, first });
        }
        Ok(runs)
    }
}

fn physical(site: &Site<'_>, frames: Frames<'_>) -> Result<(Buffer, u32), DmaError> {
    let len = site.whole_pages()?;
    let mut try_once = |tries| -> Result<_, DmaError> {
        let memory = locked(len, PageSize::Base, tries)?;
        let runs = physical_runs(&frames(&memory)?);
        under_mask(site, &runs, 0)?;
        Ok((memory, runs))
    };
    let (mut memory, mut runs) = try_once(1)?;
    let mut tries = 1;
    // Hardly any neighbours: they may come in the other direction.
    if runs.len() > 1 && runs.len() > len / FRAME / 2 && site.request.tries > 1 {
        tries = 2;
        if let Ok((other, fewer)) = try_once(2)
            && fewer.len() < runs.len()
        {
            (memory, runs) = (other, fewer);
        }
    }
    Ok((Buffer::physical(site, memory, 0, &runs), tries))
}

/// Whether the device reaches the physical runs of memory, and the first byte is aligned.
pub(super) fn under_mask(site: &Site<'_>, runs: &[Segment], skip: usize) -> Result<(), DmaError> {
    let segments = clip(runs, skip, site.request.len);
    let constraints = site.request.constraints;
    let mask = constraints.address_mask;
    for Segment { iova, len } in &segments {
        if iova.0.checked_add(*len as u64 - 1).is_none_or(|last| last > mask) {
            return Err(DmaError::AboveMask { address: iova.0, len: *len, mask });
        }
    }
    let first = segments.first().map_or(0, |segment| segment.iova.0);
    if first.is_multiple_of(constraints.alignment) {
        Ok(())
    } else {
        Err(DmaError::NoAlignedRun { alignment: constraints.alignment, first })
    }
}
