//! A model in the same process, behind the driver's backend traits.
//!
//! [`Embedded`] makes any [`PciFunction`] a device that `vfio_dma` drives without a kernel,
//! a virtual machine or privileges: registers are function calls, interrupts are eventfds,
//! and the IOMMU is the function's own map of this process's memory.
//!
//! Whoever made the model keeps it, to look inside and to inject faults; a driver gets
//! [`Embedded::attach`]'s value, the only way to its registers for as long as it lives.
//!
//! ```
//! use vfio_dma::device::Device;
//! use vfio_dma_model::embedded::Embedded;
//! use vfio_dma_model::ioat::IoatConfig;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Embedded::new(IoatConfig::default())?;
//! let device = Device::open(model.attach()?)?;
//! assert!(model.attach().is_err(), "a device has one owner");
//! println!("{} at {}", device.location(), model.function().stats().register_reads);
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use vfio_dma::backend::{
    Backend, BackendError, Iommu, IommuInfo, IrqKind, MapRequest, MappedRegion, Region, RegionInfo,
    Result, Translation,
};

use crate::function::{Event, PciFunction};
use crate::ioat::{Ioat, IoatConfig, IoatError};
use crate::memory::MemoryError;
use crate::pci::command;
use crate::sync::{Mutex, MutexGuard};
use crate::vfio_user::pieces::pieces;

/// Command register in configuration space.
const COMMAND: u64 = 0x04;

/// What the embedded IOMMU offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuOptions {
    /// The address ranges that can be mapped, ascending and disjoint.
    pub ranges: Vec<RangeInclusive<u64>>,
    /// The page sizes: bit n stands for 2^n bytes. Not 0; the smallest is the granularity.
    pub page_sizes: u64,
    /// How many mappings there can be at a time; `None` for no limit.
    pub mappings: Option<u32>,
}

impl Default for IommuOptions {
    /// What a host with an IOMMU of 48 bits has: everything from 1 MiB on but the MSI window,
    /// pages of 4 KiB, 2 MiB and 1 GiB, and type1's limit of 65,535 mappings.
    fn default() -> Self {
        IommuOptions {
            ranges: vec![0x10_0000..=0xfedf_ffff, 0xfef0_0000..=(1 << 48) - 1],
            page_sizes: 1 << 12 | 1 << 21 | 1 << 30,
            mappings: Some(65_535),
        }
    }
}

/// The model cannot be attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// A driver has it.
    #[error("the embedded model is attached already: drop the device that has it first")]
    InUse,
}

/// A function and its IOMMU, in this process.
///
/// The IOMMU keeps the function alive: memory stays reachable for it until it is unmapped,
/// or both are dropped.
pub struct Embedded<F: PciFunction = Ioat> {
    function: Arc<F>,
    iommu: Arc<dyn Iommu>,
    /// An [`Attached`] lives.
    attached: AtomicBool,
}

impl Embedded<Ioat> {
    /// An I/OAT function behind an IOMMU with the default options.
    ///
    /// # Errors
    ///
    /// Fails when the function cannot be made.
    pub fn new(config: IoatConfig) -> std::result::Result<Arc<Self>, IoatError> {
        Ok(Embedded::with_function(Ioat::new(config)?, IommuOptions::default()))
    }
}

impl<F: PciFunction + 'static> Embedded<F> {
    /// Any function behind an IOMMU with these options.
    ///
    /// Memory space is enabled, as VFIO does when it opens a device; bus mastering is the
    /// driver's.
    #[must_use]
    pub fn with_function(function: F, options: IommuOptions) -> Arc<Self> {
        let function = Arc::new(function);
        let memory = command::MEMORY as u16;
        function.write(Region::Config, COMMAND, &memory.to_le_bytes());
        let iommu = Arc::new(EmbeddedIommu {
            function: function.clone(),
            options,
            mappings: Mutex::new(BTreeMap::new()),
        });
        Arc::new(Embedded { function, iommu, attached: AtomicBool::new(false) })
    }

    /// The function.
    #[must_use]
    pub fn function(&self) -> &F {
        &self.function
    }

    /// The IOMMU that the function is behind.
    #[must_use]
    pub fn iommu(&self) -> &Arc<dyn Iommu> {
        &self.iommu
    }

    /// The driver's end: it alone reaches registers, interrupts and resets. The function
    /// keeps its state from one to the next.
    ///
    /// # Errors
    ///
    /// [`AttachError::InUse`] while another one lives.
    pub fn attach(self: &Arc<Self>) -> std::result::Result<Attached<F>, AttachError> {
        if self.attached.swap(true, Ordering::AcqRel) {
            return Err(AttachError::InUse);
        }
        Ok(Attached { model: Arc::clone(self) })
    }

    fn check(&self, region: Region, offset: u64, len: usize) -> Result<()> {
        let size = self.function.region_size(region);
        if size == 0 {
            return Err(BackendError::NoRegion { region });
        }
        match offset.checked_add(len as u64) {
            Some(end) if end <= size => Ok(()),
            _ => Err(BackendError::OutOfBounds { region, offset, len, size }),
        }
    }
}

