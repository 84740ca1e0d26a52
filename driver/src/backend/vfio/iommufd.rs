//! Devices opened through their own character device, in an IOAS of iommufd.

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iommufd_bindings::iommufd as uapi;
use nix::errno::Errno;
use vfio_bindings::bindings::vfio;

use super::claim::Claim;
use super::ioctl::done;
use super::passed::{self, Passed};
use super::token::{self, VfToken};
use super::{
    Device, MAPPED, Target, busy, check_unmapped, held_elsewhere, ioctl, map_error, node_error,
    os_error, precondition, unmap_error, unsafe_interrupts,
};
use crate::backend::{
    BackendError, DmaAccess, DmaBufRequest, Iommu, IommuInfo, Lending, MapRequest, Result,
    Translation, lock_limit,
};
use crate::pci::sysfs::Tree;
use crate::pci::{Address, Remedy};

const IOMMU_NODE: &str = "/dev/iommu";

/// What ENOENT means of a request that names an address space.
const NO_IOAS: &str = "the iommufd has no address space of this id: the process that made it has \
                       destroyed it, or passed another id";

/// An I/O address space of iommufd; the devices opened in it share one set of IOVAs.
///
/// It can be shared among processes: one gives [`Ioas::descriptor`] and [`Ioas::id`] to another,
/// which makes an `Ioas` of them ([`IoasOptions`]), and each maps in a range of its own. A device
/// that one of them opens reaches what any of them mapped.
pub struct Ioas {
    iommufd: File,
    id: u32,
    iovas: RangeInclusive<u64>,
    /// This process made it, and is to destroy it.
    own: bool,
    /// Other processes may have it.
    shared: AtomicBool,
}

/// How an I/O address space of iommufd is had; by default it is a new one of this process.
#[derive(Debug)]
pub struct IoasOptions {
    /// The iommufd that another process opened and passed on; `None` opens `/dev/iommu`.
    pub iommufd: Option<OwnedFd>,
    /// An address space that the iommufd has already: [`Ioas::id`] of the process that made it;
    /// `None` makes a new one.
    pub id: Option<u32>,
    /// The IOVAs that this process maps at, first and last. Processes that share an address space
    /// need ranges that are disjoint: nothing else keeps them apart.
    pub iovas: RangeInclusive<u64>,
}

impl Default for IoasOptions {
    fn default() -> IoasOptions {
        IoasOptions { iommufd: None, id: None, iovas: 0..=u64::MAX }
    }
}

impl fmt::Debug for Ioas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ioas").field("fd", &self.fd()).field("id", &self.id).finish()
    }
}

impl Ioas {
    /// Opens `/dev/iommu` and makes a new, empty address space.
    ///
    /// # Errors
    ///
    /// Fails when the kernel has no iommufd, or this process may not use it.
    pub fn new() -> Result<Arc<Ioas>> {
        Ioas::with(IoasOptions::default())
    }

    /// An address space that is new, or that other processes share.
    ///
    /// # Errors
    ///
    /// As [`Ioas::new`]; [`BackendError::WrongDescriptor`] when what was passed is no iommufd, and
    /// an error when it has no address space of this id.
    pub fn with(options: IoasOptions) -> Result<Arc<Ioas>> {
        let passed = options.iommufd.is_some();
        let iommufd = match options.iommufd {
            Some(fd) => {
                passed::check_iommufd(&Tree::new(), fd.as_fd())?;
                fd.into()
            }
            None => File::options().read(true).write(true).open(IOMMU_NODE).map_err(no_node)?,
        };
        let own = options.id.is_none();
        let id = match options.id {
            Some(id) => id,
            None => allocate(&iommufd)?,
        };
        let shared = AtomicBool::new(false);
        let ioas = Ioas { iommufd, id, iovas: options.iovas, own: own && passed, shared };
        // What is no address space has no ranges.
        ioas.ranges().map_err(|errno| {
            let remedy = (errno == Errno::ENOENT).then(|| NO_IOAS.into());
            os_error(format!("looking up the I/O address space {id} of an iommufd"), errno, remedy)
        })?;
        Ok(Arc::new(ioas))
    }

