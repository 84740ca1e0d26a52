//! A VFIO container with the type1v2 IOMMU: one I/O address space.

use std::fmt;
use std::mem::{offset_of, size_of};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as uapi;
use vfio_ioctls::VfioContainer;

use super::{ioctl, os_error};
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

/// Room for the information structure and its capability chain; the kernel's answer for
/// type1 is a few hundred bytes.
const INFO_CAPACITY: usize = 4096;

impl Container {
    /// Asks the kernel for its information structure and returns the bytes it wrote.
    fn raw_info(&self) -> Result<Vec<u8>> {
        let mut capacity = INFO_CAPACITY;
        loop {
            // u64 elements, so that the structure inside is aligned.
            let mut words = vec![0u64; capacity.div_ceil(8)];
            let info = words.as_mut_ptr().cast::<uapi::vfio_iommu_type1_info>();
            // SAFETY: the buffer is larger than the structure and aligned for it.
            unsafe { (*info).argsz = capacity as u32 };
            // SAFETY: the descriptor is a container, and `argsz` bytes from `info` on are
            // writable.
            unsafe { ioctl::iommu_get_info(self.inner.as_raw_fd(), info) }.map_err(|errno| {
                os_error("asking the IOMMU for its IOVA ranges and page sizes".into(), errno, None)
            })?;
            // SAFETY: the kernel has filled the structure in.
            let needed = unsafe { (*info).argsz } as usize;
            if needed > capacity {
                capacity = needed;
                continue;
            }
            let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
            return Ok(bytes.take(needed.max(size_of::<uapi::vfio_iommu_type1_info>())).collect());
        }
    }
}

/// A bounds-checked reader of the kernel's answer.
struct Answer<'a>(&'a [u8]);

impl Answer<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(self.0.get(at..at.checked_add(2)?)?.try_into().ok()?))
    }
    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }
    fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.0.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }

    /// The capability chain as (id, offset) pairs; each offset grows, so it ends.
    fn capabilities(&self) -> Vec<(u32, usize)> {
        use uapi::vfio_info_cap_header as Header;
        let mut found = Vec::new();
        let mut at = self.u32(offset_of!(uapi::vfio_iommu_type1_info, cap_offset)).unwrap_or(0);
        while at != 0 {
            let offset = at as usize;
            let Some(id) = self.u16(offset + offset_of!(Header, id)) else {
                break;
            };
            found.push((u32::from(id), offset));
            match self.u32(offset + offset_of!(Header, next)) {
                Some(next) if next > at => at = next,
                _ => break,
            }
        }
        found
    }

    fn iova_ranges(&self, offset: usize) -> Option<Vec<RangeInclusive<u64>>> {
        use uapi::vfio_iommu_type1_info_cap_iova_range as Ranges;
        let count = self.u32(offset + offset_of!(Ranges, nr_iovas))? as usize;
        let first = offset + offset_of!(Ranges, iova_ranges);
        (0..count)
            .map(|i| {
                let at = first.checked_add(i.checked_mul(size_of::<uapi::vfio_iova_range>())?)?;
                Some(self.u64(at)?..=self.u64(at.checked_add(8)?)?)
            })
            .collect()
    }
}

/// Decodes VFIO_IOMMU_GET_INFO's answer.
fn decode(bytes: &[u8]) -> IommuInfo {
    let answer = Answer(bytes);
    let flags = answer.u32(offset_of!(uapi::vfio_iommu_type1_info, flags)).unwrap_or(0);
    let page_sizes = if flags & uapi::VFIO_IOMMU_INFO_PGSIZES != 0 {
        answer.u64(offset_of!(uapi::vfio_iommu_type1_info, iova_pgsizes)).unwrap_or(0)
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
        for (id, offset) in answer.capabilities() {
            match id {
                uapi::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                    if let Some(ranges) = answer.iova_ranges(offset) {
                        info.ranges = ranges;
                        ranges_known = true;
                    }
                }
                uapi::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => {
                    info.available_mappings = answer
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
        Ok(decode(&self.raw_info()?))
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
        let done = unsafe { ioctl::iommu_map_dma(self.inner.as_raw_fd(), &raw const map) };
        done.map(drop).map_err(|errno| {
            let action = format!(
                "mapping {} bytes at IOVA {:#x} ({})",
                request.len, request.iova, request.access
            );
            os_error(action, errno, map_remedy(errno, request.len))
        })
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<()> {
        let mut unmap = uapi::vfio_iommu_type1_dma_unmap {
            argsz: size_of::<uapi::vfio_iommu_type1_dma_unmap>() as u32,
            iova,
            size: len as u64,
            ..Default::default()
        };
        let action = || format!("unmapping {len} bytes at IOVA {iova:#x}");
        // SAFETY: the descriptor is a container, and the structure has no data behind it.
        unsafe { ioctl::iommu_unmap_dma(self.inner.as_raw_fd(), &raw mut unmap) }
            .map_err(|errno| os_error(action(), errno, None))?;
        // The kernel reports how much it found mapped.
        if unmap.size == len as u64 {
            Ok(())
        } else {
            let action = format!("{} (only {} bytes were mapped)", action(), unmap.size);
            Err(os_error(action, Errno::ENOENT, None))
        }
    }
}

/// What a user can do about a refused map.
fn map_remedy(errno: Errno, len: usize) -> Option<String> {
    use nix::sys::resource::{Resource, getrlimit};
    match errno {
        Errno::ENOMEM => Some(match getrlimit(Resource::RLIMIT_MEMLOCK) {
            Ok((soft, _)) if soft != libc::RLIM_INFINITY => format!(
                "the limit on locked memory is {soft} bytes and the buffer has {len}: raise \
                 RLIMIT_MEMLOCK (`ulimit -l`, or `memlock` in /etc/security/limits.conf), or \
                 ask for a smaller buffer"
            ),
            _ => "the kernel has no memory for the mapping; ask for a smaller buffer".into(),
        }),
        Errno::ENOSPC => Some(
            "the container has no mapping left: raise dma_entry_limit of the module \
             vfio_iommu_type1, or use fewer and larger buffers"
                .into(),
        ),
        Errno::EINVAL => Some(
            "the range is outside of the IOMMU's IOVA ranges, or in a reserved region \
             (/sys/kernel/iommu_groups/*/reserved_regions)"
                .into(),
        ),
        Errno::EEXIST => Some("the IOVA is mapped already".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer as the kernel lays it out: the structure (24 bytes), then the
    /// capabilities: id u16, version u16, next u32, contents.
    fn answer() -> Vec<u8> {
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
        let info = decode(&answer());
        assert_eq!(info.page_sizes, 0x4020_1000);
        assert_eq!(info.ranges, vec![0..=0xfedf_ffff, 0xfef0_0000..=0x7f_ffff_ffff]);
        assert_eq!(info.available_mappings, Some(65_535));
    }

    #[test]
    fn a_chain_that_loops_or_leaves_the_answer_ends() {
        let mut looping = answer();
        looping[28..32].copy_from_slice(&24u32.to_ne_bytes());
        assert_eq!(decode(&looping).available_mappings, None);
        let mut outside = answer();
        outside[28..32].copy_from_slice(&0xffff_fff0u32.to_ne_bytes());
        assert_eq!(decode(&outside).ranges.len(), 2);
        for len in 0..answer().len() {
            decode(&answer()[..len]);
        }
        let mut many = answer();
        many[32..36].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(!decode(&many).ranges.is_empty(), "the fallback ranges");
    }
}