impl<F: PciFunction> fmt::Debug for Embedded<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("iommu", &self.iommu).finish_non_exhaustive()
    }
}

/// What a driver has of an [`Embedded`] model: there is one at a time.
pub struct Attached<F: PciFunction = Ioat> {
    model: Arc<Embedded<F>>,
}

impl<F: PciFunction> fmt::Debug for Attached<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attached").field("model", &self.model).finish()
    }
}

impl<F: PciFunction> Drop for Attached<F> {
    fn drop(&mut self) {
        self.model.attached.store(false, Ordering::Release);
    }
}

impl<F: PciFunction + 'static> Backend for Attached<F> {
    fn location(&self) -> String {
        "model".into()
    }

    fn region_info(&self, region: Region) -> Result<RegionInfo> {
        let size = self.model.function.region_size(region);
        Ok(RegionInfo { size, readable: size != 0, writable: size != 0, mappable: Vec::new() })
    }

    fn region_read(&self, region: Region, offset: u64, data: &mut [u8]) -> Result<()> {
        self.model.check(region, offset, data.len())?;
        for piece in pieces(region, offset, data.len()) {
            let at = offset + piece.start as u64;
            self.model.function.read(region, at, &mut data[piece]);
        }
        Ok(())
    }

    fn region_write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        self.model.check(region, offset, data.len())?;
        for piece in pieces(region, offset, data.len()) {
            let at = offset + piece.start as u64;
            self.model.function.write(region, at, &data[piece]);
        }
        Ok(())
    }

    fn map_region(&self, region: Region, area: Range<u64>) -> Result<Box<dyn MappedRegion>> {
        Err(BackendError::Unsupported {
            what: format!("mapping {:#x}..{:#x} of {region}", area.start, area.end),
            by: "the embedded model, whose registers have side effects".into(),
        })
    }

    fn irq_count(&self, kind: IrqKind) -> Result<u32> {
        Ok(self.model.function.irq_count(kind))
    }

    fn irq_enable(&self, kind: IrqKind, events: &[BorrowedFd<'_>]) -> Result<()> {
        let available = self.model.function.irq_count(kind);
        if events.len() > available as usize {
            let requested = events.len() as u32;
            return Err(BackendError::NoVectors { kind, requested, available });
        }
        let duplicates = events.iter().map(|event| {
            let event = event.try_clone_to_owned().map_err(|source| BackendError::Os {
                action: format!("duplicating an eventfd for {kind}"),
                source,
                remedy: Some("raise the limit of open files (ulimit -n)".into()),
            })?;
            let event = Event::new(event).map_err(|source| BackendError::Os {
                action: format!("preparing to signal an eventfd for {kind}"),
                source,
                remedy: Some("raise /proc/sys/fs/aio-max-nr".into()),
            })?;
            Ok(Some(event))
        });
        let events = duplicates.collect::<Result<Vec<_>>>()?;
        self.model.function.irq_disconnect(kind);
        self.model.function.irq_connect(kind, 0, &events);
        Ok(())
    }

    fn irq_disable(&self, kind: IrqKind) -> Result<()> {
        self.model.function.irq_disconnect(kind);
        Ok(())
    }

    fn irq_trigger(&self, kind: IrqKind, vector: u32) -> Result<()> {
        let available = self.irq_count(kind)?;
        if vector >= available {
            let requested = vector.saturating_add(1);
            return Err(BackendError::NoVectors { kind, requested, available });
        }
        self.model.function.irq_trigger(kind, vector);
        Ok(())
    }

    fn intx_set_masked(&self, masked: bool) -> Result<()> {
        self.model.function.irq_set_masked(IrqKind::Intx, 0, masked);
        Ok(())
    }

    fn reset(&self) -> Result<()> {
        // As VFIO does, the header is what it was: command, cache line size, BARs, interrupt
        // line.
        let kept = [(0x0cu64, 1), (0x10, 4), (0x14, 4), (0x18, 4), (0x1c, 4), (0x20, 4)];
        let kept = kept.into_iter().chain([(0x24, 4), (0x3c, 1), (COMMAND, 2)]);
        let saved: Vec<_> = kept
            .map(|(offset, len)| {
                let mut data = [0; 4];
                self.model.function.read(Region::Config, offset, &mut data[..len]);
                (offset, len, data)
            })
            .collect();
        self.model.function.reset();
        for (offset, len, data) in saved {
            self.model.function.write(Region::Config, offset, &data[..len]);
        }
        Ok(())
    }

    fn iommu(&self) -> &Arc<dyn Iommu> {
        &self.model.iommu
    }
}

