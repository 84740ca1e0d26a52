//! Devices opened through their own character device, in an IOAS of iommufd.

use std::fmt;
use std::fs::File;
use std::mem::{ManuallyDrop, offset_of, size_of};
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use iommufd_bindings::iommufd as uapi;
use iommufd_ioctls::{IommuFd, IommufdError, IommufdIoas};
use nix::errno::Errno;
use vfio_bindings::bindings::vfio;
use vfio_ioctls::{VfioDevice, VfioError, VfioIommufd};
use vmm_sys_util::errno::Error as SysError;

use super::claim::Claim;
use super::ioctl::done;
use super::token::{self, VfToken};
use super::{
    Device, Target, busy, check_unmapped, held_elsewhere, ioctl, map_error, node_error, os_error,
    precondition, unmap_error, unsafe_interrupts,
};
use crate::backend::{BackendError, Iommu, IommuInfo, MapRequest, Result, Translation, lock_limit};
use crate::pci::sysfs::Tree;
use crate::pci::{Address, Remedy};

const IOMMU_NODE: &str = "/dev/iommu";

/// An I/O address space of iommufd; the devices opened in it share one set of IOVAs.
pub struct Ioas {
    inner: Arc<VfioIommufd>,
}

impl fmt::Debug for Ioas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ioas").field("fd", &self.fd()).field("id", &self.inner.ioas().id()).finish()
    }
}

impl Ioas {
    /// Opens `/dev/iommu` and makes a new, empty address space.
    ///
    /// # Errors
    ///
    /// Fails when the kernel has no iommufd, or this process may not use it.
    pub fn new() -> Result<Arc<Ioas>> {
        let iommufd = IommuFd::new().map_err(|error| match error {
            IommufdError::OpenIommufd(source) => {
                node_error(Path::new(IOMMU_NODE), source, || Remedy::LoadModule {
                    module: "iommufd",
                    kernel: "CONFIG_IOMMUFD, Linux 6.2; opening devices through it takes \
                         CONFIG_VFIO_DEVICE_CDEV, Linux 6.6",
                })
            }
            other => unexpected(IOMMU_NODE, &other),
        })?;
        let iommufd = Arc::new(iommufd);
        let ioas = IommufdIoas::new(Arc::clone(&iommufd)).map_err(|error| match error {
            IommufdError::IommuIoasAlloc(error) => {
                os_error("making an I/O address space of iommufd".into(), errno(error), None)
            }
            other => unexpected(IOMMU_NODE, &other),
        })?;
        let inner = VfioIommufd::new(iommufd, Some(Arc::new(ioas)), None)
            .map_err(|error| unexpected(IOMMU_NODE, &error))?;
        Ok(Arc::new(Ioas { inner: Arc::new(inner) }))
    }

    /// Opens a device in this address space.
    ///
    /// # Errors
    ///
    /// [`BackendError::Precondition`] names what has to be done first: bind the device to
    /// vfio-pci, boot with an IOMMU, unbind the group's other members, give this user the
    /// device's node, or end who uses it. [`BackendError::AlreadyOpen`] and
    /// [`BackendError::GroupAlreadyOpen`] when that is this process.
    /// [`BackendError::NotShareable`] when the device cannot be attached to the address space.
    pub fn open(self: &Arc<Ioas>, address: Address) -> Result<Device> {
        self.open_with(address, None)
    }

