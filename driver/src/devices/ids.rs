//! Which devices the crate drives, by vendor and device id.

use std::fmt;

/// A driver of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Driver {
    /// QEMU's educational device (QEMU, docs/specs/edu).
    Edu,
    /// Intel I/OAT (Xeon datasheets, volume 2, Intel QuickData Technology).
    Ioat,
    /// QEMU's device for testing register access (QEMU, docs/specs/pci-testdev).
    PciTestdev,
}

impl Driver {
    /// The name that commands and reports use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Driver::Edu => "edu",
            Driver::Ioat => "ioat",
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

/// Every device that the crate drives. The ids of QEMU's devices are those of
/// its docs/specs, those of I/OAT of the Xeon Scalable datasheets.
pub const KNOWN_DEVICES: &[KnownDevice] = &[
    KnownDevice {
        vendor: 0x1234,
        device: 0x11e8,
        driver: Driver::Edu,
        description: "QEMU educational device",
    },
    KnownDevice {
        vendor: 0x8086,
        device: 0x2021,
        driver: Driver::Ioat,
        description: "Intel I/OAT DMA engine, Skylake-SP",
    },
    KnownDevice {
        vendor: 0x8086,
        device: 0x0b00,
        driver: Driver::Ioat,
        description: "Intel I/OAT DMA engine, Ice Lake-SP",
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
        assert_eq!(driver(0x8086, 0x2021), Some(Driver::Ioat));
        assert_eq!(driver(0x8086, 0x0b00), Some(Driver::Ioat));
        assert_eq!(driver(0x1234, 0x2021), None);
        assert_eq!(driver(0xffff, 0xffff), None);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn the_serialised_name_is_the_printed_name() {
        for known in KNOWN_DEVICES {
            let json = serde_json::to_string(&known.driver).unwrap();
            assert_eq!(json, format!("\"{}\"", known.driver));
        }
    }
}
