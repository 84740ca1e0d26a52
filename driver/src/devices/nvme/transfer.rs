//! Transfers: submitted, cut into commands, ended, taken.

use std::task::Waker;
use std::time::Duration;

use super::bounce::{self, Copy};
use super::command::{Command, Completed, DataPointer, nvm};
use super::data::{Cursor, Described, ListMemory};
use super::io::InCommand;
use super::{
    DataMethod, Finished, IoQueue, Namespace, NvmeError, Refused, TransferError, Writable,
};
use crate::dma::{Buffer, Direction, Request, SgTable};
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
        }
    }

    fn direction(self) -> Direction {
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
    bounce: Option<Buffer>,
    described: Described,
    method: DataMethod,
    /// Commands in flight.
    pub(super) outstanding: u32,
    commands: u32,
    /// The first error of its commands.
    pub(super) error: Option<TransferError>,
    pub(super) result: Option<Result<(), Box<TransferError>>>,
    waker: Option<Waker>,
    /// Nobody asks for the result.
    detached: bool,
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

/// What is to be done with which blocks.
#[derive(Debug, Clone, Copy)]
struct Target<'a> {
    operation: Operation,
    namespace: &'a Namespace,
    lba: u64,
    blocks: u64,
}

impl IoQueue {
    /// Submits a read of as many blocks as a list has bytes for; the controller begins with
    /// [`IoQueue::issue`], or with a wait.
    ///
    /// # Errors
    ///
    /// Gives the list back when it is not a whole number of blocks, the blocks are not inside
    /// the namespace, the list is mapped elsewhere or for another direction, or cannot be
    /// described, the queue has no room, or was lost.
    pub fn read(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        table: SgTable,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        self.submit_table(Operation::Read, namespace, lba, table, when_full)
    }

    /// Submits a write of a list to blocks that may be written.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::read`], and for blocks outside of what may be written.
    pub fn write(
        &mut self,
        writable: &Writable,
        lba: u64,
        table: SgTable,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        let namespace = writable.namespace;
        let blocks = table.list().len() / u64::from(namespace.block_size).max(1);
        if let Err(error) = writable.check(lba, blocks) {
            return Err(Refused { error, table: Some(table) });
        }
        self.submit_table(Operation::Write, &namespace, lba, table, when_full)
    }

    /// Submits a comparison of a list with blocks; one that differs ends with a
    /// status that [`is_compare_failure`](super::Status::is_compare_failure).
    ///
    /// # Errors
    ///
    /// As [`IoQueue::read`], and when the controller does not offer it.
    pub fn compare(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        table: SgTable,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        if let Err(error) = self.require(self.controller.info.can_compare(), "the compare command")
        {
            return Err(Refused { error, table: Some(table) });
        }
        self.submit_table(Operation::Compare, namespace, lba, table, when_full)
    }

    /// Submits a flush: what was written, and has ended, is on the medium when it ends.
    ///
    /// # Errors
    ///
    /// Fails when the queue has no room, or was lost.
    pub fn flush(&mut self, namespace: &Namespace, when_full: WhenFull) -> Result<Token, Refused> {
        self.submit_blocks(Operation::Flush, namespace, 0, 1, when_full)
    }

    /// Submits a verification: the controller reads blocks and reports errors, without a
    /// transfer of data.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::read`], and when the controller does not offer it.
    pub fn verify(
        &mut self,
        namespace: &Namespace,
        lba: u64,
        blocks: u64,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        self.require(self.controller.info.can_verify(), "the verify command")
            .map_err(|error| Refused { error, table: None })?;
        self.submit_blocks(Operation::Verify, namespace, lba, blocks, when_full)
    }

    /// Submits zeroing of blocks that may be written.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::write`], and when the controller does not offer it.
    pub fn write_zeroes(
        &mut self,
        writable: &Writable,
        lba: u64,
        blocks: u64,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        let offered = self.controller.info.can_write_zeroes();
        self.require(offered, "the write zeroes command")
            .and_then(|()| writable.check(lba, blocks))
            .map_err(|error| Refused { error, table: None })?;
        self.submit_blocks(Operation::WriteZeroes, &writable.namespace, lba, blocks, when_full)
    }

    /// Submits the deallocation of blocks that may be written: what they read as afterwards is
    /// the controller's choice.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::write`], and when the controller does not offer it.
    pub fn deallocate(
        &mut self,
        writable: &Writable,
        lba: u64,
        blocks: u64,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        let offered = self.controller.info.can_deallocate();
        self.require(offered, "the dataset management command")
            .and_then(|()| writable.check(lba, blocks))
            .map_err(|error| Refused { error, table: None })?;
        self.submit_blocks(Operation::Deallocate, &writable.namespace, lba, blocks, when_full)
    }

    fn require(&self, offered: bool, what: &'static str) -> Result<(), NvmeError> {
        if offered {
            return Ok(());
        }
        Err(NvmeError::NotOffered { location: self.controller.location.clone(), what })
    }

    fn submit_table(
        &mut self,
        operation: Operation,
        namespace: &Namespace,
        lba: u64,
        table: SgTable,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        let blocks = table.list().len() / u64::from(namespace.block_size).max(1);
        let target = Target { operation, namespace, lba, blocks };
        let checked = self.check(&target, Some(&table), when_full);
        match checked.and_then(|()| self.describe(&target, &table)) {
            Ok((described, method, bounce)) => {
                Ok(self.start(&target, Some(table), described, method, bounce))
            }
            Err(error) => Err(Refused { error, table: Some(table) }),
        }
    }

