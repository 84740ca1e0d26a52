//! What a server says of a region, and the pieces of it that are mapped.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::unistd::{SysconfVar, sysconf};
use vfio_bindings::bindings::vfio as uapi;
use vm_memory::{FileOffset, MmapRegion};
use zerocopy::{FromBytes, IntoBytes};

use super::connection::{Connection, Reply, Request};
use super::message::{CapabilityHeader, Command, RegionDescription, SparseArea, SparseMmap};
use crate::backend::{BackendError, MappedRegion, Region, RegionInfo, Result};

/// Room for the description of a region with its capabilities, at first.
const ROOM: u32 = 4096;
/// The most room that a server may ask for: 4,000 areas.
const MOST_ROOM: u32 = 1 << 16;

/// A region, and the file through which pieces of it are reached.
#[derive(Debug, Default)]
pub(super) struct Described {
    pub(super) info: RegionInfo,
    /// The file, and where the region starts in it.
    file: Option<(Arc<File>, u64)>,
}

impl Described {
    /// Asks the server for a region.
    pub(super) fn ask(connection: &Connection, region: Region) -> Result<Described> {
        let ask = |argsz: u32| {
            let message = RegionDescription {
                argsz,
                flags: 0,
                index: region.index(),
                cap_offset: 0,
                size: 0,
                offset: 0,
            };
            let request = Request {
                command: Command::DeviceGetRegionInfo,
                payload: [message.as_bytes(), &[]],
                fds: &[],
            };
            connection.call(
                &request,
                || format!("asking for the {region}"),
                |reply| decode(reply, region.index(), argsz),
            )
        };
        match ask(ROOM)? {
            Decoded::Region(described) => Ok(described),
            Decoded::TooLong(needed) => match ask(needed)? {
                Decoded::Region(described) => Ok(described),
                Decoded::TooLong(more) => Err(BackendError::Unsupported {
                    what: format!("a description of the {region} in {needed}, then {more} bytes"),
                    by: "this driver".into(),
                }),
            },
        }
    }

    /// Maps one of [`RegionInfo::mappable`].
    pub(super) fn map(
        &self,
        location: &str,
        region: Region,
        area: &Range<u64>,
    ) -> Result<Box<dyn MappedRegion>> {
        let len = area.end.saturating_sub(area.start);
        let size = self.info.size;
        let refused =
            BackendError::OutOfBounds { region, offset: area.start, len: len as usize, size };
        let (Some((file, base)), true) = (&self.file, self.info.mappable.contains(area)) else {
            return Err(refused);
        };
        let action = || format!("{location}: mapping {len} bytes of {region} at {:#x}", area.start);
        let os = |source| BackendError::Os { action: action(), source, remedy: None };
        let position = base.checked_add(area.start);
        let (Some(position), Ok(len)) = (position, usize::try_from(len)) else {
            return Err(refused);
        };
        // Beyond the end of a file, no access is answered. Devices have no end.
        let status = file.metadata().map_err(os)?;
        let end = position.checked_add(len as u64);
        if status.is_file() && end.is_none_or(|end| end > status.len()) {
            return Err(BackendError::Unsupported {
                what: format!("{}: position {position:#x} of {} bytes", action(), status.len()),
                by: "the server's file".into(),
            });
        }
        let mut protection = 0;
        if self.info.readable {
            protection |= libc::PROT_READ;
        }
        if self.info.writable {
            protection |= libc::PROT_WRITE;
        }
        let page = page_size(file).map_err(os)?;
        let file = FileOffset::from_arc(Arc::clone(file), position);
        let mapping = MmapRegion::build(Some(file), len, protection, libc::MAP_SHARED)
            .map_err(|error| os(std::io::Error::other(error)))?;
        let base = NonNull::new(mapping.as_ptr())
            .ok_or_else(|| os(std::io::Error::from_raw_os_error(libc::EFAULT)))?;
        Ok(Box::new(Mapped { base, page, mapping }))
    }
}

/// What a reply says.
enum Decoded {
    Region(Described),
    /// The description needs so many bytes.
    TooLong(u32),
}

