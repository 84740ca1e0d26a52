//! PCI addresses.

use std::fmt;
use std::str::FromStr;

/// The address of a PCI function: domain, bus, device and function, written
/// `0000:00:05.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is not a PCI address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a PCI address: it is written like 0000:00:05.0 (domain, bus, device up to \
     1f, function up to 7, in hexadecimal)"
)]
pub struct ParseAddressError {
    text: String,
}

impl Address {
    /// The address of a function; `None` when the device is over 31 or the function over 7.
    #[must_use]
    pub fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Address> {
        (device < 32 && function < 8).then_some(Address { domain, bus, device, function })
    }

    /// The domain, or segment group.
    #[must_use]
    pub fn domain(self) -> u32 {
        self.domain
    }

    /// The bus.
    #[must_use]
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// The device, or slot.
    #[must_use]
    pub fn device(self) -> u8 {
        self.device
    }

    /// The function.
    #[must_use]
    pub fn function(self) -> u8 {
        self.function
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl FromStr for Address {
    type Err = ParseAddressError;

    /// Reads `0000:00:05.0`, or `00:05.0` for domain 0.
    fn from_str(text: &str) -> Result<Address, ParseAddressError> {
        parse(text).ok_or_else(|| ParseAddressError { text: text.into() })
    }
}

fn parse(text: &str) -> Option<Address> {
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
    Address::new(
        hex(domain, 8)?,
        hex(bus, 2)?.try_into().ok()?,
        hex(device, 2)?.try_into().ok()?,
        hex(function, 1)?.try_into().ok()?,
    )
}

/// A number of up to `digits` hexadecimal digits, and nothing else.
fn hex(text: &str, digits: usize) -> Option<u32> {
    let plain = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl serde::Serialize for Address {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_forms_are_read_and_the_long_one_is_written() {
        for text in ["0000:00:05.0", "00:05.0", "0:0:5.0"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), "0000:00:05.0");
        }
        let far = "10000:ff:1F.7".parse::<Address>().unwrap();
        assert_eq!(far.to_string(), "10000:ff:1f.7");
        assert_eq!((far.domain(), far.bus(), far.device(), far.function()), (0x10000, 255, 31, 7));
    }

    #[test]
    fn anything_else_is_an_error_that_shows_it() {
        for text in [
            "",
            ".",
            ":",
            "::.",
            "05.0",
            "00:20.0",
            "00:05.8",
            "00:05",
            "100:00.0",
            "00:05.0 ",
            "0000:00:+5.0",
            "0:0:0:0.0",
            "000000000:00:05.0",
            "00:05.00",
            "0x0:00:05.0",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("{text:?}")), "{error}");
            assert!(error.contains("0000:00:05.0"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(domain: u32, bus: u8, device in 0u8..32, function in 0u8..8) {
            let address = Address::new(domain, bus, device, function).unwrap();
            prop_assert_eq!(address.to_string().parse(), Ok(address));
        }

        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _ = text.parse::<Address>();
        }
    }
}
