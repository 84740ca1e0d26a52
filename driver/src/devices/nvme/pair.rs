//! A submission queue and its completion queue, and the pages for lists of commands.

use std::sync::Arc;

use super::command::{Command, Completed};
use super::data::ListMemory;
use super::memory_buffer::MemoryBuffer;
use super::regs;
use super::rings::{BufferRing, Completions, ENTRY_BYTES, Submissions};
use super::shadow::{Doorbells, Rung};
use crate::dma::{Allocator, Coherent, DmaError};
use crate::mmio::MmioError;
use crate::queue::{CompletionRing, Producer, QueueError, QueueSetupError, SubmissionRing, Tags};

/// A submission queue, its completion queue, and the commands in flight on them.
#[derive(Debug)]
pub(super) struct Pair<T> {
    pub(super) id: u16,
    pub(super) submission: Submissions,
    pub(super) completion: Completions,
    pub(super) tags: Tags<T>,
    tail_doorbell: u64,
    head_doorbell: u64,
    /// Whether each head is written to its register, also where there are shadow doorbells: a
    /// line of INTx falls then and not before.
    pub(super) is_level: bool,
    /// The tail and the head that the device was told.
    tail_told: u32,
    head_told: u32,
    /// Whether these are in memory alone, where the device has to look for them by itself.
    is_tail_quiet: bool,
    is_head_quiet: bool,
}

impl<T> Pair<T> {
    /// Queues of so many entries, at the begin of a page of the controller; in its memory
    /// buffer as far as that takes them and has room.
    pub(super) fn new(
        allocator: &Allocator,
        (id, size): (u16, u32),
        page: u64,
        stride: u64,
        buffer: Option<&Arc<MemoryBuffer>>,
    ) -> Result<Pair<T>, QueueSetupError> {
        let entries = size as usize;
        let (tail_doorbell, head_doorbell) = regs::doorbells(id, stride);
        let run = |takes: bool, bytes: u64| {
            buffer.filter(|_| takes).and_then(|buffer| buffer.take(bytes * u64::from(size)))
        };
        let uses = buffer.map(|buffer| buffer.uses());
        let [submissions, completions] = ENTRY_BYTES;
        let submission = match run(uses.is_some_and(|u| u.takes_submissions()), submissions) {
            Some(run) => Submissions::Buffer(Producer::new(size)?, run),
            None => Submissions::Memory(SubmissionRing::new(allocator.coherent(entries, page)?)?),
        };
        let completion = match run(uses.is_some_and(|u| u.takes_completions()), completions) {
            Some(run) => Completions::Buffer(BufferRing::new(run, size)),
            None => Completions::Memory(CompletionRing::new(allocator.coherent(entries, page)?)?),
        };
        Ok(Pair {
            id,
            submission,
            completion,
            // One less than the entries, so that neither queue ever overflows.
            tags: Tags::new(size - 1)?,
            tail_doorbell,
            head_doorbell,
            is_level: false,
            tail_told: 0,
            head_told: 0,
            is_tail_quiet: false,
            is_head_quiet: false,
        })
    }

    pub(super) fn size(&self) -> u32 {
        self.completion.size()
    }

    /// Begins anew, with no command in flight: the controller was reset.
    pub(super) fn clear(&mut self) {
        self.submission.clear();
        self.completion.clear();
        (self.tail_told, self.head_told) = (0, 0);
        (self.is_tail_quiet, self.is_head_quiet) = (false, false);
    }

    /// Commands that can be submitted now.
    #[inline]
    pub(super) fn free(&self) -> usize {
        self.tags.free().min(self.submission.producer().free() as usize)
    }

    /// Says that there is no room for a command.
    pub(super) fn full(&self) -> QueueError {
        self.submission.producer().full(1)
    }

    /// Writes the entry of a command.
    #[inline]
    pub(super) fn push(&mut self, command: &Command, item: T) -> Result<u16, QueueError> {
        self.submission.producer().require(1)?;
        let Ok(tag) = self.tags.insert(item) else {
            return Err(self.submission.producer().full(1));
        };
        self.submission.push(&command.entry(tag))?;
        Ok(tag)
    }

