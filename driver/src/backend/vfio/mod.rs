//! Devices bound to vfio-pci, reached in one of three ways.
//!
//! | [`Access`] | nodes | address space |
//! |---|---|---|
//! | `Type1` | `/dev/vfio/N` and `/dev/vfio/vfio` | [`Container`]: type1v2 |
//! | `Iommufd` | `/dev/vfio/devices/vfioN` and `/dev/iommu` | [`Ioas`] |
//! | `NoIommu` | `/dev/vfio/noiommu-N` and `/dev/vfio/vfio` | [`NoIommu`]: physical addresses |
//!
//! Each opens a [`Device`]. `vfio-ioctls` opens groups, containers, IOASes and devices;
//! what it does not expose, and what it would answer without saying why it failed, are
//! requests of our own (`ioctl.rs`).

mod answer;
mod container;
mod describe;
mod device;
mod group;
mod ioctl;
mod iommufd;
mod noiommu;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

pub use container::Container;
pub use device::Device;
pub use iommufd::Ioas;
pub use noiommu::NoIommu;

use super::{BackendError, MapRequest, Result};
use crate::pci::sysfs::{IommuGroup, VFIO_PCI};
use crate::pci::{Address, PciError, Sysfs};

/// The device node of the container.
const CONTAINER_NODE: &str = "/dev/vfio/vfio";

/// The way that devices are opened through VFIO.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Access {
    /// Type1 where it works, else iommufd. Never no-IOMMU mode, which takes protection away.
    #[default]
    Auto,
    /// The IOMMU group, in a container with the type1v2 IOMMU.
    Type1,
    /// The device's own character device, in an IOAS of iommufd (Linux 6.6).
    Iommufd,
    /// The group that VFIO makes up for a device without an IOMMU: the device reaches all
    /// memory, by physical address.
    NoIommu,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Auto => "auto",
            Access::Type1 => "type1",
            Access::Iommufd => "iommufd",
            Access::NoIommu => "noiommu",
        })
    }
}

/// A device that is bound to vfio-pci, as sysfs shows it.
pub(crate) struct Target {
    /// Its directory.
    dir: PathBuf,
    group: IommuGroup,
}

impl Target {
    /// Checks what every way needs.
    fn bound(sysfs: &Sysfs, address: Address) -> Result<Target> {
        let info = sysfs.device(address)?;
        let Some(group) = info.group else {
            return Err(PciError::NoGroup { address }.into());
        };
        if info.driver.as_deref() != Some(VFIO_PCI) {
            let bound = info.driver.map_or("no driver".into(), |name| format!("the driver {name}"));
            return Err(precondition(
                format!("{address} is bound to {bound}, not to vfio-pci"),
                format!("vfio-dma bind {address}"),
            ));
        }
        Ok(Target { dir: sysfs.device_dir(address)?, group })
    }

    /// Checks what every way through an IOMMU needs.
    pub(crate) fn translated(sysfs: &Sysfs, address: Address) -> Result<Target> {
        let target = Target::bound(sysfs, address)?;
        if target.group.noiommu {
            return Err(precondition(
                format!(
                    "{address} has no IOMMU: {} is of VFIO's no-IOMMU mode",
                    target.group.node().display()
                ),
                "enable the IOMMU in the firmware and on the kernel command line \
                 (intel_iommu=on); or, accepting that the device reaches all memory, ask for \
                 that mode by name (`--iommu noiommu`)",
            ));
        }
        sysfs.viability(address)?.check()?;
        Ok(target)
    }
}

fn os_error(action: String, errno: Errno, remedy: Option<String>) -> BackendError {
    BackendError::Os { action, source: io::Error::from(errno), remedy }
}

fn precondition(problem: impl Into<String>, remedy: impl Into<String>) -> BackendError {
    BackendError::Precondition { problem: problem.into(), remedy: remedy.into() }
}

fn busy(address: Address, node: &Path) -> BackendError {
    let node = node.display();
    precondition(
        format!("{address} is busy: {node}, or the group that it belongs to, is open already"),
        format!("end the process that has it open; `fuser -v {node}` names it"),
    )
}

fn rebind(address: Address) -> String {
    format!("bind the device again: vfio-dma unbind {address} && vfio-dma bind {address}")
}

fn unsafe_interrupts(address: Address, module: &str) -> BackendError {
    precondition(
        format!("{address}: the IOMMU does not remap interrupts, the kernel refuses"),
        format!(
            "enable interrupt remapping in the firmware, or, accepting that the device can \
             forge interrupts, set allow_unsafe_interrupts=1 of the module {module}"
        ),
    )
}

/// Why a device node could not be opened; `missing` says what makes it appear.
fn node_error(node: &Path, source: io::Error, missing: impl Fn() -> String) -> BackendError {
    let name = node.display();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            precondition(format!("{name} is missing: {source}"), missing())
        }
        Some(libc::EACCES | libc::EPERM) => {
            let user = nix::unistd::geteuid();
            precondition(
                format!("{name}: {source} for user {user}"),
                format!("run as root, or give the user access: chown {user} {name}"),
            )
        }
        _ => BackendError::Os { action: format!("opening {name}"), source, remedy: None },
    }
}

/// A refused map, with what can be done about it; `remedy` is for what is particular to
/// the kind of address space.
fn map_error(request: &MapRequest<'_>, errno: Errno, remedy: Option<&str>) -> BackendError {
    let MapRequest { iova, len, access, .. } = request;
    let common = || match errno {
        Errno::ENOMEM => Some(match getrlimit(Resource::RLIMIT_MEMLOCK) {
            Ok((soft, _)) if soft != libc::RLIM_INFINITY => format!(
                "the limit on locked memory is {soft} bytes and the buffer has {len}: raise \
                 RLIMIT_MEMLOCK (`ulimit -l`, or `memlock` in /etc/security/limits.conf), or \
                 ask for a smaller buffer"
            ),
            _ => "the kernel has no memory for the mapping; ask for a smaller buffer".into(),
        }),
        Errno::EINVAL => Some(
            "the range is outside of the IOMMU's IOVA ranges, or in a reserved region \
             (/sys/kernel/iommu_groups/*/reserved_regions)"
                .into(),
        ),
        Errno::EEXIST => Some("the IOVA is mapped already".into()),
        _ => None,
    };
    let remedy = remedy.map(str::to_owned).or_else(common);
    os_error(format!("mapping {len} bytes at IOVA {iova:#x} ({access})"), errno, remedy)
}

fn unmap_error(iova: u64, len: usize, errno: Errno) -> BackendError {
    os_error(format!("unmapping {len} bytes at IOVA {iova:#x}"), errno, None)
}

/// Fails unless the kernel found everything mapped that was to be unmapped.
fn check_unmapped(iova: u64, len: usize, found: u64) -> Result<()> {
    if found == len as u64 {
        return Ok(());
    }
    let action =
        format!("unmapping {len} bytes at IOVA {iova:#x} (only {found} bytes were mapped)");
    Err(os_error(action, Errno::ENOENT, None))
}
