//! Interrupt vectors delivered through eventfds.
//!
//! A [`Vector`] belongs to whoever took it; the kind of interrupt is disabled when the last
//! of its vectors is dropped. A function has vectors of one kind at a time (VFIO refuses a
//! second one, `VFIO_DEVICE_SET_IRQS` in `include/uapi/linux/vfio.h`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::backend::{Backend, BackendError, IrqKind};
use crate::deadline::Deadline;
use crate::events::Events;
use crate::pci::remedy::{Remedy, suffix};
use crate::sync::Mutex;

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
        vector: u32,
        /// The time allowed.
        waited: Duration,
    },
    /// The function's vectors are handed out already.
    #[error(
        "{location}: {requested} vectors cannot be enabled, the function's {taken} vectors are in \
         use: drop them first"
    )]
    InUse {
        /// The device.
        location: String,
        /// The kind asked for.
        requested: IrqKind,
        /// The kind that is handed out.
        taken: IrqKind,
    },
    /// The kernel refused an eventfd operation.
    #[error("{action}: {source}{}", suffix(self.remedy()))]
    Event {
        /// What was being done.
        action: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

impl IrqError {
    /// What the reader can do about it, where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<&Remedy> {
        match self {
            IrqError::Backend(error) => error.remedy(),
            IrqError::Event { source, .. } if source.raw_os_error() == Some(libc::EMFILE) => {
                Some(&Remedy::RaiseOpenFiles)
            }
            _ => None,
        }
    }

    pub(crate) fn event(action: &'static str) -> impl FnOnce(Errno) -> IrqError {
        move |errno| IrqError::Event { action, source: errno.into() }
    }
}

type Result<T> = std::result::Result<T, IrqError>;

/// Whether the vectors of a function are handed out, and of which kind.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claim(Arc<Mutex<Option<IrqKind>>>);

impl Claim {
    /// Enables vectors `0..count` of a kind and hands them out.
    pub(crate) fn enable(
        &self,
        backend: &Arc<dyn Backend>,
        happened: &Events,
        kind: IrqKind,
        count: u32,
    ) -> Result<Vec<Vector>> {
        let available = backend.irq_count(kind)?;
        if count == 0 || count > available {
            return Err(BackendError::NoVectors { kind, requested: count, available }.into());
        }
        let events = (0..count)
            .map(|_| EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK))
            .collect::<nix::Result<Vec<_>>>()
            .map_err(IrqError::event("creating an eventfd"))?;
        let mut claim = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = *claim {
            let location = backend.location();
            return Err(IrqError::InUse { location, requested: kind, taken });
        }
        let fds: Vec<BorrowedFd<'_>> = events.iter().map(AsFd::as_fd).collect();
        backend.irq_enable(kind, &fds)?;
        *claim = Some(kind);
        let (backend, claim, happened) = (Arc::clone(backend), self.clone(), happened.clone());
        let enabled = Arc::new(Enabled { backend, kind, claim, happened });
        let vector = |(index, event)| Vector { event, index, enabled: Arc::clone(&enabled) };
        Ok((0..count).zip(events).map(vector).collect())
    }

    /// Enables as many vectors of a kind as can be had, `most` or fewer, at least one.
    pub(crate) fn enable_up_to(
        &self,
        backend: &Arc<dyn Backend>,
        happened: &Events,
        kind: IrqKind,
        most: u32,
    ) -> Result<Vec<Vector>> {
        let mut count = most.min(backend.irq_count(kind)?);
        loop {
            match self.enable(backend, happened, kind, count) {
                // The number shrinks, so this ends.
                Err(IrqError::Backend(BackendError::FewerVectors { available, .. }))
                    if (1..count).contains(&available) =>
                {
                    count = available;
                }
                outcome => return outcome,
            }
        }
    }
}

/// A kind of interrupt that is enabled, until the last of its vectors is dropped.
#[derive(Debug)]
struct Enabled {
    backend: Arc<dyn Backend>,
    kind: IrqKind,
    claim: Claim,
    happened: Events,
}

impl Drop for Enabled {
    fn drop(&mut self) {
        // Held meanwhile, so that the next user does not find its own vectors disabled.
        let mut claim = self.claim.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = self.backend.irq_disable(self.kind) {
            log::error!("{}: {error}", self.backend.location());
        }
        *claim = None;
    }
}

/// Reads an eventfd without waiting: `O_NONBLOCK` belongs to the file, which whoever signals it
/// has too, and may change.
fn read_count(event: &EventFd) -> nix::Result<u64> {
    let mut count = [0; 8];
    let piece = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
    // SAFETY: the vector has one piece, which is as long as it says.
    let read = unsafe {
        libc::preadv2(event.as_fd().as_raw_fd(), &raw const piece, 1, -1, libc::RWF_NOWAIT)
    };
    match Errno::result(read) {
        Ok(_) => Ok(u64::from_ne_bytes(count)),
        // Before Linux 5.8.
        Err(Errno::EOPNOTSUPP) => event.read(),
        Err(errno) => Err(errno),
    }
}

/// One enabled interrupt vector.
///
/// Its eventfd ([`AsFd`]) can be watched by a caller's own event loop.
#[derive(Debug)]
pub struct Vector {
    event: EventFd,
    index: u32,
    enabled: Arc<Enabled>,
}