    /// Its doorbells: that of the submission tail and of the completion head.
    pub(super) fn doorbells(&self) -> [u64; 2] {
        [self.tail_doorbell, self.head_doorbell]
    }

    /// Tells the device of the commands that were pushed since the last time; how, if there
    /// were any.
    #[inline]
    pub(super) fn ring(&mut self, doorbells: Doorbells<'_>) -> Result<Option<Rung>, MmioError> {
        let Some(published) = self.submission.publish() else { return Ok(None) };
        let step = (self.tail_told, published.tail);
        self.tail_told = published.tail;
        // Of the admin queue's doorbells a controller may know the registers only.
        let rung = doorbells.ring(self.tail_doorbell, step, self.size(), self.id == 0)?;
        self.is_tail_quiet = rung == Rung::Shadow;
        Ok(Some(rung))
    }

    /// Tells the device by its registers what it was told in memory alone, in case it missed
    /// that; whether there was anything.
    pub(super) fn ring_again(&mut self, doorbells: Doorbells<'_>) -> Result<bool, MmioError> {
        let quiet = [
            (&mut self.is_tail_quiet, self.tail_doorbell, self.tail_told),
            (&mut self.is_head_quiet, self.head_doorbell, self.head_told),
        ];
        let mut is_any = false;
        for (is_quiet, doorbell, value) in quiet {
            // A value that a register has is not written twice: each write of a head may count.
            if std::mem::take(is_quiet) {
                doorbells.bar.write(doorbell, value)?;
                is_any = true;
            }
        }
        Ok(is_any)
    }

    /// Takes a completion, if there is one, and its command.
    ///
    /// # Errors
    ///
    /// Fails when the completion cannot be true.
    #[inline]
    pub(super) fn reap(&mut self) -> Result<Option<(Completed, T)>, QueueError> {
        let Some(words) = self.completion.take() else { return Ok(None) };
        let completed = Completed::of(words);
        let producer = self.submission.producer_mut();
        // The head is one past the last that the device has read.
        let size = u64::from(producer.size());
        let head = u64::from(completed.head);
        let last = if head == 0 { size - 1 } else { head - 1 };
        let position = producer.behind_slot(last)?;
        producer.complete_to(position)?;
        if completed.queue != self.id {
            return Err(QueueError::NoCommand { tag: completed.tag, in_flight: self.tags.len() });
        }
        let item = self.tags.complete(completed.tag)?;
        Ok(Some((completed, item)))
    }

    /// Tells the device which completions were taken, so that it may use their entries again;
    /// how, if there were any.
    #[inline]
    pub(super) fn acknowledge(
        &mut self,
        doorbells: Doorbells<'_>,
    ) -> Result<Option<Rung>, MmioError> {
        let step = (self.head_told, self.completion.head());
        if step.0 == step.1 {
            return Ok(None);
        }
        self.head_told = step.1;
        let always = self.id == 0 || self.is_level;
        let rung = doorbells.ring(self.head_doorbell, step, self.size(), always)?;
        self.is_head_quiet = rung == Rung::Shadow;
        Ok(Some(rung))
    }
}

/// Pages for the lists of commands: as many for each as it may need.
#[derive(Debug)]
pub(super) struct ListPool {
    /// Runs of pages, each contiguous for the device: one, where that can be had.
    runs: Vec<Coherent<u64>>,
    /// Pages of each run but the last.
    run_pages: usize,
    page_words: usize,
    per_command: usize,
}

impl ListPool {
    pub(super) fn new(
        allocator: &Allocator,
        commands: usize,
        per_command: usize,
        page: u64,
    ) -> Result<ListPool, DmaError> {
        let page_words = (page / 8) as usize;
        let pages = commands * per_command;
        // A page at a time is what any memory has.
        let mut run_pages = pages;
        loop {
            let runs = (0..pages)
                .step_by(run_pages)
                .map(|first| allocator.coherent((pages - first).min(run_pages) * page_words, page));
            match runs.collect() {
                Ok(runs) => return Ok(ListPool { runs, run_pages, page_words, per_command }),
                Err(error) if run_pages == 1 => return Err(error),
                Err(_) => run_pages = run_pages.div_ceil(2),
            }
        }
    }

