//! The machine that the devices are in: what is on its bus, and which driver has what.
//!
//! [`Sysfs`] enumerates the PCI functions, binds them to vfio-pci and gives them back. What
//! only opening a device needs to know is in [`crate::pci::sysfs`].

mod awake;
mod bind;
mod comeback;
mod config_file;
mod driver;
mod enumerate;
mod error;
mod header;
mod holder;
mod host_use;
mod ids;
mod in_use;
mod inspect;
mod module;
mod nodes;
mod persist;
mod record;
mod reset;
mod reset_scope;
mod selector;
mod several;
mod silence;
mod status;
mod unused;

#[cfg(test)]
mod fake;

use std::fmt;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use crate::pci::sysfs::Tree;

pub use awake::Awake;
pub use bind::{Binding, Choice, Unbound};
pub use comeback::Returned;
pub use config_file::ConfigFile;
pub use enumerate::{Bar, BarKind, PciDeviceInfo};
pub use error::{Aftermath, Holder, HostError, Result};
pub use header::ConfigHeader;
pub use host_use::HostUse;
pub use ids::PciIds;
pub use inspect::{Errors, Hop, Inspection, Link, LinkRate, Power, VirtualFunctions};
pub use record::Former;
pub use reset::{ResetPlan, ResetWay};
pub use reset_scope::ResetScope;
pub use selector::{Selector, SelectorError};
pub use silence::Silence;
pub use status::FunctionStatus;

/// How long the kernel may take for one probe or removal of a driver. Removing a network or
/// storage driver takes seconds; a driver that waits for a user may take for ever.
const DRIVER_TIMEOUT: Duration = Duration::from_secs(30);

type WriteAttribute = dyn Fn(&Path, &str) -> io::Result<()> + Send + Sync;

/// The sysfs of this machine, or a tree of the same shape elsewhere.
#[derive(Clone)]
pub struct Sysfs {
    tree: Tree,
    /// Where the former driver of a bound function is kept for a later process.
    records: PathBuf,
    /// Where udev's rules of this machine are.
    rules: PathBuf,
    /// Where processes and their open files are found.
    proc: PathBuf,
    /// Where device nodes are found.
    dev: PathBuf,
    /// Programs to try, in order, to load a module.
    modprobe: Vec<PathBuf>,
    /// How an attribute is written. The tests put the kernel's side of an attribute here.
    write: Arc<WriteAttribute>,
    timeout: Duration,
}

impl fmt::Debug for Sysfs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sysfs").field("tree", &self.tree).finish_non_exhaustive()
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
            tree: Tree::at(root),
            records: PathBuf::from("/run/vfio-dma"),
            rules: PathBuf::from("/etc/udev/rules.d"),
            proc: PathBuf::from("/proc"),
            dev: PathBuf::from("/dev"),
            // The second is for a PATH without the system directories.
            modprobe: vec![PathBuf::from("modprobe"), PathBuf::from("/sbin/modprobe")],
            write: Arc::new(write_attribute),
            timeout: DRIVER_TIMEOUT,
        }
    }

    /// What can be read without a change to anything.
    #[must_use]
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The directory of a PCI driver; it exists while the driver is registered.
    fn driver_dir(&self, driver: &str) -> PathBuf {
        self.tree.root().join("bus/pci/drivers").join(driver)
    }

    /// Writes an attribute whose handler calls into drivers, and waits for a bounded time.
    fn write(&self, path: &Path, value: &str) -> Result<()> {
        log::debug!("writing {value:?} to {}", path.display());
        let failed = |source| HostError::write(path.to_owned(), value, source);
        let (sender, receiver) = mpsc::channel();
        let (write, target, text) = (self.write.clone(), path.to_owned(), value.to_owned());
        let writer = move || {
            // No receiver is left when the time was over.
            let _ = sender.send(write(&target, &text));
        };
        thread::Builder::new().name("sysfs-write".into()).spawn(writer).map_err(failed)?;
        match receiver.recv_timeout(self.timeout) {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(HostError::Stuck {
                path: path.to_owned(),
                value: value.to_owned(),
                after: self.timeout,
            }),
        }
    }
}

/// Hands `value` and a line feed to the kernel in one write, as sysfs wants it.
fn write_attribute(path: &Path, value: &str) -> io::Result<()> {
    // Neither created nor truncated: the attribute exists, or the write fails.
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    file.write_all(format!("{value}\n").as_bytes())
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
            Err(HostError::Stuck { value, .. }) => assert_eq!(value, "x"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_attribute_is_written_at_once_and_never_created() {
        let fake = Fake::new();
        let sysfs = Sysfs::at(fake.path(""));
        let path = fake.path("attribute");
        assert!(matches!(sysfs.write(&path, "1"), Err(HostError::Write { .. })));
        assert!(!path.exists());
        fs::write(&path, "").unwrap();
        sysfs.write(&path, "0000:00:05.0").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "0000:00:05.0\n");
    }
}
