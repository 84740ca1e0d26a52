//! Transfers: submitted, cut into commands, ended, taken.

use std::ops::Range;
use std::task::Waker;
use std::time::Duration;

use super::bounce::{self, Copy};
use super::command::{Command, Completed, DataPointer, nvm};
use super::copy;
use super::data::{Cursor, Described, ListMemory};
use super::io::InCommand;
use super::shadow::Rung;
use super::submit::Target;
use super::{CopyLimits, DataMethod, Finished, IoQueue, NvmeError, TransferError};
use crate::dma::{Buffer, Direction, SgTable};
use crate::queue::{Slot, Tags};

/// Polls between two looks at the clock, for deadlines.
const POLLS: u32 = 1024;

/// Names a transfer of a queue.
///
/// It can be copied; once the transfer's result was taken, it names nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub(super) Slot);

/// What a submission does when the queue has no room.
///
/// A transfer of several commands needs room for the first; the others are fed by
/// [`IoQueue::poll`] and by every wait. Until they are in, the queue has no room for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It is refused.
    Return,
    /// It waits for so long, then it is refused.
    Wait(Duration),
}

/// What a transfer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Compare,
    Flush,
    WriteZeroes,
    Deallocate,
    Verify,
    Copy,
}

impl Operation {
    pub(super) fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Compare => "compare",
            Operation::Flush => "flush",
            Operation::WriteZeroes => "write zeroes",
            Operation::Deallocate => "deallocate",
            Operation::Verify => "verify",
            Operation::Copy => "copy",
        }
    }

    fn opcode(self) -> u8 {
        match self {
            Operation::Read => nvm::READ,
            Operation::Write => nvm::WRITE,
            Operation::Compare => nvm::COMPARE,
            Operation::Flush => nvm::FLUSH,
            Operation::WriteZeroes => nvm::WRITE_ZEROES,
            Operation::Deallocate => nvm::DATASET_MANAGEMENT,
            Operation::Verify => nvm::VERIFY,
            Operation::Copy => nvm::COPY,
        }
    }

    pub(super) fn direction(self) -> Direction {
        match self {
            Operation::Read => Direction::FromDevice,
            _ => Direction::ToDevice,
        }
    }
}

/// A transfer, from its submission until its result is taken.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) operation: Operation,
    namespace: u32,
    lba: u64,
    /// Bytes of a block.
    block: u64,
    /// `None` for a command without data, and when the device keeps it.
    pub(super) table: Option<SgTable>,
    bounce: Option<Box<Buffer>>,
    described: Described,
    method: DataMethod,
    /// What a copy command copies, and the namespace's limits for it.
    sources: Vec<Range<u64>>,
    copy_limits: CopyLimits,
    /// Commands in flight.
    pub(super) outstanding: u32,
    commands: u32,
    /// The first error of its commands.
    pub(super) error: Option<Box<TransferError>>,
    pub(super) result: Option<Result<(), Box<TransferError>>>,
    waker: Option<Waker>,
    /// Nobody asks for the result.
    detached: bool,
}

impl Job {
    /// Counts the first error of a transfer.
    pub(super) fn fail(&mut self, error: TransferError) {
        self.error.get_or_insert_with(|| Box::new(error));
    }
}

/// What of a transfer waits for room in the queue.
#[derive(Debug)]
pub(super) struct Remaining {
    pub(super) slot: Slot,
    at: Cursor,
    /// Bytes of blocks that commands were made for.
    done: u64,
    /// Bytes that are left.
    left: u64,
}

