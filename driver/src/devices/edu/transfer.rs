//! Transfers of edu: memory to device, device to memory, and memory to memory in pieces.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use super::{Edu, EduError, regs};
use crate::deadline::Deadline;
use crate::dma::{Buffer, Direction, DmaLimits, Pieces, Segment, SgTable};
use crate::queue::Slot;

/// One run of the engine.
#[derive(Debug, Clone, Copy)]
struct Piece {
    source: u64,
    target: u64,
    len: usize,
    /// Direction bit of the command register.
    way: u64,
}

/// What is left to do of the transfer whose buffers are in flight.
#[derive(Debug)]
pub(super) struct Job {
    pieces: VecDeque<Piece>,
}

/// A transfer that failed, and the buffers when the device is known not to use them.
pub struct Failed<T> {
    /// Why.
    pub error: EduError,
    /// The buffers; `None` when the device could not be stopped. They then stay mapped and
    /// allocated until the process ends.
    pub buffers: Option<Box<T>>,
}

impl<T> Failed<T> {
    fn new(error: EduError, buffers: Option<T>) -> Failed<T> {
        Failed { error, buffers: buffers.map(Box::new) }
    }
}

/// A transfer that began, or why it did not.
pub type Started<'a, T> = Result<Transfer<'a, T>, Failed<T>>;

impl<T> fmt::Debug for Failed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failed")
            .field("error", &self.error)
            .field("buffers", &self.buffers.is_some())
            .finish()
    }
}

impl<T> fmt::Display for Failed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<T> std::error::Error for Failed<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// A transfer that the device works on; its buffers are the driver's meanwhile.
///
/// Dropping it stops the device first, then frees the buffers. Forgetting it leaves the
/// buffers with the driver, which refuses other transfers.
#[must_use = "a transfer that is dropped is stopped"]
pub struct Transfer<'a, T: Send + 'static> {
    edu: &'a mut Edu,
    slot: Slot,
    gives_back: PhantomData<T>,
}

impl<T: Send + 'static> fmt::Debug for Transfer<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfer").field("job", &self.edu.job).finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Transfer<'_, T> {
    /// Waits until every byte is moved, piece by piece, and returns the buffers.
    ///
    /// # Errors
    ///
    /// When a piece does not finish in time, the device is gone or to be removed, or its link
    /// has an error. The device is stopped then, and the buffers come back with the error if
    /// that succeeded.
    pub fn wait(self) -> Result<T, Failed<T>> {
        self.finish(Duration::MAX)
    }

    /// As [`Transfer::wait`], with a bound on the whole transfer, in addition to that of each
    /// piece.
    ///
    /// # Errors
    ///
    /// As [`Transfer::wait`].
    pub fn wait_within(self, limit: Duration) -> Result<T, Failed<T>> {
        self.finish(limit)
    }

    fn finish(self, limit: Duration) -> Result<T, Failed<T>> {
        match self.edu.finish_pieces(limit) {
            Ok(()) => {
                self.edu.job = None;
                let held = self.edu.in_flight.complete(self.slot);
                let held = held.expect("nobody else completes a transfer");
                Ok(given_back(held))
            }
            Err(error) => {
                let buffers = self.edu.stop(self.slot).map(given_back);
                Err(Failed::new(error, buffers))
            }
        }
    }
}

/// What was put in flight for a transfer that gives back a `T`.
fn given_back<T: 'static>(held: Box<dyn Any + Send>) -> T {
    *held.downcast().expect("a transfer holds what it gives back")
}

impl<T: Send + 'static> Drop for Transfer<'_, T> {
    fn drop(&mut self) {
        if self.edu.job.is_some() {
            drop(self.edu.stop(self.slot));
        }
    }
}

