//! Register access, and the only place with volatile loads and stores of single words.
//!
//! A [`Bar`] is one region of a device. Where the kernel lets it be mapped, an access is
//! one bounds check and one load or store; where it does not (I/O ports, the page of an
//! MSI-X table, a model), the same call becomes a positioned read or write. Registers are
//! declared once as a [`Reg`] with offset, width and access mode:
//!
//! ```
//! use vfio_dma::mmio::{ReadOnly, ReadWrite, Reg};
//! const ID: Reg<u32, ReadOnly> = Reg::at(0x00);
//! const COUNT: Reg<u64, ReadWrite> = Reg::at(0x90);
//! ```
//!
//! # Bus errors
//!
//! A mapping stops answering when its function is removed, suspended or made to ignore memory
//! accesses by somebody else. An access is [`MmioError::BusError`] then, not a SIGBUS: the first
//! BAR that is mapped takes that signal over for the process, and passes on what is not in
//! a BAR. A handler that the program installs later has to pass on what is not its own.
//!
//! # Ordering
//!
//! A register write is ordered after every earlier store to memory, so a descriptor that
//! was filled before a doorbell is visible to the device when the doorbell is; a register
//! read is ordered before every later load from memory. That is what `writel` and `readl`
//! promise in Linux (`Documentation/memory-barriers.txt`, "Kernel I/O barrier effects").

pub(crate) mod barrier;
mod error;
mod guard;
mod poll;
mod register;
#[cfg(feature = "host")]
mod sysfs;

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::backend::{Backend, BackendError, MappedRegion, Region, Regions};
use crate::events::Events;

pub use error::MmioError;
pub use guard::BusErrorGuard;
pub use poll::poll_until;

type Result<T> = std::result::Result<T, MmioError>;

mod sealed {
    pub trait Sealed {}
}

/// A width that a register can have: `u8`, `u16`, `u32` or `u64`.
pub trait Width: Copy + fmt::LowerHex + sealed::Sealed + 'static {
    /// The width in bytes.
    const BYTES: usize;
    /// The value an absent device reads as.
    const ALL_ONES: Self;
    /// The value of zeroed memory.
    const ZERO: Self;

    /// Loads a register's little-endian value.
    ///
    /// # Safety
    ///
    /// `at` must be valid for a volatile load of this width, and naturally aligned.
    #[doc(hidden)]
    unsafe fn load(at: NonNull<u8>) -> Self;

    /// Stores a register's little-endian value.
    ///
    /// # Safety
    ///
    /// `at` must be valid for a volatile store of this width, and naturally aligned.
    #[doc(hidden)]
    unsafe fn store(at: NonNull<u8>, value: Self);

    /// Loads a little-endian value from memory; orders nothing.
    ///
    /// # Safety
    ///
    /// As [`Width::load`].
    #[doc(hidden)]
    unsafe fn load_relaxed(at: NonNull<Self>) -> Self;

    /// Stores a little-endian value to memory; orders nothing.
    ///
    /// # Safety
    ///
    /// As [`Width::store`].
    #[doc(hidden)]
    unsafe fn store_relaxed(at: NonNull<Self>, value: Self);

    #[doc(hidden)]
    fn read_trapped(read: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<Self>;
    #[doc(hidden)]
    fn write_trapped(self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;
}

macro_rules! width {
    ($($ty:ty),*) => {$(
        impl sealed::Sealed for $ty {}
        impl Width for $ty {
            const BYTES: usize = size_of::<$ty>();
            const ALL_ONES: Self = <$ty>::MAX;
            const ZERO: Self = 0;

            #[inline]
            unsafe fn load(at: NonNull<u8>) -> Self {
                // SAFETY: the caller vouches for validity and alignment.
                let raw = unsafe { at.cast::<$ty>().as_ptr().read_volatile() };
                barrier::after_read();
                <$ty>::from_le(raw)
            }

            #[inline]
            unsafe fn store(at: NonNull<u8>, value: Self) {
                barrier::before_write();
                // SAFETY: the caller vouches for validity and alignment.
                unsafe { at.cast::<$ty>().as_ptr().write_volatile(value.to_le()) };
            }

            #[inline]
            unsafe fn load_relaxed(at: NonNull<Self>) -> Self {
                // SAFETY: the caller vouches for validity and alignment.
                <$ty>::from_le(unsafe { at.read_volatile() })
            }

            #[inline]
            unsafe fn store_relaxed(at: NonNull<Self>, value: Self) {
                // SAFETY: the caller vouches for validity and alignment.
                unsafe { at.write_volatile(value.to_le()) };
            }

            fn read_trapped(read: &mut dyn FnMut(&mut [u8]) -> Result<()>) -> Result<Self> {
                let mut bytes = [0; size_of::<$ty>()];
                read(&mut bytes)?;
                barrier::after_read();
                Ok(<$ty>::from_le_bytes(bytes))
            }

            fn write_trapped(self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
                barrier::before_write();
                write(&self.to_le_bytes())
            }
        }
    )*};
}
width!(u8, u16, u32, u64);

/// Access mode of a register that software only reads.
#[derive(Debug, Clone, Copy)]
pub enum ReadOnly {}
/// Access mode of a register that software only writes.
#[derive(Debug, Clone, Copy)]
pub enum WriteOnly {}
/// Access mode of a register that software reads and writes.
#[derive(Debug, Clone, Copy)]
pub enum ReadWrite {}

/// An access mode that allows reads.
pub trait Readable: sealed::Sealed {}
/// An access mode that allows writes.
pub trait Writable: sealed::Sealed {}
impl sealed::Sealed for ReadOnly {}
impl sealed::Sealed for WriteOnly {}
impl sealed::Sealed for ReadWrite {}
impl Readable for ReadOnly {}
impl Readable for ReadWrite {}
impl Writable for WriteOnly {}
impl Writable for ReadWrite {}

/// A register: its byte offset, its width `T` and its access mode `A`.
#[derive(Debug, Clone, Copy)]
pub struct Reg<T, A> {
    offset: u64,
    kind: PhantomData<(T, A)>,
}

impl<T: Width, A> Reg<T, A> {
    /// Declares the register at this byte offset of its BAR.
    ///
    /// # Panics
    ///
    /// When the offset is not a multiple of the width; in a `const`, that is a compile
    /// error.
    #[must_use]
    pub const fn at(offset: u64) -> Self {
        assert!(offset.is_multiple_of(T::BYTES as u64), "a register is naturally aligned");
        Reg { offset, kind: PhantomData }
    }

    /// The register's byte offset.
    #[must_use]
    pub const fn offset(self) -> u64 {
        self.offset
    }
}

/// Which half of a 64-bit register is accessed first when it is split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SplitOrder {
    /// The half at the lower address, then the other.
    LowFirst,
    /// The half at the higher address, then the other.
    HighFirst,
}

