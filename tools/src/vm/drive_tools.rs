//! `nvme` of nvme-cli and `fio`, for guests in which Linux drives a drive too.

use super::config::GuestFile;
use super::error::VmError;
use super::package::Package;

/// How `nvme` is started in a guest that has the files of [`nvme_cli`]: the program, and its
/// first arguments.
pub const NVME_CLI: [&str; 4] =
    ["/opt/nvme-cli/ld.so", "--library-path", "/opt/nvme-cli", "/opt/nvme-cli/nvme"];
/// How `fio` is started in a guest that has the files of [`fio`].
pub const FIO: [&str; 4] = ["/opt/fio/ld.so", "--library-path", "/opt/fio", "/opt/fio/fio"];

/// Debian's nvme-cli with its libraries, as files for a guest.
///
/// # Errors
///
/// Fails when they cannot be fetched.
pub fn nvme_cli() -> Result<Vec<GuestFile>, VmError> {
    with_libraries("nvme-cli", "usr/sbin/nvme")
}

/// Debian's fio with its libraries, as files for a guest.
///
/// # Errors
///
/// Fails when they cannot be fetched.
pub fn fio() -> Result<Vec<GuestFile>, VmError> {
    with_libraries("fio", "usr/bin/fio")
}

fn with_libraries(package: &str, program: &str) -> Result<Vec<GuestFile>, VmError> {
    let package = Package::fetch(package)?;
    let mut files = vec![package.program(program)?];
    // The libraries of Ceph have one in a directory of its own.
    let dirs = ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];
    files.extend(package.needed(program, &dirs)?);
    Ok(files)
}
