//! What sysfs says of a function that is to be opened: its driver, its IOMMU group and nodes.
//!
//! The files are described in the kernel's `Documentation/ABI/testing/sysfs-bus-pci` and
//! `sysfs-kernel-iommu_groups`.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::remedy::{Remedy, suffix};
use super::{Address, ClassCode};

/// The driver that hands any PCI function to userspace. There are others for particular devices
/// (its variants, such as mlx5_vfio_pci), see [`Tree::is_with_vfio`].
pub const VFIO_PCI: &str = "vfio-pci";

/// The result of reading sysfs.
pub type Result<T> = std::result::Result<T, SysfsError>;

/// A fact that sysfs does not tell, or that keeps a function from being opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysfsError {
    /// There is no function at the address.
    #[error("no PCI device {address}\n  remedy: {}", Remedy::ListFunctions)]
    NoDevice {
        /// The address asked for.
        address: Address,
    },
    /// A file could not be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file does not hold what the kernel's documentation says it holds.
    #[error("{} holds {text:?}, which is not {expected}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// The function belongs to no IOMMU group.
    #[error(
        "{address} has no IOMMU group: no IOMMU translates its DMA\n  remedy: {}",
        Remedy::EnableIommu
    )]
    NoGroup {
        /// The function.
        address: Address,
    },
    /// Members of the IOMMU group are still bound to host drivers, so VFIO refuses the group.
    #[error(
        "IOMMU group {group} of {address} has members that host drivers still use: {}{}",
        join(members),
        suffix(Some(remedy))
    )]
    GroupNotViable {
        /// The function that is wanted.
        address: Address,
        /// Its IOMMU group.
        group: u32,
        /// The members in the way.
        members: Vec<HostDriver>,
        /// What to do with them.
        remedy: Remedy,
    },
}

impl SysfsError {
    /// What the reader can do about it, where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<&Remedy> {
        match self {
            SysfsError::NoDevice { .. } => Some(&Remedy::ListFunctions),
            SysfsError::NoGroup { .. } => Some(&Remedy::EnableIommu),
            SysfsError::GroupNotViable { remedy, .. } => Some(remedy),
            SysfsError::Read { .. } | SysfsError::Malformed { .. } => None,
        }
    }
}

/// A member of an IOMMU group that a host driver uses.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct HostDriver {
    /// The member's name: a PCI address, or a device's name on another bus.
    pub device: String,
    /// The driver bound to it.
    pub driver: String,
}

impl fmt::Display for HostDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.device, self.driver)
    }
}

/// The items, with commas between them.
pub(crate) fn join<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

/// The smallest set of devices that the IOMMU can tell apart from others.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
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
#[non_exhaustive]
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
    /// [`SysfsError::GroupNotViable`], which names them.
    pub fn check(self) -> Result<()> {
        if self.in_the_way.is_empty() {
            return Ok(());
        }
        let members = self.in_the_way.iter().map(|member| member.device.clone()).collect();
        Err(SysfsError::GroupNotViable {
            address: self.address,
            group: self.group,
            members: self.in_the_way,
            remedy: Remedy::FreeGroup { members },
        })
    }
}

/// The sysfs of this machine, or a tree of the same shape elsewhere; it is only read.
#[derive(Debug, Clone)]
pub struct Tree {
    root: PathBuf,
}

impl Default for Tree {
    fn default() -> Self {
        Tree::new()
    }
}

impl Tree {
    /// The sysfs of this machine, `/sys`.
    #[must_use]
    pub fn new() -> Tree {
        Tree::at("/sys")
    }

