//! An I/O queue: how it is made and how it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::controller::{Condition, Shared, State};
use super::data::Shape;
use super::pair::{ListPool, Pair};
use super::rings::{Completions, Submissions};
use super::transfer::{Job, Remaining};
use super::{DataMethod, Namespace, NvmeError};
use crate::backend::IrqKind;
use crate::queue::{Held, InFlight, QueueError, Slot, WaitMode, Wakers};

/// How an I/O queue is to be driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueConfig {
    /// Entries of its submission and of its completion queue: from 2 to 4096, and to what the
    /// controller takes. One less can be in flight.
    pub size: u32,
    /// How waits learn of completion; `None` as the controller's
    /// [`Config::wait`](super::Config::wait).
    pub wait: Option<WaitMode>,
    /// How the controller is told where data is.
    pub method: DataMethod,
    /// How long a command may take before it is aborted. It is found out in a wait, and at every
    /// 1024th [`IoQueue::poll`], and is counted from the first of these on.
    pub timeout: Duration,
    /// How long a command that was aborted may take to end before the controller is reset.
    pub abort_grace: Duration,
    /// The most bytes of one command, besides the controller's own limit; longer transfers
    /// become several.
    pub max_transfer: u64,
    /// Whether the queue lies in the controller memory buffer, as far as that takes it and has
    /// room ([`Config::memory_buffer`](super::Config::memory_buffer) switches it on): what is
    /// submitted is written over the bus then, and the controller reads it at home.
    pub memory_buffer: bool,
    /// Pages for the list of one command, at least 1: 512 PRP entries or 256 SGL descriptors
    /// each, with pages of 4 KiB. A transfer that needs more becomes several commands.
    pub list_pages: u32,
}

impl Default for QueueConfig {
    fn default() -> Self {
        QueueConfig {
            size: 128,
            wait: None,
            method: DataMethod::Auto,
            timeout: Duration::from_secs(30),
            abort_grace: Duration::from_secs(5),
            max_transfer: 1 << 20,
            memory_buffer: false,
            list_pages: 1,
        }
    }
}

/// What a queue did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Stats {
    /// Transfers that ended, well or not.
    pub transfers: u64,
    /// Commands that the controller was told of.
    pub commands: u64,
    /// Doorbell registers written for commands.
    pub doorbells: u64,
    /// Doorbells for commands that the controller found in memory: no register was written.
    pub shadow_doorbells: u64,
    /// Doorbell registers written for completions that were taken.
    pub head_doorbells: u64,
    /// Times that registers were written for doorbells in memory after all, because nothing had
    /// moved for 10 ms and the controller may have missed them.
    pub repeated_doorbells: u64,
    /// Interrupts waited for that came.
    pub interrupts: u64,
    /// Commands that did not end in time.
    pub timeouts: u64,
    /// Times that the queue was made again after the controller was reset.
    pub recoveries: u64,
    /// Transfers that went through a bounce buffer.
    pub bounced: u64,
}

/// A command in flight.
#[derive(Debug)]
pub(super) struct InCommand {
    pub(super) slot: Slot,
    pub(super) lba: u64,
    pub(super) blocks: u64,
    /// Set at the first look at the clock after it was submitted.
    pub(super) deadline: Option<Instant>,
    /// It did not end in time, and the controller was asked to give it up.
    pub(super) is_late: bool,
}

/// What the controller reaches as long as the queue is there.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) pair: Pair<InCommand>,
    pub(super) lists: ListPool,
}

/// One pair of I/O queues of a controller, for one thread.
///
/// Dropping it ends what is in flight, and then frees the buffers.
#[derive(Debug)]
pub struct IoQueue {
    pub(super) controller: Arc<Shared>,
    pub(super) id: u16,
    pub(super) config: QueueConfig,
    pub(super) wait: WaitMode,
    pub(super) memory: Held<Memory>,
    /// Every transfer that was not taken.
    pub(super) jobs: InFlight<Job>,
    /// Transfers that have not ended.
    pub(super) running: usize,
    /// The youngest, while commands of it wait for room.
    pub(super) feeding: Option<Remaining>,
    /// The controller's epoch that the queue was made in.
    pub(super) epoch: u64,
    /// Why nothing is taken on any more.
    pub(super) lost: Option<String>,
    /// Polls until the clock is looked at.
    pub(super) polls: u32,
    /// Completions that were taken, when they last had changed at a look at the clock.
    pub(super) progress: Option<(u64, Instant)>,
    pub(super) wakers: Wakers,
    pub(super) is_shared: bool,
    pub(super) stats: Stats,
}

impl IoQueue {
    pub(super) fn open(
        controller: &Arc<Shared>,
        config: QueueConfig,
    ) -> Result<IoQueue, NvmeError> {
        controller.check_alive()?;
        let most = controller.cap.max_entries().min(4096);
        if !(2..=most).contains(&config.size) {
            return Err(QueueError::Size { size: config.size, least: 2, most }.into());
        }
        let id = controller.claim()?;
        let opened = IoQueue::with_id(controller, config, id);
        if opened.is_err() {
            controller.release(id);
        }
        opened
    }

