//! An IOMMU in this process: a table of what is mapped, which can be read as a device
//! would, and which has the limits that a test gives it.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Range, RangeInclusive};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::{AddressSpace, Allocator, Buffer, DmaError, Pattern, Request, Segment};
use crate::backend::{
    Backend, BackendError, DmaAccess, Iommu, IommuInfo, IrqKind, MapRequest, MappedRegion, Region,
    RegionInfo, Result, Translation,
};
use crate::sync::{Mutex, MutexGuard};

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
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, State> {
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
        let inside =
            |range: &RangeInclusive<u64>| range.contains(&request.iova) && range.contains(&last);
        if !self.info.ranges.iter().any(inside) {
            return Err(error(libc::EINVAL));
        }
        let before = state.entries.range(..=last).next_back();
        if before.is_some_and(|(iova, entry)| iova + entry.len as u64 > request.iova) {
            return Err(error(libc::EEXIST));
        }
        let file = request
            .file
            .map(|(file, offset)| (nix::sys::stat::fstat(file).expect("open").st_ino, offset));
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

/// A device that does nothing by itself.
#[derive(Debug)]
struct Idle(Arc<dyn Iommu>);

impl Backend for Idle {
    fn location(&self) -> String {
        "idle".into()
    }
    fn region_info(&self, _: Region) -> Result<RegionInfo> {
        Ok(RegionInfo::default())
    }
    fn region_read(&self, region: Region, _: u64, _: &mut [u8]) -> Result<()> {
        Err(BackendError::NoRegion { region })
    }
    fn region_write(&self, region: Region, _: u64, _: &[u8]) -> Result<()> {
        Err(BackendError::NoRegion { region })
    }
    fn map_region(&self, region: Region, _: Range<u64>) -> Result<Box<dyn MappedRegion>> {
        Err(BackendError::NoRegion { region })
    }
    fn irq_count(&self, _: IrqKind) -> Result<u32> {
        Ok(0)
    }
    fn irq_enable(&self, kind: IrqKind, _: &[BorrowedFd<'_>]) -> Result<()> {
        Err(BackendError::NoVectors { kind, requested: 1, available: 0 })
    }
    fn irq_disable(&self, _: IrqKind) -> Result<()> {
        Ok(())
    }
    fn intx_set_masked(&self, _: bool) -> Result<()> {
        Ok(())
    }
    fn reset(&self) -> Result<()> {
        Ok(())
    }
    fn iommu(&self) -> &Arc<dyn Iommu> {
        &self.0
    }
}

/// A device behind a table.
#[derive(Debug)]
pub(super) struct Lab {
    pub(super) table: Arc<Table>,
    pub(super) space: Arc<AddressSpace>,
    pub(super) device: Arc<dyn Backend>,
}

impl Lab {
    /// 39 bits without the MSI window, and no limits.
    pub(super) fn wide() -> Lab {
        Lab::with(vec![0x1000..=0xfedf_ffff, 0xfef0_0000..=(1 << 39) - 1], |_| {}, None)
    }

    /// An address space without translation.
    pub(super) fn physical() -> Lab {
        Lab::with(Vec::new(), |info| info.translation = Translation::Physical, None)
    }

    /// As much free space as `runs`, each of so many pages, with a page between them.
    pub(super) fn fragmented(runs: &[u64]) -> Lab {
        let mut next = 0x10_0000;
        let range = |&pages: &u64| {
            let start = next;
            next = start + (pages + 1) * 4096;
            start..=start + pages * 4096 - 1
        };
        Lab::with(runs.iter().map(range).collect(), |_| {}, None)
    }

    pub(super) fn with(
        ranges: Vec<RangeInclusive<u64>>,
        change: impl FnOnce(&mut IommuInfo),
        limit: Option<u32>,
    ) -> Lab {
        let mut info = IommuInfo {
            translation: Translation::Iommu,
            ranges,
            page_sizes: 0x4020_1000,
            available_mappings: None,
            needs_fd: false,
        };
        change(&mut info);
        let table = Arc::new(Table { info, limit, state: Mutex::default() });
        let iommu: Arc<dyn Iommu> = Arc::clone(&table) as _;
        let space = AddressSpace::new(&iommu).expect("a table answers");
        Lab { table, space, device: Arc::new(Idle(iommu)) }
    }

    pub(super) fn allocator(&self) -> Allocator {
        Allocator::new(&self.device, &self.space)
    }

    pub(super) fn place(&self, request: &Request) -> std::result::Result<Buffer, DmaError> {
        self.allocator().allocate(request)
    }

    /// Fills the buffer by the processor and compares what the device reads; then the
    /// other way round.
    pub(super) fn verify(&self, buffer: &mut Buffer) {
        let len = buffer.len();
        let pattern = |seed: u64| {
            let mut bytes = vec![0; len];
            Pattern::new(seed).bytes(0, &mut bytes);
            bytes
        };
        assert_eq!(buffer.segments().iter().map(|segment| segment.len).sum::<usize>(), len);
        for pair in buffer.segments().windows(2) {
            assert_ne!(pair[0].iova.0 + pair[0].len as u64, pair[1].iova.0, "neighbours merge");
        }
        Pattern::new(1).fill(buffer, 0, len, 0).expect("in range");
        assert!(self.table.read(buffer.segments()) == pattern(1), "what the device reads");
        self.table.write(buffer.segments(), &pattern(2));
        Pattern::new(2).check(buffer, 0, len, 0).expect("in range").expect("what it wrote");
        // Ranges agree with the whole, also across segments.
        for (offset, part) in [(0, len), (len / 3, len / 2), (len - 1, 1), (len, 0), (1, len - 1)] {
            let segments: Vec<Segment> =
                buffer.segments_of(offset, part).expect("inside").collect();
            let bytes = self.table.read(&segments);
            assert!(bytes == pattern(2)[offset..offset + part], "{part} bytes at {offset}");
        }
    }

    /// Nothing is mapped and every address is free.
    pub(super) fn is_empty(&self) -> bool {
        let usage = self.space.usage();
        usage.mappings == 0
            && usage.bytes == 0
            && self.table.mappings() == 0
            && self.space.iovas().allocated() == 0
    }
}
