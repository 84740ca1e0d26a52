//! The steps that binding is made of: a function's driver and its override.

use std::fs;
use std::path::PathBuf;

use super::{HostError, Result, Sysfs};
use crate::pci::Address;
use crate::pci::sysfs::{VFIO_PCI, read_text};

impl Sysfs {
    /// Binds a certain driver, of those that match the function.
    pub(super) fn attach(&self, address: Address, driver: &str) -> Result<()> {
        let bind = self.driver_dir(driver).join("bind");
        match self.write(&bind, &address.to_string()) {
            Err(HostError::Write { source, .. }) => {
                // Its module may have been unloaded: a probe has the kernel look for another.
                log::debug!("{}: {source}", bind.display());
                self.probe(address)
            }
            result => result,
        }
    }

    /// Takes the driver away that the function has now, if any.
    pub(super) fn detach(&self, address: Address) -> Result<()> {
        match self.tree.driver(address)? {
            None => Ok(()),
            Some(driver) => {
                self.write(&self.driver_dir(&driver).join("unbind"), &address.to_string())
            }
        }
    }

    /// Has the kernel look for a driver. The write succeeds also when none accepts.
    pub(super) fn probe(&self, address: Address) -> Result<()> {
        self.write(&self.tree.root().join("bus/pci/drivers_probe"), &address.to_string())
    }

    pub(super) fn expect_driver(&self, address: Address, wanted: Option<&str>) -> Result<()> {
        let found = self.tree.driver(address)?;
        if found.as_deref() == wanted {
            return Ok(());
        }
        let wanted = wanted.unwrap_or("no driver").to_owned();
        Err(HostError::WrongDriver { address, wanted, found })
    }

    pub(super) fn driver_override(&self, address: Address) -> Result<Option<String>> {
        let text = read_text(&self.override_path(address)?)?;
        Ok(Some(text).filter(|text| !text.is_empty() && text != "(null)"))
    }

    /// An empty line clears the override.
    pub(super) fn set_override(&self, address: Address, driver: Option<&str>) -> Result<()> {
        self.write(&self.override_path(address)?, driver.unwrap_or_default())
    }

    fn override_path(&self, address: Address) -> Result<PathBuf> {
        Ok(self.tree.device_dir(address)?.join("driver_override"))
    }

    /// Fails early, with the file's name, for a user who may not write it.
    pub(super) fn check_permission(&self, address: Address) -> Result<()> {
        let path = self.override_path(address)?;
        match fs::OpenOptions::new().write(true).open(&path) {
            Ok(_) => Ok(()),
            Err(source) => Err(HostError::write(path, VFIO_PCI, source)),
        }
    }
}
