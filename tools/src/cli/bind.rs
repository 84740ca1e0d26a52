//! `vfio-dma bind`: hands a device to vfio-pci.

use std::fmt::Write as _;
use std::process::ExitCode;

use vfio_dma::host::{Binding, Sysfs};
use vfio_dma::pci::Address;
use vfio_dma::pci::sysfs::SysfsError;

use super::remedy::explain;
use super::{Failure, output};

/// Bind a device to vfio-pci; its driver is remembered for `unbind`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of the device, such as 0000:00:05.0
    #[arg(value_name = "BDF")]
    pub address: String,
    /// Take the device also when the host uses it, such as a disk with a mounted file system:
    /// what uses it fails, and data that was not written yet is lost
    #[arg(long)]
    pub force: bool,
}

/// Binds the device.
///
/// # Errors
///
/// Fails when there is no such device, when the host uses it, and when it cannot be bound; it
/// is as before then.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let sysfs = Sysfs::new();
    let address: Address = args.address.parse()?;
    let binding = if args.force { sysfs.bind_in_use(address)? } else { sysfs.bind(address)? };
    output::print(&describe(&binding))?;
    // The binding itself worked; what follows would fail when the device is opened.
    match sysfs.tree().viability(address).and_then(|viability| viability.check()) {
        Err(warning @ (SysfsError::NoGroup { .. } | SysfsError::GroupNotViable { .. })) => {
            output::complain(&format!("warning: it cannot be opened yet: {}", explain(&warning)));
        }
        result => result?,
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(binding: &Binding) -> String {
    let mut text = format!("{}: ", binding.address);
    match binding.former.as_ref().map(|former| former.driver.as_deref()) {
        None => text.push_str("was bound to vfio-pci already"),
        Some(None) => text.push_str("bound to vfio-pci; it had no driver before"),
        Some(Some(driver)) => {
            // Writing to a String cannot fail.
            let _ = write!(text, "bound to vfio-pci; its driver was {driver}");
        }
    }
    match &binding.group {
        Some(group) if group.noiommu => text.push_str(", no IOMMU"),
        Some(group) => {
            let _ = write!(text, ", IOMMU group {}", group.number);
        }
        None => text.push_str(", no IOMMU group"),
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use vfio_dma::host::Former;
    use vfio_dma::pci::sysfs::IommuGroup;

    use super::*;

    #[test]
    fn the_line_tells_the_former_driver_and_the_group() {
        let group = IommuGroup { number: 3, noiommu: false, members: vec![] };
        let former = Former { driver: Some("edu".into()), driver_override: None };
        let address = "0000:00:05.0".parse().unwrap();
        let binding = Binding { address, former: Some(former), group: Some(group) };
        assert_eq!(
            describe(&binding),
            "0000:00:05.0: bound to vfio-pci; its driver was edu, IOMMU group 3\n"
        );
        assert_eq!(
            describe(&Binding { former: None, group: None, ..binding }),
            "0000:00:05.0: was bound to vfio-pci already, no IOMMU group\n"
        );
    }

    #[test]
    fn a_malformed_and_an_unknown_address_are_told_apart() {
        let run = |address: &str| {
            run(&Args { address: address.into(), force: false }).unwrap_err().to_string()
        };
        assert!(run("5").contains("\"5\" is not a PCI address"));
        assert!(run("ffff:ff:1f.7").starts_with("no PCI device ffff:ff:1f.7"));
    }
}
