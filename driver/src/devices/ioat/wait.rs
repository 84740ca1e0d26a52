//! Waiting: by looking at memory, by an interrupt, or by the one and then the other.

use std::os::fd::BorrowedFd;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::{Channel, Finished, IoatError, Token, WaitMode};
use crate::irq::IrqError;

/// How long nothing may move until the device is asked over the bus; also how long one
/// sleep lasts, so that an interrupt that got lost costs no more than this.
const PATIENCE: Duration = Duration::from_millis(10);

/// How often the completion word is looked at between two looks at the clock.
const LOOKS: u32 = 64;

/// How long to look without letting other threads run.
const SPIN: Duration = Duration::from_millis(1);

impl Channel {
    /// Waits until a transfer ended, and takes it.
    ///
    /// # Errors
    ///
    /// [`IoatError::Timeout`] when it does not end in time: it is still in flight then, and
    /// can be waited for again, or [`Channel::abort`]ed. As [`Channel::poll`] otherwise.
    pub fn wait(&mut self, token: Token, timeout: Duration) -> Result<Finished, IoatError> {
        self.job_mut(token)?;
        let deadline = Instant::now().checked_add(timeout);
        let waited = self.wait_until(deadline, "the transfer", |channel| {
            channel.is_finished(token).unwrap_or(true)
        });
        // A lost channel has ended its transfers, and they say why.
        match self.take(token)? {
            Some(finished) => Ok(finished),
            None => Err(waited.err().unwrap_or(IoatError::NoSuchTransfer)),
        }
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    ///
    /// As [`Channel::wait`].
    pub fn wait_all(&mut self, timeout: Duration) -> Result<(), IoatError> {
        let deadline = Instant::now().checked_add(timeout);
        self.wait_until(deadline, "all transfers", |channel| channel.order.is_empty())
    }

    /// Waits until a condition holds; `None` waits without an end.
    pub(super) fn wait_until(
        &mut self,
        deadline: Option<Instant>,
        what: &'static str,
        mut done: impl FnMut(&Channel) -> bool,
    ) -> Result<(), IoatError> {
        self.issue()?;
        let spin = match self.engine.config.wait {
            WaitMode::Poll => None,
            WaitMode::Interrupt(_) => Some(Duration::ZERO),
            WaitMode::Adaptive { spin, .. } => Some(spin),
        };
        let mut looks = 0;
        let mut clock: Option<Clock> = None;
        loop {
            self.poll()?;
            if done(self) {
                return Ok(());
            }
            looks += 1;
            let sleepy = spin == Some(Duration::ZERO);
            if looks < LOOKS && !sleepy {
                std::hint::spin_loop();
                continue;
            }
            looks = 0;
            let now = Instant::now();
            let done_now = self.ring.done();
            let fresh = Clock { begin: now, moved: now, asked: now, done: done_now };
            let clock = clock.get_or_insert(fresh);
            if done_now != clock.done {
                (clock.done, clock.moved) = (done_now, now);
            }
            let late = deadline.is_some_and(|deadline| now >= deadline);
            if late || now - clock.moved.max(clock.asked) >= PATIENCE {
                clock.asked = now;
                self.check_device()?;
                if done(self) {
                    return Ok(());
                }
                if late {
                    let (location, channel) = (self.engine.location(), self.index);
                    let waited = now - clock.begin;
                    return Err(IoatError::Timeout { location, channel, what, waited });
                }
            }
            match spin {
                Some(spin) if now - clock.begin >= spin => self.sleep(deadline, &mut done)?,
                _ if now - clock.moved >= SPIN => std::thread::yield_now(),
                _ => {}
            }
        }
    }

    /// Sleeps until an interrupt, or for [`PATIENCE`].
    fn sleep(
        &mut self,
        deadline: Option<Instant>,
        done: &mut impl FnMut(&Channel) -> bool,
    ) -> Result<(), IoatError> {
        let Some(vector) = self.vector() else { return Ok(()) };
        // What ended before the interrupt was let through again raised none: look once more.
        self.rearm_interrupt()?;
        self.poll()?;
        if done(self) {
            return Ok(());
        }
        let left = deadline.map_or(PATIENCE, |d| d.saturating_duration_since(Instant::now()));
        let Some(interrupts) = &self.engine.interrupts else { return Ok(()) };
        match interrupts.wait(vector, left.min(PATIENCE)) {
            Ok(_) => self.stats.interrupts += 1,
            Err(IrqError::Timeout { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.engine.acknowledge()
    }

    /// The interrupt vector of the channel.
    fn vector(&self) -> Option<usize> {
        let interrupts = self.engine.interrupts.as_ref()?;
        let own = interrupts.kind() == crate::backend::IrqKind::MsiX;
        Some(if own { self.index.into() } else { 0 })
    }

    /// The eventfd that the channel's interrupt signals, for a caller's own event loop;
    /// `None` without interrupts. When it is readable, call [`Channel::service`].
    #[must_use]
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.engine.interrupts.as_ref()?.event(self.vector()?).ok()
    }

    /// What an event loop does when [`Channel::event`] is readable: ends what is done, wakes
    /// the tasks that wait for it, and lets the next interrupt through. Returns how many
    /// transfers ended.
    ///
    /// # Errors
    ///
    /// As [`Channel::poll`].
    pub fn service(&mut self) -> Result<usize, IoatError> {
        if let (Some(vector), Some(interrupts)) = (self.vector(), &self.engine.interrupts) {
            match interrupts.wait(vector, Duration::ZERO) {
                Ok(_) => {
                    self.stats.interrupts += 1;
                    self.engine.acknowledge()?;
                }
                Err(IrqError::Timeout { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let ended = self.poll()?;
        if self.order.is_empty() || self.engine.interrupts.is_none() {
            return Ok(ended);
        }
        // What ends from here on raises an interrupt; what ended just before is seen now.
        self.rearm_interrupt()?;
        Ok(ended + self.poll()?)
    }

    /// Takes a transfer that ended, or has the task woken when it does: by the call of
    /// [`Channel::service`], [`Channel::poll`] or a wait that ends it.
    ///
    /// # Errors
    ///
    /// As [`Channel::take`].
    pub fn poll_finished(
        &mut self,
        token: Token,
        context: &mut Context<'_>,
    ) -> Poll<Result<Finished, IoatError>> {
        match self.take(token) {
            Ok(Some(finished)) => return Poll::Ready(Ok(finished)),
            Ok(None) => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
        match self.job_mut(token) {
            Ok(job) => match &mut job.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            },
            Err(error) => return Poll::Ready(Err(error)),
        }
        Poll::Pending
    }
}

/// The times of a wait: its begin, the last progress, the last question to the device; and
/// how far the device was.
struct Clock {
    begin: Instant,
    moved: Instant,
    asked: Instant,
    done: u64,
}