    /// The number by which its iommufd knows it: [`IoasOptions::id`] of another process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// A descriptor of its iommufd, to be passed to another process. Whoever has it can map and
    /// unmap anything in the address space. From then on, the address space is there until every
    /// process has closed its descriptor, with what is mapped in it and was not unmapped: memory
    /// of a process that was killed stays allocated until then.
    ///
    /// # Errors
    ///
    /// Fails when this process has too many open files.
    pub fn descriptor(&self) -> Result<OwnedFd> {
        self.shared.store(true, Ordering::Relaxed);
        // SAFETY: the descriptor is open as long as `self` is.
        passed::duplicate(unsafe { BorrowedFd::borrow_raw(self.fd()) })
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
        self.take_in(device, claim, &node, group, token)
    }

    /// Opens a device from its character device, which another process opened and passed on: this
    /// one needs no right to the node. The other process must not have bound it to an iommufd.
    ///
    /// # Errors
    ///
    /// [`BackendError::WrongDescriptor`] when it is not what it is passed as, or that of another
    /// function; else as [`Ioas::open_with`].
    pub fn open_passed(
        self: &Arc<Ioas>,
        address: Address,
        passed: Passed,
        token: Option<&VfToken>,
    ) -> Result<Device> {
        let sysfs = Tree::new();
        let group = Target::translated(&sysfs, address)?.group.number;
        let claim = Claim::new(address, group)?;
        let Passed::CharacterDevice(device) = passed else {
            return Err(BackendError::Unsupported {
                what: format!("opening {address} from {}", passed.name()),
                by: "iommufd".into(),
            });
        };
        passed::check_character_device(&sysfs, device.as_fd(), address)?;
        self.take_in(device.into(), claim, &node(&sysfs, address)?, group, token)
    }

    /// Binds a device to this iommufd and attaches it to the address space.
    fn take_in(
        self: &Arc<Ioas>,
        device: File,
        claim: Claim,
        node: &Path,
        group: u32,
        token: Option<&VfToken>,
    ) -> Result<Device> {
        let address = claim.address();
        self.bind(&device, token).map_err(|errno| {
            token::refusal(&Tree::new(), address, token, errno).unwrap_or_else(|| match errno {
                // Of a device that is bound already the kernel says EINVAL, of one whose group
                // is in use EBUSY.
                Errno::EBUSY | Errno::EINVAL => held_elsewhere(address, node, group),
                Errno::EPERM => unsafe_interrupts(address, "iommufd"),
                errno => os_error(format!("binding {address} to iommufd"), errno, None),
            })
        })?;
        let device = Attached { device, address };
        let mut attach = vfio::vfio_device_attach_iommufd_pt {
            argsz: offset_of!(vfio::vfio_device_attach_iommufd_pt, pasid) as u32,
            pt_id: self.id,
            ..Default::default()
        };
        // SAFETY: the descriptor is a device, and the structure as large as it says.
        let attached =
            unsafe { ioctl::device_attach_iommufd_pt(device.as_raw_fd(), &raw mut attach) };
        done(attached).map_err(|errno| match errno {
            Errno::EPERM => unsafe_interrupts(address, "iommufd"),
            Errno::EINVAL | Errno::EADDRINUSE | Errno::EMEDIUMTYPE => BackendError::NotShareable {
                location: address.to_string(),
                reason: format!("the kernel does not attach it to the IOAS: {errno}"),
            },
            errno => {
                let remedy = match errno {
                    Errno::ENOENT => Some(NO_IOAS.into()),
                    // The header: of a device that is being reset, or of one in its group.
                    Errno::EBUSY => Some(
                        "a device of its IOMMU group is being reset: try again once that ended"
                            .into(),
                    ),
                    _ => None,
                };
                os_error(format!("attaching {address} to the IOAS {}", self.id), errno, remedy)
            }
        })?;
        Device::new(Box::new(device), Box::new(()), claim, Arc::clone(self) as _)
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
        self.iommufd.as_raw_fd()
    }

