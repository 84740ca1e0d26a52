//! Events of a function that is open: an error of its link, or that the kernel wants it back.
//!
//! VFIO signals both through eventfds. A thread of the process waits for them, and what is
//! open learns of it by one load from memory: no wait for an interrupt and no register read
//! goes on as if nothing had happened. When the kernel wants a function back
//! ([`Event::Removal`]: it is unbound, removed through sysfs, or unplugged), its owner has
//! [`GRACE`] to drop what keeps it open. Then the thread closes the device, and whatever
//! still uses it gets errors: the kernel does not wait for a program that does not look.

#[cfg(all(test, shuttle))]
mod schedules;
mod watcher;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EfdFlags;

pub use crate::backend::Event;
use crate::backend::{Backend, BackendError};
use crate::deadline::Deadline;
use crate::sync::{AtomicU8, EventFd, Mutex, MutexGuard};
pub(crate) use watcher::Watch;

/// How long the owner of a function that the kernel wants back has to close it.
pub const GRACE: Duration = Duration::from_millis(500);

/// The link reported an error since the last reset.
const ERROR: u8 = 1 << 0;
/// The kernel wants the function back.
const REMOVAL: u8 = 1 << 1;
/// The device is about to be closed: what is read from its registers means nothing.
const REVOKED: u8 = 1 << 2;
/// The device is closed.
const CLOSED: u8 = 1 << 3;

/// The events of one function, for all that use it.
///
/// Its descriptor ([`AsFd`]) is readable while there is something to tell, for a caller's own
/// event loop; it is not to be read.
#[derive(Debug, Clone)]
pub struct Events(Arc<State>);

#[derive(Debug)]
struct State {
    location: String,
    flags: AtomicU8,
    /// Readable while a flag is set. The lock keeps both together.
    told: Mutex<()>,
    event: EventFd,
    /// What uses the device's memory and is to leave it before the device is closed.
    users: Mutex<Vec<Weak<dyn Revoke>>>,
}

/// Something that uses the memory of a device, and can leave it.
pub(crate) trait Revoke: Send + Sync {
    /// Leaves it; later calls do nothing.
    fn revoke(&self);
}

impl fmt::Debug for dyn Revoke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Revoke")
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}