    fn with_id(
        controller: &Arc<Shared>,
        config: QueueConfig,
        id: u16,
    ) -> Result<IoQueue, NvmeError> {
        let wait = config.wait.or(controller.config.wait).unwrap_or(WaitMode::Poll);
        let vector = controller.vector(id);
        // The one vector of MSI and INTx is the first queue's; others are polled.
        let enabled = controller.vectors.first().map(crate::irq::Vector::kind);
        let wait = match wait.irq() {
            Some(kind) if vector.map(crate::irq::Vector::kind) != Some(kind) => {
                if config.wait.is_none() {
                    WaitMode::Poll
                } else {
                    let (location, vectors) =
                        (controller.location.clone(), controller.vectors.len());
                    return Err(NvmeError::NoVector {
                        location,
                        queue: id,
                        kind,
                        enabled,
                        vectors,
                    });
                }
            }
            _ => wait,
        };
        let (allocator, page) = (&controller.allocator, controller.page);
        let stride = controller.cap.doorbell_stride();
        let buffer = controller.buffer.as_ref().filter(|_| config.memory_buffer);
        if config.memory_buffer && !buffer.is_some_and(|buffer| buffer.uses().takes_submissions()) {
            let what = "queues in a controller memory buffer, or Config::memory_buffer is off";
            return Err(NvmeError::NotOffered { location: controller.location.clone(), what });
        }
        let mut pair = Pair::new(allocator, (id, config.size), page, stride, buffer)?;
        pair.is_level = wait.irq() == Some(IrqKind::Intx);
        let capacity = pair.tags.capacity();
        let lists = ListPool::new(allocator, capacity, config.list_pages.max(1) as usize, page)?;
        let device = controller.device();
        let mut memory = Held::new(&device, Memory { pair, lists });
        let jobs = InFlight::with_capacity(&device, capacity);
        drop(device);
        let mut admin = controller.admin();
        let epoch = controller.epoch();
        let created = controller.create_pair(&mut admin, &memory.pair, wait.irq().is_some());
        drop(admin);
        match created {
            Ok(()) => {}
            // The controller refused, or was reset: it does not know the queue.
            Err(error @ NvmeError::Command { .. }) => {
                memory.release();
                return Err(error);
            }
            Err(error) => {
                if controller.condition().state != (State::Dead { is_quiet: false }) {
                    memory.release();
                }
                return Err(error);
            }
        }
        Ok(IoQueue {
            controller: Arc::clone(controller),
            id,
            config,
            wait,
            memory,
            jobs,
            running: 0,
            feeding: None,
            epoch,
            lost: None,
            polls: 0,
            progress: None,
            wakers: Wakers::default(),
            is_shared: false,
            stats: Stats::default(),
        })
    }

    /// The number of the queue, from 1 on.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Whether its submission and its completion queue lie in the controller memory buffer.
    #[must_use]
    pub fn in_memory_buffer(&self) -> (bool, bool) {
        let pair = &self.memory.pair;
        let submission = matches!(pair.submission, Submissions::Buffer(..));
        (submission, matches!(pair.completion, Completions::Buffer(_)))
    }

    /// What the queue did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Commands that can be submitted now.
    #[must_use]
    pub fn free(&self) -> usize {
        self.memory.pair.free()
    }

    /// Transfers that are submitted and have not ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.running
    }

    /// Whether the queue was given up after a failure.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// How the controller is told where the data of later transfers is.
    pub fn set_method(&mut self, method: DataMethod) {
        self.config.method = method;
    }

    /// The most bytes of one command to a namespace.
    #[must_use]
    pub fn max_transfer(&self, namespace: &Namespace) -> u64 {
        self.shape(namespace.block_size.into()).max_bytes
    }

    /// What the data of a command may look like.
    pub(super) fn shape(&self, block: u64) -> Shape {
        let controller = &**self.controller;
        let block = block.max(1);
        let most = controller.info.max_transfer.unwrap_or(u64::MAX).min(self.config.max_transfer);
        // A command counts its blocks in 16 bits.
        let max_bytes = most.min(block << 16).max(block);
        let alignment = if controller.info.sgl_is_dword_aligned() { 4 } else { 1 };
        Shape {
            page: controller.page,
            block,
            max_bytes: max_bytes - max_bytes % block,
            list_pages: self.config.list_pages.max(1).into(),
            max_pieces: controller.quirks.max_pieces.unwrap_or(u64::MAX),
            sgl_alignment: controller.info.takes_sgl().then_some(alignment),
        }
    }

    pub(super) fn refuse_when_lost(&self) -> Result<(), NvmeError> {
        match &self.lost {
            None => Ok(()),
            Some(why) => match &*self.controller.condition() {
                condition @ Condition { state: State::Dead { .. }, .. } => {
                    Err(self.controller.given_up(condition))
                }
                _ => Err(self.controller.lost(why)),
            },
        }
    }

    /// Ends what is in flight; whether the controller is known to be done with the queue.
    fn close(&mut self) -> bool {
        let mut admin = self.controller.admin();
        let is_current = self.controller.epoch() == self.epoch && self.lost.is_none();
        if is_current
            && self.controller.check_alive().is_ok()
            && let Err(error) = self.controller.delete_pair(&mut admin, self.id)
        {
            log::warn!("{error}");
            if let NvmeError::Command { .. } = error {
                // It keeps the queue: a reset takes it.
                self.controller.reset(&mut admin, &error.to_string());
            }
        }
        self.controller.condition().state != (State::Dead { is_quiet: false })
    }
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        if self.close() {
            self.memory.release();
            self.jobs.complete_all().for_each(drop);
        } else {
            self.jobs.park();
        }
        self.controller.release(self.id);
    }
}
