//! The guest's root file system: a cpio archive in memory.
//!
//! Format: "newc", as in Linux, Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use cpio::newc::{Builder, ModeFileType, trailer};
use elf::ElfBytes;
use elf::abi::PT_INTERP;
use elf::endian::AnyEndian;

use super::error::VmError;

/// Device number of `/dev/console` (Linux, Documentation/admin-guide/devices.txt).
const CONSOLE: (u32, u32) = (5, 1);

/// Writes an archive entry by entry; parent directories come by themselves.
pub(super) struct Archive<W: Write> {
    out: W,
    inode: u32,
    present: BTreeSet<String>,
}

impl<W: Write> Archive<W> {
    /// Begins an archive on `out`.
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0, present: BTreeSet::new() }
    }

    /// A directory, with those above it.
    pub(super) fn directory(&mut self, path: &str) -> io::Result<()> {
        let path = relative(path)?;
        if path.is_empty() || self.present.contains(path) {
            return Ok(());
        }
        self.entry(path, ModeFileType::Directory, 0o755, (0, 0), &[])
    }

    /// A regular file.
    pub(super) fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> io::Result<()> {
        self.entry(relative(path)?, ModeFileType::Regular, mode & 0o7777, (0, 0), data)
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(relative(path)?, ModeFileType::Symlink, 0o777, (0, 0), target.as_bytes())
    }

    /// The device node that the kernel opens for the first process.
    pub(super) fn console(&mut self) -> io::Result<()> {
        self.entry("dev/console", ModeFileType::Char, 0o600, CONSOLE, &[])
    }

    /// Ends the archive.
    pub(super) fn finish(self) -> io::Result<W> {
        let mut out = trailer(self.out)?;
        out.flush()?;
        Ok(out)
    }

    fn entry(
        &mut self,
        path: &str,
        kind: ModeFileType,
        mode: u32,
        device: (u32, u32),
        data: &[u8],
    ) -> io::Result<()> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        if !self.present.insert(path.to_owned()) {
            return Err(invalid(format!("{path} is placed in the guest twice")));
        }
        let size = u32::try_from(data.len())
            .map_err(|_| invalid(format!("{path}: {} bytes are over 4 GiB", data.len())))?;
        self.inode += 1;
        let header = Builder::new(path)
            .ino(self.inode)
            .mode(mode)
            .set_mode_file_type(kind)
            .rdev_major(device.0)
            .rdev_minor(device.1);
        let mut writer = header.write(&mut self.out, size);
        writer.write_all(data)?;
        writer.finish()?;
        Ok(())
    }
}

/// An absolute guest path without its first slash; `.` and `..` are refused.
fn relative(path: &str) -> io::Result<&str> {
    let path = path.trim_matches('/');
    let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains('\0');
    if path.is_empty() || path.split('/').all(plain) {
        Ok(path)
    } else {
        Err(invalid(format!("{path:?} is not a plain path")))
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Refuses a program that needs a dynamic loader: the guest has no libraries.
pub(super) fn check_static(path: &Path, data: &[u8]) -> Result<(), VmError> {
    let refuse = |why: String| Err(VmError::NotStatic { path: path.to_owned(), why });
    let file = match ElfBytes::<AnyEndian>::minimal_parse(data) {
        Ok(file) => file,
        Err(e) => return refuse(format!("not an ELF file: {e}")),
    };
    let Some(segments) = file.segments() else {
        return refuse("it has no segments".into());
    };
    match segments.iter().find(|s| s.p_type == PT_INTERP) {
        None => Ok(()),
        Some(segment) => {
            let loader = file.segment_data(&segment).unwrap_or_default();
            let loader = String::from_utf8_lossy(loader);
            refuse(format!("it asks for the loader {}", loader.trim_end_matches('\0')))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::Read;

    #[test]
    fn archive_reads_back() {
        let mut archive = Archive::new(Vec::new());
        archive.console().unwrap();
        archive.file("/bin/tool", 0o755, b"abc").unwrap();
        archive.link("/bin/sh", "tool").unwrap();
        archive.directory("/bin").unwrap();
        let data = archive.finish().unwrap();

        let mut rest = data.as_slice();
        let mut seen = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let entry = reader.entry();
            let (name, mode) = (entry.name().to_owned(), entry.mode());
            let device = (entry.rdev_major(), entry.rdev_minor());
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            seen.push((name, mode, device, text));
            rest = reader.finish().unwrap();
        }
        let entry = |name: &str, mode, device, text: &str| (name.into(), mode, device, text.into());
        assert_eq!(
            seen,
            [
                entry("dev", 0o040_755, (0, 0), ""),
                entry("dev/console", 0o020_600, (5, 1), ""),
                entry("bin", 0o040_755, (0, 0), ""),
                entry("bin/tool", 0o100_755, (0, 0), "abc"),
                entry("bin/sh", 0o120_777, (0, 0), "tool"),
            ]
        );
    }

    #[test]
    fn entries_are_padded_to_four_bytes() {
        let mut archive = Archive::new(Vec::new());
        archive.file("/a", 0o644, b"12345").unwrap();
        // Header 110 + name 2 = 112, then 5 bytes of data padded to 8, then the trailer.
        assert_eq!(&archive.finish().unwrap()[112 + 8..][..6], b"070701");
    }

    #[test]
    fn paths_that_leave_the_root_or_repeat_are_refused() {
        let mut archive = Archive::new(Vec::new());
        assert!(archive.file("/a/../b", 0o644, b"").is_err());
        archive.file("/a", 0o644, b"").unwrap();
        assert!(archive.file("a", 0o644, b"").is_err());
    }

    #[test]
    fn dynamic_programs_are_refused() {
        let own = std::env::current_exe().unwrap();
        check_static(&own, &std::fs::read(&own).unwrap()).unwrap();
        // Only a machine whose own tools are dynamic can show the refusal of a real one.
        let shell = Path::new("/bin/sh").canonicalize().unwrap();
        let error = check_static(&shell, &std::fs::read(&shell).unwrap()).unwrap_err();
        assert!(error.to_string().contains("loader /lib"), "{error}");
        assert!(check_static(&own, b"#!/bin/sh\n").is_err());
    }
}