/// The first mapped area; the one that nearly every BAR has alone.
struct Fast {
    /// Where in the region it begins.
    start: u64,
    /// How many bytes of it have 7 more behind them: there is room for an access of any width.
    room: u64,
    base: NonNull<u8>,
}

impl Fast {
    const NONE: Fast = Fast { start: 0, room: 0, base: NonNull::dangling() };

    fn new(range: &Range<u64>, base: NonNull<u8>) -> Fast {
        let room = range.end.saturating_sub(range.start).saturating_sub(7);
        Fast { start: range.start, room, base }
    }
}

/// One region of a device, accessed register by register.
pub struct Bar {
    regions: Arc<dyn Regions>,
    region: Region,
    size: u64,
    /// Cleared for one whose mappings cannot be written; `fast` has no room then.
    writable: bool,
    fast: Fast,
    /// Dropped before the mappings that they watch.
    guards: Vec<BusErrorGuard>,
    areas: Vec<(Range<u64>, Box<dyn MappedRegion>)>,
    /// Says that a mapping exists, as long as one does.
    _mapped: Option<Arc<()>>,
    /// Tell when a mapping does not lead to the device any more.
    events: Events,
}

// SAFETY: the base of `fast` points into a `MappedRegion` that `areas` owns and that is itself
// `Send + Sync`; every access is a volatile load or store.
unsafe impl Send for Bar {}
// SAFETY: as above; concurrent register accesses are as defined as on the bus.
unsafe impl Sync for Bar {}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bar")
            .field("region", &self.region)
            .field("size", &self.size)
            .field("mapped", &self.areas.iter().map(|(range, _)| range).collect::<Vec<_>>())
            .finish()
    }
}

impl Bar {
    /// Opens a region of a device and maps what of it can be mapped; a BAR with a mapping
    /// holds `mapped`.
    ///
    /// # Errors
    ///
    /// Fails when the device does not implement the region, or a mapping fails.
    pub(crate) fn open(
        backend: &Arc<dyn Backend>,
        region: Region,
        events: &Events,
        mapped: &Arc<()>,
    ) -> Result<Bar> {
        Bar::of(Arc::new(Arc::clone(backend)), region, events.clone(), mapped, true)
    }

