//! The thread that waits for the events of functions, one for the process.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, PoisonError, Weak};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EfdFlags;

use super::{Event, Events, GRACE, os_error};
use crate::backend::{Backend, BackendError};
use crate::sync::{EventFd, Instant, Mutex, MutexGuard, epoll_wait};

/// What is waited for, by a number that is never used twice.
pub(super) struct Watcher {
    epoll: Epoll,
    sources: Mutex<Sources>,
}

#[derive(Default)]
struct Sources {
    next: u64,
    known: BTreeMap<u64, Arc<Source>>,
}

/// One eventfd that the kernel signals.
pub(super) struct Source {
    pub(super) signalled: EventFd,
    pub(super) event: Event,
    pub(super) events: Events,
    pub(super) backend: Weak<dyn Backend>,
}

/// A function that is to be removed, and since when its owner knows.
pub(super) type Leaving = (Instant, Arc<Source>);

/// Has one event told as long as it lives.
pub(crate) struct Watch {
    watcher: Arc<Watcher>,
    key: u64,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("key", &self.key).finish_non_exhaustive()
    }
}

/// Has the backend tell of an event; `None` when it does not offer that.
pub(super) fn watch(
    backend: &Arc<dyn Backend>,
    events: &Events,
    event: Event,
) -> Result<Option<Watch>, BackendError> {
    let signalled = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
        .map_err(os_error("creating an eventfd"))?;
    if !backend.notify(event, signalled.as_fd())? {
        return Ok(None);
    }
    let (events, backend) = (events.clone(), Arc::downgrade(backend));
    let source = Source { signalled, event, events, backend };
    let watch = Watcher::of_the_process()?.add(source);
    watch.map(Some).map_err(os_error("watching an eventfd"))
}

impl Drop for Watch {
    fn drop(&mut self) {
        let source = self.watcher.sources().known.remove(&self.key);
        if let Some(source) = source
            && let Err(errno) = self.watcher.epoll.delete(&source.signalled)
        {
            log::error!("giving an eventfd up: {errno}");
        }
    }
}

impl Watcher {
    /// The watcher, which begins with the first to ask for it and goes on to the end.
    fn of_the_process() -> Result<&'static Arc<Watcher>, BackendError> {
        static WATCHER: OnceLock<Result<Arc<Watcher>, Errno>> = OnceLock::new();
        static THREAD: OnceLock<Result<(), i32>> = OnceLock::new();
        let watcher = WATCHER.get_or_init(Watcher::new);
        let watcher = watcher.as_ref().map_err(|&errno| os_error("creating an epoll")(errno))?;
        let thread = THREAD.get_or_init(|| {
            let thread = std::thread::Builder::new().name("vfio-events".into());
            let started = thread.spawn(|| watcher.run());
            started.map(drop).map_err(|error| error.raw_os_error().unwrap_or_default())
        });
        match thread {
            Ok(()) => Ok(watcher),
            Err(errno) => Err(os_error("starting a thread")(Errno::from_raw(*errno))),
        }
    }

    /// One that nobody runs yet.
    pub(super) fn new() -> nix::Result<Arc<Watcher>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        Ok(Arc::new(Watcher { epoll, sources: Mutex::default() }))
    }

    /// Watches one more.
    pub(super) fn add(self: &Arc<Self>, source: Source) -> nix::Result<Watch> {
        let source = Arc::new(source);
        let mut sources = self.sources();
        let key = sources.next;
        sources.next += 1;
        self.epoll.add(&source.signalled, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
        sources.known.insert(key, source);
        drop(sources);
        Ok(Watch { watcher: Arc::clone(self), key })
    }

    /// Whether nothing is watched.
    #[cfg(all(test, shuttle))]
    pub(super) fn is_idle(&self) -> bool {
        self.sources().known.is_empty()
    }

    fn sources(&self) -> MutexGuard<'_, Sources> {
        // The map changes in single steps.
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut leaving = Vec::new();
        loop {
            if let Err(errno) = self.turn(&mut leaving) {
                log::error!("events of functions are not told any more: {errno}");
                return;
            }
        }
    }

    /// Waits once: tells what has happened, and closes what should have left by now.
    pub(super) fn turn(&self, leaving: &mut Vec<Leaving>) -> nix::Result<()> {
        let next = leaving.iter().map(|(since, _)| GRACE.saturating_sub(since.elapsed())).min();
        // Rounded up: a rest below 1 ms must not become a busy loop.
        let timeout = next.map_or(EpollTimeout::NONE, |left| {
            EpollTimeout::try_from(left.as_millis() as i32 + 1).unwrap_or(EpollTimeout::ZERO)
        });
        let mut ready = [EpollEvent::empty(); 16];
        let count = match epoll_wait(&self.epoll, &mut ready, timeout) {
            Err(Errno::EINTR) => 0,
            waited => waited?,
        };
        for ready in &ready[..count] {
            let source = self.sources().known.get(&ready.data()).cloned();
            let Some(source) = source else { continue };
            // Emptied, so that it is not there again at once.
            let _ = source.signalled.read();
            source.events.happened(source.event);
            if source.event == Event::Removal {
                leaving.push((Instant::now(), source));
            }
        }
        leaving.retain(|(since, source)| {
            // Gone by itself, as it should be.
            let Some(backend) = source.backend.upgrade() else { return false };
            let is_due = since.elapsed() >= GRACE;
            // What the backend drops is its own, but may be a caller's implementation.
            let revoke = AssertUnwindSafe(|| {
                if is_due && !source.events.is_closed() {
                    source.events.revoke(&*backend);
                }
                drop(backend);
            });
            if catch_unwind(revoke).is_err() {
                log::error!("closing a device panicked");
            }
            !is_due
        });
        Ok(())
    }
}
