//! A buffer cut into equal slots, each owned by a token.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{AddressSpace, Buffer, Direction, DmaError, Iova};

/// The right to the bytes of one slot of a [`SlotPool`]: 8 bytes, owned, not to be copied.
///
/// A transfer takes it and gives it back when the device is done, so a slot that the device
/// has can be neither read nor written nor given to the device once more.
///
/// ```compile_fail,E0382
/// # use vfio_dma::dma::{Slot, SlotError, SlotPool};
/// # use vfio_dma::devices::ioat::{Batch, SlotsRefused};
/// # fn f(pool: &SlotPool, batch: &mut Batch<'_>, source: Slot, target: Slot)
/// #     -> Result<(), Box<dyn std::error::Error>> {
/// batch.copy(source, target, 64)?;
/// pool.read(&target, 0, &mut [0; 64])?; // the device is writing it
/// # Ok(())
/// # }
/// ```
///
/// ```compile_fail,E0382
/// # use vfio_dma::dma::{Slot, SlotPool};
/// # use vfio_dma::devices::ioat::Batch;
/// # fn f(pool: &SlotPool, batch: &mut Batch<'_>, mut source: Slot, target: Slot)
/// #     -> Result<(), Box<dyn std::error::Error>> {
/// batch.copy(source, target, 64)?;
/// pool.write(&mut source, 0, b"next")?; // the device is reading it
/// # Ok(())
/// # }
/// ```
///
/// ```compile_fail,E0382
/// # use vfio_dma::dma::Slot;
/// # use vfio_dma::devices::ioat::Batch;
/// # fn f(batch: &mut Batch<'_>, source: Slot, target: Slot, other: Slot)
/// #     -> Result<(), Box<dyn std::error::Error>> {
/// batch.copy(source, target, 64)?;
/// batch.copy(other, target, 64)?; // it would be sent twice
/// # Ok(())
/// # }
/// ```
///
/// ```compile_fail,E0599
/// # fn f(slot: vfio_dma::dma::Slot) -> vfio_dma::dma::Slot {
/// slot.clone() // whoever has it has it alone
/// # }
/// ```
#[derive(PartialEq, Eq, Hash)]
pub struct Slot(NonZeroU64);

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("pool", &(self.0.get() >> 32))
            .field("index", &self.index())
            .finish()
    }
}

impl Slot {
    /// Which slot of its pool it is, from 0 on.
    #[inline]
    #[must_use]
    pub fn index(&self) -> u32 {
        self.0.get() as u32
    }

    #[inline(always)]
    pub(crate) fn bits(&self) -> u64 {
        self.0.get()
    }
}

/// Why something cannot be done with a slot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// The slot is of another pool.
    #[error("slot {index} is of another pool")]
    Foreign {
        /// Its index there.
        index: u32,
    },
    /// A side of an operation has no slot.
    #[error("an operation from slot to slot lacks one of them")]
    Missing,
    /// The bytes are none, or not inside the slot.
    #[error("{len} bytes at offset {offset} of a slot of {slot_len} bytes")]
    Range {
        /// Offset in bytes.
        offset: usize,
        /// Length in bytes.
        len: usize,
        /// Bytes of a slot.
        slot_len: usize,
    },
    /// The memory of the slot cannot be read or written.
    #[error("slot {index}: {reason}")]
    Memory {
        /// Its index.
        index: u32,
        /// Why, in words.
        reason: String,
    },
    /// The segments of one operation are none, or too many.
    #[error("an operation of {segments} segments: 1 to {most} are possible")]
    Segments {
        /// Segments asked for.
        segments: usize,
        /// The most.
        most: usize,
    },
}

/// Why a buffer cannot be cut into slots.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SlotPoolError {
    /// Slots of no bytes, of more than the buffer has, or more of them than 2^32 - 1.
    #[error("slots of {slot_len} bytes in a buffer of {len} bytes")]
    Length {
        /// Bytes of a slot.
        slot_len: usize,
        /// Bytes of the buffer.
        len: usize,
    },
    /// A slot is not contiguous for the device.
    #[error(
        "slot {slot} of {slot_len} bytes is not contiguous for the device: take slots that divide \
         the buffer's segments, or a contiguous buffer"
    )]
    Scattered {
        /// The first such slot.
        slot: usize,
        /// Bytes of a slot.
        slot_len: usize,
    },
    /// This process has made 2^32 - 1 pools.
    #[error("this process has made as many pools of slots as there can be")]
    Exhausted,
}

/// A buffer that was not made a pool.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub struct SlotPoolFailed {
    /// Why.
    #[source]
    pub error: SlotPoolError,
    /// The buffer.
    pub buffer: Box<Buffer>,
}

