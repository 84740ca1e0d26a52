//! Reading a socket that descriptors come through.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::connection::MAX_FDS;

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
    descriptors: &mut Vec<OwnedFd>,
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use vmm_sys_util::sock_ctrl_msg::ScmSocket;

    use super::*;

    /// Run in a process of its own: the limit holds for all threads.
    #[test]
    fn without_room_for_descriptors_none_is_left_behind() {
        const CHILD: &str = "VFIO_DMA_FEW_DESCRIPTORS";
        if std::env::var_os(CHILD).is_none() {
            let name = "backend::vfio_user::receive::tests::\
                        without_room_for_descriptors_none_is_left_behind";
            let program = std::env::current_exe().unwrap();
            let status = std::process::Command::new(program)
                .args([name, "--exact", "--nocapture"])
                .env(CHILD, "1")
                .status();
            return assert!(status.unwrap().success());
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        theirs.send_with_fds(&[&b"x"[..]], &[writer.as_raw_fd(); 200]).unwrap();
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 32, hard).unwrap();
        let mut fds = Vec::new();
        let received = receive(ours.as_fd(), &mut [0; 8], &mut fds).unwrap();
        assert_eq!(received, Received { bytes: 1, truncated: true });
        assert!((1..32).contains(&fds.len()));
        for fd in &fds {
            let flags = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap());
            assert!(flags.contains(FdFlag::FD_CLOEXEC));
        }
        drop((fds, writer));
        // The pipe ends when its last writer is closed.
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        assert_eq!(nix::unistd::read(&reader, &mut [0]), Ok(0));
    }
}
