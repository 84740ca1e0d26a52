//! Functions that are removed and found again, as after an FPGA was programmed anew.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::{Former, HostError, PciDeviceInfo, Result, Sysfs};
use crate::pci::Address;
use crate::pci::sysfs::VFIO_PCI;

/// Between two scans of a bus for a function that is not back yet.
const PAUSE: Duration = Duration::from_millis(250);

/// A function that was removed.
#[derive(Debug, Clone)]
pub(super) struct Comeback {
    address: Address,
    /// As it was; none for one that an earlier process removed.
    before: Option<PciDeviceInfo>,
    /// Its driver and its override.
    former: Option<Former>,
    /// What it had before it was bound to vfio-pci.
    bound: Option<Former>,
}

/// A function that was to be found again.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Returned {
    /// The function.
    pub address: Address,
    /// As it was; none for one that was removed before.
    pub before: Option<PciDeviceInfo>,
    /// The driver that it had, if that is known.
    pub former_driver: Option<String>,
    /// As it is; none for one that did not come back.
    pub after: Option<PciDeviceInfo>,
}

impl Sysfs {
    /// Removes a function from the kernel's view, with those behind it if it is a bridge. What
    /// driver it had is recorded in `/run/vfio-dma`, for [`Sysfs::rescan`].
    ///
    /// # Errors
    ///
    /// Fails when there is no such function, when the host uses one of them, unless `in_use`, and
    /// when a process has one open through VFIO: the kernel would wait for it.
    pub fn remove(&self, address: Address, in_use: bool) -> Result<Vec<Address>> {
        let mut all = vec![address];
        all.extend(self.below(address)?);
        self.check_all(&all, in_use)?;
        for gone in self.take_out_all(&all)? {
            if let Some(former) = &gone.former
                && let Err(error) = self.remember_removed(gone.address, former)
            {
                log::warn!("{}: its driver is not recorded for a rescan: {error}", gone.address);
            }
        }
        Ok(all)
    }

    /// Removes a function, scans its bus, and gives it the driver that it had: how a card comes
    /// back whose BARs or ids have changed. One that was removed before is only looked for.
    ///
    /// Between the scan and the end of this the kernel may give the function to a driver that
    /// matches it. Linux 6.12 does so at once, whatever `drivers_autoprobe` says; Linux 7.3 heeds
    /// that.
    ///
    /// # Errors
    ///
    /// Fails as [`Sysfs::remove`] does, when it does not come back within `limit`, and when the
    /// driver that it had does not take it.
    pub fn rescan(&self, address: Address, in_use: bool, limit: Duration) -> Result<Vec<Returned>> {
        let gone = if self.tree().device_dir(address).is_ok() {
            let mut all = vec![address];
            all.extend(self.below(address)?);
            self.check_all(&all, in_use)?;
            self.take_out_all(&all)?
        } else {
            let former = self.recall_removed(address);
            let bound = self.recall(address);
            vec![Comeback { address, before: None, former, bound }]
        };
        self.bring_back(gone, limit)
    }

    /// Scans every bus, and says what was found.
    ///
    /// # Errors
    ///
    /// Fails when the scan cannot be asked for.
    pub fn rescan_all(&self) -> Result<Vec<PciDeviceInfo>> {
        let before: BTreeSet<Address> =
            self.enumerate()?.into_iter().map(|info| info.address).collect();
        self.write(&self.tree().root().join("bus/pci/rescan"), "1")?;
        let now = self.enumerate()?;
        Ok(now.into_iter().filter(|info| !before.contains(&info.address)).collect())
    }

    fn check_all(&self, all: &[Address], in_use: bool) -> Result<()> {
        for address in all {
            let info = self.device(*address)?;
            // With force too: the kernel waits for who has it open.
            self.check_not_open(&info)?;
            // What is behind a bridge is among them.
            if !in_use && !info.class.is_pci_bridge() {
                self.check_not_in_use(*address)?;
            }
        }
        Ok(())
    }