/// A mapped buffer cut into equal slots.
///
/// Whoever has the [`Slot`] may read and write its bytes, from any thread; the pool itself is
/// shared. It is unmapped when nothing refers to it any more: a channel that has, or had, a
/// slot of it does.
///
/// ```
/// # use vfio_dma::dma::{Allocator, Direction, Request, SlotPool};
/// # fn f(allocator: &Allocator) -> Result<(), Box<dyn std::error::Error>> {
/// let buffer = allocator.allocate(&Request::new(1 << 20, Direction::Bidirectional))?;
/// let (pool, mut slots) = SlotPool::new(buffer, 2048)?;
/// let mut slot = slots.pop().ok_or("512 slots")?;
/// pool.write(&mut slot, 0, b"a record")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SlotPool {
    buffer: Buffer,
    slot_len: usize,
    /// The token of slot 0: a number of its own for each pool above, the index below.
    first: u64,
    addresses: Box<[Iova]>,
}

impl SlotPool {
    /// Cuts a buffer into slots of `slot_len` bytes, and hands out all of them, the first one
    /// first. What is left at its end is not used.
    ///
    /// # Errors
    ///
    /// Gives the buffer back when a slot is empty, too long, or not contiguous for the device.
    pub fn new(
        buffer: Buffer,
        slot_len: usize,
    ) -> Result<(Arc<SlotPool>, Vec<Slot>), SlotPoolFailed> {
        let addresses = match addresses(&buffer, slot_len) {
            Ok(addresses) => addresses,
            Err(error) => return Err(SlotPoolFailed { error, buffer: Box::new(buffer) }),
        };
        let Some(first) = take_number().map(|number| u64::from(number) << 32) else {
            let error = SlotPoolError::Exhausted;
            return Err(SlotPoolFailed { error, buffer: Box::new(buffer) });
        };
        let tokens = (first..).take(addresses.len()).filter_map(NonZeroU64::new);
        let slots = tokens.map(Slot).collect();
        Ok((Arc::new(SlotPool { buffer, slot_len, first, addresses }), slots))
    }

    /// The buffer again, once nothing else refers to the pool. Tokens of it name nothing then.
    ///
    /// # Errors
    ///
    /// Gives the pool back when something refers to it: such as a channel that copied from or
    /// to it, and was not told to let go.
    pub fn into_buffer(self: Arc<SlotPool>) -> Result<Buffer, Arc<SlotPool>> {
        Arc::try_unwrap(self).map(|pool| pool.buffer)
    }

    /// Bytes of a slot.
    #[inline]
    #[must_use]
    pub fn slot_len(&self) -> usize {
        self.slot_len
    }

    /// How many slots there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Never: a pool has at least one slot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Which way data may flow.
    #[inline]
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.buffer.direction()
    }

    /// The address space that it is mapped in.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        self.buffer.space()
    }

    /// The device address of a slot's first byte; `None` for a slot of another pool.
    #[inline]
    #[must_use]
    pub fn address(&self, slot: &Slot) -> Option<Iova> {
        self.table().address(slot)
    }

    #[inline]
    pub(crate) fn table(&self) -> SlotTable<'_> {
        SlotTable { minus_first: self.first.wrapping_neg(), addresses: &self.addresses }
    }

    /// Copies bytes out of a slot.
    ///
    /// # Errors
    ///
    /// Fails when the slot is another pool's, the range is not inside of it, or the buffer's memory
    /// cannot be read.
    pub fn read(&self, slot: &Slot, offset: usize, into: &mut [u8]) -> Result<(), SlotError> {
        let at = self.place(slot, offset, into.len())?;
        self.buffer.read(at, into).map_err(|error| failed(slot, error))
    }

    /// Copies bytes into a slot.
    ///
    /// # Errors
    ///
    /// As [`SlotPool::read`], or when the buffer's memory is only read.
    pub fn write(&self, slot: &mut Slot, offset: usize, from: &[u8]) -> Result<(), SlotError> {
        let at = self.place(slot, offset, from.len())?;
        self.buffer.write_part(at, from).map_err(|error| failed(slot, error))
    }

    /// Where in the buffer a part of a slot begins.
    fn place(&self, slot: &Slot, offset: usize, len: usize) -> Result<usize, SlotError> {
        let index = slot.index();
        self.address(slot).ok_or(SlotError::Foreign { index })?;
        let slot_len = self.slot_len;
        if offset.checked_add(len).is_none_or(|end| end > slot_len) {
            return Err(SlotError::Range { offset, len, slot_len });
        }
        Ok(index as usize * slot_len + offset)
    }
}

fn failed(slot: &Slot, error: DmaError) -> SlotError {
    SlotError::Memory { index: slot.index(), reason: error.to_string() }
}

/// Where the slots of a pool are: what a hot path keeps in registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotTable<'a> {
    /// To be added to a token: an addition takes one instruction less than a subtraction.
    minus_first: u64,
    addresses: &'a [Iova],
}

