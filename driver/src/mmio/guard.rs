//! What becomes of an access to a mapping that nothing answers any more.
//!
//! The kernel takes the pages of a BAR away when its function is removed, is suspended, or stops
//! decoding memory from under its owner, and those of a file when it is cut short or has no room
//! for them; an access is a bus error then, SIGBUS, which ends a process. While a mapping is watched
//! a handler of the process takes those that are in it: it puts a page of its own in the place, of
//! ones, as a bus answers for an absent device, and the access becomes an error. Every other SIGBUS
//! goes to the handler that was there before.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// A mapping that is watched, or was; one that was is used again and never freed, so that the
/// handler may walk the list at any time.
struct Node {
    /// Odd while `start` and `end` are being changed.
    version: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
    /// The size of its pages in bytes.
    page: AtomicUsize,
    is_lost: AtomicBool,
    next: AtomicPtr<Node>,
}

/// The list's first node.
static FIRST: AtomicPtr<Node> = AtomicPtr::new(ptr::null_mut());

/// Those of the list that watch nothing.
static UNUSED: Mutex<Vec<&'static Node>> = Mutex::new(Vec::new());

/// How many bus errors were taken.
static TAKEN: AtomicUsize = AtomicUsize::new(0);

fn unused() -> MutexGuard<'static, Vec<&'static Node>> {
    // The list changes in single steps.
    UNUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the handler needs.
struct Handler {
    /// A file of one page of ones.
    ones: OwnedFd,
    page: usize,
    /// Who had the signal before.
    before: OnceLock<SigAction>,
}

static HANDLER: OnceLock<Handler> = OnceLock::new();

/// Keeps a bus error (SIGBUS) in a mapping from ending the process, as long as it lives.
///
/// The page of the access becomes one of this process alone, in ones (in zeros where it is a huge
/// page), and the access goes on there: whoever makes it looks at [`BusErrorGuard::is_lost`]
/// afterwards, and takes nothing of it for the other side's.
pub struct BusErrorGuard(&'static Node);

impl fmt::Debug for BusErrorGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BusErrorGuard").field("is_lost", &self.is_lost()).finish_non_exhaustive()
    }
}

impl BusErrorGuard {
    /// Begins to watch `len` bytes from `base` on, in pages of `page` bytes; of the kernel's smallest
    /// ones where that is less.
    ///
    /// # Errors
    ///
    /// Fails when the kernel refuses the handler of the signal.
    ///
    /// # Safety
    ///
    /// The bytes are whole pages of a mapping that outlives the guard and that no reference points
    /// into: any page of it may be replaced at any time.
    pub unsafe fn watch(base: NonNull<u8>, len: usize, page: usize) -> io::Result<BusErrorGuard> {
        install()?;
        let node = Node::take();
        let start = base.addr().get();
        node.set(start, start.saturating_add(len), page);
        Ok(BusErrorGuard(node))
    }

    /// Whether an access to the mapping was a bus error: pages of it are this process's own.
    #[inline]
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.is_lost.load(Ordering::Relaxed)
    }

    /// How many bus errors were taken in this process, in whichever watched mapping: where it did
    /// not change, no access of this thread was one.
    #[inline]
    #[must_use]
    pub fn taken() -> usize {
        TAKEN.load(Ordering::Relaxed)
    }
}

impl Drop for BusErrorGuard {
    fn drop(&mut self) {
        self.0.set(0, 0, 0);
        unused().push(self.0);
    }
}

impl Node {
    /// One that nobody uses, else a new one.
    fn take() -> &'static Node {
        if let Some(node) = unused().pop() {
            return node;
        }
        let node: &'static Node = Box::leak(Box::new(Node {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            is_lost: AtomicBool::new(false),
            next: AtomicPtr::new(ptr::null_mut()),
        }));
        let new = ptr::from_ref(node).cast_mut();
        let mut first = FIRST.load(Ordering::Relaxed);
        loop {
            node.next.store(first, Ordering::Relaxed);
            match FIRST.compare_exchange(first, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return node,
                Err(other) => first = other,
            }
        }
    }

    fn set(&self, start: usize, end: usize, page: usize) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
        self.end.store(end, Ordering::SeqCst);
        self.page.store(page, Ordering::SeqCst);
        self.is_lost.store(false, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether the address is in the mapping. Its own mapping does not change while a thread
    /// accesses it; that of another may, and is not taken for it.
    fn contains(&self, address: usize) -> bool {
        let version = self.version.load(Ordering::SeqCst);
        let range = self.start.load(Ordering::SeqCst)..self.end.load(Ordering::SeqCst);
        version.is_multiple_of(2)
            && range.contains(&address)
            && self.version.load(Ordering::SeqCst) == version
    }
}

fn nodes() -> impl Iterator<Item = &'static Node> {
    let node = |at: &AtomicPtr<Node>| {
        // SAFETY: the list holds leaked boxes, which live for ever and are only shared.
        unsafe { at.load(Ordering::Acquire).as_ref::<'static>() }
    };
    std::iter::successors(node(&FIRST), move |last| node(&last.next))
}

