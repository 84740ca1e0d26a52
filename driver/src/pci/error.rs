//! What can go wrong with a PCI function and its place in sysfs.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::{Address, AddressError, ClassCode};
use crate::backend::BackendError;

/// The result of an operation on a PCI function.
pub type Result<T> = std::result::Result<T, PciError>;

/// An operation on a PCI function that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// A text is not a PCI address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Configuration space could not be reached.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// There is no function at the address.
    #[error("no PCI device {address}; `vfio-dma list` shows what is there")]
    NoDevice {
        /// The address asked for.
        address: Address,
    },
    /// A file could not be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A sysfs attribute could not be written.
    #[error("writing {value:?} to {}: {source}{}", path.display(), write_remedy(source))]
    Write {
        /// The attribute.
        path: PathBuf,
        /// What was written, without the line feed.
        value: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A file does not hold what the kernel's documentation says it holds.
    #[error("{} holds {text:?}, which is not {expected}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// A kernel module is needed and cannot be loaded.
    #[error("the kernel module {module} is not loaded and cannot be: {reason}\n  remedy: {remedy}")]
    Module {
        /// The module's name.
        module: &'static str,
        /// Why it cannot be loaded.
        reason: String,
        /// What mends it.
        remedy: String,
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
         loaded\n  remedy: the end of `dmesg` says why",
        driver_text(found.as_deref())
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
        cause: Box<PciError>,
        /// Whether everything is back as it was.
        aftermath: Aftermath,
    },
    /// A process has the device open; taking the driver away would wait for it.
    #[error("{address} is in use by {}\n  remedy: end it first", join(holders))]
    InUse {
        /// The function.
        address: Address,
        /// Who has it open.
        holders: Vec<Holder>,
    },
    /// Members of the IOMMU group are still bound to host drivers, so VFIO refuses the group.
    #[error(
        "IOMMU group {group} of {address} has members that host drivers still use: {}\n  \
         remedy: `vfio-dma bind` each of them as well, or take its driver away",
        join(members)
    )]
    GroupNotViable {
        /// The function that is wanted.
        address: Address,
        /// Its IOMMU group.
        group: u32,
        /// The members in the way.
        members: Vec<HostDriver>,
    },
    /// The function belongs to no IOMMU group.
    #[error(
        "{address} has no IOMMU group: no IOMMU translates its DMA\n  remedy: enable the IOMMU \
         in the firmware and on the kernel command line (intel_iommu=on); `vfio-dma doctor` \
         says what is missing"
    )]
    NoGroup {
        /// The function.
        address: Address,
    },
    /// A configuration register does not keep what was written.
    #[error("{register} at {offset:#x}: wrote {wrote:#06x}, reads back {read:#06x}")]
    NotKept {
        /// The register.
        register: &'static str,
        /// Its offset in configuration space.
        offset: u16,
        /// The value written.
        wrote: u16,
        /// The value read back.
        read: u16,
    },
    /// Configuration space reads all ones: nothing answers at the address any more.
    #[error(
        "the device does not answer: its vendor and device id read {value:#010x}\n  remedy: it \
         was removed, lost power or hangs; a rescan (echo 1 > /sys/bus/pci/rescan) or a power \
         cycle may bring it back"
    )]
    Gone {
        /// What offset 0 reads.
        value: u32,
    },
}

/// What became of a function whose binding failed.
#[derive(Debug)]
pub enum Aftermath {
    /// Everything is as before, with this driver or none.
    Restored(Option<String>),
    /// Putting it back failed too.
    NotRestored(Box<PciError>),
    /// Putting it back was not tried, because the kernel still works on the function.
    Pending(Address),
}

impl fmt::Display for Aftermath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Aftermath::Restored(driver) => {
                write!(f, "the device is as before, with {}", driver_text(driver.as_deref()))
            }
            Aftermath::NotRestored(error) => write!(f, "putting it back failed too: {error}"),
            Aftermath::Pending(address) => write!(
                f,
                "remedy: `vfio-dma unbind {address}` puts it back once the kernel is done"
            ),
        }
    }
}

/// A process that has a device open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its command name.
    pub command: String,
    /// The device node that it has open.
    pub node: PathBuf,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({}), through {}", self.pid, self.command, self.node.display())
    }
}

/// A member of an IOMMU group that a host driver uses.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct HostDriver {
    /// The member's name: a PCI address, or a device's name on another bus.
    pub device: String,
    /// The driver bound to it.
    pub driver: String,
}

impl fmt::Display for HostDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.device, self.driver)
    }
}

fn join<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

fn driver_text(driver: Option<&str>) -> String {
    driver.map_or_else(|| "no driver".to_owned(), |name| format!("the driver {name}"))
}

fn write_remedy(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => "\n  remedy: run as root (sudo)",
        io::ErrorKind::ReadOnlyFilesystem => {
            "\n  remedy: /sys is mounted read-only, as in a container: run on the host, or \
             in a privileged container"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_name_the_value_and_the_remedy() {
        let address: Address = "0000:00:1f.7".parse().unwrap();
        assert_eq!(
            PciError::NoDevice { address }.to_string(),
            "no PCI device 0000:00:1f.7; `vfio-dma list` shows what is there"
        );
        let members =
            vec![HostDriver { device: "0000:00:1f.3".into(), driver: "snd_hda_intel".into() }];
        let text = PciError::GroupNotViable { address, group: 7, members }.to_string();
        assert!(text.contains("0000:00:1f.3 (snd_hda_intel)"), "{text}");
        let denied = PciError::Write {
            path: "/sys/x/driver_override".into(),
            value: "vfio-pci".into(),
            source: io::Error::from_raw_os_error(libc::EACCES),
        };
        let text = denied.to_string();
        assert!(text.contains("/sys/x/driver_override") && text.contains("as root"), "{text}");
    }
}
