//! `ioctl` of this program: the driver's requests go through here on their way to the kernel, and
//! one of them can be answered in the kernel's place.

use std::collections::BTreeSet;
use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;

/// The type of the requests of VFIO and of iommufd (`VFIO_TYPE`, `IOMMUFD_TYPE`).
const TYPE: c_ulong = b';' as c_ulong;

/// What a request is made to; numbers are of one kind of node only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Container,
    Group,
    Device,
    Iommufd,
}

/// What is said in the kernel's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Refused(Errno),
    Value(u16),
}

/// How many [`quiet`] run: nothing is answered meanwhile.
static QUIET: AtomicUsize = AtomicUsize::new(0);
/// The request that is answered; 0 for none.
static REQUEST: AtomicU32 = AtomicU32::new(0);
/// A value, or an errno below 0.
static ANSWER: AtomicI64 = AtomicI64::new(0);
/// How often it was given.
static GIVEN: AtomicUsize = AtomicUsize::new(0);
static RECORDING: AtomicBool = AtomicBool::new(false);
static MADE: Mutex<BTreeSet<(Node, u32)>> = Mutex::new(BTreeSet::new());

fn node(fd: c_int) -> Option<Node> {
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).ok()?;
    let path = link.to_str()?;
    let in_vfio = path.strip_prefix("/dev/vfio/");
    Some(match path {
        "/dev/vfio/vfio" => Node::Container,
        "/dev/iommu" => Node::Iommufd,
        "anon_inode:[vfio-device]" => Node::Device,
        _ if in_vfio.is_some_and(|name| name.starts_with("devices/")) => Node::Device,
        _ if in_vfio.is_some() => Node::Group,
        _ => return None,
    })
}

/// What libc's function does, which this one is taken for by all that is linked to this program.
///
/// # Safety
///
/// As that of the request.
#[unsafe(no_mangle)]
unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    if request >> 8 == TYPE {
        if RECORDING.load(Ordering::Relaxed) {
            let made = node(fd).map(|node| (node, (request & 0xff) as u32));
            MADE.lock().unwrap_or_else(PoisonError::into_inner).extend(made);
        }
        let answered = REQUEST.load(Ordering::SeqCst) == request as u32;
        if answered && QUIET.load(Ordering::SeqCst) == 0 {
            GIVEN.fetch_add(1, Ordering::SeqCst);
            let answer = ANSWER.load(Ordering::SeqCst);
            if answer >= 0 {
                return answer as c_int;
            }
            Errno::set_raw(-answer as i32);
            return -1;
        }
    }
    // SAFETY: the caller vouches for it.
    let status: c_long = unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) };
    status as c_int
}

/// Runs with every request of this number answered; returns how many there were too.
pub(crate) fn answering<T>(number: u32, answer: Answer, body: impl FnOnce() -> T) -> (T, usize) {
    struct Disarm;
    impl Drop for Disarm {
        fn drop(&mut self) {
            REQUEST.store(0, Ordering::SeqCst);
        }
    }
    let _disarm = Disarm;
    GIVEN.store(0, Ordering::SeqCst);
    let answer = match answer {
        Answer::Refused(errno) => -i64::from(errno as i32),
        Answer::Value(value) => i64::from(value),
    };
    ANSWER.store(answer, Ordering::SeqCst);
    REQUEST.store((TYPE as u32) << 8 | number, Ordering::SeqCst);
    let result = body();
    (result, GIVEN.load(Ordering::SeqCst))
}

/// Runs a part of what is answered by the kernel itself.
pub(crate) fn quiet<T>(body: impl FnOnce() -> T) -> T {
    QUIET.fetch_add(1, Ordering::SeqCst);
    let result = body();
    QUIET.fetch_sub(1, Ordering::SeqCst);
    result
}

/// The requests that `body` makes, by node and number.
pub(crate) fn recording(body: impl FnOnce()) -> BTreeSet<(Node, u32)> {
    RECORDING.store(true, Ordering::SeqCst);
    body();
    RECORDING.store(false, Ordering::SeqCst);
    std::mem::take(&mut *MADE.lock().unwrap_or_else(PoisonError::into_inner))
}
