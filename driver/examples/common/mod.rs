//! What every example does before the part that it shows: its DEVICE, its help, its errors.

use std::path::Path;
use std::process::ExitCode;

use vfio_dma::device::Device;
use vfio_dma::session::Session;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Result<T> = std::result::Result<T, Error>;

const DEVICE: &str = "\
DEVICE is
  a PCI address, such as 0000:00:05.0, of a device that is bound to vfio-pci
    (`vfio-dma list` shows them, `vfio-dma bind ADDRESS` binds one);
  the path of a vfio-user socket, with a slash in it;
  or `model`: a model of the Intel I/OAT engine in this process, which needs nothing.
An example for one kind of device refuses others.";

/// Runs an example on the DEVICE that the command line names.
#[allow(dead_code, reason = "examples have one of both")]
pub(crate) fn run(about: &str, example: impl FnOnce(Device) -> Result<()>) -> ExitCode {
    run_or(about, None, example)
}

/// Runs an example on the DEVICE that the command line names, or else on the one that is found.
pub(crate) fn run_or(
    about: &str,
    find: Option<fn() -> Result<String>>,
    example: impl FnOnce(Device) -> Result<()>,
) -> ExitCode {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let place: Vec<String> = arguments.collect();
    let words = if find.is_some() { "[DEVICE]" } else { "DEVICE" };
    let usage = format!("Usage: {name} {words}\n\n{DEVICE}");
    let found = match (place.as_slice(), find) {
        ([word], _) if word == "--help" || word == "-h" => {
            println!("{about}\n\n{usage}");
            return ExitCode::SUCCESS;
        }
        ([place], _) if !place.starts_with('-') => Ok(place.clone()),
        ([], Some(find)) => find(),
        _ => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    match found.and_then(|place| open(&place)).and_then(example) {
        Ok(()) => ExitCode::SUCCESS,
        // The library's errors say what mends them, on a line of its own.
        Err(error) => {
            let name = Path::new(&name).file_name().unwrap_or_default().display();
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn open(place: &str) -> Result<Device> {
    match place {
        "model" => Ok(Device::open(Embedded::new(IoatConfig::default())?.attach()?)?),
        path if path.contains('/') => socket(path),
        address => Ok(Session::new().open(address.parse()?)?),
    }
}

#[cfg(feature = "vfio-user")]
fn socket(path: &str) -> Result<Device> {
    Ok(Device::open(vfio_dma::backend::vfio_user::VfioUser::connect(path)?)?)
}

#[cfg(not(feature = "vfio-user"))]
fn socket(path: &str) -> Result<Device> {
    Err(format!("{path}: a socket takes the feature vfio-user of vfio-dma").into())
}
