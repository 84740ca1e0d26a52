//! One-shot transfers through the loopback: memory to card to memory.

use std::time::Duration;

use super::error::{Failed, LitePcieError};
use super::table::{DEPTH, Descriptors, Table};
use super::{Channel, LitePcie};
use crate::deadline::Deadline;
use crate::dma::{Direction, SgTable};
use crate::events::Event;
use crate::irq::{IrqError, wait_any};
use crate::mmio::Bar;

/// Every so manieth descriptor interrupts, and the last one: a quarter of the table is given
/// anew while the card works on the rest.
const QUARTER: u64 = DEPTH as u64 / 4;

/// How long one sleep lasts at most: an interrupt that got lost costs no more.
const PATIENCE: Duration = Duration::from_millis(50);

/// Both tables of a copy, source first.
pub(super) type Both = (SgTable, SgTable);

impl LitePcie {
    /// Copies all of `source` to `target` through a channel's loopback, within a time.
    ///
    /// # Errors
    ///
    /// Refuses tables that differ in length, overlap, are of another address space or not for
    /// this direction, before the card is told anything. Fails when the card does, is not done
    /// in time, or there is an event of the function: it is stopped and reset then, and part of
    /// the target may be written.
    pub fn copy(
        &mut self,
        channel: u8,
        source: SgTable,
        target: SgTable,
        limit: Duration,
    ) -> Result<Both, Failed> {
        if let Err(error) = self.prepare(channel, &source, &target) {
            return Err(Failed { error, tables: Some((source, target)) });
        }
        let deadline = Deadline::after(limit);
        let slot = self.in_flight.insert((Some(source), Some(target)));
        match self.run_copy(channel, slot, deadline, limit) {
            Ok(()) => {
                let both = self.in_flight.complete(slot);
                let both = both.and_then(|(source, target)| Some((source?, target?)));
                Ok(both.expect("nobody else completes a copy"))
            }
            Err(error) => {
                let is_quiet = self.recover();
                if !is_quiet {
                    self.in_flight.park();
                }
                let held = self.in_flight.complete(slot);
                let tables = held.and_then(|(source, target)| Some((source?, target?)));
                Err(Failed { error, tables })
            }
        }
    }

    /// Checks a copy, and connects the loopback.
    fn prepare(
        &mut self,
        channel: u8,
        source: &SgTable,
        target: &SgTable,
    ) -> Result<(), LitePcieError> {
        if self.is_lost && !self.recover() {
            return Err(LitePcieError::NotReset { location: self.location() });
        }
        self.device.check_events()?;
        self.check_channel(channel)?;
        self.check_table(source, Direction::ToDevice)?;
        self.check_table(target, Direction::FromDevice)?;
        let (from, to) = (source.list(), target.list());
        if from.len() != to.len() {
            let (source_len, target_len) = (from.len(), to.len());
            return Err(crate::dma::SgError::Lengths { source_len, target_len }.into());
        }
        to.check_disjoint()?;
        from.check_apart(to)?;
        let Channel { writer, reader, loopback, .. } = &self.channels[usize::from(channel)];
        if let Some(loopback) = *loopback {
            self.bar.set(loopback, 1)?;
        }
        writer.start(&self.bar)?;
        Ok(reader.start(&self.bar)?)
    }

    /// Refuses a table that the card cannot be given.
    pub(super) fn check_table(
        &self,
        table: &SgTable,
        need: Direction,
    ) -> Result<(), LitePcieError> {
        if !table.is_in(self.device.space()) {
            return Err(LitePcieError::ForeignBuffer { location: self.location() });
        }
        if let Some(have) = table.wrong_direction(need) {
            return Err(LitePcieError::WrongDirection { have, need });
        }
        table.list().cut(self.device.dma_limits())?;
        Ok(())
    }

    fn run_copy(
        &mut self,
        channel: u8,
        slot: crate::queue::Slot,
        deadline: Deadline,
        limit: Duration,
    ) -> Result<(), LitePcieError> {
        let Some((Some(source), Some(target))) = self.in_flight.get(slot) else {
            return Ok(());
        };
        let mut from = Descriptors::new(source.list().segments());
        let mut to = Descriptors::new(target.list().segments());
        let location = self.device.location();
        let gone = || LitePcieError::Gone { location: location.to_owned() };
        let index = usize::from(channel);
        let vectors = vectors_of(&self.vectors, index);
        let Channel { writer, reader, .. } = &mut self.channels[index];
        loop {
            fill(&self.bar, &mut from, reader, &mut to, writer)?;
            if from.is_done() && to.is_done() && writer.done() == writer.given() {
                return Ok(());
            }
            let waited = wait_any(&vectors, deadline.left().min(PATIENCE));
            let is_late = deadline.has_passed();
            match waited {
                Ok(()) | Err(IrqError::Timeout { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            self.device.check_events()?;
            writer.update(&self.bar, gone)?;
            if !from.is_done() && reader.free() < QUARTER as u32 || is_late {
                reader.update(&self.bar, gone)?;
            }
            let is_done = to.is_done() && writer.done() == writer.given();
            if is_late && !is_done {
                return Err(LitePcieError::Timeout {
                    location: location.to_owned(),
                    channel,
                    waited: limit,
                    written: writer.done(),
                    wanted: writer.given(),
                    read: reader.done(),
                });
            }
        }
    }

    /// Stops the card after a failure and makes it usable again. Returns whether it reaches
    /// memory no more; then what was in flight may be freed.
    fn recover(&mut self) -> bool {
        self.is_lost = true;
        let stopped = self.device.quiesce();
        if let Err(error) = &stopped {
            log::warn!("{}: it does not stop by itself: {error}", self.device.location());
        }
        if self.device.events().pending() == Some(Event::Removal) {
            return stopped.is_ok();
        }
        // Reads that were lost leave the card without their tags: only a reset helps.
        let reset = self.device.reset();
        let is_quiet = stopped.is_ok() || reset.is_ok();
        match reset.map_err(LitePcieError::from).and_then(|()| self.set_up()) {
            Ok(()) => self.is_lost = false,
            Err(error) => log::warn!("{}: it is not usable: {error}", self.device.location()),
        }
        is_quiet
    }
}

/// The vectors of a channel: the writer's and the reader's, or all when there are fewer.
fn vectors_of(vectors: &[crate::irq::Vector], channel: usize) -> Vec<&crate::irq::Vector> {
    match vectors.get(2 * channel..2 * channel + 2) {
        Some(both) => both.iter().collect(),
        None => vectors.iter().collect(),
    }
}

/// Gives descriptors to both tables, in turns, as long as there is room.
fn fill<'a>(
    bar: &Bar,
    from: &mut Descriptors<'a>,
    reader: &mut Table,
    to: &mut Descriptors<'a>,
    writer: &mut Table,
) -> Result<(), LitePcieError> {
    let mut sides = [(to, writer), (from, reader)];
    loop {
        let mut moved = false;
        for (n, (descriptors, table)) in sides.iter_mut().enumerate() {
            if table.free() == 0 {
                continue;
            }
            let Some(descriptor) = descriptors.next() else { continue };
            // The reader's end tells nothing: data comes after it.
            let ends = n == 0 && descriptors.is_done();
            let interrupts = ends || (table.given() + 1).is_multiple_of(QUARTER);
            table.push(bar, descriptor, interrupts)?;
            moved = true;
        }
        if !moved {
            return Ok(());
        }
    }
}
