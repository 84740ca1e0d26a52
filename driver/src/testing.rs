//! A backend whose memory is this process and whose registers a test scripts.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::backend::{
    Backend, BackendError, Event, Iommu, IommuInfo, IrqKind, MapRequest, MappedRegion, Region,
    RegionInfo, Result, Translation,
};
use crate::dma::{AddressSpace, Allocator, Buffer, Direction, Memory, PageSize, Request};
use crate::events::Events;
use crate::sync::{Mutex, MutexGuard};

/// Device addresses that stand for memory of this process.
#[derive(Debug, Default)]
pub(crate) struct HostIommu(Mutex<BTreeMap<u64, (usize, usize)>>);

impl HostIommu {
    /// Where `len` bytes at a device address lie, if they are mapped in one piece.
    pub(crate) fn host(&self, iova: u64, len: usize) -> Option<NonNull<u8>> {
        let map = self.0.lock().unwrap();
        let (start, &(host, mapped)) = map.range(..=iova).next_back()?;
        let offset = (iova - start) as usize;
        let inside = offset.checked_add(len)? <= mapped;
        inside.then(|| NonNull::new(std::ptr::with_exposed_provenance_mut(host + offset)))?
    }

    pub(crate) fn mappings(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Reads a word as the device does.
    pub(crate) fn load(&self, iova: u64) -> Option<u64> {
        let at = self.host(iova, 8)?;
        // SAFETY: mapped memory stays valid until it is unmapped, and tests unmap nothing
        // while they read.
        Some(unsafe { at.cast::<u64>().read_volatile() })
    }

    /// Writes a word as the device does.
    pub(crate) fn store(&self, iova: u64, value: u64) -> Option<()> {
        let at = self.host(iova, 8)?;
        // SAFETY: as in `load`.
        unsafe { at.cast::<u64>().write_volatile(value) };
        Some(())
    }

    /// Copies as the device does; `None` when either side is not mapped.
    pub(crate) fn copy(&self, source: u64, target: u64, len: usize) -> Option<()> {
        let (from, to) = (self.host(source, len)?, self.host(target, len)?);
        // SAFETY: as in `load`; both sides have that many bytes.
        unsafe { std::ptr::copy(from.as_ptr(), to.as_ptr(), len) };
        Some(())
    }
}

impl Iommu for HostIommu {
    fn name(&self) -> &str {
        "host"
    }
    fn info(&self) -> Result<IommuInfo> {
        Ok(IommuInfo {
            translation: Translation::Iommu,
            ranges: vec![0x10_0000..=0xffff_ffff_ffff],
            page_sizes: 4096,
            available_mappings: None,
            needs_fd: false,
        })
    }
    unsafe fn map(&self, request: &MapRequest<'_>) -> Result<()> {
        let host = request.host.as_ptr().expose_provenance();
        self.0.lock().unwrap().insert(request.iova, (host, request.len));
        Ok(())
    }
    fn unmap(&self, iova: u64, _: usize) -> Result<()> {
        self.0.lock().unwrap().remove(&iova);
        Ok(())
    }
}

/// The registers of BAR0, and what they do.
pub(crate) trait Registers: Send + std::fmt::Debug + 'static {
    fn read(&mut self, offset: u64, width: usize) -> u64;
    fn write(&mut self, offset: u64, width: usize, value: u64);
    /// The vectors' eventfds were replaced.
    fn connect(&mut self, _: Vec<OwnedFd>) {}
    /// The function was reset.
    fn reset(&mut self) {}
    /// Bus mastering was switched.
    fn bus_master(&mut self, _: bool) {}
}

/// Memory in place of a region's.
#[derive(Debug)]
pub(crate) struct Page(pub(crate) Memory);

// SAFETY: the memory is the value's own, of that length, and nothing refers into it.
unsafe impl MappedRegion for Page {
    fn base(&self) -> NonNull<u8> {
        self.0.base()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
}

/// A PCI device of 4 KiB of configuration space and a BAR0 of 1 MiB.
#[derive(Debug)]
pub(crate) struct Scripted<R> {
    registers: Mutex<R>,
    config: Mutex<Vec<u8>>,
    /// BAR0 can be mapped.
    pub(crate) maps_bar: AtomicBool,
    /// How often vectors were disabled.
    pub(crate) disabled: AtomicUsize,
    /// The eventfds of events of the function, by VFIO index.
    notified: Mutex<BTreeMap<u32, OwnedFd>>,
    /// The device was closed, whoever used it.
    pub(crate) revoked: AtomicBool,
    iommu: Arc<dyn Iommu>,
    pub(crate) host: Arc<HostIommu>,
}

impl<R: Registers> Scripted<R> {
    pub(crate) fn new(ids: (u16, u16), make: impl FnOnce(Arc<HostIommu>) -> R) -> Arc<Self> {
        let host = Arc::new(HostIommu::default());
        let mut config = vec![0; 4096];
        config[..2].copy_from_slice(&ids.0.to_le_bytes());
        config[2..4].copy_from_slice(&ids.1.to_le_bytes());
        config[4] = 0x2;
        Arc::new(Scripted {
            registers: Mutex::new(make(Arc::clone(&host))),
            config: Mutex::new(config),
            maps_bar: AtomicBool::new(false),
            disabled: AtomicUsize::new(0),
            notified: Mutex::default(),
            revoked: AtomicBool::new(false),
            iommu: Arc::clone(&host) as _,
            host,
        })
    }

