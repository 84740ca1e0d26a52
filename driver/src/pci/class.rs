//! Class codes: what kind of device a function says it is.

use std::fmt;

/// Base class, sub-class and programming interface (PCI Local Bus 3.0, section 6.2.1 and
/// appendix D).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ClassCode {
    /// Base class: the register's bits 23:16.
    pub base: u8,
    /// Sub-class: bits 15:8.
    pub sub: u8,
    /// Programming interface: bits 7:0.
    pub interface: u8,
}

impl ClassCode {
    /// The class in the low 24 bits of `code`, as sysfs prints it; higher bits are ignored.
    #[must_use]
    pub fn from_code(code: u32) -> ClassCode {
        let [interface, sub, base, _] = code.to_le_bytes();
        ClassCode { base, sub, interface }
    }

    /// The 24-bit number.
    #[must_use]
    pub fn code(self) -> u32 {
        u32::from_le_bytes([self.interface, self.sub, self.base, 0])
    }

    /// Whether this is a PCI-to-PCI bridge, such as a root port or a switch port.
    #[must_use]
    pub fn is_pci_bridge(self) -> bool {
        (self.base, self.sub) == (0x06, 0x04)
    }

    /// The class in words, by sub-class where it is a common one.
    #[must_use]
    pub fn name(self) -> &'static str {
        match (self.base, self.sub) {
            (0x00, 0xff) => "unclassified device",
            (0x01, 0x06) => "SATA controller",
            (0x01, 0x08) => "NVMe controller",
            (0x01, _) => "storage controller",
            (0x02, 0x00) => "Ethernet controller",
            (0x02, _) => "network controller",
            (0x03, 0x00) => "VGA controller",
            (0x03, _) => "display controller",
            (0x04, 0x03) => "audio device",
            (0x04, _) => "multimedia controller",
            (0x05, _) => "memory controller",
            (0x06, 0x00) => "host bridge",
            (0x06, 0x01) => "ISA bridge",
            (0x06, 0x04) => "PCI bridge",
            (0x06, _) => "bridge",
            (0x07, 0x00) => "serial controller",
            (0x07, _) => "communication controller",
            (0x08, 0x01) => "DMA controller",
            (0x08, 0x06) => "IOMMU",
            (0x08, _) => "system peripheral",
            (0x09, _) => "input device",
            (0x0b, _) => "processor",
            (0x0c, 0x03) => "USB controller",
            (0x0c, 0x05) => "SMBus",
            (0x0c, _) => "serial bus controller",
            (0x0d, _) => "wireless controller",
            (0x10, _) => "encryption controller",
            (0x11, _) => "signal processing controller",
            (0x12, _) => "processing accelerator",
            (0xff, _) => "unassigned class",
            _ => "device",
        }
    }
}

impl fmt::Display for ClassCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_code_splits_into_its_bytes() {
        let class = ClassCode::from_code(0x01_0802);
        assert_eq!((class.base, class.sub, class.interface), (1, 8, 2));
        assert_eq!(class.name(), "NVMe controller");
        assert_eq!(class.code(), 0x01_0802);
        assert_eq!(class.to_string(), "010802");
        assert!(ClassCode::from_code(0x06_0400).is_pci_bridge());
        assert!(!ClassCode::from_code(0x06_0000).is_pci_bridge());
        assert_eq!(ClassCode::from_code(0x08_8000).name(), "system peripheral");
    }
}