impl IoQueue {
    /// Keeps what a transfer needs, and makes commands of it.
    pub(super) fn start(
        &mut self,
        target: &Target<'_>,
        table: Option<SgTable>,
        described: Described,
        method: DataMethod,
        bounce: Option<Box<Buffer>>,
    ) -> Token {
        let Target { operation, namespace, lba, blocks, sources } = *target;
        let block = u64::from(namespace.block_size);
        let job = Job {
            operation,
            namespace: namespace.id,
            lba,
            block,
            table,
            bounce,
            described,
            method,
            // Of no sources there is nothing to allocate.
            sources: sources.to_vec(),
            copy_limits: namespace.copy_limits,
            outstanding: 0,
            commands: 0,
            error: None,
            result: None,
            waker: None,
            detached: false,
        };
        let slot = self.jobs.insert(job);
        self.running += 1;
        self.feed(Remaining { slot, at: Cursor::default(), done: 0, left: blocks * block });
        Token(slot)
    }

    /// Makes commands of what waits for room.
    pub(super) fn feed_remaining(&mut self) {
        if let Some(remaining) = self.feeding.take() {
            self.feed(remaining);
        }
    }

    /// Makes as many commands of a transfer as there is room for.
    fn feed(&mut self, remaining: Remaining) {
        let Remaining { slot, mut at, mut done, mut left } = remaining;
        let block = self.jobs.get(slot).map_or(512, |job| job.block);
        let shape = self.shape(block);
        let Some(job) = self.jobs.get_mut(slot) else { return };
        let memory = &mut *self.memory;
        while left > 0 {
            let Some(tag) = memory.pair.tags.next_tag().filter(|_| memory.pair.free() > 0) else {
                break;
            };
            let mut lists = memory.lists.of(Tags::<InCommand>::index(tag));
            let lba = job.lba + done / block;
            let mut command = Command::new(job.operation.opcode(), job.namespace);
            let segments = match (&job.bounce, &job.table) {
                (Some(bounce), _) => bounce.segments(),
                (None, Some(table)) => table.list().segments(),
                (None, None) => &[],
            };
            let bytes = if !job.sources.is_empty() {
                let (sources, at) = (&job.sources, (done / block, lba));
                let limits = job.copy_limits;
                copy::build(&mut command, sources, at, limits, shape.page, &mut lists) * block
            } else if segments.is_empty() {
                without_data(
                    &mut command,
                    job.operation,
                    lba,
                    (left, shape.max_bytes),
                    block,
                    &mut lists,
                )
            } else {
                let (data, bytes) = shape.build(job.described, segments, &mut at, left, &mut lists);
                command.data = data;
                read_or_write(&mut command, lba, bytes / block);
                bytes
            };
            let blocks = bytes / block;
            let item = InCommand { slot, lba, blocks, deadline: None, is_late: false };
            // What describes a list has said that every part of it can be described.
            if bytes == 0 || memory.pair.push(&command, item).is_err() {
                job.fail(TransferError::Lost("a list has no command".into()));
                left = 0;
                break;
            }
            (done, left) = (done + bytes, left - bytes);
            job.outstanding += 1;
            job.commands += 1;
            self.stats.commands += 1;
        }
        if left > 0 {
            self.feeding = Some(Remaining { slot, at, done, left });
        } else if job.outstanding == 0 {
            self.end(slot);
        }
    }

    /// Tells the controller of everything that was submitted since the last time, with one
    /// write of its doorbell; of its shadow alone while the controller looks at that by itself.
    ///
    /// # Errors
    ///
    /// Fails when the register cannot be reached, and when there is an event of the function
    /// ([`Nvme::device_events`](super::Nvme::device_events)): the queue is lost then, and every
    /// transfer in flight ended.
    #[inline]
    pub fn issue(&mut self) -> Result<(), NvmeError> {
        if self.controller.events.check().is_err() && self.lost.is_none() {
            return self.end_by_event().map(drop);
        }
        let condition = self.controller.condition();
        // After a reset there is no queue that a doorbell could be of.
        if condition.epoch == self.epoch {
            match self.memory.pair.ring(self.controller.doorbells())? {
                Some(Rung::Register) => self.stats.doorbells += 1,
                Some(Rung::Shadow) => self.stats.shadow_doorbells += 1,
                None => {}
            }
        }
        Ok(())
    }