impl AsFd for Vector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl Vector {
    /// The kind of interrupt.
    #[must_use]
    pub fn kind(&self) -> IrqKind {
        self.enabled.kind
    }

    /// The vector's number among those of its kind.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// How often the vector fired since the last look; does not wait.
    ///
    /// # Errors
    ///
    /// Fails when the kernel refuses.
    pub fn take_count(&self) -> Result<u64> {
        loop {
            match read_count(&self.event) {
                Ok(count) => return Ok(count),
                Err(Errno::EAGAIN) => return Ok(0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(IrqError::event("reading an eventfd")(errno)),
            }
        }
    }

    /// Waits until the vector fired, and returns how often it did since the last wait.
    ///
    /// # Errors
    ///
    /// [`IrqError::Timeout`] when it did not fire in time. With an event of the function the
    /// wait ends with [`BackendError::ToBeRemoved`] or [`BackendError::BusError`].
    pub fn wait(&self, timeout: Duration) -> Result<u64> {
        let deadline = Deadline::after(timeout);
        loop {
            let count = self.take_count()?;
            if count > 0 {
                return Ok(count);
            }
            self.enabled.happened.check()?;
            let left = deadline.left();
            if left.is_zero() {
                let (kind, vector) = (self.kind(), self.index);
                return Err(IrqError::Timeout { kind, vector, waited: timeout });
            }
            // Round up, so that the last fraction of a millisecond is not polled away.
            let millis = left.as_millis().saturating_add(1).min(60_000) as u16;
            let fds = [self.event.as_fd(), self.enabled.happened.as_fd()];
            let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut fds, PollTimeout::from(millis)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(IrqError::event("polling an eventfd")(errno)),
            }
        }
    }

    /// Has the vector fire as if the device had raised it, through the kernel
    /// (`VFIO_DEVICE_SET_IRQS` in `include/uapi/linux/vfio.h`, "loopback testing"): whether it
    /// arrives tells the kernel's part of the way from the device's.
    ///
    /// # Errors
    ///
    /// Fails where the backend has no such test.
    pub fn trigger(&self) -> Result<()> {
        Ok(self.enabled.backend.irq_trigger(self.kind(), self.index)?)
    }

    /// Lets a level-triggered line fire again; call it after the device's cause was cleared.
    ///
    /// MSI and MSI-X need no unmasking, and this does nothing for them.
    ///
    /// # Errors
    ///
    /// Fails when the backend refuses.
    pub fn unmask(&self) -> Result<()> {
        self.set_masked(false)
    }

    /// Keeps a level-triggered line from firing; nothing for MSI and MSI-X.
    ///
    /// # Errors
    ///
    /// Fails when the backend refuses.
    pub fn mask(&self) -> Result<()> {
        self.set_masked(true)
    }

    fn set_masked(&self, masked: bool) -> Result<()> {
        match self.kind() {
            IrqKind::Intx => Ok(self.enabled.backend.intx_set_masked(masked)?),
            _ => Ok(()),
        }
    }
}

/// Waits until one of these vectors fired, and takes the counts of all.
///
/// # Errors
///
/// [`IrqError::Timeout`] for the first of them when none fired in time. With an event of the
/// function the wait ends as that of [`Vector::wait`].
pub(crate) fn wait_any(vectors: &[&Vector], timeout: Duration) -> Result<()> {
    let deadline = Deadline::after(timeout);
    loop {
        let mut fired = 0;
        for vector in vectors {
            fired += vector.take_count()?;
        }
        let Some(first) = vectors.first() else { return Ok(()) };
        if fired > 0 {
            return Ok(());
        }
        first.enabled.happened.check()?;
        let left = deadline.left();
        if left.is_zero() {
            let (kind, vector) = (first.kind(), first.index());
            return Err(IrqError::Timeout { kind, vector, waited: timeout });
        }
        let millis = left.as_millis().saturating_add(1).min(60_000) as u16;
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(vectors.len() + 1);
        fds.push(PollFd::new(first.enabled.happened.as_fd(), PollFlags::POLLIN));
        for vector in vectors {
            fds.push(PollFd::new(vector.event.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::from(millis)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(IrqError::event("polling eventfds")(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    #[test]
    fn too_many_open_files_have_their_remedy() {
        let error = IrqError::event("creating an eventfd")(Errno::EMFILE);
        assert_eq!(error.remedy(), Some(&Remedy::RaiseOpenFiles));
        assert!(error.to_string().contains("ulimit -n"), "{error}");
        let error = IrqError::event("creating an eventfd")(Errno::ENOMEM);
        assert_eq!(error.remedy(), None);
    }

    #[test]
    fn an_eventfd_whose_flags_another_changes_is_read_without_waiting() {
        let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let theirs = event.as_fd().try_clone_to_owned().unwrap();
        fcntl(&theirs, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let empty = read_count(&event);
            event.write(3).unwrap();
            done.send((empty, read_count(&event))).unwrap();
        });
        let read = is_done.recv_timeout(Duration::from_secs(10)).expect("it does not wait");
        assert_eq!(read, (Err(Errno::EAGAIN), Ok(3)));
    }
}
