//! What is on the bus.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::{HostError, Result, Sysfs};
use crate::pci::sysfs::{IommuGroup, SysfsError, link_name, names, read_text};
use crate::pci::{Address, ClassCode};

/// What sysfs says of a PCI function.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PciDeviceInfo {
    /// Where it is.
    pub address: Address,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Subsystem vendor id; 0 when the function has none.
    pub subsystem_vendor: u16,
    /// Subsystem id; 0 when the function has none.
    pub subsystem_device: u16,
    /// Class code.
    pub class: ClassCode,
    /// Revision id.
    pub revision: u8,
    /// The driver bound to it, if any.
    pub driver: Option<String>,
    /// The driver hands it to userspace: vfio-pci or a variant of it, see
    /// [`Tree::is_with_vfio`](crate::pci::sysfs::Tree::is_with_vfio).
    pub with_vfio: bool,
    /// Its IOMMU group; none when no IOMMU translates its DMA.
    pub group: Option<IommuGroup>,
    /// The NUMA node that it is attached to, where the firmware says so.
    pub numa_node: Option<u32>,
    /// Its base address registers, those that are in use, by index.
    pub bars: Vec<Bar>,
}

/// A base address register that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Bar {
    /// Its number, 0 to 5.
    pub index: u8,
    /// Host physical address, or port number, of its first byte.
    pub start: u64,
    /// Size in bytes.
    pub size: u64,
    /// What it decodes.
    pub kind: BarKind,
    /// Reads have no side effects (PCI Local Bus 3.0, section 6.2.5.1).
    pub prefetchable: bool,
}

impl Bar {
    /// The bytes that a process can map: VFIO maps memory of a page and more, as a whole; of
    /// less than a page only where it has the page alone.
    #[must_use]
    pub fn mappable(&self) -> Option<Range<u64>> {
        let page = match nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE) {
            Ok(Some(size)) => u64::try_from(size).unwrap_or(4096),
            _ => 4096,
        };
        (self.kind != BarKind::Io && self.size >= page).then_some(0..self.size)
    }
}

/// What a base address register decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32,
    /// Memory anywhere; takes the next register as well.
    Memory64,
}

/// Flags of the third column of `resource` (the kernel's `include/linux/ioport.h`).
const IORESOURCE_IO: u64 = 0x100;
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_PREFETCH: u64 = 0x2000;
const IORESOURCE_MEM_64: u64 = 0x10_0000;

impl Sysfs {
    /// Every PCI function, in the order of addresses.
    ///
    /// A function that is unplugged meanwhile is left out.
    ///
    /// # Errors
    ///
    /// Fails when an attribute cannot be read or is malformed.
    pub fn enumerate(&self) -> Result<Vec<PciDeviceInfo>> {
        let mut groups = BTreeMap::new();
        let mut devices = Vec::new();
        for name in names(&self.tree.root().join("bus/pci/devices"))? {
            match self.read_device(name.parse()?, &mut groups) {
                Ok(device) => devices.push(device),
                Err(error) if gone(&error) => log::debug!("{name} left: {error}"),
                Err(error) => return Err(error),
            }
        }
        devices.sort_by_key(|device| device.address);
        Ok(devices)
    }

    /// The function at an address.
    ///
    /// # Errors
    ///
    /// Fails when there is none, and when an attribute cannot be read or is malformed.
    pub fn device(&self, address: Address) -> Result<PciDeviceInfo> {
        self.read_device(address, &mut BTreeMap::new())
    }

