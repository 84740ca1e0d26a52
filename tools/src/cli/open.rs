//! Opening the device that a subcommand is to drive.

use vfio_dma::backend::vfio::Access;
use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::device::Device;
use vfio_dma::devices::{Driver, Identity, recognise};
use vfio_dma::host::{PciDeviceInfo, Sysfs};
use vfio_dma::pci::Address;
use vfio_dma::session::Session;
use vfio_dma_model::embedded::Attached;

use super::remedy::explain;
use super::{Failure, output, usage};

/// The device that needs nothing: the I/OAT model in this process.
pub(super) const MODEL: &str = "model";

/// How a device is reached.
#[derive(Debug, clap::Args)]
pub(super) struct DeviceArg {
    /// How the device is reached; auto takes type1 or else iommufd, never noiommu
    /// [default: auto]
    #[arg(long, value_enum)]
    iommu: Option<IommuArg>,
    /// Bind the device to vfio-pci first, and restore its driver afterwards
    #[arg(long)]
    bind: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum IommuArg {
    Auto,
    /// The IOMMU group, in a VFIO container
    Type1,
    /// The device's own character device, in an address space of iommufd
    Iommufd,
    /// VFIO's no-IOMMU mode: the device can reach all memory
    Noiommu,
}

impl IommuArg {
    fn session(self) -> Session {
        match self {
            IommuArg::Auto => Session::through(Access::Auto),
            IommuArg::Type1 => Session::through(Access::Type1),
            IommuArg::Iommufd => Session::through(Access::Iommufd),
            // SAFETY: the user asked by name for the mode in which the device can reach all
            // memory; the drivers give it the addresses of buffers that were placed for it,
            // which stay locked and owned until it is done with them.
            IommuArg::Noiommu => unsafe { Session::without_iommu() },
        }
    }
}

impl DeviceArg {
    /// Refuses options that only a device of this machine has.
    ///
    /// # Errors
    ///
    /// Names the option and what it belongs to.
    pub(super) fn check(&self, device: &str) -> Result<(), Failure> {
        let what = match device {
            MODEL => "the model in this process has an IOMMU of its own and no driver",
            path if path.contains('/') => "a device on a socket is reached through it alone",
            _ => return Ok(()),
        };
        let given = [("--iommu", self.iommu.is_some()), ("--bind", self.bind)];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => {
                Err(usage(format!("{option} is for a PCI device of this machine: {what}")))
            }
            None => Ok(()),
        }
    }

    /// Opens a device by its PCI address, its socket or as `model`, and drives it: bound for
    /// the time if asked to. `model` makes the model in this process.
    pub(super) fn drive<T>(
        &self,
        device: &str,
        model: impl FnOnce() -> Result<Attached, Failure>,
        drive: impl FnOnce(&'static Driver, Device) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let device = match device {
            MODEL => Device::open(model()?)?,
            // A PCI address has no slash; the path of a socket in this directory begins
            // with ./
            path if path.contains('/') => Device::open(VfioUser::connect(path)?)?,
            address => return self.drive_bound(address.parse()?, drive),
        };
        let driver = known(device.location(), &Identity::of(&device)?)?;
        drive(driver, device)
    }

    /// Drives a PCI device through VFIO.
    fn drive_bound<T>(
        &self,
        address: Address,
        drive: impl FnOnce(&'static Driver, Device) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let sysfs = Sysfs::new();
        let info = sysfs.device(address)?;
        let driver = known(&address.to_string(), &identity(&info))?;
        let binding = if self.bind { Some(sysfs.bind(address)?) } else { None };
        let outcome = self
            .iommu
            .unwrap_or(IommuArg::Auto)
            .session()
            .open(address)
            .map_err(Failure::from)
            .and_then(|device| drive(driver, device));
        let restored = binding.as_ref().map_or(Ok(()), |binding| sysfs.restore(binding).map(drop));
        match (outcome, restored) {
            (outcome, Ok(())) => outcome,
            (Ok(_), Err(error)) => Err(error.into()),
            (Err(first), Err(second)) => {
                Err(format!("{}\n{}", explain(&*first), explain(&second)).into())
            }
        }
    }
}

/// What sysfs says of a function, for who looks for its driver.
pub(super) fn identity(info: &PciDeviceInfo) -> Identity {
    Identity { vendor: info.vendor, device: info.device, class: info.class }
}

/// The driver of a device.
fn known(location: &str, identity: &Identity) -> Result<&'static Driver, Failure> {
    recognise(identity).map(|known| known.driver).ok_or_else(|| {
        format!(
            "{location} is {identity}, which is not a device that vfio-dma drives\n  \
             remedy: `{}` marks those it drives",
            output::as_typed("vfio-dma list")
        )
        .into()
    })
}
