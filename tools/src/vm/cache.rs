//! What was fetched or built once, kept under the user's cache directory.
//!
//! Layout: `ROOT/KIND/KEY/` holds a finished entry, `ROOT/KIND/SLOT` is a symbolic link to
//! the entry in use. An entry is made in a temporary directory beside it and renamed when
//! it is whole, so that one which exists is complete. Removing ROOT, or one KIND in it,
//! makes the next run fetch anew.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use etcetera::BaseStrategy;
use sha2::{Digest, Sha256};

use super::error::{Context, VmError};
use crate::progress::Step;

/// Longest wait for another process that fills the same entry: a kernel build is the
/// longest there is.
const LOCK_LIMIT: Duration = Duration::from_secs(30 * 60);
const LOCK_POLL: Duration = Duration::from_millis(100);
const TEMPORARY: &str = ".new-";

/// The cache directory.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
    read_only: bool,
}

impl Cache {
    /// Opens `${XDG_CACHE_HOME:-~/.cache}/vfio-dma`.
    pub(crate) fn open() -> Result<Self, VmError> {
        let base = etcetera::base_strategy::Xdg::new().map_err(|e| VmError::Io {
            what: "find the home directory (set XDG_CACHE_HOME)".into(),
            source: std::io::Error::other(e),
        })?;
        Ok(Self::at(base.cache_dir().join("vfio-dma")))
    }

    /// Uses `root`, which is created when something is put into it.
    #[must_use]
    pub(crate) fn at(root: PathBuf) -> Self {
        Self { root, read_only: false }
    }

    /// The same directory, to which nothing is added: what is not there is an error.
    #[must_use]
    pub(super) fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// Where it is.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The entry in use of a kind, if there is one.
    pub(crate) fn found(&self, kind: &str, slot: &str) -> Option<PathBuf> {
        self.root.join(kind).join(slot).canonicalize().ok()
    }

    /// The directory of everything of one kind, created when absent.
    pub(crate) fn kind(&self, kind: &str) -> Result<PathBuf, VmError> {
        let dir = self.root.join(kind);
        if self.read_only {
            return Ok(dir);
        }
        fs::create_dir_all(&dir).at("create", &dir)?;
        Ok(dir)
    }

    /// The entry that `slot` of `kind` points at; `build` makes it when there is none.
    ///
    /// `build` fills the directory that it is given and returns the entry's key, such as a
    /// version. It runs in one process at a time.
    pub(crate) fn entry(
        &self,
        kind: &str,
        slot: &str,
        build: impl FnOnce(&Path) -> Result<String, VmError>,
    ) -> Result<PathBuf, VmError> {
        let dir = self.kind(kind)?;
        let link = dir.join(slot);
        if let Ok(found) = link.canonicalize() {
            return Ok(found);
        }
        if self.read_only {
            return Err(VmError::NotCached { what: format!("{kind}/{slot}") });
        }
        let _lock = lock(&dir.join("lock"))?;
        if let Ok(found) = link.canonicalize() {
            return Ok(found);
        }
        remove_leftovers(&dir)?;
        let new = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempdir_in(&dir)
            .at("create a directory in", &dir)?;
        let key = build(new.path())?;
        let target = dir.join(&key);
        if target.exists() {
            fs::remove_dir_all(&target).at("remove", &target)?;
        }
        let new = new.keep();
        fs::rename(&new, &target).at("create", &target)?;
        let staged = dir.join(format!("{TEMPORARY}{slot}"));
        std::os::unix::fs::symlink(&key, &staged).at("create", &staged)?;
        fs::rename(&staged, &link).at("create", &link)?;
        target.canonicalize().at("find", &target)
    }

    /// The reply to a question about `subject`, asked once and remembered.
    ///
    /// `subject` must contain everything the reply depends on.
    pub(crate) fn remember(
        &self,
        question: &str,
        subject: &str,
        ask: impl FnOnce() -> Result<String, VmError>,
    ) -> Result<String, VmError> {
        let dir = self.kind("answers")?;
        let file = dir.join(format!("{question}-{}", digest(subject.as_bytes())));
        if let Ok(known) = fs::read_to_string(&file) {
            return Ok(known);
        }
        if self.read_only {
            return Err(VmError::NotCached { what: question.into() });
        }
        let text = ask()?;
        let mut new = tempfile::NamedTempFile::new_in(&dir).at("create a file in", &dir)?;
        new.write_all(text.as_bytes()).at("write", &file)?;
        new.persist(&file).map_err(|e| e.error).at("create", &file)?;
        Ok(text)
    }
}

/// The first 16 hexadecimal digits of the SHA-256 of `data`.
pub(crate) fn digest(data: &[u8]) -> String {
    Sha256::digest(data).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What identifies a file's present content cheaply: path, size and time of change.
pub(crate) fn identity(path: &Path) -> Result<String, VmError> {
    let meta = fs::metadata(path).at("read", path)?;
    let changed = meta.modified().at("read", path)?;
    let since = changed.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{} {} {}", path.display(), meta.len(), since.as_nanos()))
}

/// Locks the file at `path` until what is returned is dropped; waits for another process
/// that has it, for a bounded time.
pub(crate) fn lock(path: &Path) -> Result<File, VmError> {
    let file = File::create(path).at("create", path)?;
    let start = Instant::now();
    let mut step = None;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(e).at("lock", path),
            Err(TryLockError::WouldBlock) => {}
        }
        if start.elapsed() > LOCK_LIMIT {
            return Err(VmError::CacheBusy { path: path.to_owned(), waited: start.elapsed() });
        }
        step.get_or_insert_with(|| {
            Step::new(format!("waiting for another process that fills {}", path.display()))
        });
        std::thread::sleep(LOCK_POLL);
    }
}

/// Removes what a killed builder left; only called with the lock held.
fn remove_leftovers(dir: &Path) -> Result<(), VmError> {
    for entry in fs::read_dir(dir).at("read", dir)? {
        let entry = entry.at("read", dir)?;
        if !entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
            continue;
        }
        let path = entry.path();
        let is_dir = entry.file_type().at("read", &path)?.is_dir();
        let removed = if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.at("remove", &path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn entry_is_built_once_even_by_many_threads() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("c"));
        let built = AtomicUsize::new(0);
        let make = || {
            cache
                .entry("tool", "current", |new| {
                    built.fetch_add(1, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(30));
                    fs::write(new.join("f"), "x").unwrap();
                    Ok("1.2".into())
                })
                .unwrap()
        };
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| assert_eq!(fs::read(make().join("f")).unwrap(), b"x"));
            }
        });
        assert_eq!(built.load(Ordering::SeqCst), 1);
        assert!(make().ends_with("tool/1.2"));
    }

    #[test]
    fn failed_build_leaves_nothing_and_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned());
        let fail = cache.entry("tool", "current", |new| {
            fs::write(new.join("half"), "").unwrap();
            Err(VmError::Cancelled)
        });
        assert!(matches!(fail, Err(VmError::Cancelled)));
        let names: Vec<_> = fs::read_dir(dir.path().join("tool"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names, ["lock"]);
        let path = cache.entry("tool", "current", |_| Ok("2".into())).unwrap();
        assert!(!path.join("half").exists());
    }

    #[test]
    fn answers_are_kept_by_subject() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned());
        assert_eq!(cache.remember("q", "a", || Ok("1".into())).unwrap(), "1");
        assert_eq!(cache.remember("q", "a", || Ok("2".into())).unwrap(), "1");
        assert_eq!(cache.remember("q", "b", || Ok("2".into())).unwrap(), "2");
    }
}
