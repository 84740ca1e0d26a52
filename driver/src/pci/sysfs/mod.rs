//! PCI functions as sysfs shows them: enumeration, IOMMU groups, drivers.
//!
//! The files are described in the kernel's `Documentation/ABI/testing/sysfs-bus-pci` and
//! `sysfs-kernel-iommu_groups`.

mod bind;
mod driver;
mod enumerate;
mod group;
mod holder;
mod module;
mod record;

#[cfg(test)]
mod fake;

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use super::error::{PciError, Result};
use super::{Address, ConfigSpace};

pub use bind::{Binding, Choice, Unbound};
pub use enumerate::{Bar, BarKind, PciDeviceInfo};
pub use group::{IommuGroup, Viability};
pub use record::Former;

/// The driver that hands a PCI function to userspace.
pub const VFIO_PCI: &str = "vfio-pci";

/// How long the kernel may take for one probe or removal of a driver. Removing a network or
/// storage driver takes seconds; a driver that waits for a user may take for ever.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(30);

type WriteAttribute = dyn Fn(&Path, &str) -> io::Result<()> + Send + Sync;

/// The sysfs of this machine, or a tree of the same shape elsewhere.
#[derive(Clone)]
pub struct Sysfs {
    root: PathBuf,
    /// Where the former driver of a bound function is kept for a later process.
    records: PathBuf,
    /// Where processes and their open files are found.
    proc: PathBuf,
    /// Programs to try, in order, to load a module.
    modprobe: Vec<PathBuf>,
    /// How an attribute is written. The tests put the kernel's side of an attribute here.
    write: Arc<WriteAttribute>,
    timeout: Duration,
}

impl fmt::Debug for Sysfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sysfs").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Default for Sysfs {
    fn default() -> Self {
        Sysfs::new()
    }
}

impl Sysfs {
    /// The sysfs of this machine, `/sys`.
    #[must_use]
    pub fn new() -> Sysfs {
        Sysfs::at("/sys")
    }

    /// A tree of the shape of `/sys` at another place, such as a container's view of its host.
    #[must_use]
    pub fn at(root: impl Into<PathBuf>) -> Sysfs {
        Sysfs {
            root: root.into(),
            records: PathBuf::from("/run/vfio-dma"),
            proc: PathBuf::from("/proc"),
            // The second is for a PATH without the system directories.
            modprobe: vec![PathBuf::from("modprobe"), PathBuf::from("/sbin/modprobe")],
            write: Arc::new(write_attribute),
            timeout: DRIVER_TIMEOUT,
        }
    }

    /// Where the tree is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The first 64 bytes of the function's configuration space: what sysfs lets everyone read.
    ///
    /// # Errors
    ///
    /// Fails when there is no such function, and when the file cannot be read or is shorter.
    pub fn config_header(&self, address: Address) -> Result<ConfigSpace<ConfigHeader>> {
        let path = self.device_dir(address)?.join("config");
        let mut header = [0; 64];
        fs::File::open(&path)
            .and_then(|mut file| io::Read::read_exact(&mut file, &mut header))
            .map_err(|source| PciError::Read { path, source })?;
        Ok(ConfigSpace::new(ConfigHeader(header)))
    }

    /// The function's directory.
    ///
    /// # Errors
    ///
    /// [`PciError::NoDevice`] when it is not there.
    pub fn device_dir(&self, address: Address) -> Result<PathBuf> {
        let path = self.root.join("bus/pci/devices").join(address.to_string());
        match path.try_exists() {
            Ok(true) => Ok(path),
            Ok(false) => Err(PciError::NoDevice { address }),
            Err(source) => Err(PciError::Read { path, source }),
        }
    }

    /// The directory of a PCI driver; it exists while the driver is registered.
    fn driver_dir(&self, driver: &str) -> PathBuf {
        self.root.join("bus/pci/drivers").join(driver)
    }

