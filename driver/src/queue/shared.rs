//! A queue for several threads and tasks.

use std::fmt;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::EfdFlags;

use super::Queue;
use super::wait::{PATIENCE, service};
use crate::deadline::Deadline;
use crate::events::Events;
use crate::irq::IrqError;
use crate::sync::thread::{self, JoinHandle, Thread};
use crate::sync::{AtomicBool, EventFd, Instant, Mutex, poll};

/// How long the thread sleeps between two looks when there are no interrupts.
const PAUSE: Duration = Duration::from_micros(50);

/// Wakers that a queue has done with, to be woken and dropped while nothing is locked: both
/// may run code that comes back to the queue.
#[derive(Debug, Default)]
#[must_use = "somebody waits to be woken"]
pub struct Wakers {
    /// Those whose transfers have ended.
    pub wake: Vec<Waker>,
    /// Those that wait no more.
    pub discard: Vec<Waker>,
}

impl Wakers {
    /// Whether there is none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.wake.is_empty() && self.discard.is_empty()
    }

    /// Wakes those that are to be woken, and drops the others.
    pub fn run(self) {
        self.wake.into_iter().for_each(Waker::wake);
    }
}

/// A queue whose transfers tasks can wait for.
pub trait Transfers: Queue + fmt::Debug + Send + 'static {
    /// Names a transfer.
    type Token: Copy + fmt::Debug + Send + Unpin;
    /// What a transfer gives when it has ended.
    type Output;

    /// What came of a transfer; `None` while it is in flight.
    ///
    /// # Errors
    ///
    /// Fails when it was taken before.
    fn take(&mut self, token: Self::Token) -> Result<Option<Self::Output>, Self::Error>;

    /// Gives a transfer's result up.
    ///
    /// # Errors
    ///
    /// Fails when it was taken before.
    fn detach(&mut self, token: Self::Token) -> Result<(), Self::Error>;

    /// Has this waker woken when the transfer ends. One that it replaces is among those that
    /// [`Transfers::take_wakers`] returns: it is not dropped here.
    ///
    /// # Errors
    ///
    /// Fails, and drops nothing either, when the result was taken before.
    fn set_waker(&mut self, token: Self::Token, waker: Waker) -> Result<(), Self::Error>;

    /// The wakers that are done with since the last call.
    fn take_wakers(&mut self) -> Wakers;

    /// Says that a result was taken before.
    fn no_such_transfer(&self) -> Self::Error;
}

/// A queue that threads and tasks share: its transfers are futures, for any executor.
///
/// A thread of its own sleeps until the queue's interrupt, ends what is done and wakes who
/// waits for it. The last clone to be dropped, [`Completion`]s counted in, drops the queue.
pub struct SharedQueue<Q: Transfers>(Arc<Owner<Q>>);

impl<Q: Transfers> Clone for SharedQueue<Q> {
    fn clone(&self) -> Self {
        SharedQueue(Arc::clone(&self.0))
    }
}

impl<Q: Transfers> fmt::Debug for SharedQueue<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedQueue").field("queue", &self.0.inner.queue).finish_non_exhaustive()
    }
}

struct Owner<Q: Transfers> {
    inner: Arc<Inner<Q>>,
    thread: Option<JoinHandle<()>>,
}

struct Inner<Q> {
    queue: Mutex<Q>,
    /// Signalled when there is something to do but no interrupt tells: a first transfer,
    /// or the end.
    nudge: EventFd,
    interrupt: Option<OwnedFd>,
    events: Option<Events>,
    stop: AtomicBool,
}

impl<Q: Transfers> SharedQueue<Q>
where
    Q::Error: fmt::Display,
{
    /// Shares a queue and starts its thread, which is named `name`.
    ///
    /// # Errors
    ///
    /// Fails when the kernel refuses an eventfd or a thread.
    pub fn new(queue: Q, name: &str) -> Result<SharedQueue<Q>, Q::Error> {
        let failed = |action| move |source| IrqError::Event { action, source };
        let nudge = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(IrqError::event("creating an eventfd"))?;
        let interrupt = queue
            .vector()
            .map(|vector| vector.as_fd().try_clone_to_owned())
            .transpose()
            .map_err(failed("duplicating an eventfd"))?;
        let events = queue.events().cloned();
        let (queue, stop) = (Mutex::new(queue), AtomicBool::new(false));
        let inner = Arc::new(Inner { queue, nudge, interrupt, events, stop });
        let theirs = Arc::clone(&inner);
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || theirs.run())
            .map_err(failed("starting a thread"))?;
        Ok(SharedQueue(Arc::new(Owner { inner, thread: Some(thread) })))
    }

    /// Submits something and issues it.
    ///
    /// # Errors
    ///
    /// What `submit` fails with.
    pub fn submit<E>(
        &self,
        submit: impl FnOnce(&mut Q) -> Result<Q::Token, E>,
    ) -> Result<Completion<Q>, E> {
        let token = self.with(|queue| {
            let token = submit(queue)?;
            if let Err(error) = queue.issue() {
                // The device is asked again by the thread, which ends the transfer.
                log::error!("{error}");
            }
            Ok(token)
        })?;
        Ok(Completion { queue: self.clone(), token: Some(token) })
    }

    /// Runs with the queue for itself. The queue's thread serves what is submitted here, too.
    pub fn with<T>(&self, f: impl FnOnce(&mut Q) -> T) -> T {
        let (result, is_first) = self.0.inner.with(|queue| {
            let was_idle = queue.in_flight() == 0;
            let result = f(queue);
            (result, was_idle && queue.in_flight() > 0)
        });
        if is_first {
            self.0.inner.nudge();
        }
        result
    }
}