    /// The device's end for a driver.
    pub(crate) fn attach(self: &Arc<Self>) -> Attached<R> {
        Attached(Arc::clone(self))
    }

    /// Signals an event.
    pub(crate) fn raise(&self, event: Event) {
        let notified = self.notified.lock().unwrap();
        nix::unistd::write(&notified[&event.index()], &1u64.to_ne_bytes()).unwrap();
    }

    /// Signals an event, and waits until it is told; nobody may reset the function meanwhile.
    pub(crate) fn signal(&self, event: Event, events: &Events) {
        self.raise(event);
        assert!(events.wait(Duration::from_secs(10)).unwrap().is_some());
    }

    pub(crate) fn registers(&self) -> MutexGuard<'_, R> {
        self.registers.lock().unwrap()
    }

    pub(crate) fn config(&self) -> MutexGuard<'_, Vec<u8>> {
        self.config.lock().unwrap()
    }
}

/// What a driver has of a scripted device.
#[derive(Debug)]
pub(crate) struct Attached<R>(Arc<Scripted<R>>);

impl<R> std::ops::Deref for Attached<R> {
    type Target = Scripted<R>;

    fn deref(&self) -> &Scripted<R> {
        &self.0
    }
}

impl<R: Registers> Backend for Attached<R> {
    fn location(&self) -> String {
        "scripted".into()
    }
    fn region_info(&self, region: Region) -> Result<RegionInfo> {
        let size = match region {
            Region::Bar(0) => 1 << 20,
            Region::Config => 4096,
            _ => 0,
        };
        let is_mapped = region == Region::Bar(0) && self.maps_bar.load(Ordering::Relaxed);
        let mappable = is_mapped.then_some(0..4096).into_iter().collect();
        Ok(RegionInfo { size, readable: true, writable: true, mappable })
    }
    fn region_read(&self, region: Region, offset: u64, data: &mut [u8]) -> Result<()> {
        let len = data.len();
        if region == Region::Config {
            data.copy_from_slice(&self.config()[offset as usize..][..len]);
        } else {
            let value = self.registers().read(offset, len).to_le_bytes();
            data.copy_from_slice(&value[..len]);
        }
        Ok(())
    }
    fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        if region == Region::Config {
            self.config()[offset as usize..][..data.len()].copy_from_slice(data);
            if offset == 4 {
                self.registers().bus_master(data[0] & 4 != 0);
            }
        } else {
            self.registers().write(offset, data.len(), u64::from_le_bytes(value));
        }
        Ok(())
    }
    fn map_region(&self, region: Region, _: Range<u64>) -> Result<Box<dyn MappedRegion>> {
        match self.maps_bar.load(Ordering::Relaxed) {
            true => Ok(Box::new(Page(Memory::allocate(4096, PageSize::Base, false).unwrap()))),
            false => Err(BackendError::NoRegion { region }),
        }
    }
    fn irq_count(&self, _: IrqKind) -> Result<u32> {
        Ok(8)
    }
    fn irq_enable(&self, _: IrqKind, events: &[BorrowedFd<'_>]) -> Result<()> {
        let events = events.iter().map(|event| event.as_fd().try_clone_to_owned().unwrap());
        self.registers().connect(events.collect());
        Ok(())
    }
    fn irq_disable(&self, _: IrqKind) -> Result<()> {
        self.disabled.fetch_add(1, Ordering::Relaxed);
        self.registers().connect(Vec::new());
        Ok(())
    }
    fn intx_set_masked(&self, _: bool) -> Result<()> {
        Ok(())
    }
    fn reset(&self) -> Result<()> {
        self.registers().reset();
        Ok(())
    }
    fn notify(&self, event: Event, signalled: BorrowedFd<'_>) -> Result<bool> {
        if cfg!(shuttle) {
            // The process's own thread would be none of the explored ones.
            return Ok(false);
        }
        let signalled = signalled.try_clone_to_owned().unwrap();
        self.notified.lock().unwrap().insert(event.index(), signalled);
        Ok(true)
    }
    fn revoke(&self) -> Result<bool> {
        self.revoked.store(true, Ordering::Release);
        Ok(true)
    }
    fn iommu(&self) -> &Arc<dyn Iommu> {
        &self.iommu
    }
}

/// Registers that do nothing.
#[derive(Debug)]
pub(crate) struct NoRegisters;

impl Registers for NoRegisters {
    fn read(&mut self, _: u64, _: usize) -> u64 {
        0
    }
    fn write(&mut self, _: u64, _: usize, _: u64) {}
}

/// A buffer and the map that a device would reach it through.
pub(crate) fn buffer(len: usize) -> (Buffer, Arc<HostIommu>) {
    let (allocator, host) = allocator();
    (allocator.allocate(&Request::new(len, Direction::Bidirectional)).unwrap(), host)
}

/// What places memory, and the map that a device would reach it through.
pub(crate) fn allocator() -> (Allocator, Arc<HostIommu>) {
    let backend = Scripted::new((1, 1), |_| NoRegisters).attach();
    let host = Arc::clone(&backend.host);
    let space = AddressSpace::new(backend.iommu()).unwrap();
    let device: Arc<dyn Backend> = Arc::new(backend);
    (Allocator::new(&device, &space), host)
}
