//! What a device may reach, kept until it is done with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use slab::Slab;

use crate::device::{Device, DeviceError, Function};

/// Names something in flight; once that was completed, it names nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    key: usize,
    /// Different for everything that was ever in flight in this process.
    id: u64,
}

/// Owns what a device may touch: buffers, or values that hold them, completed in any order.
///
/// A driver puts a buffer in here before it tells the device its addresses, and takes it out
/// once the device is done with it. Whatever is still here when this is dropped, after an
/// error, a panic or an early return, is dropped only after the function was stopped
/// ([`Device::quiesce`]); if it cannot be stopped, it is leaked, with a log entry. So no DMA
/// runs into memory that was freed or given to somebody else.
///
/// ```
/// # use vfio_dma::device::{Device, DeviceError};
/// # use vfio_dma::dma::{Direction, Request};
/// # use vfio_dma::queue::InFlight;
/// # fn f(device: &Device) -> Result<(), Box<dyn std::error::Error>> {
/// let mut in_flight = InFlight::new(device);
/// let buffer = device.allocate(&Request::new(4096, Direction::FromDevice))?;
/// let address = buffer.segments()[0].iova;
/// let slot = in_flight.insert(buffer);
/// // The device is told the address, and is done: an error up to here stops it first.
/// let buffer = in_flight.complete(slot).ok_or("completed twice")?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct InFlight<T: Send + 'static> {
    function: Arc<Function>,
    items: Slab<(u64, T)>,
}

impl<T: Send + 'static> InFlight<T> {
    /// Nothing in flight on a device.
    #[must_use]
    pub fn new(device: &Device) -> InFlight<T> {
        InFlight::with_capacity(device, 0)
    }

    /// Nothing in flight, with room for so many until memory is allocated for more.
    #[must_use]
    pub fn with_capacity(device: &Device, capacity: usize) -> InFlight<T> {
        let function = Arc::clone(device.function());
        InFlight { function, items: Slab::with_capacity(capacity) }
    }

    /// Keeps something until it is completed.
    #[inline]
    pub fn insert(&mut self, item: T) -> Slot {
        self.insert_mut(item).0
    }

    /// As [`InFlight::insert`], with what [`InFlight::get_mut`] gives.
    #[inline]
    pub fn insert_mut(&mut self, item: T) -> (Slot, &mut T) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let entry = self.items.vacant_entry();
        let key = entry.key();
        (Slot { key, id }, &mut entry.insert((id, item)).1)
    }

    /// Gives back what the device is done with; `None` when that was done before.
    #[inline]
    pub fn complete(&mut self, slot: Slot) -> Option<T> {
        self.get(slot)?;
        self.items.try_remove(slot.key).map(|(_, item)| item)
    }

    /// What a slot names; the device may be using it.
    #[inline]
    #[must_use]
    pub fn get(&self, slot: Slot) -> Option<&T> {
        self.items.get(slot.key).filter(|(id, _)| *id == slot.id).map(|(_, item)| item)
    }

    /// What a slot names, for what the driver itself keeps there: the device may be using the
    /// rest.
    #[inline]
    #[must_use]
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        self.items.get_mut(slot.key).filter(|(id, _)| *id == slot.id).map(|(_, item)| item)
    }

    /// Gives back everything, for a driver that knows its device to be done with all of it: a
    /// part of a function that was stopped by itself.
    pub fn complete_all(&mut self) -> impl Iterator<Item = T> {
        self.items.drain().map(|(_, item)| item)
    }

    /// How much is in flight.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether nothing is in flight.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Stops the function, all of it, and gives back everything in flight.
    ///
    /// # Errors
    ///
    /// As [`Device::quiesce`]; everything is still in flight then.
    pub fn quiesce(&mut self) -> Result<Vec<T>, DeviceError> {
        self.function.quiesce()?;
        Ok(self.items.drain().map(|(_, item)| item).collect())
    }

    /// Gives everything to the device to keep until the function is known to be quiet, as
    /// [`Device::park`] does: for a part of a function that cannot be stopped by itself,
    /// while others of its parts are in use.
    pub fn park(&mut self) {
        for (_, item) in self.items.drain() {
            self.function.park(Box::new(item));
        }
    }
}

impl<T: Send + 'static> Drop for InFlight<T> {
    fn drop(&mut self) {
        if self.is_empty() {
            return;
        }
        if let Err(error) = self.function.quiesce() {
            log::error!(
                "{} cannot be stopped, {} items in flight stay mapped and allocated: {error}",
                self.function.location(),
                self.len()
            );
            std::mem::forget(std::mem::take(&mut self.items));
        }
    }
}
