//! Operations between slots of pools, in batches, with what every byte of a slot must be.

use std::sync::Arc;
use std::time::Duration;

use vfio_dma::devices::ioat::{Batch, Channel, IoatError, SlotPart, SlotsRefused, TransferError};
use vfio_dma::dma::{Buffer, Pattern, Slot, SlotPool};
use vfio_dma::queue::{QueueError, SlotPair};

use super::super::SoakError;
use super::super::memory::{WrongBytes, compare, settle};
use super::super::plan::{Piece, SlotWork};

/// An operation that writes a slot.
#[derive(Debug, Clone, Copy)]
struct Pending {
    step: u64,
    at: usize,
    len: usize,
    /// Its operation ends with it.
    is_last: bool,
}

/// What ended, for who counts it.
#[derive(Debug)]
pub(super) enum Ended {
    /// A slot was written: bytes that were to be, and what is wrong of the whole slot. With the
    /// last slot of an operation the operation is done.
    Done { step: u64, bytes: usize, wrong: Option<WrongBytes>, is_last: bool },
    /// A descriptor failed.
    Failed { step: u64, error: TransferError, wrong: Option<WrongBytes>, aborted: bool },
}

/// One pool, and what every byte of it must be.
#[derive(Debug)]
struct Side {
    pool: Arc<SlotPool>,
    free: Vec<Slot>,
    image: Vec<u8>,
}

impl Side {
    fn new(mut buffer: Buffer, slot_len: usize, seed: u64) -> Result<Side, SoakError> {
        let mut image = vec![0; buffer.len()];
        Pattern::new(seed).bytes(0, &mut image);
        buffer.write(0, &image)?;
        let (pool, free) = SlotPool::new(buffer, slot_len)?;
        Ok(Side { pool, free, image })
    }

    fn slot(&mut self, index: u32) -> &mut [u8] {
        let len = self.pool.slot_len();
        &mut self.image[index as usize * len..][..len]
    }

    fn read(&self, slot: &Slot, scratch: &mut Vec<u8>) -> Result<(), SoakError> {
        scratch.resize(self.pool.slot_len(), 0);
        Ok(self.pool.read(slot, 0, scratch)?)
    }
}

/// The slots of a channel.
#[derive(Debug)]
pub(super) struct Slots {
    from: Side,
    to: Side,
    /// What each slot that is in flight waits for, by its index.
    pending: Vec<Option<Pending>>,
    /// The channel was aborted while slots were in flight.
    aborted: bool,
    pairs: Vec<SlotPair>,
    scratch: Vec<u8>,
}

impl Slots {
    /// Cuts a buffer that is read, and one that is written.
    pub(super) fn new(
        [from, to]: [Buffer; 2],
        slot_len: usize,
        seed: u64,
    ) -> Result<Slots, SoakError> {
        let (from, to) = (Side::new(from, slot_len, seed)?, Side::new(to, slot_len, !seed)?);
        let pending = vec![None; to.free.len()];
        let (pairs, scratch) = (Vec::new(), Vec::new());
        Ok(Slots { from, to, pending, aborted: false, pairs, scratch })
    }

    /// The channel was aborted.
    pub(super) fn note_abort(&mut self) {
        self.aborted = true;
    }

    /// Submits all of these, as far as the ring takes them at a time. What ends meanwhile is
    /// told to `ended`.
    ///
    /// # Errors
    ///
    /// Fails when something is refused that should not be, or nothing moves.
    pub(super) fn submit(
        &mut self,
        channel: &mut Channel,
        works: &[SlotWork],
        step: u64,
        limit: Duration,
        ended: &mut impl FnMut(Ended),
    ) -> Result<(), SoakError> {
        let mut next = 0;
        // How often nothing was taken in a row.
        let mut refused = 0;
        while next < works.len() {
            let (from, to) = (Arc::clone(&self.from.pool), Arc::clone(&self.to.pool));
            let before = next;
            channel.batch(&from, &to, |batch| {
                while let Some(work) = works.get(next) {
                    if !self.add(batch, work, step)? {
                        break;
                    }
                    next += 1;
                }
                Ok::<_, SoakError>(())
            })??;
            if next == works.len() {
                break;
            }
            refused = if next == before { refused + 1 } else { 0 };
            if refused > 1 {
                // What takes the room is no slots.
                channel.wait_all(limit)?;
            }
            if refused > 3 {
                return Err(SoakError::Stuck);
            }
            self.reap(channel, Some(limit), ended)?;
        }
        Ok(())
    }