    /// The ranges that may be mapped, and what their ends are multiples of.
    fn ranges(&self) -> nix::Result<(Vec<uapi::iommu_iova_range>, u64)> {
        let mut ranges = vec![uapi::iommu_iova_range::default(); 64];
        // The number of ranges may grow between two calls, but not for ever.
        for _ in 0..4 {
            let mut query = uapi::iommu_ioas_iova_ranges {
                size: size_of::<uapi::iommu_ioas_iova_ranges>() as u32,
                ioas_id: self.id,
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
            let action = format!("asking for the IOVA ranges of the IOAS {}", self.id);
            os_error(action, errno, (errno == Errno::ENOENT).then(|| NO_IOAS.into()))
        })?;
        Ok(IommuInfo {
            translation: Translation::Iommu,
            ranges: ranges
                .into_iter()
                .filter_map(|range| common(range.start..=range.last, &self.iovas))
                .collect(),
            page_sizes: page_sizes(alignment),
            available_mappings: None,
            needs_fd: false,
        })
    }

    unsafe fn map(&self, request: &MapRequest<'_>) -> Result<()> {
        let mut map = uapi::iommu_ioas_map {
            size: size_of::<uapi::iommu_ioas_map>() as u32,
            flags: map_flags(request.access),
            ioas_id: self.id,
            user_va: request.host.as_ptr() as u64,
            length: request.len as u64,
            iova: request.iova,
            ..Default::default()
        };
        // SAFETY: the descriptor is an iommufd; the caller vouches for the memory.
        done(unsafe { ioctl::ioas_map(self.fd(), &raw mut map) }).map_err(|errno| {
            let remedy = match errno {
                Errno::ENOMEM => pin_limit(request.len),
                Errno::ENOENT => Some(NO_IOAS.into()),
                Errno::EFAULT => Some(
                    "iommufd pins pages of memory only: the device cannot write to a file on a \
                     disk (use a memfd, tmpfs or huge pages, or let the device only read it); a \
                     BAR is lent to a device (Device::lend_to), or mapped through type1"
                        .into(),
                ),
                _ => None,
            };
            map_error(request, errno, remedy)
        })
    }

    fn lending(&self) -> Option<Lending> {
        Some(Lending::DmaBuf)
    }

