//! Descriptors that came from a client, and what can be known of them without asking whoever
//! is behind them.
//!
//! A file may belong to a file system that the client itself serves (FUSE) and that does not
//! answer. Then not only its pages never come: `fstat`, `fstatfs` and even `close` wait for
//! an answer, and no signal ends the wait. So nothing is asked of a file before it is known
//! to be memory, and what is not taken is closed by a thread of its own.

use std::mem;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use super::channel::Closed;
use crate::memory::is_memory;

/// How long a file may take to be closed.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// The descriptors of one message.
#[derive(Debug, Default)]
pub(super) struct Descriptors(Vec<OwnedFd>);

impl Deref for Descriptors {
    type Target = Vec<OwnedFd>;

    fn deref(&self) -> &Vec<OwnedFd> {
        &self.0
    }
}

impl DerefMut for Descriptors {
    fn deref_mut(&mut self) -> &mut Vec<OwnedFd> {
        &mut self.0
    }
}

impl Descriptors {
    /// Closes what is left.
    ///
    /// # Errors
    ///
    /// [`Closed::Stuck`] when that takes longer than [`CLOSE_LIMIT`]. A thread stays behind
    /// then, until the file's owner answers.
    pub(super) fn close(&mut self) -> Result<(), Closed> {
        let (quick, slow): (Vec<_>, Vec<_>) =
            mem::take(&mut self.0).into_iter().partition(|fd| is_memory(fd) || is_eventfd(fd));
        drop(quick);
        if slow.is_empty() {
            return Ok(());
        }
        let (closed, is_closed) = mpsc::channel();
        let closing = std::thread::Builder::new().name("close".into()).spawn(move || {
            drop(slow);
            // Nobody listens any more when it took too long.
            let _ = closed.send(());
        });
        // Without a thread the descriptors were dropped, and so closed, with the closure.
        closing?;
        is_closed.recv_timeout(CLOSE_LIMIT).map_err(|_| Closed::Stuck)
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        if let Err(closed) = self.close() {
            log::warn!("{closed}");
        }
    }
}

/// Whether a descriptor is an eventfd: nothing else can be signalled.
pub(super) fn is_eventfd(fd: &OwnedFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
        .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}
