//! Which functions are meant: by address, by vendor and device, by IOMMU group.

use std::fmt;
use std::str::FromStr;

use crate::pci::Address;

/// Which functions are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Selector {
    /// The one at an address: `0000:00:05.0`.
    Function(Address),
    /// All of a kind: `1234:11e8`.
    Id {
        /// Vendor id.
        vendor: u16,
        /// Device id.
        device: u16,
    },
    /// The members of an IOMMU group, without bridges: `group:17`.
    Group(u32),
}

/// A text that says not which functions are meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a PCI address such as 0000:00:05.0, nor vendor and device such as 1234:11e8, \
     nor a group such as group:17"
)]
pub struct SelectorError {
    text: String,
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> std::result::Result<Selector, SelectorError> {
        if let Ok(address) = text.parse() {
            return Ok(Selector::Function(address));
        }
        let id = |text: &str| {
            let plain = text.len() == 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u16::from_str_radix(text, 16).ok())?
        };
        let found = match text.split_once(':') {
            Some(("group", number)) if number.bytes().all(|b| b.is_ascii_digit()) => {
                number.parse().ok().map(Selector::Group)
            }
            Some((vendor, device)) => {
                id(vendor).zip(id(device)).map(|(vendor, device)| Selector::Id { vendor, device })
            }
            None => None,
        };
        found.ok_or_else(|| SelectorError { text: text.to_owned() })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Function(address) => write!(f, "{address}"),
            Selector::Id { vendor, device } => write!(f, "{vendor:04x}:{device:04x}"),
            Selector::Group(number) => write!(f, "group:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_named_by_address_kind_or_group() {
        let address = "0000:00:05.0".parse().unwrap();
        assert_eq!("00:05.0".parse(), Ok(Selector::Function(address)));
        assert_eq!("1234:11E8".parse(), Ok(Selector::Id { vendor: 0x1234, device: 0x11e8 }));
        assert_eq!("group:17".parse(), Ok(Selector::Group(17)));
        for text in
            ["5", "1234:", "1234:11e", "group:", "group:x", "group:-1", "a:b:c", "", "+123:+456"]
        {
            let error = text.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains("is not a PCI address"), "{error}");
        }
        for text in ["0000:00:05.0", "1234:11e8", "group:17"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }
}
