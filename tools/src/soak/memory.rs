//! Buffers, and what every byte of them must be.

use std::ops::Range;
use std::sync::Arc;

use vfio_dma::dma::{Buffer, DmaError, Pattern, SgError, SgTable};

use super::plan::{GUARD, Piece};

/// Bytes that are not what they must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WrongBytes {
    /// How many.
    pub(super) count: u64,
    /// The first: its offset, what it must be, and what it is.
    pub(super) first: (usize, u8, u8),
}

/// Compares what was found, which lies at an offset, with what must be there.
pub(super) fn compare(found: &[u8], expected: &[u8], offset: usize) -> Option<WrongBytes> {
    if found == expected {
        return None;
    }
    let differing = found.iter().zip(expected).enumerate().filter(|(_, (f, e))| f != e);
    let mut wrong: Option<WrongBytes> = None;
    for (at, (&found, &expected)) in differing {
        let first = (offset + at, expected, found);
        wrong.get_or_insert(WrongBytes { count: 0, first }).count += 1;
    }
    wrong
}

/// Adds up what two looks found.
fn both(one: Option<WrongBytes>, other: Option<WrongBytes>) -> Option<WrongBytes> {
    match (one, other) {
        (Some(one), Some(other)) => Some(WrongBytes { count: one.count + other.count, ..one }),
        (one, other) => one.or(other),
    }
}

/// After a transfer that failed each byte of its range is as it was before, `image`, or as it
/// should have become, which is the complement. Makes what was found the image.
pub(super) fn settle(found: &[u8], image: &mut [u8], offset: usize) -> Option<WrongBytes> {
    let mut wrong: Option<WrongBytes> = None;
    for (at, (&found, image)) in found.iter().zip(image).enumerate() {
        if found != *image && found != !*image {
            let first = (offset + at, *image, found);
            wrong.get_or_insert(WrongBytes { count: 0, first }).count += 1;
        }
        *image = found;
    }
    wrong
}

/// Memory that the device reads.
#[derive(Debug)]
pub(super) struct Source {
    buffer: Arc<Buffer>,
    image: Vec<u8>,
}

impl Source {
    /// Fills a buffer with a pattern.
    pub(super) fn new(mut buffer: Buffer, seed: u64) -> Result<Source, DmaError> {
        let mut image = vec![0; buffer.len()];
        Pattern::new(seed).bytes(0, &mut image);
        buffer.write(0, &image)?;
        Ok(Source { buffer: Arc::new(buffer), image })
    }

    pub(super) fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    pub(super) fn bytes(&self, at: usize, len: usize) -> &[u8] {
        &self.image[at..at + len]
    }

    /// Looks whether it is as it was made.
    pub(super) fn check(&self, scratch: &mut Vec<u8>) -> Result<Option<WrongBytes>, DmaError> {
        read(&self.buffer, 0..self.image.len(), scratch)?;
        Ok(compare(scratch, &self.image, 0))
    }
}

/// Memory that the device writes.
#[derive(Debug)]
pub(super) struct Target {
    buffer: Arc<Buffer>,
    /// What every byte must be.
    image: Vec<u8>,
    /// Where the transfer in flight writes, and what is looked at around it.
    pieces: Vec<Piece>,
    window: Range<usize>,
}

impl Target {
    /// Fills a buffer with a pattern, which is what guards its ranges.
    pub(super) fn new(mut buffer: Buffer, seed: u64) -> Result<Target, DmaError> {
        let mut image = vec![0; buffer.len()];
        Pattern::new(seed).bytes(0, &mut image);
        buffer.write(0, &image)?;
        Ok(Target { buffer: Arc::new(buffer), image, pieces: Vec::new(), window: 0..0 })
    }

    /// Whether no transfer has the buffer.
    pub(super) fn is_back(&self) -> bool {
        Arc::strong_count(&self.buffer) == 1
    }

    /// Spoils the pieces that are to become `expected`, each byte by its complement: a byte that
    /// the device leaves out shows. `None` while a transfer has the buffer.
    pub(super) fn prepare(
        &mut self,
        pieces: &[Piece],
        expected: &[u8],
    ) -> Result<Option<()>, DmaError> {
        let Some(buffer) = Arc::get_mut(&mut self.buffer) else { return Ok(None) };
        let (mut first, mut end, mut from) = (usize::MAX, 0, 0);
        for &(at, len) in pieces {
            let bytes = self.image[at..at + len].iter_mut().zip(&expected[from..from + len]);
            bytes.for_each(|(byte, expected)| *byte = !expected);
            (first, end, from) = (first.min(at), end.max(at + len), from + len);
        }
        self.window = first.saturating_sub(GUARD)..(end + GUARD).min(self.image.len());
        self.pieces.clear();
        self.pieces.extend_from_slice(pieces);
        buffer.write(self.window.start, &self.image[self.window.clone()])?;
        Ok(Some(()))
    }

