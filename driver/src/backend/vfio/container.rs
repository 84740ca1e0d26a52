//! A VFIO container with the type1v2 IOMMU: one I/O address space, and the devices in it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as uapi;
use vfio_ioctls::{VfioContainer, VfioError};

use super::claim::Claim;
use super::group::Group;
use super::ioctl::done;
use super::passed::{self, Passed};
use super::reply::{Reply, ask};
use super::token::VfToken;
use super::{
    CONTAINER_NODE, Device, Target, check_unmapped, held_elsewhere, ioctl, map_error, node_error,
    os_error, precondition, unmap_error, unsafe_interrupts,
};
use crate::backend::{BackendError, Iommu, IommuInfo, Lending, MapRequest, Result, Translation};
use crate::deadline::Deadline;
use crate::pci::sysfs::{IommuGroup, Tree};
use crate::pci::{Address, Remedy};

/// `VFIO_TYPE1v2_IOMMU` as the argument of requests.
const KIND: libc::c_int = uapi::VFIO_TYPE1v2_IOMMU as libc::c_int;

/// How long the kernel may take from unmapping all of a container to taking its IOMMU away.
const LEAVING_LIMIT: Duration = Duration::from_millis(500);

/// The groups of a container by number, as long as the lock is held.
type Groups<'a> = MutexGuard<'a, BTreeMap<u32, Weak<Group>>>;

/// A container's descriptor.
enum Node {
    /// What this process opened.
    Opened(VfioContainer),
    /// What another one opened and passed on, or `VfioContainer` refuses for what it answers.
    File(File),
}

impl AsRawFd for Node {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Node::Opened(container) => container.as_raw_fd(),
            Node::File(file) => file.as_raw_fd(),
        }
    }
}

/// A VFIO container; the devices opened through it share one set of IOVAs.
pub struct Container {
    node: Node,
    /// The groups in it, as long as a device of theirs is open.
    groups: Mutex<BTreeMap<u32, Weak<Group>>>,
}

impl fmt::Debug for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container").field("fd", &self.node.as_raw_fd()).finish_non_exhaustive()
    }
}

impl Container {
    /// Opens a new, empty container.
    ///
    /// # Errors
    ///
    /// Fails when the kernel has no VFIO, or this process may not use it.
    pub fn new() -> Result<Arc<Container>> {
        let node = match VfioContainer::new(None) {
            Ok(container) => Node::Opened(container),
            Err(VfioError::OpenContainer(source)) => return Err(no_container(source)),
            // It keeps what the kernel answered to itself, and takes 1 alone for a yes.
            Err(_) => {
                let container = open_node()?;
                check(&container, KIND, no_type1)?;
                Node::File(container)
            }
        };
        Ok(Container::of(node))
    }

    /// A container that another process opened and passed on. It may have groups, and mappings,
    /// already: what is mapped must not be where this process maps.
    ///
    /// # Errors
    ///
    /// [`BackendError::WrongDescriptor`] when it is no container.
    pub fn from_fd(container: OwnedFd) -> Result<Arc<Container>> {
        passed::check_container(&Tree::new(), container.as_fd())?;
        let container = File::from(container);
        check(&container, KIND, no_type1)?;
        Ok(Container::of(Node::File(container)))
    }

    fn of(node: Node) -> Arc<Container> {
        Arc::new(Container { node, groups: Mutex::default() })
    }

    /// Opens a device in this container.
    ///
    /// The device's group joins the container with the first device opened of it.
    ///
    /// # Errors
    ///
    /// [`BackendError::Precondition`] names what has to be done first: bind the device to
    /// vfio-pci, boot with an IOMMU, unbind the group's other members, give this user the
    /// group's node, or end who uses it. [`BackendError::AlreadyOpen`] and
    /// [`BackendError::GroupAlreadyOpen`] when that is this process.
    /// [`BackendError::NotShareable`] when the group cannot join a container that has others
    /// already.
    pub fn open(self: &Arc<Container>, address: Address) -> Result<Device> {
        self.open_with(address, None)
    }

    /// Opens a device as [`Container::open`] does, with a VF token: a physical function whose
    /// virtual functions are to be opened with the same token, or one of these.
    ///
    /// # Errors
    ///
    /// As [`Container::open`]; also when the token is not the right one, or nobody asks for one.
    pub fn open_with(
        self: &Arc<Container>,
        address: Address,
        token: Option<&VfToken>,
    ) -> Result<Device> {
        let Target { group, .. } = Target::translated(&Tree::new(), address)?;
        let claim = Claim::new(address, group.number)?;
        let open = || Group::open(&group, address, |_| None);
        let (group, groups) = self.member(&group, address, open)?;
        let opened = group.device(address, token);
        let member = Member { group: Some(group), container: Arc::clone(self) };
        // Its end takes the lock as well.
        drop(groups);
        Device::new(Box::new(opened?), Box::new(member), claim, Arc::clone(self) as _)
    }

