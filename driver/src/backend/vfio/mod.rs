//! Devices bound to vfio-pci, reached through their IOMMU group and a type1v2 container.
//!
//! `vfio-ioctls` opens groups, containers and devices and describes regions and
//! interrupts. What it does not expose, and what it would answer without saying why it
//! failed, are requests of our own (`ioctl.rs`).

mod container;
mod device;
mod ioctl;

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};

pub use container::Container;
pub use device::Device;

use super::{BackendError, Result};
use crate::pci::sysfs::VFIO_PCI;
use crate::pci::{Address, PciError, Sysfs};

fn os_error(action: String, errno: Errno, remedy: Option<String>) -> BackendError {
    BackendError::Os { action, source: io::Error::from(errno), remedy }
}

fn precondition(problem: impl Into<String>, remedy: impl Into<String>) -> BackendError {
    BackendError::Precondition { problem: problem.into(), remedy: remedy.into() }
}

/// The device node of the container.
const CONTAINER_NODE: &str = "/dev/vfio/vfio";

impl Container {
    /// Opens a new, empty container.
    ///
    /// # Errors
    ///
    /// Fails when the kernel has no VFIO, or this process may not use it.
    pub fn new() -> Result<Arc<Container>> {
        let inner = VfioContainer::new(None).map_err(|error| match error {
            VfioError::OpenContainer(source) => node_error(CONTAINER_NODE, source, || {
                "load VFIO: modprobe vfio-pci (kernel options CONFIG_VFIO, CONFIG_VFIO_PCI)".into()
            }),
            VfioError::VfioExtension => precondition(
                format!("{CONTAINER_NODE} has no type1v2 IOMMU"),
                "modprobe vfio_iommu_type1 (kernel option CONFIG_VFIO_IOMMU_TYPE1)",
            ),
            other => precondition(
                format!("{CONTAINER_NODE}: {other}"),
                "this needs Linux with CONFIG_VFIO_CONTAINER, API version 0",
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
    /// group's node, or end who uses it. [`BackendError::NotShareable`] when the group
    /// cannot join a container that has others already.
    pub fn open(self: &Arc<Container>, address: Address) -> Result<Device> {
        let sysfs = Sysfs::new();
        let (path, group) = check(&sysfs, address)?;
        let node = format!("/dev/vfio/{group}");
        // Opened here once, so that the reason is told; `VfioDevice` opens it again.
        self.check_node(&node, group, address)?;
        let inner = VfioDevice::new(&path, Arc::clone(&self.inner) as _, false)
            .map_err(|error| self.explain(error, address, &node))?;
        Device::new(inner, path, address, self)
    }

    /// Whether the group's node can be opened, unless this container holds it already.
    fn check_node(&self, node: &str, group: u32, address: Address) -> Result<()> {
        if self.holds(group) {
            return Ok(());
        }
        match OpenOptions::new().read(true).write(true).open(node) {
            Ok(_) => Ok(()),
            Err(source) if source.raw_os_error() == Some(libc::EBUSY) => Err(precondition(
                format!("{address} is busy: {node} is open in another process"),
                format!("end that process; `fuser -v {node}` names it"),
            )),
            Err(source) => Err(node_error(node, source, || {
                format!(
                    "bind the device again: vfio-dma unbind {address} && vfio-dma bind {address}"
                )
            })),
        }
    }

    fn explain(&self, error: VfioError, address: Address, node: &str) -> BackendError {
        match error {
            VfioError::GroupSetContainer => BackendError::NotShareable {
                location: address.to_string(),
                reason: "the kernel does not attach its group to the container".into(),
            },
            VfioError::ContainerSetIOMMU(errno) if errno.errno() == libc::EPERM => precondition(
                format!("{address}: the IOMMU does not remap interrupts, the kernel refuses"),
                "enable interrupt remapping in the firmware, or, accepting that the device can \
                 forge interrupts, set allow_unsafe_interrupts=1 of the module vfio_iommu_type1",
            ),
            VfioError::ContainerSetIOMMU(errno) => os_error(
                format!("{address}: setting the container's IOMMU to type1v2"),
                Errno::from_raw(errno.errno()),
                None,
            ),
            VfioError::GroupGetDeviceFD(errno) => {
                let remedy = (errno.errno() == libc::EBUSY).then(|| {
                    format!("end the process that has it open; `fuser -v {node}` names it")
                });
                os_error(
                    format!("opening {address} through {node}"),
                    Errno::from_raw(errno.errno()),
                    remedy,
                )
            }
            VfioError::GroupViable => precondition(
                format!("{address}: its IOMMU group is not viable, or in a container already"),
                "bind every member of the group to vfio-pci or to no driver; `vfio-dma list` \
                 shows them",
            ),
            other => precondition(
                format!("{address}: opening the device: {other}"),
                "`vfio-dma doctor` checks what VFIO needs",
            ),
        }
    }
}

/// Checks what sysfs tells, and returns the device's directory and its group.
fn check(sysfs: &Sysfs, address: Address) -> Result<(std::path::PathBuf, u32)> {
    let info = sysfs.device(address)?;
    let Some(group) = info.group else {
        return Err(PciError::NoGroup { address }.into());
    };
    if info.driver.as_deref() != Some(VFIO_PCI) {
        let bound = info.driver.map_or("no driver".into(), |name| format!("the driver {name}"));
        return Err(precondition(
            format!("{address} is bound to {bound}, not to vfio-pci"),
            format!("vfio-dma bind {address}"),
        ));
    }
    if group.noiommu {
        return Err(PciError::NoGroup { address }.into());
    }
    sysfs.viability(address)?.check()?;
    Ok((sysfs.device_dir(address)?, group.number))
}

/// Why a node under /dev/vfio could not be opened.
fn node_error(node: &str, source: io::Error, missing: impl Fn() -> String) -> BackendError {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            precondition(format!("{node} is missing: {source}"), missing())
        }
        Some(libc::EACCES | libc::EPERM) => {
            let user = nix::unistd::geteuid();
            precondition(
                format!("{node}: {source} for user {user}"),
                format!("run as root, or give the user access: chown {user} {node}"),
            )
        }
        _ => BackendError::Os { action: format!("opening {node}"), source, remedy: None },
    }
}

impl Container {
    /// Whether this process has the group open through this container.
    fn holds(&self, group: u32) -> bool {
        let node = format!("/dev/vfio/{group}");
        let fds = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        fds.filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .any(|target| target == Path::new(&node))
    }
}
