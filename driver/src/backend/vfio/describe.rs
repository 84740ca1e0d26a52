//! What the kernel says of an opened device: its regions and interrupt vectors.

use std::mem::offset_of;
use std::os::fd::RawFd;

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as uapi;

use super::ioctl;
use super::reply::{Reply, ask};
use crate::backend::{IrqKind, Region, RegionInfo};

/// A region, and where it starts in the device's descriptor.
#[derive(Debug, Default)]
pub(super) struct Placed {
    pub(super) info: RegionInfo,
    pub(super) position: u64,
}

/// A device's regions and interrupt vectors; they do not change while it is open.
#[derive(Debug)]
pub(super) struct Description {
    /// By [`Region::index`].
    regions: Vec<Placed>,
    /// By [`IrqKind::index`].
    vectors: Vec<u32>,
}

impl Description {
    /// Reads the description from a device's descriptor.
    pub(super) fn read(device: RawFd) -> nix::Result<Description> {
        let region = |index| {
            let reply = ask(index, |info| {
                // SAFETY: `ask` gives the kernel as much room as it says.
                unsafe { ioctl::device_get_region_info(device, info) }
            });
            absent_is_none(reply.map(|reply| region(&reply)))
        };
        let vectors = |kind: IrqKind| {
            let reply = ask::<uapi::vfio_irq_info>(kind.index(), |info| {
                // SAFETY: `ask` gives the kernel as much room as it says.
                unsafe { ioctl::device_get_irq_info(device, info) }
            });
            let count = |reply: Reply| reply.u32(offset_of!(uapi::vfio_irq_info, count));
            absent_is_none(reply.map(|reply| count(reply).unwrap_or(0)))
        };
        Ok(Description {
            regions: (0..=Region::Config.index()).map(region).collect::<nix::Result<_>>()?,
            vectors: [IrqKind::Intx, IrqKind::Msi, IrqKind::MsiX]
                .map(vectors)
                .into_iter()
                .collect::<nix::Result<_>>()?,
        })
    }

    /// A region that is there.
    pub(super) fn region(&self, region: Region) -> Option<&Placed> {
        self.regions.get(region.index() as usize).filter(|placed| placed.info.size > 0)
    }

    /// The number of vectors of a kind.
    pub(super) fn vectors(&self, kind: IrqKind) -> u32 {
        self.vectors.get(kind.index() as usize).copied().unwrap_or(0)
    }
}

/// The kernel says EINVAL of an index that the device does not have.
fn absent_is_none<T: Default>(reply: nix::Result<T>) -> nix::Result<T> {
    if reply.as_ref().is_err_and(|errno| *errno == Errno::EINVAL) {
        return Ok(T::default());
    }
    reply
}

/// Decodes the reply to VFIO_DEVICE_GET_REGION_INFO.
fn region(reply: &Reply) -> Placed {
    use uapi::vfio_region_info as Info;
    let flags = reply.u32(offset_of!(Info, flags)).unwrap_or(0);
    let size = reply.u64(offset_of!(Info, size)).unwrap_or(0);
    let mut info = RegionInfo {
        size,
        readable: flags & uapi::VFIO_REGION_INFO_FLAG_READ != 0,
        writable: flags & uapi::VFIO_REGION_INFO_FLAG_WRITE != 0,
        mappable: Vec::new(),
    };
    if flags & uapi::VFIO_REGION_INFO_FLAG_MMAP != 0 && size > 0 {
        let areas =
            if flags & uapi::VFIO_REGION_INFO_FLAG_CAPS != 0 { sparse_areas(reply) } else { None };
        // Without the capability the whole region can be mapped.
        let areas = areas.unwrap_or_else(|| vec![(0, size)]);
        info.mappable = areas
            .into_iter()
            .map(|(offset, len)| offset..offset.saturating_add(len).min(size))
            .filter(|range| !range.is_empty())
            .collect();
    }
    Placed { info, position: reply.u64(offset_of!(Info, offset)).unwrap_or(0) }
}

/// The (offset, length) pairs that can be mapped, where the kernel names them. A list that
/// is cut off counts as empty: then every access is trapped.
fn sparse_areas(reply: &Reply) -> Option<Vec<(u64, u64)>> {
    use uapi::vfio_region_info_cap_sparse_mmap as Sparse;
    let chain = reply.capabilities(offset_of!(uapi::vfio_region_info, cap_offset));
    let (_, at) =
        chain.into_iter().find(|(id, _)| *id == uapi::VFIO_REGION_INFO_CAP_SPARSE_MMAP)?;
    let areas = reply.pairs(at + offset_of!(Sparse, nr_areas), at + offset_of!(Sparse, areas));
    Some(areas.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply as the kernel lays it out: argsz, flags, index, cap_offset (u32 each),
    /// size, offset (u64 each), then capabilities.
    fn reply(flags: u32, cap_offset: u32, areas: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend([4096, flags, 0, cap_offset].into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend([0x4000u64, 2 << 40].into_iter().flat_map(u64::to_ne_bytes));
        // MSI-X mappable (3) at 32, without contents; sparse areas (1) at 40.
        bytes.extend([3u16, 1].into_iter().flat_map(u16::to_ne_bytes));
        bytes.extend(40u32.to_ne_bytes());
        bytes.extend([1u16, 1].into_iter().flat_map(u16::to_ne_bytes));
        bytes.extend([0, areas.len() as u32, 0].into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend(areas.iter().flat_map(|&(at, len)| [at, len]).flat_map(u64::to_ne_bytes));
        bytes
    }

    #[test]
    fn sparse_areas_are_clipped_to_the_region() {
        let areas = [(0, 0x1000), (0x2000, 0), (0x3000, u64::MAX), (0x8000, 0x1000)];
        let found = region(&Reply::new(reply(0b1111, 32, &areas)));
        assert_eq!((found.position, found.info.size), (2 << 40, 0x4000));
        assert!(found.info.readable && found.info.writable);
        assert_eq!(found.info.mappable, [0..0x1000, 0x3000..0x4000]);
    }

    #[test]
    fn without_the_capability_all_or_nothing_is_mappable() {
        let all = region(&Reply::new(reply(0b0111, 0, &[])));
        assert_eq!(all.info.mappable, std::iter::once(0..0x4000).collect::<Vec<_>>());
        let none = region(&Reply::new(reply(0b0001, 0, &[])));
        assert!(none.info.readable && !none.info.writable && none.info.mappable.is_empty());
    }

    #[test]
    fn replies_that_are_cut_off_map_nothing_outside() {
        let whole = reply(0b1111, 32, &[(0, 0x1000)]);
        for len in 0..whole.len() {
            let found = region(&Reply::new(whole[..len].to_vec()));
            assert!(found.info.mappable.iter().all(|area| area.end <= found.info.size), "{len}");
        }
    }
}