impl Edu {
    /// Starts moving `len` bytes of `source` from `offset` on into the device's own buffer.
    ///
    /// # Errors
    ///
    /// Refuses, and gives the buffer back, when the ranges or addresses do not fit.
    pub fn write(
        &mut self,
        source: Buffer,
        offset: usize,
        device_offset: usize,
        len: usize,
    ) -> Started<'_, Buffer> {
        let plan = check_device_range(device_offset, len)
            .and_then(|()| self.range(&source, offset, len, Direction::ToDevice))
            .and_then(|from| self.plan(Some(from), None, device_offset));
        self.begin(source, plan)
    }

    /// Starts moving `len` bytes of the device's own buffer into `target` at `offset`.
    ///
    /// # Errors
    ///
    /// Refuses, and gives the buffer back, when the ranges or addresses do not fit.
    pub fn read(
        &mut self,
        target: Buffer,
        offset: usize,
        device_offset: usize,
        len: usize,
    ) -> Started<'_, Buffer> {
        let plan = check_device_range(device_offset, len)
            .and_then(|()| self.range(&target, offset, len, Direction::FromDevice))
            .and_then(|to| self.plan(None, Some(to), device_offset));
        self.begin(target, plan)
    }

    /// Starts moving `len` bytes from `source` to `target` through the device's buffer:
    /// each piece of up to 4 KiB goes to the device and back.
    ///
    /// # Errors
    ///
    /// Refuses, and gives the buffers back, when the ranges or addresses do not fit.
    pub fn copy(
        &mut self,
        source: Buffer,
        source_offset: usize,
        target: Buffer,
        target_offset: usize,
        len: usize,
    ) -> Started<'_, (Buffer, Buffer)> {
        let plan = self.range(&source, source_offset, len, Direction::ToDevice).and_then(|from| {
            let to = self.range(&target, target_offset, len, Direction::FromDevice)?;
            self.plan(Some(from), Some(to), 0)
        });
        self.begin((source, target), plan)
    }

    /// Starts moving all of `source` to `target`, lists of any shape and of the same length,
    /// through the device's buffer.
    ///
    /// # Errors
    ///
    /// Refuses, and gives the tables back, when the lists do not fit each other or overlap,
    /// or an address is out of reach.
    pub fn copy_tables(
        &mut self,
        source: SgTable,
        target: SgTable,
    ) -> Started<'_, (SgTable, SgTable)> {
        let fit = Pieces::new(source.list(), target.list(), &DmaLimits::default());
        let plan = fit.map(drop).map_err(EduError::from).and_then(|()| {
            let from = self.all_of(&source, Direction::ToDevice)?;
            self.plan(Some(from), Some(self.all_of(&target, Direction::FromDevice)?), 0)
        });
        self.begin((source, target), plan)
    }

    fn begin<T: Send + 'static>(
        &mut self,
        buffers: T,
        plan: Result<VecDeque<Piece>, EduError>,
    ) -> Started<'_, T> {
        let ready = self.refuse_when_busy().and_then(|()| {
            self.device.check_events()?;
            if self.is_quiesced { self.revive(Duration::ZERO) } else { Ok(()) }
        });
        let mut pieces = match ready.and(plan) {
            Ok(pieces) => pieces,
            Err(error) => return Err(Failed::new(error, Some(buffers))),
        };
        let first = pieces.pop_front();
        let slot = self.in_flight.insert(Box::new(buffers));
        if let Some(piece) = first {
            self.job = Some(Job { pieces });
            if let Err(error) = self.start(piece) {
                let buffers = self.stop(slot).map(given_back);
                return Err(Failed::new(error, buffers));
            }
        }
        Ok(Transfer { edu: self, slot, gives_back: PhantomData })
    }

    pub(super) fn refuse_when_busy(&self) -> Result<(), EduError> {
        if self.job.is_some() || self.running()? {
            return Err(EduError::Busy { location: self.location() });
        }
        Ok(())
    }

    /// What the device sees of a range of a buffer.
    fn range(
        &self,
        buffer: &Buffer,
        offset: usize,
        len: usize,
        need: Direction,
    ) -> Result<VecDeque<Segment>, EduError> {
        self.check_buffer(buffer, need)?;
        Ok(buffer.segments_of(offset, len)?.collect())
    }

    /// What the device sees of a table.
    fn all_of(&self, table: &SgTable, need: Direction) -> Result<VecDeque<Segment>, EduError> {
        table.buffers().iter().try_for_each(|buffer| self.check_buffer(buffer, need))?;
        Ok(table.list().segments().iter().copied().collect())
    }

    /// Cuts a transfer into pieces: the device has no scatter/gather, so they go one after
    /// another; what goes through the device fills its buffer and empties it, in turns.
    ///
    /// Everything that can be known is checked before the device is told anything.
    fn plan(
        &self,
        source: Option<VecDeque<Segment>>,
        target: Option<VecDeque<Segment>>,
        device_offset: usize,
    ) -> Result<VecDeque<Piece>, EduError> {
        let sides = [(source, 0), (target, regs::COMMAND_TO_MEMORY)];
        let mut sides = sides.map(|(segments, way)| (segments.unwrap_or_default(), way));
        for segment in sides.iter().flat_map(|(segments, _)| segments) {
            self.check_address(*segment)?;
        }
        let mut pieces = VecDeque::new();
        while sides.iter().any(|(segments, _)| !segments.is_empty()) {
            for (segments, way) in &mut sides {
                let mut at = device_offset;
                while at < regs::DEVICE_BUFFER_LEN
                    && let Some(segment) = segments.front_mut()
                {
                    let len = segment.len.min(regs::DEVICE_BUFFER_LEN - at);
                    let device = regs::DEVICE_BUFFER + at as u64;
                    let memory = segment.iova.0;
                    let (source, target) =
                        if *way == 0 { (memory, device) } else { (device, memory) };
                    pieces.push_back(Piece { source, target, len, way: *way });
                    at += len;
                    // Past the end of a segment that is used up: not an address any more.
                    segment.iova.0 = memory.wrapping_add(len as u64);
                    segment.len -= len;
                    if segment.len == 0 {
                        segments.pop_front();
                    }
                }
            }
        }
        Ok(pieces)
    }

    fn check_buffer(&self, buffer: &Buffer, need: Direction) -> Result<(), EduError> {
        if !Arc::ptr_eq(buffer.space(), self.device.space()) {
            return Err(EduError::ForeignBuffer { location: self.location() });
        }
        let have = buffer.direction();
        if have != need && have != Direction::Bidirectional {
            return Err(EduError::WrongDirection { have, need });
        }
        Ok(())
    }

    fn check_address(&self, segment: Segment) -> Result<(), EduError> {
        let Segment { iova, len } = segment;
        let last = iova.checked_add((len as u64).saturating_sub(1));
        if last.is_none_or(|last| last.0 > self.mask) {
            return Err(EduError::AddressOverMask { iova, len, mask: self.mask });
        }
        Ok(())
    }

    /// Waits for the running piece, starts the next, until none is left.
    fn finish_pieces(&mut self, limit: Duration) -> Result<(), EduError> {
        let whole = Deadline::after(limit);
        while let Some(job) = &mut self.job {
            let next = job.pieces.pop_front();
            let piece = Deadline::after(self.config.timeout);
            self.finish_piece(whole.min(piece)).map_err(|error| match error {
                EduError::Timeout { location, what, .. } if !piece.has_passed() => {
                    EduError::Timeout { location, what, waited: limit }
                }
                error => error,
            })?;
            match next {
                Some(piece) => self.start(piece)?,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn start(&self, piece: Piece) -> Result<(), EduError> {
        let irq = if self.vector.is_some() { regs::COMMAND_IRQ } else { 0 };
        self.bar.set(regs::DMA_SOURCE, piece.source)?;
        self.bar.set(regs::DMA_DESTINATION, piece.target)?;
        self.bar.set(regs::DMA_COUNT, piece.len as u64)?;
        // The write to the command register is ordered after every store to the buffer.
        Ok(self.bar.set(regs::DMA_COMMAND, regs::COMMAND_RUN | piece.way | irq)?)
    }

    fn finish_piece(&self, deadline: Deadline) -> Result<(), EduError> {
        if self.vector.is_some() {
            self.wait_for_cause("the transfer", regs::IRQ_DMA, deadline)?;
        }
        // Reading the bit is ordered before every load from the buffer.
        self.wait_for("the transfer", deadline, |edu| edu.running().map(|busy| !busy))
    }

    /// Stops the device in mid-transfer. Returns the buffers when the device reaches memory
    /// no more; otherwise they are never freed.
    fn stop(&mut self, slot: Slot) -> Option<Box<dyn Any + Send>> {
        self.job = None;
        self.is_quiesced = true;
        if let Err(error) = self.device.quiesce() {
            log::error!(
                "{}: cannot be stopped, its buffers stay mapped and allocated: {error}",
                self.location()
            );
            self.in_flight.park();
            return None;
        }
        // The engine reaches no memory now. Let it run out, so that the next transfer does
        // not meet it, and give bus mastering back for that one; after an event of the function
        // there is none.
        if self.device.events().pending().is_none()
            && let Err(error) = self.revive(Duration::from_secs(1))
        {
            log::warn!("{}: {error}; bus mastering stays off", self.location());
        }
        self.in_flight.complete(slot)
    }

    /// Gives bus mastering back once the engine has run out: without it, edu would report a
    /// transfer as done that moved nothing.
    fn revive(&mut self, limit: Duration) -> Result<(), EduError> {
        let deadline = Deadline::after(limit);
        self.wait_for("the stopped transfer", deadline, |edu| edu.running().map(|busy| !busy))?;
        self.bar.set(regs::IRQ_ACK, regs::IRQ_DMA)?;
        self.device.set_bus_master(true)?;
        self.is_quiesced = false;
        Ok(())
    }
}

/// Refuses what does not lie inside of the device's own buffer.
fn check_device_range(offset: usize, len: usize) -> Result<(), EduError> {
    match offset.checked_add(len) {
        Some(end) if end <= regs::DEVICE_BUFFER_LEN => Ok(()),
        _ => Err(EduError::OutsideDeviceBuffer { offset, len }),
    }
}
