//! Data that depends on its position, so that what was swapped or shifted shows.

use super::{Buffer, DmaError};

/// A byte that is not what the pattern has there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset} is {found:#04x}, it should be {expected:#04x}")]
#[non_exhaustive]
pub struct Mismatch {
    /// Offset in the buffer.
    pub offset: usize,
    /// The byte of the pattern.
    pub expected: u8,
    /// The byte found.
    pub found: u8,
}

/// Bytes that are a function of a seed and of their position.
///
/// Every 8 bytes are the mixed value of their position, so a run of them occurs nowhere
/// else in a buffer, nor at the same place under another seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
}

/// Bytes handled at a time; a multiple of 8.
const CHUNK: usize = 4096;

impl Pattern {
    /// The pattern of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Pattern {
        Pattern { seed }
    }

    /// The pattern's byte at a position.
    #[must_use]
    pub fn byte(self, position: u64) -> u8 {
        self.word(position / 8).to_le_bytes()[(position % 8) as usize]
    }

    /// The finalizer of splitmix64: every input bit changes about half of the output.
    fn word(self, index: u64) -> u64 {
        let mut x = self.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// The pattern's bytes from a position on.
    pub fn bytes(self, position: u64, into: &mut [u8]) {
        // Up to the next word byte by byte, then by words, the last one cut.
        let lead = (position.next_multiple_of(8) - position).min(into.len() as u64);
        let (lead, rest) = into.split_at_mut(lead as usize);
        let index = (position + lead.len() as u64) / 8;
        for (at, byte) in (position..).zip(lead) {
            *byte = self.byte(at);
        }
        let (words, tail) = rest.as_chunks_mut();
        let last = self.word(index + words.len() as u64).to_le_bytes();
        for (index, word) in (index..).zip(words) {
            *word = self.word(index).to_le_bytes();
        }
        tail.copy_from_slice(&last[..tail.len()]);
    }

    /// Writes the pattern, from `position` on, to `len` bytes of a buffer.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the buffer.
    pub fn fill(
        self,
        buffer: &mut Buffer,
        offset: usize,
        len: usize,
        position: u64,
    ) -> Result<(), DmaError> {
        let mut chunk = [0; CHUNK];
        for start in (0..len).step_by(CHUNK) {
            let part = &mut chunk[..CHUNK.min(len - start)];
            self.bytes(position + start as u64, part);
            buffer.write(offset + start, part)?;
        }
        Ok(())
    }

    /// Compares `len` bytes of a buffer with the pattern from `position` on.
    ///
    /// # Errors
    ///
    /// The outer error when the range is not inside the buffer, the inner one for the
    /// first byte that differs.
    pub fn check(
        self,
        buffer: &Buffer,
        offset: usize,
        len: usize,
        position: u64,
    ) -> Result<Result<(), Mismatch>, DmaError> {
        let mut found = [0; CHUNK];
        let mut expected = [0; CHUNK];
        for start in (0..len).step_by(CHUNK) {
            let part = CHUNK.min(len - start);
            buffer.read(offset + start, &mut found[..part])?;
            self.bytes(position + start as u64, &mut expected[..part]);
            if found[..part] == expected[..part] {
                continue;
            }
            let differs = (0..part).find(|&i| found[i] != expected[i]);
            if let Some(i) = differs {
                let offset = offset + start + i;
                return Ok(Err(Mismatch { offset, expected: expected[i], found: found[i] }));
            }
        }
        Ok(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn runs_are_made_of_the_bytes_at_their_positions() {
        let pattern = Pattern::new(0x5eed);
        for position in (0..17).chain([u64::MAX / 2 - 3]) {
            for len in 0..20 {
                let mut run = vec![0; len];
                pattern.bytes(position, &mut run);
                let each: Vec<u8> = (position..).take(len).map(|at| pattern.byte(at)).collect();
                assert_eq!(run, each, "{len} bytes at {position}");
            }
        }
    }

    #[test]
    fn a_shift_or_another_seed_shows_within_a_word() {
        let pattern = Pattern::new(1);
        let mut here = [0; 4096];
        pattern.bytes(0, &mut here);
        for shift in [1, 7, 8, 64, 4096] {
            let mut there = [0; 4096];
            pattern.bytes(shift, &mut there);
            let same = here.iter().zip(&there).filter(|(a, b)| a == b).count();
            assert!(same < 64, "{same} of 4096 bytes alike at a shift of {shift}");
        }
        let words: HashSet<&[u8]> = here.chunks(8).collect();
        assert_eq!(words.len(), 512, "no word twice");
        let mut other = [0; 4096];
        Pattern::new(2).bytes(0, &mut other);
        assert_ne!(here[..8], other[..8]);
    }
}
