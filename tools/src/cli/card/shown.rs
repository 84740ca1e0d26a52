//! Registers as they are printed.

use serde::Serialize;
use vfio_dma::registers::{AccessMode, FieldValue, Register};

use super::super::output::fields;

/// A register that was read. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    /// Its name; `null` for one without.
    name: Option<String>,
    /// Byte offset.
    offset: u64,
    /// Width in bytes.
    width: u8,
    /// What it held.
    value: u64,
    /// Its fields: `name`, `value`, `meaning`, `bits`.
    fields: Vec<FieldValue>,
}

impl Shown {
    pub(crate) fn new(register: &Register, value: u64) -> Shown {
        Shown {
            name: (!register.name.is_empty()).then(|| register.name.clone()),
            offset: register.offset,
            width: register.width,
            value,
            fields: register.decode(value),
        }
    }
}

/// A value in the width of its register.
pub(crate) fn hex(register: &Register, value: u64) -> String {
    let digits = usize::from(register.width) * 2 + 2;
    format!("{value:#0digits$x}")
}

/// `0x0020 STATUS`: where a register is, and its name if it has one.
pub(crate) fn place(register: &Register) -> String {
    let at = format!("{:#06x}", register.offset);
    if register.name.is_empty() { at } else { format!("{at} {}", register.name) }
}

/// `0x0020 STATUS     0x00000081  computing irq`.
pub(crate) fn line(register: &Register, value: u64) -> String {
    // A register without a name is alone, or in configuration space.
    let name = match &*register.name {
        "" => String::new(),
        name => format!("{name:20} "),
    };
    let line = format!(
        "{:#06x}  {name}{}  {}{}",
        register.offset,
        hex(register, value),
        fields(register, value),
        mark(register).map_or_else(String::new, |mark| format!(" [{mark}]"))
    );
    format!("{}\n", line.trim_end())
}

/// What makes a register one that is not read unless it is named.
pub(crate) fn mark(register: &Register) -> Option<&'static str> {
    if register.read_has_side_effects {
        Some("reading it has side effects")
    } else {
        (register.access == AccessMode::WriteOnly).then_some("write only")
    }
}

/// A field's value, with what it means.
pub(crate) fn field(register: &Register, name: &str, value: u64) -> String {
    let decoded = register.decode(value);
    let found = decoded.iter().find(|field| field.name.eq_ignore_ascii_case(name));
    found.map_or_else(String::new, |field| match &field.meaning {
        Some(meaning) => format!("{:#x} ({meaning})", field.value),
        None => format!("{:#x}", field.value),
    })
}
