//! One face for cards that make streams of memory, and memory of streams.
//!
//! A stream goes one way: from memory to the card's own logic, or from that to memory. What the
//! logic does with it is the card's business; a [`ByteEngine`] moves the bytes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::CopyError;
use crate::dma::{AddressSpace, Buffer, Request, SgTable};

/// A stream that failed, and its table when the device is known not to use it.
pub struct StreamFailed {
    /// Why.
    pub error: Box<CopyError>,
    /// The table; `None` when the device could not be stopped. It then stays mapped and
    /// allocated until the process ends.
    pub table: Option<SgTable>,
}

impl fmt::Debug for StreamFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.is_some();
        f.debug_struct("StreamFailed").field("error", &self.error).field("table", &table).finish()
    }
}

impl fmt::Display for StreamFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for StreamFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.error)
    }
}

/// A card with streams of bytes between memory and its own logic, a pair of them for each
/// channel.
///
/// Implementors keep a table until the device is done with it, or is known to reach memory no
/// more; one that neither holds for is leaked, never dropped.
pub trait ByteEngine: fmt::Debug + Send {
    /// How a user names the device: an address such as `0000:00:05.0`, a socket's path, `model`.
    fn location(&self) -> &str;

    /// The address space that its buffers are mapped in.
    fn space(&self) -> &Arc<AddressSpace>;

    /// How many channels it has: pairs of a stream to the card and one from it.
    fn channels(&self) -> u8;

    /// Places a buffer that the engine reaches.
    ///
    /// # Errors
    ///
    /// Says what was tried and why it failed.
    fn allocate(&self, request: &Request) -> Result<Buffer, CopyError>;

    /// Sends all of `source` to the card, in the order of its pieces, and returns it once the
    /// card has read it.
    ///
    /// # Errors
    ///
    /// Refuses a table that the card cannot be given before it is told anything. Fails when the
    /// card does, or is not done within `limit`: it is stopped then, and took part of the data.
    fn send(
        &mut self,
        channel: u8,
        source: SgTable,
        limit: Duration,
    ) -> Result<SgTable, StreamFailed>;

    /// Fills all of `target` with what comes from the card, in the order of its pieces, and
    /// returns it once every byte is there.
    ///
    /// # Errors
    ///
    /// As [`ByteEngine::send`]; part of the target may be written then.
    fn receive(
        &mut self,
        channel: u8,
        target: SgTable,
        limit: Duration,
    ) -> Result<SgTable, StreamFailed>;

    /// Lets the card send `source` and fill `target`, each over and over, until the loop is
    /// stopped or dropped. Either may be left out.
    ///
    /// # Errors
    ///
    /// Refuses tables that the card cannot be given, or that are too many pieces; they are
    /// dropped then.
    fn start_loop(
        &mut self,
        channel: u8,
        source: Option<SgTable>,
        target: Option<SgTable>,
    ) -> Result<Box<dyn ByteLoop + '_>, CopyError>;
}

/// What a loop gives back: the table that was sent, and the one that was filled.
pub type LoopTables = (Option<SgTable>, Option<SgTable>);

/// A channel that runs by itself; dropping it stops the channel.
pub trait ByteLoop {
    /// Rounds of the table that is sent that are complete, modulo 65536.
    ///
    /// # Errors
    ///
    /// Fails when the card does not say.
    fn sent(&self) -> Result<u16, CopyError>;

    /// Rounds of the table that is filled that are complete, modulo 65536. What they wrote is in
    /// memory when this returns.
    ///
    /// # Errors
    ///
    /// Fails when the card does not say.
    fn received(&self) -> Result<u16, CopyError>;

    /// Stops the channel and gives the tables back.
    ///
    /// # Errors
    ///
    /// Fails when the card cannot be stopped; the tables stay the driver's then.
    fn stop(self: Box<Self>) -> Result<LoopTables, CopyError>;
}
