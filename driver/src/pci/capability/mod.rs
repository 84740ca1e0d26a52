//! Walk of the capability lists, with bounds that hold against any contents.
//!
//! Conventional capabilities: PCI Local Bus 3.0, section 6.7. Extended ones: PCIe Base,
//! section 7.6.3. Ids and layouts as in `include/uapi/linux/pci_regs.h`.

mod decode;

use std::fmt;
use std::ops::Range;

use decode::{decode, needed};

use super::ConfigAccess;
use super::config::{CONVENTIONAL_SIZE, ConfigSpace, EXPRESS_SIZE, Status, reg};
use super::error::Result;

pub use decode::{Body, ExpressKind, Msi, MsiX, PciExpress, PowerManagement, id};

/// What the capability lists of a function hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The conventional list, in its order.
    pub standard: Vec<Capability>,
    /// The extended list, in its order; empty without 4 KiB of configuration space.
    pub extended: Vec<ExtendedCapability>,
    /// Where a list or an entry is malformed. A list ends at its first bad pointer.
    pub defects: Vec<Defect>,
}

/// An entry of the conventional list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capability {
    /// Offset in configuration space.
    pub offset: u16,
    /// Its id, see [`id`].
    pub id: u8,
    /// What it says, where this module decodes it.
    pub body: Body,
}

/// An entry of the extended list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExtendedCapability {
    /// Offset in configuration space.
    pub offset: u16,
    /// Its id (PCI Code and ID Assignment, chapter 3).
    pub id: u16,
    /// Version of its layout.
    pub version: u8,
}

/// A malformed place in a capability list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Defect {
    /// The pointer stored at `at` leads outside of where capabilities may be.
    BadPointer {
        /// Offset of the pointer.
        at: u16,
        /// Where it leads.
        to: u16,
    },
    /// The pointer stored at `at` leads back to an entry seen before.
    Loop {
        /// Offset of the pointer.
        at: u16,
        /// Where it leads.
        to: u16,
    },
    /// The capability does not fit into its configuration space.
    Truncated {
        /// Offset of the capability.
        at: u16,
    },
    /// The capability holds a reserved value, such as an MSI-X table in BAR 6.
    Reserved {
        /// Offset of the capability.
        at: u16,
    },
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Defect::BadPointer { at, to } => {
                write!(f, "the capability pointer at {at:#x} leads to {to:#x}, out of range")
            }
            Defect::Loop { at, to } => {
                write!(f, "the capability pointer at {at:#x} leads back to {to:#x}")
            }
            Defect::Truncated { at } => {
                write!(f, "the capability at {at:#x} does not fit into configuration space")
            }
            Defect::Reserved { at } => {
                write!(f, "the capability at {at:#x} holds a reserved value")
            }
        }
    }
}

impl Capabilities {
    /// Reads both lists.
    ///
    /// Whatever the device holds, this ends after at most one visit to each doubleword of
    /// configuration space; what is malformed is told in [`Capabilities::defects`].
    ///
    /// # Errors
    ///
    /// Fails when configuration space cannot be read, and when the device is gone.
    pub fn read<A: ConfigAccess>(config: &ConfigSpace<A>) -> Result<Capabilities> {
        config.check_present()?;
        let mut capabilities = Capabilities::default();
        capabilities.walk_standard(config)?;
        capabilities.walk_extended(config)?;
        Ok(capabilities)
    }

    /// The first conventional capability with this id.
    #[must_use]
    pub fn find(&self, id: u8) -> Option<&Capability> {
        self.standard.iter().find(|capability| capability.id == id)
    }

    /// The first extended capability with this id.
    #[must_use]
    pub fn find_extended(&self, id: u16) -> Option<&ExtendedCapability> {
        self.extended.iter().find(|capability| capability.id == id)
    }

    /// The MSI capability.
    #[must_use]
    pub fn msi(&self) -> Option<&Msi> {
        self.standard.iter().find_map(|capability| match &capability.body {
            Body::Msi(msi) => Some(msi),
            _ => None,
        })
    }

