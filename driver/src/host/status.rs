//! Every function, and who uses it.

use super::{Holder, HostUse, PciDeviceInfo, Result, Sysfs};
use crate::pci::Address;

/// A function and who uses it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FunctionStatus {
    /// Identity, driver, group and NUMA node.
    pub info: PciDeviceInfo,
    /// What the host uses it for.
    pub uses: Vec<HostUse>,
    /// Processes that have it open through VFIO.
    pub holders: Vec<Holder>,
    /// Whether a rule binds it to vfio-pci whenever it appears ([`Sysfs::persist`]).
    pub is_persistent: bool,
}

impl FunctionStatus {
    /// Whether anybody uses it, as far as this process may see. A bridge is always in use.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        !self.uses.is_empty() || !self.holders.is_empty() || self.info.class.is_pci_bridge()
    }
}

impl Sysfs {
    /// Every PCI function with who uses it, in the order of addresses.
    ///
    /// # Errors
    ///
    /// Fails when sysfs cannot be read.
    pub fn status(&self) -> Result<Vec<FunctionStatus>> {
        let mut all = Vec::new();
        for info in self.enumerate()? {
            let address = info.address;
            match self.with_users(info) {
                Ok(status) => all.push(status),
                // It left meanwhile.
                Err(error) if self.tree().device_dir(address).is_err() => log::debug!("{error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// One function with who uses it.
    ///
    /// # Errors
    ///
    /// Fails when there is no such function, and when sysfs cannot be read.
    pub fn status_of(&self, address: Address) -> Result<FunctionStatus> {
        self.with_users(self.device(address)?)
    }

    fn with_users(&self, info: PciDeviceInfo) -> Result<FunctionStatus> {
        let uses = self.uses_of(&info)?;
        let holders = self.holders(&info);
        let is_persistent = self.persistent(info.address).is_some();
        Ok(FunctionStatus { info, uses, holders, is_persistent })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::fake::Fake;

    #[test]
    fn users_are_the_hosts_or_those_of_vfio() {
        let fake = Fake::new();
        fake.device("0000:00:05.0", 0x1234, 0x11e8, Some("vfio-pci"), Some(3));
        let disk = fake.device("0000:00:06.0", 0x1b36, 0x0010, Some("nvme"), Some(4));
        fake.device("0000:00:07.0", 0x1b36, 0x0005, None, None);
        fake.node("0000:00:06.0", "nvme/nvme0/nvme0n1", "block", "259:1", "nvme0n1");
        for (pid, target) in [("10", "/dev/vfio/3"), ("11", "/dev/nvme0n1")] {
            let dir = fake.path("proc").join(pid);
            fs::create_dir_all(dir.join("fd")).unwrap();
            fs::write(dir.join("comm"), "program\n").unwrap();
            symlink(target, dir.join("fd/3")).unwrap();
        }
        let sysfs = fake.sysfs();
        sysfs.persist(disk).unwrap();
        let status = sysfs.status().unwrap();
        let [edu, disk, other] = &status[..] else { panic!("{status:?}") };
        assert!(edu.uses.is_empty() && edu.holders.len() == 1 && edu.is_in_use());
        assert!(disk.uses.len() == 1 && disk.holders.is_empty() && disk.is_persistent);
        assert!(!other.is_in_use() && !other.is_persistent);
    }
}
