//! Devices opened through their IOMMU group, in a type1v2 container.

use std::fs::OpenOptions;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};

use super::claim::Claim;
use super::{
    CONTAINER_NODE, Container, Device, Target, busy, is_open_here, node_error, os_error,
    precondition, unsafe_interrupts,
};
use crate::backend::{BackendError, Result};
use crate::pci::sysfs::Tree;
use crate::pci::{Address, Remedy};

impl Container {
    /// Opens a new, empty container.
    ///
    /// # Errors
    ///
    /// Fails when the kernel has no VFIO, or this process may not use it.
    pub fn new() -> Result<Arc<Container>> {
        let inner = VfioContainer::new(None).map_err(|error| match error {
            VfioError::OpenContainer(source) => {
                node_error(Path::new(CONTAINER_NODE), source, || Remedy::LoadModule {
                    module: "vfio-pci",
                    kernel: "CONFIG_VFIO, CONFIG_VFIO_PCI",
                })
            }
            VfioError::VfioExtension => precondition(
                format!("{CONTAINER_NODE} has no type1v2 IOMMU"),
                Remedy::LoadModule {
                    module: "vfio_iommu_type1",
                    kernel: "CONFIG_VFIO_IOMMU_TYPE1",
                },
            ),
            other => precondition(
                format!("{CONTAINER_NODE}: {other}"),
                Remedy::KernelOptions { options: "CONFIG_VFIO_CONTAINER, API version 0" },
            ),
        })?;
        Ok(Arc::new(Container { inner: Arc::new(inner) }))
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
        let Target { dir, group } = Target::translated(&Tree::new(), address)?;
        let claim = Claim::new(address, group.number)?;
        let node = group.node();
        // Opened here once, so that the reason is told; `VfioDevice` opens it again.
        check_node(&node, address, group.number)?;
        let inner = VfioDevice::new(&dir, Arc::clone(&self.inner) as _, false)
            .map_err(|error| explain(error, address, &node, group.number))?;
        let owner = GroupDevice { inner: ManuallyDrop::new(inner), sysfs: dir, address };
        Device::new(Box::new(owner), claim, Arc::clone(self) as _)
    }
}

/// Whether the group's node can be opened, unless this process holds it already.
fn check_node(node: &Path, address: Address, group: u32) -> Result<()> {
    if is_open_here(node) {
        return Ok(());
    }
    match OpenOptions::new().read(true).write(true).open(node) {
        Ok(_) => Ok(()),
        Err(source) if source.raw_os_error() == Some(libc::EBUSY) => {
            Err(busy(address, node, group))
        }
        Err(source) => Err(node_error(node, source, || Remedy::Rebind { address })),
    }
}

fn explain(error: VfioError, address: Address, node: &Path, group: u32) -> BackendError {
    match error {
        VfioError::GroupSetContainer => BackendError::NotShareable {
            location: address.to_string(),
            reason: "the kernel does not attach its group to the container".into(),
        },
        VfioError::ContainerSetIOMMU(errno) if errno.errno() == libc::EPERM => {
            unsafe_interrupts(address, "vfio_iommu_type1")
        }
        VfioError::ContainerSetIOMMU(errno) => os_error(
            format!("{address}: setting the container's IOMMU to type1v2"),
            Errno::from_raw(errno.errno()),
            None,
        ),
        VfioError::OpenGroup(source, _) if source.raw_os_error() == Some(libc::EBUSY) => {
            busy(address, node, group)
        }
        VfioError::GroupGetDeviceFD(errno) if errno.errno() == libc::EBUSY => {
            busy(address, node, group)
        }
        VfioError::GroupGetDeviceFD(errno) => os_error(
            format!("opening {address} through {}", node.display()),
            Errno::from_raw(errno.errno()),
            None,
        ),
        VfioError::GroupViable => precondition(
            format!("{address}: its IOMMU group is not viable, or in a container already"),
            Remedy::FreeGroup { members: Vec::new() },
        ),
        other => {
            precondition(format!("{address}: opening the device: {other}"), Remedy::CheckSetup)
        }
    }
}

/// A device of a group. Closed before the group leaves its container.
struct GroupDevice {
    inner: ManuallyDrop<VfioDevice>,
    sysfs: PathBuf,
    address: Address,
}

impl AsRawFd for GroupDevice {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

impl Drop for GroupDevice {
    fn drop(&mut self) {
        // `VfioDevice` reads the group's number from sysfs again and panics without it.
        if self.sysfs.join("iommu_group").exists() {
            // SAFETY: not used again after this.
            unsafe { ManuallyDrop::drop(&mut self.inner) };
        } else {
            log::error!(
                "{}: the device left the system while open; its descriptor stays open until this \
                 process ends",
                self.address
            );
        }
    }
}
