//! What a function's configuration space is made of, by name: the header and every
//! capability, with their registers and fields.
//!
//! Names of registers are those of `include/uapi/linux/pci_regs.h` without what all of a kind
//! have in common, behind a prefix for the capability: `COMMAND`, `EXP_DEVCTL`, `AER_COR_MASK`.

mod express;
mod extended;
mod header;
mod standard;
mod table;

use super::capability::{Defect, id};
use super::error::Result;
use super::{Capabilities, ConfigAccess, ConfigSpace, PciError};
use crate::registers::Register;
use table::Row;

/// The header, or one capability.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Structure {
    /// Its name in words, such as `power management`.
    pub name: &'static str,
    /// What the names of its registers begin with; empty for the header.
    pub prefix: &'static str,
    /// Where it begins in configuration space.
    pub offset: u16,
    /// What it is.
    pub kind: StructureKind,
    /// Its registers by full name, with offsets in configuration space; without those that
    /// are not in its configuration space.
    pub registers: Vec<Register>,
}

/// What a [`Structure`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase", tag = "list"))]
#[non_exhaustive]
pub enum StructureKind {
    /// The predefined header.
    Header,
    /// A conventional capability.
    Standard {
        /// Its id.
        id: u8,
    },
    /// An extended capability.
    Extended {
        /// Its id.
        id: u16,
        /// The version of its layout.
        version: u8,
    },
}

/// All structures of a configuration space.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Layout {
    /// The header, then the capabilities in the order of their lists.
    pub structures: Vec<Structure>,
    /// Where the lists are malformed.
    pub defects: Vec<Defect>,
}

impl Layout {
    /// Reads which structures there are.
    ///
    /// Whatever configuration space holds, this ends and never panics.
    ///
    /// # Errors
    ///
    /// Fails when configuration space cannot be read, and when the device is gone.
    pub fn read<A: ConfigAccess>(config: &ConfigSpace<A>) -> Result<Layout> {
        let capabilities = Capabilities::read(config)?;
        let size = config.size()?;
        let header = match config.header_layout()? {
            0 => header::ENDPOINT,
            1 => header::BRIDGE,
            _ => &[],
        };
        let mut structures = vec![structure(
            ("header", ""),
            0,
            StructureKind::Header,
            &[header::COMMON, header],
            size,
        )];
        for capability in &capabilities.standard {
            let at = capability.offset;
            let tables = standard_tables(config, capability.id, at, size)?;
            let kind = StructureKind::Standard { id: capability.id };
            structures.push(structure(standard::name(capability.id), at, kind, &tables, size));
        }
        let is_root = is_root(config, &capabilities)?;
        for capability in &capabilities.extended {
            let tables = extended_tables(capability.id, is_root);
            let kind = StructureKind::Extended { id: capability.id, version: capability.version };
            let name = extended::name(capability.id);
            structures.push(structure(name, capability.offset, kind, &tables, size));
        }
        Ok(Layout { structures, defects: capabilities.defects })
    }

    /// The register with this full name, upper or lower case; the first of several. `@OFFSET`
    /// behind the name (`VNDR_LEN@0x40`) picks that of the capability at a hexadecimal offset.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Register> {
        let (name, at) = match name.split_once('@') {
            None => (name, None),
            Some((name, at)) => {
                let digits = at.strip_prefix("0x").unwrap_or(at);
                (name, Some(u16::from_str_radix(digits, 16).ok()?))
            }
        };
        self.structures
            .iter()
            .filter(|structure| at.is_none_or(|at| structure.offset == at))
            .flat_map(|structure| &structure.registers)
            .find(|register| register.name.eq_ignore_ascii_case(name))
    }

    /// The first structure with this prefix.
    #[must_use]
    pub fn structure(&self, prefix: &str) -> Option<&Structure> {
        self.structures.iter().find(|structure| structure.prefix == prefix)
    }

    /// A field's number: `value(config, "EXP_LNKSTA", "speed")`. `None` where the function has
    /// no such register.
    ///
    /// # Errors
    ///
    /// Fails when configuration space cannot be read.
    pub fn value<A: ConfigAccess>(
        &self,
        config: &ConfigSpace<A>,
        register: &str,
        field: &str,
    ) -> Result<Option<u64>> {
        let Some(register) = self.find(register) else { return Ok(None) };
        let Some(field) = register.field(field) else { return Ok(None) };
        Ok(Some(field.extract(read(config, register)?)))
    }
}

/// Reads a register of configuration space; registers here are at most 4 bytes wide.
///
/// # Errors
///
/// Fails when the register is not in configuration space, or it cannot be read.
pub fn read<A: ConfigAccess>(config: &ConfigSpace<A>, register: &Register) -> Result<u64> {
    let offset = config_offset(register)?;
    Ok(match register.width {
        1 => config.read_u8(offset)?.into(),
        2 => config.read_u16(offset)?.into(),
        4 => config.read_u32(offset)?.into(),
        _ => return Err(no_such(register)),
    })
}

/// Writes a register of configuration space, as one access of its width; bits of `value` above
/// it are not written.
///
/// # Errors
///
/// Fails when the register is not in configuration space, or it cannot be written.
pub fn write<A: super::ConfigWrite>(
    config: &ConfigSpace<A>,
    register: &Register,
    value: u64,
) -> Result<()> {
    let offset = config_offset(register)?;
    match register.width {
        1 => config.write_u8(offset, value as u8),
        2 => config.write_u16(offset, value as u16),
        4 => config.write_u32(offset, value as u32),
        _ => Err(no_such(register)),
    }
}

