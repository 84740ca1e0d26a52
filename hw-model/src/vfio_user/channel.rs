//! One client's connection: whole messages in and out, every wait bounded or stoppable.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zerocopy::{FromZeros, IntoBytes};

use super::descriptors::{CLOSE_LIMIT, Descriptors, receive};
use super::protocol::{Flags, Header, MAX_FDS, MAX_MESSAGE, TYPE_MASK};
use super::stop::Stop;
use crate::function::PciFunction;

/// How long a message may take from its first byte to its last, either way.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a wait looks whether the function wants the process to end.
const EXIT_INTERVAL: Duration = Duration::from_millis(100);

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Closed {
    #[error("the client left")]
    Left,
    #[error("a client that sent nothing for {} s", .0.as_secs_f32())]
    Idle(Duration),
    #[error("the server was stopped")]
    Stopped,
    #[error("the function asked for the process to end")]
    Exit,
    #[error("the client left after {got} of {of} bytes of a message")]
    Truncated { got: usize, of: usize },
    #[error("a message of {size} bytes; they have 16 to {MAX_MESSAGE}")]
    Size { size: u32 },
    #[error("command {command} with flags {flags:#x}, which is not a request")]
    NotARequest { command: u16, flags: u32 },
    #[error("more than {MAX_FDS} descriptors in one message")]
    Descriptors,
    #[error(
        "this process has no room for the descriptors of a message\n  remedy: raise the limit of \
         open files (ulimit -n)"
    )]
    NoDescriptors,
    #[error(
        "a descriptor that is not closed after {} ms: its file's owner does not answer",
        CLOSE_LIMIT.as_millis()
    )]
    Stuck,
    #[error("a message incomplete after {} s", MESSAGE_TIMEOUT.as_secs())]
    Stalled,
    #[error("command {command}: {problem}")]
    Malformed { command: u16, problem: String },
    #[error("socket: {0}")]
    Io(#[from] std::io::Error),
}

/// Whether the server is to end, by whichever side.
fn check_end(stop: &Stop, function: &dyn PciFunction) -> Result<(), Closed> {
    if stop.is_stopped() {
        Err(Closed::Stopped)
    } else if function.wants_exit() {
        Err(Closed::Exit)
    } else {
        Ok(())
    }
}

/// Waits until `fd` is ready, the stop handle fires, or the function wants to exit.
///
/// Returns false when `deadline` passed first.
pub(super) fn wait(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    deadline: Option<Instant>,
    stop: &Stop,
    function: &dyn PciFunction,
) -> Result<bool, Closed> {
    loop {
        check_end(stop, function)?;
        let left = deadline.map_or(EXIT_INTERVAL, |d| d.saturating_duration_since(Instant::now()));
        let timeout = PollTimeout::try_from(left.min(EXIT_INTERVAL)).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(stop.as_fd(), PollFlags::POLLIN), PollFd::new(fd, events)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Closed::Io(errno.into())),
        }
        check_end(stop, function)?;
        // An error or a hang-up counts as ready: the system call that follows tells.
        if fds[1].any().unwrap_or(true) {
            return Ok(true);
        }
        if deadline.is_some_and(|d| d <= Instant::now()) {
            return Ok(false);
        }
    }
}

/// The connection, and the buffers that its messages reuse.
pub(super) struct Channel<'s> {
    socket: UnixStream,
    stop: &'s Stop,
    function: &'s dyn PciFunction,
    /// How long the client may be silent between two messages.
    idle: Option<Duration>,
    payload: Vec<u8>,
    descriptors: Descriptors,
    reply: Vec<u8>,
}

impl<'s> Channel<'s> {
    pub(super) fn new(
        socket: UnixStream,
        stop: &'s Stop,
        function: &'s dyn PciFunction,
        idle: Option<Duration>,
    ) -> Result<Self, Closed> {
        socket.set_nonblocking(true)?;
        Ok(Channel {
            socket,
            stop,
            function,
            idle,
            payload: Vec::new(),
            descriptors: Descriptors::default(),
            reply: Vec::new(),
        })
    }

