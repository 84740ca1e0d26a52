//! A channel for several threads and tasks.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Channel, Finished, IoatError, Refused, Stats, Token, WhenFull};
use crate::dma::SgTable;
use crate::irq::IrqError;

/// How long the thread sleeps while something is in flight, so that an interrupt that got
/// lost, or a device that is gone, is found out.
const PATIENCE: Duration = Duration::from_millis(10);

/// How long it sleeps between two looks when there are no interrupts.
const PAUSE: Duration = Duration::from_micros(50);

/// A channel that threads and tasks share: its transfers are futures, for any executor.
///
/// A thread of its own sleeps until the channel's interrupt, ends what is done and wakes
/// who waits for it. A program with an event loop of its own does without that thread: it
/// keeps the [`Channel`], registers [`Channel::event`], calls [`Channel::service`], and
/// makes futures of [`Channel::poll_finished`].
///
/// The last clone to be dropped, [`Completion`]s counted in, stops the channel.
#[derive(Debug, Clone)]
pub struct SharedChannel(Arc<Owner>);

#[derive(Debug)]
struct Owner {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    channel: Mutex<Channel>,
    /// Signalled when there is something to do but no interrupt tells: a first transfer,
    /// or the end.
    nudge: EventFd,
    interrupt: Option<OwnedFd>,
    stop: AtomicBool,
}

impl SharedChannel {
    /// Shares a channel and starts its thread.
    ///
    /// # Errors
    ///
    /// Fails when the kernel refuses an eventfd or a thread.
    pub fn new(mut channel: Channel) -> Result<SharedChannel, IoatError> {
        let refused = |action| {
            move |source: std::io::Error| IoatError::from(IrqError::Event { action, source })
        };
        let nudge = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| refused("creating an eventfd")(errno.into()))?;
        let interrupt = channel
            .event()
            .map(|event| event.try_clone_to_owned())
            .transpose()
            .map_err(refused("duplicating an eventfd"))?;
        channel.woken = Some(Vec::new());
        let channel = Mutex::new(channel);
        let inner = Arc::new(Inner { channel, nudge, interrupt, stop: AtomicBool::new(false) });
        let theirs = Arc::clone(&inner);
        let thread = std::thread::Builder::new()
            .name("ioat".into())
            .spawn(move || theirs.run())
            .map_err(|error| refused("starting a thread")(error))?;
        Ok(SharedChannel(Arc::new(Owner { inner, thread: Some(thread) })))
    }

    /// Starts a copy.
    ///
    /// # Errors
    ///
    /// As [`Channel::copy`]; a full ring refuses.
    pub fn copy(&self, source: SgTable, target: SgTable) -> Result<Completion, Refused> {
        self.start(|channel| channel.copy(source, target, WhenFull::Return))
    }

    /// Starts a fill.
    ///
    /// # Errors
    ///
    /// As [`Channel::fill`]; a full ring refuses.
    pub fn fill(&self, target: SgTable, pattern: u64) -> Result<Completion, Refused> {
        self.start(|channel| channel.fill(target, pattern, WhenFull::Return))
    }

    /// What the channel did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.inner.with(|channel| channel.stats())
    }

    /// As [`Channel::abort`].
    ///
    /// # Errors
    ///
    /// As [`Channel::abort`].
    pub fn abort(&self) -> Result<(), IoatError> {
        self.0.inner.with(Channel::abort)
    }

    fn start(
        &self,
        submit: impl FnOnce(&mut Channel) -> Result<Token, Refused>,
    ) -> Result<Completion, Refused> {
        let (token, first) = self.0.inner.with(|channel| {
            let first = channel.in_flight() == 0;
            let token = submit(channel)?;
            if let Err(error) = channel.issue() {
                // The device is asked again by the thread, which ends the transfer.
                log::error!("{error}");
            }
            Ok((token, first))
        })?;
        if first {
            self.0.inner.nudge();
        }
        Ok(Completion { channel: self.clone(), token: Some(token) })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::Release);
        self.inner.nudge();
        let Some(thread) = self.thread.take() else { return };
        // A task that the thread itself wakes may be the last to let go: the thread ends by
        // itself then, and drops the channel.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            log::error!("the thread of an I/OAT channel panicked");
        }
    }
}

