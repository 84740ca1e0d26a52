//! Loop mode: the card goes through its tables again and again.

use super::error::LitePcieError;
use super::table::{DEPTH, Descriptors, Table};
use super::{Channel, LitePcie};
use crate::dma::{Direction, SgTable};
use crate::mmio::Bar;
use crate::queue::Slot;

/// How far a direction is in loop mode, as the card counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Lap {
    /// Laps that are complete, modulo 65536.
    pub count: u16,
    /// The descriptor of the present lap that was done last.
    pub index: u16,
}

/// A channel that runs by itself; its buffers are the card's meanwhile.
///
/// Dropping it stops the channel and frees the buffers; if it cannot be stopped, they stay the
/// driver's until the function is quiet.
#[derive(Debug)]
#[must_use = "a loop that is dropped is stopped"]
pub struct Looping<'a> {
    card: &'a mut LitePcie,
    channel: u8,
    slot: Slot,
}

/// What a loop gave back: the reader's table, and the writer's.
type Tables = (Option<SgTable>, Option<SgTable>);

impl LitePcie {
    /// Lets a channel read `source` and write `target`, each over and over, until it is
    /// stopped; either may be left out. With both, the channel's loopback connects them.
    ///
    /// # Errors
    ///
    /// Refuses tables that the card cannot be given, or that need more descriptors than its
    /// table has; they are dropped then.
    pub fn start_loop(
        &mut self,
        channel: u8,
        source: Option<SgTable>,
        target: Option<SgTable>,
    ) -> Result<Looping<'_>, LitePcieError> {
        self.device.check_events()?;
        self.check_channel(channel)?;
        let sides = [(&source, Direction::ToDevice), (&target, Direction::FromDevice)];
        for (table, need) in sides {
            let Some(table) = table else { continue };
            self.check_table(table, need)?;
            let needed = Descriptors::new(table.list().segments()).count() as u64;
            if needed > DEPTH.into() {
                return Err(LitePcieError::TableDepth { needed, depth: DEPTH });
            }
        }
        if let Some(target) = &target {
            target.list().check_disjoint()?;
        }
        let slot = self.in_flight.insert((source, target));
        let mut looping = Looping { card: self, channel, slot };
        looping.start()?;
        Ok(looping)
    }
}

impl Looping<'_> {
    fn start(&mut self) -> Result<(), LitePcieError> {
        let LitePcie { in_flight, channels, bar, .. } = &mut *self.card;
        let channel = &mut channels[usize::from(self.channel)];
        let Some((source, target)) = in_flight.get(self.slot) else { return Ok(()) };
        channel.looping = true;
        channel.connect(bar, source.is_some() && target.is_some())?;
        for (table, tables) in [(&mut channel.writer, target), (&mut channel.reader, source)] {
            table.stop(bar)?;
            if let Some(list) = tables {
                fill(bar, table, list)?;
                table.start_looping(bar)?;
            }
        }
        Ok(())
    }

    /// How far the reader is.
    ///
    /// # Errors
    ///
    /// Fails when the register cannot be read, or there is an event of the function: the loop is
    /// to be stopped then.
    pub fn read(&self) -> Result<Lap, LitePcieError> {
        self.card.device.check_events()?;
        let (index, count) = self.channel().reader.lap(&self.card.bar)?;
        Ok(Lap { count, index })
    }

    /// How far the writer is. What it has written is in memory when this returns.
    ///
    /// # Errors
    ///
    /// As [`Looping::read`].
    pub fn written(&self) -> Result<Lap, LitePcieError> {
        self.card.device.check_events()?;
        let (index, count) = self.channel().writer.lap(&self.card.bar)?;
        Ok(Lap { count, index })
    }

    fn channel(&self) -> &Channel {
        &self.card.channels[usize::from(self.channel)]
    }

    /// Stops the channel and gives the tables back: source, target.
    ///
    /// # Errors
    ///
    /// Fails when the card cannot be stopped; the tables stay the driver's then.
    pub fn stop(self) -> Result<Tables, LitePcieError> {
        self.card.stop_loop(self.channel)?;
        // Writes that were on their way are behind: a register was read since.
        let tables = self.card.in_flight.complete(self.slot);
        Ok(tables.expect("nobody else completes a loop"))
    }
}

impl Drop for Looping<'_> {
    fn drop(&mut self) {
        if self.card.in_flight.get(self.slot).is_none() {
            return;
        }
        match self.card.stop_loop(self.channel) {
            Ok(()) => drop(self.card.in_flight.complete(self.slot)),
            Err(error) => log::warn!("{}: {error}", self.card.location()),
        }
    }
}

impl LitePcie {
    /// Stops a channel; when this succeeds it writes no more, and what it reads it discards.
    fn stop_loop(&mut self, channel: u8) -> Result<(), LitePcieError> {
        let found = &mut self.channels[usize::from(channel)];
        if self.device.check_events().is_err() {
            // Whatever the card says: it is the function that is stopped.
            self.device.quiesce()?;
            (self.is_lost, found.looping) = (true, false);
            return Ok(());
        }
        found.writer.stop(&self.bar)?;
        found.reader.stop(&self.bar)?;
        let idle = crate::mmio::poll_until(std::time::Duration::from_secs(1), || {
            let idle = found.writer.is_idle(&self.bar)? && found.reader.is_idle(&self.bar)?;
            Ok::<_, LitePcieError>(idle.then_some(()))
        })?;
        if idle.is_none() {
            return Err(LitePcieError::NotReset { location: self.device.location().to_owned() });
        }
        found.looping = false;
        Ok(())
    }
}

fn fill(bar: &Bar, table: &mut Table, list: &SgTable) -> Result<(), LitePcieError> {
    for descriptor in Descriptors::new(list.list().segments()) {
        table.push(bar, descriptor, false)?;
    }
    Ok(())
}
