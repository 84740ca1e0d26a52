//! The files that results go to: known to be writable before anything is measured, and
//! whole or not there afterwards.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, TMPFS_MAGIC, fstatfs};
use tempfile::NamedTempFile;

use super::error::BenchError;

/// What a guest's init sets (`vm/guest_init.sh`).
const GUEST: &str = "VFIO_DMA_GUEST";
/// RAMFS_MAGIC (linux/magic.h): where an initramfs is.
const RAMFS: FsType = FsType(0x8584_58f6);

/// A file that results will be written to.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Beside the path, to be renamed over it.
    Beside(NamedTempFile),
    /// The path is no regular file: a pipe, a terminal, a device.
    Special(File),
}

impl Output {
    /// Makes sure that the path can be written.
    ///
    /// # Errors
    ///
    /// Names the path, and why it cannot be written.
    pub fn prepare(path: &Path) -> Result<Output, BenchError> {
        let failed = |source| BenchError::CannotWrite { path: path.to_owned(), source };
        // What a link leads to is replaced, not the link.
        let target = path.is_symlink().then(|| fs::canonicalize(path)).and_then(Result::ok);
        let path = target.as_deref().unwrap_or(path);
        let place = match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                return Err(BenchError::IsDirectory { path: path.to_owned() });
            }
            Ok(metadata) if !metadata.is_file() => {
                Place::Special(OpenOptions::new().write(true).open(path).map_err(failed)?)
            }
            found => {
                if found.is_ok() {
                    // One that cannot be written is not replaced either.
                    OpenOptions::new().write(true).open(path).map_err(failed)?;
                }
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                let parent = parent.unwrap_or(Path::new("."));
                fs::metadata(parent).map_err(failed)?;
                let file = tempfile::Builder::new()
                    .prefix(".vfio-dma-")
                    // As for any new file: what the umask leaves.
                    .permissions(fs::Permissions::from_mode(0o666))
                    .tempfile_in(parent)
                    .map_err(failed)?;
                Place::Beside(file)
            }
        };
        Ok(Output { path: path.to_owned(), place })
    }

    /// Whether what is written is lost when the guest ends that this process runs in: the file
    /// is in the guest's memory.
    #[must_use]
    pub fn is_lost_with_guest(&self) -> bool {
        let in_memory = |file: &File| {
            fstatfs(file).is_ok_and(|fs| matches!(fs.filesystem_type(), RAMFS | TMPFS_MAGIC))
        };
        match &self.place {
            Place::Beside(file) => std::env::var_os(GUEST).is_some() && in_memory(file.as_file()),
            Place::Special(_) => false,
        }
    }

    /// The path, without links.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the regular file at a path.
    #[must_use]
    pub fn is(&self, path: &Path) -> bool {
        let whole = |path: &Path| {
            if let Ok(path) = fs::canonicalize(path) {
                return Some(path);
            }
            // It is not there yet, but its directory is.
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = fs::canonicalize(parent.unwrap_or(Path::new("."))).ok()?;
            Some(parent.join(path.file_name()?))
        };
        matches!(self.place, Place::Beside(_)) && whole(&self.path) == whole(path)
    }

    /// Writes the text; the file has all of it, or is what it was before.
    ///
    /// # Errors
    ///
    /// Names the file, and why it was not written, such as a full disk.
    pub fn write(self, text: &str) -> Result<(), BenchError> {
        let Output { path, place } = self;
        let written = match place {
            Place::Special(mut file) => file.write_all(text.as_bytes()),
            Place::Beside(mut file) => file
                .write_all(text.as_bytes())
                .and_then(|()| file.as_file().sync_all())
                .and_then(|()| file.persist(&path).map_err(|error| error.error).map(drop)),
        };
        written.map_err(|source| BenchError::NotWritten { path, source })
    }
}

/// The files of a benchmark.
#[derive(Debug, Default)]
pub struct Outputs {
    files: Vec<(Output, Kind)>,
}

/// Makes a file's text of results.
pub type Kind = fn(&super::results::Results) -> Result<String, BenchError>;

impl Outputs {
    /// Adds a file, if there is to be one.
    ///
    /// # Errors
    ///
    /// As [`Output::prepare`], and when it is there already.
    pub fn add(&mut self, path: Option<&Path>, kind: Kind) -> Result<(), BenchError> {
        if let Some(path) = path {
            let output = Output::prepare(path)?;
            if self.files.iter().any(|(other, _)| other.is(path)) {
                return Err(BenchError::SameFile { path: path.to_owned() });
            }
            self.files.push((output, kind));
        }
        Ok(())
    }

    /// The files themselves.
    pub fn iter(&self) -> impl Iterator<Item = &Output> {
        self.files.iter().map(|(output, _)| output)
    }

    /// Writes all files, also when one of them fails; returns what failed.
    #[must_use]
    pub fn write(self, results: &super::results::Results) -> Vec<BenchError> {
        let write =
            |(output, kind): (Output, Kind)| kind(results).and_then(|text| output.write(&text));
        self.files.into_iter().map(write).filter_map(Result::err).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results");
        fs::write(&path, "old").unwrap();
        let output = Output::prepare(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old", "preparing changes nothing");
        drop(output);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left behind");
        Output::prepare(&path).unwrap().write("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_is_not_there_twice_whatever_it_is_called() {
        let dir = tempfile::tempdir().unwrap();
        let [plain, round, link] = ["a", "./a", "link"].map(|name| dir.path().join(name));
        fs::write(&plain, "old").unwrap();
        std::os::unix::fs::symlink("a", &link).unwrap();
        for again in [&plain, &round, &link] {
            let mut outputs = Outputs::default();
            outputs.add(Some(&plain), |_| Ok(String::new())).unwrap();
            let error = outputs.add(Some(again), |_| Ok(String::new())).unwrap_err();
            assert!(matches!(error, BenchError::SameFile { .. }), "{error}");
        }
        let mut outputs = Outputs::default();
        for path in ["/dev/null", "/dev/null"] {
            outputs.add(Some(Path::new(path)), |_| Ok(String::new())).unwrap();
        }
        assert!(outputs.iter().all(|output| !output.is_lost_with_guest()));
    }

    #[test]
    fn a_link_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let [path, link] = ["results", "link"].map(|name| dir.path().join(name));
        fs::write(&path, "old").unwrap();
        std::os::unix::fs::symlink("results", &link).unwrap();
        Output::prepare(&link).unwrap().write("new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = Output::prepare(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is a directory"), "{error}");
        let path = dir.path().join("nowhere/results");
        let error = Output::prepare(&path).unwrap_err().to_string();
        assert!(error.contains("nowhere/results: No such file"), "{error}");
        let error = Output::prepare(Path::new("/dev/full")).unwrap().write("text").unwrap_err();
        assert!(error.to_string().contains("/dev/full was not written: No space left"), "{error}");
    }
}
