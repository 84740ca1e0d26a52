//! What one device needs beyond what the machine offers.

use std::error::Error;

use nix::errno::Errno;
use vfio_dma::Remedy;
use vfio_dma::devices::recognise;
use vfio_dma::host::{HostUse, PciDeviceInfo};
use vfio_dma::pci::sysfs::{HostDriver, SysfsError};
use vfio_dma::pci::{Address, PciError};

use super::{Check, Host, writable};
use crate::cli::open::identity;

/// The checks of a device; only the first when there is no such device.
pub(super) fn checks(host: &Host, address: Address) -> Vec<Check> {
    let info = match host.sysfs.device(address) {
        Ok(info) => info,
        Err(error) => return vec![from_error("device", &error, error.remedy())],
    };
    let mut checks = vec![
        Check::ok("device", format!("{address}: {}", info.class.name())),
        support(&info),
        header(host, &info),
        driver(host, &info),
    ];
    match &info.group {
        None => {
            let error = SysfsError::NoGroup { address };
            checks.push(from_error("group", &error, error.remedy()));
        }
        Some(group) => {
            let members = group.members.join(" ");
            let finding = format!("number {}, members: {members}", group.number);
            checks.push(Check::ok("group", finding));
            checks.push(viability(host, address));
            checks.push(node(host, &info, &group.node()));
        }
    }
    checks
}

/// A failed check of an error, whose remedy is told apart from its text.
fn from_error(name: &'static str, error: &dyn Error, remedy: Option<&Remedy>) -> Check {
    let text = error.to_string();
    let finding = text.split("\n  remedy: ").next().unwrap_or(&text);
    match remedy {
        Some(remedy) => Check::failed(name, finding).mend(remedy.to_string()),
        None => Check::failed(name, finding),
    }
}

fn support(info: &PciDeviceInfo) -> Check {
    let ids = format!("{:04x}:{:04x}", info.vendor, info.device);
    match recognise(&identity(info)) {
        Some(known) => Check::ok("support", format!("{ids}: {}", known.description)),
        None => Check::note("support", format!("{ids} is not a device that vfio-dma drives")),
    }
}

/// A device that lost power or hangs reads all ones.
fn header(host: &Host, info: &PciDeviceInfo) -> Check {
    let name = "config-space";
    let config = match host.sysfs.config_header(info.address) {
        Ok(config) => config,
        Err(error) => return from_error(name, &error, error.remedy()),
    };
    let ids = || -> Result<_, PciError> {
        config.check_present()?;
        Ok((config.vendor_id()?, config.device_id()?))
    };
    match ids() {
        Ok(ids) if ids == (info.vendor, info.device) => Check::ok(name, "answers"),
        // The ids of a virtual function read all ones, and are those of its physical one.
        Ok((0xffff, 0xffff))
            if let Some(physical) = host.sysfs.tree().physical_function(info.address) =>
        {
            Check::ok(name, format!("answers; a virtual function of {physical}"))
        }
        Ok((vendor, device)) => {
            Check::failed(name, format!("holds the ids {vendor:04x}:{device:04x}"))
                .mend("echo 1 > /sys/bus/pci/rescan")
        }
        Err(error) => from_error(name, &error, error.remedy()),
    }
}

fn driver(host: &Host, info: &PciDeviceInfo) -> Check {
    let name = "driver";
    let finding = match info.driver.as_deref() {
        Some(driver) if info.with_vfio => return Check::ok(name, driver),
        Some(driver) => format!("{driver}, not vfio-pci"),
        None => "none, not vfio-pci".to_owned(),
    };
    // What `bind` would say.
    if info.class.is_pci_bridge() {
        return Check::failed(name, format!("{finding}, which takes no PCI bridges"));
    }
    match host.sysfs.uses(info.address) {
        Ok(uses) if !uses.is_empty() => {
            let texts: Vec<String> = uses.iter().map(ToString::to_string).collect();
            let check = Check::failed(name, format!("{finding}; in use: {}", texts.join(", ")));
            let commands: Vec<String> = uses.iter().filter_map(HostUse::command).collect();
            if commands.is_empty() { check } else { check.mend(commands.join("; ")) }
        }
        // Without a group vfio-pci refuses the device, which the next check is about.
        _ if info.group.is_none() && !super::host::noiommu_enabled(host) => {
            Check::failed(name, finding)
        }
        _ => Check::failed(name, finding).mend(format!("vfio-dma bind {}", info.address)),
    }
}

