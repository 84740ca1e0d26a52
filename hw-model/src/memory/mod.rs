//! The memory that a device's DMA reaches: ranges of I/O virtual addresses.
//!
//! A transport adds and removes ranges; the device's engine reads, writes and copies
//! through them. Both sides work at the same time: a transfer goes in pieces of at most
//! [`PIECE`] bytes, each under a shared lock, and a change of the map waits for the piece
//! in hand. When [`DmaMap::unmap`] has returned, nothing touches that memory any more; a
//! transfer that arrives there later stops with a [`DmaFault`].
//!
//! Memory is shared with another process that may change it at any time, so no Rust
//! reference ever points into it: it is reached through `vm-memory`'s volatile slices.
//! A client that lies about its memory gets an error: where a page of its file cannot be had any
//! more, since the file was cut short or its file system is full, the transfer that meets it stops
//! with a fault, and so does every later one to that file.

mod backing;
mod bulk;
mod error;
mod port;
#[cfg(all(test, shuttle))]
mod schedules;
mod sorted;
mod table;
#[cfg(test)]
mod tests;

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};

pub use error::{Direction, DmaFault, FaultReason, MemoryError};
pub(crate) use port::{Port, Use};
pub use vfio_dma::backend::DmaAccess as Access;
use vfio_dma::mmio::BusErrorGuard;

use backing::Slot;
pub(crate) use backing::is_memory;
use bulk::Bulk;
use port::PortCounters;
use table::Table;

use crate::sync::{AtomicU32, AtomicU64, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The most bytes that one piece of a transfer moves, and so the longest that a change of
/// the map waits for a transfer: some tens of microseconds.
pub const PIECE: u64 = 256 << 10;

/// How many ranges a map holds at most: 4 GiB in pages of 4 KiB.
///
/// It bounds what a client can make the model allocate, to about 100 MB.
pub const MAX_RANGES: usize = 1 << 20;

/// What a device did with its memory so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AccessStats {
    /// Bytes that the device read.
    pub bytes_read: u64,
    /// Bytes that the device wrote.
    pub bytes_written: u64,
    /// Transfers stopped because nothing is mapped there: too late, or astray.
    pub refused_not_mapped: u64,
    /// Transfers stopped because the range has no memory behind it.
    pub refused_unbacked: u64,
    /// Transfers stopped because the range does not allow reading, or writing.
    pub refused_denied: u64,
}

#[derive(Debug, Default)]
struct Counters {
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    not_mapped: AtomicU64,
    unbacked: AtomicU64,
    denied: AtomicU64,
}

/// The ranges of I/O virtual addresses that a device can reach.
///
/// Finding an address takes time logarithmic in the number of ranges. Ranges of one file
/// share one `mmap`, told by device and inode number, so that the number of ranges is not
/// limited by `vm.max_map_count`.
#[derive(Debug, Default)]
pub struct DmaMap {
    table: RwLock<Table>,
    /// How many threads wait to change the table, of which one holds the gate.
    changing: AtomicU32,
    gate: Mutex<()>,
    counters: Counters,
    /// What lasting ports have moved; `counters` has the rest.
    port_counters: Mutex<Vec<Arc<PortCounters>>>,
    bulk: Bulk,
    /// The bus errors of this process ([`BusErrorGuard::taken`]) after which lost files were looked
    /// for.
    settled: AtomicUsize,
}

impl DmaMap {
    /// A map without any range.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps `len` bytes at `iova` to a file, from byte `offset` of it on.
    ///
    /// The descriptor is not needed afterwards. A memfd that allows it is sealed against
    /// shrinking.
    ///
    /// # Errors
    ///
    /// Fails when the file is none of memory ([`MemoryError::NotMemory`]), when the range is
    /// empty, overlaps another or exceeds the address space, when the file is shorter than the range needs, when the descriptor does not allow
    /// `access`, and when the system refuses the mapping.
    pub fn map_fd(
        &self,
        iova: u64,
        len: u64,
        fd: impl AsFd,
        offset: u64,
        access: Access,
    ) -> Result<(), MemoryError> {
        let mut table = self.change();
        let last = table.vacant(iova, len, MAX_RANGES)?;
        let slot = table.backings().acquire(fd, offset, len, access)?;
        table.insert(iova, last, slot, offset, access);
        Ok(())
    }

