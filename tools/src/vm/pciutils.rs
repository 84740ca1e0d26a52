//! `lspci` and the names of PCI devices, for guests that compare with them.

use std::fs;
use std::path::Path;

use super::apt::{self, Apt};
use super::cache::Cache;
use super::config::GuestFile;
use super::error::{Context, VmError};
use super::qemu::{APT_KIND, SUITES};
use crate::progress::Step;

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
    let cache = Cache::open()?;
    let apt_root = cache.kind(APT_KIND)?;
    let tree = cache.entry("pciutils", "current", |tree| fetch(&apt_root, tree))?;
    let file = |host: &Path, guest: String, mode| {
        let host = host.canonicalize().at("find", host)?;
        Ok(GuestFile { host, guest, mode })
    };
    let mut files = vec![
        file(&tree.join("usr/bin/lspci"), "/opt/pciutils/lspci".into(), 0o755)?,
        file(&tree.join("usr/lib64/ld-linux-x86-64.so.2"), "/opt/pciutils/ld.so".into(), 0o755)?,
        file(&tree.join(PCI_IDS), format!("/{PCI_IDS}"), 0o644)?,
    ];
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    for entry in fs::read_dir(&libraries).at("read", &libraries)? {
        let entry = entry.at("read", &libraries)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // The names that programs ask for: `libpci.so.3`.
        if name.contains(".so.") && entry.path().is_file() {
            files.push(file(&entry.path(), format!("/opt/pciutils/{name}"), 0o755)?);
        }
    }
    Ok(files)
}

fn fetch(apt_root: &Path, tree: &Path) -> Result<String, VmError> {
    let apt = Apt::open(apt_root, &SUITES)?;
    let step = Step::new("fetching pciutils");
    let debs = apt.download_closure(SUITES[0], &["pciutils"], &step)?;
    drop(step);
    let version = apt::version(&debs, "pciutils")?;
    apt::unpack(&debs, tree)?;
    apt.empty_archives()?;
    Ok(version)
}