    /// Removes functions; those that went with a bridge are gone already.
    pub(super) fn take_out_all(&self, all: &[Address]) -> Result<Vec<Comeback>> {
        let mut gone = Vec::new();
        for address in all {
            let before = self.device(*address)?;
            let driver_override = self.driver_override(*address)?;
            let former = Some(Former { driver: before.driver.clone(), driver_override });
            let bound = self.recall(*address);
            gone.push(Comeback { address: *address, before: Some(before), former, bound });
        }
        for address in all {
            if let Ok(dir) = self.tree().device_dir(*address) {
                self.write(&dir.join("remove"), "1")?;
            }
        }
        Ok(gone)
    }

    /// Looks for functions until they are back, and gives them their drivers.
    pub(super) fn bring_back(&self, gone: Vec<Comeback>, limit: Duration) -> Result<Vec<Returned>> {
        let begin = Instant::now();
        let others: BTreeSet<Address> =
            self.enumerate()?.into_iter().map(|info| info.address).collect();
        let autoprobe = Autoprobe::off(self);
        // Once at least, however short the time is.
        let mut scanned = false;
        loop {
            let missing: Vec<&Comeback> =
                gone.iter().filter(|one| self.tree().device_dir(one.address).is_err()).collect();
            if missing.is_empty() || scanned && begin.elapsed() >= limit {
                break;
            }
            scanned = true;
            let buses: BTreeSet<PathBuf> =
                missing.iter().map(|one| self.rescan_attribute(one.address)).collect();
            for bus in buses {
                self.write(&bus, "1")?;
            }
            if gone.iter().any(|one| self.tree().device_dir(one.address).is_err()) {
                thread::sleep(PAUSE);
            }
        }
        let mut returned = Vec::new();
        let mut failure = None;
        for one in &gone {
            if let Err(error) = self.settle(one, begin.elapsed()) {
                log::debug!("{}: {error}", one.address);
                failure = failure.or(Some(error));
            }
        }
        drop(autoprobe);
        // What came besides, which nobody probed.
        for info in self.enumerate()? {
            let is_new = !others.contains(&info.address)
                && gone.iter().all(|one| one.address != info.address);
            if is_new && info.driver.is_none() {
                self.probe(info.address)?;
            }
        }
        for one in gone {
            let after = self.device(one.address).ok();
            let former_driver = one.former.and_then(|former| former.driver);
            let (address, before) = (one.address, one.before);
            returned.push(Returned { address, before, former_driver, after });
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(returned),
        }
    }

    /// Gives a function that is back the driver that it had.
    fn settle(&self, one: &Comeback, waited: Duration) -> Result<()> {
        let address = one.address;
        if self.tree().device_dir(address).is_err() {
            return Err(HostError::NotBack { address, waited });
        }
        match &one.former {
            // What is not known, and a function without a driver, is the kernel's to decide.
            None => self.probe(address)?,
            Some(Former { driver: None, .. }) => {}
            Some(Former { driver: Some(driver), .. }) if driver == VFIO_PCI => {
                // Somebody may use it already, through a driver that was quicker.
                self.bind(address)?;
                if let Some(bound) = &one.bound
                    && let Err(error) = self.remember(address, bound)
                {
                    log::warn!("{address}: its driver is not recorded for a later unbind: {error}");
                }
            }
            Some(Former { driver: Some(driver), driver_override }) => {
                if let Some(driver_override) = driver_override {
                    self.set_override(address, Some(driver_override))?;
                }
                if self.tree().driver(address)?.is_none() {
                    self.attach(address, driver)?;
                }
                self.expect_driver(address, Some(driver))?;
            }
        }
        self.forget_removed(address);
        Ok(())
    }

    /// What scans the bus that a function is on.
    fn rescan_attribute(&self, address: Address) -> PathBuf {
        let root = self.tree().root();
        let bus = format!("{:04x}:{:02x}", address.domain(), address.bus());
        let of_bus = root.join("class/pci_bus").join(bus).join("rescan");
        if of_bus.exists() { of_bus } else { root.join("bus/pci/rescan") }
    }
}

