//! Opening the device that a subcommand is to drive.

use std::sync::Arc;

use vfio_dma::backend::vfio::Access;
use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::device::Device;
use vfio_dma::devices::{Driver, recognise};
use vfio_dma::host::Sysfs;
use vfio_dma::pci::Address;
use vfio_dma::session::Session;
use vfio_dma_model::embedded::Embedded;

use super::Failure;
use super::remedy::explain;

/// The device that needs nothing: the I/OAT model in this process.
pub(super) const MODEL: &str = "model";

/// How a device is reached.
#[derive(Debug, clap::Args)]
pub(super) struct Reach {
    /// How the device is reached; auto takes type1 or else iommufd, never noiommu
    #[arg(long, value_enum, default_value_t = IommuArg::Auto)]
    iommu: IommuArg,
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

impl Reach {
    /// Opens a device by its PCI address, its socket or as `model`, and drives it: bound for
    /// the time if asked to. `model` makes the model in this process.
    pub(super) fn drive<T>(
        &self,
        device: &str,
        model: impl FnOnce() -> Result<Arc<Embedded>, Failure>,
        drive: impl FnOnce(Driver, Arc<Device>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match device {
            MODEL => drive(Driver::Ioat, Device::open(model()?)?),
            // A PCI address has no slash; the path of a socket in this directory begins
            // with ./
            path if path.contains('/') => {
                let device = Device::open(VfioUser::connect(path)?)?;
                let config = device.config();
                let driver = known(path, config.vendor_id()?, config.device_id()?)?;
                drive(driver, device)
            }
            address => self.drive_bound(address.parse()?, drive),
        }
    }

    /// Drives a PCI device through VFIO.
    fn drive_bound<T>(
        &self,
        address: Address,
        drive: impl FnOnce(Driver, Arc<Device>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let sysfs = Sysfs::new();
        let info = sysfs.device(address)?;
        let driver = known(&address.to_string(), info.vendor, info.device)?;
        let binding = if self.bind { Some(sysfs.bind(address)?) } else { None };
        let outcome = self
            .iommu
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

/// The driver of a device with these ids.
fn known(location: &str, vendor: u16, device: u16) -> Result<Driver, Failure> {
    recognise(vendor, device).map(|known| known.driver).ok_or_else(|| {
        format!(
            "{location} is {vendor:04x}:{device:04x}, which is not a device that vfio-dma drives\n  \
             remedy: `vfio-dma list` marks those it drives"
        )
        .into()
    })
}
