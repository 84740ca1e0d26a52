//! The controller memory buffer: memory of the controller's own, in one of its BARs, in which
//! queues can lie (NVM Express Base 1.4, 3.1.11, 3.1.12, 3.1.17, 3.1.18 and 4.7).

use std::sync::{Arc, Mutex, PoisonError};

use super::NvmeError;
use super::regs::{self, CmbLocation, CmbSize};
use crate::backend::Translation;
use crate::device::Device;
use crate::dma::ReservedIova;
use crate::mmio::{Bar, MmioError, SplitOrder};

/// The most of the buffer that queues are placed in, in bytes.
const MOST: u64 = 64 << 20;

/// The addresses of the buffer, as commands name it.
#[derive(Debug)]
enum Base {
    /// Of the address space, taken out of it: no memory is mapped there.
    Reserved(ReservedIova),
    /// Where its BAR lies on the bus: what the device sees is physical addresses.
    Bus(u64),
}

/// The buffer of a controller, switched on.
#[derive(Debug)]
pub(super) struct MemoryBuffer {
    bar: Bar,
    /// Where in the BAR it begins.
    offset: u64,
    base: Base,
    size: CmbSize,
    page: u64,
    /// Which pages queues have.
    taken: Mutex<Vec<bool>>,
}

impl MemoryBuffer {
    /// Asks the controller what it has, and takes addresses for it; the controller learns of
    /// them by [`MemoryBuffer::enable`]. `page` is a page of the controller in bytes.
    pub(super) fn find(device: &Device, registers: &Bar, page: u64) -> Result<Self, NvmeError> {
        let location = device.location();
        // Where it lies can be read once the registers are switched on.
        registers.write64_split(regs::CMBMSC, regs::CMBMSC_REGISTERS, SplitOrder::HighFirst)?;
        let (lies, size): (u32, u32) =
            (registers.read(regs::CMBLOC)?, registers.read(regs::CMBSZ)?);
        let nonsense = |what, value: u32, expected| {
            let (location, value) = (location.to_string(), value.into());
            Err(NvmeError::Nonsense { location, what, value, expected })
        };
        let (lies_at, sized) = (CmbLocation(lies), CmbSize(size));
        let offset = lies_at.offset(sized).filter(|_| matches!(lies_at.bar(), 0 | 2..=5));
        let Some(offset) = offset else {
            return nonsense("CMBLOC", lies, "a BAR of 0 or 2 to 5, and a place in it");
        };
        let bar = device.bar(lies_at.bar())?;
        let len = sized.bytes().min(bar.size().saturating_sub(offset)).min(MOST);
        let pages = len / page;
        if pages == 0 {
            return nonsense("CMBSZ", size, "at least a page, inside of its BAR");
        }
        let base = match device.space().translation() {
            Translation::Iommu => {
                // The controller takes all of it for its own, as far as it goes.
                let all = sized.bytes().max(len).next_multiple_of(page);
                Base::Reserved(device.space().reserve_iova(all, page)?)
            }
            Translation::Physical => {
                let at = bus_address(device, lies_at.bar())?.checked_add(offset);
                let at = at.filter(|at| at.is_multiple_of(4096));
                let Some(at) = at else {
                    return nonsense("CMBLOC", lies, "a place at a multiple of 4 KiB on the bus");
                };
                Base::Bus(at)
            }
        };
        let taken = Mutex::new(vec![false; pages as usize]);
        Ok(MemoryBuffer { bar, offset, base, size: sized, page, taken })
    }

    /// Tells a controller that is stopped where it has the buffer.
    pub(super) fn enable(&self, registers: &Bar, location: &str) -> Result<(), NvmeError> {
        // The low half switches it on, so the high one comes first.
        let value = self.base() | regs::CMBMSC_REGISTERS | regs::CMBMSC_SPACE;
        registers.write64_split(regs::CMBMSC, value, SplitOrder::HighFirst)?;
        let status: u32 = registers.read(regs::CMBSTS)?;
        if status & regs::CMBSTS_INVALID != 0 {
            let (location, value) = (location.to_string(), status.into());
            let expected = "the address of the controller memory buffer taken";
            return Err(NvmeError::Nonsense { location, what: "CMBSTS", value, expected });
        }
        Ok(())
    }

    fn base(&self) -> u64 {
        match &self.base {
            Base::Reserved(range) => range.iova().0,
            Base::Bus(address) => *address,
        }
    }

    /// Bytes that queues can be placed in.
    pub(super) fn len(&self) -> u64 {
        let pages = self.taken.lock().unwrap_or_else(PoisonError::into_inner).len();
        pages as u64 * self.page
    }

    /// What it can be used for.
    pub(super) fn uses(&self) -> CmbSize {
        self.size
    }

    /// Takes pages for so many bytes; `None` when there is no such run of them.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Option<Run> {
        let pages = usize::try_from(bytes.div_ceil(self.page)).ok()?;
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let first = taken.windows(pages.max(1)).position(|run| run.iter().all(|taken| !taken))?;
        taken[first..first + pages].fill(true);
        drop(taken);
        Some(Run { buffer: Arc::clone(self), first, pages })
    }
}

/// Where a BAR lies on the bus (PCI Local Bus 3.0, 6.2.5.1).
fn bus_address(device: &Device, bar: u8) -> Result<u64, NvmeError> {
    let (config, at) = (device.config(), 0x10 + 4 * u16::from(bar));
    let low = config.read_u32(at)?;
    // Bits 2:1 say 2 for one of 64 bits.
    let high = if low >> 1 & 3 == 2 { config.read_u32(at + 4)? } else { 0 };
    Ok(u64::from(high) << 32 | u64::from(low & !0xf))
}

/// Pages of the buffer, one behind another; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Run {
    buffer: Arc<MemoryBuffer>,
    first: usize,
    pages: usize,
}

impl Run {
    fn begin(&self) -> u64 {
        self.first as u64 * self.buffer.page
    }

    /// Its address, as commands name it.
    pub(super) fn address(&self) -> u64 {
        self.buffer.base() + self.begin()
    }

    /// Writes a word so many bytes into it.
    #[inline]
    pub(super) fn write(&self, at: u64, word: u64) -> Result<(), MmioError> {
        debug_assert!(at + 8 <= self.pages as u64 * self.buffer.page);
        self.buffer.bar.write(self.buffer.offset + self.begin() + at, word)
    }

    /// Reads a word so many bytes into it.
    #[inline]
    pub(super) fn read(&self, at: u64) -> Result<u64, MmioError> {
        debug_assert!(at + 8 <= self.pages as u64 * self.buffer.page);
        self.buffer.bar.read(self.buffer.offset + self.begin() + at)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let mut taken = self.buffer.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken[self.first..self.first + self.pages].fill(false);
    }
}
