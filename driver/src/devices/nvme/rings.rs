//! The two rings of a queue, in memory or in the controller memory buffer.

use super::command::{CompletionWords, Submission};
use super::memory_buffer::Run;
use crate::dma::Iova;
use crate::queue::{
    CompletionEntry, CompletionRing, Producer, Published, QueueError, SubmissionRing,
};

/// Bytes of a submission and of a completion entry.
pub(super) const ENTRY_BYTES: [u64; 2] = [64, 16];

/// A submission queue.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each queue, and the larger one is what nearly all have"
)]
pub(super) enum Submissions {
    Memory(SubmissionRing<Submission>),
    /// Its entries are written through the BAR: the controller reads them at home.
    Buffer(Producer, Run),
}

impl Submissions {
    #[inline]
    pub(super) fn producer(&self) -> &Producer {
        match self {
            Submissions::Memory(ring) => ring.producer(),
            Submissions::Buffer(producer, _) => producer,
        }
    }

    #[inline]
    pub(super) fn producer_mut(&mut self) -> &mut Producer {
        match self {
            Submissions::Memory(ring) => ring.producer_mut(),
            Submissions::Buffer(producer, _) => producer,
        }
    }

    /// Where the controller finds the first entry.
    pub(super) fn iova(&self) -> Iova {
        match self {
            Submissions::Memory(ring) => ring.entries().iova(0),
            Submissions::Buffer(_, run) => Iova(run.address()),
        }
    }

    pub(super) fn clear(&mut self) {
        match self {
            Submissions::Memory(ring) => ring.clear(),
            Submissions::Buffer(producer, _) => producer.clear(),
        }
    }

    #[inline]
    pub(super) fn push(&mut self, entry: &Submission) -> Result<(), QueueError> {
        match self {
            Submissions::Memory(ring) => ring.push(entry).map(drop),
            Submissions::Buffer(producer, run) => {
                producer.require(1)?;
                let at = u64::from(producer.tail()) * ENTRY_BYTES[0];
                for (offset, &word) in (at..).step_by(8).zip(entry) {
                    // A BAR that does not answer does not answer the doorbell either, which
                    // tells.
                    if let Err(error) = run.write(offset, word) {
                        log::debug!("{error}");
                    }
                }
                producer.advance(1);
                Ok(())
            }
        }
    }

    #[inline]
    pub(super) fn publish(&mut self) -> Option<Published> {
        self.producer_mut().publish()
    }
}

/// A completion queue.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one for each queue, and the larger one is what nearly all have"
)]
pub(super) enum Completions {
    Memory(CompletionRing<CompletionWords>),
    /// It is looked at through the BAR: each look is a read over the bus.
    Buffer(BufferRing),
}

/// A completion queue in the controller memory buffer.
#[derive(Debug)]
pub(super) struct BufferRing {
    run: Run,
    size: u32,
    head: u32,
    phase: bool,
    taken: u64,
}

impl BufferRing {
    pub(super) fn new(run: Run, size: u32) -> BufferRing {
        let mut ring = BufferRing { run, size, head: 0, phase: true, taken: 0 };
        ring.clear();
        ring
    }

    fn clear(&mut self) {
        for at in (0..u64::from(self.size) * ENTRY_BYTES[1]).step_by(8) {
            if let Err(error) = self.run.write(at, 0) {
                log::debug!("{error}");
            }
        }
        (self.head, self.phase) = (0, true);
    }

    fn take(&mut self) -> Option<CompletionWords> {
        let at = u64::from(self.head) * ENTRY_BYTES[1];
        // One that cannot be read has nothing new: whoever asks the controller itself is told.
        let second = self.run.read(at + 8).ok()?;
        if CompletionWords::phase(second) != self.phase {
            return None;
        }
        let first = self.run.read(at).ok()?;
        self.head += 1;
        if self.head == self.size {
            (self.head, self.phase) = (0, !self.phase);
        }
        self.taken = self.taken.wrapping_add(1);
        Some([first, second])
    }
}

impl Completions {
    #[inline]
    pub(super) fn size(&self) -> u32 {
        match self {
            Completions::Memory(ring) => ring.size(),
            Completions::Buffer(ring) => ring.size,
        }
    }

    /// Where the controller writes the first entry.
    pub(super) fn iova(&self) -> Iova {
        match self {
            Completions::Memory(ring) => ring.iova(),
            Completions::Buffer(ring) => Iova(ring.run.address()),
        }
    }

    pub(super) fn clear(&mut self) {
        match self {
            Completions::Memory(ring) => ring.clear(),
            Completions::Buffer(ring) => ring.clear(),
        }
    }

    #[inline]
    pub(super) fn head(&self) -> u32 {
        match self {
            Completions::Memory(ring) => ring.head(),
            Completions::Buffer(ring) => ring.head,
        }
    }

    /// Entries taken so far.
    #[inline]
    pub(super) fn taken(&self) -> u64 {
        match self {
            Completions::Memory(ring) => ring.taken(),
            Completions::Buffer(ring) => ring.taken,
        }
    }

    #[inline]
    pub(super) fn take(&mut self) -> Option<CompletionWords> {
        match self {
            Completions::Memory(ring) => ring.take(),
            Completions::Buffer(ring) => ring.take(),
        }
    }
}
