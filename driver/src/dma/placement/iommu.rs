//! One IOVA range over pages of one size.

use super::{Cause, Site, Verdict};
use crate::backend::Translation;
use crate::dma::{Buffer, DmaError, Memory, PageSize};

pub(super) fn contiguous(site: &Site<'_>, page_size: PageSize) -> Verdict {
    site.require(Translation::Iommu)?;
    let len = site.request.len;
    if page_size != PageSize::Base && len < page_size.bytes() {
        return Err(site.skipped(Cause::SmallerThanPage(page_size)));
    }
    map(site, page_size).map(|buffer| Site::won(buffer, 1)).map_err(|error| site.failed(&error, 1))
}

fn map(site: &Site<'_>, page_size: PageSize) -> Result<Buffer, DmaError> {
    let len = site.whole_pages()?;
    let memory = Memory::allocate(len, page_size, site.space.needs_fd())?;
    let align = page_size.bytes() as u64;
    let runs = site.space.take_run(len, align, &site.request.constraints)?;
    Buffer::map(site, memory, 0, runs)
}
