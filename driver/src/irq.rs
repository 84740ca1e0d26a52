//! Interrupt vectors delivered through eventfds.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::backend::{Backend, BackendError, IrqKind};

/// An interrupt operation that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IrqError {
    /// No interrupt came within the time allowed.
    #[error("no interrupt on {kind} vector {vector} within {} ms", .waited.as_millis())]
    Timeout {
        /// Kind of interrupt.
        kind: IrqKind,
        /// The vector waited for.
        vector: usize,
        /// The time allowed.
        waited: Duration,
    },
    /// The vector was not enabled.
    #[error("{kind} vector {vector} is not among the {enabled} enabled")]
    NoSuchVector {
        /// Kind of interrupt.
        kind: IrqKind,
        /// The vector asked for.
        vector: usize,
        /// How many vectors are enabled.
        enabled: usize,
    },
    /// The kernel refused an eventfd operation.
    #[error("{action}: {source}")]
    Event {
        /// What was being done.
        action: &'static str,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

fn refused(action: &'static str, errno: Errno) -> IrqError {
    IrqError::Event { action, source: errno.into() }
}

type Result<T> = std::result::Result<T, IrqError>;

/// The enabled vectors of one kind, disabled again when dropped.
#[derive(Debug)]
pub struct Interrupts {
    backend: Arc<dyn Backend>,
    kind: IrqKind,
    events: Vec<EventFd>,
}

impl Interrupts {
    /// Enables vectors `0..count` of a kind.
    ///
    /// # Errors
    ///
    /// Fails when the device has fewer vectors, or the kernel refuses.
    pub fn enable(backend: &Arc<dyn Backend>, kind: IrqKind, count: u32) -> Result<Interrupts> {
        let available = backend.irq_count(kind)?;
        if count == 0 || count > available {
            return Err(BackendError::NoVectors { kind, requested: count, available }.into());
        }
        let events = (0..count)
            .map(|_| EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK))
            .collect::<nix::Result<Vec<_>>>()
            .map_err(|errno| refused("creating an eventfd", errno))?;
        let fds: Vec<BorrowedFd<'_>> = events.iter().map(AsFd::as_fd).collect();
        backend.irq_enable(kind, &fds)?;
        Ok(Interrupts { backend: Arc::clone(backend), kind, events })
    }

    /// The kind that is enabled.
    #[must_use]
    pub fn kind(&self) -> IrqKind {
        self.kind
    }

    /// The eventfd of a vector, for a caller's own event loop.
    ///
    /// # Errors
    ///
    /// Fails when the vector is not enabled.
    pub fn event(&self, vector: usize) -> Result<BorrowedFd<'_>> {
        Ok(self.eventfd(vector)?.as_fd())
    }

    /// Waits until a vector fired, and returns how often it did since the last wait.
    ///
    /// # Errors
    ///
    /// [`IrqError::Timeout`] when it did not fire in time.
    pub fn wait(&self, vector: usize, timeout: Duration) -> Result<u64> {
        let event = self.eventfd(vector)?;
        let deadline = Instant::now() + timeout;
        loop {
            match event.read() {
                Ok(count) => return Ok(count),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(refused("reading an eventfd", errno)),
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(IrqError::Timeout { kind: self.kind, vector, waited: timeout });
            }
            // Round up, so that the last fraction of a millisecond is not polled away.
            let millis = left.as_millis().saturating_add(1).min(60_000) as u16;
            let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(refused("polling an eventfd", errno)),
            }
        }
    }

    /// Lets a level-triggered line fire again; call it after the device's cause was cleared.
    ///
    /// MSI and MSI-X need no unmasking, and this does nothing for them.
    ///
    /// # Errors
    ///
    /// Fails when the backend refuses.
    pub fn unmask(&self) -> Result<()> {
        match self.kind {
            IrqKind::Intx => Ok(self.backend.intx_set_masked(false)?),
            IrqKind::Msi | IrqKind::MsiX => Ok(()),
        }
    }

    /// Keeps a level-triggered line from firing; nothing for MSI and MSI-X.
    ///
    /// # Errors
    ///
    /// Fails when the backend refuses.
    pub fn mask(&self) -> Result<()> {
        match self.kind {
            IrqKind::Intx => Ok(self.backend.intx_set_masked(true)?),
            IrqKind::Msi | IrqKind::MsiX => Ok(()),
        }
    }

    /// Disables the vectors and says whether that worked, which dropping cannot.
    ///
    /// # Errors
    ///
    /// Fails when the backend refuses.
    pub fn disable(mut self) -> Result<()> {
        self.events.clear();
        Ok(self.backend.irq_disable(self.kind)?)
    }

    fn eventfd(&self, vector: usize) -> Result<&EventFd> {
        self.events.get(vector).ok_or(IrqError::NoSuchVector {
            kind: self.kind,
            vector,
            enabled: self.events.len(),
        })
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        if self.events.is_empty() {
            return;
        }
        if let Err(error) = self.backend.irq_disable(self.kind) {
            log::error!("{}: {error}", self.backend.location());
        }
    }
}