    /// A tree of the shape of `/sys` at another place, such as a container's view of its host.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Tree {
        Tree { root: root.into() }
    }

    /// Where the tree is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The function's directory.
    ///
    /// # Errors
    ///
    /// [`SysfsError::NoDevice`] when it is not there.
    pub fn device_dir(&self, address: Address) -> Result<PathBuf> {
        let path = self.root.join("bus/pci/devices").join(address.to_string());
        match path.try_exists() {
            Ok(true) => Ok(path),
            Ok(false) => Err(SysfsError::NoDevice { address }),
            Err(source) => Err(SysfsError::Read { path, source }),
        }
    }

    /// The driver bound to the function, if any.
    ///
    /// # Errors
    ///
    /// Fails when the function does not exist.
    pub fn driver(&self, address: Address) -> Result<Option<String>> {
        link_name(&self.device_dir(address)?.join("driver"))
    }

    /// Whether the function's driver hands it to userspace: vfio-pci, or one of its variants for
    /// particular devices. A variant is known by what it is, not by its name: VFIO has the
    /// function as a device of its own (Linux 6.1), or the driver's module is built on that of
    /// vfio-pci (Linux 5.15).
    ///
    /// # Errors
    ///
    /// Fails when the function does not exist.
    pub fn is_with_vfio(&self, address: Address) -> Result<bool> {
        self.is_dir_with_vfio(&self.device_dir(address)?)
    }

    /// As [`Tree::is_with_vfio`], for the device with this directory.
    pub(crate) fn is_dir_with_vfio(&self, dir: &Path) -> Result<bool> {
        let Some(driver) = link_name(&dir.join("driver"))? else { return Ok(false) };
        if driver == VFIO_PCI || names(&dir.join("vfio-dev")).is_ok_and(|names| !names.is_empty()) {
            return Ok(true);
        }
        let module = link_name(&dir.join("driver/module"))?;
        let holders = self.root.join("module/vfio_pci_core/holders");
        Ok(module.is_some_and(|module| holders.join(module).exists()))
    }

    /// The function's IOMMU group; none when no IOMMU translates its DMA.
    ///
    /// # Errors
    ///
    /// Fails when the function does not exist, or its group cannot be read.
    pub fn group(&self, address: Address) -> Result<Option<IommuGroup>> {
        let number = self.group_number(&self.device_dir(address)?)?;
        number.map(|number| self.group_of_number(number)).transpose()
    }

    /// The physical function that a virtual function belongs to; none for any other function.
    #[must_use]
    pub fn physical_function(&self, address: Address) -> Option<Address> {
        let dir = self.root.join("bus/pci/devices").join(address.to_string());
        link_name(&dir.join("physfn")).ok().flatten()?.parse().ok()
    }

    /// The NUMA node that the function is attached to, where the firmware says so.
    #[must_use]
    pub fn numa_node(&self, address: Address) -> Option<u32> {
        let dir = self.root.join("bus/pci/devices").join(address.to_string());
        // -1 when it is not known.
        read_text(&dir.join("numa_node")).ok()?.parse().ok()
    }

    /// The function's own character devices: one, in a kernel that has them (Linux 6.6).
    #[must_use]
    pub fn vfio_nodes(&self, address: Address) -> Vec<PathBuf> {
        let dir = self.root.join("bus/pci/devices").join(address.to_string());
        let names = names(&dir.join("vfio-dev")).unwrap_or_default();
        names.iter().map(|name| Path::new("/dev/vfio/devices").join(name)).collect()
    }

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
        let group = self.group_number(&dir)?.ok_or(SysfsError::NoGroup { address })?;
        let devices = self.group_dir(group).join("devices");
        let mut in_the_way = Vec::new();
        for device in names(&devices)? {
            if device == address.to_string() {
                continue;
            }
            let dir = devices.join(&device);
            if let Some(driver) = link_name(&dir.join("driver"))?
                && !self.is_dir_with_vfio(&dir)?
                && !leaves_dma_alone(&driver, &dir)
            {
                in_the_way.push(HostDriver { device, driver });
            }
        }
        Ok(Viability { address, group, in_the_way })
    }

    /// The group of the device with this directory.
    pub(crate) fn group_number(&self, dir: &Path) -> Result<Option<u32>> {
        let link = dir.join("iommu_group");
        let Some(text) = link_name(&link)? else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(SysfsError::Malformed {
                path: link,
                text,
                expected: "a link to a group's number",
            }),
        }
    }

    /// The group with this number.
    pub(crate) fn group_of_number(&self, number: u32) -> Result<IommuGroup> {
        // Most groups have no name, and only vfio names one so.
        let name = read_text(&self.group_dir(number).join("name")).unwrap_or_default();
        let members = self.group_members(number)?;
        Ok(IommuGroup { number, noiommu: name == "vfio-noiommu", members })
    }

    fn group_dir(&self, number: u32) -> PathBuf {
        self.root.join("kernel/iommu_groups").join(number.to_string())
    }
}