    /// The MSI-X capability.
    #[must_use]
    pub fn msi_x(&self) -> Option<&MsiX> {
        self.standard.iter().find_map(|capability| match &capability.body {
            Body::MsiX(msi_x) => Some(msi_x),
            _ => None,
        })
    }

    /// The PCI Express capability, with its offset.
    #[must_use]
    pub fn pci_express(&self) -> Option<(u16, &PciExpress)> {
        self.standard.iter().find_map(|capability| match &capability.body {
            Body::PciExpress(express) => Some((capability.offset, express)),
            _ => None,
        })
    }

    fn walk_standard<A: ConfigAccess>(&mut self, config: &ConfigSpace<A>) -> Result<()> {
        let end = config.size()?.min(CONVENTIONAL_SIZE);
        if end <= reg::HEADER_END || !config.status()?.contains(Status::CAPABILITY_LIST) {
            return Ok(());
        }
        let mut at = match config.header_layout()? {
            2 => reg::CARDBUS_CAPABILITY_LIST,
            _ => reg::CAPABILITY_LIST,
        };
        let mut seen = Seen::default();
        loop {
            let to = u16::from(config.read_u8(at)? & !3);
            if to == 0 {
                return Ok(());
            }
            if !self.step(&mut seen, at, to, reg::HEADER_END..end) {
                return Ok(());
            }
            let id = config.read_u8(to)?;
            let body = match needed(id) {
                len if to + len > end => {
                    self.defects.push(Defect::Truncated { at: to });
                    Body::Other
                }
                _ => decode(config, id, to)?.unwrap_or_else(|| {
                    self.defects.push(Defect::Reserved { at: to });
                    Body::Other
                }),
            };
            self.standard.push(Capability { offset: to, id, body });
            at = to + 1;
        }
    }

    fn walk_extended<A: ConfigAccess>(&mut self, config: &ConfigSpace<A>) -> Result<()> {
        let end = config.size()? & !3;
        if end <= CONVENTIONAL_SIZE {
            return Ok(());
        }
        let mut seen = Seen::default();
        let (mut at, mut to) = (CONVENTIONAL_SIZE, CONVENTIONAL_SIZE);
        loop {
            if !self.step(&mut seen, at, to, CONVENTIONAL_SIZE..end) {
                return Ok(());
            }
            let header = config.read_u32(to)?;
            // No list at all: a header of zeroes, or nothing that answers above 256 bytes.
            if header == 0 || header == u32::MAX {
                return Ok(());
            }
            self.extended.push(ExtendedCapability {
                offset: to,
                id: (header & 0xffff) as u16,
                version: (header >> 16 & 0xf) as u8,
            });
            at = to;
            to = (header >> 20) as u16 & !3;
            if to == 0 {
                return Ok(());
            }
        }
    }

    /// Whether the walk may go on from the pointer at `at` to the doubleword `to`.
    fn step(&mut self, seen: &mut Seen, at: u16, to: u16, allowed: Range<u16>) -> bool {
        let fits = allowed.contains(&to) && to + 4 <= allowed.end;
        if !fits {
            self.defects.push(Defect::BadPointer { at, to });
        } else if !seen.first_visit(to) {
            self.defects.push(Defect::Loop { at, to });
        } else {
            return true;
        }
        false
    }
}

/// The doublewords of configuration space that a walk has been to.
struct Seen([bool; EXPRESS_SIZE as usize / 4]);

impl Default for Seen {
    fn default() -> Self {
        Seen([false; EXPRESS_SIZE as usize / 4])
    }
}