    fn submit_blocks(
        &mut self,
        operation: Operation,
        namespace: &Namespace,
        lba: u64,
        blocks: u64,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        let target = Target { operation, namespace, lba, blocks };
        match self.check(&target, None, when_full) {
            Ok(()) => Ok(self.start(&target, None, Described::Prp, DataMethod::Auto, None)),
            Err(error) => Err(Refused { error, table: None }),
        }
    }

    /// Checks everything that can be known before the controller is told anything.
    fn check(
        &mut self,
        target: &Target<'_>,
        table: Option<&SgTable>,
        when_full: WhenFull,
    ) -> Result<(), NvmeError> {
        if self.controller.epoch() != self.epoch {
            self.resync()?;
        }
        self.refuse_when_lost()?;
        let Target { namespace, lba, blocks, operation } = *target;
        let location = &self.controller.location;
        if namespace.controller != self.controller.instance {
            let (location, namespace) = (location.clone(), namespace.id);
            return Err(NvmeError::NoNamespace { location, namespace });
        }
        namespace.check_format(location)?;
        let (len, block_size) = (table.map_or(0, |table| table.list().len()), namespace.block_size);
        if len % u64::from(block_size) != 0 {
            return Err(NvmeError::PartOfBlock { len, block_size });
        }
        let end = lba.checked_add(blocks).filter(|&end| end <= namespace.blocks);
        if end.is_none() || blocks == 0 {
            let (size, namespace) = (namespace.blocks, namespace.id);
            return Err(NvmeError::OutOfRange { lba, blocks, namespace, size });
        }
        if let Some(table) = table {
            if !table.is_in(self.controller.allocator.space()) {
                return Err(NvmeError::ForeignBuffer { location: location.clone() });
            }
            let need = operation.direction();
            if let Some(have) = table.wrong_direction(need) {
                return Err(NvmeError::WrongDirection { have, need });
            }
            if operation == Operation::Read {
                // The controller may write in any order: what arrives would be chance.
                table.list().check_disjoint()?;
            }
        }
        self.make_room(when_full)
    }

    fn make_room(&mut self, when_full: WhenFull) -> Result<(), NvmeError> {
        let has_room = |q: &IoQueue| q.feeding.is_none() && q.memory.pair.free() > 0;
        if has_room(self) {
            return Ok(());
        }
        if let WhenFull::Wait(limit) = when_full {
            let is_done = |q: &IoQueue| q.lost.is_some() || has_room(q);
            match self.wait_until(limit, "room in the queue", is_done) {
                Ok(()) | Err(NvmeError::Timeout { .. }) => {}
                Err(error) => return Err(error),
            }
            self.refuse_when_lost()?;
        }
        if has_room(self) { Ok(()) } else { Err(self.memory.pair.full().into()) }
    }

    /// How the controller will be told where the data is, and a bounce buffer if need be.
    fn describe(
        &mut self,
        target: &Target<'_>,
        table: &SgTable,
    ) -> Result<(Described, DataMethod, Option<Buffer>), NvmeError> {
        let (method, segments) = (self.config.method, table.list().segments());
        let shape = self.shape(target.namespace.block_size.into());
        if method != DataMethod::Bounce {
            match shape.describe(segments, method) {
                Ok(Described::Prp) => return Ok((Described::Prp, DataMethod::Prp, None)),
                Ok(Described::Sgl) => return Ok((Described::Sgl, DataMethod::Sgl, None)),
                Err(why) if method != DataMethod::Auto => {
                    return Err(NvmeError::Undescribable { method, why });
                }
                Err(why) => log::debug!("through a bounce buffer: {why}"),
            }
        }
        let len = table.list().len() as usize;
        let request = Request::new(len, Direction::Bidirectional).alignment(4);
        let buffer = self.controller.allocator.allocate(&request)?;
        if target.operation.direction() == Direction::ToDevice {
            bounce::copy(table, &buffer, Copy::In)?;
        }
        let described = shape
            .describe(buffer.segments(), DataMethod::Auto)
            .map_err(|why| NvmeError::Undescribable { method: DataMethod::Bounce, why })?;
        self.stats.bounced += 1;
        Ok((described, DataMethod::Bounce, Some(buffer)))
    }

    fn start(
        &mut self,
        target: &Target<'_>,
        table: Option<SgTable>,
        described: Described,
        method: DataMethod,
        bounce: Option<Buffer>,
    ) -> Token {
        let Target { operation, namespace, lba, blocks } = *target;
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
            let bytes = if segments.is_empty() {
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
                job.error.get_or_insert(TransferError::Lost("a list has no command".into()));
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
    /// write of its doorbell.
    ///
    /// # Errors
    ///
    /// Fails when the register cannot be reached.
    #[inline]
    pub fn issue(&mut self) -> Result<(), NvmeError> {
        let condition = self.controller.condition();
        // After a reset there is no queue that a doorbell could be of.
        if condition.epoch == self.epoch && self.memory.pair.ring(&self.controller.bar)? {
            self.stats.doorbells += 1;
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
            if condition.epoch == self.epoch {
                self.memory.pair.acknowledge(&self.controller.bar)?;
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
            job.error.get_or_insert(error);
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
            job.error = Some(TransferError::Bounce(error.to_string()));
        }
        job.result = Some(job.error.take().map_or(Ok(()), |error| Err(Box::new(error))));
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
