//! IOMMU groups, and devices opened through them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as uapi;

use super::ioctl::{self, done};
use super::token::{self, VfToken};
use super::{busy, held_elsewhere, node_error, os_error, precondition};
use crate::backend::{BackendError, Result};
use crate::pci::sysfs::{IommuGroup, Tree};
use crate::pci::{Address, Remedy};

/// The groups that this process has open, in whichever container: a reset of a bus takes all that
/// are on it.
static OPEN: Mutex<BTreeMap<u32, Weak<Group>>> = Mutex::new(BTreeMap::new());

/// The group of this number, if this process has it open.
pub(super) fn opened(number: u32) -> Option<Arc<Group>> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner).get(&number)?.upgrade()
}

/// A group that this process has open. The kernel opens it for one at a time.
#[derive(Debug)]
pub(super) struct Group {
    file: File,
    number: u32,
    node: PathBuf,
}

impl AsRawFd for Group {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl Group {
    /// Has the group found by its number as long as it is open.
    pub(super) fn shared(self) -> Arc<Group> {
        let group = Arc::new(self);
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, group| group.strong_count() > 0);
        open.insert(group.number, Arc::downgrade(&group));
        group
    }

    /// Opens the group for one of its devices. `denied` is told EPERM and may explain it.
    pub(super) fn open(
        group: &IommuGroup,
        address: Address,
        denied: impl FnOnce(&std::path::Path) -> Option<BackendError>,
    ) -> Result<Group> {
        let (node, number) = (group.node(), group.number);
        let opened = OpenOptions::new().read(true).write(true).open(&node);
        let file = opened.map_err(|source| {
            let told = match source.raw_os_error() {
                Some(libc::EBUSY) => Some(busy(address, &node, number)),
                Some(libc::EPERM) => denied(&node),
                _ => None,
            };
            told.unwrap_or_else(|| node_error(&node, source, || Remedy::Rebind { address }))
        })?;
        Ok(Group { file, number, node })
    }

    /// A group that another process opened, and passed on: its descriptor was checked.
    pub(super) fn passed(fd: OwnedFd, group: &IommuGroup) -> Group {
        Group { file: fd.into(), number: group.number, node: group.node() }
    }

    /// Its number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Its node.
    pub(super) fn node(&self) -> &std::path::Path {
        &self.node
    }

    /// Fails when the kernel finds members in the way; says whether it is in a container.
    pub(super) fn check_viable(&self, address: Address) -> Result<bool> {
        let argsz = size_of::<uapi::vfio_group_status>() as u32;
        let mut status = uapi::vfio_group_status { argsz, flags: 0 };
        // SAFETY: the descriptor is a group, and the structure as large as it says.
        done(unsafe { ioctl::group_get_status(self.file.as_raw_fd(), &raw mut status) }).map_err(
            |errno| os_error(format!("{address}: asking for its group's state"), errno, None),
        )?;
        if status.flags & uapi::VFIO_GROUP_FLAGS_VIABLE != 0 {
            return Ok(status.flags & uapi::VFIO_GROUP_FLAGS_CONTAINER_SET != 0);
        }
        Err(precondition(
            format!("{address}: its IOMMU group {} is not viable", self.number),
            Remedy::FreeGroup { members: Vec::new() },
        ))
    }

    /// Puts the group into a container, which it leaves when it is closed.
    pub(super) fn join(&self, container: &impl AsRawFd) -> nix::Result<()> {
        let container = container.as_raw_fd();
        // SAFETY: the descriptor is a group, and the argument points to a descriptor.
        done(unsafe { ioctl::group_set_container(self.file.as_raw_fd(), &raw const container) })
    }

    /// Opens a device of the group, which is in a container.
    pub(super) fn device(&self, address: Address, token: Option<&VfToken>) -> Result<OwnedFd> {
        let name = token::name(address, token);
        // SAFETY: the descriptor is a group, and the argument a string that ends.
        let opened = unsafe { ioctl::group_get_device_fd(self.file.as_raw_fd(), name.as_ptr()) };
        let device = opened.map_err(|errno| {
            token::refusal(&Tree::new(), address, token, errno).unwrap_or_else(|| match errno {
                Errno::EBUSY => held_elsewhere(address, &self.node, self.number),
                errno => {
                    let action = format!("opening {address} through {}", self.node.display());
                    os_error(action, errno, opening_remedy(errno))
                }
            })
        })?;
        // SAFETY: the kernel has just made the descriptor, for this process to own.
        Ok(unsafe { OwnedFd::from_raw_fd(device) })
    }
}

/// What helps where the kernel does not open a device of a group that is in a container
/// (`vfio_group_use_container` in its `drivers/vfio/container.c`).
fn opening_remedy(errno: Errno) -> Option<Remedy> {
    match errno {
        Errno::EINVAL => Some(
            "the container that its group is in has no IOMMU: whoever put the group there has to \
             set one"
                .into(),
        ),
        Errno::EPERM => Some(Remedy::GrantCapability { capability: "cap_sys_rawio" }),
        _ => None,
    }
}
