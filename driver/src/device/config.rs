//! The configuration space of an opened device, for reading and for writing.

use super::{DeviceError, Function};
use crate::pci::{AccessError, ConfigAccess, ConfigWrite};

/// Reads of an opened device's configuration space.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a>(pub(super) &'a Function);

/// Reads and writes of an opened device's configuration space.
///
/// The bus master bit keeps its value whatever is written:
/// [`Device::set_bus_master`](super::Device::set_bus_master) is what changes it. A write that
/// would keep the function from answering its BARs (memory space off, a power state other
/// than D0) is refused while one of them is mapped.
#[derive(Debug)]
pub struct ConfigMut<'a>(pub(super) &'a Function);

impl ConfigAccess for Config<'_> {
    fn size(&self) -> Result<u64, AccessError> {
        self.0.backend().size()
    }

    fn read(&self, offset: u16, data: &mut [u8]) -> Result<(), AccessError> {
        self.0.backend().read(offset, data)
    }
}

impl ConfigAccess for ConfigMut<'_> {
    fn size(&self) -> Result<u64, AccessError> {
        Config(self.0).size()
    }

    fn read(&self, offset: u16, data: &mut [u8]) -> Result<(), AccessError> {
        Config(self.0).read(offset, data)
    }
}

impl ConfigWrite for ConfigMut<'_> {
    fn write(&self, offset: u16, data: &[u8]) -> Result<(), AccessError> {
        self.0.write_config(offset, data).map_err(|error| match error {
            DeviceError::Backend(error) => error.into(),
            error => error.into(),
        })
    }
}
