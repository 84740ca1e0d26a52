//! Devices bound to vfio-pci, or to a variant of it, reached by one of three methods.
//!
//! | address space | nodes | [`Access`] |
//! |---|---|---|
//! | [`Container`]: type1v2 | `/dev/vfio/N` and `/dev/vfio/vfio` | `Type1` |
//! | `Ioas` (feature `iommufd`) | `/dev/vfio/devices/vfioN` and `/dev/iommu` | `Iommufd` |
//! | [`NoIommu`]: physical addresses | `/dev/vfio/noiommu-N` and `/dev/vfio/vfio` | none: `unsafe` |
//!
//! Each opens a [`Device`], a function once in a process. The first two also take descriptors
//! that another process opened and passed on ([`Passed`]).

mod claim;
mod container;
mod describe;
mod device;
mod group;
mod hot_reset;
mod ioctl;
#[cfg(feature = "iommufd")]
mod iommufd;
mod noiommu;
mod passed;
mod region;
mod reply;
mod token;

use std::fmt;
use std::io;
use std::path::Path;

use nix::errno::Errno;

pub use container::Container;
pub use device::Device;
#[cfg(feature = "iommufd")]
pub use iommufd::{Ioas, IoasOptions};
pub use noiommu::NoIommu;
pub use passed::Passed;
pub use token::{VfToken, VfTokenError};

use super::{BackendError, MapRequest, Result, lock_limit};
use crate::pci::sysfs::{IommuGroup, SysfsError, Tree};
use crate::pci::{Address, Remedy};

/// The device node of the container.
const CONTAINER_NODE: &str = "/dev/vfio/vfio";

/// The method by which devices are opened through VFIO and an IOMMU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Access {
    /// Type1 where it works, else iommufd, where the crate has that feature.
    #[default]
    Auto,
    /// The IOMMU group, in a container with the type1v2 IOMMU.
    Type1,
    /// The device's own character device, in an IOAS of iommufd (Linux 6.6).
    #[cfg(feature = "iommufd")]
    Iommufd,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Auto => "auto",
            Access::Type1 => "type1",
            #[cfg(feature = "iommufd")]
            Access::Iommufd => "iommufd",
        })
    }
}

/// A device that is bound to vfio-pci, as sysfs shows it.
pub(crate) struct Target {
    group: IommuGroup,
}

impl Target {
    /// Checks what every method needs.
    fn bound(sysfs: &Tree, address: Address) -> Result<Target> {
        let driver = sysfs.driver(address)?;
        let group = sysfs.group(address)?.ok_or(SysfsError::NoGroup { address })?;
        if !sysfs.is_with_vfio(address)? {
            let bound = driver.map_or("no driver".into(), |name| format!("the driver {name}"));
            return Err(precondition(
                format!("{address} is bound to {bound}, not to vfio-pci"),
                Remedy::BindToVfioPci { address },
            ));
        }
        Ok(Target { group })
    }

    /// Checks what every method through an IOMMU needs.
    pub(crate) fn translated(sysfs: &Tree, address: Address) -> Result<Target> {
        let target = Target::bound(sysfs, address)?;
        if target.group.noiommu {
            return Err(precondition(
                format!(
                    "{address} has no IOMMU: {} is of VFIO's no-IOMMU mode",
                    target.group.node().display()
                ),
                Remedy::AskForNoIommu,
            ));
        }
        sysfs.viability(address)?.check()?;
        Ok(target)
    }
}

fn os_error(action: String, errno: Errno, remedy: Option<Remedy>) -> BackendError {
    let remedy = remedy.or_else(|| general_remedy(errno));
    BackendError::Os { action, source: io::Error::from(errno), remedy }
}

