//! `vfio-dma unbind`: gives a device back to its former driver.

use std::process::ExitCode;

use vfio_dma::host::{Choice, Sysfs, Unbound};
use vfio_dma::pci::Address;

use super::{Failure, output};

/// Give a device back to the driver that it had before `bind`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of the device, such as 0000:00:05.0
    #[arg(value_name = "BDF")]
    pub address: String,
}

/// Unbinds the device; one that is not bound to vfio-pci is left alone.
///
/// # Errors
///
/// Fails when there is no such device, when it is in use, and when its former driver does
/// not take it.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let address: Address = args.address.parse()?;
    output::print(&describe(&Sysfs::new().unbind(address)?))?;
    Ok(ExitCode::SUCCESS)
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
