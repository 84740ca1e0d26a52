//! Drivers for particular devices.

pub mod edu;
pub mod ioat;
pub mod pci_testdev;

use std::fmt;

/// A device that this crate knows by its ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum KnownDevice {
    /// QEMU's educational device, 1234:11e8 ([`edu`]).
    Edu,
    /// Intel I/OAT, 8086:2021 and 8086:0b00 ([`ioat`]).
    Ioat,
    /// QEMU's PCI test device, 1b36:0005 ([`pci_testdev`]).
    PciTestdev,
}

impl fmt::Display for KnownDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KnownDevice::Edu => "edu",
            KnownDevice::Ioat => "ioat",
            KnownDevice::PciTestdev => "pci-testdev",
        })
    }
}

/// The device that has these ids, if this crate has a driver for it.
#[must_use]
pub fn recognise(vendor: u16, device: u16) -> Option<KnownDevice> {
    match (vendor, device) {
        (0x1234, 0x11e8) => Some(KnownDevice::Edu),
        (0x8086, 0x2021 | 0x0b00) => Some(KnownDevice::Ioat),
        (0x1b36, 0x0005) => Some(KnownDevice::PciTestdev),
        _ => None,
    }
}