/// Takes SIGBUS over, once in a process.
fn install() -> nix::Result<()> {
    if HANDLER.get().is_some_and(|handler| handler.before.get().is_some()) {
        return Ok(());
    }
    static INSTALLING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = INSTALLING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if HANDLER.get().is_some_and(|handler| handler.before.get().is_some()) {
        return Ok(());
    }
    if HANDLER.get().is_none() {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?;
        let page = page.and_then(|size| usize::try_from(size).ok()).unwrap_or(4096);
        let ones = memfd_create("absent-device", MFdFlags::MFD_CLOEXEC)?;
        let file = std::fs::File::from(ones);
        file.write_all_at(&vec![0xff; page], 0)
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
        let _ = HANDLER.set(Handler { ones: file.into(), page, before: OnceLock::new() });
    }
    let action = SigAction::new(
        SigHandler::SigAction(on_bus_error),
        SaFlags::SA_SIGINFO | SaFlags::SA_ONSTACK,
        SigSet::empty(),
    );
    // SAFETY: the handler makes the system call mmap, reads and writes atomics, and calls the
    // handler that was there before: all of it is allowed in a signal handler.
    let before = unsafe { sigaction(Signal::SIGBUS, &action) }?;
    if let Some(handler) = HANDLER.get() {
        let _ = handler.before.set(before);
    }
    Ok(())
}

extern "C" fn on_bus_error(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel hands a valid structure over.
    let info_of_signal = unsafe { &*info };
    // SAFETY: that of SIGBUS has an address.
    let address = unsafe { info_of_signal.si_addr() }.addr();
    let replaced = nodes().find(|node| node.contains(address)).is_some_and(|node| {
        // Before the page is there: who reads it must see it.
        node.is_lost.store(true, Ordering::SeqCst);
        TAKEN.fetch_add(1, Ordering::SeqCst);
        replace(address, node.page.load(Ordering::SeqCst))
    });
    if !replaced {
        pass_on(signal, info, context);
    }
    Errno::set_raw(errno);
}

/// Puts a page of ones where the address is, or one of zeros where pages are larger than the file
/// of ones.
fn replace(address: usize, page: usize) -> bool {
    let Some(handler) = HANDLER.get() else { return false };
    let (page, flags, file) = match page > handler.page {
        true => (page, libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1),
        false => (handler.page, 0, handler.ones.as_raw_fd()),
    };
    // SAFETY: the page is inside of a mapping that a guard watches and which no reference points
    // into; the new one is private and as long.
    let mapped = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(address & !(page - 1)),
            page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_FIXED | flags,
            file,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

/// Leaves the signal to who had it before; by default it ends the process.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let before = HANDLER.get().and_then(|handler| handler.before.get());
    match before.map(SigAction::handler) {
        Some(SigHandler::SigAction(handler)) => handler(signal, info, context),
        Some(SigHandler::Handler(handler)) => handler(signal),
        _ => {
            let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
            // SAFETY: the default action has no handler. The access is made again on return,
            // and ends the process.
            let _ = unsafe { sigaction(Signal::SIGBUS, &default) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::num::NonZeroUsize;

    use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

    use super::*;

    const PAGE: usize = 4096;

    /// Watches the mapping of [`mapping`].
    fn watch(base: NonNull<u8>) -> BusErrorGuard {
        // SAFETY: the mapping outlives the guard, and nothing refers into it.
        unsafe { BusErrorGuard::watch(base, 2 * PAGE, PAGE) }.unwrap()
    }

    /// A mapping of two pages of a file that has only one.
    fn mapping() -> (File, NonNull<u8>) {
        let file = File::from(memfd_create("bar", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(PAGE as u64).unwrap();
        let len = NonZeroUsize::new(2 * PAGE).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { mmap(None, len, protection, MapFlags::MAP_SHARED, &file, 0) };
        (file, base.unwrap().cast())
    }

    fn read(base: NonNull<u8>, offset: usize) -> u32 {
        // SAFETY: the sum is inside of the mapping of two pages.
        let at = unsafe { base.add(offset) }.cast::<u32>();
        // SAFETY: mapped and aligned; a page that is not there is replaced.
        unsafe { at.read_volatile() }
    }

    #[test]
    fn a_bus_error_in_a_watched_mapping_reads_ones_and_is_told() {
        let (_file, base) = mapping();
        let guard = watch(base);
        assert_eq!(read(base, 0), 0);
        assert!(!guard.is_lost());
        let taken = BusErrorGuard::taken();
        assert_eq!(read(base, PAGE + 8), u32::MAX);
        assert!(guard.is_lost() && BusErrorGuard::taken() != taken);
        assert_eq!(read(base, 0), 0, "the page that is there is the file's still");
        drop(guard);
        // The node is used again, without what it was told.
        let (_other, second) = mapping();
        let guard = watch(second);
        assert!(!guard.is_lost());
        for base in [base, second] {
            // SAFETY: the mapping is this test's own.
            unsafe { munmap(base.cast(), 2 * PAGE) }.unwrap();
        }
    }

    #[test]
    fn a_bus_error_elsewhere_ends_the_process() {
        let (_file, base) = mapping();
        let (_other, watched) = mapping();
        let guard = watch(watched);
        // SAFETY: the child makes one access and ends.
        match unsafe { nix::unistd::fork() }.unwrap() {
            nix::unistd::ForkResult::Child => {
                // No core file is wanted of it.
                let _ =
                    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
                let _ = read(base, PAGE);
                // SAFETY: ends the child at once.
                unsafe { libc::_exit(0) }
            }
            nix::unistd::ForkResult::Parent { child } => {
                let status = nix::sys::wait::waitpid(child, None).unwrap();
                let died =
                    matches!(status, nix::sys::wait::WaitStatus::Signaled(_, Signal::SIGBUS, _));
                assert!(died, "{status:?}");
            }
        }
        drop(guard);
    }
}
