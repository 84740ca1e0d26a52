//! A QEMU that knows `vfio-user-pci`: found on the system, or fetched.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::{self, Apt};
use super::cache::{Cache, identity};
use super::error::{Context, VmError};
use crate::progress::Step;

const PROGRAM: &str = "qemu-system-x86_64";
/// The suites a QEMU of version 10.1 or later comes from, newest last.
pub(super) const SUITES: [&str; 2] = ["trixie", "trixie-backports"];
/// Name of the directory under the cache that holds apt's own state.
pub(super) const APT_KIND: &str = "apt-trixie";

/// How to start QEMU.
#[derive(Debug, Clone)]
pub(super) struct Qemu {
    program: PathBuf,
    arguments: Vec<OsString>,
    module_dir: Option<PathBuf>,
    identity: String,
}

impl Qemu {
    /// The QEMU in `VFIO_DMA_QEMU`, else the one in PATH when it is new enough, else one
    /// fetched from the Debian archive that this machine uses.
    pub(super) fn find(cache: &Cache) -> Result<Self, VmError> {
        if let Some(path) = std::env::var_os("VFIO_DMA_QEMU") {
            let qemu = Self::installed(PathBuf::from(path))?;
            if !qemu.suits(cache)? {
                return Err(VmError::OldQemu { path: qemu.program });
            }
            return Ok(qemu);
        }
        if let Ok(path) = which::which(PROGRAM) {
            let qemu = Self::installed(path)?;
            if qemu.suits(cache)? {
                return Ok(qemu);
            }
            log::info!("{} lacks vfio-user-pci", qemu.program.display());
        }
        Self::fetched(cache)
    }

    /// The program of [`Qemu::find`], unless it would have to be fetched.
    pub(super) fn here(cache: &Cache) -> Result<Option<PathBuf>, VmError> {
        if let Some(path) = std::env::var_os("VFIO_DMA_QEMU") {
            return Ok(Some(path.into()));
        }
        if let Ok(path) = which::which(PROGRAM)
            && Self::installed(path.clone())?.suits(cache)?
        {
            return Ok(Some(path));
        }
        Ok(cache.found("qemu", "current").map(|tree| tree.join("usr/bin").join(PROGRAM)))
    }

    fn fetched(cache: &Cache) -> Result<Self, VmError> {
        let apt_root = cache.kind(APT_KIND)?;
        Self::in_tree(&cache.entry("qemu", "current", |tree| fetch(&apt_root, tree))?)
    }

    fn installed(program: PathBuf) -> Result<Self, VmError> {
        let identity = identity(&program)?;
        Ok(Self { program, arguments: Vec::new(), module_dir: None, identity })
    }

    /// A QEMU in an unpacked tree of packages, started through the tree's own loader.
    fn in_tree(tree: &Path) -> Result<Self, VmError> {
        if tree.to_string_lossy().contains([':', ';']) {
            return Err(VmError::BadConfig {
                what: "cache directory",
                value: tree.display().to_string(),
                why: "the loader takes no path with a colon; set XDG_CACHE_HOME to another".into(),
            });
        }
        let libraries = tree.join("usr/lib/x86_64-linux-gnu");
        let program = tree.join("usr/bin").join(PROGRAM);
        let share = tree.join("usr/share");
        let arguments: Vec<OsString> = vec![
            "--library-path".into(),
            libraries.clone().into(),
            program.clone().into(),
            "-L".into(),
            share.join("qemu").into(),
            "-L".into(),
            share.join("seabios").into(),
        ];
        Ok(Self {
            program: tree.join("usr/lib64/ld-linux-x86-64.so.2"),
            arguments,
            module_dir: Some(libraries.join("qemu")),
            identity: identity(&program)?,
        })
    }

    /// What tells this QEMU from another.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// A command that starts it; arguments are to be added.
    #[must_use]
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        if let Some(dir) = &self.module_dir {
            command.env("QEMU_MODULE_DIR", dir);
        }
        command
    }

    fn suits(&self, cache: &Cache) -> Result<bool, VmError> {
        let answer = cache.remember("vfio-user", &self.identity, || {
            Ok(if self.knows_vfio_user()? { "yes" } else { "no" }.to_owned())
        })?;
        Ok(answer == "yes")
    }

    fn knows_vfio_user(&self) -> Result<bool, VmError> {
        let output = self.command().args(["-device", "help"]).output().at("run", &self.program)?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(output.status.success() && text.contains("\"vfio-user-pci\""))
    }
}

fn fetch(apt_root: &Path, tree: &Path) -> Result<String, VmError> {
    let apt = Apt::open(apt_root, &SUITES)?;
    let step = Step::long("fetching QEMU (once)");
    let debs = apt.download_closure(SUITES[1], &["qemu-system-x86"], &step)?;
    drop(step);
    let version = apt::version(&debs, "qemu-system-x86")?;
    apt::unpack(&debs, tree)?;
    apt.empty_archives()?;
    let qemu = Qemu::in_tree(tree)?;
    if !qemu.knows_vfio_user()? {
        return Err(VmError::OldQemu { path: qemu.program });
    }
    Ok(version)
}
