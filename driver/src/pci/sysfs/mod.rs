//! What sysfs tells of PCI devices (`Documentation/ABI/testing/sysfs-bus-pci`).

mod bind;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Address;

pub use bind::{Binding, Unbinding};

/// A question to sysfs, or a change in it, that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysfsError {
    /// There is no such device.
    #[error("there is no PCI device {address}\n  remedy: `vfio-dma list` shows what is there")]
    NoDevice {
        /// The address asked for.
        address: Address,
    },
    /// A file could not be read or written.
    #[error("{verb} {}: {source}{}", .path.display(), permission_remedy(.source))]
    File {
        /// What was being done.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file does not hold what it should.
    #[error("{} holds {text:?}, which is not {wanted}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
        /// What was expected.
        wanted: &'static str,
    },
    /// The driver vfio-pci is not there and could not be loaded.
    #[error(
        "{address}: the kernel has no driver vfio-pci, and `modprobe vfio-pci` did not load it: \
         {said}\n  remedy: install the kernel's modules, or use a kernel with CONFIG_VFIO_PCI"
    )]
    NoVfioPci {
        /// The device to be bound.
        address: Address,
        /// What modprobe said.
        said: String,
    },
    /// vfio-pci did not take the device.
    #[error("vfio-pci does not take {address}: {reason}\n  remedy: {remedy}")]
    Refused {
        /// The device.
        address: Address,
        /// The kernel's reason, as far as it tells.
        reason: String,
        /// What mends it.
        remedy: String,
    },
    /// The device is not bound to vfio-pci.
    #[error("{address} is bound to {driver}, not to vfio-pci: there is nothing to unbind")]
    NotBound {
        /// The device.
        address: Address,
        /// Its driver.
        driver: String,
    },
    /// A process has the device open.
    #[error(
        "{address} is busy: {node} is open\n  remedy: end that process; `fuser -v {node}` names it"
    )]
    Busy {
        /// The device.
        address: Address,
        /// Node of its group.
        node: String,
    },
    /// A change failed half-way, and taking it back failed too.
    #[error("{first}\n  and taking it back failed: {second}")]
    Rollback {
        /// Why the change failed.
        first: Box<SysfsError>,
        /// Why it could not be taken back.
        second: Box<SysfsError>,
    },
}

fn permission_remedy(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied { "\n  remedy: run as root" } else { "" }
}

type Result<T> = std::result::Result<T, SysfsError>;

/// A PCI device as sysfs describes it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct DeviceInfo {
    /// Its address.
    pub address: Address,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem device id.
    pub subsystem_device: u16,
    /// Class code: class, subclass, programming interface.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// Its IOMMU group; `None` when the system runs without an IOMMU.
    pub iommu_group: Option<u32>,
    /// The members of its group, itself among them.
    pub group_members: Vec<Address>,
}

/// Drivers that leave a group to a user: they do no DMA of their own (their
/// `driver_managed_dma` is set in the kernel).
fn leaves_group_viable(driver: &str) -> bool {
    matches!(driver, "vfio-pci" | "pci-stub" | "pcieport") || driver.ends_with("vfio_pci")
}

/// The PCI part of a sysfs.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
    /// Where former drivers are remembered.
    state: PathBuf,
}

impl Sysfs {
    /// The running kernel's, at `/sys`.
    #[must_use]
    pub fn system() -> Sysfs {
        Sysfs { root: "/sys".into(), state: "/run/vfio-dma".into() }
    }

    /// A tree elsewhere, such as one that a test makes; former drivers are remembered in
    /// `state`.
    #[must_use]
    pub fn at(root: &Path, state: &Path) -> Sysfs {
        Sysfs { root: root.into(), state: state.into() }
    }

    /// The directory of a device.
    #[must_use]
    pub fn device_path(&self, address: Address) -> PathBuf {
        self.root.join("bus/pci/devices").join(address.to_string())
    }

    fn driver_path(&self, driver: &str) -> PathBuf {
        self.root.join("bus/pci/drivers").join(driver)
    }

