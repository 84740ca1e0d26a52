//! A channel for several threads and tasks.

use super::{Channel, IoatError, Refused, Stats, WhenFull};
use crate::dma::SgTable;
use crate::queue::{self, SharedQueue};

/// A transfer of a [`SharedChannel`]: a future, or something to wait for.
pub type Completion = queue::Completion<Channel>;

/// A channel that threads and tasks share: its transfers are futures, for any executor.
///
/// A thread of its own sleeps until the channel's interrupt, ends what is done and wakes
/// who waits for it. A program with an event loop of its own does without that thread: it
/// keeps the [`Channel`], registers [`Channel::event`], calls [`Channel::service`], and
/// makes futures of [`Channel::take`] and [`Channel::set_waker`].
///
/// The last clone to be dropped, [`Completion`]s counted in, stops the channel.
#[derive(Debug, Clone)]
pub struct SharedChannel(SharedQueue<Channel>);

impl SharedChannel {
    /// Shares a channel and starts its thread.
    ///
    /// # Errors
    ///
    /// Fails when the kernel refuses an eventfd or a thread.
    pub fn new(mut channel: Channel) -> Result<SharedChannel, IoatError> {
        channel.is_shared = true;
        Ok(SharedChannel(SharedQueue::new(channel, "ioat")?))
    }

    /// Starts a copy.
    ///
    /// # Errors
    ///
    /// As [`Channel::copy`]; a full ring refuses.
    pub fn copy(&self, source: SgTable, target: SgTable) -> Result<Completion, Refused> {
        self.0.submit(|channel| channel.copy(source, target, WhenFull::Return))
    }

    /// Starts a fill.
    ///
    /// # Errors
    ///
    /// As [`Channel::fill`]; a full ring refuses.
    pub fn fill(&self, target: SgTable, pattern: u64) -> Result<Completion, Refused> {
        self.0.submit(|channel| channel.fill(target, pattern, WhenFull::Return))
    }

    /// What the channel did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.0.with(|channel| channel.stats())
    }

    /// As [`Channel::abort`].
    ///
    /// # Errors
    ///
    /// As [`Channel::abort`].
    pub fn abort(&self) -> Result<(), IoatError> {
        self.0.with(Channel::abort)
    }
}