    /// The pages of the command with this index.
    #[inline]
    pub(super) fn of(&mut self, command: usize) -> Lists<'_> {
        let first = command * self.per_command;
        Lists { pool: self, first }
    }

    #[inline]
    fn at(&self, page: usize) -> (usize, usize) {
        (page / self.run_pages, page % self.run_pages * self.page_words)
    }
}

/// The pages for the lists of one command.
#[derive(Debug)]
pub(super) struct Lists<'a> {
    pool: &'a mut ListPool,
    first: usize,
}

impl ListMemory for Lists<'_> {
    #[inline]
    fn address(&self, page: usize) -> u64 {
        let (run, word) = self.pool.at(self.first + page);
        self.pool.runs[run].iova(word).0
    }

    #[inline]
    fn write(&mut self, page: usize, word: usize, value: u64) {
        debug_assert!(page < self.pool.per_command && word < self.pool.page_words);
        let (run, first) = self.pool.at(self.first + page);
        self.pool.runs[run].write(first + word, &value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::nvme::command::nvm;
    use crate::testing::{NoRegisters, Scripted, allocator};

    #[test]
    fn list_pages_lie_apart_and_the_device_sees_them() {
        let (allocator, host) = allocator();
        let mut pool = ListPool::new(&allocator, 5, 3, 4096).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for command in 0..5 {
            for page in 0..3 {
                let mut lists = pool.of(command);
                let address = lists.address(page);
                assert!(address.is_multiple_of(4096) && seen.insert(address));
                lists.write(page, 511, address);
                assert_eq!(host.load(address + 4088), Some(address));
            }
        }
    }

    /// A device that completes what it is told to, in any order.
    #[test]
    fn commands_come_back_in_any_order_and_never_twice() {
        let (allocator, host) = allocator();
        let device = crate::device::Device::open(Scripted::new((1, 1), |_| NoRegisters).attach());
        let bar = device.unwrap().bar(0).unwrap();
        let doorbells = Doorbells { bar: &bar, pages: None };
        let size = 5;
        let mut pair = Pair::<u64>::new(&allocator, (3, size), 4096, 4, None).unwrap();
        let (queue, entries) = (pair.submission.iova().0, pair.completion.iova().0);
        let mut completions = 0u64;
        let mut complete = |head: u32, id: u16, tag: u16| {
            let (slot, lap) = (completions % u64::from(size), completions / u64::from(size));
            let phase = u64::from(lap.is_multiple_of(2)) << 48;
            let word = u64::from(head) | u64::from(id) << 16 | u64::from(tag) << 32 | phase;
            host.store(entries + 16 * slot + 8, word).unwrap();
            completions += 1;
        };
        let mut next = 0u64;
        for round in 0..20 {
            let mut tags = Vec::new();
            while pair.free() > 0 {
                let slot = pair.submission.producer().tail();
                let tag = pair.push(&Command::new(nvm::READ, 7), next).unwrap();
                let word = host.load(queue + 64 * u64::from(slot)).unwrap();
                assert_eq!(word, 7 << 32 | u64::from(tag) << 16 | 2);
                tags.push((tag, next));
                next += 1;
            }
            assert_eq!(tags.len(), 4);
            assert!(pair.push(&Command::new(nvm::READ, 7), 0).is_err());
            assert_eq!(pair.ring(doorbells).unwrap(), Some(Rung::Register));
            assert_eq!(pair.ring(doorbells).unwrap(), None);
            tags.rotate_left(round % 4);
            let head = pair.submission.producer().tail();
            tags.iter().for_each(|(tag, _)| complete(head, 3, *tag));
            for (tag, item) in tags {
                let (completed, got) = pair.reap().unwrap().unwrap();
                assert_eq!((completed.tag, got), (tag, item));
            }
            assert!(pair.reap().unwrap().is_none());
            pair.acknowledge(doorbells).unwrap();
        }
        // A tag that is not in flight, a queue that is another, a head that was not told.
        let tag = pair.push(&Command::new(nvm::READ, 7), 0).unwrap();
        pair.ring(doorbells).unwrap();
        let head = pair.submission.producer().tail();
        for (head, id, tag) in [(head, 3, tag ^ 0x1000), (head, 2, tag), (head + 1, 3, tag)] {
            complete(head, id, tag);
            assert!(pair.reap().is_err());
        }
    }
}