    /// Every PCI device, by address.
    ///
    /// # Errors
    ///
    /// Fails when sysfs cannot be read. A device that goes meanwhile is left out.
    pub fn enumerate(&self) -> Result<Vec<DeviceInfo>> {
        let path = self.root.join("bus/pci/devices");
        let mut devices = Vec::new();
        for address in self.addresses(&path)? {
            match self.device(address) {
                Ok(info) => devices.push(info),
                Err(SysfsError::NoDevice { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(devices)
    }

    /// One device.
    ///
    /// # Errors
    ///
    /// [`SysfsError::NoDevice`] when it is not there.
    pub fn device(&self, address: Address) -> Result<DeviceInfo> {
        let path = self.device_path(address);
        if !path.exists() {
            return Err(SysfsError::NoDevice { address });
        }
        let number = |name: &str| read_hex(&path.join(name));
        let group = link_name(&path.join("iommu_group"))?;
        let iommu_group = match &group {
            Some(name) => Some(name.parse().map_err(|_| SysfsError::Format {
                path: path.join("iommu_group"),
                text: name.clone(),
                wanted: "a group's number",
            })?),
            None => None,
        };
        let group_members = match iommu_group {
            Some(_) => self.addresses(&path.join("iommu_group/devices"))?,
            None => Vec::new(),
        };
        Ok(DeviceInfo {
            address,
            vendor: number("vendor")? as u16,
            device: number("device")? as u16,
            subsystem_vendor: number("subsystem_vendor")? as u16,
            subsystem_device: number("subsystem_device")? as u16,
            class: number("class")?,
            revision: number("revision")? as u8,
            driver: link_name(&path.join("driver"))?,
            iommu_group,
            group_members,
        })
    }

    /// The members of the device's group that keep it from a user, with their drivers.
    ///
    /// # Errors
    ///
    /// Fails when sysfs cannot be read.
    pub fn hindering_members(&self, address: Address) -> Result<Vec<(Address, String)>> {
        let mut hindering = Vec::new();
        for member in self.device(address)?.group_members {
            match self.driver_of(member)? {
                Some(driver) if !leaves_group_viable(&driver) => hindering.push((member, driver)),
                _ => {}
            }
        }
        Ok(hindering)
    }

    fn driver_of(&self, address: Address) -> Result<Option<String>> {
        link_name(&self.device_path(address).join("driver"))
    }

    /// The addresses that a directory's entries are named by, ascending.
    fn addresses(&self, path: &Path) -> Result<Vec<Address>> {
        let error = |source| SysfsError::File { verb: "reading", path: path.into(), source };
        let mut addresses = Vec::new();
        for entry in fs::read_dir(path).map_err(error)? {
            let name = entry.map_err(error)?.file_name();
            // Groups also hold devices of other buses.
            if let Some(address) = name.to_str().and_then(|name| name.parse().ok()) {
                addresses.push(address);
            }
        }
        addresses.sort();
        Ok(addresses)
    }
}

fn read(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).map_err(|source| SysfsError::File {
        verb: "reading",
        path: path.into(),
        source,
    })?;
    Ok(text.trim_end().to_string())
}

fn read_hex(path: &Path) -> Result<u32> {
    let text = read(path)?;
    let digits = text.strip_prefix("0x").unwrap_or(&text);
    u32::from_str_radix(digits, 16).map_err(|_| SysfsError::Format {
        path: path.into(),
        text: text.clone(),
        wanted: "a hexadecimal number",
    })
}

/// The last part of what a link points to; `None` when there is no link.
fn link_name(path: &Path) -> Result<Option<String>> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysfsError::File { verb: "reading", path: path.into(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machines_own_tree_is_read() {
        // Machines without PCI exist; those with it have devices with vendors.
        if Path::new("/sys/bus/pci/devices").exists() {
            for info in Sysfs::system().enumerate().unwrap() {
                assert_ne!(info.vendor, 0xffff);
                assert!(info.iommu_group.is_none() || info.group_members.contains(&info.address));
            }
        }
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let empty = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(empty.path(), empty.path());
        let error = sysfs.device("00:1f.7".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("0000:00:1f.7") && error.contains("vfio-dma list"), "{error}");
        let error = sysfs.enumerate().unwrap_err().to_string();
        assert!(error.contains("bus/pci/devices"), "{error}");
    }
}