    /// Writes an attribute whose handler calls into drivers, and waits for a bounded time.
    fn write(&self, path: &Path, value: &str) -> Result<()> {
        log::debug!("writing {value:?} to {}", path.display());
        let failed =
            |source| PciError::Write { path: path.to_owned(), value: value.to_owned(), source };
        let (sender, receiver) = mpsc::channel();
        let (write, target, text) = (self.write.clone(), path.to_owned(), value.to_owned());
        let writer = move || {
            // No receiver is left when the time was over.
            let _ = sender.send(write(&target, &text));
        };
        thread::Builder::new().name("sysfs-write".into()).spawn(writer).map_err(failed)?;
        match receiver.recv_timeout(self.timeout) {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(PciError::Stuck {
                path: path.to_owned(),
                value: value.to_owned(),
                after: self.timeout,
            }),
        }
    }
}

/// A copy of a function's configuration header; it takes no writes.
#[derive(Debug, Clone)]
pub struct ConfigHeader([u8; 64]);

mod config_header {
    use super::ConfigHeader;
    use crate::backend::{BackendError, Region};
    use crate::pci::ConfigAccess;

    impl ConfigAccess for ConfigHeader {
        fn size(&self) -> Result<u64, BackendError> {
            Ok(self.0.len() as u64)
        }

        fn read(&self, offset: u16, data: &mut [u8]) -> Result<(), BackendError> {
            let start = usize::from(offset);
            let bytes = start.checked_add(data.len()).and_then(|end| self.0.get(start..end));
            data.copy_from_slice(bytes.ok_or(BackendError::OutOfBounds {
                region: Region::Config,
                offset: u64::from(offset),
                len: data.len(),
                size: self.0.len() as u64,
            })?);
            Ok(())
        }

        fn write(&self, _offset: u16, _data: &[u8]) -> Result<(), BackendError> {
            Err(BackendError::Unsupported {
                what: "a write".into(),
                by: "a copy of the configuration header".into(),
            })
        }
    }
}

/// Hands `value` and a line feed to the kernel in one write, as sysfs wants it.
fn write_attribute(path: &Path, value: &str) -> io::Result<()> {
    // Neither created nor truncated: the attribute exists, or the write fails.
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(format!("{value}\n").as_bytes())
}

/// An attribute's text without the line feed.
fn read_text(path: &Path) -> Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim_end_matches(['\n', '\0']).to_owned()),
        Err(source) => Err(PciError::Read { path: path.to_owned(), source }),
    }
}

/// The last component of what a symbolic link points to; `None` when there is no link.
fn link_name(path: &Path) -> Result<Option<String>> {
    match fs::read_link(path) {
        Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PciError::Read { path: path.to_owned(), source }),
    }
}

/// The names in a directory, sorted.
fn names(path: &Path) -> Result<Vec<String>> {
    let failed = |source| PciError::Read { path: path.to_owned(), source };
    let mut names = fs::read_dir(path)
        .map_err(failed)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(failed)?;
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;
    use super::*;

    #[test]
    fn a_write_that_the_kernel_does_not_finish_is_given_up() {
        let fake = Fake::new();
        let pipe = fake.path("never-read");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Nobody opens the other end, so that the real write blocks.
        let sysfs = Sysfs { timeout: Duration::from_millis(50), ..Sysfs::at(fake.path("")) };
        match sysfs.write(&pipe, "x") {
            Err(PciError::Stuck { value, .. }) => assert_eq!(value, "x"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_attribute_is_written_at_once_and_never_created() {
        let fake = Fake::new();
        let sysfs = Sysfs::at(fake.path(""));
        let path = fake.path("attribute");
        assert!(matches!(sysfs.write(&path, "1"), Err(PciError::Write { .. })));
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        sysfs.write(&path, "0000:00:05.0").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "0000:00:05.0\n");
    }

    #[test]
    fn the_configuration_header_is_read_and_bounded() {
        let fake = Fake::new();
        let address = fake.device("0000:00:05.0", 0x1234, 0x11e8, None, None);
        let config = fake.sysfs().config_header(address).unwrap();
        assert_eq!(config.vendor_id().unwrap(), 0x1234);
        assert_eq!(config.device_id().unwrap(), 0x11e8);
        assert!(config.read_u8(64).is_err());
        assert!(config.write_u8(4, 0).is_err());
    }
}