    fn map_dma_buf(&self, request: &DmaBufRequest<'_>) -> Result<()> {
        let &DmaBufRequest { iova, len, access, dma_buf } = request;
        let mut map = uapi::iommu_ioas_map_file {
            size: size_of::<uapi::iommu_ioas_map_file>() as u32,
            flags: map_flags(access),
            ioas_id: self.id,
            fd: dma_buf.as_raw_fd(),
            start: 0,
            length: len as u64,
            iova,
        };
        // SAFETY: the descriptor is an iommufd; the kernel keeps the dma-buf as long as it is
        // mapped.
        done(unsafe { ioctl::ioas_map_file(self.fd(), &raw mut map) }).map_err(|errno| {
            let action = format!("mapping {len} bytes of a BAR at IOVA {iova:#x} ({access})");
            let remedy = match errno {
                Errno::ENOTTY | Errno::EINVAL | Errno::EOPNOTSUPP => Some(Remedy::LendThroughType1),
                Errno::ENOENT => Some(NO_IOAS.into()),
                Errno::EEXIST => Some(MAPPED.into()),
                _ => None,
            };
            os_error(action, errno, remedy)
        })
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<()> {
        let mut unmap = uapi::iommu_ioas_unmap {
            size: size_of::<uapi::iommu_ioas_unmap>() as u32,
            ioas_id: self.id,
            iova,
            length: len as u64,
        };
        // SAFETY: the descriptor is an iommufd, and the structure as large as it says.
        let status = unsafe { ioctl::ioas_unmap(self.fd(), &raw mut unmap) };
        done(status).map_err(|errno| unmap_error(iova, len, errno))?;
        check_unmapped(iova, len, unmap.length)
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        // Of an iommufd of this process alone it goes with the descriptor.
        if !self.own || *self.shared.get_mut() {
            return;
        }
        let destroy =
            uapi::iommu_destroy { size: size_of::<uapi::iommu_destroy>() as u32, id: self.id };
        // SAFETY: the descriptor is an iommufd, and the structure as large as it says.
        let status = unsafe { ioctl::iommufd_destroy(self.fd(), &raw const destroy) };
        if let Err(errno) = done(status) {
            log::error!("the I/O address space {} of an iommufd stays: {errno}", self.id);
        }
    }
}

/// Why iommufd's node does not open.
fn no_node(source: io::Error) -> BackendError {
    node_error(Path::new(IOMMU_NODE), source, || Remedy::LoadModule {
        module: "iommufd",
        kernel: "CONFIG_IOMMUFD, Linux 6.2; opening devices through it takes \
                 CONFIG_VFIO_DEVICE_CDEV, Linux 6.6",
    })
}

/// A fixed address, and what the device may do there.
fn map_flags(access: DmaAccess) -> u32 {
    let mut flags = uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
    if access.reads() {
        flags |= uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
    }
    if access.writes() {
        flags |= uapi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
    }
    flags
}

/// Makes an empty address space.
fn allocate(iommufd: &File) -> Result<u32> {
    let mut allocate = uapi::iommu_ioas_alloc {
        size: size_of::<uapi::iommu_ioas_alloc>() as u32,
        ..Default::default()
    };
    // SAFETY: the descriptor is an iommufd, and the structure as large as it says.
    let status = unsafe { ioctl::ioas_alloc(iommufd.as_raw_fd(), &raw mut allocate) };
    done(status)
        .map_err(|errno| os_error("making an I/O address space of iommufd".into(), errno, None))?;
    Ok(allocate.out_ioas_id)
}

/// What two ranges have in common.
fn common(one: RangeInclusive<u64>, other: &RangeInclusive<u64>) -> Option<RangeInclusive<u64>> {
    let (start, end) = (*one.start().max(other.start()), *one.end().min(other.end()));
    (start <= end).then_some(start..=end)
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

/// A device of its own character device, bound to iommufd.
struct Attached {
    device: File,
    address: Address,
}

impl AsRawFd for Attached {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let detach = vfio::vfio_device_detach_iommufd_pt {
            argsz: offset_of!(vfio::vfio_device_detach_iommufd_pt, pasid) as u32,
            ..Default::default()
        };
        // SAFETY: the descriptor is a device, and the structure as large as it says.
        let status =
            unsafe { ioctl::device_detach_iommufd_pt(self.as_raw_fd(), &raw const detach) };
        if let Err(errno) = done(status) {
            // Closing the descriptor takes the device away from iommufd all the same.
            log::warn!("{}: detaching the device from iommufd: {errno}", self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_process_are_what_it_and_the_iommu_have_in_common() {
        assert_eq!(common(0..=99, &(50..=u64::MAX)), Some(50..=99));
        assert_eq!(common(0..=99, &(99..=200)), Some(99..=99));
        assert_eq!(common(0..=99, &(100..=200)), None);
    }

    #[test]
    fn an_alignment_is_taken_for_the_smallest_page() {
        assert_eq!(page_sizes(0), 0x1000);
        assert_eq!(page_sizes(1), 0x1000);
        assert_eq!(page_sizes(0x1000), 0x1000);
        assert_eq!(page_sizes(0x1_0000), 0x1_0000);
        assert_eq!(page_sizes(u64::MAX), 0x1000);
    }
}
