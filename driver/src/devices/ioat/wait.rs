//! A channel as a queue that is waited for.

use std::os::fd::{AsFd, BorrowedFd};
use std::task::Waker;
use std::time::Duration;

use super::{Channel, Finished, IoatError, Token};
use crate::events::Events;
use crate::irq::Vector;
use crate::queue::{self, Queue, Transfers, Wakers};

impl Queue for Channel {
    type Error = IoatError;

    fn issue(&mut self) -> Result<(), IoatError> {
        Channel::issue(self)
    }

    fn poll(&mut self) -> Result<usize, IoatError> {
        Channel::poll(self)
    }

    fn check_device(&mut self) -> Result<usize, IoatError> {
        Channel::check_device(self)
    }

    fn done(&self) -> u64 {
        self.ring.producer().done()
    }

    fn in_flight(&self) -> usize {
        Channel::in_flight(self) + self.slots_in_flight()
    }

    fn vector(&self) -> Option<&Vector> {
        self.engine.vector(self.index)
    }

    fn events(&self) -> Option<&Events> {
        Some(&self.engine.events)
    }

    fn handle_event(&mut self) -> Result<(), IoatError> {
        self.refuse_when_lost()?;
        self.end_by_event().map(drop)
    }

    fn arm_interrupt(&mut self) -> Result<(), IoatError> {
        self.rearm_interrupt()
    }

    fn acknowledge_interrupt(&mut self) -> Result<(), IoatError> {
        self.stats.interrupts += 1;
        match self.engine.vector(self.index) {
            Some(vector) => self.engine.acknowledge(vector),
            None => Ok(()),
        }
    }

    fn timeout(&self, what: &'static str, waited: Duration) -> IoatError {
        let (location, channel) = (self.engine.location.clone(), self.index);
        IoatError::Timeout { location, channel, what, waited }
    }
}

impl Transfers for Channel {
    type Token = Token;
    type Output = Finished;

    fn take(&mut self, token: Token) -> Result<Option<Finished>, IoatError> {
        Channel::take(self, token)
    }

    fn detach(&mut self, token: Token) -> Result<(), IoatError> {
        Channel::detach(self, token)
    }

    fn set_waker(&mut self, token: Token, waker: Waker) -> Result<(), IoatError> {
        Channel::set_waker(self, token, waker)
    }

    fn take_wakers(&mut self) -> Wakers {
        std::mem::take(&mut self.wakers)
    }

    fn no_such_transfer(&self) -> IoatError {
        IoatError::NoSuchTransfer
    }
}

impl Channel {
    /// Waits until a transfer ended, and takes it.
    ///
    /// # Errors
    ///
    /// [`IoatError::Timeout`] when it does not end in time: it is still in flight then, and
    /// can be waited for again, or [`Channel::abort`]ed. As [`Channel::poll`] otherwise.
    pub fn wait(&mut self, token: Token, timeout: Duration) -> Result<Finished, IoatError> {
        self.is_finished(token)?;
        let waited = self.wait_until(timeout, "the transfer", |channel| {
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
        self.wait_until(timeout, "all transfers", |channel| Queue::in_flight(channel) == 0)
    }

    /// Waits until a condition holds, at most for so long.
    pub(super) fn wait_until(
        &mut self,
        limit: Duration,
        what: &'static str,
        is_done: impl FnMut(&Channel) -> bool,
    ) -> Result<(), IoatError> {
        let mode = self.engine.config.wait;
        queue::wait_until(self, mode, limit, what, is_done)
    }

    /// The eventfd that the channel's interrupt signals, for a caller's own event loop;
    /// `None` without interrupts. When it is readable, call [`Channel::service`].
    #[must_use]
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.engine.vector(self.index).map(AsFd::as_fd)
    }

    /// What an event loop does when [`Channel::event`] is readable: ends what is done, wakes
    /// the tasks that wait for it, and lets the next interrupt through. Returns how many
    /// transfers ended.
    ///
    /// # Errors
    ///
    /// As [`Channel::poll`].
    pub fn service(&mut self) -> Result<usize, IoatError> {
        queue::service(self)
    }
}