    /// Opens a device from a descriptor that another process opened and passed on: this one
    /// needs no right to the nodes.
    ///
    /// A device that was opened by the other process already is in this container if that
    /// process put its group there.
    ///
    /// # Errors
    ///
    /// [`BackendError::WrongDescriptor`] when it is not what it is passed as, or that of another
    /// function; else as [`Container::open`].
    pub fn open_passed(
        self: &Arc<Container>,
        address: Address,
        passed: Passed,
        token: Option<&VfToken>,
    ) -> Result<Device> {
        let sysfs = Tree::new();
        let Target { group, .. } = Target::translated(&sysfs, address)?;
        let claim = Claim::new(address, group.number)?;
        let (device, fd) = match passed {
            Passed::Group(fd) => (None, Some(fd)),
            Passed::Device { device, group } => (Some(device), group),
            #[cfg(feature = "iommufd")]
            other @ Passed::CharacterDevice(_) => {
                return Err(BackendError::Unsupported {
                    what: format!("opening {address} from {}", other.name()),
                    by: "a container of VFIO".into(),
                });
            }
        };
        if let Some(device) = &device {
            passed::check_device(&sysfs, device, address)?;
        }
        let (group, groups) = match fd {
            Some(fd) => {
                passed::check_group(&sysfs, fd.as_fd(), &group)?;
                let open = || Ok(Group::passed(fd, &group));
                let (group, groups) = self.member(&group, address, open)?;
                (Some(group), groups)
            }
            None => (None, self.groups()),
        };
        let opened = match (device, &group) {
            (Some(device), _) if self.has_iommu() => Ok(device),
            (None, Some(group)) => group.device(address, token),
            _ => Err(precondition(
                format!("{address}: the container has no group, so none of this device"),
                Remedy::Text("pass the container that its group is in, or pass the group".into()),
            )),
        };
        let member = Member { group, container: Arc::clone(self) };
        drop(groups);
        Device::new(Box::new(opened?), Box::new(member), claim, Arc::clone(self) as _)
    }

    /// The group, in this container, and the lock that keeps it from leaving before a device of
    /// it is open; opened by `open` when it is not here yet.
    fn member(
        &self,
        group: &IommuGroup,
        address: Address,
        open: impl FnOnce() -> Result<Group>,
    ) -> Result<(Arc<Group>, Groups<'_>)> {
        let mut groups = self.groups();
        if let Some(member) = groups.get(&group.number).and_then(Weak::upgrade) {
            return Ok((member, groups));
        }
        let opened = open()?.shared();
        let is_in_a_container = opened.check_viable(address)?;
        // One that was passed may have joined already: the kernel lets it be in no other then.
        if !is_in_a_container {
            self.take_in(&opened, address)?;
        }
        groups.insert(group.number, Arc::downgrade(&opened));
        Ok((opened, groups))
    }

    /// Has a group join; the first one decides on the kind of IOMMU.
    fn take_in(&self, group: &Group, address: Address) -> Result<()> {
        let first = !self.has_iommu();
        if let Err(errno) = group.join(&self.node) {
            return Err(match errno {
                Errno::EBUSY => held_elsewhere(address, group.node(), group.number()),
                // `vfio_group_ioctl_set_container` in the kernel's `drivers/vfio/group.c`.
                Errno::EINVAL if first => precondition(
                    format!("{address}: its group has been put into another container meanwhile"),
                    Remedy::Text("pass the container that its group is in, or close that".into()),
                ),
                errno if first => {
                    os_error(format!("{address}: putting its group into a container"), errno, None)
                }
                errno => BackendError::NotShareable {
                    location: address.to_string(),
                    reason: format!(
                        "the kernel does not attach its group to the container: {errno}"
                    ),
                },
            });
        }
        if !first {
            return Ok(());
        }
        // SAFETY: the descriptor is a container, and the argument a number.
        match done(unsafe { ioctl::set_iommu(self.node.as_raw_fd(), KIND) }) {
            Ok(()) => Ok(()),
            Err(Errno::EPERM) => Err(unsafe_interrupts(address, "vfio_iommu_type1")),
            // No driver of an IOMMU takes the kind (`vfio_ioctl_set_iommu` in
            // `drivers/vfio/container.c`).
            Err(Errno::ENODEV) => Err(no_type1()),
            Err(errno) => {
                let action = format!("{address}: setting the container's IOMMU to type1v2");
                Err(os_error(action, errno, None))
            }
        }
    }

