//! What a segment costs in cycles of simulated hardware.

use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use vfio_dma::devices::{CopyEngine, CopyError};
use vfio_dma::dma::{Direction, DmaError, Mismatch, Pattern, Request, SgError, SgTable};
use vfio_dma_model::tlp::Stats;

/// Why a measurement failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CyclesError {
    /// The engine refused, or failed.
    #[error("{0}")]
    Copy(Box<CopyError>),
    /// The lists make no transfer.
    #[error(transparent)]
    Sg(#[from] SgError),
    /// A range is not inside its buffer.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// A byte is wrong.
    #[error("in segments of {segment} bytes: {wrong}")]
    Wrong {
        /// Bytes of a segment.
        segment: usize,
        /// The byte.
        wrong: Mismatch,
    },
    /// The engine did not give a buffer back.
    #[error("the engine did not give a buffer back")]
    Lost,
}

/// One copy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Row {
    /// Bytes of each segment; those of the whole transfer for the contiguous one.
    pub segment: usize,
    /// Cycles from the first register write to the last data in memory.
    pub cycles: u64,
    /// Bytes that arrived in each of them.
    pub bytes_per_cycle: f64,
    /// The rate as a share of the contiguous one.
    pub of_contiguous: f64,
    /// Cycles for each segment beyond its share of the contiguous copy.
    pub cycles_per_segment: f64,
    /// Time on this machine, in nanoseconds.
    pub nanoseconds: u64,
}

/// Pieces of one size, so ordered that no two that follow each other are neighbours: by a
/// stride through them that has no divisor in common with their number.
fn pieces(len: usize, segment: usize, salt: usize) -> Vec<(usize, usize)> {
    let count = len.div_ceil(segment);
    let divides = |a: usize, b: usize| {
        let (mut a, mut b) = (a, b);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let stride = (count * 5 / 13 + 2 + salt..).find(|&n| divides(n, count) == 1).unwrap_or(1);
    let place = |n: usize| (n * stride % count) * segment;
    (0..count).map(|n| (place(n), segment.min(len - place(n)))).collect()
}

/// Copies `len` bytes contiguously and in segments of each size, verifies every byte, and says
/// how many cycles each took. `stats` asks the function in whose clock they are counted.
///
/// # Errors
///
/// Fails when the engine does, or a byte is wrong.
pub fn measure(
    engine: &mut dyn CopyEngine,
    stats: impl Fn() -> Stats,
    len: usize,
    segments: &[usize],
    limit: std::time::Duration,
) -> Result<Vec<Row>, CyclesError> {
    let mut rows: Vec<Row> = Vec::new();
    for (n, &segment) in [len].iter().chain(segments).enumerate() {
        let copy_error = |error| CyclesError::Copy(Box::new(error));
        let pattern = Pattern::new(n as u64 + 1);
        let request = |direction| Request::new(len, direction);
        let mut source = engine.allocate(&request(Direction::ToDevice)).map_err(copy_error)?;
        let mut target = engine.allocate(&request(Direction::FromDevice)).map_err(copy_error)?;
        pattern.fill(&mut source, 0, len, 0)?;
        Pattern::new(0).fill(&mut target, 0, len, 0)?;
        let (from, to) = (pieces(len, segment, 0), pieces(len, segment, 7));
        let table = |buffer, pieces: &[(usize, usize)]| {
            let buffer = Arc::new(buffer);
            SgTable::gather(pieces.iter().map(|&(at, len)| (Arc::clone(&buffer), at, len)))
        };
        let (source, target) = (table(source, &from)?, table(target, &to)?);
        let (before, begin) = (stats().cycles, Instant::now());
        let (_, target) =
            engine.copy(source, target, limit).map_err(|failed| CyclesError::Copy(failed.error))?;
        let nanoseconds = begin.elapsed().as_nanos() as u64;
        let cycles = stats().written_until.saturating_sub(before).max(1);
        let target = target.into_buffer().ok_or(CyclesError::Lost)?;
        for (&(source, len), &(at, _)) in from.iter().zip(&to) {
            let same = pattern.check(&target, at, len, source as u64)?;
            same.map_err(|wrong| CyclesError::Wrong { segment, wrong })?;
        }
        let whole = rows.first().map_or(cycles, |row| row.cycles) as f64;
        rows.push(Row {
            segment,
            cycles,
            bytes_per_cycle: len as f64 / cycles as f64,
            of_contiguous: whole / cycles as f64,
            cycles_per_segment: (cycles as f64 - whole) / from.len() as f64,
            nanoseconds,
        });
    }
    Ok(rows)
}

/// The smallest measured segment from which on scatter/gather costs less than 5%.
#[must_use]
pub fn cheap_from(rows: &[Row]) -> Option<usize> {
    let mut rows: Vec<&Row> = rows.iter().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.segment));
    rows.iter().take_while(|row| row.of_contiguous > 0.95).last().map(|row| row.segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_there_and_apart() {
        for (len, segment) in [(4096, 128), (1 << 20, 4096), (1000, 300), (256, 256)] {
            let all = pieces(len, segment, 7);
            let mut sorted = all.clone();
            sorted.sort_unstable();
            assert_eq!(sorted.iter().map(|piece| piece.1).sum::<usize>(), len);
            assert!(sorted.windows(2).all(|pair| pair[0].0 + pair[0].1 == pair[1].0));
            if all.len() > 4 {
                assert!(all.windows(2).all(|pair| pair[0].0 + pair[0].1 != pair[1].0));
            }
        }
    }

    #[test]
    fn the_cheap_size_is_where_all_above_are_cheap() {
        let row = |segment, of_contiguous| Row {
            segment,
            cycles: 1,
            bytes_per_cycle: 1.0,
            of_contiguous,
            cycles_per_segment: 0.0,
            nanoseconds: 1,
        };
        let rows = [row(1 << 20, 1.0), row(128, 0.99), row(4096, 0.9), row(16384, 0.97)];
        assert_eq!(cheap_from(&rows), Some(16384));
        assert_eq!(cheap_from(&[row(1, 0.5)]), None);
    }
}
