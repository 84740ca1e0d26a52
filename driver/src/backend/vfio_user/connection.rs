//! One connection: requests out, replies in, every wait bounded.
//!
//! Whatever the server does, a call ends: with its reply, with the server's errno, or,
//! when the server is silent, gone, or sends what is not the protocol, with
//! [`BackendError::Gone`]. A connection that failed so is closed, because what comes next
//! on it cannot be told from what was awaited; every later call fails with the same reason.

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, connect,
    sendmsg, shutdown, socket,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::descriptors::{close, is_memory};
use super::message::{
    Command, ERROR, Header, MAX_MESSAGE, NO_REPLY, TYPE_COMMAND, TYPE_MASK, TYPE_REPLY,
};
use super::receive::receive;
use crate::backend::{BackendError, Result};
use crate::pci::Remedy;

/// The most descriptors that the kernel passes in one message (`SCM_MAX_FD` in `net/scm.h`).
pub(super) const MAX_FDS: usize = 253;

/// How many warnings a server can cause.
const MOST_WARNINGS: u32 = 16;

/// After so many writes that ask for no reply, one asks for it: a server that is silent is
/// noticed, and one that replies to them all the same cannot fill the socket.
const POSTED_LIMIT: u16 = 64;

/// A request.
pub(super) struct Request<'a> {
    /// What it asks for.
    pub(super) command: Command,
    /// Its payload, in pieces that follow each other.
    pub(super) payload: [&'a [u8]; 2],
    /// Descriptors that come along.
    pub(super) fds: &'a [BorrowedFd<'a>],
}

/// A reply to a request, lent to whoever reads it.
pub(super) struct Reply<'a> {
    /// What follows the header.
    pub(super) payload: &'a [u8],
    /// The descriptors that came along; those that are not taken are closed.
    pub(super) fds: &'a mut Vec<OwnedFd>,
}

impl<'a> Reply<'a> {
    /// The structure at the start of the payload, and what follows it.
    pub(super) fn parse<T>(&self) -> std::result::Result<(T, &'a [u8]), String>
    where
        T: FromBytes + KnownLayout + Immutable,
    {
        T::read_from_prefix(self.payload).map_err(|_| {
            format!("{} bytes of payload, at least {} needed", self.payload.len(), size_of::<T>())
        })
    }
}

/// Why a connection is of no use any more.
struct Broken(String);

impl Broken {
    fn io(action: &str, errno: Errno) -> Broken {
        match errno {
            Errno::EPIPE | Errno::ECONNRESET => Broken::closed(),
            errno => Broken(format!("{action} the socket: {errno}")),
        }
    }

    fn closed() -> Broken {
        Broken("the server closed the connection".into())
    }
}

/// A connection to a server; its calls follow one another.
pub(super) struct Connection {
    location: String,
    timeout: Duration,
    stream: Mutex<Stream>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("location", &self.location).finish_non_exhaustive()
    }
}

impl Connection {
    /// Connects to the socket at `path`; `timeout` bounds this and each later call.
    pub(super) fn open(path: &Path, timeout: Duration) -> Result<Connection> {
        let location = path.display().to_string();
        let os = |action: &str, errno: Errno| BackendError::Os {
            action: format!("{location}: {action}"),
            source: errno.into(),
            remedy: None,
        };
        let address = UnixAddr::new(path).map_err(|errno| match errno {
            Errno::ENAMETOOLONG => BackendError::Precondition {
                problem: format!("{location}: the path is too long for a socket"),
                remedy: "use a path of at most 107 bytes".into(),
            },
            errno => os("making a socket's address of the path", errno),
        })?;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(|errno| os("making a socket", errno))?;
        let deadline = Instant::now() + timeout;
        loop {
            match connect(socket.as_raw_fd(), &address) {
                Ok(()) => break,
                // The queue of clients that wait for the server is full.
                Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(errno) => return Err(connect_error(path, location, errno)),
            }
        }
        let stream = Stream {
            socket,
            next_id: 0,
            posted: 0,
            warned: 0,
            broken: None,
            out: Vec::new(),
            payload: Vec::new(),
            fds: Vec::new(),
        };
        Ok(Connection { location, timeout, stream: Mutex::new(stream) })
    }

