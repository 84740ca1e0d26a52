//! The configuration space of a device behind a backend.

use super::{Backend, BackendError, Region};
use crate::pci::{AccessError, ConfigAccess, ConfigWrite, PciError};

impl ConfigAccess for dyn Backend + '_ {
    fn size(&self) -> Result<u64, AccessError> {
        Ok(self.region_info(Region::Config)?.size)
    }

    fn read(&self, offset: u16, data: &mut [u8]) -> Result<(), AccessError> {
        Ok(self.region_read(Region::Config, u64::from(offset), data)?)
    }
}

impl ConfigWrite for dyn Backend + '_ {
    fn write(&self, offset: u16, data: &[u8]) -> Result<(), AccessError> {
        Ok(self.region_write(Region::Config, u64::from(offset), data)?)
    }
}

/// The backend's own error, where it is what kept configuration space from being reached.
pub(crate) fn backend_error(error: PciError) -> Result<BackendError, PciError> {
    match error {
        PciError::Access(error) => error.downcast().map(|error| *error).map_err(PciError::Access),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::ConfigSpace;
    use crate::testing::{NoRegisters, Scripted};

    #[test]
    fn an_error_of_the_backend_is_found_again() {
        let refused: AccessError = BackendError::NoRegion { region: Region::Config }.into();
        let error = PciError::Access(refused);
        assert!(matches!(error.access(), Some(BackendError::NoRegion { .. })));
        assert_eq!(error.to_string(), "the device has no configuration space");
        assert!(matches!(backend_error(error), Ok(BackendError::NoRegion { .. })));
        let other = backend_error(PciError::Access("no reply".into()));
        assert_eq!(other.unwrap_err().to_string(), "no reply");
        assert!(backend_error(PciError::Gone { value: u32::MAX }).is_err());
    }

    #[test]
    fn configuration_space_is_read_and_written_through_the_backend() {
        let backend = Scripted::new((0x1234, 0x11e8), |_| NoRegisters).attach();
        let config = ConfigSpace::new(&backend as &dyn Backend);
        assert_eq!((config.vendor_id().unwrap(), config.size().unwrap()), (0x1234, 4096));
        config.set_bus_master(true).unwrap();
        assert_eq!(backend.config()[4], 6, "memory space stays on");
    }
}
