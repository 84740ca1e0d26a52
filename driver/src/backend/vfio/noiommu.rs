//! Devices without an IOMMU, in VFIO's no-IOMMU mode.
//!
//! The kernel makes up a group for such a device when the module parameter
//! `enable_unsafe_noiommu_mode` is set before the device is bound to vfio-pci. Nothing is
//! translated and nothing is protected: a device that is told a wrong address writes there.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Once};

use nix::errno::Errno;
use vfio_bindings::bindings::vfio as uapi;

use super::claim::Claim;
use super::group::Group;
use super::ioctl::done;
use super::{Device, Target, container, held_elsewhere, ioctl, os_error, precondition};
use crate::backend::{BackendError, Iommu, IommuInfo, MapRequest, Result, Translation};
use crate::pci::sysfs::{SysfsError, Tree};
use crate::pci::{Address, Remedy};

/// The switch of the mode, below sysfs' root.
const PARAMETER: &str = "module/vfio/parameters/enable_unsafe_noiommu_mode";

/// The address space of devices without an IOMMU: physical memory, all of it.
#[derive(Debug, Default)]
pub struct NoIommu(());

impl NoIommu {
    /// The address space, which needs nothing of the kernel.
    #[must_use]
    pub fn new() -> Arc<NoIommu> {
        Arc::default()
    }

    /// Opens a device, and warns once that it can reach all memory.
    ///
    /// # Errors
    ///
    /// [`BackendError::Precondition`] names what has to be done first: switch the mode on,
    /// bind the device to vfio-pci, gain `CAP_SYS_RAWIO`, give this user the nodes, or end
    /// who uses the device; it also refuses a device that has an IOMMU.
    /// [`BackendError::AlreadyOpen`] when this process has the device open.
    ///
    /// # Safety
    ///
    /// Nothing keeps the device from reading and writing any memory of the machine, that of
    /// the kernel and of this process included. As long as the device may start DMA, every
    /// address that it is given, through registers or memory that it reads, must be that of
    /// memory that it may access in that way, and that memory must stay where it is.
    pub unsafe fn open(self: &Arc<NoIommu>, address: Address) -> Result<Device> {
        let sysfs = Tree::new();
        let group = match Target::bound(&sysfs, address) {
            Ok(Target { group, .. }) if group.noiommu => group,
            Ok(Target { group, .. }) => {
                return Err(precondition(
                    format!("{address} has an IOMMU: it is in IOMMU group {}", group.number),
                    Remedy::UseIommu,
                ));
            }
            Err(BackendError::Sysfs(error)) if matches!(*error, SysfsError::NoGroup { .. }) => {
                return Err(no_group(&sysfs, address));
            }
            Err(error) => return Err(error),
        };
        let claim = Claim::new(address, group.number)?;
        let container = container::open_node()?;
        container::check(&container, KIND, || switched_off(&sysfs))?;
        let denied = |node: &Path| Some(not_privileged(address, node));
        let group = Group::open(&group, address, denied)?;
        let failed = |doing: &str, errno| match errno {
            Errno::EPERM => not_privileged(address, group.node()),
            Errno::EBUSY => held_elsewhere(address, group.node(), group.number()),
            errno => os_error(format!("{address}: {doing}"), errno, None),
        };
        group
            .join(&container)
            .map_err(|errno| failed("putting its group into a container", errno))?;
        // SAFETY: the descriptor is a container, and the argument a number.
        done(unsafe { ioctl::set_iommu(container.as_raw_fd(), KIND) })
            .map_err(|errno| failed("setting the container to no-IOMMU mode", errno))?;
        let device = group.device(address, None)?;
        warn(address);
        // In a container of its own: containers are there to share mappings, and there are none.
        // The kernel wants the device closed first, then the group.
        let keeps = Box::new((group, container));
        Device::new(Box::new(device), keeps, claim, Arc::clone(self) as _)
    }
}

impl Iommu for NoIommu {
    fn name(&self) -> &str {
        "noiommu"
    }

