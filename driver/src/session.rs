//! Devices opened together, in as few address spaces as the kernel allows.

use std::sync::Arc;

use crate::backend::BackendError;
#[cfg(feature = "iommufd")]
use crate::backend::vfio::Ioas;
use crate::backend::vfio::{self, Access, Container, NoIommu, Passed, Target, VfToken};
use crate::device::{Device, DeviceError};
use crate::dma::AddressSpace;
use crate::pci::Address;
use crate::pci::sysfs::Tree;

/// Opens devices through VFIO, sharing an address space among them where the kernel allows
/// it.
///
/// Devices in one address space share its IOVAs: a buffer placed for one can be given to
/// the other.
///
/// A session of [`Session::in_container`] or `Session::in_ioas` opens devices in the one address
/// space that it was given.
#[derive(Debug, Default)]
pub struct Session {
    methods: Methods,
    /// The address space that all devices are opened in.
    given: Option<Opener>,
    spaces: Vec<Shared>,
}

/// How a session may open devices.
#[derive(Debug, Clone, Copy)]
enum Methods {
    Through(Access),
    WithoutIommu,
}

impl Default for Methods {
    fn default() -> Self {
        Methods::Through(Access::Auto)
    }
}

/// One method to open devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Method {
    Type1,
    #[cfg(feature = "iommufd")]
    Iommufd,
    NoIommu,
}

impl Method {
    fn name(self) -> &'static str {
        match self {
            Method::Type1 => "type1",
            #[cfg(feature = "iommufd")]
            Method::Iommufd => "iommufd",
            Method::NoIommu => "noiommu",
        }
    }
}

impl Methods {
    /// Those to try, in order.
    fn list(self) -> &'static [Method] {
        match self {
            #[cfg(feature = "iommufd")]
            Methods::Through(Access::Auto) => &[Method::Type1, Method::Iommufd],
            #[cfg(not(feature = "iommufd"))]
            Methods::Through(Access::Auto) => &[Method::Type1],
            Methods::Through(Access::Type1) => &[Method::Type1],
            #[cfg(feature = "iommufd")]
            Methods::Through(Access::Iommufd) => &[Method::Iommufd],
            Methods::WithoutIommu => &[Method::NoIommu],
        }
    }
}

/// An address space of a session.
#[derive(Debug)]
struct Shared {
    opener: Opener,
    space: Arc<AddressSpace>,
}

/// What opens devices in one address space.
#[derive(Debug, Clone)]
enum Opener {
    Type1(Arc<Container>),
    #[cfg(feature = "iommufd")]
    Iommufd(Arc<Ioas>),
    NoIommu(Arc<NoIommu>),
}

impl Opener {
    fn new(method: Method) -> Result<Opener, BackendError> {
        Ok(match method {
            Method::Type1 => Opener::Type1(Container::new()?),
            #[cfg(feature = "iommufd")]
            Method::Iommufd => Opener::Iommufd(Ioas::new()?),
            Method::NoIommu => Opener::NoIommu(NoIommu::new()),
        })
    }

    fn method(&self) -> Method {
        match self {
            Opener::Type1(_) => Method::Type1,
            #[cfg(feature = "iommufd")]
            Opener::Iommufd(_) => Method::Iommufd,
            Opener::NoIommu(_) => Method::NoIommu,
        }
    }

    fn open(
        &self,
        address: Address,
        token: Option<&VfToken>,
    ) -> Result<vfio::Device, BackendError> {
        match self {
            Opener::Type1(container) => container.open_with(address, token),
            #[cfg(feature = "iommufd")]
            Opener::Iommufd(ioas) => ioas.open_with(address, token),
            Opener::NoIommu(_) if token.is_some() => Err(BackendError::Unsupported {
                what: "a VF token".into(),
                by: "a session without an IOMMU".into(),
            }),
            // SAFETY: only a session of `Session::without_iommu` has this opener, and whoever
            // called that vouches for the addresses that its devices are given.
            Opener::NoIommu(space) => unsafe { space.open(address) },
        }
    }
}

impl Session {
    /// A session without devices, which finds out how to reach them: [`Access::Auto`].
    #[must_use]
    pub fn new() -> Session {
        Session::default()
    }

    /// A session without devices, which reaches them by this method.
    #[must_use]
    pub fn through(access: Access) -> Session {
        Session { methods: Methods::Through(access), ..Session::default() }
    }

    /// A session whose devices are opened in this container, such as one that another process
    /// opened and passed on ([`Container::from_fd`]).
    #[must_use]
    pub fn in_container(container: Arc<Container>) -> Session {
        let given = Some(Opener::Type1(container));
        Session { methods: Methods::Through(Access::Type1), given, ..Session::default() }
    }

    /// A session whose devices are opened in this address space of iommufd, such as one that
    /// other processes share ([`IoasOptions`](vfio::IoasOptions)).
    #[cfg(feature = "iommufd")]
    #[must_use]
    pub fn in_ioas(ioas: Arc<Ioas>) -> Session {
        let given = Some(Opener::Iommufd(ioas));
        Session { methods: Methods::Through(Access::Iommufd), given, ..Session::default() }
    }

    /// A session without devices, for devices without an IOMMU: they see physical addresses
    /// (VFIO's no-IOMMU mode).
    ///
    /// # Safety
    ///
    /// Nothing keeps a device opened in this session from reading and writing any memory of
    /// the machine, that of the kernel and of this process included. As long as one may start
    /// DMA, every address that it is given, through its registers or memory that it reads,
    /// must be that of memory that it may access in that way, and that memory must stay where
    /// it is. A safe write to a register can break this.
    #[must_use]
    pub unsafe fn without_iommu() -> Session {
        Session { methods: Methods::WithoutIommu, ..Session::default() }
    }

