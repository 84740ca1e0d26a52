//! Which device the model is, and how it is set up.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::ioat::fault::FaultPlan;
use crate::link::LinkMeter;
use crate::regs::LayoutError;

/// Channels that one function has at most.
pub const MAX_CHANNELS: u8 = 8;

/// A real device that the model presents itself as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Personality {
    /// Skylake-SP: 8086:2021, version 3.2.
    #[default]
    Skylake,
    /// Ice Lake-SP: 8086:0b00, version 3.4.
    IceLake,
}

impl Personality {
    /// All of them, with their names.
    pub const ALL: [(Personality, &'static str); 2] =
        [(Personality::Skylake, "ioat-skx"), (Personality::IceLake, "ioat-icx")];

    /// PCI device ID; the vendor is 0x8086.
    #[must_use]
    pub fn device_id(self) -> u16 {
        match self {
            Personality::Skylake => 0x2021,
            Personality::IceLake => 0x0b00,
        }
    }

    /// CBVER: the major version in bits 7:4, the minor in 3:0.
    #[must_use]
    pub fn version(self) -> u8 {
        match self {
            Personality::Skylake => 0x32,
            Personality::IceLake => 0x34,
        }
    }
}

impl fmt::Display for Personality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Personality::ALL.iter().find(|(p, _)| p == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

/// A name that no personality has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no device \"{name}\"; there are ioat-skx (8086:2021, version 3.2) and ioat-icx (8086:0b00, version 3.4)"
)]
pub struct UnknownPersonality {
    /// The name.
    pub name: String,
}

impl FromStr for Personality {
    type Err = UnknownPersonality;

    fn from_str(name: &str) -> Result<Self, UnknownPersonality> {
        let found = Personality::ALL.iter().find(|&&(_, have)| have == name);
        found.map(|&(p, _)| p).ok_or_else(|| UnknownPersonality { name: name.into() })
    }
}

/// How an I/OAT function is set up.
#[derive(Debug, Clone)]
pub struct IoatConfig {
    /// Which device it is.
    pub personality: Personality,
    /// How many channels it has: 1 to [`MAX_CHANNELS`]. Real functions have one.
    pub channels: u8,
    /// Base-2 logarithm of the longest transfer of one descriptor in bytes: 12 (4 KiB) to
    /// 31. Real functions have 20 (1 MiB).
    pub transfer_capacity: u8,
    /// Address bits that the function can put on the bus: 32 to 64. An address beyond them
    /// is an address error; x86 has 52 physical address bits at most.
    pub address_bits: u8,
    /// Counts the packets that a card would put on its link, when given.
    pub meter: Option<Arc<LinkMeter>>,
    /// What is to go wrong.
    pub faults: FaultPlan,
}

impl Default for IoatConfig {
    /// A Skylake function with one channel, 1 MiB transfers and 52 address bits, without
    /// faults.
    fn default() -> Self {
        IoatConfig {
            personality: Personality::Skylake,
            channels: 1,
            transfer_capacity: 20,
            address_bits: 52,
            meter: None,
            faults: FaultPlan::default(),
        }
    }
}

/// A function that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoatError {
    /// A number of the configuration is out of its range.
    #[error("{what} is {value}; it must be {least} to {most}")]
    OutOfRange {
        /// What the number is.
        what: &'static str,
        /// The number.
        value: u8,
        /// The least that is allowed.
        least: u8,
        /// The most that is allowed.
        most: u8,
    },
    /// The register table contradicts itself.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A channel's thread cannot be started.
    #[error(
        "starting the thread of channel {channel}: {source}\n  remedy: raise the limit of processes (ulimit -u)"
    )]
    Thread {
        /// The channel.
        channel: u8,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl IoatConfig {
    /// Refuses a value out of its range.
    ///
    /// # Errors
    ///
    /// Names the value and its range.
    pub fn check(&self) -> Result<(), IoatError> {
        let limits = [
            ("the number of channels", self.channels, 1, MAX_CHANNELS),
            ("the transfer capacity (log2 of bytes)", self.transfer_capacity, 12, 31),
            ("the number of address bits", self.address_bits, 32, 64),
        ];
        for (what, value, least, most) in limits {
            if !(least..=most).contains(&value) {
                return Err(IoatError::OutOfRange { what, value, least, most });
            }
        }
        Ok(())
    }

    /// Whether `[address, address + len)` fits into the address bits.
    pub(super) fn reaches(&self, address: u64, len: u64) -> bool {
        let most = u64::MAX >> (64 - u32::from(self.address_bits));
        address.checked_add(len.saturating_sub(1)).is_some_and(|last| last <= most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn personalities_are_named() {
        for (personality, name) in Personality::ALL {
            assert_eq!((personality.to_string().as_str(), name.parse()), (name, Ok(personality)));
        }
        let error = "ioat".parse::<Personality>().unwrap_err().to_string();
        assert!(error.contains("\"ioat\"") && error.contains("ioat-skx"), "{error}");
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let channels = IoatConfig { channels: 9, ..IoatConfig::default() };
        assert!(channels.check().unwrap_err().to_string().contains("is 9; it must be 1 to 8"));
        let bits = IoatConfig { address_bits: 0, ..IoatConfig::default() };
        assert!(bits.check().is_err() && IoatConfig::default().check().is_ok());
    }

    #[test]
    fn addresses_end_where_the_bits_do() {
        let config = IoatConfig::default();
        assert!(config.reaches((1 << 52) - 64, 64) && !config.reaches((1 << 52) - 63, 64));
        assert!(!config.reaches(u64::MAX, 2));
        let wide = IoatConfig { address_bits: 64, ..config };
        assert!(wide.reaches(u64::MAX, 1) && !wide.reaches(u64::MAX, 2));
    }
}
