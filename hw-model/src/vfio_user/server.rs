//! The socket: who owns its file, and one client after the other.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::PollFlags;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, socket};
use vfio_dma::backend::IrqKind;

use super::channel::{Channel, Closed, wait};
use super::session;
use super::stop::Stop;
use crate::function::PciFunction;
use crate::regs::rate::RateLimit;

/// How long another may have the socket's directory locked.
const LOCK_LIMIT: Duration = Duration::from_secs(5);

/// Clients decide how often they come and go, and how.
static CLIENTS: RateLimit = RateLimit::new();
static BROKEN: RateLimit = RateLimit::new();

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
    /// There is a file at the socket's path that no server of this kind left behind.
    #[error("{}: there is {found}\n  remedy: choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The path has the form that other programs give names without a file.
    #[error(
        "{}: names without a file, which begin with @, are not served\n  remedy: choose a path; \
         ./{} for a file of this name", path.display(), path.display()
    )]
    NoFile {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else has the socket's directory locked.
    #[error(
        "{}: another process has the directory locked for {} s\n  remedy: end it, or choose \
         another directory", path.display(), LOCK_LIMIT.as_secs()
    )]
    Locked {
        /// The directory.
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
    /// How long a client may be silent.
    idle: Option<Duration>,
}

impl Server {
    /// Listens on a unix socket at `path`.
    ///
    /// The file that a server left behind when it died is replaced.
    ///
    /// # Errors
    ///
    /// Fails when a live server listens there, when the file is not a socket of this kind, and
    /// when the directory cannot be written, is locked for 5 s, or the path is too long for a
    /// socket (107 bytes).
    pub fn bind(path: impl AsRef<Path>) -> Result<Server, ServerError> {
        let path = path.as_ref();
        if path.as_os_str().as_encoded_bytes().starts_with(b"@") {
            return Err(ServerError::NoFile { path: path.to_owned() });
        }
        let os = |action| move |source| ServerError::Os { path: path.to_owned(), action, source };
        if nix::sys::socket::UnixAddr::new(path) == Err(nix::errno::Errno::ENAMETOOLONG) {
            return Err(ServerError::TooLong { path: path.to_owned() });
        }
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        // Two servers that find the same stale file must not each remove the other's new one.
        let _lock = lock(directory, path)?;
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
        Ok(Server { listener, path: path.to_owned(), identity, idle: None })
    }

    /// Gives a client up that sends nothing for so long; without this, a client that is silent
    /// holds the server until it leaves.
    #[must_use]
    pub fn idle_timeout(mut self, limit: Duration) -> Server {
        self.idle = Some(limit);
        self
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
                    let message =
                        format_args!("{}: accepting a client: {error}", self.path.display());
                    CLIENTS.log(log::Level::Error, message);
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn session(&self, socket: UnixStream, function: &dyn PciFunction, stop: &Stop) -> Closed {
        let path = self.path.display();
        log::debug!("{path}: a client connected");
        let closed = match Channel::new(socket, stop, function, self.idle) {
            Ok(channel) => session::run(channel, function),
            Err(closed) => closed,
        };
        match &closed {
            Closed::Exit => return closed,
            Closed::Left | Closed::Stopped => {
                CLIENTS.log(log::Level::Info, format_args!("{path}: {closed}"));
            }
            reason => BROKEN.warn(format_args!("{path}: connection ended: {reason}")),
        }
        disconnect(function);
        closed
    }
}

/// Takes from a function what a client gave it: when this returns, the function touches none of
/// the client's memory and signals none of its eventfds any more.
pub(crate) fn disconnect(function: &(impl PciFunction + ?Sized)) {
    for kind in [IrqKind::Intx, IrqKind::Msi, IrqKind::MsiX] {
        function.irq_disconnect(kind);
    }
    // The reset stops the engine before its memory goes; should it not, its transfers
    // fault instead of touching memory.
    function.reset();
    function.memory().unmap_all();
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

/// Locks the socket's directory, for which nobody waits for ever.
fn lock(directory: &Path, path: &Path) -> Result<Flock<File>, ServerError> {
    let os = |action| move |source| ServerError::Os { path: path.to_owned(), action, source };
    let mut file = File::open(directory).map_err(os("opening the directory"))?;
    let begin = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, errno)) => return Err(os("locking the directory")(errno.into())),
        };
        if begin.elapsed() >= LOCK_LIMIT {
            return Err(ServerError::Locked { path: directory.to_owned() });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Connects without waiting: a live server whose queue is full would not answer.
fn connect(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

/// Removes the socket file of a server that is gone.
fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let os = |action| move |source| ServerError::Os { path: path.to_owned(), action, source };
    let status = fs::symlink_metadata(path).map_err(os("looking at the file there"))?;
    let not_a_socket = |found| ServerError::NotASocket { path: path.to_owned(), found };
    if status.file_type().is_symlink() {
        return Err(not_a_socket("a symbolic link"));
    }
    if !status.file_type().is_socket() {
        return Err(not_a_socket("a file that is not a socket"));
    }
    match connect(path) {
        Ok(()) | Err(Errno::EAGAIN) => Err(ServerError::InUse { path: path.to_owned() }),
        Err(Errno::EPROTOTYPE) => Err(not_a_socket("a socket of another kind, in use")),
        Err(Errno::ECONNREFUSED) => {
            log::info!("{}: replacing the socket of a dead server", path.display());
            fs::remove_file(path).map_err(os("removing the stale socket"))
        }
        Err(errno) => Err(os("asking whether a server listens")(errno.into())),
    }
}
