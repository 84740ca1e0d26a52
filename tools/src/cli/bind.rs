//! `vfio-dma bind`: hands devices to vfio-pci.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::ExitCode;

use vfio_dma::host::{Binding, Selector, Sysfs};
use vfio_dma::pci::Address;
use vfio_dma::pci::sysfs::SysfsError;

use super::remedy::explain;
use super::{Failure, output};

/// Bind devices to vfio-pci; their drivers are remembered for `unbind`
///
/// All of them or none: nothing is changed when the host uses one of them.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// PCI addresses such as 0000:00:05.0, kinds such as 1234:11e8, groups such as group:17
    #[arg(value_name = "DEVICE", required = true)]
    pub devices: Vec<Selector>,
    /// Bind the other members of their IOMMU groups too
    #[arg(long)]
    pub group: bool,
    /// Take a device also when the host uses it, such as a disk with a mounted file system:
    /// what uses it fails, and data that was not written yet is lost
    #[arg(long)]
    pub force: bool,
    /// Bind them whenever they appear, as when the machine starts, by a rule of udev each;
    /// `unbind --persist` removes it
    #[arg(long)]
    pub persist: bool,
}

/// Binds the devices.
///
/// # Errors
///
/// Fails when there is no such device, when the host uses one, and when one cannot be bound; all
/// are as before then.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let sysfs = Sysfs::new();
    let addresses = selected(&sysfs, &args.devices, args.group)?;
    for binding in sysfs.bind_all(&addresses, args.force)? {
        output::print(&describe(&binding))?;
    }
    for address in &addresses {
        if args.persist {
            let path = sysfs.persist(*address)?;
            output::print(&format!("{address}: bound whenever it appears: {}\n", path.display()))?;
        }
        // The binding itself worked; what follows would fail when the device is opened.
        match sysfs.tree().viability(*address).and_then(|viability| viability.check()) {
            Err(warning @ (SysfsError::NoGroup { .. } | SysfsError::GroupNotViable { .. })) => {
                output::complain(&format!(
                    "warning: it cannot be opened yet: {}",
                    explain(&warning)
                ));
            }
            result => result?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The functions that are meant, with the other members of their groups if asked for.
pub(super) fn selected(
    sysfs: &Sysfs,
    devices: &[Selector],
    group: bool,
) -> Result<Vec<Address>, Failure> {
    let mut found = sysfs.select(devices)?;
    if group {
        let groups: BTreeSet<u32> =
            found.iter().filter_map(|info| Some(info.group.as_ref()?.number)).collect();
        let mut all = devices.to_vec();
        all.extend(groups.into_iter().map(Selector::Group));
        found = sysfs.select(&all)?;
    }
    Ok(found.into_iter().map(|info| info.address).collect())
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
    fn an_unknown_address_and_group_are_told() {
        let run = |text: &str| {
            let devices = vec![text.parse().unwrap()];
            let args = Args { devices, group: false, force: false, persist: false };
            run(&args).unwrap_err().to_string()
        };
        assert!(run("ffff:ff:1f.7").starts_with("no PCI device ffff:ff:1f.7"));
        assert!(run("group:4000000000").contains("no PCI function is group:4000000000"));
    }
}
