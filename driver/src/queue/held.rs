//! Memory that a device may reach for as long as its queue is there.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::device::{Device, Function};

/// Rings, and what else a device was told the address of, until it is known to be done with
/// them.
///
/// Dropped before [`Held::release`] it is kept until the function is known to be quiet, as
/// [`Device::park`] does, and never freed when the function never is.
pub struct Held<T: Send + 'static> {
    function: Arc<Function>,
    value: ManuallyDrop<T>,
    is_released: bool,
}

impl<T: Send + 'static> Held<T> {
    /// Memory that a device is about to be told of.
    #[must_use]
    pub fn new(device: &Device, value: T) -> Held<T> {
        let function = Arc::clone(device.function());
        Held { function, value: ManuallyDrop::new(value), is_released: false }
    }

    /// The device is done with it, or was not told of it: it may be dropped.
    pub fn release(&mut self) {
        self.is_released = true;
    }

    /// The device is told of it again.
    pub fn hold(&mut self) {
        self.is_released = false;
    }
}

impl<T: Send + 'static> Deref for Held<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T: Send + 'static> DerefMut for Held<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<T: Send + fmt::Debug + 'static> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Send + 'static> Drop for Held<T> {
    fn drop(&mut self) {
        // SAFETY: the value is not used again: this is the end of its owner.
        let value = unsafe { ManuallyDrop::take(&mut self.value) };
        if self.is_released {
            drop(value);
        } else {
            self.function.park(Box::new(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::testing::{NoRegisters, Scripted};

    struct Counted(Arc<AtomicU32>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn it_is_dropped_at_once_when_released_and_else_when_the_function_is_quiet() {
        let mut device = Device::open(Scripted::new((1, 1), |_| NoRegisters).attach()).unwrap();
        let dropped = Arc::new(AtomicU32::new(0));
        let count = || dropped.load(Ordering::Relaxed);
        let hold = || Held::new(&device, Counted(Arc::clone(&dropped)));
        let mut released = hold();
        released.release();
        drop(released);
        assert_eq!(count(), 1);
        let mut again = hold();
        again.release();
        again.hold();
        drop(again);
        assert_eq!(count(), 1, "the device may still reach it");
        device.quiesce().unwrap();
        assert_eq!(count(), 2);
    }
}