/// What helps against an errno that means the same for whichever request. What only a mistake of
/// this crate brings about (EFAULT, E2BIG) has none.
fn general_remedy(errno: Errno) -> Option<Remedy> {
    Some(match errno {
        Errno::EMFILE => Remedy::RaiseOpenFiles,
        Errno::ENFILE => "the machine has too many open files: close some, or raise fs.file-max \
                          (sysctl)"
            .into(),
        Errno::ENOMEM => "the kernel has no memory for this: free some, or raise the limit of \
                          this process's cgroup"
            .into(),
        Errno::EAGAIN => "something else has the function for a moment, such as a reset or a \
                          driver that is bound: try again"
            .into(),
        // `vfio_device_pm_runtime_get` in the kernel's `drivers/vfio/vfio_main.c`.
        Errno::EIO => Remedy::BringBack,
        Errno::ENODEV => "it has left vfio-pci, or is about to: bind it again".into(),
        Errno::ENOTTY | Errno::EOPNOTSUPP => {
            "this kernel's VFIO does not have the request: it takes a later kernel, or one with \
             more of VFIO's options"
                .into()
        }
        _ => return None,
    })
}

fn precondition(problem: impl Into<String>, remedy: impl Into<Remedy>) -> BackendError {
    BackendError::Precondition { problem: problem.into(), remedy: remedy.into() }
}

/// What the kernel's EBUSY means. Whoever has the function open may be this process, which is
/// not to end itself.
fn busy(address: Address, node: &Path, group: u32) -> BackendError {
    if claim::other_of_group(address, group).is_none() && is_open_here(node) {
        return BackendError::AlreadyOpen { location: address.to_string() };
    }
    held_elsewhere(address, node, group)
}

/// What the kernel's EBUSY means once this process has opened the node itself.
fn held_elsewhere(address: Address, node: &Path, group: u32) -> BackendError {
    if let Some(holder) = claim::other_of_group(address, group) {
        let (location, holder) = (address.to_string(), holder.to_string());
        return BackendError::GroupAlreadyOpen { location, group, holder };
    }
    let shown = node.display();
    precondition(
        format!("{address} is busy: {shown}, or the group that it belongs to, is open already"),
        Remedy::EndHolders { node: Some(node.to_owned()) },
    )
}

/// Whether this process has the node open.
fn is_open_here(node: &Path) -> bool {
    let fds = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    fds.filter_map(|entry| std::fs::read_link(entry.path()).ok()).any(|target| target == node)
}

fn unsafe_interrupts(address: Address, module: &'static str) -> BackendError {
    precondition(
        format!("{address}: the IOMMU does not remap interrupts, the kernel refuses"),
        Remedy::AllowUnsafeInterrupts { module },
    )
}

/// Why a device node could not be opened; `missing` says what makes it appear.
fn node_error(node: &Path, source: io::Error, missing: impl FnOnce() -> Remedy) -> BackendError {
    let name = node.display();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            precondition(format!("{name} is missing: {source}"), missing())
        }
        Some(libc::EACCES | libc::EPERM) => {
            let user = nix::unistd::geteuid();
            precondition(
                format!("{name}: {source} for user {user}"),
                Remedy::GrantAccess { user: user.as_raw(), node: node.to_owned() },
            )
        }
        Some(errno) => os_error(format!("opening {name}"), Errno::from_raw(errno), None),
        None => BackendError::Os { action: format!("opening {name}"), source, remedy: None },
    }
}

/// What EEXIST means of a map.
const MAPPED: &str = "the IOVA is mapped already";

