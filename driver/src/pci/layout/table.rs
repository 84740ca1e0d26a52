//! How the tables of registers are written down.

use crate::registers::{AccessMode, Field, Register};

/// Names of a field's values.
pub(super) type Values = &'static [(u64, &'static str)];

/// A register of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    name: &'static str,
    /// Byte offset from the start of its structure.
    pub(super) offset: u16,
    /// In bytes.
    pub(super) width: u8,
    access: AccessMode,
    fields: &'static [Bits],
}

/// A field of a table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bits {
    name: &'static str,
    lsb: u8,
    bits: u8,
    values: Values,
    clears: bool,
}

impl Row {
    /// The register at this offset of configuration space, under its full name.
    pub(super) fn register(&self, prefix: &str, offset: u64) -> Register {
        let name = match prefix {
            "" => self.name.to_owned(),
            prefix => format!("{prefix}_{}", self.name),
        };
        let field = |bits: &Bits| Field {
            values: bits.values.iter().map(|(number, text)| (*number, (*text).into())).collect(),
            write_one_to_clear: bits.clears,
            ..Field::new(bits.name, bits.lsb, bits.bits)
        };
        let fields = self.fields.iter().map(field).collect();
        Register { fields, ..Register::new(name, offset, self.width, self.access) }
    }
}

pub(super) const fn flag(name: &'static str, bit: u8) -> Bits {
    bits(name, bit, 1)
}

pub(super) const fn bits(name: &'static str, lsb: u8, bits: u8) -> Bits {
    names(name, lsb, bits, &[])
}

pub(super) const fn names(name: &'static str, lsb: u8, bits: u8, values: Values) -> Bits {
    Bits { name, lsb, bits, values, clears: false }
}

/// A flag that a one clears, in a register that is otherwise written as it is read.
pub(super) const fn clears(name: &'static str, bit: u8) -> Bits {
    Bits { clears: true, ..flag(name, bit) }
}

pub(super) const fn ro(name: &'static str, offset: u16, width: u8, fields: &'static [Bits]) -> Row {
    Row { name, offset, width, access: AccessMode::ReadOnly, fields }
}

pub(super) const fn rw(name: &'static str, offset: u16, width: u8, fields: &'static [Bits]) -> Row {
    Row { name, offset, width, access: AccessMode::ReadWrite, fields }
}

pub(super) const fn w1c(
    name: &'static str,
    offset: u16,
    width: u8,
    fields: &'static [Bits],
) -> Row {
    Row { name, offset, width, access: AccessMode::WriteOneToClear, fields }
}
