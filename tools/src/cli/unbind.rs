//! `vfio-dma unbind`: gives devices back to their former drivers.

use std::path::PathBuf;
use std::process::ExitCode;

use vfio_dma::host::{Choice, Selector, Sysfs, Unbound};
use vfio_dma::pci::Address;

use super::bind::selected;
use super::remedy::explain;
use super::{Failure, output};

/// Give devices back to the drivers that they had before `bind`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// PCI addresses such as 0000:00:05.0, kinds such as 1234:11e8, groups such as group:17
    #[arg(value_name = "DEVICE", required = true)]
    pub devices: Vec<Selector>,
    /// Give the other members of their IOMMU groups back too
    #[arg(long)]
    pub group: bool,
    /// Remove the rules of `bind --persist` too; also for an address where there is no device
    #[arg(long)]
    pub persist: bool,
}

/// Unbinds the devices; those that are not bound to vfio-pci are left alone.
///
/// # Errors
///
/// Fails when there is no such device, when one is in use, and when its former driver does not
/// take it; the others are given back.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let sysfs = Sysfs::new();
    let mut devices = args.devices.clone();
    if args.persist {
        let mut absent = Vec::new();
        for device in &devices {
            if let Selector::Function(address) = device {
                let path = sysfs.forget_persistent(*address)?;
                absent.extend(sysfs.device(*address).is_err().then_some(*device));
                output::print(&removed(*address, path))?;
            }
        }
        devices.retain(|device| !absent.contains(device));
        if devices.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let mut failures: Vec<Failure> = Vec::new();
    for address in selected(&sysfs, &devices, args.group)? {
        match sysfs.unbind(address) {
            Ok(unbound) => output::print(&describe(&unbound))?,
            Err(error) => failures.push(error.into()),
        }
        if args.persist {
            let path = sysfs.forget_persistent(address)?;
            if path.is_some() {
                output::print(&removed(address, path))?;
            }
        } else if let Some(path) = sysfs.persistent(address) {
            output::complain(&format!(
                "note: {} binds {address} to vfio-pci again when the machine starts; `unbind \
                 --persist` removes it",
                path.display()
            ));
        }
    }
    let mut failures = failures.into_iter();
    match (failures.next(), failures.next()) {
        (None, _) => Ok(ExitCode::SUCCESS),
        (Some(only), None) => Err(only),
        (Some(first), Some(second)) => {
            let all = [first, second].into_iter().chain(failures);
            Err(all.map(|failure| explain(&*failure)).collect::<Vec<_>>().join("\n").into())
        }
    }
}

fn removed(address: Address, path: Option<PathBuf>) -> String {
    match path {
        Some(path) => format!("{address}: {} is removed\n", path.display()),
        None => format!("{address}: there was no rule that binds it when the machine starts\n"),
    }
}

fn describe(unbound: &Unbound) -> String {
    let state = match &unbound.driver {
        Some(driver) => format!("its driver is {driver}"),
        None => "it has no driver".into(),
    };
    let address = unbound.address;
    match unbound.choice {
        Choice::Record => format!("{address}: {state}, as before\n"),
        Choice::Kernel => {
            format!("{address}: {state}: the kernel's choice, what it had before is not recorded\n")
        }
        Choice::Untouched => format!("{address}: was not bound to vfio-pci; {state}\n"),
        other => format!("{address}: {state} ({other:?})\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_the_driver_and_who_chose_it() {
        let address = "0000:00:05.0".parse().unwrap();
        let unbound = |driver: Option<&str>, choice| {
            describe(&Unbound { address, driver: driver.map(str::to_owned), choice })
        };
        assert_eq!(
            unbound(Some("edu"), Choice::Record),
            "0000:00:05.0: its driver is edu, as before\n"
        );
        assert!(unbound(None, Choice::Kernel).contains("it has no driver: the kernel's choice"));
        assert!(unbound(None, Choice::Untouched).contains("was not bound to vfio-pci"));
    }
}
