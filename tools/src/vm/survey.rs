//! What guests need, and what of it this machine has; nothing is fetched or built.

use std::path::PathBuf;

use super::accel::{self, Kvm};
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
        let mut kvm = accel::kvm();
        if kvm == Kvm::Untried && qemu.is_some() && parts {
            // What it settles on is remembered.
            Guest::prepare(VmConfig::default())?;
            kvm = accel::kvm();
        }
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