    /// Maps `len` bytes at `iova` to memory of this process.
    ///
    /// # Errors
    ///
    /// Fails when the range is empty, overlaps another or exceeds the address space.
    ///
    /// # Safety
    ///
    /// Until [`DmaMap::unmap`] of the range returned, `[host, host + len)` must stay valid
    /// for reads (and, when `access` says so, for writes), and no Rust reference may point
    /// into it while the device may access it.
    pub unsafe fn map_host(
        &self,
        iova: u64,
        len: u64,
        host: NonNull<u8>,
        access: Access,
    ) -> Result<(), MemoryError> {
        let mut table = self.change();
        let last = table.vacant(iova, len, MAX_RANGES)?;
        table.insert(iova, last, Slot::HOST, host.as_ptr().expose_provenance() as u64, access);
        Ok(())
    }

    /// Maps `len` bytes at `iova` that cannot be reached: touching them is a fault of its
    /// own kind.
    ///
    /// That is what a client does with another device's registers, which have no memory
    /// that could be shared.
    ///
    /// # Errors
    ///
    /// Fails when the range is empty, overlaps another or exceeds the address space.
    pub fn map_unbacked(&self, iova: u64, len: u64, access: Access) -> Result<(), MemoryError> {
        let mut table = self.change();
        let last = table.vacant(iova, len, MAX_RANGES)?;
        table.insert(iova, last, Slot::UNBACKED, 0, access);
        Ok(())
    }

    /// Takes away all ranges inside `[iova, iova + len)`; returns how many bytes they had.
    ///
    /// Unmapping what was never mapped succeeds with 0. When this returns, no transfer
    /// touches the memory any more.
    ///
    /// # Errors
    ///
    /// Fails, and changes nothing, when the range would cut a mapping in two.
    pub fn unmap(&self, iova: u64, len: u64) -> Result<u64, MemoryError> {
        self.change().remove(iova, len)
    }

    /// Takes away every range.
    pub fn unmap_all(&self) {
        *self.change() = Table::default();
    }

    /// Reads `data.len()` bytes from `iova` on.
    ///
    /// # Errors
    ///
    /// Stops at the first address that cannot be read; what lies before it was read.
    pub fn read(&self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        self.port().read(Use::Source, iova, data)
    }

    /// Writes `data` from `iova` on, in ascending order of pieces.
    ///
    /// # Errors
    ///
    /// Stops at the first address that cannot be written; what lies before it was written.
    pub fn write(&self, iova: u64, data: &[u8]) -> Result<(), DmaFault> {
        self.port().write(Use::Target, iova, data)
    }

    /// Writes `len` bytes from `iova` on with a repeated pattern of 8 bytes, which starts at
    /// `iova` with the least significant one.
    ///
    /// # Errors
    ///
    /// Stops at the first address that cannot be written; what lies before it was written.
    pub fn fill(&self, iova: u64, pattern: u64, len: u64) -> Result<(), DmaFault> {
        self.port().fill(iova, pattern, len)
    }

    /// Copies `len` bytes from `source` to `destination`, at the speed of `memmove`.
    ///
    /// Pieces end where a range ends and after [`PIECE`] bytes at the latest. They are moved
    /// in ascending order; inside a piece, overlapping memory is moved as `memmove` does,
    /// whichever addresses it has. So a destination below its source, or memory that
    /// overlaps within one piece, gives the former content of the source.
    ///
    /// # Errors
    ///
    /// Stops at the first byte of which either side cannot be reached (the source is tried
    /// first); what lies before it was copied. The fault's direction tells the side.
    pub fn copy(&self, destination: u64, source: u64, len: u64) -> Result<(), DmaFault> {
        self.port().copy(destination, source, len)
    }

