//! `vfio-dma list`: what is on the PCI bus.

use std::process::ExitCode;

use serde::Serialize;
use vfio_dma::devices::recognise;
use vfio_dma::host::{Bar, PciDeviceInfo, Sysfs};
use vfio_dma::pci::Address;
use vfio_dma::pci::sysfs::IommuGroup;

use super::open::identity;
use super::{Failure, output};

/// Show the PCI devices: ids, class, driver, IOMMU group, and which of them can be driven
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What `vfio-dma list --json` prints. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
pub struct Listing {
    /// The functions, in the order of their addresses.
    pub devices: Vec<Entry>,
}

/// One PCI function.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Its address, such as `0000:00:05.0`.
    pub address: Address,
    /// Vendor id, such as `0x8086`.
    pub vendor: String,
    /// Device id, such as `0x2021`.
    pub device: String,
    /// Subsystem vendor id.
    pub subsystem_vendor: String,
    /// Subsystem id.
    pub subsystem_device: String,
    /// Class code: base class, sub-class and programming interface, such as `0x088000`.
    pub class: String,
    /// The class in words.
    pub class_name: &'static str,
    /// Revision id, such as `0x01`.
    pub revision: String,
    /// The driver bound to it; `null` when there is none.
    pub driver: Option<String>,
    /// Its IOMMU group: `number`, `noiommu`, `members`; `null` without an IOMMU.
    pub iommu_group: Option<IommuGroup>,
    /// The NUMA node that it is attached to, or `null`.
    pub numa_node: Option<u32>,
    /// Its base address registers: `index`, `start`, `size` in bytes, `kind` (`io`,
    /// `memory32`, `memory64`), `prefetchable`.
    pub bars: Vec<Bar>,
    /// Which driver of vfio-dma drives it: `edu`, `pci-testdev`, `ioat`,
    /// `nvme`; `null` for none.
    pub supported_by: Option<&'static str>,
    /// What the device is, in words, where vfio-dma drives it.
    pub description: Option<&'static str>,
}

impl From<PciDeviceInfo> for Entry {
    fn from(info: PciDeviceInfo) -> Entry {
        let known = recognise(&identity(&info));
        let id = |id| format!("{id:#06x}");
        Entry {
            address: info.address,
            vendor: id(info.vendor),
            device: id(info.device),
            subsystem_vendor: id(info.subsystem_vendor),
            subsystem_device: id(info.subsystem_device),
            class: format!("{:#08x}", info.class.code()),
            class_name: info.class.name(),
            revision: format!("{:#04x}", info.revision),
            driver: info.driver,
            iommu_group: info.group,
            numa_node: info.numa_node,
            bars: info.bars,
            supported_by: known.map(|known| known.driver.name),
            description: known.map(|known| known.description),
        }
    }
}

/// Prints the devices of this machine.
///
/// # Errors
///
/// Fails when sysfs cannot be read.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    output::print(&compose(&Sysfs::new(), args)?)?;
    Ok(ExitCode::SUCCESS)
}

fn compose(sysfs: &Sysfs, args: &Args) -> Result<String, Failure> {
    let devices = sysfs.enumerate()?.into_iter().map(Entry::from).collect();
    let listing = Listing { devices };
    if args.json {
        return Ok(serde_json::to_string_pretty(&listing)? + "\n");
    }
    if listing.devices.is_empty() {
        return Ok("there are no PCI devices\n".into());
    }
    Ok(table(&listing.devices))
}

fn table(devices: &[Entry]) -> String {
    let head =
        ["ADDRESS", "ID", "CLASS", "DRIVER", "DRIVEN HERE BY", "GROUP", "OTHERS IN THE GROUP"];
    let mut rows = vec![head.map(str::to_owned)];
    let dash = || "-".to_owned();
    for entry in devices {
        let address = entry.address.to_string();
        let (group, others) = match &entry.iommu_group {
            None => (dash(), String::new()),
            Some(group) => {
                let others: Vec<_> =
                    group.members.iter().filter(|member| **member != address).cloned().collect();
                let mode = if group.noiommu { " (no IOMMU)" } else { "" };
                (format!("{}{mode}", group.number), others.join(" "))
            }
        };
        rows.push([
            address,
            format!("{}:{}", &entry.vendor[2..], &entry.device[2..]),
            entry.class_name.to_owned(),
            entry.driver.clone().unwrap_or_else(dash),
            entry.supported_by.map_or_else(dash, str::to_owned),
            group,
            others,
        ]);
    }
    output::table(&rows)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Machine;
    use super::*;

    fn machine() -> Machine {
        let machine = Machine::new();
        machine.device("0000:00:05.0", 0x1234, 0x11e8, Some("vfio-pci"), Some(3));
        machine.device("0000:00:06.0", 0x1b36, 0x0005, None, Some(3));
        machine.device("0000:00:07.0", 0x1af4, 0x1041, Some("virtio-pci"), None);
        machine
    }

    #[test]
    fn the_table_has_ids_drivers_groups_and_what_can_be_driven() {
        let text = compose(&machine().sysfs(), &Args { json: false }).unwrap();
        let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let [head, edu, testdev, virtio]: [Vec<&str>; 4] = lines.try_into().unwrap();
        assert_eq!(head[..4], ["ADDRESS", "ID", "CLASS", "DRIVER"]);
        assert_eq!(
            edu.join(" "),
            "0000:00:05.0 1234:11e8 unclassified device vfio-pci edu 3 0000:00:06.0"
        );
        assert_eq!(
            testdev.join(" "),
            "0000:00:06.0 1b36:0005 unclassified device - pci-testdev 3 0000:00:05.0"
        );
        assert_eq!(virtio.join(" "), "0000:00:07.0 1af4:1041 unclassified device virtio-pci - -");
    }

    #[test]
    fn the_json_has_its_documented_fields() {
        let text = compose(&machine().sysfs(), &Args { json: true }).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let edu = &json["devices"][0];
        assert_eq!(
            *edu,
            serde_json::json!({
                "address": "0000:00:05.0",
                "vendor": "0x1234",
                "device": "0x11e8",
                "subsystem_vendor": "0x1af4",
                "subsystem_device": "0x1100",
                "class": "0x00ff00",
                "class_name": "unclassified device",
                "revision": "0x10",
                "driver": "vfio-pci",
                "iommu_group": {
                    "number": 3,
                    "noiommu": false,
                    "members": ["0000:00:05.0", "0000:00:06.0"],
                },
                "numa_node": null,
                "bars": [{
                    "index": 0,
                    "start": 0xfea0_0000_u32,
                    "size": 0x10_0000,
                    "kind": "memory32",
                    "prefetchable": false,
                }],
                "supported_by": "edu",
                "description": "QEMU educational device",
            })
        );
        assert_eq!(json["devices"][2]["iommu_group"], serde_json::Value::Null);
        assert_eq!(json["devices"][2]["supported_by"], serde_json::Value::Null);
    }
}