    /// Opens a device that is bound to vfio-pci: in an address space of this session if it
    /// can join one, else in a new one.
    ///
    /// # Errors
    ///
    /// As [`Container::open`], `Ioas::open` or [`NoIommu::open`]. With [`Access::Auto`]
    /// [`BackendError::NoAccess`] tells why each method failed, unless the reason is one for
    /// all of them, such as [`BackendError::AlreadyOpen`].
    pub fn open(&mut self, address: Address) -> Result<Device, DeviceError> {
        self.open_with(address, None)
    }

    /// Opens a device as [`Session::open`] does, with a VF token: a physical function whose
    /// virtual functions are to be opened with the same token, or one of these. A session of
    /// [`Session::without_iommu`] takes none.
    ///
    /// # Errors
    ///
    /// As [`Session::open`]; also when the token is not the right one, or nobody asks for one.
    pub fn open_with(
        &mut self,
        address: Address,
        token: Option<&VfToken>,
    ) -> Result<Device, DeviceError> {
        let methods = self.methods.list();
        if methods.len() > 1 {
            Target::translated(&Tree::new(), address)?;
        }
        let mut refusals = Vec::new();
        for &method in methods {
            match self.find(method, address, token) {
                Ok((device, opener, space)) => return self.join(device, opener, space),
                Err(error @ BackendError::AlreadyOpen { .. }) => return Err(error.into()),
                Err(error) if methods.len() == 1 => return Err(error.into()),
                Err(error) => {
                    log::info!("{address} is not opened through {}: {error}", method.name());
                    refusals.push((method.name(), error));
                }
            }
        }
        Err(BackendError::NoAccess { location: address.to_string(), refusals }.into())
    }

    /// Opens a device from a descriptor that another process opened and passed on: this process
    /// needs no right to the nodes. It is opened in an address space of this session if it can
    /// join one, else in a new one; the new one takes the right to `/dev/vfio/vfio` or
    /// `/dev/iommu`, which a session of [`Session::in_container`] or `Session::in_ioas` does not.
    ///
    /// # Errors
    ///
    /// As [`Container::open_passed`] or `Ioas::open_passed`, whichever the descriptor is for.
    pub fn open_passed(
        &mut self,
        address: Address,
        passed: Passed,
        token: Option<&VfToken>,
    ) -> Result<Device, DeviceError> {
        let method = match &passed {
            Passed::Group(_) | Passed::Device { .. } => Method::Type1,
            #[cfg(feature = "iommufd")]
            Passed::CharacterDevice(_) => Method::Iommufd,
        };
        if !self.methods.list().contains(&method) {
            return Err(BackendError::Unsupported {
                what: format!("opening {address} from {}", passed.name()),
                by: format!("a session that is for {}", self.methods.list()[0].name()),
            }
            .into());
        }
        let shared = self.spaces.iter().find(|shared| shared.opener.method() == method);
        let (opener, space) = match (shared, &self.given) {
            (Some(shared), _) => (shared.opener.clone(), Some(Arc::clone(&shared.space))),
            (None, Some(given)) => (given.clone(), None),
            (None, None) => (Opener::new(method)?, None),
        };
        let device = match &opener {
            Opener::Type1(container) => container.open_passed(address, passed, token)?,
            #[cfg(feature = "iommufd")]
            Opener::Iommufd(ioas) => ioas.open_passed(address, passed, token)?,
            Opener::NoIommu(_) => unreachable!("no descriptor has this method"),
        };
        self.join(device, opener, space)
    }

    /// Opens a device in an address space of the session, which is returned then, or by an
    /// opener that has none yet.
    fn find(
        &self,
        method: Method,
        address: Address,
        token: Option<&VfToken>,
    ) -> Result<(vfio::Device, Opener, Option<Arc<AddressSpace>>), BackendError> {
        for shared in self.spaces.iter().filter(|shared| shared.opener.method() == method) {
            match shared.opener.open(address, token) {
                Ok(device) => {
                    return Ok((device, shared.opener.clone(), Some(Arc::clone(&shared.space))));
                }
                Err(BackendError::NotShareable { location, reason }) if self.given.is_none() => {
                    log::info!("{location} gets an address space of its own: {reason}");
                }
                Err(error) => return Err(error),
            }
        }
        let opener = match &self.given {
            Some(given) => given.clone(),
            None => Opener::new(method)?,
        };
        Ok((opener.open(address, token)?, opener, None))
    }

    fn join(
        &mut self,
        device: vfio::Device,
        opener: Opener,
        space: Option<Arc<AddressSpace>>,
    ) -> Result<Device, DeviceError> {
        if let Some(space) = space {
            return Device::open_in(device, &space);
        }
        let device = Device::open(device)?;
        self.spaces.push(Shared { opener, space: Arc::clone(device.space()) });
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_iommu_mode_is_never_a_fallback() {
        for access in [Access::Auto, Access::Type1] {
            let methods = Methods::Through(access).list();
            assert!(!methods.contains(&Method::NoIommu));
            assert_eq!(methods[0], Method::Type1);
        }
        assert_eq!(Methods::WithoutIommu.list(), [Method::NoIommu]);
    }
}