    /// Writes 8 bytes, little endian, as a device writes a completion.
    ///
    /// Where the address is aligned and the bytes lie in one range, they appear at once,
    /// after everything that this thread wrote before (a release store: it pairs with the
    /// driver's acquire load of the word). Elsewhere it is [`DmaMap::write`].
    ///
    /// # Errors
    ///
    /// Fails when the address cannot be written.
    pub fn store_u64(&self, iova: u64, value: u64) -> Result<(), DmaFault> {
        self.port().store_u64(iova, value)
    }

    /// Reads 8 bytes, little endian, at once where [`DmaMap::store_u64`] would write them so.
    ///
    /// # Errors
    ///
    /// Fails when the address cannot be read.
    pub fn load_u64(&self, iova: u64) -> Result<u64, DmaFault> {
        self.port().load_u64(Use::Chain, iova)
    }

    /// A way to the memory for one access.
    pub(crate) fn port(&self) -> Port<'_> {
        Port::new(self, None)
    }

    /// A way to the memory for a thread that makes many accesses. What it moves is counted
    /// for as long as the map exists.
    pub(crate) fn lasting_port(&self) -> Port<'_> {
        let counters = Arc::new(PortCounters::default());
        self.port_counters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&counters));
        Port::new(self, Some(counters))
    }

    /// What the device did with its memory since the map was made.
    #[must_use]
    pub fn stats(&self) -> AccessStats {
        let counters = &self.counters;
        let port_counters = self.port_counters.lock().unwrap_or_else(PoisonError::into_inner);
        let lasting =
            |direction| port_counters.iter().map(|counters| counters.get(direction)).sum::<u64>();
        AccessStats {
            bytes_read: counters.bytes_read.load(Ordering::Relaxed) + lasting(Direction::Read),
            bytes_written: counters.bytes_written.load(Ordering::Relaxed)
                + lasting(Direction::Write),
            refused_not_mapped: counters.not_mapped.load(Ordering::Relaxed),
            refused_unbacked: counters.unbacked.load(Ordering::Relaxed),
            refused_denied: counters.denied.load(Ordering::Relaxed),
        }
    }

    /// How many ranges are mapped now.
    #[must_use]
    pub fn ranges(&self) -> usize {
        self.look().ranges()
    }

    /// How many files are behind them, each mapped once into this process.
    #[must_use]
    pub fn files(&self) -> usize {
        self.look().files()
    }

    fn refused(&self, fault: &DmaFault) {
        let counter = match fault.reason {
            FaultReason::NotMapped | FaultReason::Wraps => &self.counters.not_mapped,
            FaultReason::Unbacked => &self.counters.unbacked,
            FaultReason::Denied => &self.counters.denied,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    // A panic under the lock leaves the table whole: it changes only in steps that do not
    // panic half-way, so a poisoned lock is still good.

    fn look(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table, to change it. The lock alone lets a port that gives it up take it again at
    /// once, for ever; so ports see that somebody is waiting, and stop at the gate.
    fn change(&self) -> RwLockWriteGuard<'_, Table> {
        self.changing.fetch_add(1, Ordering::Relaxed);
        let gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        self.changing.fetch_sub(1, Ordering::Relaxed);
        drop(gate);
        table
    }

    /// Whether somebody waits to change the table.
    #[inline]
    fn is_changing(&self) -> bool {
        self.changing.load(Ordering::Relaxed) != 0
    }

    /// Whether there was a bus error, in memory of whatever map, since lost files were looked for.
    #[inline]
    fn is_unsettled(&self) -> bool {
        BusErrorGuard::taken() != self.settled.load(Ordering::Relaxed)
    }

    /// Finds files that are lost.
    #[cold]
    fn settle(&self) {
        let taken = BusErrorGuard::taken();
        self.change().backings().find_lost();
        self.settled.store(taken, Ordering::Relaxed);
    }

    /// Waits until whoever is at the gate has the table.
    #[cold]
    fn let_pass(&self) {
        drop(self.gate.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