    fn info(&self) -> Result<IommuInfo> {
        Ok(IommuInfo {
            translation: Translation::Physical,
            ranges: std::iter::once(0..=u64::MAX).collect(),
            page_sizes: 0x1000,
            available_mappings: None,
            needs_fd: false,
        })
    }

    unsafe fn map(&self, request: &MapRequest<'_>) -> Result<()> {
        Err(refused(format!("mapping {} bytes at IOVA {:#x}", request.len, request.iova)))
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<()> {
        Err(refused(format!("unmapping {len} bytes at IOVA {iova:#x}")))
    }
}

fn refused(what: String) -> BackendError {
    BackendError::Unsupported {
        what,
        by: "VFIO's no-IOMMU mode, where devices see physical addresses".into(),
    }
}

/// `VFIO_NOIOMMU_IOMMU` as the argument of requests.
const KIND: libc::c_int = uapi::VFIO_NOIOMMU_IOMMU as libc::c_int;

/// Says once in a process what the mode means.
fn warn(address: Address) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        log::warn!(
            "{address} is opened in no-IOMMU mode: nothing keeps a device from reading and \
             writing all of this machine's memory, the kernel's included"
        );
    });
}

/// Why a device without an IOMMU has no group either.
fn no_group(sysfs: &Tree, address: Address) -> BackendError {
    match mode(sysfs) {
        Some(true) => precondition(
            format!("{address} has no group: it was not bound to vfio-pci in no-IOMMU mode"),
            Remedy::Rebind { address },
        ),
        _ => switched_off(sysfs),
    }
}

fn switched_off(sysfs: &Tree) -> BackendError {
    let path = sysfs.root().join(PARAMETER);
    match mode(sysfs) {
        None => precondition(
            format!("no-IOMMU mode is not there: {} is missing", path.display()),
            Remedy::EnableNoIommu { parameter: None },
        ),
        Some(_) => precondition(
            "no-IOMMU mode is switched off",
            Remedy::EnableNoIommu { parameter: Some(path) },
        ),
    }
}

/// Whether the mode is on; `None` when the kernel does not have it.
fn mode(sysfs: &Tree) -> Option<bool> {
    let text = std::fs::read_to_string(sysfs.root().join(PARAMETER)).ok()?;
    Some(text.trim() == "Y")
}

fn not_privileged(address: Address, node: &Path) -> BackendError {
    precondition(
        format!(
            "{address}: opening {} takes CAP_SYS_RAWIO, which user {} does not have here",
            node.display(),
            nix::unistd::geteuid()
        ),
        Remedy::GrantCapability { capability: "cap_sys_rawio" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_of_the_parameter_has_its_remedy() {
        let root = tempfile::tempdir().unwrap();
        let sysfs = Tree::at(root.path());
        let address = "0000:00:05.0".parse().unwrap();
        let text = || no_group(&sysfs, address).to_string();
        assert!(text().contains("CONFIG_VFIO_NOIOMMU"), "{}", text());
        let parameter = root.path().join(PARAMETER);
        std::fs::create_dir_all(parameter.parent().unwrap()).unwrap();
        std::fs::write(&parameter, "N\n").unwrap();
        assert!(text().contains("echo Y > ") && text().contains("no-IOMMU"), "{}", text());
        std::fs::write(&parameter, "Y\n").unwrap();
        assert_eq!(no_group(&sysfs, address).remedy(), Some(&Remedy::Rebind { address }));
    }

    #[test]
    fn nothing_is_mapped_and_every_address_is_physical() {
        let space = NoIommu::new();
        let info = space.info().unwrap();
        assert_eq!(info.translation, Translation::Physical);
        assert_eq!(info.ranges, std::iter::once(0..=u64::MAX).collect::<Vec<_>>());
        let error = space.unmap(0x1000, 4096).unwrap_err().to_string();
        assert!(error.contains("0x1000") && error.contains("physical"), "{error}");
    }
}