    /// The socket's path.
    pub(super) fn location(&self) -> &str {
        &self.location
    }

    /// Sends a request and lets `read` read the reply; `action` says what is being done.
    ///
    /// A reply that `read` makes no sense of breaks the connection, with the reason that it
    /// returns.
    pub(super) fn call<T>(
        &self,
        request: &Request<'_>,
        action: impl FnOnce() -> String,
        read: impl FnOnce(Reply<'_>) -> std::result::Result<T, String>,
    ) -> Result<T> {
        self.with_stream(request.command, |stream, deadline| {
            let errno = match stream.exchange(request, deadline)? {
                0 => {
                    let reply = Reply { payload: &stream.payload, fds: &mut stream.fds };
                    let read = read(reply).map_err(Broken)?;
                    return Ok(Ok(read));
                }
                errno => errno,
            };
            Ok(Err(BackendError::Os {
                action: format!("{}: {}", self.location, action()),
                source: io::Error::from_raw_os_error(errno),
                remedy: None,
            }))
        })?
    }

    /// Sends a request that wants no reply; now and then one is asked for nevertheless.
    ///
    /// It is carried out before whatever is sent later. Whether the server refused it is
    /// only logged.
    pub(super) fn post(
        &self,
        request: &Request<'_>,
        action: impl FnOnce() -> String,
    ) -> Result<()> {
        let posted = self.with_stream(request.command, |stream, deadline| {
            if stream.posted >= POSTED_LIMIT {
                return Ok(false);
            }
            stream.posted += 1;
            stream.send_command(request, NO_REPLY, deadline)?;
            Ok(true)
        })?;
        if posted { Ok(()) } else { self.call(request, action, |_| Ok(())) }
    }

    /// Runs an exchange unless the connection is broken, and closes it when it breaks.
    fn with_stream<T>(
        &self,
        command: Command,
        exchange: impl FnOnce(&mut Stream, Deadline) -> std::result::Result<T, Broken>,
    ) -> Result<T> {
        // A panic under the lock may leave half a message behind; nothing there panics.
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = |reason: &str| BackendError::Gone {
            location: self.location.clone(),
            reason: reason.into(),
        };
        if let Some(reason) = &stream.broken {
            return Err(gone(reason));
        }
        let deadline = Deadline { at: Instant::now() + self.timeout, timeout: self.timeout };
        exchange(&mut stream, deadline).map_err(|Broken(reason)| {
            let mut reason = format!("{command:?}: {reason}");
            if command == Command::Version && Instant::now() >= deadline.at {
                reason
                    .push_str("; most serve one client at a time: end the other, if there is one");
            }
            let error = gone(&reason);
            stream.broken = Some(reason);
            close(std::mem::take(&mut stream.fds), Duration::ZERO);
            if let Err(errno) = shutdown(stream.socket.as_raw_fd(), Shutdown::Both) {
                log::debug!("{}: shutting the socket down: {errno}", self.location);
            }
            error
        })
    }
}

fn connect_error(path: &Path, location: String, errno: Errno) -> BackendError {
    use std::os::unix::fs::FileTypeExt as _;
    // The kernel refuses a file that is not a socket as it refuses one without a server.
    let kind = std::fs::metadata(path).ok().map(|meta| meta.file_type());
    if let Some(kind) = kind.filter(|kind| !kind.is_socket()) {
        let is = if kind.is_dir() { "a directory" } else { "a file" };
        return BackendError::Precondition {
            problem: format!("{location}: there is {is}, not a socket"),
            remedy: "give the path of the socket that a vfio-user server listens on".into(),
        };
    }
    let (problem, remedy) = match errno {
        Errno::ENOENT => {
            ("there is no such socket", start_server(&location, "start a server there"))
        }
        Errno::ECONNREFUSED => (
            "no server listens on this socket",
            start_server(&location, "start a server there; the last one has ended"),
        ),
        Errno::EAGAIN => ("the server does not accept clients", "end those that it serves".into()),
        Errno::EACCES => {
            ("this user may not use the socket", "give the user write access to it".into())
        }
        errno => {
            return BackendError::Os {
                action: format!("{location}: connecting"),
                source: errno.into(),
                remedy: None,
            };
        }
    };
    BackendError::Precondition { problem: format!("{location}: {problem}"), remedy }
}

fn start_server(location: &str, first: &'static str) -> Remedy {
    Remedy::StartServer { socket: location.into(), first }
}

/// When a call is over at the latest, and how long that was from its start.
#[derive(Clone, Copy)]
struct Deadline {
    at: Instant,
    timeout: Duration,
}

/// The socket, and the buffers that the messages reuse.
struct Stream {
    socket: OwnedFd,
    /// The next message's id.
    next_id: u16,
    /// Requests without reply since the last one with.
    posted: u16,
    /// Warnings so far of what the server does.
    warned: u32,
    /// Why the connection is of no use any more.
    broken: Option<String>,
    /// The message being sent.
    out: Vec<u8>,
    /// Payload of the message received last.
    payload: Vec<u8>,
    /// Its descriptors.
    fds: Vec<OwnedFd>,
}

impl Stream {
    /// Sends a command and waits for its reply; returns 0, or the errno of an error reply.
    fn exchange(
        &mut self,
        request: &Request<'_>,
        deadline: Deadline,
    ) -> std::result::Result<i32, Broken> {
        let id = self.send_command(request, 0, deadline)?;
        loop {
            let header = self.receive(deadline)?;
            if header.flags & TYPE_MASK == TYPE_COMMAND {
                self.refuse(&header, deadline)?;
                continue;
            }
            if (header.id, header.command) == (id, request.command as u16) {
                self.posted = 0;
                let failed = header.flags & ERROR != 0;
                // An error without errno, or with one that the kernel does not have, is one.
                let errno = i32::try_from(header.error).ok().filter(|errno| *errno != 0);
                return Ok(if failed { errno.unwrap_or(libc::EIO) } else { 0 });
            }
            let age = id.wrapping_sub(header.id);
            if header.command == Command::RegionWrite as u16 && (1..=self.posted).contains(&age) {
                // A server may reply to what wants no reply.
                if header.flags & ERROR != 0 {
                    let level = self.level();
                    log::log!(level, "a posted write was refused with errno {}", header.error);
                }
                continue;
            }
            return Err(Broken(format!(
                "a reply to message {} with command {}, awaited was message {id}",
                header.id, header.command
            )));
        }
    }