impl Inner {
    /// Runs with the channel locked; wakes whoever is to be woken after that.
    fn with<T>(&self, f: impl FnOnce(&mut Channel) -> T) -> T {
        // A panic in a waker happens outside of the lock; the channel's own state changes
        // in steps that are whole before anything can panic.
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut channel);
        let woken: Vec<Waker> = channel.woken.as_mut().map(std::mem::take).unwrap_or_default();
        drop(channel);
        woken.into_iter().for_each(Waker::wake);
        result
    }

    fn nudge(&self) {
        // Fails only when the count would overflow, and then it is readable anyway.
        let _ = self.nudge.write(1);
    }

    fn run(&self) {
        let mut asked = Instant::now();
        let mut done = 0;
        while !self.stop.load(Ordering::Acquire) {
            let (result, busy, now_done) = self.with(|channel| {
                let mut result = channel.service();
                if result.is_ok() && channel.ring.done() == done && asked.elapsed() >= PATIENCE {
                    asked = Instant::now();
                    result = channel.check_device();
                }
                (result, channel.in_flight() > 0, channel.ring.done())
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

    fn sleep(&self, busy: bool) {
        let timeout = match (busy, &self.interrupt) {
            (true, None) => return std::thread::sleep(PAUSE),
            (true, Some(_)) => PollTimeout::from(PATIENCE.as_millis() as u8),
            (false, _) => PollTimeout::NONE,
        };
        let nudge = PollFd::new(self.nudge.as_fd(), PollFlags::POLLIN);
        let interrupt = self.interrupt.as_ref().map_or(self.nudge.as_fd(), AsFd::as_fd);
        let mut fds = [nudge, PollFd::new(interrupt, PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                log::error!("polling an eventfd: {error}");
                std::thread::sleep(PATIENCE);
            }
        }
        // Empty unless it was what ended the sleep.
        let _ = self.nudge.read();
    }
}

/// A transfer of a [`SharedChannel`]: a future, or something to wait for.
///
/// Dropping it gives the result up; the transfer itself goes on, and its buffers are
/// dropped when it ends.
#[derive(Debug)]
#[must_use = "a transfer may fail"]
pub struct Completion {
    channel: SharedChannel,
    token: Option<Token>,
}

impl Future for Completion {
    type Output = Result<Finished, IoatError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(token) = self.token else {
            return Poll::Ready(Err(IoatError::NoSuchTransfer));
        };
        let inner = &self.channel.0.inner;
        let polled = inner.with(|channel| channel.poll_finished(token, context));
        if polled.is_ready() {
            self.token = None;
        }
        polled
    }
}

/// Wakes a thread that waits as a task does.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Completion {
    /// Waits in this thread until the transfer ended.
    ///
    /// # Errors
    ///
    /// [`IoatError::Timeout`] when it does not end in time; its result is given up then.
    pub fn wait(mut self, timeout: Duration) -> Result<Finished, IoatError> {
        let begin = Instant::now();
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(finished) = Pin::new(&mut self).poll(&mut context) {
                return finished;
            }
            let left = timeout.saturating_sub(begin.elapsed());
            if left.is_zero() {
                let inner = &self.channel.0.inner;
                let (location, channel) = inner.with(|c| (c.engine.location(), c.index));
                let what = "the transfer";
                return Err(IoatError::Timeout { location, channel, what, waited: timeout });
            }
            std::thread::park_timeout(left);
        }
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            // Fails only when the transfer was taken, and then there is no token.
            let _ = self.channel.0.inner.with(|channel| channel.detach(token));
        }
    }
}
