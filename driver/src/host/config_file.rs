//! Configuration space through sysfs, of a function that nobody needs to open.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::{HostError, Result, Sysfs};
use crate::pci::config::{CONVENTIONAL_SIZE, EXPRESS_SIZE};
use crate::pci::sysfs::SysfsError;
use crate::pci::{AccessError, Address, ConfigAccess, ConfigSpace, ConfigWrite, OutOfBounds};

/// What the kernel shows of configuration space to those without `CAP_SYS_ADMIN`: the header.
const PUBLIC_SIZE: u64 = 64;

/// A function's configuration space in sysfs, read and written as it is at the time.
#[derive(Debug)]
pub struct ConfigFile {
    file: File,
    visible: u64,
    whole: u64,
}

impl ConfigFile {
    /// Bytes of configuration space that the function has; more than [`ConfigAccess::size`]
    /// where the kernel does not show all of it to this process.
    #[must_use]
    pub fn whole(&self) -> u64 {
        self.whole
    }

    fn check(&self, offset: u16, len: usize) -> std::result::Result<(), OutOfBounds> {
        let end = u64::from(offset) + len as u64;
        if end <= self.visible {
            return Ok(());
        }
        Err(OutOfBounds { offset, len, size: self.visible })
    }
}

impl ConfigAccess for ConfigFile {
    fn size(&self) -> std::result::Result<u64, AccessError> {
        Ok(self.visible)
    }

    fn read(&self, offset: u16, data: &mut [u8]) -> std::result::Result<(), AccessError> {
        self.check(offset, data.len())?;
        Ok(self.file.read_exact_at(data, offset.into())?)
    }
}

impl ConfigWrite for ConfigFile {
    fn write(&self, offset: u16, data: &[u8]) -> std::result::Result<(), AccessError> {
        self.check(offset, data.len())?;
        Ok(self.file.write_all_at(data, offset.into())?)
    }
}

impl Sysfs {
    /// The function's configuration space, to be read.
    ///
    /// # Errors
    ///
    /// Fails when there is no such function, and when the file cannot be read.
    pub fn config(&self, address: Address) -> Result<ConfigSpace<ConfigFile>> {
        let path = self.tree().device_dir(address)?.join("config");
        let failed = |source| SysfsError::Read { path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        Ok(ConfigSpace::new(ConfigFile::of(file).map_err(failed)?))
    }

    /// The function's configuration space, to be read and written.
    ///
    /// The kernel and the function's driver write to it too: a change of a register is not
    /// one step.
    ///
    /// # Errors
    ///
    /// Fails when there is no such function, and when this process may not write the file.
    pub fn config_mut(&self, address: Address) -> Result<ConfigSpace<ConfigFile>> {
        let path: PathBuf = self.tree().device_dir(address)?.join("config");
        let opened = OpenOptions::new().read(true).write(true).open(&path);
        let file = opened.and_then(ConfigFile::of);
        let file = file.map_err(|source| HostError::write(path, "configuration space", source))?;
        Ok(ConfigSpace::new(file))
    }
}

impl ConfigFile {
    fn of(file: File) -> io::Result<ConfigFile> {
        let whole = file.metadata()?.len().min(EXPRESS_SIZE.into());
        // Who may not see more than the header finds the end of the file behind it.
        let mut byte = [0];
        let visible = match file.read_at(&mut byte, PUBLIC_SIZE) {
            Ok(0) => whole.min(PUBLIC_SIZE),
            Ok(_) => whole,
            Err(error) => return Err(error),
        };
        // A file that is not of sysfs may be shorter than any configuration space.
        if visible < PUBLIC_SIZE {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let whole = whole.max(CONVENTIONAL_SIZE.into());
        Ok(ConfigFile { file, visible, whole })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::fake::Fake;

    #[test]
    fn what_is_visible_is_read_and_bounded() {
        let fake = Fake::new();
        let address = fake.device("0000:00:05.0", 0x1234, 0x11e8, None, None);
        let path = fake.path("bus/pci/devices/0000:00:05.0/config");
        let config = fake.sysfs().config(address).unwrap();
        assert_eq!((config.vendor_id().unwrap(), config.size().unwrap()), (0x1234, 64));
        assert!(config.read_u8(64).is_err());
        let mut bytes = fs::read(&path).unwrap();
        bytes.resize(4096, 7);
        fs::write(&path, bytes).unwrap();
        let config = fake.sysfs().config_mut(address).unwrap();
        assert_eq!((config.size().unwrap(), config.read_u8(4095).unwrap()), (4096, 7));
        config.write_u16(0x04, 0x0006).unwrap();
        assert!(config.bus_master().unwrap());
        assert!(config.write_u16(4095, 0).is_err());
        fs::write(&path, [0; 63]).unwrap();
        assert!(fake.sysfs().config(address).is_err());
    }
}