    fn send_command(
        &mut self,
        request: &Request<'_>,
        flags: u32,
        deadline: Deadline,
    ) -> std::result::Result<u16, Broken> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let payload: usize = request.payload.iter().map(|piece| piece.len()).sum();
        let header = Header {
            id,
            command: request.command as u16,
            size: (size_of::<Header>() + payload) as u32,
            flags: TYPE_COMMAND | flags,
            error: 0,
        };
        self.out.clear();
        self.out.extend_from_slice(header.as_bytes());
        for piece in request.payload {
            self.out.extend_from_slice(piece);
        }
        self.send(request.fds, deadline)?;
        Ok(id)
    }

    /// How loud a line is that the server causes, which decides how often: the first are
    /// warnings.
    fn level(&mut self) -> log::Level {
        self.warned += 1;
        if self.warned <= MOST_WARNINGS { log::Level::Warn } else { log::Level::Debug }
    }

    /// Answers a request of the server: nothing that it could ask for is offered.
    fn refuse(&mut self, header: &Header, deadline: Deadline) -> std::result::Result<(), Broken> {
        log::log!(self.level(), "the server sent command {}, which is refused", header.command);
        if header.flags & NO_REPLY != 0 {
            return Ok(());
        }
        let reply = Header {
            size: size_of::<Header>() as u32,
            flags: TYPE_REPLY | ERROR,
            error: libc::EOPNOTSUPP as u32,
            ..*header
        };
        self.out.clear();
        self.out.extend_from_slice(reply.as_bytes());
        self.send(&[], deadline)
    }