    fn of(
        regions: Arc<dyn Regions>,
        region: Region,
        events: Events,
        mapped: &Arc<()>,
        writable: bool,
    ) -> Result<Bar> {
        let info = regions.info(region)?;
        if info.size == 0 {
            return Err(BackendError::NoRegion { region }.into());
        }
        let (mut areas, mut guards) = (Vec::new(), Vec::new());
        for range in info.mappable {
            let width = range.end.saturating_sub(range.start);
            let outside = |size| {
                let offset = range.start;
                Err(MmioError::OutOfBounds { region, offset, width, size })
            };
            if range.is_empty() || range.end > info.size {
                return outside(info.size);
            }
            let mapping = regions.map(region, range.clone())?;
            let len = mapping.len() as u64;
            if width > len {
                return outside(len);
            }
            // An access is naturally aligned in the region: it has to be in the mapping too.
            let skew = (mapping.base().addr().get() as u64).wrapping_sub(range.start);
            if !skew.is_multiple_of(8) {
                let (offset, width) = (range.start, 8);
                return Err(MmioError::Misaligned { region, offset, width });
            }
            let page = mapping.page_size();
            // SAFETY: the bar drops its guards before its mappings, which it reaches through
            // volatile accesses alone; they are of whole pages of the size that they say.
            let guard = unsafe { BusErrorGuard::watch(mapping.base(), mapping.len(), page) };
            guards.push(guard.map_err(|source| MmioError::Watch { region, source })?);
            areas.push((range, mapping));
        }
        let first = areas.first().filter(|_| writable);
        let fast = first.map_or(Fast::NONE, |(range, mapping)| Fast::new(range, mapping.base()));
        let _mapped = (!areas.is_empty()).then(|| Arc::clone(mapped));
        let size = info.size;
        Ok(Bar { regions, region, size, writable, fast, guards, areas, _mapped, events })
    }

    /// Size of the region in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Which region of the device this is.
    #[must_use]
    pub fn region(&self) -> Region {
        self.region
    }

    /// The byte ranges that are accessed by load and store; everything else is trapped.
    pub fn mapped(&self) -> impl Iterator<Item = &Range<u64>> {
        self.areas.iter().map(|(range, _)| range)
    }

    /// Reads a declared register.
    ///
    /// # Errors
    ///
    /// Fails when the register is outside of the BAR or the backend refuses.
    #[inline]
    pub fn get<T: Width, A: Readable>(&self, register: Reg<T, A>) -> Result<T> {
        self.read(register.offset)
    }

    /// Writes a declared register.
    ///
    /// # Errors
    ///
    /// Fails when the register is outside of the BAR or the backend refuses.
    #[inline]
    pub fn set<T: Width, A: Writable>(&self, register: Reg<T, A>, value: T) -> Result<()> {
        self.write(register.offset, value)
    }

    /// Reads a naturally aligned value at a byte offset, as one access.
    ///
    /// # Errors
    ///
    /// Fails when the offset is misaligned or outside of the BAR, or the backend refuses; with
    /// [`BackendError::ToBeRemoved`] once the kernel has the device back.
    #[inline]
    pub fn read<T: Width>(&self, offset: u64) -> Result<T> {
        match self.locate(offset, T::BYTES as u64) {
            Some(at) => {
                // SAFETY: `locate` returned an aligned address with room for the width inside
                // of a mapping that `self` owns.
                let value = unsafe { T::load(at) };
                self.check_answered(offset, T::BYTES as u64)?;
                Ok(value)
            }
            None => self.read_slow(offset),
        }
    }

    #[inline(never)]
    fn read_slow<T: Width>(&self, offset: u64) -> Result<T> {
        match self.locate_any(offset, T::BYTES as u64)? {
            Some(at) => {
                // SAFETY: as in `read`.
                let value = unsafe { T::load(at) };
                self.check_answered(offset, T::BYTES as u64)?;
                Ok(value)
            }
            None => {
                T::read_trapped(&mut |data| Ok(self.regions.read(self.region, offset, data)?))
            }
        }
    }

    /// Writes a naturally aligned value at a byte offset, as one access.
    ///
    /// # Errors
    ///
    /// As [`Bar::read`].
    #[inline]
    pub fn write<T: Width>(&self, offset: u64, value: T) -> Result<()> {
        match self.locate(offset, T::BYTES as u64) {
            Some(at) => {
                // SAFETY: `locate` returned an aligned address with room for the width
                // inside of a mapping that `self` owns.
                unsafe { T::store(at, value) };
                self.check_answered(offset, T::BYTES as u64)
            }
            None => self.write_slow(offset, value),
        }
    }

