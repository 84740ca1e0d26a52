//! Operations of several segments: a slot made of parts of others, or spread over them.

use super::super::descriptor::{NEXT, OP_COPY, words};
use super::super::{Channel, IoatError};
use super::{Batch, SlotsRefused, address, is_inside, settle};
use crate::dma::{Slot, SlotError, SlotPool};
use crate::queue::SlotPair;

/// A part of a slot that is one segment of an operation of several.
#[derive(Debug, PartialEq, Eq)]
pub struct SlotPart {
    /// The slot.
    pub slot: Slot,
    /// First byte of it.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

impl Batch<'_> {
    /// Copies parts of slots, one after another, to a slot from `offset` on.
    ///
    /// It is as many descriptors as there are parts. They come back as pairs of a part's slot
    /// and no target, but for the last one, which has the target. When one fails, those of the
    /// operation behind it are not done, and fail with
    /// [`TransferError::Behind`](crate::devices::ioat::TransferError::Behind).
    ///
    /// # Errors
    ///
    /// As [`Batch::copy`], and for no parts or more than nearly a quarter of the ring; the parts
    /// stay where they are then.
    pub fn gather(
        &mut self,
        parts: &mut Vec<SlotPart>,
        target: Slot,
        offset: usize,
    ) -> Result<(), SlotsRefused> {
        let target = Some(target);
        let [source_pool, target_pool] = self.pools;
        let at = match self.make_room(parts, source_pool, (&target, offset), target_pool) {
            Ok(at) => at,
            Err(error) => {
                return Err(SlotsRefused::new(error, SlotPair { source: None, target }));
            }
        };
        let words = |address, before, len| words(len, OP_COPY, address, at + before);
        let pairs = self.add_parts(parts, source_pool, words, |slot| SlotPair {
            source: Some(slot),
            target: None,
        });
        if let Some(last) = pairs.last_mut() {
            last.target = target;
        }
        self.go_on();
        Ok(())
    }

    /// Copies a slot, from `offset` on, to parts of slots, one after another.
    ///
    /// It is as many descriptors as there are parts. They come back as pairs of no source and a
    /// part's slot, but for the last one, which has the source.
    ///
    /// # Errors
    ///
    /// As [`Batch::gather`].
    pub fn scatter(
        &mut self,
        source: Slot,
        offset: usize,
        parts: &mut Vec<SlotPart>,
    ) -> Result<(), SlotsRefused> {
        let source = Some(source);
        let [source_pool, target_pool] = self.pools;
        let at = match self.make_room(parts, target_pool, (&source, offset), source_pool) {
            Ok(at) => at,
            Err(error) => {
                return Err(SlotsRefused::new(error, SlotPair { source, target: None }));
            }
        };
        let words = |address, before, len| words(len, OP_COPY, at + before, address);
        let pairs = self.add_parts(parts, target_pool, words, |slot| SlotPair {
            source: None,
            target: Some(slot),
        });
        if let Some(last) = pairs.last_mut() {
            last.source = source;
        }
        self.go_on();
        Ok(())
    }

    /// Checks an operation of several parts and makes room for it; returns the address of its
    /// other side.
    fn make_room(
        &mut self,
        parts: &[SlotPart],
        pool: &SlotPool,
        (single, offset): (&Option<Slot>, usize),
        single_pool: &SlotPool,
    ) -> Result<u64, IoatError> {
        let (mut total, slot_len) = (0usize, pool.slot_len());
        for SlotPart { slot, offset, len } in parts {
            let (offset, len) = (*offset as usize, *len as usize);
            pool.address(slot).ok_or(SlotError::Foreign { index: slot.index() })?;
            if !is_inside(offset, len, slot_len) {
                return Err(SlotError::Range { offset, len, slot_len }.into());
            }
            total = total.saturating_add(len);
        }
        let most = self.channel.ring.longest_run() as usize;
        if !(1..=most).contains(&parts.len()) {
            return Err(SlotError::Segments { segments: parts.len(), most }.into());
        }
        let at = address(single_pool, single, offset, total)?;
        settle(self.channel, self.place.filled());
        self.place.begin = self.place.at;
        if self.channel.make_run(parts.len() as u32) {
            return Ok(at);
        }
        self.go_on();
        Err(self.channel.ring.full(parts.len() as u32).into())
    }

    /// Adds parts that were checked: `words` makes a descriptor of a part's address, the bytes
    /// before it and its length, `pair` what is held for it. Returns what is held. The batch has
    /// no place then.
    #[inline]
    fn add_parts(
        &mut self,
        parts: &mut Vec<SlotPart>,
        pool: &SlotPool,
        words: impl Fn(u64, u64, u64) -> [u64; NEXT],
        pair: impl Fn(Slot) -> SlotPair,
    ) -> &mut Vec<SlotPair> {
        let first = self.channel.ring.producer().filled();
        let (table, mut before, mut left) = (pool.table(), 0, &parts[..]);
        while !left.is_empty() {
            let mut run = self.channel.ring.run();
            let filled = run.fill(left, |SlotPart { slot, offset, len }| {
                let address = table.address(slot)?.0 + u64::from(*offset);
                let len = u64::from(*len);
                let words = words(address, before, len);
                before += len;
                Some(words)
            });
            self.channel.ring.take_run(filled);
            left = &left[filled..];
            debug_assert!(filled > 0, "they were checked, and there is room");
            if filled == 0 {
                break;
            }
        }
        let filled = parts.len() - left.len();
        let end = self.channel.ring.producer().filled();
        self.channel.slots.group(first..end);
        let pairs = self.channel.slots.run_at(first);
        pairs.extend(parts.drain(..filled).map(|part| pair(part.slot)));
        pairs
    }
}

impl Channel {
    /// Makes room for a number of descriptors before the next marker; whether there is.
    fn make_run(&mut self, count: u32) -> bool {
        let free = self.slots.room(self.ring.producer());
        self.feeding.is_none() && free > count && self.ring.make_run(count)
    }
}
