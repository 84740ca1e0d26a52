//! Memory that the caller has already, mapped where it is, without a copy.

use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use super::scatter::{scattered_runs, under_mask};
use super::{Cause, Placement, Report, Request, Site, Strategy, Verdict, check, finish};
use crate::backend::{Backend, Translation};
use crate::dma::buffer::{clip, physical_runs};
use crate::dma::{AddressSpace, Buffer, DmaError, Memory};

/// Makes a buffer of a part of a file: a memfd, shared memory, or a file in a huge page
/// file system. What is written to the buffer is written to the file.
///
/// The part starts `offset` bytes into the file and has the request's length; neither
/// needs to be a multiple of a page, but the device is given whole pages. See
/// [`Memory::of_file`] for what the file has to keep to. Files on disks can be given to
/// a device that reads them; for one that writes them, the kernel refuses to pin the pages.
///
/// # Errors
///
/// Fails when the file is too short, cannot be mapped, or the pages cannot be given to the
/// device; [`DmaError::NoPlacement`] has the reason.
pub fn place_in_file(
    space: &Arc<AddressSpace>,
    device: &Arc<dyn Backend>,
    file: impl AsFd,
    offset: u64,
    request: &Request,
) -> Result<Buffer, DmaError> {
    check(request)?;
    let site = Site { space, device, request };
    let (memory, skip) = Memory::of_file(file, offset, request.len)?;
    report(&site, in_place(&site, memory, skip))
}

/// Makes a buffer of an address range of this process: `request.len` bytes from `base` on.
///
/// # Errors
///
/// [`DmaError::NoPlacement`] with the reason when the pages cannot be given to the device.
///
/// # Safety
///
/// Until [`Buffer::release`] returned `Ok` (or the buffer was dropped and nothing was
/// logged as staying allocated), of the whole pages that hold the range:
///
/// - they stay mapped, readable and writable, at these addresses;
/// - no Rust reference points into the range, and none to other bytes of these pages that
///   a device writing past the range would change;
/// - without an IOMMU they are not given to a child by `fork` while a device uses them:
///   the first write afterwards would move them (`MADV_DONTFORK` prevents that). They stay
///   locked (`mlock`) afterwards.
pub unsafe fn place_in_range(
    space: &Arc<AddressSpace>,
    device: &Arc<dyn Backend>,
    base: NonNull<u8>,
    request: &Request,
) -> Result<Buffer, DmaError> {
    check(request)?;
    let site = Site { space, device, request };
    let page = usize::try_from(space.granule()).unwrap_or(usize::MAX).max(4096);
    let skip = base.addr().get() % page;
    let too_long = DmaError::TooLong { len: request.len };
    let whole = request.len.checked_add(skip).and_then(|len| len.checked_next_multiple_of(page));
    let whole = whole.and_then(NonZeroUsize::new).ok_or(too_long)?;
    // SAFETY: the start of the page that holds `base`, which the caller vouches for.
    let first = unsafe { base.byte_sub(skip) };
    // SAFETY: the caller vouches for the pages as long as the buffer lives.
    let memory = unsafe { Memory::lend(first, whole) };
    report(&site, in_place(&site, memory, skip))
}

fn report(site: &Site<'_>, verdict: Verdict) -> Result<Buffer, DmaError> {
    let mut report = Report::new(site.request);
    match verdict {
        Ok(won) => Ok(finish(won, Strategy::InPlace, report)),
        Err(declined) => {
            report.attempts.push(declined.attempt(Strategy::InPlace));
            Err(DmaError::NoPlacement(report))
        }
    }
}

fn in_place(site: &Site<'_>, memory: Memory, skip: usize) -> Verdict {
    match site.space.translation() {
        Translation::Iommu => through_iommu(site, memory, skip)
            .map(|buffer| Site::won(buffer, 1))
            .map_err(|error| site.failed(&error, 1)),
        Translation::Physical => physical(site, memory, skip),
    }
}

fn through_iommu(site: &Site<'_>, memory: Memory, skip: usize) -> Result<Buffer, DmaError> {
    let request = site.request;
    let runs = match request.placement {
        Placement::Contiguous => {
            let constraints = request.constraints.at_offset(skip)?;
            site.space.take_run(memory.len(), memory.page_size().bytes() as u64, &constraints)?
        }
        Placement::Auto | Placement::ScatterGather => scattered_runs(site, memory.len(), skip)?,
    };
    Buffer::map(site, memory, skip, runs)
}

fn physical(site: &Site<'_>, memory: Memory, skip: usize) -> Verdict {
    let failed = |error: DmaError| site.failed(&error, 1);
    memory.lock().map_err(DmaError::from).map_err(failed)?;
    let runs = physical_runs(&memory.frames().map_err(DmaError::from).map_err(failed)?);
    under_mask(site, &runs, skip).map_err(failed)?;
    let segments = clip(&runs, skip, site.request.len);
    if site.request.placement == Placement::Contiguous && segments.len() > 1 {
        let longest = segments.iter().map(|segment| segment.len as u64).max().unwrap_or(0);
        let needed = site.request.len as u64;
        return Err(site.declined(Cause::NotContiguous { needed, longest, held: 0 }, 1));
    }
    Ok(Site::won(Buffer::physical(site, memory, skip, &runs), 1))
}
