//! An I/O queue as a queue that is waited for.

use std::os::fd::{AsFd, BorrowedFd};
use std::task::Waker;
use std::time::Duration;

use super::{Finished, IoQueue, NvmeError, Token};
use crate::backend::IrqKind;
use crate::events::Events;
use crate::irq::Vector;
use crate::queue::{self, Queue, Transfers, Wakers};

impl Queue for IoQueue {
    type Error = NvmeError;

    fn issue(&mut self) -> Result<(), NvmeError> {
        IoQueue::issue(self)
    }

    fn poll(&mut self) -> Result<usize, NvmeError> {
        IoQueue::poll(self)
    }

    fn check_device(&mut self) -> Result<usize, NvmeError> {
        IoQueue::check_device(self)
    }

    fn done(&self) -> u64 {
        self.memory.pair.completion.taken()
    }

    fn in_flight(&self) -> usize {
        self.running
    }

    fn vector(&self) -> Option<&Vector> {
        self.wait.irq().and_then(|_| self.controller.vector(self.id))
    }

    fn events(&self) -> Option<&Events> {
        Some(&self.controller.events)
    }

    fn handle_event(&mut self) -> Result<(), NvmeError> {
        self.refuse_when_lost()?;
        self.end_by_event().map(drop)
    }

    fn arm_interrupt(&mut self) -> Result<(), NvmeError> {
        // Each completion raises one.
        Ok(())
    }

    fn acknowledge_interrupt(&mut self) -> Result<(), NvmeError> {
        self.stats.interrupts += 1;
        let is_level = self.vector().is_some_and(|vector| vector.kind() == IrqKind::Intx);
        if is_level {
            // The line falls when the head of the queue is told.
            IoQueue::poll(self)?;
            if let Some(vector) = self.vector() {
                vector.unmask()?;
            }
        }
        Ok(())
    }

    fn timeout(&self, what: &'static str, waited: Duration) -> NvmeError {
        self.controller.timeout(what, waited)
    }
}

impl Transfers for IoQueue {
    type Token = Token;
    type Output = Finished;

    fn take(&mut self, token: Token) -> Result<Option<Finished>, NvmeError> {
        IoQueue::take(self, token)
    }

    fn detach(&mut self, token: Token) -> Result<(), NvmeError> {
        IoQueue::detach(self, token)
    }

    fn set_waker(&mut self, token: Token, waker: Waker) -> Result<(), NvmeError> {
        IoQueue::set_waker(self, token, waker)
    }

    fn take_wakers(&mut self) -> Wakers {
        // Only who shares the queue asks, and wakes them while nothing is locked.
        self.is_shared = true;
        std::mem::take(&mut self.wakers)
    }

    fn no_such_transfer(&self) -> NvmeError {
        NvmeError::NoSuchTransfer
    }
}

impl IoQueue {
    /// Waits until a transfer ended, and takes it.
    ///
    /// # Errors
    ///
    /// [`NvmeError::Timeout`] when it does not end in time: it is still in flight then, and can
    /// be waited for again. As [`IoQueue::poll`] otherwise.
    pub fn wait(&mut self, token: Token, timeout: Duration) -> Result<Finished, NvmeError> {
        self.is_finished(token)?;
        let waited = self
            .wait_until(timeout, "the transfer", |queue| queue.is_finished(token).unwrap_or(true));
        // A lost queue has ended its transfers, and they say why.
        match self.take(token)? {
            Some(finished) => Ok(finished),
            None => Err(waited.err().unwrap_or(NvmeError::NoSuchTransfer)),
        }
    }

    /// Waits until nothing is in flight.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::wait`].
    pub fn wait_all(&mut self, timeout: Duration) -> Result<(), NvmeError> {
        self.wait_until(timeout, "all transfers", |queue| queue.running == 0)
    }

    /// Waits until a condition holds, at most for so long.
    pub(super) fn wait_until(
        &mut self,
        limit: Duration,
        what: &'static str,
        is_done: impl FnMut(&IoQueue) -> bool,
    ) -> Result<(), NvmeError> {
        let mode = self.wait;
        queue::wait_until(self, mode, limit, what, is_done)
    }

    /// The eventfd that the queue's interrupt signals, for a caller's own event loop; `None`
    /// without interrupts. When it is readable, call [`IoQueue::service`].
    #[must_use]
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.vector().map(AsFd::as_fd)
    }

    /// What an event loop does when [`IoQueue::event`] is readable: ends what is done, and wakes
    /// the tasks that wait for it. Returns how many transfers ended.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::poll`].
    pub fn service(&mut self) -> Result<usize, NvmeError> {
        queue::service(self)
    }
}
