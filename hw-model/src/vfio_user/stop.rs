//! Ends a server from another thread or from a signal handler.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// Ends every server that was given it or a clone of it; once stopped it stays so.
///
/// A signal handler may call [`Stop::stop`]: it does one `write` to an eventfd.
#[derive(Debug, Clone)]
pub struct Stop(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stopped: AtomicBool,
    event: EventFd,
}

impl Stop {
    /// A handle that is not stopped.
    ///
    /// # Errors
    ///
    /// Fails when no eventfd can be had.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Stop(Arc::new(Inner { stopped: AtomicBool::new(false), event })))
    }

    /// Makes the servers end.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        // It fails only when the counter is full, and then it was stopped long ago.
        let _ = self.0.event.write(1);
    }

    /// Whether [`Stop::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }
}

impl AsFd for Stop {
    /// The eventfd: readable once stopped.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.event.as_fd()
    }
}
