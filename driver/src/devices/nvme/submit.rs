//! Commands as a caller submits them, checked before the controller is told anything.

use std::ops::Range;

use super::bounce::{self, Copy};
use super::data::Described;
use super::transfer::Operation;
use super::{DataMethod, IoQueue, Namespace, NvmeError, Refused, Token, WhenFull, Writable};
use crate::dma::{Buffer, Direction, Request, SgTable};

/// What is to be done with which blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) operation: Operation,
    pub(super) namespace: &'a Namespace,
    pub(super) lba: u64,
    pub(super) blocks: u64,
    /// Of a copy, which of them.
    pub(super) sources: &'a [Range<u64>],
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

    pub(super) fn require(&self, offered: bool, what: &'static str) -> Result<(), NvmeError> {
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
        let target = Target { operation, namespace, lba, blocks, sources: &[] };
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
        let target = Target { operation, namespace, lba, blocks, sources: &[] };
        self.submit_target(&target, when_full)
    }

    pub(super) fn submit_target(
        &mut self,
        target: &Target<'_>,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        match self.check(target, None, when_full) {
            Ok(()) => Ok(self.start(target, None, Described::Prp, DataMethod::Auto, None)),
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
        let Target { namespace, lba, blocks, operation, .. } = *target;
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
    ) -> Result<(Described, DataMethod, Option<Box<Buffer>>), NvmeError> {
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
        Ok((described, DataMethod::Bounce, Some(Box::new(buffer))))
    }
}
