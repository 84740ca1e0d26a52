//! Descriptors that came from a server, and what can be known of them without asking whoever is
//! behind them.
//!
//! A file may belong to a file system that the server itself serves (FUSE) and that does not
//! answer: then its pages never come, and `fstat`, `fstatfs` and `close` wait for ever. So nothing
//! is asked of a file before it is known to be memory, and any other is closed by a thread of its
//! own.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};

/// Whether a file is memory: a memfd, or a file in tmpfs or hugetlbfs.
///
/// Only these have seals (`fcntl(2)`), which the kernel looks up without asking the file system.
pub(super) fn is_memory(fd: impl AsFd) -> bool {
    fcntl(fd.as_fd(), FcntlArg::F_GET_SEALS).is_ok()
}

/// Closes descriptors, and says whether that was done within a time; a thread stays behind
/// otherwise, until whoever is behind them answers.
pub(super) fn close(fds: Vec<OwnedFd>, within: Duration) -> bool {
    if fds.is_empty() {
        return true;
    }
    let (closed, is_closed) = mpsc::channel();
    let closing = std::thread::Builder::new().name("close".into()).spawn(move || {
        drop(fds);
        // Nobody listens any more when it took too long.
        let _ = closed.send(());
    });
    // Without a thread they were dropped, and so closed, with the closure.
    closing.is_err() || is_closed.recv_timeout(within).is_ok()
}
