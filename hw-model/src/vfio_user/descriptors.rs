//! Descriptors that came from a client, and what can be known of them without asking whoever
//! is behind them.
//!
//! A file may belong to a file system that the client itself serves (FUSE) and that does not
//! answer. Then not only its pages never come: `fstat`, `fstatfs` and even `close` wait for
//! an answer, and no signal ends the wait. So nothing is asked of a file before it is known
//! to be memory, and what is not taken is closed by a thread of its own.

use std::io;
use std::mem;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::mpsc;
use std::time::Duration;

use super::channel::Closed;
use super::protocol::MAX_FDS;
use crate::memory::is_memory;
use crate::regs::rate::RateLimit;

/// How long a file may take to be closed.
pub(super) const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// Clients decide how often they send what cannot be closed.
static STUCK: RateLimit = RateLimit::new();

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
            STUCK.warn(format_args!("{closed}"));
        }
    }
}

/// What a read of the socket came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes; 0 at the end.
    pub(super) bytes: usize,
    /// More descriptors came than could be taken.
    pub(super) truncated: bool,
}

/// Reads what is there from a socket, with up to [`MAX_FDS`] descriptors, which are closed
/// on exec from the beginning.
///
/// # Errors
///
/// As `recvmsg(2)`; no descriptor was taken then.
pub(super) fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    descriptors: &mut Descriptors,
) -> io::Result<Received> {
    let mut control = Control([0; CONTROL_LEN]);
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a msghdr of zeroes is one without buffers.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut piece, 1);
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = CONTROL_LEN as _;
    // SAFETY: the message's pointers lead to `buffer` and `control`, with their lengths.
    let result =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let bytes = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: the kernel has filled the message in.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: a header that CMSG_FIRSTHDR or CMSG_NXTHDR gives lies inside of `control`.
    while let Some(header) = unsafe { next.as_ref() } {
        if (header.cmsg_level, header.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: as above.
            let data = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            let len = header.cmsg_len - (data.addr() - next.addr());
            for n in 0..len / size_of::<RawFd>() {
                // SAFETY: n is below the number of descriptors that the header tells.
                let at = unsafe { data.add(n) };
                // SAFETY: as above; the kernel has written it.
                let fd = unsafe { at.read_unaligned() };
                // SAFETY: the kernel just made this descriptor for us; nobody else knows it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
        // SAFETY: `next` is a header of this message.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    Ok(Received { bytes, truncated: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Room for the descriptors of one message, aligned as their header is.
#[repr(C, align(8))]
struct Control([u8; CONTROL_LEN]);

// SAFETY: it only calculates.
const CONTROL_LEN: usize =
    unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<RawFd>()) as u32) } as usize;

/// Whether a descriptor is an eventfd: nothing else can be signalled.
pub(super) fn is_eventfd(fd: &OwnedFd) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
        .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::super::channel::Channel;
    use super::super::stop::Stop;
    use super::*;
    use crate::ioat::{Ioat, IoatConfig};

    /// Run in a process of its own: the limit holds for all threads.
    #[test]
    fn a_process_without_room_for_descriptors_is_told_from_a_client_that_sends_too_many() {
        const CHILD: &str = "VFIO_DMA_MODEL_FEW_DESCRIPTORS";
        if std::env::var_os(CHILD).is_none() {
            let name = "vfio_user::descriptors::tests::a_process_without_room_for_descriptors_is_\
                        told_from_a_client_that_sends_too_many";
            let program = std::env::current_exe().unwrap();
            let mut child = std::process::Command::new(program);
            let status = child.args([name, "--exact", "--nocapture"]).env(CHILD, "1").status();
            return assert!(status.unwrap().success());
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (ioat, stop) = (Ioat::new(IoatConfig::default()).unwrap(), Stop::new().unwrap());
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
        setrlimit(Resource::RLIMIT_NOFILE, open + 4, hard).unwrap();
        theirs.send_with_fds(&[&b"x"[..]], &[writer.as_raw_fd(); MAX_FDS]).unwrap();
        let mut descriptors = Descriptors::default();
        let received = receive(ours.as_fd(), &mut [0; 8], &mut descriptors).unwrap();
        assert_eq!(received, Received { bytes: 1, truncated: true });
        assert!((1..MAX_FDS).contains(&descriptors.len()));
        drop(descriptors);
        let mut channel = Channel::new(ours, &stop, &ioat, None).unwrap();
        let mut closed = |fds| {
            theirs.send_with_fds(&[&b"x"[..]], &vec![writer.as_raw_fd(); fds]).unwrap();
            channel.receive().map(drop).unwrap_err()
        };
        let no_room = closed(MAX_FDS);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let too_many = closed(MAX_FDS + 1);
        assert!(matches!(no_room, Closed::NoDescriptors), "{no_room}");
        assert!(matches!(too_many, Closed::Descriptors), "{too_many}");
        let said = [no_room, too_many].map(|closed| closed.to_string());
        assert!(said[0].contains("open files") && !said[1].contains("open files"), "{said:?}");
        drop((channel, writer));
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0), "none is left behind");
    }

    #[test]
    fn descriptors_are_closed_on_exec_and_none_is_left_behind() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        for sent in [1, MAX_FDS, MAX_FDS + 1, 5 * MAX_FDS] {
            let (reader, writer) = nix::unistd::pipe().unwrap();
            let bytes = [&b"x"[..]];
            theirs.send_with_fds(&bytes, &vec![writer.as_raw_fd(); sent]).unwrap();
            let mut descriptors = Descriptors::default();
            let received = receive(ours.as_fd(), &mut [0; 8], &mut descriptors).unwrap();
            assert_eq!(received, Received { bytes: 1, truncated: sent > MAX_FDS });
            assert_eq!(descriptors.len(), sent.min(MAX_FDS));
            for fd in descriptors.iter() {
                let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap());
                assert!(flags.contains(FdFlag::FD_CLOEXEC));
            }
            drop((descriptors, writer));
            // The pipe ends when its last writer is closed.
            fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
            assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0), "{sent} descriptors");
        }
        drop(theirs);
        let received = receive(ours.as_fd(), &mut [0; 8], &mut Descriptors::default()).unwrap();
        assert_eq!(received, Received { bytes: 0, truncated: false });
    }
}