/// Whether a driver that is not VFIO's, of the device with this directory, leaves the group to
/// it.
fn leaves_dma_alone(driver: &str, dir: &Path) -> bool {
    let bridge = || {
        let code = read_text(&dir.join("class")).ok();
        code.and_then(|text| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok())
            .is_some_and(|code| ClassCode::from_code(code).is_pci_bridge())
    };
    driver == "pci-stub" || (driver == "pcieport" && bridge())
}

/// An attribute's text without the line feed.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end_matches(['\n', '\0']).to_owned()),
        Err(source) => Err(SysfsError::Read { path: path.to_owned(), source }),
    }
}

/// The last component of what a symbolic link points to; `None` when there is no link.
pub(crate) fn link_name(path: &Path) -> Result<Option<String>> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SysfsError::Read { path: path.to_owned(), source }),
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(path: &Path) -> Result<Vec<String>> {
    let failed = |source| SysfsError::Read { path: path.to_owned(), source };
    let mut names = fs::read_dir(path)
        .map_err(failed)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn driver_group_and_nodes_are_read() {
        let root = tempfile::tempdir().unwrap();
        let path = |path: &str| root.path().join(path);
        let tree = Tree::at(root.path());
        let address: Address = "0000:00:05.0".parse().unwrap();
        let error = tree.driver(address).unwrap_err();
        assert!(matches!(error, SysfsError::NoDevice { .. }), "{error}");
        let text = error.to_string();
        assert_eq!(
            text,
            "no PCI device 0000:00:05.0\n  remedy: /sys/bus/pci/devices shows what is there"
        );

        let dir = path("bus/pci/devices/0000:00:05.0");
        fs::create_dir_all(dir.join("vfio-dev/vfio3")).unwrap();
        assert_eq!(tree.driver(address).unwrap(), None);
        assert_eq!(tree.group(address).unwrap(), None);
        assert!(matches!(tree.viability(address), Err(SysfsError::NoGroup { .. })));
        assert_eq!(tree.vfio_nodes(address), [Path::new("/dev/vfio/devices/vfio3")]);

        let members = path("kernel/iommu_groups/7/devices");
        fs::create_dir_all(&members).unwrap();
        symlink(path("kernel/iommu_groups/7"), dir.join("iommu_group")).unwrap();
        symlink(&dir, members.join("0000:00:05.0")).unwrap();
        symlink("../../../drivers/vfio-pci", dir.join("driver")).unwrap();
        assert_eq!(tree.driver(address).unwrap().as_deref(), Some(VFIO_PCI));
        let group = tree.group(address).unwrap().unwrap();
        assert_eq!(group.members, ["0000:00:05.0"]);
        assert_eq!(group.node(), Path::new("/dev/vfio/7"));
        fs::write(path("kernel/iommu_groups/7/name"), "vfio-noiommu\n").unwrap();
        assert_eq!(tree.group(address).unwrap().unwrap().node(), Path::new("/dev/vfio/noiommu-7"));
        tree.viability(address).unwrap().check().unwrap();
    }

    #[test]
    fn variants_of_vfio_pci_are_known_by_what_they_are() {
        let root = tempfile::tempdir().unwrap();
        let (tree, address) = (Tree::at(root.path()), "0000:00:05.0".parse().unwrap());
        let with_vfio = |driver: Option<&str>| {
            let root = root.path();
            let dir = root.join("bus/pci/devices/0000:00:05.0");
            let _ = fs::remove_dir_all(&dir);
            member(root, "0000:00:05.0", driver, "0x020000\n");
            tree.is_with_vfio(address).unwrap()
        };
        assert!(!with_vfio(None) && !with_vfio(Some("e1000e")) && with_vfio(Some(VFIO_PCI)));
        // An older kernel: the driver's module is built on the core of vfio-pci.
        let driver = root.path().join("bus/pci/drivers/fast_card");
        fs::create_dir_all(&driver).unwrap();
        symlink(root.path().join("module/fast_card_vfio"), driver.join("module")).unwrap();
        assert!(!with_vfio(Some("fast_card")));
        fs::create_dir_all(root.path().join("module/vfio_pci_core/holders/fast_card_vfio"))
            .unwrap();
        assert!(with_vfio(Some("fast_card")));
        assert!(!with_vfio(Some("not_a_vfio_pci")));
        fs::create_dir_all(root.path().join("bus/pci/devices/0000:00:05.0/vfio-dev/vfio0"))
            .unwrap();
        assert!(tree.is_with_vfio(address).unwrap());
    }

    #[test]
    fn members_in_the_way_are_named_with_what_to_do() {
        let address: Address = "0000:00:1f.7".parse().unwrap();
        let in_the_way =
            vec![HostDriver { device: "0000:00:1f.3".into(), driver: "snd_hda_intel".into() }];
        let error = Viability { address, group: 7, in_the_way }.check().unwrap_err();
        let text = error.to_string();
        assert!(text.contains("0000:00:1f.3 (snd_hda_intel)"), "{text}");
        assert!(text.contains("remedy: bind 0000:00:1f.3 to vfio-pci"), "{text}");
    }

    /// Adds a function to group 7 of a tree.
    fn member(root: &Path, address: &str, driver: Option<&str>, class: &str) {
        let dir = root.join("bus/pci/devices").join(address);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("class"), class).unwrap();
        if let Some(driver) = driver {
            symlink(root.join("bus/pci/drivers").join(driver), dir.join("driver")).unwrap();
        }
        let group = root.join("kernel/iommu_groups/7");
        fs::create_dir_all(group.join("devices")).unwrap();
        let _ = symlink(&dir, group.join("devices").join(address));
        symlink(&group, dir.join("iommu_group")).unwrap();
    }

    #[test]
    fn only_members_that_host_drivers_use_are_in_the_way() {
        let root = tempfile::tempdir().unwrap();
        let member = |address, driver, class| member(root.path(), address, driver, class);
        let (other, bridge) = ("0x00ff00\n", "0x060400\n");
        member("0000:00:05.0", Some("edu"), other);
        member("0000:00:05.1", None, other);
        member("0000:00:05.2", Some("vfio-pci"), other);
        member("0000:00:05.3", Some("a_variant"), other);
        let variant = root.path().join("bus/pci/devices/0000:00:05.3");
        fs::create_dir_all(variant.join("vfio-dev/vfio3")).unwrap();
        member("0000:00:05.4", Some("pci-stub"), other);
        member("0000:00:1c.0", Some("pcieport"), bridge);
        let tree = Tree::at(root.path());
        let address = "0000:00:05.0".parse().unwrap();
        assert_eq!(tree.viability(address).unwrap().in_the_way, []);

        member("0000:00:05.6", Some("snd_hda_intel"), other);
        // Names alone are not enough.
        member("0000:00:05.5", Some("not_a_vfio_pci"), other);
        member("0000:00:05.7", Some("pcieport"), other);
        let viability = tree.viability(address).unwrap();
        let drivers: Vec<_> = viability.in_the_way.iter().map(ToString::to_string).collect();
        let expected = ["05.5 (not_a_vfio_pci)", "05.6 (snd_hda_intel)", "05.7 (pcieport)"];
        assert_eq!(drivers, expected.map(|member| format!("0000:00:{member}")));
        let text = viability.check().unwrap_err().to_string();
        assert!(text.contains("IOMMU group 7") && text.contains("snd_hda_intel"), "{text}");
    }
}
