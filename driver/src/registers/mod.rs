//! Registers by name: where they are, what may be done with them, and what their bits mean.
//!
//! A [`Register`] is a description, not an access: [`crate::pci::layout`] has those of
//! configuration space, a register file (feature `host`) those of a card's BARs.

mod assign;
#[cfg(feature = "host")]
mod file;
mod target;

pub use assign::{AssignError, parse_number};
pub use target::{Target, TargetError};

#[cfg(feature = "host")]
pub use file::{RegisterFile, RegisterFileError};

/// What software may do with a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum AccessMode {
    /// Only read.
    ReadOnly,
    /// Read and written.
    ReadWrite,
    /// Read; each one that is written clears its bit.
    WriteOneToClear,
    /// Only written; what it reads as means nothing.
    WriteOnly,
}

/// A register: its name, its place and the meaning of its bits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Register {
    /// Its name, such as `COMMAND`.
    pub name: String,
    /// Byte offset from the start of what it is part of.
    pub offset: u64,
    /// Its width in bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// What may be done with it.
    pub access: AccessMode,
    /// A read changes the device: it clears a status, or takes an entry out of a queue.
    pub read_has_side_effects: bool,
    /// Its fields, those that have a name.
    pub fields: Vec<Field>,
}

/// Neighbouring bits of a register.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Field {
    /// Its name, such as `bus-master`.
    pub name: String,
    /// Its lowest bit.
    pub lsb: u8,
    /// How many bits it has, at least 1.
    pub bits: u8,
    /// What its values mean, those that have a name.
    pub values: Vec<(u64, String)>,
    /// Ones that are written clear it, in a register that is otherwise written as it is read.
    pub write_one_to_clear: bool,
}

/// What a register held, by fields.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct FieldValue {
    /// The field's name.
    pub name: String,
    /// Its number.
    pub value: u64,
    /// What the number means, where that has a name.
    pub meaning: Option<String>,
    /// How many bits the field has.
    pub bits: u8,
}

impl Register {
    /// A register without fields, whose reads have no side effects.
    #[must_use]
    pub fn new(name: impl Into<String>, offset: u64, width: u8, access: AccessMode) -> Register {
        Register {
            name: name.into(),
            offset,
            width,
            access,
            read_has_side_effects: false,
            fields: Vec::new(),
        }
    }

    /// The field with this name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.name.eq_ignore_ascii_case(name))
    }

    /// All ones in the register's width.
    #[must_use]
    pub fn all_ones(&self) -> u64 {
        ones(u32::from(self.width) * 8)
    }

    /// The fields of a value of the register.
    #[must_use]
    pub fn decode(&self, value: u64) -> Vec<FieldValue> {
        self.fields.iter().map(|field| field.decode(value)).collect()
    }
}

impl Field {
    /// A number of `bits` bits from bit `lsb` on.
    #[must_use]
    pub fn new(name: impl Into<String>, lsb: u8, bits: u8) -> Field {
        Field { name: name.into(), lsb, bits, values: Vec::new(), write_one_to_clear: false }
    }

    /// The bits of the register that are the field's.
    #[must_use]
    pub fn mask(&self) -> u64 {
        ones(self.bits.into()).checked_shl(self.lsb.into()).unwrap_or(0)
    }

    /// The field's number in a value of its register.
    #[must_use]
    pub fn extract(&self, register: u64) -> u64 {
        (register & self.mask()).checked_shr(self.lsb.into()).unwrap_or(0)
    }

    /// The register's value with the field set to a number; `None` when the number is too big.
    #[must_use]
    pub fn insert(&self, register: u64, number: u64) -> Option<u64> {
        let fits = number <= ones(self.bits.into());
        fits.then(|| register & !self.mask() | number.checked_shl(self.lsb.into()).unwrap_or(0))
    }

    /// The number that has this name.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.values.iter().find(|(_, text)| text.eq_ignore_ascii_case(name)).map(|(n, _)| *n)
    }

    fn decode(&self, register: u64) -> FieldValue {
        let value = self.extract(register);
        let meaning = self.values.iter().find(|(number, _)| *number == value);
        FieldValue {
            name: self.name.clone(),
            value,
            meaning: meaning.map(|(_, text)| text.clone()),
            bits: self.bits,
        }
    }
}

/// A number of so many ones, from bit 0 on.
fn ones(bits: u32) -> u64 {
    match bits {
        0 => 0,
        64.. => u64::MAX,
        bits => u64::MAX >> (64 - bits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_cut_out_of_their_register_and_put_back() {
        let field = Field::new("size", 5, 3);
        assert_eq!((field.mask(), field.extract(0x2fa0)), (0xe0, 5));
        assert_eq!(field.insert(0xffff, 2), Some(0xff5f));
        assert_eq!(field.insert(0, 8), None);
        let whole = Field::new("all", 0, 64);
        assert_eq!((whole.mask(), whole.insert(1, u64::MAX)), (u64::MAX, Some(u64::MAX)));
    }

    #[test]
    fn descriptions_that_make_no_sense_read_as_nothing() {
        for (lsb, bits) in [(64, 1), (255, 255), (63, 64), (0, 0)] {
            let field = Field::new("odd", lsb, bits);
            let _ = (field.mask(), field.extract(u64::MAX), field.insert(0, 1));
        }
        assert_eq!(Field::new("out", 64, 1).extract(u64::MAX), 0);
    }

    #[test]
    fn values_have_names() {
        let values = vec![(3, "D3hot".to_owned())];
        let mut register = Register::new("CTRL", 4, 2, AccessMode::ReadWrite);
        register.fields.push(Field { values, ..Field::new("state", 0, 2) });
        assert_eq!(register.decode(0x103)[0].meaning.as_deref(), Some("D3hot"));
        assert_eq!(register.decode(1)[0].meaning, None);
        assert_eq!(register.field("STATE").unwrap().number("d3HOT"), Some(3));
        assert_eq!(register.all_ones(), 0xffff);
    }
}