    /// What a transfer writes.
    pub(super) fn table(&self) -> Result<SgTable, SgError> {
        SgTable::gather(self.pieces.iter().map(|&(at, len)| (Arc::clone(&self.buffer), at, len)))
    }

    /// After a transfer that went well: every byte arrived, and none around them changed.
    pub(super) fn check_done(
        &mut self,
        scratch: &mut Vec<u8>,
    ) -> Result<Option<WrongBytes>, DmaError> {
        for &(at, len) in &self.pieces {
            self.image[at..at + len].iter_mut().for_each(|byte| *byte = !*byte);
        }
        read(&self.buffer, self.window.clone(), scratch)?;
        let wrong = compare(scratch, &self.image[self.window.clone()], self.window.start);
        if wrong.is_some() {
            // What is wrong is told once.
            self.image[self.window.clone()].copy_from_slice(scratch);
        }
        Ok(wrong)
    }

    /// After a transfer that failed: bytes of its range arrived or did not, and none around
    /// them changed.
    pub(super) fn check_undone(
        &mut self,
        scratch: &mut Vec<u8>,
    ) -> Result<Option<WrongBytes>, DmaError> {
        read(&self.buffer, self.window.clone(), scratch)?;
        let begin = self.window.start;
        let mut wrong = None;
        for &(at, len) in &self.pieces {
            let found = &scratch[at - begin..at - begin + len];
            wrong = both(wrong, settle(found, &mut self.image[at..at + len], at));
        }
        let around = compare(scratch, &self.image[self.window.clone()], begin);
        self.image[self.window.clone()].copy_from_slice(scratch);
        Ok(both(wrong, around))
    }

    /// After a transfer of bytes that are not known beforehand: appends what arrived, in its
    /// order; none of the bytes around changed.
    pub(super) fn take_found(
        &mut self,
        found: &mut Vec<u8>,
        scratch: &mut Vec<u8>,
    ) -> Result<Option<WrongBytes>, DmaError> {
        read(&self.buffer, self.window.clone(), scratch)?;
        let begin = self.window.start;
        for &(at, len) in &self.pieces {
            let arrived = &scratch[at - begin..at - begin + len];
            self.image[at..at + len].copy_from_slice(arrived);
            found.extend_from_slice(arrived);
        }
        let around = compare(scratch, &self.image[self.window.clone()], begin);
        self.image[self.window.clone()].copy_from_slice(scratch);
        Ok(around)
    }

    /// Looks at all of it while nothing is in flight.
    pub(super) fn check_all(
        &mut self,
        scratch: &mut Vec<u8>,
    ) -> Result<Option<WrongBytes>, DmaError> {
        read(&self.buffer, 0..self.image.len(), scratch)?;
        let wrong = compare(scratch, &self.image, 0);
        self.image.copy_from_slice(scratch);
        Ok(wrong)
    }
}

fn read(buffer: &Buffer, range: Range<usize>, into: &mut Vec<u8>) -> Result<(), DmaError> {
    into.resize(range.len(), 0);
    buffer.read(range.start, into)
}

#[cfg(test)]
mod tests {
    use vfio_dma::device::Device;
    use vfio_dma::dma::{Direction, Request};
    use vfio_dma_model::embedded::Embedded;
    use vfio_dma_model::ioat::IoatConfig;

    use super::*;

    const LEN: usize = 10_000;
    const PIECES: [Piece; 3] = [(5000, 700), (200, 1), (300, 4096)];

    fn target() -> (Device, Target, Vec<u8>) {
        let model = Embedded::new(IoatConfig::default()).unwrap();
        let device = Device::open(model.attach().unwrap()).unwrap();
        let buffer = device.allocate(&Request::new(LEN, Direction::FromDevice)).unwrap();
        let mut expected = vec![0; 700 + 1 + 4096];
        Pattern::new(3).bytes(0, &mut expected);
        let mut target = Target::new(buffer, 1).unwrap();
        assert_eq!(target.prepare(&PIECES, &expected).unwrap(), Some(()));
        (device, target, expected)
    }

