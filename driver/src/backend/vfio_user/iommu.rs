//! The server's map of this process's memory.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::stat::{SFlag, fstat};
use vfio_bindings::bindings::vfio as uapi;
use zerocopy::IntoBytes;

use super::connection::{Connection, Request};
use super::message::{Command, DmaMap, DmaUnmap};
use crate::backend::{BackendError, DmaAccess, Iommu, IommuInfo, MapRequest, Result, Translation};

/// What can be mapped. The protocol has no ranges, and a server's device may decode all of
/// 64 bits; 48 are what IOMMUs translate, page 0 is left out because an address of 0 means
/// "none" to too many devices, and 0xfee00000 to 0xfeefffff are interrupts on x86
/// (Intel SDM vol. 3, 11.11.1), which a server may take them for.
const RANGES: [RangeInclusive<u64>; 2] = [0x1000..=0xfedf_ffff, 0xfef0_0000..=(1 << 48) - 1];

/// The address space behind a connection: memory that was passed to the server as files.
#[derive(Debug)]
pub(super) struct SocketIommu {
    connection: Arc<Connection>,
    page_sizes: u64,
    limit: u32,
    /// Length of what is mapped, by its first address.
    mappings: Mutex<BTreeMap<u64, u64>>,
}

impl SocketIommu {
    /// The address space of a server that takes `limit` mappings made of these pages.
    pub(super) fn new(connection: &Arc<Connection>, page_sizes: u64, limit: u32) -> SocketIommu {
        let connection = Arc::clone(connection);
        SocketIommu { connection, page_sizes, limit, mappings: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        // The map changes in one step, after the server has agreed.
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn precondition(&self, action: &str, problem: String, remedy: &str) -> BackendError {
        let location = self.connection.location();
        let problem = format!("{location}: {action}: {problem}");
        BackendError::Precondition { problem, remedy: remedy.into() }
    }

    /// Checks what the server is not asked to: alignment, range, and the file's end.
    fn check(&self, request: &MapRequest<'_>, action: &str) -> Result<()> {
        let (iova, len) = (request.iova, request.len as u64);
        let page = 1 << self.page_sizes.trailing_zeros();
        let host = request.host.addr().get() as u64;
        if len == 0 || !(iova | len | host).is_multiple_of(page) {
            let problem = format!("address, memory or length is no multiple of {page} bytes");
            return Err(self.precondition(action, problem, "align them"));
        }
        let last = iova.checked_add(len - 1);
        let inside = |range: &RangeInclusive<u64>| {
            range.contains(&iova) && last.is_some_and(|last| range.contains(&last))
        };
        if !RANGES.iter().any(inside) {
            let problem = "it is in none of the address ranges".into();
            return Err(self.precondition(action, problem, "choose an address inside of one"));
        }
        Ok(())
    }
}

impl Iommu for SocketIommu {
    fn name(&self) -> &str {
        "vfio-user"
    }

    fn info(&self) -> Result<IommuInfo> {
        let used = self.lock().len();
        Ok(IommuInfo {
            translation: Translation::Iommu,
            ranges: RANGES.to_vec(),
            page_sizes: self.page_sizes,
            available_mappings: Some(self.limit.saturating_sub(used as u32)),
            needs_fd: true,
        })
    }

    unsafe fn map(&self, request: &MapRequest<'_>) -> Result<()> {
        let (iova, len) = (request.iova, request.len as u64);
        let action = format!("mapping {len} bytes at IOVA {iova:#x}");
        self.check(request, &action)?;
        let Some((file, offset)) = request.file else {
            let problem = "the memory has no file that the server could map".into();
            let remedy = "allocate it with a file (memfd)";
            return Err(self.precondition(&action, problem, remedy));
        };
        let status = fstat(file).map_err(|errno| BackendError::Os {
            action: format!("{action}: looking at the memory's file"),
            source: errno.into(),
            remedy: None,
        })?;
        let regular = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
        let size = u64::try_from(status.st_size).unwrap_or(0);
        let past_end = offset.checked_add(len).is_none_or(|end| end > size);
        if regular == SFlag::S_IFREG && past_end {
            let problem = format!("the file of {size} bytes ends before {offset:#x} + {len}");
            return Err(self.precondition(&action, problem, "map what the file has"));
        }
        let flags = match request.access {
            DmaAccess::Read => uapi::VFIO_DMA_MAP_FLAG_READ,
            DmaAccess::Write => uapi::VFIO_DMA_MAP_FLAG_WRITE,
            DmaAccess::ReadWrite => uapi::VFIO_DMA_MAP_FLAG_READ | uapi::VFIO_DMA_MAP_FLAG_WRITE,
        };
        let argsz = size_of::<DmaMap>() as u32;
        let message = DmaMap { argsz, flags, offset, address: iova, size: len };
        let mut mappings = self.lock();
        let before = mappings.range(..iova + len).next_back();
        if let Some((start, len)) = before.filter(|(start, len)| *start + *len > iova) {
            let problem = format!("{start:#x} + {len} is mapped already");
            return Err(self.precondition(&action, problem, "unmap it, or choose another address"));
        }
        if mappings.len() >= self.limit as usize {
            return Err(BackendError::Os {
                action: format!("{}: {action}", self.connection.location()),
                source: std::io::Error::from_raw_os_error(libc::ENOSPC),
                remedy: Some(
                    format!(
                        "all {} mappings that the server takes are in use: unmap some, or map \
                         longer pieces",
                        self.limit
                    )
                    .into(),
                ),
            });
        }
        let request =
            Request { command: Command::DmaMap, payload: [message.as_bytes(), &[]], fds: &[file] };
        self.connection.call(&request, || action, |_| Ok(()))?;
        mappings.insert(iova, len);
        Ok(())
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<()> {
        let len = len as u64;
        let action = format!("unmapping {len} bytes at IOVA {iova:#x}");
        let mut mappings = self.lock();
        if mappings.get(&iova) != Some(&len) {
            let problem = "that is not one mapping".into();
            return Err(self.precondition(&action, problem, "unmap exactly what was mapped"));
        }
        let argsz = size_of::<DmaUnmap>() as u32;
        let message = DmaUnmap { argsz, flags: 0, address: iova, size: len };
        let request =
            Request { command: Command::DmaUnmap, payload: [message.as_bytes(), &[]], fds: &[] };
        self.connection.call(
            &request,
            || action,
            |reply| {
                let (done, _) = reply.parse::<DmaUnmap>()?;
                if (done.address, done.size) == (iova, len) {
                    Ok(())
                } else {
                    Err(format!("{} bytes at {:#x} were unmapped instead", done.size, done.address))
                }
            },
        )?;
        mappings.remove(&iova);
        Ok(())
    }
}