/// A refused map, with what can be done about it; `remedy` is for what is particular to
/// the kind of address space.
fn map_error(request: &MapRequest<'_>, errno: Errno, remedy: Option<Remedy>) -> BackendError {
    let MapRequest { iova, len, access, .. } = request;
    let common = || {
        match errno {
        Errno::ENOMEM => Some(match lock_limit() {
            Some(limit) => Remedy::RaiseMemlock { limit, needed: *len as u64 },
            None => "the kernel has no memory for the mapping; ask for a smaller buffer".into(),
        }),
        Errno::EINVAL => Some(
            "the range is outside of the IOMMU's IOVA ranges, or in a reserved region \
             (/sys/kernel/iommu_groups/*/reserved_regions)"
                .into(),
        ),
        Errno::EEXIST => Some(MAPPED.into()),
        Errno::EFAULT => Some(
            "the kernel cannot pin this memory: the device cannot write to a file on a disk (use a \
             memfd, tmpfs or huge pages, or let the device only read it), or pages of it cannot be \
             had (a limit on huge pages, a file that was cut short)"
                .into(),
        ),
        _ => None,
    }
    };
    let remedy = remedy.or_else(common);
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

#[cfg(test)]
mod tests {
    use super::claim::Claim;
    use super::*;

    #[test]
    fn a_process_is_never_told_to_end_itself() {
        let opened = std::fs::File::open("/dev/null").unwrap();
        let first: Address = "fff2:00:00.0".parse().unwrap();
        let second: Address = "fff2:00:00.1".parse().unwrap();
        let (group, absent) = (0xfff2_0000, Path::new("/dev/vfio/4294901760"));
        let text = |error: BackendError| error.to_string();
        assert!(text(busy(second, absent, group)).contains("fuser -v /dev/vfio/4294901760"));
        let error = busy(second, Path::new("/dev/null"), group);
        assert!(matches!(error, BackendError::AlreadyOpen { .. }), "{error}");
        let claim = Claim::new(first, group).unwrap();
        let error = busy(second, absent, group);
        assert!(matches!(error, BackendError::GroupAlreadyOpen { .. }), "{error}");
        let text = text(error);
        assert!(text.contains("same session") && text.contains("fff2:00:00.0"), "{text}");
        drop((claim, opened));
    }

    #[test]
    fn an_errno_that_means_the_same_everywhere_has_its_remedy() {
        let text = |errno| os_error("asking".into(), errno, None).to_string();
        for (errno, part) in [
            (Errno::ENFILE, "fs.file-max"),
            (Errno::ENOMEM, "cgroup"),
            (Errno::EAGAIN, "try again"),
            (Errno::EIO, "rescan"),
            (Errno::ENODEV, "bind it again"),
            (Errno::ENOTTY, "later kernel"),
            (Errno::EOPNOTSUPP, "later kernel"),
        ] {
            let text = text(errno);
            assert!(text.contains(part) && text.contains("remedy: "), "{text}");
        }
        assert!(!text(Errno::EFAULT).contains("remedy"), "{}", text(Errno::EFAULT));
        let own = os_error("asking".into(), Errno::ENODEV, Some("its own".into()));
        assert_eq!(own.remedy(), Some(&Remedy::Text("its own".into())));
    }

    #[test]
    fn errors_say_what_they_mean() {
        let error = os_error("opening it".into(), Errno::EMFILE, None);
        assert_eq!(error.remedy(), Some(&Remedy::RaiseOpenFiles));
        let source = io::Error::from(Errno::EMFILE);
        let error = node_error(Path::new("/dev/vfio/3"), source, || Remedy::RunAsRoot);
        assert_eq!(error.remedy(), Some(&Remedy::RaiseOpenFiles));
        let host = std::ptr::NonNull::dangling();
        let access = crate::backend::DmaAccess::Write;
        let request = MapRequest { iova: 0x1000, host, len: 4096, access, file: None };
        let error = map_error(&request, Errno::EFAULT, None).to_string();
        assert!(error.contains("file on a disk") && error.contains("huge pages"), "{error}");
    }

    #[test]
    fn a_target_is_bound_has_a_group_and_its_remedies_are_typed() {
        let root = tempfile::tempdir().unwrap();
        let tree = Tree::at(root.path());
        let address: Address = "0000:00:05.0".parse().unwrap();
        let refused = |tree: &Tree| Target::translated(tree, address).map(drop).unwrap_err();
        assert_eq!(refused(&tree).remedy(), Some(&Remedy::ListFunctions));
        let dir = root.path().join("bus/pci/devices/0000:00:05.0");
        std::fs::create_dir_all(&dir).unwrap();
        assert_eq!(refused(&tree).remedy(), Some(&Remedy::EnableIommu));
        let group = root.path().join("kernel/iommu_groups/3");
        std::fs::create_dir_all(group.join("devices")).unwrap();
        std::os::unix::fs::symlink(&group, dir.join("iommu_group")).unwrap();
        assert_eq!(refused(&tree).remedy(), Some(&Remedy::BindToVfioPci { address }));
        std::os::unix::fs::symlink("/drivers/vfio-pci", dir.join("driver")).unwrap();
        Target::translated(&tree, address).map(drop).unwrap();
        std::fs::write(group.join("name"), "vfio-noiommu\n").unwrap();
        assert_eq!(refused(&tree).remedy(), Some(&Remedy::AskForNoIommu));
    }
}
