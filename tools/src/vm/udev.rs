//! `udevd` and `udevadm`, for guests in which devices appear as on a real machine.

use super::config::GuestFile;
use super::error::VmError;
use super::package::Package;

/// How `udevd` is started in a guest that has the files of [`udev`]: the program, and its first
/// arguments.
pub const UDEVD: [&str; 6] = [
    "/opt/udev/ld.so",
    "--library-path",
    "/opt/udev",
    "--argv0",
    "systemd-udevd",
    "/opt/udev/udevadm",
];
/// How `udevadm` is started.
pub const UDEVADM: [&str; 4] =
    ["/opt/udev/ld.so", "--library-path", "/opt/udev", "/opt/udev/udevadm"];

/// Debian's udev with its libraries, without its rules, as files for a guest.
///
/// # Errors
///
/// Fails when they cannot be fetched.
pub fn udev() -> Result<Vec<GuestFile>, VmError> {
    let package = Package::fetch("udev")?;
    let mut files = vec![package.program("usr/bin/udevadm")?];
    files.extend(
        package.libraries(&["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/systemd"])?,
    );
    Ok(files)
}
