//! Names of vendors, devices and classes: the system's `pci.ids` (package `hwdata` or
//! `pci.ids`).

use std::path::Path;

use pciid_parser::Database;
use pciid_parser::schema::SubDeviceId;

use crate::pci::ClassCode;

/// The names of the system's `pci.ids`.
#[derive(Debug)]
pub struct PciIds(Database);

impl PciIds {
    /// Reads the system's file; none when there is none, or it is malformed.
    #[must_use]
    pub fn system() -> Option<PciIds> {
        match Database::read() {
            Ok(names) => Some(PciIds(names)),
            Err(error) => {
                log::debug!("pci.ids: {error}");
                None
            }
        }
    }

    /// Reads a file of the same form at another place.
    #[must_use]
    pub fn read(path: impl AsRef<Path>) -> Option<PciIds> {
        Database::read_from_file(path).ok().map(PciIds)
    }

    /// A vendor's name.
    #[must_use]
    pub fn vendor(&self, vendor: u16) -> Option<&str> {
        Some(&self.0.vendors.get(&vendor)?.name)
    }

    /// A device's name.
    #[must_use]
    pub fn device(&self, vendor: u16, device: u16) -> Option<&str> {
        Some(&self.0.vendors.get(&vendor)?.devices.get(&device)?.name)
    }

    /// A subsystem's name.
    #[must_use]
    pub fn subsystem(&self, device: (u16, u16), subsystem: (u16, u16)) -> Option<&str> {
        let (subvendor, subdevice) = subsystem;
        let id = SubDeviceId { subvendor, subdevice };
        let device = self.0.vendors.get(&device.0)?.devices.get(&device.1)?;
        device.subdevices.get(&id).map(String::as_str)
    }

    /// The name of a sub-class, or that of the base class where the sub-class has none.
    #[must_use]
    pub fn class(&self, class: ClassCode) -> Option<&str> {
        let base = self.0.classes.get(&class.base)?;
        Some(base.subclasses.get(&class.sub).map_or(&base.name, |sub| &sub.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "# a comment\n1234  Technical Corp.\n\t11e8  edu\n\t\t1af4 1100  a board\n\
                    C 02  Network controller\n\t00  Ethernet controller\n";
        std::fs::write(file.path(), text).unwrap();
        let names = PciIds::read(file.path()).unwrap();
        assert_eq!(names.vendor(0x1234), Some("Technical Corp."));
        assert_eq!(names.device(0x1234, 0x11e8), Some("edu"));
        assert_eq!(names.device(0x1234, 0x11e9), None);
        assert_eq!(names.subsystem((0x1234, 0x11e8), (0x1af4, 0x1100)), Some("a board"));
        assert_eq!(names.class(ClassCode::from_code(0x02_0000)), Some("Ethernet controller"));
        assert_eq!(names.class(ClassCode::from_code(0x02_0100)), Some("Network controller"));
        assert_eq!(names.class(ClassCode::from_code(0x03_0000)), None);
        assert!(PciIds::read("/nowhere/pci.ids").is_none());
    }
}
