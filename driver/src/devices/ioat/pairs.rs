//! Copies of one length between many pairs of slots: the cheapest of all.
//!
//! What is held while the device works is the caller's vector, as it is.

use std::sync::Arc;

use super::batch::{ENTRY_RECORDS, RECORD, check_pair, open_window};
use super::descriptor::{Descriptor, OP_COPY, words};
use super::{Channel, IoatError};
use crate::dma::{SlotPool, SlotTable, Unborrowed};
use crate::queue::SlotPair;

impl Channel {
    /// Copies the first `len` bytes of the sources of pairs to their targets, in their order, and
    /// tells the device with one doorbell: as a [batch](Channel::batch) of
    /// [`Batch::copy_pair`](super::Batch::copy_pair), for less. Returns how many, which were taken out of the vector; the
    /// ring has no room for those that are left.
    ///
    /// # Errors
    ///
    /// As [`Channel::batch`], when no pair was taken. A pair that is refused, as by
    /// [`Batch::copy_pair`](super::Batch::copy_pair), is left as the first of the vector, and those before it are told.
    pub fn copy_pairs(
        &mut self,
        source: &Arc<SlotPool>,
        target: &Arc<SlotPool>,
        pairs: &mut Vec<SlotPair>,
        len: usize,
    ) -> Result<usize, IoatError> {
        // A channel that was lost has no latest ones.
        if !self.slots.are_latest(source, target) {
            self.check_pools(source, target)?;
        }
        if len.wrapping_sub(1) >= self.slots.slot_len() {
            return refuse_first(source, target, pairs, len);
        }
        let tables = [source.table(), target.table()];
        let (before, mut refused) = (pairs.len(), false);
        while !pairs.is_empty() && !refused {
            if self.ring.window_len() == 0 {
                open_window(self);
            }
            let count = pairs.len().min(self.ring.window_len() as usize);
            if count == 0 {
                break;
            }
            let entries = self.ring.window_of(count as u32);
            // SAFETY: so many entries are free, of a ring that is borrowed here.
            let run = unsafe { copy_run(&pairs[..count], entries, &tables, len as u64) };
            let held = self.slots.run_at(self.ring.producer().filled());
            if run == pairs.len() && held.is_empty() {
                // What is held is the caller's vector, with all that is in it.
                std::mem::swap(held, pairs);
            } else {
                held.extend(pairs.drain(..run));
            }
            self.ring.advance(run as u32);
            refused = run < count;
        }
        self.ring_doorbell(0)?;
        if refused { refuse_first(source, target, pairs, len) } else { Ok(before - pairs.len()) }
    }
}

/// Fills descriptors with copies of `len` bytes between the first pairs, up to the first that is
/// refused; returns how many.
///
/// # Safety
///
/// Before the end of the entries lie as many as there are pairs, which the caller has to itself.
// By itself, so that the loop has the registers for itself.
#[inline(never)]
unsafe fn copy_run(
    pairs: &[SlotPair],
    entries: Unborrowed<Descriptor>,
    &[from, to]: &[SlotTable<'_>; 2],
    len: u64,
) -> usize {
    // The bytes up to the end of the pairs, so that one number counts all of it.
    let mut at = -(size_of_val(pairs) as isize);
    let end = pairs.as_ptr_range().end;
    while at != 0 {
        // SAFETY: as many bytes lie before the end.
        let slots = unsafe { end.byte_offset(at) };
        // SAFETY: one of the pairs.
        let slots = unsafe { &*slots };
        let (from, to) = (from.address_of(&slots.source), to.address_of(&slots.target));
        let (Some(from), Some(to)) = (from, to) else { break };
        // SAFETY: the caller vouches for it.
        unsafe { entries.write_words(at * ENTRY_RECORDS, &words(len, OP_COPY, from.0, to.0)) };
        at += RECORD;
    }
    pairs.len() - (-at) as usize / RECORD as usize
}

/// The first of pairs is refused, if there is one.
#[cold]
fn refuse_first(
    source: &SlotPool,
    target: &SlotPool,
    pairs: &[SlotPair],
    len: usize,
) -> Result<usize, IoatError> {
    let checked = pairs.first().map(|slots| check_pair([source, target], slots, (0, 0), len));
    checked.map_or(Ok(0), |checked| Ok(checked.map(|_| 0)?))
}
