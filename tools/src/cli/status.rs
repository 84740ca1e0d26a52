//! `vfio-dma status`: every PCI function, its driver, and who uses it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;
use vfio_dma::host::{FunctionStatus, PciIds, Sysfs};
use vfio_dma::pci::Address;
use vfio_dma::pci::sysfs::VFIO_PCI;

use super::{Failure, output};

/// Show every PCI function by class: driver, group, NUMA node, and who uses it
///
/// Without root, what other users' processes have open does not show.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `vfio-dma status --json` prints. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
struct Report {
    functions: Vec<Function>,
}

#[derive(Debug, Serialize)]
struct Function {
    address: Address,
    /// Vendor and device id, such as `1234:11e8`.
    id: String,
    /// Class code, such as `0x088000`.
    class: String,
    class_name: String,
    driver: Option<String>,
    iommu_group: Option<u32>,
    numa_node: Option<u32>,
    in_use: bool,
    /// What the host uses it for, and who has it open through VFIO, in words.
    used_by: Vec<String>,
    /// A rule binds it to vfio-pci whenever it appears (`bind --persist`).
    persistent: bool,
}

impl Function {
    fn new(status: FunctionStatus, names: Option<&PciIds>) -> Function {
        let in_use = status.is_in_use();
        let FunctionStatus { info, uses, holders, is_persistent, .. } = status;
        let mut used_by: Vec<String> = uses.iter().map(ToString::to_string).collect();
        used_by.extend(holders.iter().map(ToString::to_string));
        if info.class.is_pci_bridge() {
            used_by.push("what is behind it".into());
        }
        let class_name = names.and_then(|names| names.class(info.class));
        Function {
            address: info.address,
            id: format!("{:04x}:{:04x}", info.vendor, info.device),
            class: format!("{:#08x}", info.class.code()),
            class_name: class_name.unwrap_or(info.class.name()).to_owned(),
            driver: info.driver,
            iommu_group: info.group.map(|group| group.number),
            numa_node: info.numa_node,
            in_use,
            used_by,
            persistent: is_persistent,
        }
    }
}

/// Prints the functions of this machine.
///
/// # Errors
///
/// Fails when sysfs cannot be read.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    output::print(&compose(&Sysfs::new(), PciIds::system().as_ref(), args.json)?)?;
    Ok(ExitCode::SUCCESS)
}

fn compose(sysfs: &Sysfs, names: Option<&PciIds>, json: bool) -> Result<String, Failure> {
    let functions =
        sysfs.status()?.into_iter().map(|status| Function::new(status, names)).collect();
    let report = Report { functions };
    if json {
        return Ok(serde_json::to_string_pretty(&report)? + "\n");
    }
    if report.functions.is_empty() {
        return Ok("there are no PCI devices\n".into());
    }
    Ok(text(&report.functions))
}

fn text(functions: &[Function]) -> String {
    let mut classes: BTreeMap<(&str, &str), Vec<&Function>> = BTreeMap::new();
    for function in functions {
        // The interface, the last two digits, is no class of its own here.
        let class = &function.class[..function.class.len() - 2];
        classes.entry((class, &function.class_name)).or_default().push(function);
    }
    let head = ["", "ID", "DRIVER", "GROUP", "NODE", "IN USE"];
    let mut rows = vec![head.map(str::to_owned)];
    let mut headings = Vec::new();
    for ((_, name), functions) in &classes {
        headings.push((rows.len(), *name));
        rows.extend(functions.iter().map(|function| row(function)));
    }
    let table = output::table(&rows);
    let mut text = String::new();
    let mut headings = headings.into_iter().peekable();
    for (n, line) in table.lines().enumerate() {
        if let Some((_, name)) = headings.next_if(|(at, _)| *at == n) {
            text += &format!("{name}\n");
        }
        text += &format!("{line}\n");
    }
    text
}

fn row(function: &Function) -> [String; 6] {
    let number = |number: Option<u32>| number.map_or_else(|| "-".into(), |n| n.to_string());
    let mut used = match (&function.used_by[..], function.driver.as_deref()) {
        ([], Some(VFIO_PCI)) => "no: free to be opened".to_owned(),
        ([], Some(_)) => "no: by its driver alone".to_owned(),
        ([], None) => "no".to_owned(),
        (uses, _) => format!("yes: {}", uses.join("; ")),
    };
    if function.persistent {
        used += " (bound to vfio-pci when the machine starts)";
    }
    [
        format!("  {}", function.address),
        function.id.clone(),
        function.driver.clone().unwrap_or_else(|| "-".into()),
        number(function.iommu_group),
        number(function.numa_node),
        used,
    ]
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Machine;
    use super::*;

    fn machine() -> Machine {
        let machine = Machine::new();
        machine.device("0000:00:05.0", 0x1234, 0x11e8, Some("vfio-pci"), Some(3));
        machine.device("0000:00:06.0", 0x1b36, 0x0005, None, Some(4));
        machine.device("0000:00:07.0", 0x8086, 0x1533, Some("igb"), None);
        machine.file("sys/bus/pci/devices/0000:00:07.0/class", "0x020000\n");
        machine.device("0000:00:1c.0", 0x1b36, 0x000c, Some("pcieport"), None);
        machine.file("sys/bus/pci/devices/0000:00:1c.0/class", "0x060400\n");
        machine
    }

    #[test]
    fn functions_are_told_by_class_with_who_uses_them() {
        let text = compose(&machine().sysfs(), None, false).unwrap();
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(
            lines,
            [
                "ID DRIVER GROUP NODE IN USE",
                "unclassified device",
                "0000:00:05.0 1234:11e8 vfio-pci 3 - no: free to be opened",
                "0000:00:06.0 1b36:0005 - 4 - no",
                "Ethernet controller",
                "0000:00:07.0 8086:1533 igb - - no: by its driver alone",
                "PCI bridge",
                "0000:00:1c.0 1b36:000c pcieport - - yes: what is behind it",
            ]
        );
    }

    #[test]
    fn the_json_has_its_documented_fields() {
        let text = compose(&machine().sysfs(), None, true).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            json["functions"][0],
            serde_json::json!({
                "address": "0000:00:05.0",
                "id": "1234:11e8",
                "class": "0x00ff00",
                "class_name": "unclassified device",
                "driver": "vfio-pci",
                "iommu_group": 3,
                "numa_node": null,
                "in_use": false,
                "used_by": [],
                "persistent": false,
            })
        );
        assert_eq!(json["functions"][3]["in_use"], true);
    }
}
