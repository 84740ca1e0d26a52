//! Signalling an eventfd that somebody else has too.
//!
//! An eventfd comes from a client, and with it the open file: the client can change its
//! flags, fill its counter and read it at any moment. A `write` to it, whatever was looked at
//! before, may block for as long as the client likes. So this never writes: it has the kernel
//! signal the eventfd as the completion of an asynchronous read of nothing
//! (`IOCB_FLAG_RESFD`, `include/uapi/linux/aio_abi.h`). The kernel adds 1 to the counter then,
//! up to its largest value, and waits for nobody.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};

/// An eventfd that a vector signals.
#[derive(Clone)]
pub struct Event(Arc<Inner>);

struct Inner {
    fd: OwnedFd,
    requests: Arc<Requests>,
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Event").field(&self.0.fd).finish()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Event {
    /// An event that signals this eventfd.
    ///
    /// # Errors
    ///
    /// Fails when the kernel offers no asynchronous I/O, or no more of it
    /// (`/proc/sys/fs/aio-max-nr`), and when no memfd can be had.
    pub fn new(fd: OwnedFd) -> io::Result<Event> {
        Ok(Event(Arc::new(Inner { fd, requests: Requests::shared()? })))
    }

    /// Adds 1 to the eventfd's counter; never waits.
    ///
    /// # Errors
    ///
    /// Fails when this is no eventfd, and when the kernel is out of memory.
    pub fn signal(&self) -> io::Result<()> {
        self.0.requests.signal(self.0.fd.as_fd())
    }
}

/// How many requests may be done and not collected; the kernel takes at least as many.
const REQUESTS: usize = 64;

/// `struct iocb` of `include/uapi/linux/aio_abi.h`, as a little-endian processor has it.
#[repr(C)]
#[derive(Debug, Default)]
struct Request {
    data: u64,
    /// `aio_key` and `aio_rw_flags`, in the processor's order; both are 0.
    key_and_flags: [u32; 2],
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    len: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event: u32,
}

/// `IOCB_CMD_PREAD`.
const READ: u16 = 0;
/// `IOCB_FLAG_RESFD`.
const SIGNALS_EVENT: u32 = 1 << 0;

/// `struct io_event` of the same file.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Done([u64; 4]);

/// A context of the kernel's asynchronous I/O, which all events of the process share.
struct Requests {
    context: libc::c_ulong,
    /// What is read: nothing, of an empty file.
    file: OwnedFd,
    /// Requests that are done and not collected.
    done: Mutex<usize>,
}

/// The context, as long as an event lives.
static SHARED: Mutex<std::sync::Weak<Requests>> = Mutex::new(std::sync::Weak::new());

impl Requests {
    fn shared() -> io::Result<Arc<Requests>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(requests) = shared.upgrade() {
            return Ok(requests);
        }
        let requests = Arc::new(Requests::new()?);
        *shared = Arc::downgrade(&requests);
        Ok(requests)
    }

    fn new() -> io::Result<Requests> {
        let file = memfd_create("vfio-dma-events", MFdFlags::MFD_CLOEXEC)?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes the context's number to the pointer, nothing else.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, REQUESTS, &raw mut context) };
        match result {
            0 => Ok(Requests { context, file, done: Mutex::new(0) }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn signal(&self, event: BorrowedFd<'_>) -> io::Result<()> {
        let request = Request {
            opcode: READ,
            fd: self.file.as_raw_fd() as u32,
            flags: SIGNALS_EVENT,
            event: event.as_raw_fd() as u32,
            ..Request::default()
        };
        let list = [&raw const request];
        // Held until the request is done, which is before the call returns: an empty file
        // answers at once.
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        if *done == REQUESTS {
            self.collect();
            *done = 0;
        }
        // SAFETY: the list has one request, which the kernel copies; no bytes are read.
        let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1, list.as_ptr()) };
        if taken != 1 {
            return Err(io::Error::last_os_error());
        }
        *done += 1;
        Ok(())
    }

    /// Makes room for requests. Does not wait.
    fn collect(&self) {
        let mut events = [Done::default(); REQUESTS];
        let no_time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes at most as many events as the array has.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0,
                REQUESTS,
                events.as_mut_ptr(),
                &raw const no_time,
            )
        };
        if result < 0 {
            log::error!("collecting asynchronous requests: {}", io::Error::last_os_error());
        }
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        // SAFETY: the context is this value's own, and nobody has it any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::Duration;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    #[test]
    fn structures_are_the_kernels() {
        assert_eq!((size_of::<Request>(), size_of::<Done>()), (64, 32));
        assert_eq!(std::mem::offset_of!(Request, fd), 20);
        assert_eq!(std::mem::offset_of!(Request, event), 60);
    }

    #[test]
    fn each_signal_counts_one() {
        let ours = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let event = Event::new(ours.as_fd().try_clone_to_owned().unwrap()).unwrap();
        for _ in 0..1000 {
            event.signal().unwrap();
        }
        assert_eq!(ours.read(), Ok(1000));
        let file = memfd_create("no-event", MFdFlags::empty()).unwrap();
        assert!(Event::new(file).unwrap().signal().is_err());
    }

    #[test]
    fn a_client_that_fills_and_blocks_its_eventfd_holds_nobody_up() {
        let theirs = Arc::new(EventFd::from_flags(EfdFlags::empty()).unwrap());
        let event = Event::new(theirs.as_fd().try_clone_to_owned().unwrap()).unwrap();
        let (stop, signalled) = (AtomicBool::new(false), Arc::new(AtomicU64::new(0)));
        let (finished, waits) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut spins = 0;
                while !stop.load(Ordering::Relaxed) {
                    spins = (spins + 79) % 1009;
                    (0..spins).for_each(|_| std::hint::spin_loop());
                    // Waits until it is empty, so that it is when it is looked at, and is full
                    // when it is written.
                    let _ = theirs.write(u64::MAX - 1);
                    // Who waits for room now waits for ever; who sets it not to block does too.
                    let before = signalled.load(Ordering::Relaxed);
                    while signalled.load(Ordering::Relaxed) == before
                        && !stop.load(Ordering::Relaxed)
                    {
                        fcntl(&*theirs, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
                    }
                }
            });
            let (emptied, count) = (Arc::clone(&theirs), Arc::clone(&signalled));
            // Not scoped: a thread that hangs must not keep the test from failing.
            std::thread::spawn(move || {
                for _ in 0..100_000 {
                    event.signal().unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                    emptied.read().unwrap();
                }
                finished.send(()).unwrap();
            });
            let done = waits.recv_timeout(Duration::from_secs(20));
            stop.store(true, Ordering::Relaxed);
            assert!(done.is_ok(), "signalling waited for the client");
        });
    }
}
