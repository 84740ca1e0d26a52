//! Opening the device that a subcommand is to drive.

use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;

use vfio_dma::backend::vfio::{Access, VfToken};
use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::device::Device;
use vfio_dma::devices::{Driver, Identity, recognise};
use vfio_dma::host::{PciDeviceInfo, Sysfs};
use vfio_dma::pci::Address;
use vfio_dma::session::Session;
use vfio_dma_model::embedded::{Attached, Embedded, IommuOptions};

use super::remedy::explain;
use super::{Failure, output, usage};
use crate::rtl::{RtlConfig, RtlFunction, describe, is_description};

/// The device that needs nothing: the I/OAT model in this process.
pub(super) const MODEL: &str = "model";

/// Simulated hardware in this process.
type Simulated = Arc<Embedded<RtlFunction>>;

/// Starts hardware from its Verilog in this process.
///
/// # Errors
///
/// Fails when the description makes no sense, or the hardware cannot be built.
pub(super) fn simulated(description: &str) -> Result<(RtlConfig, Simulated), Failure> {
    let config = describe(description).map_err(usage)?;
    let config = config.ok_or_else(|| usage(format!("{description} describes no hardware")))?;
    let model = Embedded::with_function(config.start()?, IommuOptions::default());
    Ok((config, model))
}