    /// Adds one operation; whether there were slots and room for it.
    fn add(
        &mut self,
        batch: &mut Batch<'_>,
        work: &SlotWork,
        step: u64,
    ) -> Result<bool, SoakError> {
        let (sources, targets) = match work {
            SlotWork::Gather { parts, .. } => (parts.len(), 1),
            SlotWork::Scatter { parts, .. } => (1, parts.len()),
            SlotWork::Fill { .. } => (0, 1),
            _ => (1, 1),
        };
        if self.from.free.len() < sources || self.to.free.len() < targets {
            return Ok(false);
        }
        let added = match work {
            SlotWork::Copy { len } => {
                let (source, target) = (self.source()?, self.target()?);
                let target = self.spoil(target, &[(source.index(), 0, *len)], 0, step)?;
                batch.copy(source, target, *len)
            }
            SlotWork::Range { from, to, len } => {
                let (source, target) = (self.source()?, self.target()?);
                let target = self.spoil(target, &[(source.index(), *from, *len)], *to, step)?;
                batch.copy_range((source, *from), (target, *to), *len)
            }
            SlotWork::Fill { pattern, len } => {
                let target = self.target()?;
                let target = self.spoil_for_fill(target, *pattern, *len, step)?;
                batch.fill(target, *pattern, *len)
            }
            SlotWork::Gather { parts, to } => return self.gather(batch, parts, *to, step),
            SlotWork::Scatter { from, parts } => return self.scatter(batch, *from, parts, step),
        };
        self.take_back(added)
    }

    fn gather(
        &mut self,
        batch: &mut Batch<'_>,
        parts: &[Piece],
        to: usize,
        step: u64,
    ) -> Result<bool, SoakError> {
        let mut slots = Vec::with_capacity(parts.len());
        for &(at, len) in parts {
            let slot = self.source()?;
            slots.push(SlotPart { slot, offset: u32::try_from(at)?, len: u32::try_from(len)? });
        }
        let expected: Vec<_> = slots
            .iter()
            .zip(parts)
            .map(|(part, &(at, len))| (part.slot.index(), at, len))
            .collect();
        let target = self.target()?;
        let target = self.spoil(target, &expected, to, step)?;
        let added = batch.gather(&mut slots, target, to);
        self.from.free.extend(slots.into_iter().map(|part| part.slot));
        self.take_back(added)
    }

    fn scatter(
        &mut self,
        batch: &mut Batch<'_>,
        from: usize,
        parts: &[Piece],
        step: u64,
    ) -> Result<bool, SoakError> {
        let source = self.source()?;
        let (mut slots, mut read) = (Vec::with_capacity(parts.len()), from);
        for &(at, len) in parts {
            let target = self.target()?;
            let slot = self.spoil(target, &[(source.index(), read, len)], at, step)?;
            slots.push(SlotPart { slot, offset: u32::try_from(at)?, len: u32::try_from(len)? });
            read += len;
        }
        for part in slots.iter().rev().skip(1) {
            if let Some(pending) = &mut self.pending[part.slot.index() as usize] {
                pending.is_last = false;
            }
        }
        let added = batch.scatter(source, from, &mut slots);
        for part in slots {
            self.cancel(part.slot);
        }
        self.take_back(added)
    }

    fn source(&mut self) -> Result<Slot, SoakError> {
        self.from.free.pop().ok_or(SoakError::State("there is a free source"))
    }

    fn target(&mut self) -> Result<Slot, SoakError> {
        self.to.free.pop().ok_or(SoakError::State("there is a free target"))
    }

    /// Makes the range of a slot the complement of what it is to become.
    fn spoil(
        &mut self,
        target: Slot,
        sources: &[(u32, usize, usize)],
        at: usize,
        step: u64,
    ) -> Result<Slot, SoakError> {
        let len = sources.iter().map(|(.., len)| len).sum();
        let image = self.to.slot(target.index());
        let mut to = at;
        for &(source, from, len) in sources {
            let bytes = &self.from.slot(source)[from..from + len];
            image[to..to + len].iter_mut().zip(bytes).for_each(|(to, from)| *to = !from);
            to += len;
        }
        self.write(target, Pending { step, at, len, is_last: true })
    }

    fn spoil_for_fill(
        &mut self,
        target: Slot,
        pattern: u64,
        len: usize,
        step: u64,
    ) -> Result<Slot, SoakError> {
        let pattern = pattern.to_le_bytes();
        let image = &mut self.to.slot(target.index())[..len];
        image.iter_mut().zip(pattern.iter().cycle()).for_each(|(to, byte)| *to = !byte);
        self.write(target, Pending { step, at: 0, len, is_last: true })
    }

