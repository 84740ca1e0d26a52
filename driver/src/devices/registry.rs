//! Which devices the crate drives, and with what.
//!
//! [`DRIVERS`] lists the crate's drivers: a new one is added there, and everything that
//! recognises devices knows it.

use std::fmt;

use super::{
    CopyEngine, CopyError, Identity, Match, PciDriver, ProbeFailed, edu, ioat, litepcie, nvme,
    pci_testdev,
};
use crate::device::Device;

/// Opens a device as a copy engine, with its driver's defaults.
type OpenCopyEngine = fn(Device) -> Result<Box<dyn CopyEngine>, ProbeFailed<CopyError>>;

/// A driver of this crate, for those who look for the driver of a device.
#[derive(Debug)]
pub struct Driver {
    /// The name that commands and reports use.
    pub name: &'static str,
    /// What it drives.
    pub matches: &'static [Match],
    copy_engine: Option<OpenCopyEngine>,
}

impl Driver {
    const fn of<D: PciDriver>() -> Driver {
        Driver { name: D::NAME, matches: D::MATCHES, copy_engine: None }
    }

    const fn copies(self, open: OpenCopyEngine) -> Driver {
        Driver { copy_engine: Some(open), ..self }
    }

    /// Whether its devices are copy engines.
    #[must_use]
    pub fn is_copy_engine(&self) -> bool {
        self.copy_engine.is_some()
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// The drivers of this crate.
pub static DRIVERS: &[Driver] = &[
    Driver::of::<edu::Edu>().copies(|device| {
        let edu = edu::Edu::probe(device, edu::Config::default());
        Ok(Box::new(edu.map_err(|failed| failed.map(CopyError::from))?))
    }),
    Driver::of::<ioat::Ioat>().copies(ioat::open_copy_engine),
    Driver::of::<litepcie::LitePcie>().copies(litepcie::open_copy_engine),
    Driver::of::<pci_testdev::PciTestdev>(),
    Driver::of::<nvme::Nvme>(),
];

/// A device that the crate drives.
#[derive(Debug, Clone, Copy)]
pub struct KnownDevice {
    /// The driver for it.
    pub driver: &'static Driver,
    /// What the device is, in a few words.
    pub description: &'static str,
}

/// The driver for a function; `None` for one that the crate does not drive. A match by id
/// goes before one by class.
#[must_use]
pub fn recognise(identity: &Identity) -> Option<KnownDevice> {
    let all = DRIVERS.iter().flat_map(|driver| driver.matches.iter().map(move |m| (driver, m)));
    let found = all.filter(|(_, m)| m.covers(identity));
    let (driver, m) = found.min_by_key(|(_, m)| m.is_by_class())?;
    Some(KnownDevice { driver, description: m.description })
}

/// Opens whichever copy engine a device is, with the defaults of its driver.
///
/// # Errors
///
/// Fails when the device is no copy engine that the crate knows, or its driver cannot take
/// it over; the device comes back with the reason.
pub fn open_copy_engine(device: Device) -> Result<Box<dyn CopyEngine>, ProbeFailed<CopyError>> {
    let identity = match Identity::of(&device) {
        Ok(identity) => identity,
        Err(error) => return Err(ProbeFailed::new(error.into(), device)),
    };
    match recognise(&identity).and_then(|known| known.driver.copy_engine) {
        Some(open) => open(device),
        None => {
            let location = device.location().to_string();
            Err(ProbeFailed::new(CopyError::NoEngine { location, identity }, device))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::ClassCode;

    fn identity(vendor: u16, device: u16, class: u32) -> Identity {
        Identity { vendor, device, class: ClassCode::from_code(class) }
    }

    #[test]
    fn devices_are_recognised_by_both_ids_or_by_class() {
        let driver =
            |vendor, device| recognise(&identity(vendor, device, 0)).map(|known| known.driver.name);
        assert_eq!(driver(0x1234, 0x11e8), Some("edu"));
        assert_eq!(driver(0x1b36, 0x0005), Some("pci-testdev"));
        assert_eq!(driver(0x8086, 0x2021), Some("ioat"));
        assert_eq!(driver(0x8086, 0x0b00), Some("ioat"));
        let by_class =
            |class| recognise(&identity(0x144d, 0xa808, class)).map(|known| known.driver.name);
        assert_eq!((by_class(0x01_0802), by_class(0x01_0801)), (Some("nvme"), None));
        assert_eq!(driver(0x1234, 0x2021), None);
        assert_eq!(driver(0xffff, 0xffff), None);
    }

    #[test]
    fn names_differ() {
        let mut names: Vec<_> = DRIVERS.iter().map(|driver| driver.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DRIVERS.len());
    }
}
