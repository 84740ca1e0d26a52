//! The socket: who owns its file, and one client after the other.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::poll::PollFlags;
use vfio_dma::backend::IrqKind;

use super::channel::{Channel, Closed, wait};
use super::session;
use super::stop::Stop;
use crate::function::PciFunction;

/// Why a server cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Another server listens on the socket.
    #[error("{}: another server is listening there\n  remedy: stop it, or choose another path", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// There is a file at the socket's path that is not a socket.
    #[error("{}: there is a file that is not a socket\n  remedy: choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The path does not fit into a socket's address.
    #[error(
        "{}: the path is too long for a socket\n  remedy: use a path of at most 107 bytes",
        path.display()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{}: {action}: {source}", path.display())]
    Os {
        /// The socket's path.
        path: PathBuf,
        /// What was being done.
        action: &'static str,
        /// The operating system's reason.
        source: io::Error,
    },
}

/// Why [`Server::serve`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The stop handle was used.
    Stopped,
    /// The function wants the process to end ([`PciFunction::wants_exit`]); it was left as
    /// it is, connected and mapped, for the process's end to take it all away at once.
    Exit,
}

/// A socket that waits for vfio-user clients; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode number of the socket's file: what is removed must still be ours.
    identity: (u64, u64),
}

impl Server {
    /// Listens on a unix socket at `path`.
    ///
    /// The file that a server left behind when it died is replaced.
    ///
    /// # Errors
    ///
    /// Fails when a live server listens there, when the file is not a socket, and when the
    /// directory cannot be written or the path is too long for a socket (107 bytes).
    pub fn bind(path: impl AsRef<Path>) -> Result<Server, ServerError> {
        let path = path.as_ref();
        let os = |action| move |source| ServerError::Os { path: path.to_owned(), action, source };
        if nix::sys::socket::UnixAddr::new(path) == Err(nix::errno::Errno::ENAMETOOLONG) {
            return Err(ServerError::TooLong { path: path.to_owned() });
        }
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        // Two servers that find the same stale file must not each remove the other's new one.
        let directory = File::open(directory).map_err(os("opening the directory"))?;
        let _lock = Flock::lock(directory, FlockArg::LockExclusive)
            .map_err(|(_, errno)| os("locking the directory")(errno.into()))?;
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            result => result,
        };
        let listener = listener.map_err(os("binding the socket"))?;
        listener.set_nonblocking(true).map_err(os("preparing the socket"))?;
        let status = fs::symlink_metadata(path).map_err(os("looking at the socket"))?;
        let identity = (status.dev(), status.ino());
        Ok(Server { listener, path: path.to_owned(), identity })
    }

    /// The socket's path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves `function` to one client after the other until stopped.
    ///
    /// # Errors
    ///
    /// Fails when the socket does; whatever a client does is logged and survived.
    pub fn serve(&self, function: &dyn PciFunction, stop: &Stop) -> Result<Ended, ServerError> {
        loop {
            match wait(self.listener.as_fd(), PollFlags::POLLIN, None, stop, function) {
                Ok(_) => {}
                Err(Closed::Stopped) => return Ok(Ended::Stopped),
                Err(Closed::Exit) => return Ok(Ended::Exit),
                Err(closed) => {
                    return Err(ServerError::Os {
                        path: self.path.clone(),
                        action: "waiting for a client",
                        source: io::Error::other(closed),
                    });
                }
            }
            match self.listener.accept() {
                Ok((socket, _)) => match self.session(socket, function, stop) {
                    Closed::Stopped => return Ok(Ended::Stopped),
                    Closed::Exit => return Ok(Ended::Exit),
                    _ => {}
                },
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    // Out of descriptors or memory: that may end.
                    log::error!("{}: accepting a client: {error}", self.path.display());
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn session(&self, socket: UnixStream, function: &dyn PciFunction, stop: &Stop) -> Closed {
        log::info!("{}: a client connected", self.path.display());
        let closed = match Channel::new(socket, stop, function) {
            Ok(channel) => session::run(channel, function),
            Err(closed) => closed,
        };
        match &closed {
            Closed::Exit => return closed,
            Closed::Left | Closed::Stopped => log::info!("{}: {closed}", self.path.display()),
            reason => log::warn!("{}: connection ended: {reason}", self.path.display()),
        }
        for kind in [IrqKind::Intx, IrqKind::Msi, IrqKind::MsiX] {
            function.irq_disconnect(kind);
        }
        // The reset stops the engine before its memory goes; should it not, its transfers
        // fault instead of touching memory.
        function.reset();
        function.memory().unmap_all();
        closed
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|status| (status.dev(), status.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            log::warn!("{}: removing the socket: {error}", self.path.display());
        }
    }
}

/// Whether there is just no client to accept any more.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
}

/// Removes the socket file of a server that is gone.
fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let os = |action| move |source| ServerError::Os { path: path.to_owned(), action, source };
    let status = fs::symlink_metadata(path).map_err(os("looking at the file there"))?;
    if !status.file_type().is_socket() {
        return Err(ServerError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServerError::InUse { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!("{}: replacing the socket of a dead server", path.display());
            fs::remove_file(path).map_err(os("removing the stale socket"))
        }
        Err(error) => Err(os("asking whether a server listens")(error)),
    }
}
