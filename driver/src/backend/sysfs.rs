//! A BAR through its file in sysfs: of a function that nobody opens, and that is not reset.
//!
//! The files are described in the kernel's `Documentation/PCI/sysfs-pci.rst`: that of a memory
//! BAR is mapped, that of an I/O BAR is read and written.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::mman::ProtFlags;

use super::mapping::Mapping;
use super::{BackendError, MappedRegion, Region, RegionInfo, Regions, Result};
use crate::host::{Bar, BarKind, Sysfs};
use crate::pci::{Address, Remedy};

/// A BAR's file in sysfs.
#[derive(Debug)]
pub(crate) struct Resource {
    address: Address,
    bar: Bar,
    path: PathBuf,
    file: File,
    /// Whether it was opened for writing.
    writable: bool,
    driver: Option<String>,
    /// Whether that hands the function to userspace.
    with_vfio: bool,
}

impl Resource {
    /// Opens the file of a BAR, to be read, or to be read and written.
    pub(crate) fn open(
        sysfs: &Sysfs,
        address: Address,
        index: u8,
        writable: bool,
    ) -> Result<Resource> {
        let host = |error: crate::host::HostError| match error {
            crate::host::HostError::Sysfs(error) => error.into(),
            error => BackendError::Unsupported { what: error.to_string(), by: "sysfs".into() },
        };
        let info = sysfs.device(address).map_err(host)?;
        let region = Region::Bar(index);
        let bar = info.bars.iter().find(|bar| bar.index == index);
        let bar = *bar.ok_or(BackendError::NoRegion { region })?;
        let path = sysfs.tree().device_dir(address)?.join(format!("resource{index}"));
        let opened = OpenOptions::new().read(true).write(writable).open(&path);
        let file =
            opened.map_err(|source| refused(format!("opening {}", path.display()), source))?;
        let (driver, with_vfio) = (info.driver, info.with_vfio);
        Ok(Resource { address, bar, path, file, writable, driver, with_vfio })
    }

    fn check(&self, region: Region, offset: u64, len: usize) -> Result<()> {
        if region != Region::Bar(self.bar.index) {
            return Err(BackendError::NoRegion { region });
        }
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.bar.size => Ok(()),
            _ => Err(BackendError::OutOfBounds { region, offset, len, size: self.bar.size }),
        }
    }

    /// The kernel takes accesses to ports one by one (`pci_resource_io`).
    fn check_port(&self, region: Region, offset: u64, len: usize) -> Result<()> {
        self.check(region, offset, len)?;
        if self.bar.kind == BarKind::Io && matches!(len, 1 | 2 | 4) {
            return Ok(());
        }
        Err(BackendError::Unsupported {
            what: format!("an access of {len} bytes at {region} {offset:#x}"),
            by: match self.bar.kind {
                BarKind::Io => "I/O ports, which take 1, 2 or 4 bytes".to_owned(),
                _ => format!("{}, which is only mapped", self.path.display()),
            },
        })
    }

    fn failed(&self, verb: &str, offset: u64, len: usize, source: io::Error) -> BackendError {
        let action = format!("{verb} {len} bytes of {} at {offset:#x}", self.path.display());
        refused(action, source)
    }
}

/// A file that cannot be opened, mapped, read or written.
fn refused(action: String, source: io::Error) -> BackendError {
    let remedy = match source.raw_os_error() {
        Some(libc::EACCES) => Some(Remedy::RunAsRoot),
        // The kernel is locked down, as with secure boot (kernel_lockdown(7)).
        Some(libc::EPERM) => Some(
            "run as root with CAP_SYS_RAWIO; a kernel that is locked down (secure boot) refuses \
             it to root too: bind the function to vfio-pci and open it"
                .into(),
        ),
        Some(libc::ENODEV | libc::ENOENT) => Some(Remedy::BringBack),
        _ => None,
    };
    BackendError::Os { action, source, remedy }
}

impl Regions for Resource {
    fn info(&self, region: Region) -> Result<RegionInfo> {
        self.check(region, 0, 0)?;
        let size = self.bar.size;
        let mappable = match self.bar.kind {
            BarKind::Io => Vec::new(),
            _ => std::iter::once(0..size).collect(),
        };
        Ok(RegionInfo { size, readable: true, writable: self.writable, mappable })
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> Result<()> {
        self.check_port(region, offset, data.len())?;
        let len = data.len();
        self.file
            .read_exact_at(data, offset)
            .map_err(|source| self.failed("reading", offset, len, source))
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        self.check_port(region, offset, data.len())?;
        self.file
            .write_all_at(data, offset)
            .map_err(|source| self.failed("writing", offset, data.len(), source))
    }

    fn map(&self, region: Region, area: Range<u64>) -> Result<Box<dyn MappedRegion>> {
        let len = area.end.saturating_sub(area.start) as usize;
        self.check(region, area.start, len)?;
        let outside =
            || BackendError::OutOfBounds { region, offset: area.start, len, size: self.bar.size };
        // The file begins with the page that the BAR begins in.
        let page = page_size();
        let skew = (self.bar.start % page) as usize;
        let end = skew.checked_add(len).ok_or_else(outside)?;
        let whole = end.checked_next_multiple_of(page as usize).and_then(NonZeroUsize::new);
        let whole = whole.filter(|_| area.start == 0 && len > 0).ok_or_else(outside)?;
        let mut protection = ProtFlags::PROT_READ;
        protection.set(ProtFlags::PROT_WRITE, self.writable);
        let mapping = Mapping::new(&self.file, 0, protection, whole, skew..end);
        Ok(Box::new(mapping.map_err(|errno| self.not_mapped(errno))?))
    }
}

impl Resource {
    fn not_mapped(&self, errno: Errno) -> BackendError {
        let action = format!("mapping {}", self.path.display());
        let driver = self.driver.as_deref().filter(|_| errno == Errno::EINVAL);
        let Some(driver) = driver else { return refused(action, errno.into()) };
        // `iomem_is_exclusive` in the kernel's `kernel/resource.c`.
        let remedy = match driver {
            _ if self.with_vfio => {
                "a program that opened it through VFIO has it mapped: end that, or open \
                         the function through VFIO"
                    .to_owned()
            }
            driver => format!(
                "the driver {driver} has the BAR for itself: unbind {} from it, or boot with \
                 iomem=relaxed",
                self.address
            ),
        };
        BackendError::Os { action, source: errno.into(), remedy: Some(remedy.into()) }
    }
}

fn page_size() -> u64 {
    match nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE) {
        Ok(Some(size)) => u64::try_from(size).unwrap_or(4096),
        _ => 4096,
    }
}
