//! Which devices the crate drives, by vendor and device id.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A driver of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Driver {
    /// QEMU's educational device (QEMU, docs/specs/edu).
    Edu,
    /// QEMU's device for testing register access (QEMU, docs/specs/pci-testdev).
    PciTestdev,
}

impl Driver {
    /// The name that commands and reports use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Driver::Edu => "edu",
            Driver::PciTestdev => "pci-testdev",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A device that the crate drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownDevice {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// The driver for it.
    pub driver: Driver,
    /// What the device is, in a few words.
    pub description: &'static str,
}

/// Every device that the crate drives. The ids are those of QEMU's docs/specs.
pub const KNOWN_DEVICES: &[KnownDevice] = &[
    KnownDevice {
        vendor: 0x1234,
        device: 0x11e8,
        driver: Driver::Edu,
        description: "QEMU educational device",
    },
    KnownDevice {
        vendor: 0x1b36,
        device: 0x0005,
        driver: Driver::PciTestdev,
        description: "QEMU PCI test device",
    },
];

/// The entry of [`KNOWN_DEVICES`] for these ids; `None` for a device that the crate does
/// not drive.
#[must_use]
pub fn recognise(vendor: u16, device: u16) -> Option<KnownDevice> {
    KNOWN_DEVICES.iter().copied().find(|known| (known.vendor, known.device) == (vendor, device))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_recognised_by_both_ids() {
        let driver = |vendor, device| recognise(vendor, device).map(|known| known.driver);
        assert_eq!(driver(0x1234, 0x11e8), Some(Driver::Edu));
        assert_eq!(driver(0x1b36, 0x0005), Some(Driver::PciTestdev));
        assert_eq!(driver(0x1234, 0x2021), None);
        assert_eq!(driver(0xffff, 0xffff), None);
    }

    #[test]
    fn the_serialised_name_is_the_printed_name() {
        for known in KNOWN_DEVICES {
            let json = serde_json::to_string(&known.driver).unwrap();
            assert_eq!(json, format!("\"{}\"", known.driver));
        }
    }
}
