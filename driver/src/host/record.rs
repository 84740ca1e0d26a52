//! The former driver of a bound function, kept where a later process finds it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Sysfs;
use crate::pci::Address;

/// What a function had before it was bound to vfio-pci.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Former {
    /// Its driver, if any.
    pub driver: Option<String>,
    /// Its `driver_override`, if any.
    pub driver_override: Option<String>,
}

/// A [`Former`] as its file holds it, in JSON.
#[derive(serde::Serialize, serde::Deserialize)]
struct Record {
    driver: Option<String>,
    driver_override: Option<String>,
}

impl Former {
    /// Whether the names can be parts of a path: a record comes from a file.
    fn is_sound(&self) -> bool {
        [&self.driver, &self.driver_override].into_iter().flatten().all(|name| {
            !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\n', '\0'])
        })
    }
}

impl Sysfs {
    /// Keeps the record until [`Sysfs::forget`]; `/run` is emptied when the machine boots,
    /// and so are the bindings.
    pub(super) fn remember(&self, address: Address, former: &Former) -> io::Result<()> {
        self.keep(&self.record(address), former)
    }

    /// Keeps what a function had that was removed, until [`Sysfs::forget_removed`].
    pub(super) fn remember_removed(&self, address: Address, former: &Former) -> io::Result<()> {
        self.keep(&self.record_of_removed(address), former)
    }

    fn keep(&self, path: &Path, former: &Former) -> io::Result<()> {
        fs::create_dir_all(&self.records)?;
        // Written beside and renamed, so that a reader never sees half of it.
        let mut draft = path.as_os_str().to_owned();
        draft.push(".new");
        fs::write(
            &draft,
            serde_json::to_string(&Record {
                driver: former.driver.clone(),
                driver_override: former.driver_override.clone(),
            })?,
        )?;
        fs::rename(&draft, path)
    }

    /// The record of a function; one that is unreadable is reported and taken for none.
    pub(super) fn recall(&self, address: Address) -> Option<Former> {
        recall(&self.record(address))
    }

    /// What a function had that was removed.
    pub(super) fn recall_removed(&self, address: Address) -> Option<Former> {
        recall(&self.record_of_removed(address))
    }

    /// Drops the record of a function, if there is one.
    pub(super) fn forget(&self, address: Address) {
        forget(&self.record(address));
    }

    /// Drops the record of a function that was removed.
    pub(super) fn forget_removed(&self, address: Address) {
        forget(&self.record_of_removed(address));
    }

    fn record(&self, address: Address) -> PathBuf {
        self.records.join(address.to_string())
    }

    fn record_of_removed(&self, address: Address) -> PathBuf {
        self.records.join(format!("{address}.removed"))
    }
}

fn recall(path: &Path) -> Option<Former> {
    match load(path) {
        Ok(former) if former.is_sound() => Some(former),
        Ok(former) => {
            log::warn!("{}: ignored, not names of drivers: {former:?}", path.display());
            None
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            log::warn!("{}: ignored: {error}", path.display());
            None
        }
    }
}

fn forget(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warn!("removing {}: {error}", path.display());
    }
}

fn load(path: &Path) -> io::Result<Former> {
    let Record { driver, driver_override } = serde_json::from_str(&fs::read_to_string(path)?)?;
    Ok(Former { driver, driver_override })
}

#[cfg(test)]
mod tests {
    use super::super::fake::Fake;
    use super::*;

    #[test]
    fn a_record_is_found_again_until_forgotten() {
        let fake = Fake::new();
        let sysfs = fake.sysfs();
        let address = "0000:00:05.0".parse().unwrap();
        assert_eq!(sysfs.recall(address), None);
        let former = Former { driver: Some("edu".into()), driver_override: None };
        sysfs.remember(address, &former).unwrap();
        assert_eq!(sysfs.recall(address), Some(former));
        assert_eq!(sysfs.recall("0000:00:05.1".parse().unwrap()), None);
        sysfs.forget(address);
        assert_eq!(sysfs.recall(address), None);
        sysfs.forget(address);
    }

    #[test]
    fn a_record_that_leads_elsewhere_is_ignored() {
        let fake = Fake::new();
        let sysfs = fake.sysfs();
        let address = "0000:00:05.0".parse().unwrap();
        for name in ["../../../etc", "..", "", "a\nb"] {
            let former = Former { driver: Some(name.into()), driver_override: None };
            sysfs.remember(address, &former).unwrap();
            assert_eq!(sysfs.recall(address), None, "{name:?}");
        }
        fs::write(sysfs.record(address), "{").unwrap();
        assert_eq!(sysfs.recall(address), None);
    }
}
