//! Binding a device to vfio-pci, and giving it back.
//!
//! The way is `driver_override`: the one device gets vfio-pci, others with its ids do not.
//! A file in `/run/vfio-dma` remembers the former driver, so that another process can
//! restore it; the directory is gone after a reboot, as the binding is.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use super::{Address, Result, Sysfs, SysfsError, read};

const VFIO_PCI: &str = "vfio-pci";

/// What [`Sysfs::bind`] did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Binding {
    /// The device.
    pub address: Address,
    /// The driver that it had.
    pub former: Option<String>,
    changed: bool,
}

impl Binding {
    /// Whether the device was bound to something else before.
    #[must_use]
    pub fn changed(&self) -> bool {
        self.changed
    }
}

/// What [`Sysfs::unbind`] did.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unbinding {
    /// The device.
    pub address: Address,
    /// The driver that it has now.
    pub driver: Option<String>,
}

/// What a device was before it was bound.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Former {
    driver: Option<String>,
    driver_override: Option<String>,
}

impl Former {
    /// Two lines: the driver, then its override; empty for none.
    fn to_text(&self) -> String {
        let line = |text: &Option<String>| text.clone().unwrap_or_default();
        format!("{}\n{}\n", line(&self.driver), line(&self.driver_override))
    }

    fn from_text(text: &str) -> Former {
        let mut lines = text.lines().map(|line| Some(line.to_string()).filter(|l| !l.is_empty()));
        Former { driver: lines.next().flatten(), driver_override: lines.next().flatten() }
    }
}

impl Sysfs {
    /// Binds a device to vfio-pci, loading the module when it is not there.
    ///
    /// A device that is bound to vfio-pci already is left as it is.
    ///
    /// # Errors
    ///
    /// When a step fails, those before it are taken back.
    pub fn bind(&self, address: Address) -> Result<Binding> {
        let info = self.device(address)?;
        if info.driver.as_deref() == Some(VFIO_PCI) {
            return Ok(Binding { address, former: info.driver, changed: false });
        }
        if !self.driver_path(VFIO_PCI).exists() {
            self.load_vfio_pci(address)?;
        }
        let driver_override = self.driver_override(address)?;
        let former = Former { driver: info.driver.clone(), driver_override };
        self.change(address, &former).map_err(|first| match self.restore(address, &former) {
            Ok(_) => first,
            Err(second) => {
                SysfsError::Rollback { first: Box::new(first), second: Box::new(second) }
            }
        })?;
        Ok(Binding { address, former: info.driver, changed: true })
    }

    /// Takes a device from vfio-pci and gives it back to the driver that it had.
    ///
    /// Where it is not known what it had, the kernel chooses a driver.
    ///
    /// # Errors
    ///
    /// Fails when the device is not bound to vfio-pci, or a process has it open: the
    /// kernel would wait for that process without end.
    pub fn unbind(&self, address: Address) -> Result<Unbinding> {
        let info = self.device(address)?;
        if info.driver.as_deref() != Some(VFIO_PCI) {
            let driver =
                info.driver.map_or("no driver".into(), |name| format!("the driver {name}"));
            return Err(SysfsError::NotBound { address, driver });
        }
        if let Some(group) = info.iommu_group {
            check_idle(address, group)?;
        }
        let driver = match fs::read_to_string(self.state_path(address)) {
            Ok(text) => self.restore(address, &Former::from_text(&text))?,
            Err(_) => {
                self.release(address, None)?;
                // Without a former driver to name, a match is welcome but not needed.
                let probe = self.root.join("bus/pci/drivers_probe");
                if let Err(error) = write(&probe, &address.to_string()) {
                    log::info!("{address}: no driver takes it: {error}");
                }
                self.driver_of(address)?
            }
        };
        Ok(Unbinding { address, driver })
    }

    /// Every step of binding, each undone by [`Sysfs::restore`].
    fn change(&self, address: Address, former: &Former) -> Result<()> {
        let path = self.device_path(address);
        // The first write tells whether this user may do it at all.
        write(&path.join("driver_override"), VFIO_PCI)?;
        self.remember(address, former)?;
        if former.driver.is_some() {
            write(&path.join("driver/unbind"), &address.to_string())?;
        }
        let probed = write(&self.root.join("bus/pci/drivers_probe"), &address.to_string());
        let driver = self.driver_of(address)?;
        if driver.as_deref() == Some(VFIO_PCI) {
            return Ok(());
        }
        let reason = match probed {
            Err(SysfsError::File { source, .. }) => source.to_string(),
            _ => "the kernel's log says why".into(),
        };
        let remedy = if path.join("iommu_group").exists() {
            "dmesg | tail".into()
        } else {
            format!(
                "{address} has no IOMMU group: enable VT-d or AMD-Vi in the firmware and boot with \
                 intel_iommu=on (AMD: it is on by default)"
            )
        };
        Err(SysfsError::Refused { address, reason, remedy })
    }

    /// Puts override and driver back as they were; returns the driver.
    fn restore(&self, address: Address, former: &Former) -> Result<Option<String>> {
        self.release(address, former.driver_override.as_deref())?;
        if let Some(driver) = &former.driver
            && self.driver_of(address)?.as_ref() != Some(driver)
        {
            write(&self.driver_path(driver).join("bind"), &address.to_string())?;
        }
        self.driver_of(address)
    }

