//! What guests need, and what of it this machine has; nothing is fetched or built.

use std::fs::OpenOptions;
use std::path::PathBuf;

use super::accel::Accel;
use super::cache::Cache;
use super::config::VmConfig;
use super::error::VmError;
use super::guest::Guest;
use super::qemu::Qemu;
use super::{apt, kernel};

/// What this machine has for guests.
#[derive(Debug)]
pub struct Survey {
    /// How the guests' processors run.
    pub kvm: Kvm,
    /// The QEMU in use: where it is; none when it is to be fetched.
    pub qemu: Option<PathBuf>,
    /// Whether kernel and busybox are here.
    pub parts: bool,
    /// The archive that apt fetches from, or why there is none.
    pub archive: Result<String, String>,
    /// The directory of what was fetched and built.
    pub cache: PathBuf,
    /// Bytes in it.
    pub cached: u64,
}

/// Whether KVM runs guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kvm {
    /// There is no `/dev/kvm`.
    Absent,
    /// It cannot be opened.
    Denied(String),
    /// It can be opened; whether a guest boots is found out with the first one.
    Untried,
    /// A guest boots.
    Usable,
    /// It can be opened and no guest boots: TCG takes its place.
    Broken,
}

impl Survey {
    /// Looks, and tries KVM where everything that takes is here.
    ///
    /// # Errors
    ///
    /// Fails when there is no home directory, and when QEMU cannot be run.
    pub fn of_this_machine() -> Result<Survey, VmError> {
        let cache = Cache::open()?;
        let qemu = Qemu::here(&cache)?;
        let parts = kernel::parts_are_here(&cache);
        let archive = apt::archive().map(|archive| archive.site).map_err(|e| e.to_string());
        let kvm = match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kvm::Absent,
            Err(error) => Kvm::Denied(error.to_string()),
            Ok(_) if qemu.is_none() || !parts => Kvm::Untried,
            Ok(_) => match Guest::prepare(VmConfig::default())?.accel() {
                Accel::Kvm => Kvm::Usable,
                Accel::Auto | Accel::Tcg => Kvm::Broken,
            },
        };
        let root = cache.root().to_owned();
        let cached = walkdir::WalkDir::new(&root)
            .into_iter()
            .filter_map(|entry| entry.ok()?.metadata().ok())
            .filter(|meta| meta.is_file())
            .map(|meta| meta.len())
            .sum();
        Ok(Survey { kvm, qemu, parts, archive, cache: root, cached })
    }
}
