//! The address of a PCI function: domain, bus, device, function.

use std::fmt;
use std::str::FromStr;

/// Where a PCI function is: `0000:00:05.0`.
///
/// Bus, device and function have 8, 5 and 3 bits (PCI Local Bus 3.0, section 3.2.2.3.2).
/// The domain ("segment group" in ACPI) has 16 bits on most machines; Linux numbers the
/// domains that it makes up itself, such as those behind Intel VMD, from 0x10000.
///
/// The order is that of the printed form. Serialised as the printed form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
pub struct Address {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text or a set of numbers that is not the address of a PCI function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a PCI address: {problem}; the form is 0000:00:05.0, or 00:05.0 in domain 0"
)]
pub struct AddressError {
    /// The offending text.
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Address {
    /// The highest device number on a bus.
    pub const MAX_DEVICE: u8 = 31;
    /// The highest function number in a device.
    pub const MAX_FUNCTION: u8 = 7;

    /// The address with these numbers.
    ///
    /// # Errors
    ///
    /// Fails when `device` is above 31 or `function` above 7.
    pub fn new(domain: u32, bus: u8, device: u8, function: u8) -> Result<Address, AddressError> {
        let address = Address { domain, bus, device, function };
        match address.problem() {
            None => Ok(address),
            Some(problem) => Err(AddressError { text: address.to_string(), problem }),
        }
    }

    /// The domain.
    #[must_use]
    pub fn domain(self) -> u32 {
        self.domain
    }

    /// The bus.
    #[must_use]
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// The device, 0 to 31.
    #[must_use]
    pub fn device(self) -> u8 {
        self.device
    }

    /// The function, 0 to 7.
    #[must_use]
    pub fn function(self) -> u8 {
        self.function
    }

    fn problem(self) -> Option<&'static str> {
        if self.device > Self::MAX_DEVICE {
            Some("the device number is above 1f")
        } else if self.function > Self::MAX_FUNCTION {
            Some("the function number is above 7")
        } else {
            None
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { domain, bus, device, function } = self;
        f.pad(&format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        parse(text).map_err(|problem| AddressError { text: text.to_owned(), problem })
    }
}

fn parse(text: &str) -> Result<Address, &'static str> {
    let (path, function) = text.rsplit_once('.').ok_or("the function (.0) is missing")?;
    let mut fields = path.split(':');
    let (domain, bus, device) = match (fields.next(), fields.next(), fields.next(), fields.next()) {
        (Some(bus), Some(device), None, None) => ("0", bus, device),
        (Some(domain), Some(bus), Some(device), None) => (domain, bus, device),
        _ => return Err("it has not two or three fields before the dot"),
    };
    let domain = hex(domain, 8).ok_or("the domain is not 1 to 8 hexadecimal digits")?;
    let bus = hex(bus, 2).ok_or("the bus is not 1 or 2 hexadecimal digits")?;
    let device = hex(device, 2).ok_or("the device is not 1 or 2 hexadecimal digits")?;
    let function = hex(function, 1).ok_or("the function is not one digit")?;
    // Two digits fit 8 bits, so the casts lose nothing.
    let address =
        Address { domain, bus: bus as u8, device: device as u8, function: function as u8 };
    address.problem().map_or(Ok(address), Err)
}

/// A number of one to `digits` (at most 8) hexadecimal digits, without sign or prefix.
fn hex(text: &str, digits: usize) -> Option<u32> {
    let plain = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl TryFrom<String> for Address {
    type Error = AddressError;

    fn try_from(text: String) -> Result<Address, AddressError> {
        text.parse()
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn full_and_short_forms_name_the_same_function() {
        let full: Address = "0000:00:05.0".parse().unwrap();
        assert_eq!(full, "00:05.0".parse().unwrap());
        assert_eq!(full, "0:5.0".parse().unwrap());
        assert_eq!(full.to_string(), "0000:00:05.0");
        let vmd: Address = "10000:E1:1f.7".parse().unwrap();
        assert_eq!((vmd.domain(), vmd.bus(), vmd.device(), vmd.function()), (0x10000, 0xe1, 31, 7));
        assert_eq!(vmd.to_string(), "10000:e1:1f.7");
    }

    #[test]
    fn a_malformed_address_is_refused_with_the_text_and_an_example() {
        for text in [
            "",
            ".",
            ":",
            "5",
            "05.0",
            "00:05",
            "00:05.",
            "00:05.8",
            "00:20.0",
            "00:05.00",
            "0:0:0:5.0",
            "100000000:00:05.0",
            "100:05.0",
            "00:+5.0",
            "0x0:05.0",
            "00:05.0 ",
            "-0:05.0",
            "00:05.0.0",
            "00:é5.0",
            "::.0",
        ] {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(error.contains(&format!("{text:?}")), "{error}");
            assert!(error.contains("0000:00:05.0"), "{error}");
        }
        assert!(Address::new(0, 0, 32, 0).is_err());
        assert!(Address::new(0, 0, 0, 8).is_err());
    }

    #[test]
    fn addresses_sort_as_they_print() {
        let mut sorted = ["0001:00:00.0", "0000:01:00.0", "0000:00:1f.7", "0000:00:1f.0"]
            .map(|text| text.parse::<Address>().unwrap());
        sorted.sort();
        assert_eq!(
            sorted.map(|address| address.to_string()),
            ["0000:00:1f.0", "0000:00:1f.7", "0000:01:00.0", "0001:00:00.0"]
        );
    }

    #[cfg(feature = "serde")]
    #[test]
    fn serialised_as_a_string() {
        let address: Address = "0000:3b:00.1".parse().unwrap();
        let json = serde_json::to_string(&address).unwrap();
        assert_eq!(json, "\"0000:3b:00.1\"");
        assert_eq!(serde_json::from_str::<Address>(&json).unwrap(), address);
        assert!(serde_json::from_str::<Address>("\"3b\"").is_err());
    }

    proptest! {
        #[test]
        fn every_address_survives_printing(
            domain: u32, bus: u8, device in 0u8..32, function in 0u8..8,
        ) {
            let address = Address::new(domain, bus, device, function).unwrap();
            prop_assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC*|[0-9a-f:.]{0,16}") {
            let _ = text.parse::<Address>();
        }
    }
}