/// Reads the description of region `index`, for which `room` bytes were offered.
fn decode(reply: Reply<'_>, index: u32, room: u32) -> std::result::Result<Decoded, String> {
    let (described, _) = reply.parse::<RegionDescription>()?;
    if described.index != index {
        return Err(format!("region {} described, {index} asked for", described.index));
    }
    if described.argsz > MOST_ROOM {
        return Err(format!("a description of {} bytes", described.argsz));
    }
    if described.argsz > room {
        return Ok(Decoded::TooLong(described.argsz));
    }
    let size = described.size;
    let mut info = RegionInfo {
        size,
        readable: described.flags & uapi::VFIO_REGION_INFO_FLAG_READ != 0,
        writable: described.flags & uapi::VFIO_REGION_INFO_FLAG_WRITE != 0,
        mappable: Vec::new(),
    };
    // The region's is the only one that the specification knows of. It is memory: what is not
    // was closed, and is trapped.
    let file: Option<OwnedFd> = reply.fds.drain(..).next();
    let mappable = described.flags & uapi::VFIO_REGION_INFO_FLAG_MMAP != 0 && size > 0;
    let Some(file) = file.filter(|_| mappable) else {
        return Ok(Decoded::Region(Described { info, file: None }));
    };
    let sparse = if described.flags & uapi::VFIO_REGION_INFO_FLAG_CAPS != 0 {
        sparse_areas(reply.payload, described.cap_offset)?
    } else {
        None
    };
    let page = page_size(&file).map_err(|error| format!("a file of which {error}"))?;
    for area in sparse.unwrap_or_else(|| vec![SparseArea { offset: 0, size }]) {
        let end = area.offset.checked_add(area.size).filter(|&end| end <= size);
        let end = end.ok_or_else(|| {
            format!("an area of {:#x} bytes at {:#x} of {size:#x}", area.size, area.offset)
        })?;
        // What does not start on a page, of the region as of the file, cannot be mapped so that
        // registers keep their alignment, and is trapped; so is what is a huge page in part.
        let starts = [Some(area.offset), described.offset.checked_add(area.offset)];
        let is_on_pages = |start: Option<u64>| start.is_some_and(|at| at.is_multiple_of(page));
        if area.size > 0
            && starts.into_iter().all(is_on_pages)
            && (page == smallest_page() || area.size.is_multiple_of(page))
        {
            info.mappable.push(area.offset..end);
        }
    }
    let file = Some((Arc::new(File::from(file)), described.offset));
    Ok(Decoded::Region(Described { info, file }))
}

/// The areas of the capability VFIO_REGION_INFO_CAP_SPARSE_MMAP; `None` when it is not among
/// the capabilities, and the whole region can be mapped.
fn sparse_areas(
    payload: &[u8],
    first: u32,
) -> std::result::Result<Option<Vec<SparseArea>>, String> {
    let mut at = first;
    while at != 0 {
        let truncated = || format!("a capability at {at:#x} of {} bytes", payload.len());
        let bytes = payload.get(at as usize..).ok_or_else(truncated)?;
        let (header, rest) = CapabilityHeader::read_from_prefix(bytes).map_err(|_| truncated())?;
        if u32::from(header.id) == uapi::VFIO_REGION_INFO_CAP_SPARSE_MMAP && header.version == 1 {
            let (sparse, rest) = SparseMmap::read_from_prefix(rest).map_err(|_| truncated())?;
            let (areas, _) = rest.as_chunks::<{ size_of::<SparseArea>() }>();
            let areas = areas.get(..sparse.nr_areas as usize).ok_or_else(truncated)?;
            return areas
                .iter()
                .map(|area| SparseArea::read_from_bytes(area).map_err(|_| truncated()))
                .collect::<std::result::Result<_, _>>()
                .map(Some);
        }
        if header.next != 0 && header.next <= at {
            return Err(format!("capabilities at {at:#x} and then {:#x}", header.next));
        }
        at = header.next;
    }
    Ok(None)
}

/// The size of a file's pages in bytes.
fn page_size(file: impl AsFd) -> std::io::Result<u64> {
    let fs = fstatfs(&file)?;
    let huge = fs.filesystem_type() == HUGETLBFS_MAGIC;
    let huge = huge.then(|| u64::try_from(fs.block_size()).unwrap_or(0));
    Ok(huge.unwrap_or(0).max(smallest_page()))
}

fn smallest_page() -> u64 {
    let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok()).filter(|&size| size > 0).unwrap_or(4096)
}

/// A piece of a region mapped into this process.
///
/// The server can take the memory away, by cutting its file short or taking pages out of it: a
/// [`Bar`](crate::mmio::Bar) watches it.
#[derive(Debug)]
struct Mapped {
    base: NonNull<u8>,
    page: u64,
    mapping: MmapRegion,
}

// SAFETY: the mapping is the value's own, lives until it is dropped, and no Rust reference
// points into it.
unsafe impl MappedRegion for Mapped {
    fn base(&self) -> NonNull<u8> {
        self.base
    }
    fn len(&self) -> usize {
        self.mapping.size()
    }
    fn page_size(&self) -> usize {
        usize::try_from(self.page).unwrap_or(usize::MAX)
    }
}

// SAFETY: an address range is not bound to a thread.
unsafe impl Send for Mapped {}
// SAFETY: the value only tells where the range is; accesses are the caller's.
unsafe impl Sync for Mapped {}
