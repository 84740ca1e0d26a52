//! What of a device a person names: an offset and a width, or a register and a field.

use std::str::FromStr;

use super::parse_number;

/// A place in a BAR or in configuration space, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `OFFSET` or `OFFSET:WIDTH`.
    At {
        /// Byte offset.
        offset: u64,
        /// Width in bytes: 1, 2, 4 or 8; none where it is not told.
        width: Option<u8>,
    },
    /// `NAME` or `NAME.FIELD`.
    Named {
        /// The register.
        register: String,
        /// Its field.
        field: Option<String>,
    },
}

/// A text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} names no register: it is OFFSET, OFFSET:WIDTH with a width of 1, 2, 4 or 8 bytes, \
     NAME or NAME.FIELD"
)]
pub struct TargetError {
    /// The text.
    text: String,
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Target, TargetError> {
        parse(text).ok_or_else(|| TargetError { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Target> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        let (offset, width) = match text.split_once(':') {
            None => (text, None),
            Some((offset, width)) => (offset, Some(width.parse().ok()?)),
        };
        let fits = width.is_none_or(|width| matches!(width, 1 | 2 | 4 | 8));
        return fits.then_some(Target::At { offset: parse_number(offset)?, width });
    }
    let (register, field) = match text.split_once('.') {
        None => (text, None),
        Some((register, field)) => (register, Some(field)),
    };
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'@'))
    };
    let fits = is_name(register) && field.is_none_or(is_name);
    let field = field.map(str::to_owned);
    fits.then(|| Target::Named { register: register.to_owned(), field })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_numbers_or_names() {
        let at = |offset, width| Some(Target::At { offset, width });
        let named = |register: &str, field: Option<&str>| {
            let (register, field) = (register.to_owned(), field.map(str::to_owned));
            Some(Target::Named { register, field })
        };
        for (text, target) in [
            ("0x10", at(16, None)),
            ("12:8", at(12, Some(8))),
            ("COMMAND.bus-master", named("COMMAND", Some("bus-master"))),
            ("STATUS.66-mhz", named("STATUS", Some("66-mhz"))),
            ("VNDR_LEN@0x40", named("VNDR_LEN@0x40", None)),
            ("0x10:3", None),
            ("0x10:", None),
            ("-1", None),
            ("", None),
            ("A.", None),
            (".a", None),
            ("A.b.c", None),
            ("é", None),
        ] {
            assert_eq!(text.parse().ok(), target, "{text}");
        }
    }
}
