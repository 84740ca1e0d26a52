//! What can go wrong with a function's driver and its place in sysfs.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::pci::remedy::{Remedy, suffix};
use crate::pci::sysfs::{SysfsError, join};
use crate::pci::{Address, AddressError, ClassCode, PciError};

use super::{HostUse, ResetScope, Selector};

/// The result of an operation on the host's side of a function.
pub type Result<T> = std::result::Result<T, HostError>;

/// An operation on the host's side of a function that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// A name on the bus is not a PCI address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Sysfs does not tell what it is asked, or what it tells forbids the operation.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// Configuration space cannot be reached, or nothing answers there.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// A sysfs attribute could not be written.
    #[error("writing {value:?} to {}: {source}{}", path.display(), suffix(remedy.as_ref()))]
    Write {
        /// The attribute.
        path: PathBuf,
        /// What was written, without the line feed.
        value: String,
        /// The operating system's reason.
        source: io::Error,
        /// What the reader can do about it, where that is known.
        remedy: Option<Remedy>,
    },
    /// A kernel module is needed and cannot be loaded.
    #[error("the kernel module {module} is not loaded and cannot be: {reason}\n  remedy: {remedy}")]
    Module {
        /// The module's name.
        module: &'static str,
        /// Why it cannot be loaded.
        reason: String,
        /// What mends it.
        remedy: Remedy,
    },
    /// No function is what was asked for.
    #[error("no PCI function is {selector}\n  remedy: {}", Remedy::ListFunctions)]
    NoMatch {
        /// What was asked for.
        selector: Selector,
    },
    /// There is no way to reset so much of a function.
    #[error("{address} cannot be reset ({scope}): {reason}")]
    NoReset {
        /// The function.
        address: Address,
        /// How much was to be reset.
        scope: ResetScope,
        /// What is missing.
        reason: String,
    },
    /// A function that was removed is not found again.
    #[error(
        "{address} did not come back within {:.1} s\n  remedy: check that the card has its power \
         and, if it is programmable, that it is programmed; then have the bus scanned again",
        waited.as_secs_f32()
    )]
    NotBack {
        /// The function.
        address: Address,
        /// How long it was looked for.
        waited: Duration,
    },
    /// vfio-pci takes endpoints only.
    #[error("{address} is a {} (class {class}), which vfio-pci does not take", class.name())]
    NotAnEndpoint {
        /// The function.
        address: Address,
        /// Its class.
        class: ClassCode,
    },
    /// The function has another driver than it should have after a probe.
    #[error(
        "{address} has {} instead of {wanted}: the driver refused the device or is not \
         loaded\n  remedy: {}",
        driver_text(found.as_deref()), Remedy::ReadKernelLog
    )]
    WrongDriver {
        /// The function.
        address: Address,
        /// The driver that it should have.
        wanted: String,
        /// The driver that it has.
        found: Option<String>,
    },
    /// The kernel did not come back from a driver's probe or removal.
    #[error(
        "writing {value:?} to {}: the kernel is still at it after {} s; the driver waits for \
         something, such as a user of the device",
        path.display(), after.as_secs_f32()
    )]
    Stuck {
        /// The attribute.
        path: PathBuf,
        /// What was written.
        value: String,
        /// How long the kernel was given.
        after: Duration,
    },
    /// Binding failed half-way; says also what became of the function.
    #[error("binding {address} to vfio-pci failed: {cause}\n  {aftermath}")]
    Bind {
        /// The function.
        address: Address,
        /// Why the binding failed.
        #[source]
        cause: Box<HostError>,
        /// Whether everything is back as it was.
        aftermath: Aftermath,
    },
    /// The host uses the function: data may be lost when its driver is taken away.
    #[error("the host uses {address}: {}\n  remedy: {remedy}", join(uses))]
    Occupied {
        /// The function.
        address: Address,
        /// What it is used for.
        uses: Vec<HostUse>,
        /// What ends the uses.
        remedy: Remedy,
    },
    /// A process has the device open; taking the driver away would wait for it.
    #[error("{address} is in use by {}\n  remedy: {remedy}", join(holders))]
    InUse {
        /// The function.
        address: Address,
        /// Who has it open.
        holders: Vec<Holder>,
        /// What to do: for this process something else than for others.
        remedy: Remedy,
    },
}

impl HostError {
    /// A refused write, with the remedy for the reason.
    pub(super) fn write(path: PathBuf, value: &str, source: io::Error) -> HostError {
        let remedy = match source.kind() {
            io::ErrorKind::PermissionDenied => Some(Remedy::RunAsRoot),
            io::ErrorKind::ReadOnlyFilesystem => Some(
                "/sys is mounted read-only, as in a container: run on the host, or in a \
                 privileged container"
                    .into(),
            ),
            _ => None,
        };
        HostError::Write { path, value: value.to_owned(), source, remedy }
    }

    /// What the reader can do about it, where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<&Remedy> {
        match self {
            HostError::Sysfs(error) => error.remedy(),
            HostError::Pci(error) => error.remedy(),
            HostError::Write { remedy, .. } => remedy.as_ref(),
            HostError::Module { remedy, .. }
            | HostError::Occupied { remedy, .. }
            | HostError::InUse { remedy, .. } => Some(remedy),
            HostError::NoMatch { .. } => Some(&Remedy::ListFunctions),
            HostError::WrongDriver { .. } => Some(&Remedy::ReadKernelLog),
            HostError::Bind { aftermath: Aftermath::Pending { remedy }, .. } => Some(remedy),
            HostError::Bind { cause, .. } => cause.remedy(),
            HostError::Address(_)
            | HostError::NoReset { .. }
            | HostError::NotBack { .. }
            | HostError::NotAnEndpoint { .. }
            | HostError::Stuck { .. } => None,
        }
    }
}

/// What became of a function whose binding failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Aftermath {
    /// Everything is as before, with this driver or none.
    Restored(Option<String>),
    /// Putting it back failed too.
    NotRestored(Box<HostError>),
    /// Putting it back was not tried, because the kernel still works on the function.
    Pending {
        /// What puts it back later.
        remedy: Remedy,
    },
}

impl fmt::Display for Aftermath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Aftermath::Restored(driver) => {
                write!(f, "the device is as before, with {}", driver_text(driver.as_deref()))
            }
            Aftermath::NotRestored(error) => write!(f, "putting it back failed too: {error}"),
            Aftermath::Pending { remedy } => write!(f, "remedy: {remedy}"),
        }
    }
}

/// A process that has a device open.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its command name.
    pub command: String,
    /// The device node that it has open.
    pub node: PathBuf,
}

impl Holder {
    /// Whether it is this process.
    #[must_use]
    pub fn is_this_process(&self) -> bool {
        self.pid == std::process::id()
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_this_process() {
            write!(f, "this process, through {}", self.node.display())
        } else {
            write!(f, "process {} ({}), through {}", self.pid, self.command, self.node.display())
        }
    }
}

fn driver_text(driver: Option<&str>) -> String {
    driver.map_or_else(|| "no driver".to_owned(), |name| format!("the driver {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_the_value_and_the_remedy() {
        let denied = HostError::write(
            "/sys/x/driver_override".into(),
            "vfio-pci",
            io::Error::from_raw_os_error(libc::EACCES),
        );
        let text = denied.to_string();
        assert!(text.contains("/sys/x/driver_override") && text.contains("as root"), "{text}");
        assert_eq!(denied.remedy(), Some(&Remedy::RunAsRoot));
        let broken =
            HostError::write("/sys/x".into(), "1", io::Error::from_raw_os_error(libc::EIO));
        assert_eq!(broken.remedy(), None);
    }
}
