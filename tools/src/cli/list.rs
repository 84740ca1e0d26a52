//! `vfio-dma list`: the PCI devices of this machine, and which of them can be driven.

use std::fmt::Write as _;
use std::process::ExitCode;

use serde::Serialize;
use vfio_dma::devices::{KnownDevice, recognise};
use vfio_dma::pci::{DeviceInfo, Sysfs};

use super::{Failure, print};

/// Lists PCI devices: driver, IOMMU group and its members, what can be driven.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON: an array with one object for each device
    #[arg(long)]
    json: bool,
}

/// One device of `vfio-dma list --json`.
#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    info: DeviceInfo,
    /// What it is in words, by its class code.
    kind: &'static str,
    /// The driver of vfio-dma that it has, if it has one.
    drives: Option<KnownDevice>,
}

/// Runs the subcommand.
///
/// # Errors
///
/// Fails when sysfs cannot be read.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let entries: Vec<Entry> = Sysfs::system()
        .enumerate()?
        .into_iter()
        .map(|info| Entry {
            kind: class_name(info.class),
            drives: recognise(info.vendor, info.device),
            info,
        })
        .collect();
    let text = if args.json { serde_json::to_string_pretty(&entries)? } else { table(&entries) };
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn table(entries: &[Entry]) -> String {
    let mut text = format!(
        "{:<13} {:<10} {:<20} {:<14} {:>5}  {:<12} group's other members",
        "address", "ids", "kind", "driver", "group", "drives"
    );
    for Entry { info, kind, drives } in entries {
        let group = info.iommu_group.map_or("-".into(), |group| group.to_string());
        let others: Vec<String> = info
            .group_members
            .iter()
            .filter(|&&member| member != info.address)
            .map(ToString::to_string)
            .collect();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "\n{:<13} {:04x}:{:04x}  {:<20} {:<14} {:>5}  {:<12} {}",
            info.address.to_string(),
            info.vendor,
            info.device,
            kind,
            info.driver.as_deref().unwrap_or("-"),
            group,
            drives.map_or("-".into(), |known| known.to_string()),
            others.join(" ")
        );
    }
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// The class in words (PCI Code and ID Assignment Specification, chapter 1).
fn class_name(class: u32) -> &'static str {
    match (class >> 16, class >> 8) {
        (_, 0x0106) => "SATA controller",
        (_, 0x0108) => "NVMe controller",
        (0x01, _) => "storage controller",
        (0x02, _) => "network controller",
        (0x03, _) => "display controller",
        (0x04, _) => "multimedia",
        (0x05, _) => "memory controller",
        (_, 0x0600) => "host bridge",
        (_, 0x0601) => "ISA bridge",
        (_, 0x0604) => "PCI bridge",
        (0x06, _) => "bridge",
        (_, 0x0700) => "serial controller",
        (0x07, _) => "communication",
        (_, 0x0801) => "DMA controller",
        (_, 0x0806) => "IOMMU",
        (_, 0x0880) => "system peripheral",
        (0x08, _) => "system",
        (_, 0x0c03) => "USB controller",
        (_, 0x0c05) => "SMBus",
        (0x0c, _) => "serial bus",
        (0x0d, _) => "wireless",
        (0x10, _) => "encryption",
        (0x12, _) => "accelerator",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_has_its_value() {
        let address = "0000:00:05.0".parse().unwrap();
        let other = "0000:00:05.1".parse().unwrap();
        let info = DeviceInfo {
            address,
            vendor: 0x1234,
            device: 0x11e8,
            subsystem_vendor: 0,
            subsystem_device: 0,
            class: 0x00_ff00,
            revision: 0x10,
            driver: Some("vfio-pci".into()),
            iommu_group: Some(7),
            group_members: vec![address, other],
        };
        let drives = recognise(info.vendor, info.device);
        let text = table(&[Entry { kind: class_name(info.class), drives, info }]);
        let columns: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        let wanted = ["0000:00:05.0", "1234:11e8", "other", "vfio-pci", "7", "edu", "0000:00:05.1"];
        assert_eq!(columns, wanted);
    }

    #[test]
    fn classes_are_in_words() {
        assert_eq!(class_name(0x08_8000), "system peripheral");
        assert_eq!(class_name(0x02_0000), "network controller");
        assert_eq!(class_name(0xff_ffff), "other");
    }
}
