//! Binding that outlives a reboot: a rule of udev for each function.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{HostError, PciDeviceInfo, Result, Sysfs};
use crate::pci::Address;
use crate::pci::sysfs::VFIO_PCI;

impl Sysfs {
    /// Has udev bind the function to vfio-pci whenever it appears, as when the machine starts;
    /// returns the rule's file, below `/etc/udev/rules.d`.
    ///
    /// The rule names the function's vendor and device too: another card that comes to be at the
    /// address is left alone. It sets the function's `driver_override` before udev loads drivers
    /// (udev(7): rules are read in the order of their names); a function that has a driver by
    /// then, from the initial RAM disk, keeps it, unless the rule is in there too.
    ///
    /// # Errors
    ///
    /// Fails when there is no such function, and when the file cannot be written.
    pub fn persist(&self, address: Address) -> Result<PathBuf> {
        let info = self.device(address)?;
        let path = self.rule(address);
        let failed = |source| HostError::write(path.clone(), "a rule of udev", source);
        fs::create_dir_all(&self.rules).map_err(failed)?;
        // Written beside and renamed, so that udev never reads half of it.
        let draft = path.with_extension("new");
        fs::write(&draft, rule(&info)).map_err(failed)?;
        fs::rename(&draft, &path).map_err(failed)?;
        Ok(path)
    }

    /// Removes the rule that [`Sysfs::persist`] made; returns its file, if there was one. The
    /// function need not be there.
    ///
    /// # Errors
    ///
    /// Fails when the file cannot be removed.
    pub fn forget_persistent(&self, address: Address) -> Result<Option<PathBuf>> {
        let path = self.rule(address);
        match fs::remove_file(&path) {
            Ok(()) => Ok(Some(path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(HostError::write(path, "", error)),
        }
    }

    /// The rule that binds the function whenever it appears, if there is one.
    #[must_use]
    pub fn persistent(&self, address: Address) -> Option<PathBuf> {
        Some(self.rule(address)).filter(|path| path.exists())
    }

    fn rule(&self, address: Address) -> PathBuf {
        // Before 80-drivers.rules, which loads drivers.
        self.rules.join(format!("40-vfio-dma-{address}.rules"))
    }
}

fn rule(info: &PciDeviceInfo) -> String {
    let PciDeviceInfo { address, vendor, device, .. } = info;
    format!(
        "# {address} belongs to {VFIO_PCI} whenever it appears. Written by vfio-dma.\n\
         ACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"{address}\", \
         ATTR{{vendor}}==\"{vendor:#06x}\", ATTR{{device}}==\"{device:#06x}\", \
         ATTR{{driver_override}}=\"{VFIO_PCI}\", \
         RUN+=\"/bin/sh -c 'modprobe {VFIO_PCI}; \
         test -e /sys/bus/pci/devices/%k/driver || echo %k > /sys/bus/pci/drivers_probe'\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn a_rule_names_the_card_and_is_removed_again() {
        let fake = Fake::new();
        let address = fake.device("0000:00:05.0", 0x1234, 0x11e8, None, None);
        let sysfs = fake.sysfs();
        assert_eq!(sysfs.persistent(address), None);
        let path = sysfs.persist(address).unwrap();
        assert_eq!(sysfs.persistent(address), Some(path.clone()));
        let text = fs::read_to_string(&path).unwrap();
        let rules: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(rules.len(), 1, "{text}");
        for part in [
            "KERNEL==\"0000:00:05.0\", ATTR{vendor}==\"0x1234\", ATTR{device}==\"0x11e8\"",
            "ATTR{driver_override}=\"vfio-pci\"",
        ] {
            assert!(rules[0].contains(part), "{text}");
        }
        // The function may be gone.
        fs::remove_dir_all(fake.path("bus/pci/devices/0000:00:05.0")).unwrap();
        assert_eq!(sysfs.forget_persistent(address).unwrap(), Some(path));
        assert_eq!(sysfs.forget_persistent(address).unwrap(), None);
    }
}
