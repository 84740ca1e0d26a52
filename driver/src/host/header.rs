//! The beginning of a function's configuration space.

use std::fs;
use std::io::Read as _;

use super::{Result, Sysfs};
use crate::pci::sysfs::SysfsError;
use crate::pci::{AccessError, Address, ConfigAccess, ConfigSpace};

/// A copy of a function's configuration header.
#[derive(Debug, Clone)]
pub struct ConfigHeader([u8; 64]);

impl ConfigAccess for ConfigHeader {
    fn size(&self) -> std::result::Result<u64, AccessError> {
        self.0[..].size()
    }

    fn read(&self, offset: u16, data: &mut [u8]) -> std::result::Result<(), AccessError> {
        self.0[..].read(offset, data)
    }
}

impl Sysfs {
    /// The first 64 bytes of the function's configuration space: what sysfs lets everyone read.
    ///
    /// # Errors
    ///
    /// Fails when there is no such function, and when the file cannot be read or is shorter.
    pub fn config_header(&self, address: Address) -> Result<ConfigSpace<ConfigHeader>> {
        let path = self.tree.device_dir(address)?.join("config");
        let mut header = [0; 64];
        fs::File::open(&path)
            .and_then(|mut file| file.read_exact(&mut header))
            .map_err(|source| SysfsError::Read { path, source })?;
        Ok(ConfigSpace::new(ConfigHeader(header)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;

    #[test]
    fn the_configuration_header_is_read_and_bounded() {
        let fake = Fake::new();
        let address = fake.device("0000:00:05.0", 0x1234, 0x11e8, None, None);
        let config = fake.sysfs().config_header(address).unwrap();
        assert_eq!(config.vendor_id().unwrap(), 0x1234);
        assert_eq!(config.device_id().unwrap(), 0x11e8);
        assert_eq!(config.size().unwrap(), 64);
        assert!(config.read_u8(64).is_err());
    }
}
