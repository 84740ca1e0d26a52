//! A card's channels as streams.

use std::sync::Arc;
use std::time::Duration;

use super::transfer::Sides;
use super::{LitePcie, LitePcieError, Looping};
use crate::devices::{ByteEngine, ByteLoop, CopyError, LoopTables, StreamFailed};
use crate::dma::{AddressSpace, Buffer, Request, SgTable};

/// Either side's table: the other one was never there.
fn only((source, target): Sides) -> Option<SgTable> {
    source.or(target)
}

fn failed((error, sides): (LitePcieError, Option<Sides>)) -> StreamFailed {
    StreamFailed { error: Box::new(error.into()), table: sides.and_then(only) }
}

impl ByteEngine for LitePcie {
    fn location(&self) -> &str {
        self.device.location()
    }

    fn space(&self) -> &Arc<AddressSpace> {
        self.device.space()
    }

    fn channels(&self) -> u8 {
        self.channel_count()
    }

    fn allocate(&self, request: &Request) -> Result<Buffer, CopyError> {
        Ok(LitePcie::allocate(self, request)?)
    }

    /// Memory has answered every read when this returns, as far as the function tells (PCI
    /// Express Base Specification 3.0, 7.8.5: Transactions Pending).
    fn send(
        &mut self,
        channel: u8,
        source: SgTable,
        limit: Duration,
    ) -> Result<SgTable, StreamFailed> {
        let sides = self.transfer(channel, (Some(source), None), limit.into()).map_err(failed)?;
        Ok(only(sides).expect("what was sent comes back"))
    }

    /// From the first call on, what the card's logic makes between two calls waits in it, as far
    /// as it has room. Before that, and after a copy through the loopback, it is lost.
    fn receive(
        &mut self,
        channel: u8,
        target: SgTable,
        limit: Duration,
    ) -> Result<SgTable, StreamFailed> {
        let sides = self.transfer(channel, (None, Some(target)), limit.into()).map_err(failed)?;
        Ok(only(sides).expect("what was filled comes back"))
    }

    fn start_loop(
        &mut self,
        channel: u8,
        source: Option<SgTable>,
        target: Option<SgTable>,
    ) -> Result<Box<dyn ByteLoop + '_>, CopyError> {
        Ok(Box::new(LitePcie::start_loop(self, channel, source, target)?))
    }
}

impl ByteLoop for Looping<'_> {
    fn sent(&self) -> Result<u16, CopyError> {
        Ok(self.read()?.count)
    }

    fn received(&self) -> Result<u16, CopyError> {
        Ok(self.written()?.count)
    }

    fn stop(self: Box<Self>) -> Result<LoopTables, CopyError> {
        Ok(Looping::stop(*self)?)
    }
}
