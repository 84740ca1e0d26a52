//! IOMMU groups: what VFIO hands out together.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Sysfs, link_name, names, read_text};
use crate::pci::error::{HostDriver, PciError, Result};
use crate::pci::{Address, ClassCode};

/// The smallest set of devices that the IOMMU can tell apart from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IommuGroup {
    /// Its number.
    pub number: u32,
    /// VFIO made the group up for a device without an IOMMU (its no-IOMMU mode).
    pub noiommu: bool,
    /// Its members by name: PCI addresses, or names of devices on other buses.
    pub members: Vec<String>,
}

impl IommuGroup {
    /// The group's character device, below `/dev/vfio`.
    #[must_use]
    pub fn node(&self) -> PathBuf {
        let prefix = if self.noiommu { "noiommu-" } else { "" };
        PathBuf::from(format!("/dev/vfio/{prefix}{}", self.number))
    }
}

/// Whether VFIO hands out a device's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Viability {
    /// The device in question.
    pub address: Address,
    /// Its group's number.
    pub group: u32,
    /// The other members that a host driver uses; VFIO refuses the group while there are any.
    pub in_the_way: Vec<HostDriver>,
}

impl Viability {
    /// Fails when members of the group are in the way.
    ///
    /// # Errors
    ///
    /// [`PciError::GroupNotViable`], which names them.
    pub fn check(self) -> Result<()> {
        if self.in_the_way.is_empty() {
            return Ok(());
        }
        Err(PciError::GroupNotViable {
            address: self.address,
            group: self.group,
            members: self.in_the_way,
        })
    }
}

impl Sysfs {
    /// The names of the members of an IOMMU group, sorted.
    ///
    /// # Errors
    ///
    /// Fails when the group does not exist.
    pub fn group_members(&self, number: u32) -> Result<Vec<String>> {
        names(&self.group_dir(number).join("devices"))
    }

    /// Whether the function's group can be opened through VFIO, and what is in the way.
    ///
    /// The kernel lets a member be that has no driver, or one that leaves the ownership of
    /// DMA to others: vfio-pci and its device-specific variants, pci-stub, and the port
    /// driver of PCI bridges (the kernel's `driver_managed_dma`). The function itself is
    /// not considered: whether it is bound to vfio-pci is another question.
    ///
    /// # Errors
    ///
    /// Fails when the function does not exist or has no group.
    pub fn viability(&self, address: Address) -> Result<Viability> {
        let dir = self.device_dir(address)?;
        let group = self.group_number(&dir)?.ok_or(PciError::NoGroup { address })?;
        let devices = self.group_dir(group).join("devices");
        let mut in_the_way = Vec::new();
        for device in names(&devices)? {
            if device == address.to_string() {
                continue;
            }
            let dir = devices.join(&device);
            if let Some(driver) = link_name(&dir.join("driver"))?
                && !leaves_dma_alone(&driver, &dir)
            {
                in_the_way.push(HostDriver { device, driver });
            }
        }
        Ok(Viability { address, group, in_the_way })
    }

    /// The group of the device with this directory.
    pub(super) fn group_number(&self, dir: &Path) -> Result<Option<u32>> {
        let link = dir.join("iommu_group");
        let Some(text) = link_name(&link)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(PciError::Malformed {
                path: link,
                text,
                expected: "a link to a group's number",
            }),
        }
    }

    pub(super) fn group(&self, number: u32) -> Result<IommuGroup> {
        // Most groups have no name, and only vfio names one so.
        let name = read_text(&self.group_dir(number).join("name")).unwrap_or_default();
        let members = self.group_members(number)?;
        Ok(IommuGroup { number, noiommu: name == "vfio-noiommu", members })
    }

    fn group_dir(&self, number: u32) -> PathBuf {
        self.root.join("kernel/iommu_groups").join(number.to_string())
    }
}

/// Whether the driver of the device with this directory leaves the group to VFIO.
fn leaves_dma_alone(driver: &str, dir: &Path) -> bool {
    let variant_of_vfio = driver.replace('_', "-").ends_with("vfio-pci");
    let bridge = || {
        let code = read_text(&dir.join("class")).ok();
        code.and_then(|text| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok())
            .is_some_and(|code| ClassCode::from_code(code).is_pci_bridge())
    };
    variant_of_vfio || driver == "pci-stub" || (driver == "pcieport" && bridge())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn only_members_that_host_drivers_use_are_in_the_way() {
        let fake = Fake::new();
        let edu = fake.device("0000:00:05.0", 0x1234, 0x11e8, Some("edu"), Some(7));
        fake.device("0000:00:05.1", 0x1af4, 0x1041, None, Some(7));
        fake.device("0000:00:05.2", 0x1af4, 0x1041, Some("vfio-pci"), Some(7));
        fake.device("0000:00:05.3", 0x1af4, 0x1041, Some("mlx5_vfio_pci"), Some(7));
        fake.device("0000:00:05.4", 0x1af4, 0x1041, Some("pci-stub"), Some(7));
        fake.device("0000:00:1c.0", 0x8086, 0xa110, Some("pcieport"), Some(7));
        fs::write(fake.path("bus/pci/devices/0000:00:1c.0/class"), "0x060400\n").unwrap();
        fake.device("0000:00:06.0", 0x1af4, 0x1041, Some("virtio-pci"), Some(8));
        assert_eq!(fake.sysfs().viability(edu).unwrap().in_the_way, []);
        fake.sysfs().viability(edu).unwrap().check().unwrap();

        fake.device("0000:00:05.6", 0x8086, 0xa170, Some("snd_hda_intel"), Some(7));
        // The port driver's name alone is not enough.
        fake.device("0000:00:05.7", 0x8086, 0xa171, Some("pcieport"), Some(7));
        let viability = fake.sysfs().viability(edu).unwrap();
        let drivers: Vec<_> = viability.in_the_way.iter().map(ToString::to_string).collect();
        assert_eq!(drivers, ["0000:00:05.6 (snd_hda_intel)", "0000:00:05.7 (pcieport)"]);
        let text = viability.check().unwrap_err().to_string();
        assert!(text.contains("IOMMU group 7") && text.contains("snd_hda_intel"), "{text}");
    }

    #[test]
    fn a_function_without_a_group_is_told_apart() {
        let fake = Fake::new();
        let edu = fake.device("0000:00:05.0", 0x1234, 0x11e8, None, None);
        assert!(matches!(fake.sysfs().viability(edu), Err(PciError::NoGroup { .. })));
    }

    #[test]
    fn the_group_node_says_whether_an_iommu_is_there() {
        let fake = Fake::new();
        let edu = fake.device("0000:00:05.0", 0x1234, 0x11e8, None, Some(3));
        let group = || fake.sysfs().device(edu).unwrap().group.unwrap();
        assert_eq!(group().node(), Path::new("/dev/vfio/3"));
        fs::write(fake.path("kernel/iommu_groups/3/name"), "vfio-noiommu\n").unwrap();
        assert!(group().noiommu);
        assert_eq!(group().node(), Path::new("/dev/vfio/noiommu-3"));
    }
}