/// Keeps the kernel from giving new functions to drivers by itself, as long as it lives.
struct Autoprobe<'a>(Option<&'a Sysfs>);

impl Autoprobe<'_> {
    fn off(sysfs: &Sysfs) -> Autoprobe<'_> {
        let path = sysfs.tree().root().join("bus/pci/drivers_autoprobe");
        let is_on = crate::pci::sysfs::read_text(&path).is_ok_and(|text| text == "1");
        let changed = is_on && sysfs.write(&path, "0").is_ok();
        Autoprobe(changed.then_some(sysfs))
    }
}

impl Drop for Autoprobe<'_> {
    fn drop(&mut self) {
        let Some(sysfs) = self.0 else { return };
        let path = sysfs.tree().root().join("bus/pci/drivers_autoprobe");
        if let Err(error) = sysfs.write(&path, "1") {
            log::error!("{error}: the kernel gives new functions no drivers");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fake::Fake;
    use super::*;

    const BDF: &str = "0000:00:05.0";
    const LIMIT: Duration = Duration::from_millis(1);

    fn machine(driver: Option<&str>) -> (Fake, Address) {
        let fake = Fake::new();
        fake.register("vfio-pci", &[]);
        fs::write(fake.path("bus/pci/drivers_autoprobe"), "1\n").unwrap();
        let address = fake.device(BDF, 0x1234, 0x11e8, driver, None);
        (fake, address)
    }

    #[test]
    fn a_function_of_vfio_pci_comes_back_so_and_its_former_driver_is_known_still() {
        let (fake, address) = machine(Some("edu"));
        let sysfs = fake.sysfs();
        sysfs.bind(address).unwrap();
        let _ = fake.writes();
        let back = sysfs.rescan(address, false, LIMIT).unwrap();
        assert_eq!(back[0].after.as_ref().unwrap().driver.as_deref(), Some("vfio-pci"));
        assert_eq!(
            fake.writes(),
            [
                "remove=1",
                "drivers_autoprobe=0",
                "rescan=1",
                "driver_override=vfio-pci",
                "drivers_probe=0000:00:05.0",
                "drivers_autoprobe=1",
            ]
        );
        assert_eq!(sysfs.unbind(address).unwrap().driver.as_deref(), Some("edu"));
    }

    #[test]
    fn a_later_process_knows_what_was_removed() {
        let (fake, address) = machine(Some("edu"));
        assert_eq!(fake.sysfs().remove(address, false).unwrap(), [address]);
        assert!(fake.sysfs().device(address).is_err());
        let back = fake.sysfs().rescan(address, false, LIMIT).unwrap();
        assert_eq!(back[0].before, None);
        assert_eq!(back[0].after.as_ref().unwrap().driver.as_deref(), Some("edu"));
        assert_eq!(fake.sysfs().recall_removed(address), None);
    }

    #[test]
    fn a_function_without_a_driver_comes_back_without_one() {
        let (fake, address) = machine(None);
        fake.register("edu", &[(0x1234, 0x11e8)]);
        let back = fake.sysfs().rescan(address, false, LIMIT).unwrap();
        assert_eq!(back[0].after.as_ref().unwrap().driver, None);
    }

    #[test]
    fn one_that_does_not_come_back_is_an_error_and_the_kernel_probes_again() {
        let (fake, address) = machine(None);
        let sysfs = fake.sysfs();
        fs::remove_dir_all(fake.path("bus/pci/devices").join(BDF)).unwrap();
        let error = sysfs.rescan(address, false, LIMIT).unwrap_err();
        assert!(matches!(error, HostError::NotBack { .. }), "{error}");
        let autoprobe = fs::read_to_string(fake.path("bus/pci/drivers_autoprobe")).unwrap();
        assert_eq!(autoprobe, "1\n");
    }
}
