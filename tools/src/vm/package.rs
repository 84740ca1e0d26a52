//! Programs of Debian packages as files for a guest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::{self, Apt};
use super::cache::Cache;
use super::config::GuestFile;
use super::error::{Context, VmError};
use super::qemu::{APT_KIND, SUITES};
use crate::progress::Step;

/// A package with what it depends on, unpacked.
pub(super) struct Package {
    tree: PathBuf,
    /// Where its files go in the guest, such as `/opt/pciutils`.
    guest: String,
}

impl Package {
    /// Fetches a package once.
    pub(super) fn fetch(name: &str) -> Result<Package, VmError> {
        let cache = Cache::open()?;
        let apt_root = cache.kind(APT_KIND)?;
        let tree = cache.entry(name, "current", |tree| {
            let apt = Apt::open(&apt_root, &SUITES)?;
            let step = Step::new(format!("fetching {name}"));
            let debs = apt.download_closure(SUITES[0], &[name], &step)?;
            drop(step);
            let version = apt::version(&debs, name)?;
            apt::unpack(&debs, tree)?;
            apt.empty_archives()?;
            Ok(version)
        })?;
        Ok(Package { tree, guest: format!("/opt/{name}") })
    }

    /// A file of the package at a place in the guest.
    pub(super) fn file(&self, path: &str, guest: &str, mode: u32) -> Result<GuestFile, VmError> {
        let path = self.tree.join(path);
        let host = path.canonicalize().at("find", &path)?;
        Ok(GuestFile { host, guest: guest.to_owned(), mode })
    }

    /// A program, started by [`Package`]'s loader with its libraries.
    pub(super) fn program(&self, path: &str) -> Result<GuestFile, VmError> {
        let name = Path::new(path).file_name().unwrap_or_default().to_string_lossy();
        self.file(path, &format!("{}/{name}", self.guest), 0o755)
    }

    /// The loader, and the libraries that a program needs, all in one directory of the guest.
    /// They are looked for in these directories, by the package's own loader.
    pub(super) fn needed(&self, program: &str, dirs: &[&str]) -> Result<Vec<GuestFile>, VmError> {
        let loader = "usr/lib64/ld-linux-x86-64.so.2";
        let dirs = dirs.iter().map(|dir| self.tree.join(dir).display().to_string());
        let path = dirs.collect::<Vec<_>>().join(":");
        let mut command = Command::new(self.tree.join(loader));
        command.arg("--library-path").arg(path).arg("--list").arg(self.tree.join(program));
        let list = apt::run_with_lines(command, |_| ())?;
        let mut files = vec![self.file(loader, &format!("{}/ld.so", self.guest), 0o755)?];
        for line in list.lines() {
            // `libz.so.1 => /tree/usr/lib/libz.so.1 (0x...)`; the loader itself is not relative.
            let Some((name, found)) = line.trim().split_once(" => ") else { continue };
            let found = Path::new(found.split(" (").next().unwrap_or(found));
            if !name.contains('/') {
                let host = found.canonicalize().at("find", found)?;
                let guest = format!("{}/{name}", self.guest);
                files.push(GuestFile { host, guest, mode: 0o755 });
            }
        }
        Ok(files)
    }

    /// The loader, and the libraries below these directories, all in one.
    pub(super) fn libraries(&self, dirs: &[&str]) -> Result<Vec<GuestFile>, VmError> {
        let loader = format!("{}/ld.so", self.guest);
        let mut files = vec![self.file("usr/lib64/ld-linux-x86-64.so.2", &loader, 0o755)?];
        for dir in dirs {
            let dir = self.tree.join(dir);
            for entry in fs::read_dir(&dir).at("read", &dir)? {
                let path = entry.at("read", &dir)?.path();
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                // The names that programs ask for: `libpci.so.3`.
                if name.contains(".so") && path.is_file() {
                    let host = path.canonicalize().at("find", &path)?;
                    let guest = format!("{}/{name}", self.guest);
                    files.push(GuestFile { host, guest, mode: 0o755 });
                }
            }
        }
        Ok(files)
    }
}