fn config_offset(register: &Register) -> Result<u16> {
    u16::try_from(register.offset).map_err(|_| no_such(register))
}

fn no_such(register: &Register) -> PciError {
    let Register { name, offset, width, .. } = register;
    let text = format!("{name}, {width} bytes at {offset:#x}, is not in configuration space");
    PciError::Access(text.into())
}

/// Joins tables into a structure, without the registers that are outside of `size` bytes.
fn structure(
    (name, prefix): (&'static str, &'static str),
    offset: u16,
    kind: StructureKind,
    tables: &[&'static [Row]],
    size: u16,
) -> Structure {
    // The configuration space of conventional PCI ends before the extended one begins.
    let end = match kind {
        StructureKind::Extended { .. } => size,
        _ => size.min(super::config::CONVENTIONAL_SIZE),
    };
    let place = |row: &Row| {
        let absolute = u64::from(offset) + u64::from(row.offset);
        let fits = absolute + u64::from(row.width) <= u64::from(end);
        fits.then(|| row.register(prefix, absolute))
    };
    let registers = tables.iter().copied().flatten().filter_map(place).collect();
    Structure { name, prefix, offset, kind, registers }
}

fn standard_tables<A: ConfigAccess>(
    config: &ConfigSpace<A>,
    id: u8,
    at: u16,
    size: u16,
) -> Result<Vec<&'static [Row]>> {
    // An entry at the very end has no flags to look at.
    let fits = u32::from(at) + 4 <= u32::from(size);
    let flags = if fits { config.read_u16(at + 2)? } else { 0 };
    let set = |bit: u8| flags >> bit & 1 != 0;
    Ok(match id {
        id::POWER_MANAGEMENT => vec![standard::POWER],
        0x03 => vec![standard::VPD],
        id::MSI => match (set(7), set(8)) {
            (false, false) => vec![standard::MSI_CONTROL, standard::MSI_32],
            (false, true) => {
                vec![standard::MSI_CONTROL, standard::MSI_32, standard::MSI_32_MASK]
            }
            (true, false) => vec![standard::MSI_CONTROL, standard::MSI_64],
            (true, true) => {
                vec![standard::MSI_CONTROL, standard::MSI_64, standard::MSI_64_MASK]
            }
        },
        0x07 => vec![standard::PCI_X],
        id::VENDOR_SPECIFIC => vec![standard::VENDOR],
        0x0a => vec![standard::DEBUG_PORT],
        0x0d => vec![standard::SUBSYSTEM],
        id::PCI_EXPRESS => express_tables(flags),
        id::MSI_X => vec![standard::MSI_X],
        0x12 => vec![standard::SATA],
        id::ADVANCED_FEATURES => vec![standard::ADVANCED],
        0x14 => vec![standard::ENHANCED],
        _ => Vec::new(),
    })
}

/// Which registers there are depends on version and type (PCIe Base 4.0, section 7.5.3).
fn express_tables(flags: u16) -> Vec<&'static [Row]> {
    let (version, kind) = (flags & 0xf, flags >> 4 & 0xf);
    let has_link = !matches!(kind, 9 | 10);
    let has_slot = matches!(kind, 4 | 6) && flags & 1 << 8 != 0;
    let is_root = matches!(kind, 4 | 10);
    let parts = [
        (true, express::DEVICE),
        (has_link, express::LINK),
        (has_slot, express::SLOT),
        (is_root, express::ROOT),
        (version >= 2, express::DEVICE_2),
        (version >= 2 && has_link, express::LINK_2),
    ];
    parts.into_iter().filter(|(has, _)| *has).map(|(_, table)| table).collect()
}

/// Whether the function takes error messages: a root port or an event collector.
fn is_root<A: ConfigAccess>(config: &ConfigSpace<A>, capabilities: &Capabilities) -> Result<bool> {
    let Some(express) = capabilities.find(id::PCI_EXPRESS) else { return Ok(false) };
    if u32::from(express.offset) + 4 > u32::from(config.size()?) {
        return Ok(false);
    }
    Ok(matches!(config.read_u16(express.offset + 2)? >> 4 & 0xf, 4 | 10))
}

fn extended_tables(id: u16, is_root: bool) -> Vec<&'static [Row]> {
    match id {
        0x01 if is_root => vec![extended::AER, extended::AER_ROOT],
        0x01 => vec![extended::AER],
        0x02 | 0x09 => vec![extended::VC],
        0x03 => vec![extended::DSN],
        0x0b => vec![extended::VSEC],
        0x0d => vec![extended::ACS],
        0x0e => vec![extended::ARI],
        0x0f => vec![extended::ATS],
        0x10 => vec![extended::SRIOV],
        0x13 => vec![extended::PRI],
        0x15 => vec![extended::REBAR],
        0x17 => vec![extended::TPH],
        0x18 => vec![extended::LTR],
        0x19 => vec![extended::SECONDARY],
        0x1b => vec![extended::PASID],
        0x1d => vec![extended::DPC],
        0x1e => vec![extended::L1SS],
        0x1f => vec![extended::PTM],
        0x23 => vec![extended::DVSEC],
        0x25 => vec![extended::DATA_LINK],
        0x2e => vec![extended::DOE],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