    /// Whether an IOMMU is set: not before the first group joins, and not after the last has
    /// left.
    fn has_iommu(&self) -> bool {
        let info = ask::<uapi::vfio_iommu_type1_info>(0, |info| {
            // SAFETY: the descriptor is a container, and `ask` gives the kernel as much room
            // as it says.
            unsafe { ioctl::iommu_get_info(self.node.as_raw_fd(), info) }
        });
        info.err() != Some(Errno::EINVAL)
    }

    /// Whether the IOMMU is being taken away: first all is unmapped, then it goes.
    fn loses_iommu(&self) -> bool {
        let deadline = Deadline::after(LEAVING_LIMIT);
        while self.has_iommu() {
            if deadline.has_passed() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn groups(&self) -> Groups<'_> {
        // The map changes in single steps.
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is missing where a container has no IOMMU of the kind.
fn no_type1() -> BackendError {
    precondition(
        format!("{CONTAINER_NODE} has no type1v2 IOMMU"),
        Remedy::LoadModule { module: "vfio_iommu_type1", kernel: "CONFIG_VFIO_IOMMU_TYPE1" },
    )
}

/// Opens the container's node, for an IOMMU that `VfioContainer` does not know.
pub(super) fn open_node() -> Result<File> {
    File::options().read(true).write(true).open(CONTAINER_NODE).map_err(no_container)
}

/// Checks a container's version, and that it has this kind of IOMMU.
pub(super) fn check(
    container: &File,
    kind: libc::c_int,
    missing: impl FnOnce() -> BackendError,
) -> Result<()> {
    let failed = |what: &str, errno| {
        let action = format!("{CONTAINER_NODE}: asking for {what}");
        os_error(action, errno, Some(Remedy::CheckSetup))
    };
    // SAFETY: the request takes no argument.
    let version = unsafe { ioctl::get_api_version(container.as_raw_fd()) }
        .map_err(|errno| failed("the version", errno))?;
    if u32::try_from(version) != Ok(uapi::VFIO_API_VERSION) {
        return Err(BackendError::Unsupported {
            what: format!("version {} of VFIO", uapi::VFIO_API_VERSION),
            by: format!("{CONTAINER_NODE}, which has version {version}"),
        });
    }
    // SAFETY: the argument is a number.
    let has = unsafe { ioctl::check_extension(container.as_raw_fd(), kind) }
        .map_err(|errno| failed("a kind of IOMMU", errno))?;
    // "1, or some other positive integer" (the header) when it has.
    if has > 0 { Ok(()) } else { Err(missing()) }
}

/// Why the container's node does not open.
fn no_container(source: io::Error) -> BackendError {
    node_error(Path::new(CONTAINER_NODE), source, || Remedy::LoadModule {
        module: "vfio-pci",
        kernel: "CONFIG_VFIO, CONFIG_VFIO_CONTAINER, CONFIG_VFIO_PCI",
    })
}

/// A device's hold on its group, dropped when the device is closed. The group leaves the
/// container with its last device, and is closed before anybody else looks for it.
struct Member {
    /// There until it is dropped.
    group: Option<Arc<Group>>,
    container: Arc<Container>,
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut groups = self.container.groups();
        drop(self.group.take());
        groups.retain(|_, group| group.strong_count() > 0);
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
            unsafe { ioctl::iommu_get_info(self.node.as_raw_fd(), info) }
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
        let status = unsafe { ioctl::iommu_map_dma(self.node.as_raw_fd(), &raw const map) };
        done(status).map_err(|errno| {
            let exhausted = (errno == Errno::ENOSPC).then(|| {
                "the container has no mapping left: raise dma_entry_limit of the module \
                 vfio_iommu_type1, or use fewer and larger buffers"
                    .into()
            });
            map_error(request, errno, exhausted)
        })
    }

    fn lending(&self) -> Option<Lending> {
        Some(Lending::Mapped)
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<()> {
        let mut unmap = uapi::vfio_iommu_type1_dma_unmap {
            argsz: size_of::<uapi::vfio_iommu_type1_dma_unmap>() as u32,
            iova,
            size: len as u64,
            ..Default::default()
        };
        // SAFETY: the descriptor is a container, and the structure has no data behind it.
        let status = unsafe { ioctl::iommu_unmap_dma(self.node.as_raw_fd(), &raw mut unmap) };
        match done(status) {
            // With the last group of a container the kernel unmaps all of it: a device that
            // leaves the bus takes its group along, whoever has the group open.
            Ok(()) if unmap.size == 0 && self.loses_iommu() => Ok(()),
            Ok(()) => check_unmapped(iova, len, unmap.size),
            Err(Errno::EINVAL) if !self.has_iommu() => Ok(()),
            Err(errno) => Err(unmap_error(iova, len, errno)),
        }
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
