//! Descriptors that another process opened and passed on, checked to be what they are taken for.
//!
//! A process with the rights opens the nodes, gives the descriptors to one without
//! (`SCM_RIGHTS`, or by inheritance), and that one drives the device. The kernel knows a node by
//! its device number, whatever its path is and whoever opened it; sysfs tells what it stands for.

use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::stat::{SFlag, fstat, major, minor};
use vfio_bindings::bindings::vfio as uapi;

use super::ioctl::{self, done};
use super::os_error;
use crate::backend::{BackendError, Result};
use crate::pci::Address;
use crate::pci::sysfs::{IommuGroup, Tree};

/// A descriptor by which one device is opened, passed by a process that could open it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Passed {
    /// The device's IOMMU group, `/dev/vfio/N`: type1. It may be in a container already, the one
    /// that the session has then.
    Group(OwnedFd),
    /// The device itself, as VFIO_GROUP_GET_DEVICE_FD gives it: type1, in the container that the
    /// session has, which the group is in.
    Device {
        /// The device.
        device: OwnedFd,
        /// Its group, which a reset of the bus takes.
        group: Option<OwnedFd>,
    },
    /// The device's own character device, `/dev/vfio/devices/vfioN`, not bound yet: iommufd.
    #[cfg(feature = "iommufd")]
    CharacterDevice(OwnedFd),
}

impl Passed {
    /// What it is.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Passed::Group(_) => "an IOMMU group",
            Passed::Device { .. } => "a device of an IOMMU group",
            #[cfg(feature = "iommufd")]
            Passed::CharacterDevice(_) => "a device's character device",
        }
    }
}

/// What is known of a descriptor without asking its driver.
fn describe(fd: BorrowedFd<'_>) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.map_or_else(|_| "unknown".into(), |target| target.display().to_string())
}

fn wrong(fd: BorrowedFd<'_>, expected: impl Into<String>) -> BackendError {
    BackendError::WrongDescriptor { expected: expected.into(), found: describe(fd) }
}

/// Where sysfs has the character device that a descriptor is of.
fn device_dir(sysfs: &Tree, fd: BorrowedFd<'_>) -> Option<PathBuf> {
    let stat = fstat(fd).ok()?;
    if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFCHR {
        return None;
    }
    let number = format!("{}:{}", major(stat.st_rdev), minor(stat.st_rdev));
    std::fs::read_link(sysfs.root().join("dev/char").join(number)).ok()
}

/// Whether sysfs has the descriptor's character device at a path that ends so.
fn is_at(sysfs: &Tree, fd: BorrowedFd<'_>, end: &str) -> bool {
    device_dir(sysfs, fd).is_some_and(|dir| dir.ends_with(end))
}

/// Fails unless the descriptor is a container.
pub(super) fn check_container(sysfs: &Tree, fd: BorrowedFd<'_>) -> Result<()> {
    if is_at(sysfs, fd, "misc/vfio") { Ok(()) } else { Err(wrong(fd, "a container of VFIO")) }
}

/// Fails unless the descriptor is iommufd's.
#[cfg(feature = "iommufd")]
pub(super) fn check_iommufd(sysfs: &Tree, fd: BorrowedFd<'_>) -> Result<()> {
    if is_at(sysfs, fd, "misc/iommu") { Ok(()) } else { Err(wrong(fd, "an iommufd")) }
}

/// Fails unless the descriptor is this group.
pub(super) fn check_group(sysfs: &Tree, fd: BorrowedFd<'_>, group: &IommuGroup) -> Result<()> {
    let prefix = if group.noiommu { "noiommu-" } else { "" };
    if is_at(sysfs, fd, &format!("vfio/{prefix}{}", group.number)) {
        return Ok(());
    }
    Err(wrong(fd, format!("the IOMMU group {}", group.node().display())))
}

/// Fails unless the descriptor is the character device of this function.
#[cfg(feature = "iommufd")]
pub(super) fn check_character_device(
    sysfs: &Tree,
    fd: BorrowedFd<'_>,
    address: Address,
) -> Result<()> {
    let dir = device_dir(sysfs, fd);
    let parent = dir.as_deref().and_then(|dir| dir.parent());
    if parent.is_some_and(|parent| parent.ends_with(format!("{address}/vfio-dev"))) {
        return Ok(());
    }
    Err(wrong(fd, format!("the character device of {address}")))
}