    /// What a device does: the first `len` bytes of the transfer.
    fn transfer(target: &mut Target, expected: &[u8], len: usize) {
        let buffer = Arc::get_mut(&mut target.buffer).unwrap();
        let mut done = 0;
        for (at, piece) in PIECES {
            let part = piece.min(len - done);
            buffer.write(at, &expected[done..done + part]).unwrap();
            done += part;
        }
    }

    fn spoil(target: &mut Target, at: usize) -> (usize, u8, u8) {
        let buffer = Arc::get_mut(&mut target.buffer).unwrap();
        let mut byte = [0];
        buffer.read(at, &mut byte).unwrap();
        // Neither what it was nor its complement.
        let other = byte[0] ^ 0x10;
        buffer.write(at, &[other]).unwrap();
        (at, byte[0], other)
    }

    #[test]
    fn a_whole_transfer_is_right_and_one_byte_that_is_not_is_found() {
        let mut scratch = Vec::new();
        let (_device, mut target, expected) = target();
        transfer(&mut target, &expected, expected.len());
        assert_eq!(target.check_done(&mut scratch).unwrap(), None);
        // In the transfer, in a gap between its pieces, and in the guards.
        for at in [200, 300, 5699, 201, 4999, 199, 140, 5700, 5763] {
            assert_eq!(target.prepare(&PIECES, &expected).unwrap(), Some(()));
            transfer(&mut target, &expected, expected.len());
            let first = spoil(&mut target, at);
            let wrong = target.check_done(&mut scratch).unwrap();
            assert_eq!(wrong, Some(WrongBytes { count: 1, first }));
            assert_eq!(target.check_all(&mut scratch).unwrap(), None, "it is told once");
        }
    }

    #[test]
    fn every_byte_that_is_left_out_shows() {
        let mut scratch = Vec::new();
        for left_out in [1, 100, 700 + 1 + 4096] {
            let (_device, mut target, expected) = target();
            transfer(&mut target, &expected, expected.len() - left_out);
            let wrong = target.check_done(&mut scratch).unwrap().unwrap();
            assert_eq!(wrong.count, left_out as u64);
        }
    }

    #[test]
    fn after_a_failure_a_part_may_have_arrived_and_nothing_else_changed() {
        let mut scratch = Vec::new();
        for arrived in [0, 1, 700, 702, 4797] {
            let (_device, mut target, expected) = target();
            transfer(&mut target, &expected, arrived);
            assert_eq!(target.check_undone(&mut scratch).unwrap(), None);
            assert_eq!(target.check_all(&mut scratch).unwrap(), None);
        }
        for at in [200, 301, 5001, 199, 201, 5700] {
            let (_device, mut target, expected) = target();
            transfer(&mut target, &expected, 702);
            let (_, _, found) = spoil(&mut target, at);
            let wrong = target.check_undone(&mut scratch).unwrap().unwrap();
            assert_eq!((wrong.count, wrong.first.0, wrong.first.2), (1, at, found));
        }
    }

    #[test]
    fn bytes_far_from_a_transfer_are_looked_at_in_the_end() {
        let mut scratch = Vec::new();
        let (_device, mut target, expected) = target();
        transfer(&mut target, &expected, expected.len());
        let first = spoil(&mut target, LEN - 1);
        assert_eq!(target.check_done(&mut scratch).unwrap(), None);
        let wrong = target.check_all(&mut scratch).unwrap();
        assert_eq!(wrong, Some(WrongBytes { count: 1, first }));
    }

    #[test]
    fn a_buffer_in_flight_is_not_written() {
        let (_device, mut target, expected) = target();
        let table = target.table().unwrap();
        assert!(!target.is_back());
        assert_eq!(target.prepare(&PIECES, &expected).unwrap(), None);
        drop(table);
        assert!(target.is_back());
    }

    #[test]
    fn a_source_that_was_written_is_found() {
        let (device, ..) = target();
        let buffer = device.allocate(&Request::new(5000, Direction::ToDevice)).unwrap();
        let mut source = Source::new(buffer, 9).unwrap();
        let mut scratch = Vec::new();
        assert_eq!(source.check(&mut scratch).unwrap(), None);
        let byte = source.bytes(4096, 1)[0];
        Arc::get_mut(&mut source.buffer).unwrap().write(4096, &[!byte]).unwrap();
        let wrong = WrongBytes { count: 1, first: (4096, byte, !byte) };
        assert_eq!(source.check(&mut scratch).unwrap(), Some(wrong));
    }
}