fn viability(host: &Host, address: Address) -> Check {
    let name = "group-members";
    let in_the_way = match host.sysfs.tree().viability(address) {
        Ok(viability) => viability.in_the_way,
        Err(error) => return from_error(name, &error, error.remedy()),
    };
    if in_the_way.is_empty() {
        return Check::ok(name, "no host driver is in the way");
    }
    let members: Vec<_> = in_the_way.iter().map(HostDriver::to_string).collect();
    let commands: Vec<_> =
        in_the_way.iter().map(|member| format!("vfio-dma bind {}", member.device)).collect();
    Check::failed(name, format!("host drivers still use {}", members.join(", ")))
        .mend(commands.join("; "))
}

fn node(host: &Host, info: &PciDeviceInfo, node: &std::path::Path) -> Check {
    let name = "group-node";
    let shown = node.display();
    match writable(&host.node(node)) {
        Ok(()) => Check::ok(name, format!("{shown} can be opened")),
        // It is there for devices on vfio-pci, by udev or devtmpfs.
        Err(Errno::ENOENT) if info.with_vfio => Check::failed(name, format!("{shown} is absent"))
            .mend(
                "have udev or devtmpfs make it; in a container, pass it in (--device)".to_owned(),
            ),
        Err(Errno::ENOENT) => Check::failed(name, format!("{shown} is absent"))
            .mend(format!("vfio-dma bind {}", info.address)),
        Err(errno) => Check::failed(name, format!("{shown}: {}", errno.desc()))
            .mend(format!("run as root, or: sudo chown $USER {shown}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{check, sound};
    use super::super::{Status, examine};
    use super::*;

    const BDF: &str = "0000:00:05.0";

    #[test]
    fn an_unknown_device_ends_the_checks() {
        let (_machine, host) = sound();
        let checks = checks(&host, "0000:00:1f.7".parse().unwrap());
        assert_eq!(checks.len(), 1);
        assert_eq!(checks[0].status, Status::Failed);
        assert!(checks[0].finding.contains("no PCI device 0000:00:1f.7"));
    }

    #[test]
    fn a_device_that_is_not_bound_is_told_with_the_command() {
        let (machine, host) = sound();
        machine.remove("sys/bus/pci/devices/0000:00:05.0/driver");
        machine.remove("dev/vfio/3");
        let bind = Some("vfio-dma bind 0000:00:05.0");
        for name in ["driver", "group-node"] {
            let check = check(&host, name);
            assert_eq!((check.status, check.remedy.as_deref()), (Status::Failed, bind));
        }
        assert!(!examine(&host, Some(BDF.parse().unwrap())).ready);
    }

    #[test]
    fn a_member_with_a_host_driver_is_told_with_the_command() {
        let (machine, host) = sound();
        machine.device("0000:00:05.1", 0x1af4, 0x1041, Some("virtio-pci"), Some(3));
        let check = check(&host, "group-members");
        assert!(check.finding.contains("0000:00:05.1 (virtio-pci)"), "{check:?}");
        assert_eq!(check.remedy.as_deref(), Some("vfio-dma bind 0000:00:05.1"));
    }

    #[test]
    fn a_device_without_a_group_is_told_with_the_remedy() {
        let (machine, host) = sound();
        machine.remove("sys/bus/pci/devices/0000:00:05.0/iommu_group");
        let check = check(&host, "group");
        assert_eq!(check.status, Status::Failed);
        assert!(check.remedy.unwrap().contains("intel_iommu=on"));
    }

    #[test]
    fn a_device_that_does_not_answer_or_is_another_one_is_told() {
        let (machine, host) = sound();
        let config = "sys/bus/pci/devices/0000:00:05.0/config";
        machine.file(config, [0xff; 64]);
        assert!(check(&host, "config-space").finding.contains("does not answer"));
        machine.file(config, [0x34; 64]);
        assert!(check(&host, "config-space").finding.contains("3434:3434"));
        machine.file(config, [0x34; 63]);
        assert_eq!(check(&host, "config-space").status, Status::Failed);
    }

    #[test]
    fn a_device_that_is_not_driven_here_is_a_note() {
        let (machine, host) = sound();
        machine.file("sys/bus/pci/devices/0000:00:05.0/device", "0x0001\n");
        assert_eq!(check(&host, "support").status, Status::Note);
    }
}
