//! Keeping a function in full power.

use std::path::PathBuf;

use super::{Result, Sysfs};
use crate::pci::Address;
use crate::pci::sysfs::read_text;

/// Keeps the kernel from suspending a function until it is dropped: in a low-power state a
/// function answers no accesses to its BARs.
///
/// vfio-pci, as other drivers, leaves a function in D3hot that nobody has open (the kernel's
/// `Documentation/power/runtime_pm.rst`).
#[derive(Debug)]
pub struct Awake {
    sysfs: Sysfs,
    control: PathBuf,
    before: Option<String>,
}

impl Sysfs {
    /// Wakes a function up, and keeps it so.
    ///
    /// # Errors
    ///
    /// Fails when there is no such function, and when this process may not write the attribute
    /// `power/control` of one that the kernel may suspend.
    pub fn keep_awake(&self, address: Address) -> Result<Awake> {
        let control = self.tree().device_dir(address)?.join("power/control");
        let before = read_text(&control).ok().filter(|control| control != "on");
        if before.is_some() {
            self.write(&control, "on")?;
        }
        Ok(Awake { sysfs: self.clone(), control, before })
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        let Some(before) = &self.before else { return };
        if let Err(error) = self.sysfs.write(&self.control, before) {
            log::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fake::Fake;

    #[test]
    fn a_function_that_may_be_suspended_is_kept_awake_for_the_time() {
        let fake = Fake::new();
        let address = fake.device("0000:00:05.0", 0x1234, 0x11e8, None, None);
        let sysfs = fake.sysfs();
        drop(sysfs.keep_awake(address).unwrap());
        assert_eq!(fake.writes(), [""; 0], "there is nothing to write to");
        fs::create_dir(fake.path("bus/pci/devices/0000:00:05.0/power")).unwrap();
        let control = fake.path("bus/pci/devices/0000:00:05.0/power/control");
        for (before, writes) in [("auto", &["control=on", "control=auto"][..]), ("on", &[])] {
            fs::write(&control, format!("{before}\n")).unwrap();
            drop(sysfs.keep_awake(address).unwrap());
            assert_eq!(fake.writes(), writes);
        }
        assert!(sysfs.keep_awake("0000:00:1f.7".parse().unwrap()).is_err());
    }
}