impl Events {
    /// Of a function that has none yet.
    pub(crate) fn new(location: String) -> Result<Events, BackendError> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let event = event.map_err(os_error("creating an eventfd"))?;
        Ok(Events(Arc::new(State {
            location,
            flags: AtomicU8::new(0),
            told: Mutex::new(()),
            event,
            users: Mutex::default(),
        })))
    }

    /// Has the backend tell of the events of its function, as long as the watch lives. Where it
    /// cannot, there are none.
    pub(crate) fn watch(&self, backend: &Arc<dyn Backend>) -> Vec<Watch> {
        let watch = |event| match watcher::watch(backend, self, event) {
            Ok(watch) => watch,
            Err(error) => {
                log::warn!("{}: {error}; {event:?} will not be told", self.0.location);
                None
            }
        };
        [Event::Error, Event::Removal].into_iter().filter_map(watch).collect()
    }

    fn flags(&self) -> u8 {
        self.0.flags.load(Ordering::Acquire)
    }

    /// The event there is, if any: an error until the function is reset, a request for its
    /// removal for good.
    #[must_use]
    pub fn pending(&self) -> Option<Event> {
        match self.flags() {
            0 => None,
            flags if flags & REMOVAL != 0 => Some(Event::Removal),
            _ => Some(Event::Error),
        }
    }

    /// Fails when there is an event, for whoever is to begin or to wait for something.
    ///
    /// # Errors
    ///
    /// [`BackendError::ToBeRemoved`] or [`BackendError::BusError`].
    #[inline]
    pub fn check(&self) -> Result<(), BackendError> {
        // What was learnt is not what another thread wrote: nothing is ordered by it.
        if self.0.flags.load(Ordering::Relaxed) == 0 { Ok(()) } else { self.failed() }
    }

    #[cold]
    fn failed(&self) -> Result<(), BackendError> {
        self.pending().map_or(Ok(()), |event| Err(self.error_of(event)))
    }

    /// The error that an operation fails with for an event.
    pub(crate) fn error_of(&self, event: Event) -> BackendError {
        let location = self.0.location.clone();
        match event {
            Event::Error => BackendError::BusError { location },
            Event::Removal => BackendError::ToBeRemoved { location },
        }
    }

    /// Waits until there is an event; `None` when there is none within `timeout`.
    ///
    /// # Errors
    ///
    /// Fails when the kernel refuses.
    pub fn wait(&self, timeout: Duration) -> Result<Option<Event>, BackendError> {
        let deadline = Deadline::after(timeout);
        loop {
            let left = deadline.left();
            if let Some(event) = self.pending() {
                return Ok(Some(event));
            }
            if left.is_zero() {
                return Ok(None);
            }
            // Round up, so that the last fraction of a millisecond is not polled away.
            let millis = left.as_millis().saturating_add(1).min(60_000) as u16;
            let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(os_error("polling an eventfd")(errno)),
            }
        }
    }

    fn users(&self) -> MutexGuard<'_, Vec<Weak<dyn Revoke>>> {
        // It changes in single steps.
        self.0.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has something leave the device's memory before the device is closed; at once if that has
    /// begun.
    pub(crate) fn before_revoke(&self, user: &Arc<dyn Revoke>) {
        let mut users = self.users();
        users.retain(|user| user.strong_count() > 0);
        users.push(Arc::downgrade(user));
        drop(users);
        if self.is_revoked() {
            user.revoke();
        }
    }

    /// Whether what a register reads means nothing, because the device is closed or about to be.
    #[inline]
    pub(crate) fn is_revoked(&self) -> bool {
        self.0.flags.load(Ordering::Relaxed) & REVOKED != 0
    }

    /// Whether the device is closed, and so reaches no memory any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.flags() & CLOSED != 0
    }

    /// Closes the device, whoever uses it: it reaches no memory then. Says whether it is closed.
    pub(crate) fn revoke(&self, backend: &dyn Backend) -> bool {
        // Before the mappings change, so that nobody takes what is read from them for real.
        self.raise(REVOKED);
        let users = std::mem::take(&mut *self.users());
        for user in users.iter().filter_map(Weak::upgrade) {
            user.revoke();
        }
        match backend.revoke() {
            Ok(true) => self.raise(CLOSED),
            Ok(false) => log::warn!("{}: the device cannot be closed", self.0.location),
            Err(error) => log::error!("{}: the device cannot be closed: {error}", self.0.location),
        }
        self.is_closed()
    }

    /// Tells of something.
    fn raise(&self, flag: u8) {
        let _told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.flags.fetch_or(flag, Ordering::AcqRel);
        // Fails only when the count would overflow, and then it is readable anyway.
        let _ = self.0.event.write(1);
    }

    pub(crate) fn happened(&self, event: Event) {
        self.raise(match event {
            Event::Error => ERROR,
            Event::Removal => REMOVAL,
        });
    }

    /// The function was reset: an error before that is of no interest any more.
    pub(crate) fn was_reset(&self) {
        let _told = self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        if self.0.flags.fetch_and(!ERROR, Ordering::AcqRel) & !ERROR == 0 {
            // Empty unless there was an error.
            let _ = self.0.event.read();
        }
    }
}

fn os_error(action: &'static str) -> impl FnOnce(Errno) -> BackendError {
    move |errno| BackendError::Os { action: action.into(), source: errno.into(), remedy: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(events: &Events) -> bool {
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn an_error_is_told_until_the_reset_and_a_removal_for_good() {
        let events = Events::new("here".into()).unwrap();
        assert_eq!(events.wait(Duration::from_millis(1)).unwrap(), None);
        assert!(events.check().is_ok() && !readable(&events));
        events.happened(Event::Error);
        events.happened(Event::Error);
        assert!(matches!(events.check(), Err(BackendError::BusError { .. })));
        assert_eq!(events.wait(Duration::MAX).unwrap(), Some(Event::Error));
        assert!(readable(&events));
        events.was_reset();
        assert!(events.check().is_ok() && !readable(&events));
        events.happened(Event::Error);
        events.happened(Event::Removal);
        events.was_reset();
        assert_eq!(events.wait(Duration::ZERO).unwrap(), Some(Event::Removal));
        assert!(matches!(events.check(), Err(BackendError::ToBeRemoved { .. })));
        assert!(readable(&events) && !events.is_revoked() && !events.is_closed());
    }
}
