//! `vfio-dma remove`: takes a function out of the kernel's view.

use std::process::ExitCode;

use vfio_dma::host::Sysfs;
use vfio_dma::pci::Address;

use super::{Failure, output};

/// Remove a function from the kernel's view, as before an FPGA is programmed anew
///
/// Its driver lets go of it; `rescan BDF` brings it back with that driver. A bridge goes with what
/// is behind it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The function's PCI address
    #[arg(value_name = "BDF")]
    address: Address,
    /// Remove also what the host uses: what uses it fails, and data that was not written yet is
    /// lost
    #[arg(long)]
    force: bool,
}

/// Removes the function.
///
/// # Errors
///
/// Fails when there is no such function, when the host uses it, and when a process has it open.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let address = args.address;
    let removed = Sysfs::new().remove(address, args.force)?;
    let mut text = String::new();
    for other in removed.iter().filter(|other| **other != address) {
        text += &format!("{other}: is removed with it\n");
    }
    let again = output::as_typed(&format!("vfio-dma rescan {address}"));
    text += &format!("{address}: is removed; `{again}` brings it back\n");
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}
