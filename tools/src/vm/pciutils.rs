//! `lspci` and the names of PCI devices, for guests that compare with them.

use super::config::GuestFile;
use super::error::VmError;
use super::package::Package;

/// How `lspci` is started in a guest that has the files of [`pciutils`]: the program, and its
/// first arguments.
pub const LSPCI: [&str; 4] =
    ["/opt/pciutils/ld.so", "--library-path", "/opt/pciutils", "/opt/pciutils/lspci"];

/// The list of names in the guest.
const PCI_IDS: &str = "usr/share/misc/pci.ids";

/// Debian's `lspci` with its libraries, and its `pci.ids`, as files for a guest.
///
/// # Errors
///
/// Fails when they cannot be fetched.
pub fn pciutils() -> Result<Vec<GuestFile>, VmError> {
    let package = Package::fetch("pciutils")?;
    let mut files = vec![
        package.program("usr/bin/lspci")?,
        package.file(PCI_IDS, &format!("/{PCI_IDS}"), 0o644)?,
    ];
    files.extend(package.libraries(&["usr/lib/x86_64-linux-gnu"])?);
    Ok(files)
}