    /// Opens a device as [`Ioas::open`] does, with a VF token (Linux 6.17): a physical function
    /// whose virtual functions are to be opened with the same token, or one of these.
    ///
    /// # Errors
    ///
    /// As [`Ioas::open`]; also when the token is not the right one, or nobody asks for one.
    pub fn open_with(
        self: &Arc<Ioas>,
        address: Address,
        token: Option<&VfToken>,
    ) -> Result<Device> {
        let sysfs = Tree::new();
        let group = Target::translated(&sysfs, address)?.group.number;
        let claim = Claim::new(address, group)?;
        let node = node(&sysfs, address)?;
        let device = File::options().read(true).write(true).open(&node);
        let device = device.map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => busy(address, &node, group),
            _ => node_error(&node, source, || Remedy::KernelOptions {
                options: "CONFIG_VFIO_DEVICE_CDEV (Linux 6.6), and udev or devtmpfs on /dev",
            }),
        })?;
        self.bind(&device, token).map_err(|errno| {
            token::refusal(&sysfs, address, token, errno).unwrap_or_else(|| match errno {
                // Of a device that is bound already the kernel says EINVAL, of one whose group
                // is in use EBUSY.
                Errno::EBUSY | Errno::EINVAL => held_elsewhere(address, &node, group),
                Errno::EPERM => unsafe_interrupts(address, "iommufd"),
                errno => os_error(format!("binding {address} to iommufd"), errno, None),
            })
        })?;
        let inner = VfioDevice::new_from_bound_fd(device, Arc::clone(&self.inner), true)
            .map_err(|error| explain(error, address))?;
        let owner = CdevDevice { inner: ManuallyDrop::new(inner), address };
        Device::new(Box::new(owner), Box::new(()), claim, Arc::clone(self) as _)
    }

    /// Gives a device to this iommufd.
    fn bind(&self, device: &File, token: Option<&VfToken>) -> nix::Result<()> {
        let mut bind = vfio::vfio_device_bind_iommufd {
            // Older kernels know no more than this.
            argsz: offset_of!(vfio::vfio_device_bind_iommufd, token_uuid_ptr) as u32,
            iommufd: self.fd(),
            ..Default::default()
        };
        if let Some(token) = token {
            bind.argsz = size_of::<vfio::vfio_device_bind_iommufd>() as u32;
            bind.flags = vfio::VFIO_DEVICE_BIND_FLAG_TOKEN;
            bind.token_uuid_ptr = token.bytes().as_ptr() as u64;
        }
        // SAFETY: the descriptor is a device, the structure as large as it says, and the token
        // outlives the request.
        done(unsafe { ioctl::device_bind_iommufd(device.as_raw_fd(), &raw mut bind) })
    }

    fn fd(&self) -> RawFd {
        self.inner.iommufd().as_raw_fd()
    }

    /// The ranges that may be mapped, and what their ends are multiples of.
    fn ranges(&self) -> nix::Result<(Vec<uapi::iommu_iova_range>, u64)> {
        let mut ranges = vec![uapi::iommu_iova_range::default(); 64];
        // The number of ranges may grow between two calls, but not for ever.
        for _ in 0..4 {
            let mut query = uapi::iommu_ioas_iova_ranges {
                size: size_of::<uapi::iommu_ioas_iova_ranges>() as u32,
                ioas_id: self.inner.ioas().id(),
                num_iovas: u32::try_from(ranges.len()).map_err(|_| Errno::EMSGSIZE)?,
                allowed_iovas: ranges.as_mut_ptr() as u64,
                ..Default::default()
            };
            // SAFETY: the descriptor is an iommufd, and `allowed_iovas` has room for
            // `num_iovas` ranges.
            let status = unsafe { ioctl::ioas_iova_ranges(self.fd(), &raw mut query) };
            ranges.resize(query.num_iovas as usize, Default::default());
            match done(status) {
                Ok(()) => return Ok((ranges, query.out_iova_alignment)),
                Err(Errno::EMSGSIZE) => {}
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EMSGSIZE)
    }
}

impl Iommu for Ioas {
    fn name(&self) -> &str {
        "iommufd"
    }

    fn info(&self) -> Result<IommuInfo> {
        let (ranges, alignment) = self.ranges().map_err(|errno| {
            os_error("asking iommufd for its IOVA ranges and alignment".into(), errno, None)
        })?;
        Ok(IommuInfo {
            translation: Translation::Iommu,
            ranges: ranges.into_iter().map(|range| range.start..=range.last).collect(),
            page_sizes: page_sizes(alignment),
            available_mappings: None,
            needs_fd: false,
        })
    }

