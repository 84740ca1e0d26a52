//! One IOVA range over pages of one size.

use super::{Attempted, Cause, Context, Placed};
use crate::backend::Translation;
use crate::dma::{Buffer, DmaError, Memory, PageSize};

pub(super) fn contiguous(context: &Context<'_>, page_size: PageSize) -> Attempted {
    context.require(Translation::Iommu)?;
    let len = context.request.len;
    if page_size != PageSize::Base && len < page_size.bytes() {
        return Err(context.skipped(Cause::SmallerThanPage(page_size)));
    }
    map(context, page_size)
        .map(|buffer| Placed::new(buffer, 1))
        .map_err(|error| context.failed_by(&error, 1))
}

fn map(context: &Context<'_>, page_size: PageSize) -> Result<Buffer, DmaError> {
    let len = context.whole_pages()?;
    let memory = Memory::allocate_in(len, page_size, context.space.files())?;
    let align = page_size.bytes() as u64;
    let least = context.alignment();
    let runs = context.space.take_run(len, align, least, context.limits.address_mask)?;
    context.map(memory, 0, runs)
}
