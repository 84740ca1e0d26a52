//! A VFIO container with the type1v2 IOMMU: one I/O address space.

use std::fmt;
use std::mem::{offset_of, size_of};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as uapi;
use vfio_ioctls::VfioContainer;

use super::ioctl::done;
use super::reply::{Reply, ask};
use super::{check_unmapped, ioctl, map_error, os_error, unmap_error};
use crate::backend::{Iommu, IommuInfo, MapRequest, Result, Translation};

/// A VFIO container; the devices opened through it share one set of IOVAs.
pub struct Container {
    pub(super) inner: Arc<VfioContainer>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").field("fd", &self.inner.as_raw_fd()).finish()
    }
}

/// Decodes the reply to VFIO_IOMMU_GET_INFO.
fn decode(reply: &Reply) -> IommuInfo {
    let flags = reply.u32(offset_of!(uapi::vfio_iommu_type1_info, flags)).unwrap_or(0);
    let page_sizes = if flags & uapi::VFIO_IOMMU_INFO_PGSIZES != 0 {
        reply.u64(offset_of!(uapi::vfio_iommu_type1_info, iova_pgsizes)).unwrap_or(0)
    } else {
        0
    };
    let mut info = IommuInfo {
        translation: Translation::Iommu,
        ranges: Vec::new(),
        // Without the flag the kernel promises its own page size.
        page_sizes: if page_sizes == 0 { 0x1000 } else { page_sizes },
        available_mappings: None,
        needs_fd: false,
    };
    let mut ranges_known = false;
    if flags & uapi::VFIO_IOMMU_INFO_CAPS != 0 {
        use uapi::vfio_iommu_type1_info_cap_iova_range as Ranges;
        let chain = reply.capabilities(offset_of!(uapi::vfio_iommu_type1_info, cap_offset));
        for (id, offset) in chain {
            match id {
                uapi::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                    let count = offset + offset_of!(Ranges, nr_iovas);
                    let first = offset + offset_of!(Ranges, iova_ranges);
                    if let Some(pairs) = reply.pairs(count, first) {
                        info.ranges = pairs.into_iter().map(|(start, end)| start..=end).collect();
                        ranges_known = true;
                    }
                }
                uapi::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => {
                    info.available_mappings = reply
                        .u32(offset + offset_of!(uapi::vfio_iommu_type1_info_dma_avail, avail));
                }
                _ => {}
            }
        }
    }
    if !ranges_known {
        // Kernels before 5.4 do not tell. Stay below what every x86 IOMMU translates and
        // out of its MSI window; a map in a hole still fails with an error.
        info.ranges = vec![0x10_0000..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1];
    }
    info
}

impl Iommu for Container {
    fn name(&self) -> &str {
        "type1v2"
    }

    fn info(&self) -> Result<IommuInfo> {
        let reply = ask(0, |info| {
            // SAFETY: the descriptor is a container, and `ask` gives the kernel as much room
            // as it says.
            unsafe { ioctl::iommu_get_info(self.inner.as_raw_fd(), info) }
        });
        let reply = reply.map_err(|errno| {
            os_error("asking the IOMMU for its IOVA ranges and page sizes".into(), errno, None)
        })?;
        Ok(decode(&reply))
    }

    unsafe fn map(&self, request: &MapRequest<'_>) -> Result<()> {
        let mut flags = 0;
        if request.access.reads() {
            flags |= uapi::VFIO_DMA_MAP_FLAG_READ;
        }
        if request.access.writes() {
            flags |= uapi::VFIO_DMA_MAP_FLAG_WRITE;
        }
        let map = uapi::vfio_iommu_type1_dma_map {
            argsz: size_of::<uapi::vfio_iommu_type1_dma_map>() as u32,
            flags,
            vaddr: request.host.as_ptr() as u64,
            iova: request.iova,
            size: request.len as u64,
        };
        // SAFETY: the descriptor is a container; the caller vouches for the memory.
        let status = unsafe { ioctl::iommu_map_dma(self.inner.as_raw_fd(), &raw const map) };
        done(status).map_err(|errno| {
            let exhausted = (errno == Errno::ENOSPC).then(|| {
                "the container has no mapping left: raise dma_entry_limit of the module \
                 vfio_iommu_type1, or use fewer and larger buffers"
                    .into()
            });
            map_error(request, errno, exhausted)
        })
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<()> {
        let mut unmap = uapi::vfio_iommu_type1_dma_unmap {
            argsz: size_of::<uapi::vfio_iommu_type1_dma_unmap>() as u32,
            iova,
            size: len as u64,
            ..Default::default()
        };
        // SAFETY: the descriptor is a container, and the structure has no data behind it.
        let status = unsafe { ioctl::iommu_unmap_dma(self.inner.as_raw_fd(), &raw mut unmap) };
        done(status).map_err(|errno| unmap_error(iova, len, errno))?;
        check_unmapped(iova, len, unmap.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reply as the kernel lays it out: the structure (24 bytes), then the
    /// capabilities: id u16, version u16, next u32, contents.
    fn reply() -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [112u32, 3] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(0x4020_1000u64.to_ne_bytes());
        bytes.extend(24u32.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        // IOVA ranges at 24: header, count, reserved, two ranges.
        bytes.extend([1u16, 1].iter().flat_map(|v| v.to_ne_bytes()));
        bytes.extend(72u32.to_ne_bytes());
        bytes.extend([2u32, 0].iter().flat_map(|v| v.to_ne_bytes()));
        for value in [0u64, 0xfedf_ffff, 0xfef0_0000, 0x7f_ffff_ffff] {
            bytes.extend(value.to_ne_bytes());
        }
        // DMA_AVAIL at 72.
        bytes.extend([3u16, 1].iter().flat_map(|v| v.to_ne_bytes()));
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(65_535u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn ranges_page_sizes_and_available_mappings_are_decoded() {
        let info = decode(&Reply::new(reply()));
        assert_eq!(info.page_sizes, 0x4020_1000);
        assert_eq!(info.ranges, vec![0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]);
        assert_eq!(info.available_mappings, Some(65_535));
    }

    #[test]
    fn a_chain_that_loops_or_leaves_the_reply_ends() {
        let mut looping = reply();
        looping[28..32].copy_from_slice(&24u32.to_ne_bytes());
        assert_eq!(decode(&Reply::new(looping)).available_mappings, None);
        let mut outside = reply();
        outside[28..32].copy_from_slice(&0xffff_fff0u32.to_ne_bytes());
        assert_eq!(decode(&Reply::new(outside)).ranges.len(), 2);
        for len in 0..reply().len() {
            decode(&Reply::new(reply()[..len].to_vec()));
        }
        let mut many = reply();
        many[32..36].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(!decode(&Reply::new(many)).ranges.is_empty(), "the fallback ranges");
    }
}