    fn read_device(
        &self,
        address: Address,
        groups: &mut BTreeMap<u32, IommuGroup>,
    ) -> Result<PciDeviceInfo> {
        let dir = self.tree.device_dir(address)?;
        let group = match self.tree.group_number(&dir)? {
            None => None,
            Some(number) => Some(match groups.get(&number) {
                Some(group) => group.clone(),
                None => {
                    let group = self.tree.group_of_number(number)?;
                    groups.insert(number, group.clone());
                    group
                }
            }),
        };
        Ok(PciDeviceInfo {
            address,
            vendor: id(&dir.join("vendor"))?,
            device: id(&dir.join("device"))?,
            subsystem_vendor: id(&dir.join("subsystem_vendor"))?,
            subsystem_device: id(&dir.join("subsystem_device"))?,
            class: ClassCode::from_code(hex(&dir.join("class"), "a class code such as 0x010802")?),
            revision: hex(&dir.join("revision"), "a revision such as 0x01")?,
            driver: link_name(&dir.join("driver"))?,
            with_vfio: self.tree.is_dir_with_vfio(&dir)?,
            group,
            numa_node: self.tree.numa_node(address),
            bars: bars(&dir.join("resource"))?,
        })
    }
}

/// Whether an error says that the function is no longer there.
fn gone(error: &HostError) -> bool {
    match error {
        HostError::Sysfs(SysfsError::NoDevice { .. }) => true,
        HostError::Sysfs(SysfsError::Read { source, .. }) => {
            source.kind() == io::ErrorKind::NotFound || source.raw_os_error() == Some(libc::ENODEV)
        }
        _ => false,
    }
}

fn id(path: &Path) -> Result<u16> {
    hex(path, "an id such as 0x8086")
}

/// An attribute that holds a hexadecimal number with the prefix `0x`.
fn hex<T: TryFrom<u64>>(path: &Path, expected: &'static str) -> Result<T> {
    let text = read_text(path)?;
    parse_hex(&text).and_then(|value| T::try_from(value).ok()).ok_or_else(|| {
        SysfsError::Malformed { path: path.to_owned(), text: text.clone(), expected }.into()
    })
}

fn parse_hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The first six lines of `resource`: first address, last address and flags of each BAR.
fn bars(path: &Path) -> Result<Vec<Bar>> {
    let text = read_text(path)?;
    let mut bars = Vec::new();
    for (index, line) in (0..6).zip(text.lines()) {
        bars.extend(bar(index, line).ok_or_else(|| SysfsError::Malformed {
            path: path.to_owned(),
            text: line.to_owned(),
            expected: "a first address, a last address and flags",
        })?);
    }
    Ok(bars)
}

