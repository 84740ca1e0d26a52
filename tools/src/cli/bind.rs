//! `vfio-dma bind` and `vfio-dma unbind`.

use std::process::ExitCode;

use vfio_dma::pci::{Address, Sysfs};

use super::{Failure, print};

/// Binds a device to vfio-pci, or gives it back to the driver that it had.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// PCI address, such as 0000:00:05.0
    device: Address,
}

/// Runs `bind`.
///
/// # Errors
///
/// Fails when a step is refused; those before it are taken back.
pub fn bind(args: &Args) -> Result<ExitCode, Failure> {
    let sysfs = Sysfs::system();
    let binding = sysfs.bind(args.device)?;
    let before = match (&binding.former, binding.changed()) {
        (_, false) => "already".to_string(),
        (Some(driver), true) => format!("taken from {driver}"),
        (None, true) => "it had no driver".to_string(),
    };
    let mut text = format!("{} is bound to vfio-pci ({before})", args.device);
    let hindering = sysfs.hindering_members(args.device)?;
    for (member, driver) in &hindering {
        text += &format!(
            "\n{member} of the same IOMMU group is bound to {driver}: vfio-dma bind {member}, before \
             the group can be used"
        );
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// Runs `unbind`.
///
/// # Errors
///
/// Fails when the device is not bound to vfio-pci, is in use, or a step is refused.
pub fn unbind(args: &Args) -> Result<ExitCode, Failure> {
    let unbinding = Sysfs::system().unbind(args.device)?;
    let driver = unbinding.driver.map_or("no driver".into(), |name| format!("the driver {name}"));
    print(&format!("{} is taken from vfio-pci and has {driver} now", args.device))?;
    Ok(ExitCode::SUCCESS)
}