    fn write(&mut self, mut target: Slot, pending: Pending) -> Result<Slot, SoakError> {
        let index = target.index();
        let len = self.to.pool.slot_len();
        let image = &self.to.image[index as usize * len..][..len];
        self.to.pool.write(&mut target, 0, image)?;
        self.pending[index as usize] = Some(pending);
        Ok(target)
    }

    /// Takes a target back that the device was not told of.
    fn cancel(&mut self, target: Slot) {
        self.pending[target.index() as usize] = None;
        self.to.free.push(target);
    }

    /// Whether an operation was added; the slots of one that had no room come back.
    fn take_back(&mut self, added: Result<(), SlotsRefused>) -> Result<bool, SoakError> {
        let Err(refused) = added else { return Ok(true) };
        let (error, SlotPair { source, target }) = refused.into_parts();
        self.from.free.extend(source);
        if let Some(target) = target {
            self.cancel(target);
        }
        match error {
            IoatError::Queue(QueueError::Full { .. }) => Ok(false),
            error => Err(error.into()),
        }
    }

    /// Takes what ended, and looks at it; waits for something to end if there is a limit.
    ///
    /// # Errors
    ///
    /// Fails when the channel does; what came back is told all the same.
    pub(super) fn reap(
        &mut self,
        channel: &mut Channel,
        limit: Option<Duration>,
        ended: &mut impl FnMut(Ended),
    ) -> Result<(), SoakError> {
        let mut pairs = std::mem::take(&mut self.pairs);
        let reaped = match limit {
            Some(limit) => channel.wait_reap(&mut pairs, limit),
            None => channel.reap(&mut pairs),
        };
        for SlotPair { source, target } in pairs.drain(..) {
            self.from.free.extend(source);
            if let Some(target) = target {
                self.done(target, ended)?;
            }
        }
        self.pairs = pairs;
        for failed in channel.take_failed() {
            let aborted = self.aborted;
            let (source, target) = failed.slots.map_or((None, None), |p| (p.source, p.target));
            self.from.free.extend(source);
            let (step, wrong) = match target {
                Some(target) => self.undone(target)?,
                None => (None, None),
            };
            let step = step.unwrap_or_default();
            ended(Ended::Failed { step, error: failed.error, wrong, aborted });
        }
        if channel.slots_in_flight() == 0 {
            self.aborted = false;
        }
        reaped.map(|_| ()).map_err(SoakError::from)
    }

    fn done(&mut self, target: Slot, ended: &mut impl FnMut(Ended)) -> Result<(), SoakError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        self.to.read(&target, &mut scratch)?;
        let pending = self.pending[target.index() as usize].take();
        let image = self.to.slot(target.index());
        let pending = pending.ok_or(SoakError::State("a slot is in flight"))?;
        let Pending { step, at, len, is_last } = pending;
        image[at..at + len].iter_mut().for_each(|byte| *byte = !*byte);
        let wrong = compare(&scratch, image, 0);
        if wrong.is_some() {
            image.copy_from_slice(&scratch);
        }
        self.scratch = scratch;
        self.to.free.push(target);
        ended(Ended::Done { step, bytes: len, wrong, is_last });
        Ok(())
    }

    /// Looks at a slot whose operation failed.
    fn undone(&mut self, target: Slot) -> Result<(Option<u64>, Option<WrongBytes>), SoakError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        self.to.read(&target, &mut scratch)?;
        let pending = self.pending[target.index() as usize].take();
        let image = self.to.slot(target.index());
        let pending = pending.ok_or(SoakError::State("a slot is in flight"))?;
        let Pending { step, at, len, .. } = pending;
        let inside = settle(&scratch[at..at + len], &mut image[at..at + len], at);
        let wrong = inside.or(compare(&scratch, image, 0));
        image.copy_from_slice(&scratch);
        self.scratch = scratch;
        self.to.free.push(target);
        Ok((Some(step), wrong))
    }

    /// Looks at every slot that is read, which nothing may have written.
    ///
    /// # Errors
    ///
    /// Fails when a slot cannot be read.
    pub(super) fn check_sources(&mut self) -> Result<Option<WrongBytes>, SoakError> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let slots = std::mem::take(&mut self.from.free);
        let mut wrong = None;
        for slot in &slots {
            self.from.read(slot, &mut scratch)?;
            wrong = wrong.or(compare(&scratch, self.from.slot(slot.index()), 0));
        }
        (self.from.free, self.scratch) = (slots, scratch);
        Ok(wrong)
    }
}
