//! A machine for the tests: trees of the shape of `/sys`, `/dev` and `/proc`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use vfio_dma::host::Sysfs;

pub(super) struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    pub(super) fn new() -> Machine {
        let machine = Machine { dir: tempfile::tempdir().unwrap() };
        for path in ["sys/bus/pci/devices", "sys/bus/pci/drivers", "dev", "proc", "modules"] {
            fs::create_dir_all(machine.path(path)).unwrap();
        }
        machine
    }

    pub(super) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(path)
    }

    pub(super) fn sysfs(&self) -> Sysfs {
        Sysfs::at(self.path("sys"))
    }

    /// Writes a file, with the directories that lead to it.
    pub(super) fn file(&self, path: impl AsRef<Path>, text: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(super) fn remove(&self, path: impl AsRef<Path>) {
        fs::remove_file(self.path(path)).unwrap();
    }

    /// Adds a PCI function with one BAR.
    pub(super) fn device(
        &self,
        address: &str,
        vendor: u16,
        device: u16,
        driver: Option<&str>,
        group: Option<u32>,
    ) {
        let dir = PathBuf::from("sys/bus/pci/devices").join(address);
        self.file(dir.join("vendor"), format!("{vendor:#06x}\n"));
        self.file(dir.join("device"), format!("{device:#06x}\n"));
        self.file(dir.join("subsystem_vendor"), "0x1af4\n");
        self.file(dir.join("subsystem_device"), "0x1100\n");
        self.file(dir.join("class"), "0x00ff00\n");
        self.file(dir.join("revision"), "0x10\n");
        self.file(dir.join("resource"), "0xfea00000 0xfeafffff 0x40200\n");
        let mut config = [0; 64];
        config[0..2].copy_from_slice(&vendor.to_le_bytes());
        config[2..4].copy_from_slice(&device.to_le_bytes());
        self.file(dir.join("config"), config);
        let dir = self.path(dir);
        if let Some(driver) = driver {
            let target = self.path("sys/bus/pci/drivers").join(driver);
            fs::create_dir_all(&target).unwrap();
            symlink(target, dir.join("driver")).unwrap();
        }
        if let Some(group) = group {
            let group = self.path("sys/kernel/iommu_groups").join(group.to_string());
            fs::create_dir_all(group.join("devices")).unwrap();
            symlink(&dir, group.join("devices").join(address)).unwrap();
            symlink(&group, dir.join("iommu_group")).unwrap();
        }
    }
}
