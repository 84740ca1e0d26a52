//! A sysfs tree in a temporary directory, with the kernel's side of the attributes.
//!
//! Reads go to real files. A write does what the kernel's driver core does on it
//! (`drivers/base/bus.c`, `drivers/pci/pci-driver.c`): an override decides which driver
//! matches, a probe that no driver accepts still succeeds, a driver is attached only to a
//! function that has none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};

use super::Sysfs;
use crate::pci::Address;

pub(super) struct Fake {
    dir: tempfile::TempDir,
    kernel: Arc<Kernel>,
}

#[derive(Default)]
struct Kernel {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Ids that each driver matches without an override.
    drivers: BTreeMap<String, Vec<(u16, u16)>>,
    /// Drivers whose probe fails.
    refusing: BTreeSet<String>,
    /// Attributes whose writes fail, by `directory/name` or name.
    failing: BTreeMap<String, i32>,
    /// An attribute whose writes do not return.
    stalled: Option<String>,
    /// Whether a write waits, or has not come back from waiting.
    waiting: bool,
    /// What was written, as `attribute=value`.
    writes: Vec<String>,
}

impl Fake {
    pub(super) fn new() -> Fake {
        let dir = tempfile::tempdir().unwrap();
        for path in ["bus/pci/devices", "bus/pci/drivers", "kernel/iommu_groups", "proc"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        Fake { dir, kernel: Arc::default() }
    }

    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(super) fn sysfs(&self) -> Sysfs {
        let (root, kernel) = (self.path(""), self.kernel.clone());
        Sysfs {
            records: self.path("run"),
            rules: self.path("rules"),
            proc: self.path("proc"),
            dev: self.path("dev"),
            modprobe: vec![],
            write: Arc::new(move |path, value| kernel.write(&root, path, value)),
            ..Sysfs::at(self.path(""))
        }
    }

    /// Adds a driver that matches these ids.
    pub(super) fn register(&self, driver: &str, ids: &[(u16, u16)]) {
        fs::create_dir_all(self.path("bus/pci/drivers").join(driver)).unwrap();
        let mut state = self.kernel.state.lock().unwrap();
        state.drivers.entry(driver.into()).or_default().extend(ids);
    }

    /// Adds a function, and the driver that it is bound to, which then matches its ids.
    pub(super) fn device(
        &self,
        address: &str,
        vendor: u16,
        device: u16,
        driver: Option<&str>,
        group: Option<u32>,
    ) -> Address {
        let dir = self.path("bus/pci/devices").join(address);
        fs::create_dir_all(&dir).unwrap();
        for (name, text) in [
            ("vendor", format!("{vendor:#06x}\n")),
            ("device", format!("{device:#06x}\n")),
            ("subsystem_vendor", "0x1af4\n".into()),
            ("subsystem_device", "0x1100\n".into()),
            ("class", "0x00ff00\n".into()),
            ("revision", "0x10\n".into()),
            ("numa_node", "-1\n".into()),
            ("driver_override", "(null)\n".into()),
            ("resource", "0x0000000000000000 0x0000000000000000 0x0000000000000000\n".repeat(7)),
        ] {
            fs::write(dir.join(name), text).unwrap();
        }
        let mut config = [0; 64];
        config[0..2].copy_from_slice(&vendor.to_le_bytes());
        config[2..4].copy_from_slice(&device.to_le_bytes());
        fs::write(dir.join("config"), config).unwrap();
        if let Some(driver) = driver {
            let ids = [(vendor, device)];
            self.register(driver, if driver == "vfio-pci" { &[] } else { &ids });
            symlink(self.path("bus/pci/drivers").join(driver), dir.join("driver")).unwrap();
        }
        if let Some(group) = group {
            let group = self.path("kernel/iommu_groups").join(group.to_string());
            fs::create_dir_all(group.join("devices")).unwrap();
            symlink(&dir, group.join("devices").join(address)).unwrap();
            symlink(&group, dir.join("iommu_group")).unwrap();
        }
        address.parse().unwrap()
    }

    /// Adds a device below a function, with its node.
    pub(super) fn node(&self, address: &str, path: &str, class: &str, number: &str, node: &str) {
        self.class_device(
            &self.path("bus/pci/devices").join(address).join(path),
            class,
            number,
            node,
        );
    }

    /// Adds a block device that is below no function.
    pub(super) fn class_block(&self, name: &str, number: &str) {
        self.class_device(&self.path("class/block").join(name), "block", number, name);
    }

    fn class_device(&self, dir: &Path, class: &str, number: &str, node: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("dev"), format!("{number}\n")).unwrap();
        fs::write(dir.join("uevent"), format!("MAJOR=1\nDEVNAME={node}\n")).unwrap();
        symlink(Path::new("/sys/class").join(class), dir.join("subsystem")).unwrap();
    }

    pub(super) fn set_override(&self, address: &str, driver: &str) {
        let path = self.path("bus/pci/devices").join(address).join("driver_override");
        fs::write(path, format!("{driver}\n")).unwrap();
    }

    /// Makes the driver's probe fail.
    pub(super) fn refuse(&self, driver: &str) {
        self.kernel.state.lock().unwrap().refusing.insert(driver.into());
    }