    /// Takes the device from vfio-pci, sets the override, and forgets what is remembered.
    fn release(&self, address: Address, driver_override: Option<&str>) -> Result<()> {
        let path = self.device_path(address);
        if self.driver_override(address)?.as_deref() != driver_override {
            // A line feed alone clears it.
            write(&path.join("driver_override"), driver_override.unwrap_or("\n"))?;
        }
        if self.driver_of(address)?.as_deref() == Some(VFIO_PCI) {
            write(&path.join("driver/unbind"), &address.to_string())?;
        }
        match fs::remove_file(self.state_path(address)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("{}: {error}", self.state_path(address).display());
            }
            _ => {}
        }
        Ok(())
    }

    fn driver_override(&self, address: Address) -> Result<Option<String>> {
        let text = read(&self.device_path(address).join("driver_override"))?;
        Ok(Some(text).filter(|text| text != "(null)" && !text.is_empty()))
    }

    fn state_path(&self, address: Address) -> std::path::PathBuf {
        self.state.join(address.to_string())
    }

    fn remember(&self, address: Address, former: &Former) -> Result<()> {
        let path = self.state_path(address);
        fs::create_dir_all(&self.state)
            .and_then(|()| fs::write(&path, former.to_text()))
            .map_err(|source| SysfsError::File { verb: "writing", path, source })
    }

    fn load_vfio_pci(&self, address: Address) -> Result<()> {
        let said = match Command::new("modprobe").arg(VFIO_PCI).output() {
            Ok(output) if output.status.success() => String::new(),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_string(),
            Err(error) => format!("modprobe: {error}"),
        };
        if self.driver_path(VFIO_PCI).exists() {
            Ok(())
        } else {
            Err(SysfsError::NoVfioPci { address, said })
        }
    }
}

/// Refuses a device whose group a process has open.
fn check_idle(address: Address, group: u32) -> Result<()> {
    let node = format!("/dev/vfio/{group}");
    match fs::OpenOptions::new().read(true).write(true).open(&node) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Err(SysfsError::Busy { address, node })
        }
        // Whatever else it says, it is not in use.
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    // Not `fs::write`: an attribute must exist, and is never made or cut.
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()))
        .map_err(|source| SysfsError::File { verb: "writing", path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    const ADDRESS: &str = "0000:00:05.0";

    /// A tree of plain files: writes are recorded, and no kernel acts on them, so binding
    /// always fails at its last step, where everything must be taken back.
    fn tree(driver: Option<&str>) -> (tempfile::TempDir, Sysfs, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let pci = dir.path().join("sys/bus/pci");
        let device = pci.join("devices").join(ADDRESS);
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(pci.join("drivers/vfio-pci")).unwrap();
        fs::create_dir_all(pci.join("drivers/host")).unwrap();
        for name in ["unbind", "bind"] {
            fs::write(pci.join("drivers/host").join(name), "").unwrap();
        }
        fs::write(pci.join("drivers_probe"), "").unwrap();
        for (name, value) in [
            ("vendor", "0x1234"),
            ("device", "0x11e8"),
            ("subsystem_vendor", "0x1af4"),
            ("subsystem_device", "0x1100"),
            ("class", "0x00ff00"),
            ("revision", "0x10"),
            ("driver_override", "(null)\n"),
        ] {
            fs::write(device.join(name), value).unwrap();
        }
        if let Some(driver) = driver {
            symlink(pci.join("drivers").join(driver), device.join("driver")).unwrap();
        }
        let sysfs = Sysfs::at(&dir.path().join("sys"), &dir.path().join("run"));
        (dir, sysfs, device)
    }

    #[test]
    fn a_refusal_takes_everything_back_and_says_why() {
        let (dir, sysfs, device) = tree(Some("host"));
        let error = sysfs.bind(ADDRESS.parse().unwrap()).unwrap_err();
        assert!(matches!(error, SysfsError::Refused { .. }), "{error}");
        assert!(error.to_string().contains("no IOMMU group"), "{error}");
        let unbound = fs::read_to_string(dir.path().join("sys/bus/pci/drivers/host/unbind"));
        assert_eq!(unbound.unwrap(), ADDRESS, "it had been taken from its driver");
        let override_now = fs::read_to_string(device.join("driver_override")).unwrap();
        assert!(override_now.starts_with('\n'), "cleared: {override_now:?}");
        assert_eq!(fs::read_dir(dir.path().join("run")).unwrap().count(), 0, "nothing remembered");
    }

    #[test]
    fn a_device_without_attributes_is_left_alone() {
        let (dir, sysfs, device) = tree(None);
        fs::remove_file(device.join("driver_override")).unwrap();
        let error = sysfs.bind(ADDRESS.parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("driver_override"), "{error}");
        assert!(!dir.path().join("run").exists());
        assert_eq!(fs::read_to_string(dir.path().join("sys/bus/pci/drivers_probe")).unwrap(), "");
    }

    #[test]
    fn bound_devices_are_not_bound_again_and_others_not_unbound() {
        let (_dir, sysfs, _device) = tree(Some("vfio-pci"));
        assert!(!sysfs.bind(ADDRESS.parse().unwrap()).unwrap().changed());
        let (_dir, sysfs, _device) = tree(Some("host"));
        let error = sysfs.unbind(ADDRESS.parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("the driver host"), "{error}");
    }

    #[test]
    fn what_is_remembered_is_read_back() {
        for former in [
            Former::default(),
            Former { driver: Some("e1000e".into()), driver_override: None },
            Former { driver: None, driver_override: Some("pci-stub".into()) },
        ] {
            assert_eq!(Former::from_text(&former.to_text()), former);
        }
        assert_eq!(Former::from_text(""), Former::default());
    }
}
