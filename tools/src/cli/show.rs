//! `vfio-dma show`: everything that can be read of a function without opening it.

mod json;
mod text;

use std::process::ExitCode;

use vfio_dma::host::{Inspection, PciIds, Sysfs};
use vfio_dma::pci::Address;

use super::{Failure, output};

/// Show everything about a PCI function: names, BARs, link, payload sizes, every capability
///
/// Reads sysfs and configuration space and changes nothing. Without root the kernel shows the
/// first 64 bytes of configuration space only; what is missing is said.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The function's PCI address
    #[arg(value_name = "BDF")]
    address: Address,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Prints what is known of the function.
///
/// # Errors
///
/// Fails when there is no such function, or it does not answer.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let found = Sysfs::new().inspect(args.address)?;
    let names = PciIds::system();
    let missing = missing(&found, names.is_some());
    let text = if args.json {
        json::compose(&found, names.as_ref(), &missing)?
    } else {
        text::compose(&found, names.as_ref(), &missing)?
    };
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What is not shown, and why.
fn missing(found: &Inspection, has_names: bool) -> Vec<String> {
    let mut missing = Vec::new();
    if !found.is_whole {
        missing.push(
            "capabilities, payload sizes and error registers: the kernel shows configuration \
             space beyond its first 64 bytes to root (CAP_SYS_ADMIN) only"
                .to_owned(),
        );
    }
    if !has_names {
        missing.push("names: there is no pci.ids (Debian: apt-get install pci.ids)".to_owned());
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Machine;
    use super::*;

    fn machine() -> (Machine, Address) {
        let machine = Machine::new();
        machine.device("0000:00:05.0", 0x1234, 0x11e8, Some("vfio-pci"), Some(3));
        (machine, "0000:00:05.0".parse().unwrap())
    }

    #[test]
    fn the_header_alone_is_shown_with_what_is_missing() {
        let (machine, address) = machine();
        let config = "sys/bus/pci/devices/0000:00:05.0/config";
        let mut bytes = std::fs::read(machine.path(config)).unwrap();
        bytes[4] = 6;
        machine.file(config, &bytes);
        let found = machine.sysfs().inspect(address).unwrap();
        let missing = missing(&found, false);
        assert_eq!(missing.len(), 2, "{missing:?}");
        let text = text::compose(&found, None, &missing).unwrap();
        for part in [
            "0000:00:05.0  unclassified device, 1234:11e8, subsystem 1af4:1100, revision 10",
            "driver         vfio-pci",
            "IOMMU group    3, alone",
            "BAR 0          memory32 0xfea00000, 1048576 bytes, not prefetchable",
            "memory-space bus-master",
            "not shown: capabilities",
            "not shown: names",
        ] {
            assert!(text.contains(part), "{part:?} is missing:\n{text}");
        }
        let json: serde_json::Value =
            serde_json::from_str(&json::compose(&found, None, &missing).unwrap()).unwrap();
        assert_eq!(json["identity"]["driver"], "vfio-pci");
        assert_eq!(json["structures"][0]["registers"][2]["name"], "COMMAND");
        assert_eq!(json["structures"][0]["registers"][2]["value"], 6);
        assert_eq!(json["missing"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_function_that_does_not_answer_is_told() {
        let (machine, address) = machine();
        machine.file("sys/bus/pci/devices/0000:00:05.0/config", [0xff; 64]);
        let error = machine.sysfs().inspect(address).unwrap_err().to_string();
        assert!(error.contains("does not answer"), "{error}");
    }
}