    /// Waits for the next request; its payload and descriptors are lent until the next call.
    pub(super) fn receive(&mut self) -> Result<(Header, &[u8], &mut Descriptors), Closed> {
        // A client that never pauses must not keep the server from ending.
        check_end(self.stop, self.function)?;
        self.descriptors.close()?;
        let mut header = Header::new_zeroed();
        let deadline = self.fill(header.as_mut_bytes(), 0, size_of::<Header>(), None)?;
        let size = header.size as usize;
        if !(size_of::<Header>()..=MAX_MESSAGE).contains(&size) {
            return Err(Closed::Size { size: header.size });
        }
        if header.flags & TYPE_MASK != 0 {
            return Err(Closed::NotARequest { command: header.command, flags: header.flags });
        }
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(size - size_of::<Header>(), 0);
        let filled = self.fill(&mut payload, size_of::<Header>(), size, deadline);
        self.payload = payload;
        filled?;
        Ok((header, &self.payload, &mut self.descriptors))
    }

    /// Reads until `buffer` is full; `before` bytes of the message's `of` were read already.
    ///
    /// The deadline starts with the first byte of a message and is handed on.
    fn fill(
        &mut self,
        buffer: &mut [u8],
        before: usize,
        of: usize,
        mut deadline: Option<Instant>,
    ) -> Result<Option<Instant>, Closed> {
        let mut got = 0;
        // Until the first byte comes.
        let idle = self.idle.and_then(|idle| Instant::now().checked_add(idle));
        while got < buffer.len() {
            match self.receive_some(&mut buffer[got..])? {
                Some(0) if before + got == 0 => return Err(Closed::Left),
                Some(0) => {
                    return Err(Closed::Truncated { got: before + got, of });
                }
                Some(count) => {
                    got += count;
                    deadline = deadline.or_else(|| Some(Instant::now() + MESSAGE_TIMEOUT));
                }
                None => {
                    let ready = wait(
                        self.socket.as_fd(),
                        PollFlags::POLLIN,
                        deadline.or(idle),
                        self.stop,
                        self.function,
                    )?;
                    if !ready {
                        return Err(match (deadline, self.idle) {
                            (None, Some(idle)) => Closed::Idle(idle),
                            _ => Closed::Stalled,
                        });
                    }
                }
            }
        }
        Ok(deadline)
    }

    /// Reads what is there, descriptors included; `None` when nothing is.
    fn receive_some(&mut self, buffer: &mut [u8]) -> Result<Option<usize>, Closed> {
        let before = self.descriptors.len();
        let received = match receive(self.socket.as_fd(), buffer, &mut self.descriptors) {
            Ok(received) => received,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted => return Ok(None),
                ErrorKind::ConnectionReset => return Ok(Some(0)),
                _ => return Err(Closed::Io(error)),
            },
        };
        let came = self.descriptors.len() - before;
        if received.truncated && came < MAX_FDS {
            return Err(Closed::NoDescriptors);
        }
        if received.truncated || self.descriptors.len() > MAX_FDS {
            return Err(Closed::Descriptors);
        }
        Ok(Some(received.bytes))
    }

    /// Answers a request: with `payload`, or with an error, which has none.
    pub(super) fn reply(
        &mut self,
        request: &Header,
        outcome: Result<&[u8], Errno>,
    ) -> Result<(), Closed> {
        let (flags, error, payload) = match outcome {
            Ok(payload) => (Flags::REPLY, 0, payload),
            Err(errno) => (Flags::REPLY | Flags::ERROR, errno as i32 as u32, &[][..]),
        };
        let header = Header {
            id: request.id,
            command: request.command,
            size: (size_of::<Header>() + payload.len()) as u32,
            flags: flags.bits(),
            error,
        };
        self.reply.clear();
        self.reply.extend_from_slice(header.as_bytes());
        self.reply.extend_from_slice(payload);
        let deadline = Instant::now() + MESSAGE_TIMEOUT;
        let mut sent = 0;
        while sent < self.reply.len() {
            match (&self.socket).write(&self.reply[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let ready = wait(
                        self.socket.as_fd(),
                        PollFlags::POLLOUT,
                        Some(deadline),
                        self.stop,
                        self.function,
                    )?;
                    if !ready {
                        return Err(Closed::Stalled);
                    }
                }
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
                    ) =>
                {
                    return Err(Closed::Left);
                }
                Err(error) => return Err(Closed::Io(error)),
            }
        }
        Ok(())
    }
}

impl Drop for Channel<'_> {
    /// Reads what is left, so that the client sees an orderly end after the last reply
    /// instead of a reset connection.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
        let mut rest = [0; 4096];
        for _ in 0..64 {
            if !matches!((&self.socket).read(&mut rest), Ok(1..)) {
                break;
            }
        }
    }
}