    /// Looks at the completion queue, in memory, and ends the transfers that are done; returns
    /// how many ended. What waits for room goes on.
    ///
    /// A failure of a command, or of the controller, ends transfers with their own errors; it
    /// is not an error of this call.
    ///
    /// # Errors
    ///
    /// Fails when the controller cannot be reached or set up again: the queue is lost then,
    /// and every transfer in flight ended.
    #[inline]
    pub fn poll(&mut self) -> Result<usize, NvmeError> {
        if self.controller.epoch() != self.epoch {
            return self.resync();
        }
        if self.running == 0 {
            return Ok(0);
        }
        let mut ended = self.reap()?;
        self.polls += 1;
        if self.polls >= POLLS {
            ended += self.check_deadlines()?;
        }
        self.run_wakers();
        Ok(ended)
    }

    /// Takes the completions that are there; returns how many transfers ended.
    #[inline]
    fn reap(&mut self) -> Result<usize, NvmeError> {
        let before = self.running;
        let mut is_new = false;
        // A lap at most, however fast a device completes.
        for _ in 0..self.config.size {
            match self.memory.pair.reap() {
                Ok(None) if !is_new && self.controller.events.check().is_err() => {
                    return self.end_by_event();
                }
                Ok(None) => break,
                Ok(Some((completed, command))) => self.command_ended(&completed, &command),
                Err(nonsense) => {
                    let ended = before - self.running;
                    return Ok(ended + self.reset_controller(&nonsense.to_string())?);
                }
            }
            is_new = true;
        }
        if is_new {
            let condition = self.controller.condition();
            let is_current = condition.epoch == self.epoch;
            if is_current
                && self.memory.pair.acknowledge(self.controller.doorbells())?
                    == Some(Rung::Register)
            {
                self.stats.head_doorbells += 1;
            }
            drop(condition);
            if self.feeding.is_some() {
                self.feed_remaining();
                self.issue()?;
            }
        }
        Ok(before - self.running)
    }

    /// A command has ended.
    #[inline]
    pub(super) fn command_ended(&mut self, completed: &Completed, command: &InCommand) {
        let slot = command.slot;
        let Some(job) = self.jobs.get_mut(slot) else { return };
        job.outstanding -= 1;
        let mut is_fed = self.feeding.as_ref().is_some_and(|feeding| feeding.slot == slot);
        if !completed.status.is_success() {
            let (lba, blocks, name) = (command.lba, command.blocks, job.operation.name());
            let error = if command.is_late && completed.status.is_abort() {
                let waited = self.config.timeout;
                TransferError::TimedOut { command: name, lba, blocks, waited }
            } else {
                TransferError::Status { command: name, lba, blocks, status: completed.status }
            };
            job.fail(error);
            // The rest of it is not tried.
            if is_fed {
                self.feeding = None;
                is_fed = false;
            }
        }
        if job.outstanding == 0 && !is_fed {
            self.end(slot);
        }
    }

    /// Ends a transfer that has no command in flight.
    pub(super) fn end(&mut self, slot: Slot) {
        let Some(job) = self.jobs.get_mut(slot) else { return };
        let bounce = job.bounce.take();
        if let (None, Some(bounce), Some(table)) = (&job.error, &bounce, &job.table)
            && job.operation == Operation::Read
            && let Err(error) = bounce::copy(table, bounce, Copy::Out)
        {
            job.fail(TransferError::Bounce(error.to_string()));
        }
        job.result = Some(job.error.take().map_or(Ok(()), Err));
        if let Some(waker) = job.waker.take() {
            self.wakers.wake.push(waker);
        }
        self.running -= 1;
        self.stats.transfers += 1;
        if job.detached {
            self.jobs.complete(slot);
        }
    }