impl<Q: Transfers> Drop for Owner<Q> {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::Release);
        self.inner.nudge();
        let Some(thread) = self.thread.take() else { return };
        // A task that the thread itself wakes may be the last to let go: the thread ends by
        // itself then, and drops the queue.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            log::error!("the thread of a queue panicked");
        }
    }
}

impl<Q: Transfers> Inner<Q> {
    /// Runs with the queue locked. Wakers are woken, and dropped, after that.
    fn with<T>(&self, f: impl FnOnce(&mut Q) -> T) -> T {
        // The queue's own state changes in steps that are whole before anything can panic.
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut queue);
        let wakers = queue.take_wakers();
        drop(queue);
        wakers.run();
        result
    }
}

impl<Q> Inner<Q> {
    fn nudge(&self) {
        // Fails only when the count would overflow, and then it is readable anyway.
        let _ = self.nudge.write(1);
    }

    fn sleep(&self, busy: bool) {
        let timeout = match (busy, &self.interrupt) {
            (true, None) => return thread::sleep(PAUSE),
            (true, Some(_)) => PollTimeout::from(PATIENCE.as_millis() as u8),
            (false, _) => PollTimeout::NONE,
        };
        let nudge = self.nudge.as_fd();
        let interrupt = self.interrupt.as_ref().map_or(nudge, AsFd::as_fd);
        // Once it has told, it is there every time.
        let events = self.events.as_ref().filter(|events| events.pending().is_none());
        let fds = [nudge, interrupt, events.map_or(nudge, AsFd::as_fd)];
        let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                log::error!("polling an eventfd: {error}");
                thread::sleep(PATIENCE);
            }
        }
        // Empty unless it was what ended the sleep.
        let _ = self.nudge.read();
    }
}

impl<Q: Transfers> Inner<Q>
where
    Q::Error: fmt::Display,
{
    fn run(&self) {
        let mut asked = Instant::now();
        let mut done = 0;
        while !self.stop.load(Ordering::Acquire) {
            let (result, busy, now_done) = self.with(|queue| {
                let mut result = service(queue);
                if result.is_ok() && queue.done() == done && asked.elapsed() >= PATIENCE {
                    asked = Instant::now();
                    result = queue.check_device();
                }
                (result, queue.in_flight() > 0, queue.done())
            });
            if now_done != done {
                (done, asked) = (now_done, Instant::now());
            }
            if let Err(error) = result {
                // The transfers have ended and say so themselves.
                log::error!("{error}");
            }
            self.sleep(busy);
            if !busy {
                asked = Instant::now();
            }
        }
    }
}

/// A transfer of a [`SharedQueue`]: a future, or something to wait for.
///
/// Dropping it gives the result up; the transfer itself goes on, and its buffers are
/// dropped when it ends.
#[must_use = "a transfer may fail"]
pub struct Completion<Q: Transfers> {
    queue: SharedQueue<Q>,
    token: Option<Q::Token>,
}

impl<Q: Transfers> fmt::Debug for Completion<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion").field("token", &self.token).finish_non_exhaustive()
    }
}

impl<Q: Transfers> Future for Completion<Q> {
    type Output = Result<Q::Output, Q::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = Arc::clone(&self.queue.0.inner);
        let Some(token) = self.token else {
            return Poll::Ready(Err(inner.with(|queue| queue.no_such_transfer())));
        };
        // Cloned, and dropped if it is not needed, outside of the lock.
        let mut waker = Some(context.waker().clone());
        let polled = inner.with(|queue| match queue.take(token).transpose() {
            Some(taken) => Some(taken),
            None => waker.take().and_then(|waker| queue.set_waker(token, waker).err()).map(Err),
        });
        drop(waker);
        let Some(taken) = polled else { return Poll::Pending };
        self.token = None;
        Poll::Ready(taken)
    }
}

/// Wakes a thread that waits as a task does.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl<Q: Transfers> Completion<Q> {
    /// Waits in this thread until the transfer ended.
    ///
    /// # Errors
    ///
    /// [`Queue::timeout`] when it does not end in time; its result is given up then.
    pub fn wait(mut self, timeout: Duration) -> Result<Q::Output, Q::Error> {
        let deadline = Deadline::after(timeout);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(finished) = Pin::new(&mut self).poll(&mut context) {
                return finished;
            }
            let left = deadline.left();
            if left.is_zero() {
                let inner = &self.queue.0.inner;
                return Err(inner.with(|queue| queue.timeout("the transfer", timeout)));
            }
            thread::park_timeout(left);
        }
    }
}

impl<Q: Transfers> Drop for Completion<Q> {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            // Fails only when the transfer was taken, and then there is no token.
            let _ = self.queue.0.inner.with(|queue| queue.detach(token));
        }
    }
}
