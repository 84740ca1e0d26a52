//! One-shot transfers: memory to card to memory through the loopback, or one way.

use std::sync::atomic::{AtomicBool, Ordering};
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

/// When a transfer is given up: after a time, or when a flag is set.
///
/// A `Duration` is one without a flag.
#[derive(Debug, Clone, Copy)]
pub struct Limit<'a> {
    /// How long it may take.
    pub time: Duration,
    /// Ends it soon after it is set, within about 50 ms.
    pub stop: Option<&'a AtomicBool>,
}

impl From<Duration> for Limit<'_> {
    fn from(time: Duration) -> Self {
        Limit { time, stop: None }
    }
}

/// Both tables of a copy, source first.
pub(super) type Both = (SgTable, SgTable);

/// What of a channel is used: the reader's table, and the writer's.
pub(super) type Sides = (Option<SgTable>, Option<SgTable>);

impl LitePcie {
    /// Copies all of `source` to `target` through a channel's loopback, within a [`Limit`].
    ///
    /// # Errors
    ///
    /// Refuses tables that differ in length, overlap, are of another address space or not for
    /// this direction, before the card is told anything. Fails when the card does, is not done
    /// in time or is given up, or there is an event of the function: it is stopped and reset
    /// then, and part of the target may be written.
    pub fn copy<'a>(
        &mut self,
        channel: u8,
        source: SgTable,
        target: SgTable,
        limit: impl Into<Limit<'a>>,
    ) -> Result<Both, Failed> {
        let both = |(source, target): Sides| source.zip(target);
        match self.transfer(channel, (Some(source), Some(target)), limit.into()) {
            Ok(sides) => Ok(both(sides).expect("a copy has both sides")),
            Err((error, sides)) => Err(Failed { error, tables: sides.and_then(both) }),
        }
    }

    /// Moves all of one side, or of both through the loopback. Gives the sides back, with an
    /// error when the card is known not to use them.
    pub(super) fn transfer(
        &mut self,
        channel: u8,
        sides: Sides,
        limit: Limit<'_>,
    ) -> Result<Sides, (LitePcieError, Option<Sides>)> {
        if let Err(error) = self.prepare(channel, &sides) {
            return Err((error, Some(sides)));
        }
        let deadline = Deadline::after(limit.time);
        let slot = self.in_flight.insert(sides);
        match self.run(channel, slot, deadline, limit) {
            Ok(()) => Ok(self.in_flight.complete(slot).expect("nobody else completes a transfer")),
            Err(error) => {
                let is_quiet = self.recover();
                if !is_quiet {
                    self.in_flight.park();
                }
                Err((error, self.in_flight.complete(slot)))
            }
        }
    }

    /// Checks a transfer, and connects or cuts the loopback.
    fn prepare(&mut self, channel: u8, (source, target): &Sides) -> Result<(), LitePcieError> {
        if self.is_lost && !self.recover() {
            return Err(LitePcieError::NotReset { location: self.location() });
        }
        self.device.check_events()?;
        self.check_channel(channel)?;
        let sides = [(source, Direction::ToDevice), (target, Direction::FromDevice)];
        for (table, need) in sides {
            if let Some(table) = table {
                self.check_table(table, need)?;
            }
        }
        if let Some(to) = target {
            to.list().check_disjoint()?;
        }
        if let (Some(source), Some(target)) = (source, target) {
            let (from, to) = (source.list(), target.list());
            if from.len() != to.len() {
                let (source_len, target_len) = (from.len(), to.len());
                return Err(crate::dma::SgError::Lengths { source_len, target_len }.into());
            }
            from.check_apart(to)?;
        }
        let looped = source.is_some() && target.is_some();
        let found = &mut self.channels[usize::from(channel)];
        found.connect(&self.bar, looped)?;
        if target.is_some() {
            found.writer.start(&self.bar)?;
        }
        if source.is_some() {
            found.reader.start(&self.bar)?;
        }
        Ok(())
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

    fn run(
        &mut self,
        channel: u8,
        slot: crate::queue::Slot,
        deadline: Deadline,
        limit: Limit<'_>,
    ) -> Result<(), LitePcieError> {
        let Some((source, target)) = self.in_flight.get(slot) else { return Ok(()) };
        let (mut from, mut to) = (descriptors_of(source), descriptors_of(target));
        let one_way = target.is_none();
        let location = self.device.location();
        let gone = || LitePcieError::Gone { location: location.to_owned() };
        let index = usize::from(channel);
        let vectors = vectors_of(&self.vectors, index);
        let Channel { writer, reader, .. } = &mut self.channels[index];
        loop {
            fill(&self.bar, (&mut from, &mut *reader), (&mut to, &mut *writer), one_way)?;
            let waited = wait_any(&vectors, deadline.left().min(PATIENCE));
            let is_late = deadline.has_passed();
            let is_stopped = limit.stop.is_some_and(|stop| stop.load(Ordering::Relaxed));
            match waited {
                Ok(()) | Err(IrqError::Timeout { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            self.device.check_events()?;
            if !one_way {
                writer.update(&self.bar, gone)?;
            }
            if one_way || !from.is_done() && reader.free() < QUARTER as u32 || is_late {
                reader.update(&self.bar, gone)?;
            }
            let wanted = if one_way { reader.given() } else { writer.given() };
            let done = if one_way { reader.done() } else { writer.done() };
            if from.is_done() && to.is_done() && done == wanted {
                break;
            }
            let location = location.to_owned();
            let (written, read) = (writer.done(), reader.done());
            if is_stopped {
                return Err(LitePcieError::Stopped { location, channel, written, wanted, read });
            }
            if is_late {
                let waited = limit.time;
                return Err(LitePcieError::Timeout {
                    location,
                    channel,
                    waited,
                    written,
                    wanted,
                    read,
                });
            }
        }
        // The reader is done with a descriptor when it has asked for the data.
        while one_way && self.device.transactions_pending()?.unwrap_or(false) {
            self.device.check_events()?;
            if deadline.has_passed() {
                let (location, waited) = (location.to_owned(), limit.time);
                let (wanted, read) = (reader.given(), reader.done());
                let written = 0;
                return Err(LitePcieError::Timeout {
                    location,
                    channel,
                    waited,
                    written,
                    wanted,
                    read,
                });
            }
        }
        Ok(())
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

/// The descriptors of a side; none when it is not used.
fn descriptors_of(table: &Option<SgTable>) -> Descriptors<'_> {
    Descriptors::new(table.as_ref().map_or(&[], |table| table.list().segments()))
}

/// A side of a transfer: what is left of it, and the table that it goes to.
type Side<'a, 'b> = (&'a mut Descriptors<'b>, &'a mut Table);

/// Gives descriptors to both tables, in turns, as long as there is room. The reader's end tells
/// nothing where data comes after it: it interrupts only when the transfer goes one way.
fn fill<'b>(
    bar: &Bar,
    (from, reader): Side<'_, 'b>,
    (to, writer): Side<'_, 'b>,
    one_way: bool,
) -> Result<(), LitePcieError> {
    let mut sides = [(to, writer, true), (from, reader, one_way)];
    loop {
        let mut moved = false;
        for (descriptors, table, tells_end) in &mut sides {
            if table.free() == 0 {
                continue;
            }
            let Some(descriptor) = descriptors.next() else { continue };
            let ends = *tells_end && descriptors.is_done();
            let interrupts = ends || (table.given() + 1).is_multiple_of(QUARTER);
            table.push(bar, descriptor, interrupts)?;
            moved = true;
        }
        if !moved {
            return Ok(());
        }
    }
}
