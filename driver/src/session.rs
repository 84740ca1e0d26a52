//! Devices opened together, in as few address spaces as the kernel allows.

use std::sync::Arc;

use crate::backend::BackendError;
use crate::backend::vfio::{self, Access, Container, Ioas, NoIommu, Target};
use crate::device::{Device, DeviceError};
use crate::dma::AddressSpace;
use crate::pci::{Address, Sysfs};

/// Opens devices through VFIO, sharing an address space among them where the kernel allows
/// it.
///
/// Devices in one address space share its IOVAs: a buffer placed for one can be given to
/// the other.
#[derive(Debug, Default)]
pub struct Session {
    access: Access,
    spaces: Vec<Shared>,
}

/// An address space of a session.
#[derive(Debug)]
struct Shared {
    access: Access,
    opener: Opener,
    space: Arc<AddressSpace>,
}

/// What opens devices in one address space.
#[derive(Debug, Clone)]
enum Opener {
    Type1(Arc<Container>),
    Iommufd(Arc<Ioas>),
    NoIommu(Arc<NoIommu>),
}

impl Opener {
    fn open(&self, address: Address) -> Result<vfio::Device, BackendError> {
        match self {
            Opener::Type1(container) => container.open(address),
            Opener::Iommufd(ioas) => ioas.open(address),
            Opener::NoIommu(space) => space.open(address),
        }
    }
}

/// A way to open devices, and how to make an address space for it.
type Way = (Access, fn() -> Result<Opener, BackendError>);

const TYPE1: Way = (Access::Type1, || Container::new().map(Opener::Type1));
const IOMMUFD: Way = (Access::Iommufd, || Ioas::new().map(Opener::Iommufd));
const NOIOMMU: Way = (Access::NoIommu, || Ok(Opener::NoIommu(NoIommu::new())));

/// The ways to try, in order.
fn ways(access: Access) -> &'static [Way] {
    match access {
        Access::Auto => &[TYPE1, IOMMUFD],
        Access::Type1 => &[TYPE1],
        Access::Iommufd => &[IOMMUFD],
        Access::NoIommu => &[NOIOMMU],
    }
}

impl Session {
    /// A session without devices, which finds out how to reach them: [`Access::Auto`].
    #[must_use]
    pub fn new() -> Session {
        Session::default()
    }

    /// A session without devices, which reaches them in this way.
    #[must_use]
    pub fn through(access: Access) -> Session {
        Session { access, spaces: Vec::new() }
    }

    /// Opens a device that is bound to vfio-pci: in an address space of this session if it
    /// can join one, else in a new one.
    ///
    /// # Errors
    ///
    /// As [`Container::open`], [`Ioas::open`] or [`NoIommu::open`]. With [`Access::Auto`]
    /// [`BackendError::NoAccess`] tells why each way failed, unless the reason is one for
    /// all of them.
    pub fn open(&mut self, address: Address) -> Result<Device, DeviceError> {
        let ways = ways(self.access);
        if ways.len() > 1 {
            Target::translated(&Sysfs::new(), address)?;
        }
        let mut refusals = Vec::new();
        for &way in ways {
            match self.find(way, address) {
                Ok((device, opener, space)) => return self.join(way.0, device, opener, space),
                Err(error) if ways.len() == 1 => return Err(error.into()),
                Err(error) => {
                    log::info!("{address} is not opened through {}: {error}", way.0);
                    refusals.push((way.0, error));
                }
            }
        }
        Err(BackendError::NoAccess { location: address.to_string(), refusals }.into())
    }

    /// Opens a device in an address space of the session, which is returned then, or by an
    /// opener that has none yet.
    fn find(
        &self,
        (access, make): Way,
        address: Address,
    ) -> Result<(vfio::Device, Opener, Option<Arc<AddressSpace>>), BackendError> {
        for shared in self.spaces.iter().filter(|shared| shared.access == access) {
            match shared.opener.open(address) {
                Ok(device) => {
                    return Ok((device, shared.opener.clone(), Some(Arc::clone(&shared.space))));
                }
                Err(BackendError::NotShareable { location, reason }) => {
                    log::info!("{location} gets an address space of its own: {reason}");
                }
                Err(error) => return Err(error),
            }
        }
        let opener = make()?;
        Ok((opener.open(address)?, opener, None))
    }

    fn join(
        &mut self,
        access: Access,
        device: vfio::Device,
        opener: Opener,
        space: Option<Arc<AddressSpace>>,
    ) -> Result<Device, DeviceError> {
        if let Some(space) = space {
            return Device::open_in(device, &space);
        }
        let device = Device::open(device)?;
        self.spaces.push(Shared { access, opener, space: Arc::clone(device.space()) });
        Ok(device)
    }
}