    unsafe fn map(&self, request: &MapRequest<'_>) -> Result<()> {
        let mut flags = uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
        if request.access.reads() {
            flags |= uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
        }
        if request.access.writes() {
            flags |= uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
        }
        let map = uapi::iommu_ioas_map {
            size: size_of::<uapi::iommu_ioas_map>() as u32,
            flags,
            ioas_id: self.inner.ioas().id(),
            user_va: request.host.as_ptr() as u64,
            length: request.len as u64,
            iova: request.iova,
            ..Default::default()
        };
        // `map_iommu_ioas` is not marked unsafe, but what this function demands of its
        // caller is what it needs.
        self.inner.iommufd().map_iommu_ioas(&map).map_err(|error| {
            let IommufdError::IommuIoasMap(error) = error else {
                return unexpected("mapping memory", &error);
            };
            let errno = errno(error);
            let remedy = match errno {
                Errno::ENOMEM => pin_limit(request.len),
                Errno::EFAULT => Some(
                    "iommufd pins pages of memory only: the device cannot write to a file on a \
                     disk (use a memfd, tmpfs or huge pages, or let the device only read it), and \
                     a BAR is mapped through type1"
                        .into(),
                ),
                _ => None,
            };
            map_error(request, errno, remedy)
        })
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<()> {
        let mut unmap = uapi::iommu_ioas_unmap {
            size: size_of::<uapi::iommu_ioas_unmap>() as u32,
            ioas_id: self.inner.ioas().id(),
            iova,
            length: len as u64,
        };
        self.inner.iommufd().unmap_iommu_ioas(&mut unmap).map_err(|error| match error {
            IommufdError::IommuIoasUnmap(error) => unmap_error(iova, len, errno(error)),
            other => unexpected("unmapping memory", &other),
        })?;
        check_unmapped(iova, len, unmap.length)
    }
}

/// The page sizes from the alignment that iommufd asks of IOVAs: it tells the smallest only.
/// An alignment of less than a page is of no use, since memory comes in whole pages.
fn page_sizes(alignment: u64) -> u64 {
    alignment.max(4096).checked_next_power_of_two().unwrap_or(4096)
}

/// The device's character device.
fn node(sysfs: &Tree, address: Address) -> Result<PathBuf> {
    let mut nodes = sysfs.vfio_nodes(address);
    match (nodes.pop(), nodes.is_empty()) {
        (Some(node), true) => Ok(node),
        (None, _) => Err(precondition(
            format!("{address} has no character device: no directory vfio-dev in sysfs"),
            Remedy::UseType1,
        )),
        (Some(_), false) => Err(BackendError::Unsupported {
            what: "a device with several character devices".into(),
            by: format!("the kernel's VFIO for {address}"),
        }),
    }
}

/// What ENOMEM means: pinned pages count for the user, in all processes together
/// (`iopt_alloc_pages` in the kernel's `drivers/iommu/iommufd/pages.c`).
fn pin_limit(needed: usize) -> Option<Remedy> {
    lock_limit().map(|limit| Remedy::RaiseUserMemlock { limit, needed: needed as u64 })
}

/// Why a device that was bound to iommufd is not in the address space.
fn explain(error: VfioError, address: Address) -> BackendError {
    match error {
        VfioError::VfioDeviceAttachIommufdPt(error) => match errno(error) {
            Errno::EPERM => unsafe_interrupts(address, "iommufd"),
            errno @ (Errno::EINVAL | Errno::EADDRINUSE | Errno::EMEDIUMTYPE) => {
                BackendError::NotShareable {
                    location: address.to_string(),
                    reason: format!("the kernel does not attach it to the IOAS: {errno}"),
                }
            }
            errno => os_error(format!("attaching {address} to an IOAS"), errno, None),
        },
        other => unexpected(&format!("{address}: opening the device"), &other),
    }
}

fn errno(error: SysError) -> Errno {
    Errno::from_raw(error.errno())
}

fn unexpected(action: &str, error: &dyn std::error::Error) -> BackendError {
    precondition(format!("{action}: {error}"), Remedy::CheckSetup)
}

/// A device of its own character device, bound to iommufd.
struct CdevDevice {
    inner: ManuallyDrop<VfioDevice>,
    address: Address,
}

impl AsRawFd for CdevDevice {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

impl Drop for CdevDevice {
    fn drop(&mut self) {
        let fd = self.inner.as_raw_fd();
        let detach = vfio::vfio_device_detach_iommufd_pt {
            argsz: size_of::<vfio::vfio_device_detach_iommufd_pt>() as u32,
            ..Default::default()
        };
        // `VfioDevice` panics when it cannot detach. It can if this did: to the kernel a
        // second time is no error.
        // SAFETY: the descriptor is a device, and the structure as large as it says.
        let status = unsafe { ioctl::device_detach_iommufd_pt(fd, &raw const detach) };
        match done(status) {
            // SAFETY: not used again after this.
            Ok(()) => unsafe { ManuallyDrop::drop(&mut self.inner) },
            Err(errno) => {
                log::error!(
                    "{}: detaching the device from iommufd: {errno}; its address space stays \
                     until this process ends",
                    self.address
                );
                // Closing the descriptor takes the device away from iommufd all the same.
                // SAFETY: nobody else closes the descriptor: `inner` is not dropped.
                drop(unsafe { File::from_raw_fd(fd) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alignment_is_taken_for_the_smallest_page() {
        assert_eq!(page_sizes(0), 0x1000);
        assert_eq!(page_sizes(1), 0x1000);
        assert_eq!(page_sizes(0x1000), 0x1000);
        assert_eq!(page_sizes(0x1_0000), 0x1_0000);
        assert_eq!(page_sizes(u64::MAX), 0x1000);
    }
}