impl SlotTable<'_> {
    /// Of no slots.
    pub(crate) const EMPTY: SlotTable<'static> = SlotTable { minus_first: 0, addresses: &[] };

    /// As [`SlotPool::address`].
    #[inline(always)]
    pub(crate) fn address(&self, slot: &Slot) -> Option<Iova> {
        // Another pool's tokens are far from this one's.
        self.get(slot.bits())
    }

    #[inline(always)]
    fn get(&self, bits: u64) -> Option<Iova> {
        let index = bits.wrapping_add(self.minus_first);
        self.addresses.get(usize::try_from(index).ok()?).copied()
    }

    /// As [`SlotPool::address`], of a slot if there is one.
    #[inline(always)]
    pub(crate) fn address_of(&self, slot: &Option<Slot>) -> Option<Iova> {
        self.get(slot.as_ref().map_or(0, Slot::bits))
    }
}

/// The device addresses of the slots of a buffer.
fn addresses(buffer: &Buffer, slot_len: usize) -> Result<Box<[Iova]>, SlotPoolError> {
    let len = buffer.len();
    let count = len.checked_div(slot_len).filter(|&count| u32::try_from(count).is_ok());
    let count = count.filter(|&count| count > 0);
    let count = count.ok_or(SlotPoolError::Length { slot_len, len })?;
    let scattered = |slot| SlotPoolError::Scattered { slot, slot_len };
    let address = |slot: usize| {
        let mut segments =
            buffer.segments_of(slot * slot_len, slot_len).map_err(|_| scattered(slot))?;
        let first = segments.next().filter(|segment| segment.len == slot_len);
        first.map(|segment| segment.iova).ok_or(scattered(slot))
    };
    (0..count).map(address).collect()
}

/// A number that no other pool of this process has, and not 0.
fn take_number() -> Option<u32> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| next.checked_add(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::buffer;

    #[test]
    fn slots_lie_side_by_side_and_are_reached_by_their_own_token_only() {
        let (memory, host) = buffer(1000);
        let base = memory.segments()[0].iova.0;
        let (pool, mut slots) = SlotPool::new(memory, 96).unwrap();
        assert_eq!((size_of::<Slot>(), size_of::<Option<Slot>>()), (8, 8));
        assert_eq!((slots.len(), pool.len(), pool.slot_len()), (10, 10, 96));
        for (n, slot) in slots.iter_mut().enumerate() {
            assert_eq!(slot.index() as usize, n);
            assert_eq!(pool.address(slot), Some(Iova(base + 96 * n as u64)));
            pool.write(slot, 88, &(n as u64).to_le_bytes()).unwrap();
        }
        for (n, slot) in slots.iter().enumerate() {
            assert_eq!(host.load(base + 96 * n as u64 + 88), Some(n as u64));
            let mut bytes = [0; 8];
            pool.read(slot, 88, &mut bytes).unwrap();
            assert_eq!(u64::from_le_bytes(bytes), n as u64);
            for (offset, len) in [(89, 8), (0, 97), (usize::MAX, 1)] {
                let refused = pool.read(slot, offset, &mut vec![0; len]);
                assert!(matches!(refused, Err(SlotError::Range { slot_len: 96, .. })));
            }
        }
        let (other, mut others) = SlotPool::new(buffer(1000).0, 96).unwrap();
        let foreign = SlotError::Foreign { index: 0 };
        assert_eq!(pool.read(&others[0], 0, &mut []), Err(foreign.clone()));
        assert_eq!(pool.write(&mut others[0], 0, &[]), Err(foreign.clone()));
        assert_eq!((other.address(&slots[0]), pool.address(&others[9])), (None, None));
        let shared = Arc::clone(&pool);
        let pool = pool.into_buffer().unwrap_err();
        drop(shared);
        // A buffer that was a pool is cut anew, and old tokens name nothing of it.
        let (pool, _) = SlotPool::new(pool.into_buffer().unwrap(), 100).unwrap();
        assert_eq!(pool.address(&slots[0]), None);
    }

    #[test]
    fn a_buffer_that_cannot_be_cut_comes_back() {
        for slot_len in [0, 1001, usize::MAX] {
            let failed = SlotPool::new(buffer(1000).0, slot_len).unwrap_err();
            assert!(matches!(failed.error, SlotPoolError::Length { len: 1000, .. }));
            assert_eq!(failed.buffer.len(), 1000);
        }
    }

    #[test]
    fn a_scattered_buffer_is_cut_along_its_segments() {
        use crate::dma::{Placement, Request};
        let (allocator, _host) = crate::testing::allocator();
        let request = Request::new(4 << 12, Direction::Bidirectional);
        let scattered = allocator.allocate(&request.placement(Placement::ScatterGather)).unwrap();
        let segments = scattered.segments().to_vec();
        if segments.len() == 1 {
            return assert!(SlotPool::new(scattered, 3 << 12).is_ok());
        }
        let failed = SlotPool::new(scattered, 3 << 11).unwrap_err();
        assert!(matches!(failed.error, SlotPoolError::Scattered { .. }), "{failed}");
        let (pool, slots) = SlotPool::new(*failed.buffer, 2048).unwrap();
        for slot in &slots {
            let at = slot.index() as usize * 2048;
            let iova = pool.address(slot).unwrap();
            assert_eq!(iova.0, segments[at >> 12].iova.0 + (at & 0xfff) as u64);
        }
    }
}