/// `None` for a malformed line, `Some(None)` for a register that is not in use.
fn bar(index: u8, line: &str) -> Option<Option<Bar>> {
    let mut fields = line.split_ascii_whitespace().map(parse_hex);
    let (start, end, flags) = (fields.next()??, fields.next()??, fields.next()??);
    let kind = if flags & IORESOURCE_IO != 0 {
        BarKind::Io
    } else if flags & IORESOURCE_MEM_64 != 0 {
        BarKind::Memory64
    } else if flags & IORESOURCE_MEM != 0 {
        BarKind::Memory32
    } else {
        return Some(None);
    };
    let size = end.checked_sub(start)?.checked_add(1)?;
    let prefetchable = flags & IORESOURCE_PREFETCH != 0;
    Some(Some(Bar { index, start, size, kind, prefetchable }))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn functions_come_in_order_with_their_ids_drivers_and_groups() {
        let fake = Fake::new();
        let testdev = fake.device("0000:00:06.0", 0x1b36, 0x0005, Some("pci-stub"), Some(4));
        let edu = fake.device("0000:00:05.0", 0x1234, 0x11e8, None, Some(4));
        let disk = fake.device("0001:00:00.0", 0x1af4, 0x1042, Some("virtio-pci"), None);
        let devices = fake.sysfs().enumerate().unwrap();
        let addresses: Vec<_> = devices.iter().map(|device| device.address).collect();
        assert_eq!(addresses, [edu, testdev, disk]);
        assert_eq!((devices[0].vendor, devices[0].device), (0x1234, 0x11e8));
        assert_eq!(devices[0].driver, None);
        assert_eq!(devices[1].driver.as_deref(), Some("pci-stub"));
        let group = devices[0].group.as_ref().unwrap();
        assert_eq!((group.number, group.noiommu), (4, false));
        assert_eq!(group.members, [edu.to_string(), testdev.to_string()]);
        assert_eq!(devices[2].group, None);
        assert_eq!(devices[2].numa_node, None);
        assert_eq!(fake.sysfs().device(disk).unwrap(), devices[2]);
    }

    #[test]
    fn bars_are_those_of_the_resource_file() {
        let fake = Fake::new();
        let address = fake.device("0000:00:06.0", 0x1b36, 0x0005, None, None);
        fs::write(
            fake.path("bus/pci/devices/0000:00:06.0/resource"),
            "0x00000000febf1000 0x00000000febf1fff 0x0000000000040200\n\
             0x000000000000c000 0x000000000000c0ff 0x0000000000040101\n\
             0x0000004000000000 0x00000040000fffff 0x000000000014220c\n\
             0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x00000000feb00000 0x00000000feb0ffff 0x0000000000046200\n",
        )
        .unwrap();
        let bar =
            |index, start, size, kind, prefetchable| Bar { index, start, size, kind, prefetchable };
        assert_eq!(
            fake.sysfs().device(address).unwrap().bars,
            [
                bar(0, 0xfebf_1000, 0x1000, BarKind::Memory32, false),
                bar(1, 0xc000, 0x100, BarKind::Io, false),
                bar(2, 0x40_0000_0000, 0x10_0000, BarKind::Memory64, true),
            ]
        );
    }

    #[test]
    fn malformed_attributes_are_errors_that_name_the_file() {
        let fake = Fake::new();
        let address = fake.device("0000:00:05.0", 0x1234, 0x11e8, None, None);
        for (file, text) in [
            ("vendor", "0x12345\n"),
            ("device", "11e8\n"),
            ("class", "\n"),
            ("revision", "0x100\n"),
            ("resource", "0x2000 0x1000 0x200\n"),
            ("resource", "0x0 0xffffffffffffffff 0x200\n"),
            ("resource", "0x0 0x0\n"),
        ] {
            let path = fake.path("bus/pci/devices/0000:00:05.0").join(file);
            let good = fs::read_to_string(&path).unwrap();
            fs::write(&path, text).unwrap();
            let error = fake.sysfs().device(address).unwrap_err();
            assert!(matches!(error, HostError::Sysfs(SysfsError::Malformed { .. })), "{error}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
            fs::write(&path, good).unwrap();
        }
        fake.sysfs().device(address).unwrap();
    }

    #[test]
    fn an_unknown_address_is_an_error_that_says_where_to_look() {
        let fake = Fake::new();
        let error = fake.sysfs().device("0000:00:1f.7".parse().unwrap()).unwrap_err();
        assert!(matches!(error, HostError::Sysfs(SysfsError::NoDevice { .. })), "{error}");
        assert_eq!(error.remedy(), Some(&crate::pci::Remedy::ListFunctions));
    }

    /// On a machine with PCI, sysfs and the configuration space must agree.
    #[test]
    fn this_machine_is_enumerated_consistently() {
        let sysfs = Sysfs::new();
        let Ok(devices) = sysfs.enumerate() else {
            assert!(!Path::new("/sys/bus/pci/devices").exists());
            return;
        };
        let listed = fs::read_dir("/sys/bus/pci/devices").unwrap().count();
        assert_eq!(devices.len(), listed);
        for device in devices {
            let config = sysfs.config_header(device.address).unwrap();
            // An SR-IOV virtual function's own id registers read all ones.
            if config.vendor_id().unwrap() != 0xffff {
                assert_eq!(config.vendor_id().unwrap(), device.vendor);
                assert_eq!(config.device_id().unwrap(), device.device);
            }
        }
    }
}
