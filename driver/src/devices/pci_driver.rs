//! What a driver is, and what it drives.
//!
//! A driver implements [`PciDriver`] and says in [`PciDriver::MATCHES`] what it drives, by
//! vendor and device id or by class.

use std::fmt;

use crate::device::Device;
use crate::pci::{ClassCode, PciError};

/// What a function says of itself in configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class, subclass and programming interface.
    pub class: ClassCode,
}

impl Identity {
    /// Reads a device's identity.
    ///
    /// # Errors
    ///
    /// Fails when configuration space cannot be read.
    pub fn of(device: &Device) -> Result<Identity, PciError> {
        let config = device.config();
        let (vendor, id) = (config.vendor_id()?, config.device_id()?);
        Ok(Identity { vendor, device: id, class: config.class()? })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x} (class {})", self.vendor, self.device, self.class)
    }
}

/// What a driver drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    by: By,
    /// What such a device is, in a few words.
    pub description: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Id { vendor: u16, device: u16 },
    Class(u32),
}

impl Match {
    /// Whether it is by class.
    pub(super) fn is_by_class(&self) -> bool {
        matches!(self.by, By::Class(_))
    }

    /// Devices with these ids.
    #[must_use]
    pub const fn id(vendor: u16, device: u16, description: &'static str) -> Match {
        Match { by: By::Id { vendor, device }, description }
    }

    /// Devices of every vendor with this class code: class, subclass and programming
    /// interface, 8 bits each.
    #[must_use]
    pub const fn class(code: u32, description: &'static str) -> Match {
        Match { by: By::Class(code), description }
    }

    /// Whether a function is such a device.
    #[must_use]
    pub fn covers(&self, identity: &Identity) -> bool {
        match self.by {
            By::Id { vendor, device } => (vendor, device) == (identity.vendor, identity.device),
            By::Class(code) => code == identity.class.code(),
        }
    }
}

/// A device that its driver could not take over, and why.
#[derive(Debug)]
pub struct ProbeFailed<E>(Box<(E, Device)>);

impl<E> ProbeFailed<E> {
    /// A failure, and the device that goes back to the caller.
    #[must_use]
    pub fn new(error: E, device: Device) -> ProbeFailed<E> {
        ProbeFailed(Box::new((error, device)))
    }

    /// Why.
    #[must_use]
    pub fn error(&self) -> &E {
        &self.0.0
    }

    /// Why, and the device: another driver may take it.
    #[must_use]
    pub fn into_parts(self) -> (E, Device) {
        *self.0
    }

    /// The same failure, told as another error.
    #[must_use]
    pub fn map<F>(self, f: impl FnOnce(E) -> F) -> ProbeFailed<F> {
        let (error, device) = self.into_parts();
        ProbeFailed::new(f(error), device)
    }
}

impl<E: fmt::Display> fmt::Display for ProbeFailed<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error().fmt(f)
    }
}

impl<E: std::error::Error + 'static> std::error::Error for ProbeFailed<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.error())
    }
}

/// A driver for PCI devices.
pub trait PciDriver: Sized {
    /// The name that commands and reports use.
    const NAME: &'static str;
    /// What it drives.
    const MATCHES: &'static [Match];
    /// How the device is to be driven.
    type Config: Default;
    /// Why an operation on the device fails.
    type Error: fmt::Display + Send + 'static;

    /// Takes a device over.
    ///
    /// # Errors
    ///
    /// Gives the device back, with bus mastering off and no vectors in use, when it is none
    /// that this driver drives, or cannot be set up.
    fn probe(device: Device, config: Self::Config) -> Result<Self, ProbeFailed<Self::Error>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(vendor: u16, device: u16, class: u32) -> Identity {
        Identity { vendor, device, class: ClassCode::from_code(class) }
    }

    #[test]
    fn a_match_is_by_both_ids_or_by_the_whole_class() {
        let by_class = Match::class(0x01_0802, "NVMe controller");
        assert!(by_class.covers(&identity(1, 2, 0x01_0802)));
        assert!(!by_class.covers(&identity(1, 2, 0x01_0803)));
        let by_id = Match::id(1, 2, "card");
        assert!(by_id.covers(&identity(1, 2, 0x01_0802)));
        assert!(!by_id.covers(&identity(2, 1, 0x01_0802)));
    }
}