/// Fails unless the descriptor is this function, opened through its group.
pub(super) fn check_device(sysfs: &Tree, device: &OwnedFd, address: Address) -> Result<()> {
    let fd = device.as_fd();
    let expected = || format!("the device {address}, opened through its IOMMU group");
    if describe(fd) != "anon_inode:[vfio-device]" {
        return Err(wrong(fd, expected()));
    }
    let mut info = uapi::vfio_device_info {
        argsz: size_of::<uapi::vfio_device_info>() as u32,
        ..Default::default()
    };
    // SAFETY: VFIO opened the descriptor, and the structure is as large as it says.
    done(unsafe { ioctl::device_get_info(fd.as_raw_fd(), &raw mut info) })
        .map_err(|errno| os_error(format!("{address}: asking what it is"), errno, None))?;
    if info.flags & uapi::VFIO_DEVICE_FLAGS_PCI == 0 {
        return Err(wrong(fd, expected()));
    }
    match path_of(fd) {
        // A recent kernel tells which function it is.
        Some(path) if path.ends_with(address.to_string()) => Ok(()),
        Some(path) => {
            let found = format!("the device {}", path.display());
            Err(BackendError::WrongDescriptor { expected: expected(), found })
        }
        None => check_identity(sysfs, fd, address),
    }
}

/// The device's directory, where the kernel tells it of the descriptor.
fn path_of(fd: BorrowedFd<'_>) -> Option<PathBuf> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let path = info.lines().find_map(|line| line.strip_prefix("vfio-device-syspath:"))?;
    Some(PathBuf::from(path.trim()))
}

/// Compares what the device identifies itself as with what sysfs has of the function: all that
/// an older kernel tells.
fn check_identity(sysfs: &Tree, fd: BorrowedFd<'_>, address: Address) -> Result<()> {
    let description = super::describe::Description::read(fd.as_raw_fd())
        .map_err(|errno| os_error(format!("{address}: asking for its regions"), errno, None))?;
    let placed = description.region(crate::backend::Region::Config);
    let position = placed.map_or(0, |placed| placed.position);
    let mut ids = [0; 4];
    nix::sys::uio::pread(fd, &mut ids, position as libc::off_t)
        .map_err(|errno| os_error(format!("{address}: reading its ids"), errno, None))?;
    let dir = sysfs.device_dir(address)?;
    let id = |name: &str| {
        let text = std::fs::read_to_string(dir.join(name)).ok()?;
        u16::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    let [vendor, device] = [[ids[0], ids[1]], [ids[2], ids[3]]].map(u16::from_le_bytes);
    if (id("vendor"), id("device")) == (Some(vendor), Some(device)) {
        return Ok(());
    }
    let expected = format!("the device {address}");
    let found = format!("a device {vendor:04x}:{device:04x}");
    Err(BackendError::WrongDescriptor { expected, found })
}

/// A duplicate, which this process closes by itself.
#[cfg(feature = "iommufd")]
pub(super) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let duplicated = fd.try_clone_to_owned();
    duplicated.map_err(|error| {
        let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(libc::EBADF));
        os_error("duplicating a descriptor".into(), errno, None)
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// A tree of sysfs where the number of `/dev/null` stands for this.
    fn tree(of_null: &str) -> (tempfile::TempDir, Tree) {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("dev/char");
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink(of_null, dir.join("1:3")).unwrap();
        let tree = Tree::at(root.path());
        (root, tree)
    }

    #[test]
    fn a_descriptor_is_known_by_its_number_and_another_is_named() {
        let null = File::open("/dev/null").unwrap();
        let address: Address = "0000:00:05.0".parse().unwrap();
        let group = IommuGroup { number: 7, noiommu: false, members: Vec::new() };

        let (_root, sysfs) = tree("../../devices/virtual/vfio/7");
        check_group(&sysfs, null.as_fd(), &group).unwrap();
        let other = IommuGroup { number: 17, ..group.clone() };
        let error = check_group(&sysfs, null.as_fd(), &other).unwrap_err();
        assert!(matches!(&error, BackendError::WrongDescriptor { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("/dev/vfio/17") && text.contains("/dev/null"), "{text}");
        check_container(&sysfs, null.as_fd()).unwrap_err();

        let (_root, sysfs) = tree("../../devices/virtual/misc/vfio");
        check_container(&sysfs, null.as_fd()).unwrap();
        check_group(&sysfs, null.as_fd(), &group).unwrap_err();
        let file = tempfile::tempfile().unwrap();
        check_container(&sysfs, file.as_fd()).unwrap_err();
        let error = check_device(&sysfs, &file.into(), address).unwrap_err();
        assert!(matches!(&error, BackendError::WrongDescriptor { .. }), "{error}");
    }

    #[cfg(feature = "iommufd")]
    #[test]
    fn a_character_device_belongs_to_one_function() {
        let null = File::open("/dev/null").unwrap();
        let (_root, sysfs) = tree("../../devices/pci0000:00/0000:00:05.0/vfio-dev/vfio0");
        let check =
            |address: &str| check_character_device(&sysfs, null.as_fd(), address.parse().unwrap());
        check("0000:00:05.0").unwrap();
        check("0000:00:06.0").unwrap_err();
        check_iommufd(&sysfs, null.as_fd()).unwrap_err();
        let (_root, sysfs) = tree("../../devices/virtual/misc/iommu");
        check_iommufd(&sysfs, null.as_fd()).unwrap();
        check_character_device(&sysfs, null.as_fd(), "0000:00:05.0".parse().unwrap()).unwrap_err();
    }
}
