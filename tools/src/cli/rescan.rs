//! `vfio-dma rescan`: a card comes back with its driver, and its BARs are read anew.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use vfio_dma::host::{BarKind, PciDeviceInfo, Returned, Sysfs};
use vfio_dma::pci::Address;

use super::list::Entry;
use super::{Failure, output};

/// Have a function found again, as after an FPGA was programmed anew
///
/// Removes the function, scans its bus, gives it the driver that it had, and says what changed. One
/// that was removed before is only looked for. Without BDF: scans every bus.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The function's PCI address
    #[arg(value_name = "BDF")]
    address: Option<Address>,
    /// Remove also what the host uses: what uses it fails, and data that was not written yet is
    /// lost
    #[arg(long, requires = "address")]
    force: bool,
    /// Seconds until it has to be back
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    wait: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `rescan --json` prints. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
struct Report {
    /// The functions that came back, or that are new.
    functions: Vec<Came>,
}

/// A function that came back.
#[derive(Debug, Serialize)]
pub(super) struct Came {
    address: Address,
    /// As it was, as `list --json` has it; `null` where that is not known.
    before: Option<Entry>,
    /// As it is.
    after: Option<Entry>,
    /// What is different, in words.
    changes: Vec<String>,
}

impl Came {
    pub(super) fn new(returned: Returned) -> Came {
        Came {
            address: returned.address,
            changes: changes(&returned),
            before: returned.before.map(Entry::from),
            after: returned.after.map(Entry::from),
        }
    }
}

/// Has the function, or every bus, looked at again.
///
/// # Errors
///
/// Fails when the host uses the function, when it does not come back, and when its driver does not
/// take it.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let sysfs = Sysfs::new();
    let Some(address) = args.address else { return every_bus(args, &sysfs) };
    let returned = sysfs.rescan(address, args.force, Duration::from_secs(args.wait))?;
    if args.json {
        return report(returned.into_iter().map(Came::new).collect());
    }
    for returned in &returned {
        output::print(&describe(returned))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn every_bus(args: &Args, sysfs: &Sysfs) -> Result<ExitCode, Failure> {
    let found = sysfs.rescan_all()?;
    if args.json {
        let came = |info: PciDeviceInfo| Came {
            address: info.address,
            before: None,
            after: Some(Entry::from(info)),
            changes: vec!["it is new".into()],
        };
        return report(found.into_iter().map(came).collect());
    }
    if found.is_empty() {
        output::print("nothing new was found\n")?;
    }
    for info in found {
        output::print(&format!("{}: new, {}\n", info.address, driver(info.driver.as_deref())))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report(functions: Vec<Came>) -> Result<ExitCode, Failure> {
    output::print(&(serde_json::to_string_pretty(&Report { functions })? + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// What came back, with what changed.
pub(super) fn describe(returned: &Returned) -> String {
    let Some(after) = &returned.after else {
        return format!("{}: did not come back\n", returned.address);
    };
    let mut text = format!("{}: is back, {}\n", returned.address, driver(after.driver.as_deref()));
    let changes = changes(returned);
    if changes.is_empty() && returned.before.is_some() {
        text += "  ids and BARs are as before\n";
    }
    for change in changes {
        text += &format!("  {change}\n");
    }
    text
}

fn driver(name: Option<&str>) -> String {
    name.map_or_else(|| "without a driver".into(), |name| format!("its driver is {name}"))
}

fn changes(returned: &Returned) -> Vec<String> {
    match (&returned.before, &returned.after) {
        (Some(before), Some(after)) => differences(before, after),
        _ => Vec::new(),
    }
}

fn differences(before: &PciDeviceInfo, after: &PciDeviceInfo) -> Vec<String> {
    let mut changes = Vec::new();
    if before.driver != after.driver {
        let former = driver(before.driver.as_deref());
        changes.push(format!("it was {}", former.replace("its driver is ", "driven by ")));
    }
    let ids = |info: &PciDeviceInfo| {
        format!("{:04x}:{:04x} revision {:02x}", info.vendor, info.device, info.revision)
    };
    if ids(before) != ids(after) || before.class != after.class {
        changes.push(format!(
            "it was {} (class {}), is {} (class {})",
            ids(before),
            before.class,
            ids(after),
            after.class
        ));
    }
    for index in 0..6 {
        let of = |info: &PciDeviceInfo| {
            info.bars.iter().find(|bar| bar.index == index).map_or_else(
                || "none".into(),
                |bar| {
                    let kind = match bar.kind {
                        BarKind::Io => "I/O ports",
                        BarKind::Memory32 | BarKind::Memory64 => "memory",
                    };
                    format!("{kind}, {:#x} bytes at {:#x}", bar.size, bar.start)
                },
            )
        };
        let (was, is) = (of(before), of(after));
        if was != is {
            changes.push(format!("BAR{index} was {was}; is {is}"));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Machine;
    use super::*;

    #[test]
    fn what_another_image_changed_is_told() {
        let machine = Machine::new();
        machine.device("0000:00:05.0", 0x10ee, 0x7024, Some("vfio-pci"), Some(3));
        let address = "0000:00:05.0".parse().unwrap();
        let before = machine.sysfs().device(address).unwrap();
        assert_eq!(differences(&before, &before), [""; 0]);
        let dir = "sys/bus/pci/devices/0000:00:05.0";
        machine.file(format!("{dir}/device"), "0x7028\n");
        machine.file(
            format!("{dir}/resource"),
            "0xfea00000 0xfea1ffff 0x40200\n0x0 0x0 0x0\n0xc000 0xc01f 0x40101\n",
        );
        machine.remove(format!("{dir}/driver"));
        let after = machine.sysfs().device(address).unwrap();
        assert_eq!(
            differences(&before, &after),
            [
                "it was driven by vfio-pci",
                "it was 10ee:7024 revision 10 (class 00ff00), is 10ee:7028 revision 10 (class 00ff00)",
                "BAR0 was memory, 0x100000 bytes at 0xfea00000; is memory, 0x20000 bytes at 0xfea00000",
                "BAR2 was none; is I/O ports, 0x20 bytes at 0xc000",
            ]
        );
    }
}