    /// Makes writes to the attribute fail.
    pub(super) fn fail(&self, attribute: &str, errno: i32) {
        self.kernel.state.lock().unwrap().failing.insert(attribute.into(), errno);
    }

    /// Makes writes to the attribute wait for [`Fake::resume`].
    pub(super) fn stall(&self, attribute: &str) {
        self.kernel.state.lock().unwrap().stalled = Some(attribute.into());
    }

    /// Lets the write that waits go on, and returns when it took effect.
    pub(super) fn resume(&self) {
        let mut state = self.kernel.state.lock().unwrap();
        state.stalled = None;
        self.kernel.changed.notify_all();
        drop(self.kernel.changed.wait_while(state, |state| state.waiting).unwrap());
    }

    /// What was written since the last call, as `attribute=value`.
    pub(super) fn writes(&self) -> Vec<String> {
        std::mem::take(&mut self.kernel.state.lock().unwrap().writes)
    }

    /// A program that runs these shell commands.
    pub(super) fn script(&self, commands: &str) -> PathBuf {
        let name = format!("script-{}", fs::read_dir(self.path("")).unwrap().count());
        let path = self.path(name);
        // Written by another process: a descriptor of this one could be inherited by the
        // child of another test's thread, and a file open for writing cannot be run.
        let written = Command::new("sh")
            .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$2\" && chmod +x \"$2\"", "sh"])
            .arg(commands)
            .arg(&path)
            .status();
        assert!(written.unwrap().success());
        path
    }
}

impl Kernel {
    fn write(&self, root: &Path, path: &Path, value: &str) -> io::Result<()> {
        let name = path.file_name().unwrap().to_str().unwrap();
        let parent = path.parent().unwrap();
        let owner = parent.file_name().unwrap().to_str().unwrap();
        let attribute = match name {
            "bind" | "unbind" => format!("{owner}/{name}"),
            _ => name.to_owned(),
        };
        let mut state = self.state.lock().unwrap();
        state.writes.push(format!("{attribute}={value}"));
        if let Some(errno) = state.failing.get(&attribute) {
            return Err(io::Error::from_raw_os_error(*errno));
        }
        if state.stalled.as_ref() == Some(&attribute) {
            state.waiting = true;
            state = self.changed.wait_while(state, |state| state.stalled.is_some()).unwrap();
        }
        let result = state.apply(root, path, value);
        state.waiting = false;
        self.changed.notify_all();
        result
    }
}

impl State {
    /// The effect of a write on the tree.
    fn apply(&self, root: &Path, path: &Path, value: &str) -> io::Result<()> {
        let name = path.file_name().unwrap().to_str().unwrap();
        let parent = path.parent().unwrap();
        let owner = parent.file_name().unwrap().to_str().unwrap();
        let device = root.join("bus/pci/devices").join(value);
        match name {
            "driver_override" => {
                let text = if value.is_empty() { "(null)" } else { value };
                fs::write(path, format!("{text}\n"))
            }
            "unbind" => match fs::read_link(device.join("driver")) {
                Ok(driver) if driver == parent => fs::remove_file(device.join("driver")),
                _ => Err(io::Error::from_raw_os_error(libc::ENODEV)),
            },
            "bind" => {
                let free = !device.join("driver").is_symlink() && parent.exists();
                if !free || !self.matches(owner, &device) {
                    return Err(io::Error::from_raw_os_error(libc::ENODEV));
                }
                if self.refusing.contains(owner) {
                    return Err(io::Error::from_raw_os_error(libc::EINVAL));
                }
                symlink(parent, device.join("driver"))
            }
            "drivers_probe" => {
                let taker = self.drivers.keys().find(|driver| {
                    self.matches(driver, &device) && !self.refusing.contains(*driver)
                });
                match taker {
                    Some(driver) if !device.join("driver").is_symlink() => {
                        symlink(parent.join("drivers").join(driver), device.join("driver"))
                    }
                    _ => Ok(()),
                }
            }
            // A function that is removed lies aside until a scan finds it again.
            "remove" => {
                fs::create_dir_all(root.join("removed"))?;
                fs::rename(parent, root.join("removed").join(owner))
            }
            "rescan" => {
                for entry in fs::read_dir(root.join("removed")).into_iter().flatten().flatten() {
                    let dir = root.join("bus/pci/devices").join(entry.file_name());
                    fs::rename(entry.path(), &dir)?;
                    let _ = fs::remove_file(dir.join("driver"));
                    fs::write(dir.join("driver_override"), "(null)\n")?;
                }
                Ok(())
            }
            "control" | "drivers_autoprobe" | "reset" | "reset_method" | "reset_subordinate" => {
                fs::write(path, format!("{value}\n"))
            }
            other => panic!("unexpected write to {other}"),
        }
    }

    fn matches(&self, driver: &str, device: &Path) -> bool {
        let attribute = |name| fs::read_to_string(device.join(name)).unwrap().trim().to_owned();
        match attribute("driver_override").as_str() {
            "(null)" => {
                let id = |name| u16::from_str_radix(attribute(name).trim_start_matches("0x"), 16);
                let id = (id("vendor").unwrap(), id("device").unwrap());
                self.drivers.get(driver).is_some_and(|ids| ids.contains(&id))
            }
            only => driver == only,
        }
    }
}