impl Seen {
    /// Whether this is the first visit; an offset outside of configuration space never is.
    fn first_visit(&mut self, offset: u16) -> bool {
        self.0.get_mut(usize::from(offset / 4)).is_some_and(|seen| !std::mem::replace(seen, true))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;

    use super::*;
    use crate::pci::PciError;

    fn walk(bytes: &mut [u8]) -> Capabilities {
        let config = ConfigSpace::new(Cell::from_mut(bytes).as_slice_of_cells());
        Capabilities::read(&config).unwrap()
    }

    /// 4 KiB with the capability bit set and these bytes at these offsets.
    fn space(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[0..8].copy_from_slice(&[0x86, 0x80, 0x21, 0x20, 0, 0, 0x10, 0]);
        for (offset, part) in parts {
            bytes[*offset..offset + part.len()].copy_from_slice(part);
        }
        bytes
    }

    #[test]
    fn the_lists_of_an_ioat_like_function_are_decoded() {
        let capabilities = walk(&mut space(&[
            // The low two bits of a pointer are reserved and ignored.
            (0x34, &[0x43]),
            (0x40, &[0x01, 0x50, 0x03, 0x00, 0x0b, 0x00]),
            (0x50, &[0x05, 0x60, 0x8a, 0x01]),
            (0x60, &[0x11, 0x90, 0x07, 0x80, 0x02, 0x20, 0x00, 0x00, 0x03, 0x30, 0x00, 0x00]),
            (0x90, &[0x10, 0xe0, 0x92, 0x00, 0x01, 0x80, 0x00, 0x10, 0x20, 0x28, 0x20, 0x00]),
            (0xe0, &[0x09, 0x00, 0x10, 0x00]),
            (0x100, &0x1482_0001_u32.to_le_bytes()),
            (0x148, &0x0001_000b_u32.to_le_bytes()),
        ]));
        assert_eq!(capabilities.defects, []);
        let offsets: Vec<_> = capabilities.standard.iter().map(|c| (c.offset, c.id)).collect();
        assert_eq!(offsets, [(0x40, 1), (0x50, 5), (0x60, 0x11), (0x90, 0x10), (0xe0, 9)]);
        assert_eq!(
            capabilities.find(id::POWER_MANAGEMENT).unwrap().body,
            Body::PowerManagement(PowerManagement { version: 3, state: 3, no_soft_reset: true })
        );
        assert_eq!(
            capabilities.msi(),
            Some(&Msi { vectors: 32, enabled: false, address_64: true, maskable: true })
        );
        let msi_x = capabilities.msi_x().unwrap();
        assert_eq!((msi_x.vectors, msi_x.enabled, msi_x.function_masked), (8, true, false));
        assert_eq!((msi_x.table_bar, msi_x.table()), (2, 0x2000..0x2080));
        assert_eq!((msi_x.pba_bar, msi_x.pba()), (3, 0x3000..0x3008));
        assert_eq!(
            capabilities.pci_express(),
            Some((
                0x90,
                &PciExpress {
                    version: 2,
                    kind: ExpressKind::RootComplexEndpoint,
                    function_level_reset: true,
                    max_payload_supported: 256,
                    max_payload: 256,
                    max_read_request: 512,
                }
            ))
        );
        assert_eq!(
            capabilities.extended,
            [
                ExtendedCapability { offset: 0x100, id: 0x0001, version: 2 },
                ExtendedCapability { offset: 0x148, id: 0x000b, version: 1 },
            ]
        );
        assert_eq!(capabilities.find_extended(0x0b).unwrap().offset, 0x148);
    }

    #[test]
    fn without_the_status_bit_there_is_no_list() {
        let mut bytes = space(&[(0x34, &[0x40]), (0x40, &[0x05, 0])]);
        assert_eq!(walk(&mut bytes).standard.len(), 1);
        bytes[0x06] = 0;
        assert_eq!(walk(&mut bytes), Capabilities::default());
    }

    #[test]
    fn conventional_space_has_no_extended_list() {
        let mut bytes = space(&[(0x100, &0x0001_000b_u32.to_le_bytes())]);
        assert_eq!(walk(&mut bytes).extended.len(), 1);
        bytes.truncate(256);
        assert_eq!(walk(&mut bytes).extended, []);
    }

    #[test]
    fn loops_end_the_walk() {
        let capabilities = walk(&mut space(&[
            (0x34, &[0x40]),
            (0x40, &[0x09, 0x50]),
            (0x50, &[0x09, 0x40]),
            (0x100, &0x2001_0001_u32.to_le_bytes()),
            (0x200, &0x2001_0002_u32.to_le_bytes()),
        ]));
        assert_eq!((capabilities.standard.len(), capabilities.extended.len()), (2, 2));
        assert_eq!(
            capabilities.defects,
            [Defect::Loop { at: 0x51, to: 0x40 }, Defect::Loop { at: 0x200, to: 0x200 }]
        );
    }

    #[test]
    fn pointers_into_the_header_and_entries_over_the_end_are_told() {
        let capabilities = walk(&mut space(&[
            (0x34, &[0xfc]),
            (0xfc, &[0x11, 0x08]),
            (0x100, &0x0401_0001_u32.to_le_bytes()),
        ]));
        assert_eq!(capabilities.standard[0].body, Body::Other);
        assert_eq!(
            capabilities.defects,
            [
                Defect::Truncated { at: 0xfc },
                Defect::BadPointer { at: 0xfd, to: 0x08 },
                Defect::BadPointer { at: 0x100, to: 0x40 },
            ]
        );
    }

    #[test]
    fn reserved_values_are_told_and_not_decoded() {
        let capabilities = walk(&mut space(&[
            (0x34, &[0x40]),
            (0x40, &[0x11, 0x50, 0, 0, 6, 0, 0, 0]),
            (0x50, &[0x05, 0, 0x0e, 0]),
        ]));
        assert_eq!((capabilities.msi_x(), capabilities.msi()), (None, None));
        assert_eq!(
            capabilities.defects,
            [Defect::Reserved { at: 0x40 }, Defect::Reserved { at: 0x50 }]
        );
    }

    #[test]
    fn a_device_that_is_gone_is_an_error_not_a_list() {
        let mut bytes = vec![0xff; 4096];
        let config = ConfigSpace::new(Cell::from_mut(&mut bytes[..]).as_slice_of_cells());
        assert!(matches!(Capabilities::read(&config), Err(PciError::Gone { .. })));
    }

    /// Values that make long chains, loops and decodable entries frequent.
    const FREQUENT: [u8; 8] = [0x01, 0x05, 0x10, 0x11, 0x40, 0x44, 0xf8, 0xfc];

    proptest! {
        #[test]
        fn any_contents_end_within_bounds(
            words in proptest::collection::vec(any::<u64>(), 512),
            frequent: bool,
            len in prop_oneof![Just(4096usize), Just(256), 64usize..4096],
            list in prop_oneof![any::<u8>(), Just(0x40)],
        ) {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            if frequent {
                for byte in bytes.iter_mut().filter(|byte| **byte < 0xe0) {
                    *byte = FREQUENT[usize::from(*byte % 8)];
                }
            }
            bytes.truncate(len);
            bytes[0] = 0x86;
            bytes[6] |= 0x10;
            bytes[0x0e] &= 1;
            bytes[0x34] = list;
            let capabilities = walk(&mut bytes);
            prop_assert!(capabilities.standard.len() <= 48);
            prop_assert!(capabilities.extended.len() <= 960);
            for capability in &capabilities.standard {
                prop_assert!(capability.offset >= 0x40 && capability.offset < 0x100);
                prop_assert_eq!(capability.offset % 4, 0);
            }
            for capability in &capabilities.extended {
                prop_assert!(capability.offset >= 0x100);
                prop_assert!(usize::from(capability.offset) + 4 <= len);
            }
            if let Some(msi_x) = capabilities.msi_x() {
                prop_assert!(msi_x.table_bar < 6 && msi_x.pba_bar < 6);
                prop_assert!(msi_x.table().end <= u64::from(u32::MAX) + 16 * 2048);
            }
        }
    }
}
