//! Fields of a register set by name.

use super::{AccessMode, Field, Register};

/// Why a field of a register cannot be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AssignError {
    /// The register has no such field.
    #[error("{register} has no field {field:?}: {}", known(fields))]
    NoField {
        /// The register.
        register: String,
        /// The name given.
        field: String,
        /// The fields that it has.
        fields: Vec<String>,
    },
    /// What is to be set is neither a number of the field nor the name of a value.
    #[error(
        "{register}.{field} has {bits} bits: {text:?} is not a number of them{}",
        or_of(values)
    )]
    NoValue {
        /// The register.
        register: String,
        /// The field.
        field: String,
        /// Its width.
        bits: u8,
        /// The text given.
        text: String,
        /// The names of its values.
        values: Vec<String>,
    },
    /// What is to be written does not fit the register.
    #[error("{register} has {width} bytes: {text:?} is not a number of them")]
    NoNumber {
        /// The register.
        register: String,
        /// Its width in bytes.
        width: u8,
        /// The text given.
        text: String,
    },
    /// The register is only read.
    #[error("{register} is read only")]
    ReadOnly {
        /// The register.
        register: String,
    },
}

fn known(fields: &[String]) -> String {
    if fields.is_empty() { "it has none".into() } else { format!("it has {}", fields.join(", ")) }
}

fn or_of(values: &[String]) -> String {
    if values.is_empty() { String::new() } else { format!(", nor one of {}", values.join(", ")) }
}

/// Reads a number: decimal, hexadecimal behind `0x`, binary behind `0b`; `_` between digits.
#[must_use]
pub fn parse_number(text: &str) -> Option<u64> {
    let (digits, radix) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', b'b' | b'B', ..] => (&text[2..], 2),
        _ => (text, 10),
    };
    // `from_str_radix` takes a sign, and digits of it no more than one underscore apart.
    let plain = digits.starts_with(|c: char| c.is_ascii_hexdigit());
    plain.then(|| u64::from_str_radix(&digits.replace('_', ""), radix).ok())?
}

impl Register {
    /// The register's value with fields set, `NAME=VALUE` each: what to write so that they
    /// change and nothing else does. `current` is what it holds.
    ///
    /// Bits that a one clears are written as zero, unless they are named.
    ///
    /// # Errors
    ///
    /// Fails for a register that is only read, for a field that it does not have, and for a value
    /// that does not fit.
    pub fn assign<'a>(
        &self,
        current: u64,
        fields: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<u64, AssignError> {
        self.check_writable()?;
        let cleared = self.fields.iter().filter(|field| field.write_one_to_clear);
        let cleared = cleared.fold(0, |mask, field| mask | field.mask());
        let mut value = match self.access {
            AccessMode::WriteOneToClear | AccessMode::WriteOnly => 0,
            _ => current & !cleared,
        };
        for (name, text) in fields {
            let field = self.field(name).ok_or_else(|| AssignError::NoField {
                register: self.name.clone(),
                field: name.to_owned(),
                fields: self.fields.iter().map(|field| field.name.clone()).collect(),
            })?;
            value = self.set(field, value, text)?;
        }
        Ok(value)
    }

    fn set(&self, field: &Field, value: u64, text: &str) -> Result<u64, AssignError> {
        let number = field.number(text).or_else(|| parse_number(text));
        number.and_then(|number| field.insert(value, number)).ok_or_else(|| AssignError::NoValue {
            register: self.name.clone(),
            field: field.name.clone(),
            bits: field.bits,
            text: text.to_owned(),
            values: field.values.iter().map(|(_, name)| name.clone()).collect(),
        })
    }

    /// A number that fits the register, to be written to it.
    ///
    /// # Errors
    ///
    /// Fails for a register that is only read, and for what is not such a number.
    pub fn whole(&self, text: &str) -> Result<u64, AssignError> {
        self.check_writable()?;
        parse_number(text).filter(|&number| number <= self.all_ones()).ok_or_else(|| {
            AssignError::NoNumber {
                register: self.name.clone(),
                width: self.width,
                text: text.to_owned(),
            }
        })
    }

    fn check_writable(&self) -> Result<(), AssignError> {
        match self.access {
            AccessMode::ReadOnly => Err(AssignError::ReadOnly { register: self.name.clone() }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(access: AccessMode) -> Register {
        let mut register = Register::new("CTRL", 0, 2, access);
        let values = vec![(3, "D3hot".to_owned())];
        register.fields.push(Field { values, ..Field::new("state", 0, 2) });
        register.fields.push(Field::new("enable", 8, 1));
        register.fields.push(Field { write_one_to_clear: true, ..Field::new("event", 15, 1) });
        register
    }

    #[test]
    fn named_fields_change_and_no_event_is_cleared_by_the_way() {
        let control = register(AccessMode::ReadWrite);
        assert_eq!(control.assign(0x8003, [("state", "0")]), Ok(0));
        assert_eq!(control.assign(0x8104, [("state", "d3hot"), ("enable", "0")]), Ok(0x0007));
        assert_eq!(control.assign(0x8000, [("event", "1")]), Ok(0x8000));
        let status = register(AccessMode::WriteOneToClear);
        assert_eq!(status.assign(0xffff, [("enable", "1")]), Ok(0x100));
    }

    #[test]
    fn what_does_not_fit_is_told_with_what_would() {
        let control = register(AccessMode::ReadWrite);
        let text = |name, value| control.assign(0, [(name, value)]).unwrap_err().to_string();
        assert!(text("colour", "1").contains("it has state, enable, event"));
        assert!(
            text("state", "4").contains("2 bits: \"4\" is not a number of them, nor one of D3")
        );
        assert!(text("enable", "-1").contains("1 bits"));
        assert!(control.whole("0x10000").unwrap_err().to_string().contains("2 bytes"));
        assert_eq!(control.whole("0xffff"), Ok(0xffff));
        let fixed = register(AccessMode::ReadOnly);
        assert_eq!(fixed.whole("1").unwrap_err().to_string(), "CTRL is read only");
        assert!(fixed.assign(0, [("state", "0")]).is_err());
    }

    #[test]
    fn numbers_are_decimal_hexadecimal_or_binary() {
        for (text, number) in [
            ("10", Some(10)),
            ("0x1F", Some(31)),
            ("0b101", Some(5)),
            ("0xdead_beef", Some(0xdead_beef)),
            ("18446744073709551615", Some(u64::MAX)),
            ("18446744073709551616", None),
            ("", None),
            ("0x", None),
            ("+1", None),
            ("-1", None),
            ("0x+1", None),
            ("_1", None),
            ("é", None),
            ("0b2", None),
        ] {
            assert_eq!(parse_number(text), number, "{text}");
        }
    }
}