/// How a device is reached.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct DeviceArg {
    /// How the device is reached; auto takes type1 or else iommufd, never noiommu
    /// [default: auto]
    #[arg(long, value_enum)]
    iommu: Option<IommuArg>,
    /// Bind the device to vfio-pci first, and restore its driver afterwards
    #[arg(long)]
    bind: bool,
    /// With --bind: take the device also when the host uses it
    #[arg(long, requires = "bind")]
    force: bool,
    /// The token of the physical function, a UUID: for a virtual function whose physical one is
    /// on vfio-pci, and to set it when that is opened
    #[arg(long, value_name = "UUID")]
    vf_token: Option<VfToken>,
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
        let what = match Place::of(device)? {
            Place::Model | Place::Simulated(_) => {
                "what is in this process has an IOMMU of its own and no driver"
            }
            Place::Socket(_) => "a device on a socket is reached through it alone",
            Place::Function(_) => return Ok(()),
        };
        let given = [
            ("--iommu", self.iommu.is_some()),
            ("--bind", self.bind),
            ("--force", self.force),
            ("--vf-token", self.vf_token.is_some()),
        ];
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
        model: impl FnMut() -> Result<Attached, Failure>,
        drive: impl FnOnce(&'static Driver, Device) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.open_often(device, model, known, |open| {
            let (driver, device) = open()?;
            drive(driver, device)
        })
    }

    /// Opens any device, whether or not it is one that is driven here, bound for the time if
    /// asked to.
    pub(super) fn open<T>(
        &self,
        device: &str,
        model: impl FnMut() -> Result<Attached, Failure>,
        drive: impl FnOnce(Device) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.open_often(device, model, |_, _| Ok(()), |open| drive(open()?.1))
    }

    /// As [`DeviceArg::drive`], for who opens the device again and again: with `open`, each time
    /// when the former one is closed.
    pub(super) fn drive_often<T>(
        &self,
        device: &str,
        model: impl FnMut() -> Result<Attached, Failure>,
        drive: impl FnOnce(&mut Open<'_, &'static Driver>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.open_often(device, model, known, drive)
    }

    /// Lets a device be opened that is recognised, before anything is changed, as one to drive.
    fn open_often<K: Copy, T>(
        &self,
        device: &str,
        mut model: impl FnMut() -> Result<Attached, Failure>,
        recognise: impl Fn(&str, &Identity) -> Result<K, Failure>,
        drive: impl FnOnce(&mut Open<'_, K>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let recognised =
            |device: Device| Ok((recognise(device.location(), &Identity::of(&device)?)?, device));
        match Place::of(device)? {
            Place::Model => drive(&mut || recognised(Device::open(model()?)?)),
            Place::Simulated(description) => {
                let (_, model) = simulated(description)?;
                drive(&mut || recognised(Device::open(model.attach()?)?))
            }
            Place::Socket(path) => {
                drive(&mut || recognised(Device::open(VfioUser::connect(path)?)?))
            }
            Place::Function(address) => self.open_bound(address, recognise, drive),
        }
    }

    /// Drives a PCI device through VFIO.
    fn open_bound<K: Copy, T>(
        &self,
        address: Address,
        recognise: impl Fn(&str, &Identity) -> Result<K, Failure>,
        drive: impl FnOnce(&mut Open<'_, K>) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let sysfs = Sysfs::new();
        let info = sysfs.device(address)?;
        let known = recognise(&address.to_string(), &identity(&info))?;
        let binding = match (self.bind, self.force) {
            (false, _) => None,
            (true, false) => Some(sysfs.bind(address)?),
            (true, true) => Some(sysfs.bind_in_use(address)?),
        };
        let outcome = drive(&mut || {
            // A session of its own each time: nothing of the last one is left.
            let mut session = self.iommu.unwrap_or(IommuArg::Auto).session();
            Ok((known, session.open_with(address, self.vf_token.as_ref())?))
        });
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

/// Opens a device, and says as what it is recognised.
pub(super) type Open<'a, K> = dyn FnMut() -> Result<(K, Device), Failure> + 'a;

/// Where a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// In this process.
    Model,
    /// In this process, from its Verilog: a description.
    Simulated(&'a str),
    /// On a socket that a vfio-user server listens on.
    Socket(&'a Path),
    /// On the bus.
    Function(Address),
}

impl Place<'_> {
    /// Reads DEVICE: `model`, a PCI address, the directory of a function in sysfs, or the path
    /// of a socket.
    pub(super) fn of(device: &str) -> Result<Place<'_>, Failure> {
        let path = Path::new(device);
        match device.parse() {
            _ if device == MODEL => Ok(Place::Model),
            _ if is_description(device) => Ok(Place::Simulated(device)),
            Ok(address) => Ok(Place::Function(address)),
            Err(_) if device.contains('/') => {
                Ok(in_sysfs(path).map_or(Place::Socket(path), Place::Function))
            }
            // In this directory.
            Err(_) if std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) => {
                Ok(Place::Socket(path))
            }
            Err(error) => Err(usage(format!(
                "{error}\n  remedy: DEVICE is a PCI address, the path of a vfio-user socket, or \
                 `model`"
            ))),
        }
    }
}

/// The function whose directory a path leads to, below /sys, whether it is there or not.
fn in_sysfs(path: &Path) -> Option<Address> {
    let resolved = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if !resolved.starts_with("/sys") {
        return None;
    }
    resolved.file_name()?.to_str()?.parse().ok()
}

/// What sysfs says of a function, for who looks for its driver.
pub(super) fn identity(info: &PciDeviceInfo) -> Identity {
    Identity { vendor: info.vendor, device: info.device, class: info.class }
}

/// The driver of a device.
pub(super) fn known(location: &str, identity: &Identity) -> Result<&'static Driver, Failure> {
    recognise(identity).map(|known| known.driver).ok_or_else(|| {
        format!(
            "{location} is {identity}, which is not a device that vfio-dma drives\n  \
             remedy: `{}` marks those it drives; `{} --recipe FILE` moves data through any",
            output::as_typed("vfio-dma list"),
            output::as_typed("vfio-dma loopback")
        )
        .into()
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_device_is_an_address_a_socket_or_the_model() {
        let address = "0000:00:05.0".parse().unwrap();
        assert_eq!(Place::of("model").unwrap(), Place::Model);
        for text in ["litepcie,width=64", "rtl,top=t,file=./a.sv"] {
            assert_eq!(Place::of(text).unwrap(), Place::Simulated(text));
        }
        assert_eq!(Place::of("0000:00:05.0").unwrap(), Place::Function(address));
        assert_eq!(Place::of("00:05.0").unwrap(), Place::Function(address));
        let absent = "/no/such/socket";
        assert_eq!(Place::of(absent).unwrap(), Place::Socket(Path::new(absent)));
        let error = Place::of("m.sock").unwrap_err().to_string();
        assert!(error.contains("\"m.sock\"") && error.contains("vfio-user socket"), "{error}");
        // A socket in the current directory needs no `./`.
        let name = format!("test-{}.sock", std::process::id());
        let listener = UnixListener::bind(&name).unwrap();
        assert_eq!(Place::of(&name).unwrap(), Place::Socket(Path::new(&name)));
        drop(listener);
        std::fs::remove_file(&name).unwrap();
    }

    #[test]
    fn what_is_no_socket_and_a_path_that_is_too_long_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let long = dir.path().join("x".repeat(120));
        for (path, text) in [
            (dir.path(), "there is a directory, not a socket"),
            (&file, "there is a file, not a socket"),
            (&long, "the path is too long for a socket\n  remedy: use a path of at most 107 bytes"),
        ] {
            let error = VfioUser::connect(path).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
            assert!(!error.contains("start a server"), "{error}");
        }
        let error = vfio_dma_model::vfio_user::Server::bind(&long).unwrap_err().to_string();
        assert!(
            error.contains("too long for a socket\n  remedy: use a path of at most"),
            "{error}"
        );
    }
}