    /// Sends `self.out`, the descriptors with its first byte.
    fn send(&self, fds: &[BorrowedFd<'_>], deadline: Deadline) -> std::result::Result<(), Broken> {
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let mut sent = 0;
        while sent < self.out.len() {
            let control = if sent == 0 && !fds.is_empty() { &rights[..] } else { &[] };
            let bytes = [IoSlice::new(&self.out[sent..])];
            let socket = self.socket.as_raw_fd();
            match sendmsg::<()>(socket, &bytes, control, MsgFlags::MSG_NOSIGNAL, None) {
                Ok(count) => sent += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, deadline)?,
                Err(errno) => return Err(Broken::io("writing", errno)),
            }
        }
        Ok(())
    }

    /// Waits for the next message, whose payload and descriptors are then in `self`.
    fn receive(&mut self, deadline: Deadline) -> std::result::Result<Header, Broken> {
        // All of them are memory.
        self.fds.clear();
        let mut header = Header::new_zeroed();
        self.wait(PollFlags::POLLIN, deadline)?;
        self.fill(header.as_mut_bytes(), deadline)?;
        let size = header.size as usize;
        if !(size_of::<Header>()..=MAX_MESSAGE).contains(&size) {
            return Err(Broken(format!(
                "a message of {size} bytes; they have 16 to {MAX_MESSAGE}"
            )));
        }
        if !matches!(header.flags & TYPE_MASK, TYPE_COMMAND | TYPE_REPLY) {
            return Err(Broken(format!("a message with flags {:#x}", header.flags)));
        }
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(size - size_of::<Header>(), 0);
        let filled = self.fill(&mut payload, deadline);
        self.payload = payload;
        filled?;
        self.keep_memory(deadline)?;
        Ok(header)
    }

    /// Closes what came with a message and is no memory, for nothing else is of use.
    fn keep_memory(&mut self, deadline: Deadline) -> std::result::Result<(), Broken> {
        let others: Vec<_> = self.fds.extract_if(.., |fd| !is_memory(&*fd)).collect();
        if others.is_empty() {
            return Ok(());
        }
        let level = self.level();
        log::log!(level, "{} files of the server are no memory, and not mapped", others.len());
        if close(others, deadline.at.saturating_duration_since(Instant::now())) {
            return Ok(());
        }
        let waited = deadline.timeout.as_millis();
        Err(Broken(format!("a file that the server sent is not closed within {waited} ms")))
    }

    /// Reads until `buffer` is full.
    fn fill(&mut self, buffer: &mut [u8], deadline: Deadline) -> std::result::Result<(), Broken> {
        let mut got = 0;
        while got < buffer.len() {
            let received = receive(self.socket.as_fd(), &mut buffer[got..], &mut self.fds);
            let received = match received {
                Ok(received) => received,
                Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                    Errno::EINTR => continue,
                    Errno::EAGAIN => {
                        self.wait(PollFlags::POLLIN, deadline)?;
                        continue;
                    }
                    errno => return Err(Broken::io("reading", errno)),
                },
            };
            if received.truncated {
                return Err(Broken(
                    "no room for the descriptors of a message: raise the limit of open files \
                     (ulimit -n)"
                        .into(),
                ));
            }
            if received.bytes == 0 {
                return Err(Broken::closed());
            }
            got += received.bytes;
            if self.fds.len() > MAX_FDS {
                return Err(Broken(format!("more than {MAX_FDS} descriptors in one message")));
            }
        }
        Ok(())
    }

    /// Waits until the socket is ready. A socket that always is does not outlast the deadline.
    fn wait(&self, events: PollFlags, deadline: Deadline) -> std::result::Result<(), Broken> {
        loop {
            let left = deadline.at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let waited = deadline.timeout.as_millis();
                return Err(Broken(format!("no answer from the server within {waited} ms")));
            }
            // Rounded up, so that the last fraction of a millisecond is not spent polling.
            let millis = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.socket.as_fd(), events)], timeout) {
                // An error or a hang-up counts as ready: the system call that follows tells.
                Ok(1..) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Broken::io("polling", errno)),
            }
        }
    }
}