    /// Ends a transfer whose memory the controller may still reach.
    pub(super) fn end_and_park(&mut self, slot: Slot) {
        let Some(job) = self.jobs.get_mut(slot) else { return };
        self.controller.device().park((job.table.take(), job.bounce.take()));
        self.end(slot);
    }

    /// Wakes who waits, unless an owner does that later.
    #[inline]
    pub(super) fn run_wakers(&mut self) {
        if !self.is_shared && !self.wakers.is_empty() {
            std::mem::take(&mut self.wakers).run();
        }
    }

    /// Whether a transfer ended, well or not.
    ///
    /// # Errors
    ///
    /// [`NvmeError::NoSuchTransfer`] when its result was taken.
    #[inline]
    pub fn is_finished(&self, token: Token) -> Result<bool, NvmeError> {
        match self.jobs.get(token.0) {
            Some(job) if !job.detached => Ok(job.result.is_some()),
            _ => Err(NvmeError::NoSuchTransfer),
        }
    }

    /// The result of a transfer and its list; `None` while it is in flight.
    ///
    /// # Errors
    ///
    /// [`NvmeError::NoSuchTransfer`] when it was taken before.
    pub fn take(&mut self, token: Token) -> Result<Option<Finished>, NvmeError> {
        if !self.is_finished(token)? {
            return Ok(None);
        }
        let job = self.jobs.complete(token.0).ok_or(NvmeError::NoSuchTransfer)?;
        let Job { table, result, method, commands, .. } = job;
        let result = result.unwrap_or(Ok(())).map_err(|error| *error);
        Ok(Some(Finished { result, table, method, commands }))
    }

    /// Gives a transfer's result up: its buffers are dropped when it ends.
    ///
    /// # Errors
    ///
    /// [`NvmeError::NoSuchTransfer`] when it was taken before.
    pub fn detach(&mut self, token: Token) -> Result<(), NvmeError> {
        if self.is_finished(token)? {
            self.jobs.complete(token.0);
        } else if let Some(job) = self.jobs.get_mut(token.0) {
            job.detached = true;
            self.wakers.discard.extend(job.waker.take());
        }
        Ok(())
    }

    /// Has this waker woken when the transfer ends.
    ///
    /// # Errors
    ///
    /// [`NvmeError::NoSuchTransfer`] when the result was taken before.
    pub fn set_waker(&mut self, token: Token, waker: Waker) -> Result<(), NvmeError> {
        let is_finished = self.is_finished(token);
        match (is_finished, self.jobs.get_mut(token.0)) {
            (Ok(false), Some(job)) => self.wakers.discard.extend(job.waker.replace(waker)),
            (Ok(_), _) => self.wakers.wake.push(waker),
            (Err(error), _) => {
                self.wakers.discard.push(waker);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The blocks of a read, write, compare, write zeroes or verify command (NVM command set).
fn read_or_write(command: &mut Command, lba: u64, blocks: u64) {
    (command.words[0], command.words[1]) = (lba as u32, (lba >> 32) as u32);
    command.words[2] = blocks.saturating_sub(1) as u32 & 0xffff;
}

/// Makes a command without data of as many of the bytes left as it can have; returns them.
fn without_data(
    command: &mut Command,
    operation: Operation,
    lba: u64,
    (left, max_bytes): (u64, u64),
    block: u64,
    lists: &mut impl ListMemory,
) -> u64 {
    match operation {
        Operation::Flush => left,
        Operation::Deallocate => {
            // One range: its attributes and length, and its first block.
            let blocks = (left / block).min(u32::MAX.into());
            lists.write(0, 0, blocks << 32);
            lists.write(0, 1, lba);
            command.data = DataPointer::page(lists.address(0));
            // The number of ranges less 1 is 0; they are to be deallocated.
            command.words[1] = 1 << 2;
            blocks * block
        }
        // Not bound by MDTS as it is, but not all controllers know.
        _ => {
            let bytes = left.min(max_bytes);
            read_or_write(command, lba, bytes / block);
            bytes
        }
    }
}
