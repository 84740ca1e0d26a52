//! Devices opened together, in as few address spaces as the kernel allows.

use std::sync::Arc;

use crate::backend::vfio::Container;
use crate::backend::{Backend, BackendError};
use crate::device::{Device, DeviceError};
use crate::dma::AddressSpace;
use crate::pci::Address;

/// Opens devices through VFIO, sharing a container among them where the kernel allows it.
///
/// Devices in one container share its IOVAs: a buffer placed for one can be given to the
/// other.
#[derive(Debug, Default)]
pub struct Session {
    containers: Vec<(Arc<Container>, Arc<AddressSpace>)>,
}

impl Session {
    /// A session without devices.
    #[must_use]
    pub fn new() -> Session {
        Session::default()
    }

    /// Opens a device that is bound to vfio-pci: in a container of this session if its
    /// group can join one, else in a new one.
    ///
    /// # Errors
    ///
    /// As [`Container::open`].
    pub fn open(&mut self, address: Address) -> Result<Arc<Device>, DeviceError> {
        for (container, space) in &self.containers {
            match container.open(address) {
                Ok(device) => return Device::open_in(Arc::new(device), space),
                Err(BackendError::NotShareable { location, reason }) => {
                    log::info!("{location} gets a container of its own: {reason}");
                }
                Err(error) => return Err(error.into()),
            }
        }
        let container = Container::new()?;
        let backend: Arc<dyn Backend> = Arc::new(container.open(address)?);
        let device = Device::open(backend)?;
        self.containers.push((container, Arc::clone(device.space())));
        Ok(device)
    }
}