    #[inline(never)]
    fn write_slow<T: Width>(&self, offset: u64, value: T) -> Result<()> {
        if !self.writable {
            return Err(MmioError::ReadOnly { region: self.region });
        }
        match self.locate_any(offset, T::BYTES as u64)? {
            Some(at) => {
                // SAFETY: as in `write`.
                unsafe { T::store(at, value) };
                self.check_answered(offset, T::BYTES as u64)
            }
            None => value
                .write_trapped(&mut |data| Ok(self.regions.write(self.region, offset, data)?)),
        }
    }

    /// Reads 64 bits as two 32-bit accesses in the order given.
    ///
    /// # Errors
    ///
    /// As [`Bar::read`].
    pub fn read64_split(&self, offset: u64, order: SplitOrder) -> Result<u64> {
        let high_offset = self.high_half(offset)?;
        let (low, high): (u32, u32) = match order {
            SplitOrder::LowFirst => {
                let low = self.read(offset)?;
                (low, self.read(high_offset)?)
            }
            SplitOrder::HighFirst => {
                let high = self.read(high_offset)?;
                (self.read(offset)?, high)
            }
        };
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    /// Writes 64 bits as two 32-bit accesses in the order given.
    ///
    /// # Errors
    ///
    /// As [`Bar::write`].
    pub fn write64_split(&self, offset: u64, value: u64, order: SplitOrder) -> Result<()> {
        let high_offset = self.high_half(offset)?;
        let (low, high) = (value as u32, (value >> 32) as u32);
        match order {
            SplitOrder::LowFirst => {
                self.write(offset, low)?;
                self.write(high_offset, high)
            }
            SplitOrder::HighFirst => {
                self.write(high_offset, high)?;
                self.write(offset, low)
            }
        }
    }

    fn high_half(&self, offset: u64) -> Result<u64> {
        self.check(offset, 4)?;
        let high = offset.checked_add(4).ok_or(self.outside(offset, 8))?;
        self.check(high, 4)?;
        Ok(high)
    }

    /// Fails when an access to a mapping of the BAR was a bus error, or the device is closed.
    #[inline]
    fn check_answered(&self, offset: u64, width: u64) -> Result<()> {
        // After the access: a mapping is replaced once the device is marked as revoked.
        if self.events.is_revoked() || self.guards.iter().any(BusErrorGuard::is_lost) {
            return Err(self.unanswered(offset, width));
        }
        Ok(())
    }

    #[cold]
    fn unanswered(&self, offset: u64, width: u64) -> MmioError {
        match self.events.check() {
            Err(error @ BackendError::ToBeRemoved { .. }) => error.into(),
            _ => MmioError::BusError { region: self.region, offset, width },
        }
    }

    fn outside(&self, offset: u64, width: u64) -> MmioError {
        MmioError::OutOfBounds { region: self.region, offset, width, size: self.size }
    }

    #[inline]
    fn check(&self, offset: u64, width: u64) -> Result<()> {
        if self.size < width || offset > self.size - width {
            return Err(self.outside(offset, width));
        }
        if !offset.is_multiple_of(width) {
            return Err(MmioError::Misaligned { region: self.region, offset, width });
        }
        Ok(())
    }

    /// Where in this process the access goes, if it is aligned and in the first mapped area, but
    /// for its last 7 bytes.
    #[inline]
    fn locate(&self, offset: u64, width: u64) -> Option<NonNull<u8>> {
        let Fast { start, room, base } = self.fast;
        let inside = offset.wrapping_sub(start);
        if inside >= room || !offset.is_multiple_of(width) {
            return None;
        }
        // SAFETY: 8 bytes from there on are inside the mapping, as just checked, and `Bar::open`
        // checked that the mapping is that long.
        Some(unsafe { base.add(inside as usize) })
    }

    /// Where in this process the access goes; `None` when it must be trapped.
    fn locate_any(&self, offset: u64, width: u64) -> Result<Option<NonNull<u8>>> {
        self.check(offset, width)?;
        let around = |(r, _): &&(Range<u64>, _)| r.start <= offset && offset + width <= r.end;
        Ok(self.areas.iter().find(around).map(|(range, mapping)| {
            // SAFETY: the sum stays inside the mapping, as just checked, and `Bar::open`
            // checked that the mapping is that long.
            unsafe { mapping.base().add((offset - range.start) as usize) }
        }))
    }
}

#[cfg(test)]
mod tests;
