//! Copies in segments of any size and order, every byte of which is checked.

use std::sync::Arc;
use std::time::Duration;

use vfio_dma::devices::CopyEngine;
use vfio_dma::dma::{Direction, Pattern, Request, SgTable};
use vfio_dma_tests::Dice;

/// How long any copy may take.
pub(crate) const LONG: Duration = Duration::from_secs(300);

/// Pieces of a buffer, in some order: offset and length.
pub(crate) type Pieces = Vec<(usize, usize)>;

/// One piece.
pub(crate) fn whole(len: usize) -> Pieces {
    vec![(0, len)]
}

/// Pieces of one size in random order; no two that follow each other are neighbours.
pub(crate) fn shuffled(len: usize, segment: usize, dice: &mut Dice) -> Pieces {
    let mut pieces: Pieces =
        (0..len).step_by(segment).map(|at| (at, segment.min(len - at))).collect();
    for n in (1..pieces.len()).rev() {
        pieces.swap(n, dice.roll(n as u64 + 1) as usize);
    }
    pieces
}

/// Pieces of 128 B to 1 MiB in random order.
pub(crate) fn mixed(len: usize, dice: &mut Dice) -> Pieces {
    let mut pieces = Pieces::new();
    let mut at = 0;
    while at < len {
        let size = (128 << dice.roll(14)).min(len - at);
        pieces.push((at, size));
        at += size;
    }
    for n in (1..pieces.len()).rev() {
        pieces.swap(n, dice.roll(n as u64 + 1) as usize);
    }
    pieces
}

/// Copies `len` bytes, read in one order of pieces and written in another; returns how many
/// bytes are wrong.
pub(crate) fn copy(
    engine: &mut dyn CopyEngine,
    len: usize,
    from: &Pieces,
    to: &Pieces,
    seed: u64,
) -> usize {
    let pattern = Pattern::new(seed);
    let mut source = engine.allocate(&Request::new(len, Direction::ToDevice)).unwrap();
    let mut target = engine.allocate(&Request::new(len, Direction::FromDevice)).unwrap();
    pattern.fill(&mut source, 0, len, 0).unwrap();
    Pattern::new(!seed).fill(&mut target, 0, len, 0).unwrap();
    let table = |buffer, pieces: &Pieces| {
        let buffer = Arc::new(buffer);
        SgTable::gather(pieces.iter().map(|&(at, len)| (Arc::clone(&buffer), at, len))).unwrap()
    };
    let (source, target) = (table(source, from), table(target, to));
    let (source, target) = engine.copy(source, target, LONG).unwrap_or_else(|e| panic!("{e}"));
    drop(source);
    let target = target.into_buffer().unwrap();
    // The stream's bytes, piece by piece of both sides.
    let (mut reads, mut writes) = (from.iter().copied(), to.iter().copied());
    let (mut read, mut write) = (reads.next(), writes.next());
    let mut wrong = 0;
    while let (Some((source_at, source_len)), Some((target_at, target_len))) = (read, write) {
        let len = source_len.min(target_len);
        if pattern.check(&target, target_at, len, source_at as u64).unwrap().is_err() {
            let mut bytes = vec![0; len];
            target.read(target_at, &mut bytes).unwrap();
            let expected = |n| pattern.byte((source_at + n) as u64);
            wrong += (0..len).filter(|&n| bytes[n] != expected(n)).count();
        }
        let rest = |(at, have): (usize, usize)| (have > len).then_some((at + len, have - len));
        read = rest((source_at, source_len)).or_else(|| reads.next());
        write = rest((target_at, target_len)).or_else(|| writes.next());
    }
    wrong
}
