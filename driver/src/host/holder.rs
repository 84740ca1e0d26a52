//! Which processes have a device open.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Holder, PciDeviceInfo, Sysfs};
use crate::pci::sysfs::names;

impl Sysfs {
    /// The processes that have the function's VFIO nodes open, as far as this process may see.
    ///
    /// Taking vfio-pci away from a function waits in the kernel until its users close it.
    pub(super) fn holders(&self, device: &PciDeviceInfo) -> Vec<Holder> {
        let nodes = self.nodes(device);
        let mut holders = Vec::new();
        for pid in names(&self.proc).unwrap_or_default() {
            let Ok(id) = pid.parse() else { continue };
            let dir = self.proc.join(&pid);
            // A process that ended meanwhile, or that belongs to someone else, has no list.
            let Ok(files) = fs::read_dir(dir.join("fd")) else {
                continue;
            };
            let open = files.flatten().filter_map(|file| fs::read_link(file.path()).ok());
            if let Some(node) = open.into_iter().find(|target| nodes.contains(target)) {
                holders.push(Holder { pid: id, command: command(&dir), node });
            }
        }
        holders
    }

    /// The device nodes through which the function can be opened.
    fn nodes(&self, device: &PciDeviceInfo) -> Vec<PathBuf> {
        let cdevs = self.tree.vfio_nodes(device.address);
        device.group.iter().map(|group| group.node()).chain(cdevs).collect()
    }
}

pub(super) fn command(dir: &Path) -> String {
    fs::read_to_string(dir.join("comm")).map_or_else(|_| "?".into(), |name| name.trim().into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn holders_of_the_group_and_of_the_character_device_are_found() {
        let fake = Fake::new();
        let edu = fake.device("0000:00:05.0", 0x1234, 0x11e8, Some("vfio-pci"), Some(3));
        fs::create_dir_all(fake.path("bus/pci/devices/0000:00:05.0/vfio-dev/vfio1")).unwrap();
        for (pid, target) in [
            ("10", "/dev/vfio/3"),
            ("11", "/dev/vfio/devices/vfio1"),
            ("12", "/dev/vfio/33"),
            ("13", "/dev/vfio/devices/vfio0"),
        ] {
            let dir = fake.path("proc").join(pid);
            fs::create_dir_all(dir.join("fd")).unwrap();
            fs::write(dir.join("comm"), "qemu\n").unwrap();
            symlink("/dev/null", dir.join("fd/0")).unwrap();
            symlink(target, dir.join("fd/7")).unwrap();
        }
        fs::create_dir_all(fake.path("proc/self")).unwrap();
        let sysfs = fake.sysfs();
        let holders = sysfs.holders(&sysfs.device(edu).unwrap());
        let found: Vec<_> = holders.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "process 10 (qemu), through /dev/vfio/3",
                "process 11 (qemu), through /dev/vfio/devices/vfio1",
            ]
        );
    }
}
