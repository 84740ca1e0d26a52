//! An IOMMU in this process: a table of what is mapped, which can be read as a device
//! would, and which has the limits that a test gives it.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use super::placement::Site;
use super::{AddressSpace, Buffer, DmaError, Request, Segment, place};
use crate::backend::{
    Backend, BackendError, DmaAccess, Iommu, IommuInfo, IrqKind, MapRequest, MappedRegion, Region,
    RegionInfo, Result, Translation,
};

/// One mapping.
#[derive(Debug, Clone, Copy)]
struct Entry {
    host: usize,
    len: usize,
    access: DmaAccess,
    /// Inode and offset of the file behind it.
    file: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<u64, Entry>,
    /// Map calls that still succeed; the next one fails with this error.
    refuse: Option<(u32, i32)>,
    /// IOVAs that cannot be unmapped.
    stuck: Vec<u64>,
}

/// The IOMMU.
#[derive(Debug)]
pub(super) struct Table {
    info: IommuInfo,
    /// How many mappings it takes.
    limit: Option<u32>,
    state: Mutex<State>,
    /// The same as `Arc<dyn Iommu>` for the device.
    space_of: Mutex<Option<Arc<AddressSpace>>>,
}

impl Table {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Mappings that exist.
    pub(super) fn mappings(&self) -> usize {
        self.lock().entries.len()
    }

    /// Lets `count` more map calls succeed and refuses those that follow.
    pub(super) fn refuse_after(&self, count: u32, errno: i32) {
        self.lock().refuse = Some((count, errno));
    }

    /// Map calls succeed again.
    pub(super) fn accept(&self) {
        self.lock().refuse = None;
    }

    /// Unmapping at this address fails from now on.
    pub(super) fn stick(&self, iova: u64) {
        self.lock().stuck.push(iova);
    }

    /// Runs `body` with each piece of memory that a device reaches at a segment.
    fn walk(&self, segment: Segment, access: DmaAccess, mut body: impl FnMut(*mut u8, usize)) {
        let state = self.lock();
        let (mut iova, mut left) = (segment.iova.0, segment.len);
        while left > 0 {
            let (start, entry) = state.entries.range(..=iova).next_back().expect("mapped");
            let offset = (iova - start) as usize;
            assert!(offset < entry.len, "IOVA {iova:#x} is not mapped");
            assert!(!access.reads() || entry.access.reads(), "not mapped for reading");
            assert!(!access.writes() || entry.access.writes(), "not mapped for writing");
            let part = left.min(entry.len - offset);
            body((entry.host + offset) as *mut u8, part);
            iova += part as u64;
            left -= part;
        }
    }

    /// What a device reads from these segments.
    pub(super) fn read(&self, segments: &[Segment]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &segment in segments {
            self.walk(segment, DmaAccess::Read, |host, len| {
                let at = bytes.len();
                bytes.resize(at + len, 0);
                // SAFETY: what is mapped lives until it is unmapped, under the table's lock.
                unsafe { host.copy_to_nonoverlapping(bytes[at..].as_mut_ptr(), len) };
            });
        }
        bytes
    }

    /// Lets a device write to these segments.
    pub(super) fn write(&self, segments: &[Segment], mut bytes: &[u8]) {
        for &segment in segments {
            self.walk(segment, DmaAccess::Write, |host, len| {
                let (now, later) = bytes.split_at(len);
                // SAFETY: as in `read`.
                unsafe { host.copy_from_nonoverlapping(now.as_ptr(), len) };
                bytes = later;
            });
        }
    }

    /// Inode and offset of the file behind each mapping, by ascending IOVA.
    pub(super) fn files(&self) -> Vec<Option<(u64, u64)>> {
        self.lock().entries.values().map(|entry| entry.file).collect()
    }
}

impl Iommu for Table {
    fn name(&self) -> &str {
        "table"
    }

    fn info(&self) -> Result<IommuInfo> {
        let used = self.mappings() as u32;
        let available_mappings = self.limit.map(|limit| limit - used);
        Ok(IommuInfo { available_mappings, ..self.info.clone() })
    }

    unsafe fn map(&self, request: &MapRequest<'_>) -> Result<()> {
        let error = |errno| BackendError::Os {
            action: format!("mapping {} bytes at IOVA {:#x}", request.len, request.iova),
            source: io::Error::from_raw_os_error(errno),
            remedy: None,
        };
        let mut state = self.lock();
        match &mut state.refuse {
            Some((0, errno)) => return Err(error(*errno)),
            Some((left, _)) => *left -= 1,
            None => {}
        }
        if self.limit.is_some_and(|limit| state.entries.len() as u32 >= limit) {
            return Err(error(libc::ENOSPC));
        }
        let last = request.iova + (request.len as u64 - 1);
        let inside = |range: &RangeInclusive<u64>| {
            range.contains(&request.iova) && range.contains(&last)
        };
        if !self.info.ranges.iter().any(inside) {
            return Err(error(libc::EINVAL));
        }
        let before = state.entries.range(..=last).next_back();
        if before.is_some_and(|(iova, entry)| iova + entry.len as u64 > request.iova) {
            return Err(error(libc::EEXIST));
        }
        let file = request.file.map(|(file, offset)| {
            (nix::sys::stat::fstat(file).expect("open").st_ino, offset)
        });
        let (host, len, access) = (request.host.addr().get(), request.len, request.access);
        state.entries.insert(request.iova, Entry { host, len, access, file });
        Ok(())
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<()> {
        let mut state = self.lock();
        let known = state.entries.get(&iova).is_some_and(|entry| entry.len == len);
        if !known || state.stuck.contains(&iova) {
            return Err(BackendError::Os {
                action: format!("unmapping {len} bytes at IOVA {iova:#x}"),
                source: io::Error::from_raw_os_error(libc::EIO),
                remedy: None,
            });
        }
        state.entries.remove(&iova);
        Ok(())
    }
}