/// The function's map, with an IOMMU's manners.
struct EmbeddedIommu<F> {
    function: Arc<F>,
    options: IommuOptions,
    /// Length of each mapping by its first address.
    mappings: Mutex<BTreeMap<u64, u64>>,
}

impl<F> EmbeddedIommu<F> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.mappings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn page(&self) -> u64 {
        self.options.page_sizes & self.options.page_sizes.wrapping_neg()
    }
}

impl<F> fmt::Debug for EmbeddedIommu<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedIommu")
            .field("options", &self.options)
            .field("mappings", &self.lock().len())
            .finish_non_exhaustive()
    }
}

impl<F: PciFunction> Iommu for EmbeddedIommu<F> {
    fn name(&self) -> &str {
        "model"
    }

    fn info(&self) -> Result<IommuInfo> {
        let used = self.lock().len() as u32;
        Ok(IommuInfo {
            translation: Translation::Iommu,
            ranges: self.options.ranges.clone(),
            page_sizes: self.options.page_sizes,
            available_mappings: self.options.mappings.map(|limit| limit.saturating_sub(used)),
            needs_fd: false,
        })
    }

    unsafe fn map(&self, request: &MapRequest<'_>) -> Result<()> {
        let MapRequest { iova, host, len, access, .. } = *request;
        let len = len as u64;
        let action = || format!("mapping {len} bytes at IOVA {iova:#x}");
        let page = self.page();
        if len == 0 || page == 0 || (iova | len | host.as_ptr().addr() as u64) & (page - 1) != 0 {
            return Err(BackendError::Precondition {
                problem: format!(
                    "{}: address, memory or length is not a multiple of the page of {page} bytes",
                    action()
                ),
                remedy: "align them".into(),
            });
        }
        let last = iova.checked_add(len - 1);
        // They are ascending: the last that begins at or before the address is the only one.
        let ranges = &self.options.ranges;
        let before = ranges.partition_point(|range| *range.start() <= iova);
        let range = before.checked_sub(1).map(|index| &ranges[index]);
        let ends_inside = |range: &RangeInclusive<u64>| last.is_some_and(|l| range.contains(&l));
        if !range.is_some_and(ends_inside) {
            return Err(BackendError::Precondition {
                problem: format!("{}: it is in none of the IOMMU's ranges", action()),
                remedy: "choose an address inside of one".into(),
            });
        }
        let mut mappings = self.lock();
        let limit = self.options.mappings.unwrap_or(u32::MAX);
        if mappings.len() >= limit as usize {
            return Err(BackendError::Os {
                action: action(),
                source: std::io::Error::from_raw_os_error(libc::ENOSPC),
                remedy: Some(
                    format!("all {limit} mappings are in use: unmap some, or map longer pieces")
                        .into(),
                ),
            });
        }
        // SAFETY: the caller keeps the memory valid and unshared until `unmap`, or until the
        // address space is dropped, and with it the function.
        unsafe { self.function.memory().map_host(iova, len, host, access) }
            .map_err(|error| os(action(), &error))?;
        mappings.insert(iova, len);
        Ok(())
    }

    fn unmap(&self, iova: u64, len: usize) -> Result<()> {
        let mut mappings = self.lock();
        let len = len as u64;
        let action = || format!("unmapping {len} bytes at IOVA {iova:#x}");
        if mappings.get(&iova) != Some(&len) {
            return Err(BackendError::Precondition {
                problem: format!("{}: that is not one mapping", action()),
                remedy: "unmap exactly what was mapped".into(),
            });
        }
        self.function.memory().unmap(iova, len).map_err(|error| os(action(), &error))?;
        mappings.remove(&iova);
        Ok(())
    }
}

fn os(action: String, error: &MemoryError) -> BackendError {
    BackendError::Os {
        action: format!("{action} ({error})"),
        source: std::io::Error::from_raw_os_error(error.errno() as i32),
        remedy: None,
    }
}

#[cfg(test)]
mod tests;
