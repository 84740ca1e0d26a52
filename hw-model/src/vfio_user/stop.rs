//! Ends a server from another thread or from a signal handler.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Ends every server that was given it or a clone of it; once stopped it stays so.
///
/// A signal handler may call [`Stop::stop`]: it does one `write` to an eventfd.
#[derive(Debug, Clone)]
pub struct Stop(Arc<EventFd>);

impl Stop {
    /// A handle that is not stopped.
    ///
    /// # Errors
    ///
    /// Fails when no eventfd can be had.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Stop(Arc::new(event)))
    }

    /// Makes the servers end.
    pub fn stop(&self) {
        // It fails only when the counter is full, and then it was stopped long ago.
        let _ = self.0.write(1);
    }

    /// Whether [`Stop::stop`] was called.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }
}

impl AsFd for Stop {
    /// The eventfd: readable once stopped.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
