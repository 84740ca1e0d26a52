//! One program for every copy engine and every way to one.
//!
//! [`run`] is given an opened device and knows nothing else of it: neither which engine it
//! is, nor whether it is a model in this process, behind a socket, or a function that a
//! kernel's VFIO gives access to.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::{CopyEngine, SlotCopy, open_copy_engine};
use vfio_dma::dma::{Buffer, Direction, Pattern, Placement, Request, SgTable, SlotPool};

use crate::Dice;

/// How far a run goes; what bounds it is said where one is made.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// Longest move in bytes.
    pub longest: usize,
    /// Longest time for one move.
    pub limit: Duration,
}

/// Lengths at which something changes: words, cache lines, pages, a descriptor's most.
const LENGTHS: [usize; 10] = [1, 2, 63, 64, 4095, 4096, 4097, 65_537, 1 << 20, (1 << 20) + 1];

/// Moves of a random length, in each placement.
const RANDOM: usize = 4;

/// Bytes that may lie before and behind a range that is moved: more than a page.
const AROUND: u64 = 5000;

/// Bytes of a page.
const PAGE: usize = 4096;

/// Copies between slots, where the engine does that.
fn copy_slots(engine: &mut dyn CopyEngine, limit: Duration) {
    const SLOT: usize = 300;
    let place = |engine: &dyn CopyEngine, direction| {
        let buffer = engine.allocate(&Request::new(40 * SLOT, direction)).expect("a buffer");
        SlotPool::new(buffer, SLOT).expect("40 slots")
    };
    let (from, mut sources) = place(engine, Direction::ToDevice);
    let (to, targets) = place(engine, Direction::FromDevice);
    let Some(engine) = engine.slots() else { return };
    for (n, slot) in (0..).zip(&mut sources) {
        from.write(slot, 0, &[n; SLOT]).expect("inside the slot");
    }
    let pair = |(source, target)| SlotCopy { source, target, len: SLOT };
    let mut copies: VecDeque<_> = sources.into_iter().zip(targets).map(pair).collect();
    let mut back = Vec::new();
    while back.len() < 40 {
        engine.copy_slots(&from, &to, &mut copies).expect("room, or not");
        let failed = engine.reap_slots(&mut back, limit).expect("in time");
        assert!(failed.is_empty(), "{failed:?}");
    }
    for (n, slots) in (0..).zip(back) {
        let mut found = [0; SLOT];
        to.read(&slots.target.expect("a target"), 0, &mut found).expect("inside the slot");
        assert_eq!(found, [n; SLOT], "they come back in their order");
    }
}

/// Moves bytes between buffers in each placement, 1 byte and up, at random offsets, and
/// checks every byte of both buffers.
///
/// # Panics
///
/// When anything fails, or a byte is not what it should be.
pub fn run(device: Device, extent: &Extent) {
    run_in_units(device, extent, 1);
}

/// As [`run`], for an engine whose lengths and addresses are multiples of so many bytes.
///
/// # Panics
///
/// As [`run`].
pub fn run_in_units(device: Device, extent: &Extent, unit: usize) {
    run_engine(open_copy_engine(device).expect("a copy engine"), extent, unit);
}

/// As [`run_in_units`], with an engine that another driver has opened.
///
/// # Panics
///
/// As [`run`].
pub fn run_engine(mut engine: Box<dyn CopyEngine>, extent: &Extent, unit: usize) {
    let mut dice = Dice::seeded();
    let space = Arc::clone(engine.space());
    copy_slots(&mut *engine, extent.limit);
    for placement in [Placement::Auto, Placement::Contiguous, Placement::ScatterGather] {
        let longest = extent.longest;
        let ladder = LENGTHS.into_iter().filter(|len| *len < longest).chain([longest]);
        // As many of a few bytes as of many: the number of digits is what is random.
        let random = (0..RANDOM).map(|_| {
            let top = longest.min(1 << 20);
            let bits = 1 + dice.roll(u64::from(top.ilog2()));
            (1 + dice.roll(1 << bits) as usize).min(top)
        });
        for len in ladder.chain(random.collect::<Vec<_>>()) {
            let len = len.next_multiple_of(unit);
            let around = |dice: &mut Dice| dice.roll(AROUND) as usize / unit * unit;
            let (from, to) = (around(&mut dice), around(&mut dice));
            let size = len + from.max(to) + dice.roll(AROUND) as usize;
            println!("{placement:?}: {len} bytes from {from} to {to} of {size}");
            let moved = Move { len, from, to, size, seed: dice.roll(u64::MAX) };
            moved.run(&mut *engine, placement, extent.limit);
        }
    }
    drop(engine);
    assert_eq!(space.usage().mappings, 0, "all is unmapped");
}

/// One move between two new buffers of the same size.
struct Move {
    len: usize,
    /// Offsets of the range in source and target.
    from: usize,
    to: usize,
    size: usize,
    seed: u64,
}

impl Move {
    fn run(&self, engine: &mut dyn CopyEngine, placement: Placement, limit: Duration) {
        let Move { len, from, to, size, seed } = *self;
        let place = |direction| {
            let request = Request::new(size, direction).placement(placement);
            let buffer = engine.allocate(&request).expect("a buffer");
            self.check_shape(&buffer, placement);
            buffer
        };
        let (mut source, mut target) = (place(Direction::ToDevice), place(Direction::FromDevice));
        let (sent, old) = (Pattern::new(seed), Pattern::new(!seed));
        sent.fill(&mut source, 0, size, 0).expect("in range");
        old.fill(&mut target, 0, size, 0).expect("in range");

        let source = SgTable::range(source, from, len).expect("in range");
        let target = SgTable::range(target, to, len).expect("in range");
        let (source, target) = engine.copy(source, target, limit).expect("the copy ends");
        let source = source.into_buffer().expect("the only one");
        let target = target.into_buffer().expect("the only one");

        let check = |what, pattern: Pattern, buffer, at, len, position: usize| {
            let same = pattern.check(buffer, at, len, position as u64).expect("in range");
            same.unwrap_or_else(|wrong| panic!("{what}: {wrong}"));
        };
        check("the source", sent, &source, 0, size, 0);
        check("the target", sent, &target, to, len, from);
        check("before the target", old, &target, 0, to, 0);
        check("behind the target", old, &target, to + len, size - to - len, to + len);
    }

    /// The buffer is as was asked for: one segment, or one for each page.
    fn check_shape(&self, buffer: &Buffer, placement: Placement) {
        let segments = match placement {
            Placement::ScatterGather => self.size.div_ceil(PAGE),
            _ => 1,
        };
        let report = buffer.report();
        assert_eq!(buffer.segments().len(), segments, "{report}");
        let map_calls = report.placed().expect("it is placed").2;
        assert_eq!(map_calls, segments as u64, "{report}");
    }
}
