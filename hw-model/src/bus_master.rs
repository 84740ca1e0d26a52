//! An engine's accesses to memory, each counted as the packets it takes on the link.

use crate::link::LinkMeter;
use crate::memory::{DmaFault, DmaMap, PIECE, Port, Use};

/// A [`Port`] whose accesses a [`LinkMeter`] counts, when there is one: those that succeed.
#[derive(Debug)]
pub(crate) struct BusMaster<'m> {
    port: Port<'m>,
    meter: Option<&'m LinkMeter>,
}

/// How a transfer ended that did not fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// Every byte is moved.
    All,
    /// It was stopped between two pieces.
    Stopped,
}

impl<'m> BusMaster<'m> {
    /// For a thread that makes many accesses.
    pub(crate) fn lasting(memory: &'m DmaMap, meter: Option<&'m LinkMeter>) -> Self {
        BusMaster { port: memory.lasting_port(), meter }
    }

    /// For a single access.
    pub(crate) fn new(memory: &'m DmaMap, meter: Option<&'m LinkMeter>) -> Self {
        BusMaster { port: memory.port(), meter }
    }

    /// As [`Port::release`].
    #[inline]
    pub(crate) fn release(&mut self) {
        self.port.release();
    }

    /// Fetches what tells the device what to do. How many descriptors of it count is known
    /// only once it was looked at: [`BusMaster::fetched`].
    pub(crate) fn fetch(&mut self, iova: u64, data: &mut [u8]) -> Result<(), DmaFault> {
        self.port.read(Use::Chain, iova, data)
    }

    /// `bytes` bytes at `iova` were fetched with one request, and brought `count` descriptors.
    pub(crate) fn fetched(&self, count: u64, iova: u64, bytes: u64) {
        if let Some(meter) = self.meter {
            meter.descriptor_fetch(count, bytes);
            meter.translate(iova, bytes);
        }
    }

    /// Fetches one word, such as a link.
    pub(crate) fn fetch_u64(&mut self, iova: u64) -> Result<u64, DmaFault> {
        let value = self.port.load_u64(Use::Chain, iova)?;
        self.fetched(0, iova, 8);
        Ok(value)
    }

    /// Has the processor bring memory near that is about to be fetched.
    pub(crate) fn prefetch(&mut self, iova: u64, len: u64) {
        self.port.prefetch(Use::Chain, iova, len);
    }

    /// Copies data, unless it is stopped between two pieces of [`PIECE`] bytes.
    #[inline]
    pub(crate) fn copy(
        &mut self,
        destination: u64,
        source: u64,
        len: u64,
        stops: impl Fn() -> bool,
    ) -> Result<Moved, DmaFault> {
        let copy = |at, len| self.port.copy(destination + at, source + at, len);
        let moved = pieces(len, stops, copy)?;
        if let (Some(meter), Moved::All) = (self.meter, moved) {
            meter.translate(source, len);
            meter.translate(destination, len);
            meter.data_read(len);
            meter.data_write(len);
        }
        Ok(moved)
    }

    /// Fills with a repeated pattern, as [`BusMaster::copy`] copies.
    pub(crate) fn fill(
        &mut self,
        destination: u64,
        pattern: u64,
        len: u64,
        stops: impl Fn() -> bool,
    ) -> Result<Moved, DmaFault> {
        let moved = pieces(len, stops, |at, len| self.port.fill(destination + at, pattern, len))?;
        if let (Some(meter), Moved::All) = (self.meter, moved) {
            meter.translate(destination, len);
            meter.data_write(len);
        }
        Ok(moved)
    }

    /// Writes a completion of one word, which is seen as a whole and after all data.
    #[inline]
    pub(crate) fn complete(&mut self, iova: u64, value: u64) -> Result<(), DmaFault> {
        self.port.store_u64(iova, value)?;
        self.completed(iova, 8);
        Ok(())
    }

    /// Writes a part of a completion.
    pub(crate) fn complete_part(&mut self, iova: u64, part: &[u8]) -> Result<(), DmaFault> {
        self.port.write(Use::Word, iova, part)?;
        self.completed(iova, part.len() as u64);
        Ok(())
    }

    #[inline]
    fn completed(&self, iova: u64, len: u64) {
        if let Some(meter) = self.meter {
            meter.translate(iova, len);
            meter.completion_write(len);
        }
    }
}

/// Does a transfer in pieces. [`PIECE`] is a multiple of a fill pattern's 8 bytes.
#[inline]
fn pieces(
    len: u64,
    stops: impl Fn() -> bool,
    mut piece: impl FnMut(u64, u64) -> Result<(), DmaFault>,
) -> Result<Moved, DmaFault> {
    let mut done = 0;
    while done < len {
        if stops() {
            return Ok(Moved::Stopped);
        }
        let len = PIECE.min(len - done);
        piece(done, len)?;
        done += len;
    }
    Ok(Moved::All)
}
