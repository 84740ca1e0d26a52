//! The copy command: blocks to blocks of the same namespace, by the controller alone (NVM
//! Command Set 1.0, 3.2.2, source ranges of format 0).

use std::ops::Range;

use super::command::{Command, DataPointer};
use super::data::ListMemory;
use super::submit::Target;
use super::transfer::Operation;
use super::{IoQueue, NvmeError, Refused, Token, WhenFull, Writable};

/// Words of 8 bytes of a source range.
const RANGE_WORDS: usize = 4;

/// What a namespace takes of a copy command: all 0 where it takes none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct CopyLimits {
    /// The most blocks of a source range: MSSRL.
    pub range_blocks: u16,
    /// The most blocks of a command: MCL.
    pub command_blocks: u32,
    /// The most source ranges of a command: MSRC, plus 1.
    pub ranges: u16,
}

impl CopyLimits {
    /// Whether anything can be copied.
    #[must_use]
    pub fn is_some(&self) -> bool {
        self.range_blocks > 0 && self.command_blocks > 0 && self.ranges > 0
    }
}

impl IoQueue {
    /// Submits a copy of ranges of blocks, one behind another, to blocks that may be written: no
    /// data crosses the bus. What is longer than a command may be becomes several, in any order.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::write`], when the controller or the namespace does not offer it, and for a
    /// source that overlaps with where it is copied to.
    pub fn copy(
        &mut self,
        writable: &Writable,
        sources: &[Range<u64>],
        to: u64,
        when_full: WhenFull,
    ) -> Result<Token, Refused> {
        self.check_copy(writable, sources, to)
            .map_err(|error| Refused { error, table: None })
            .and_then(|blocks| {
                let (operation, namespace) = (Operation::Copy, &writable.namespace);
                let target = Target { operation, namespace, lba: to, blocks, sources };
                self.submit_target(&target, when_full)
            })
    }

    /// How many blocks are to be copied.
    fn check_copy(
        &self,
        writable: &Writable,
        sources: &[Range<u64>],
        to: u64,
    ) -> Result<u64, NvmeError> {
        let namespace = &writable.namespace;
        let offered = self.controller.info.can_copy() && namespace.copy_limits.is_some();
        self.require(offered, "the copy command")?;
        let mut blocks = 0u64;
        for source in sources {
            let count = source.end.saturating_sub(source.start);
            if count == 0 || source.end > namespace.blocks {
                let (lba, size, namespace) = (source.start, namespace.blocks, namespace.id);
                return Err(NvmeError::OutOfRange { lba, blocks: count, namespace, size });
            }
            blocks = blocks.saturating_add(count);
        }
        writable.check(to, blocks)?;
        let end = to + blocks;
        match sources.iter().find(|source| source.start < end && to < source.end) {
            None => Ok(blocks),
            Some(source) => {
                let (lba, blocks) = (source.start, source.end - source.start);
                Err(NvmeError::Overlap { lba, blocks, first: to, end })
            }
        }
    }
}

/// Makes a copy command of as many blocks as it can have of sources of which `done` blocks have
/// commands already; returns how many. `page` is what a list page has for ranges, in bytes.
pub(super) fn build(
    command: &mut Command,
    sources: &[Range<u64>],
    (done, to): (u64, u64),
    limits: CopyLimits,
    page: u64,
    lists: &mut impl ListMemory,
) -> u64 {
    let most_ranges = usize::from(limits.ranges).min(page as usize / (8 * RANGE_WORDS));
    let (mut skip, mut blocks, mut ranges) = (done, 0u64, 0);
    for source in sources {
        let len = source.end - source.start;
        let mut at = source.start + skip.min(len);
        skip -= skip.min(len);
        while at < source.end && ranges < most_ranges {
            let left = u64::from(limits.command_blocks) - blocks;
            let count = (source.end - at).min(limits.range_blocks.into()).min(left);
            if count == 0 {
                break;
            }
            let word = ranges * RANGE_WORDS;
            for (n, value) in [0, at, count - 1, 0].into_iter().enumerate() {
                lists.write(0, word + n, value);
            }
            (at, blocks, ranges) = (at + count, blocks + count, ranges + 1);
        }
    }
    command.data = DataPointer::page(lists.address(0));
    (command.words[0], command.words[1]) = (to as u32, (to >> 32) as u32);
    // The number of ranges less 1 in bits 7:0, their format, 0, in bits 11:8.
    command.words[2] = (ranges as u32).saturating_sub(1) & 0xff;
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::nvme::command::nvm;

    #[derive(Default)]
    struct Page(Vec<u64>);

    impl ListMemory for Page {
        fn address(&self, page: usize) -> u64 {
            0x10_0000 + 4096 * page as u64
        }

        fn write(&mut self, page: usize, word: usize, value: u64) {
            assert_eq!(page, 0);
            self.0.resize(self.0.len().max(word + 1), u64::MAX);
            self.0[word] = value;
        }
    }

    #[test]
    fn commands_have_every_block_once_and_keep_to_each_limit() {
        let sources = [100..101, 1000..1300, 7..20, 5000..5128];
        let expected: Vec<u64> = sources.iter().cloned().flatten().collect();
        for (range_blocks, command_blocks, ranges) in
            [(128, 128, 128), (16, 100, 3), (1, 2, 1), (u16::MAX, u32::MAX, 256), (200, 1000, 4)]
        {
            let limits = CopyLimits { range_blocks, command_blocks, ranges };
            let (mut copied, mut done) = (Vec::new(), 0);
            while done < expected.len() as u64 {
                let (mut command, mut page) = (Command::new(nvm::COPY, 1), Page::default());
                let to = (1 << 33) + done;
                let blocks = build(&mut command, &sources, (done, to), limits, 4096, &mut page);
                assert!(blocks > 0 && blocks <= command_blocks.into());
                let count = command.words[2] as usize + 1;
                assert!(count <= ranges.into() && page.0.len() == 4 * count);
                assert_eq!((command.words[0], command.words[1]), (to as u32, 2));
                assert_eq!(command.data, DataPointer::page(0x10_0000));
                for range in page.0.chunks(4) {
                    let [0, lba, less_1, 0] = *range else { panic!("{range:?}") };
                    assert!(less_1 < range_blocks.into());
                    copied.extend(lba..=lba + less_1);
                }
                done += blocks;
            }
            assert_eq!(copied, expected);
        }
    }

    #[test]
    fn a_page_bounds_the_ranges() {
        let sources: Vec<_> = (0..300).map(|n| 2 * n..2 * n + 1).collect();
        let limits = CopyLimits { range_blocks: 8, command_blocks: 4096, ranges: 256 };
        let (mut command, mut page) = (Command::new(nvm::COPY, 1), Page::default());
        assert_eq!(build(&mut command, &sources, (0, 9000), limits, 4096, &mut page), 128);
        assert_eq!((command.words[2], page.0.len()), (127, 512));
    }
}
