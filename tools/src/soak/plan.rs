//! What is done: every operation is a function of the seed, the round, the channel and the
//! operation's number, so that any of them can be made again.

use std::ops::Range;

use fastrand::Rng;

/// Bytes at each end of a buffer that no operation writes.
pub(super) const EDGE: usize = 32;

/// Bytes around an operation's target that are looked at with it.
pub(super) const GUARD: usize = 64;

/// The longest of the sizes that most operations have.
const SMALL: usize = 4 << 10;
const MEDIUM: usize = 64 << 10;

/// Random numbers that a seed and a path of numbers determine.
pub(super) fn rng(seed: u64, path: &[u64]) -> Rng {
    Rng::with_seed(path.iter().fold(seed, |state, &part| mix(state ^ mix(part))))
}

/// The finalizer of splitmix64.
pub(super) fn mix(value: u64) -> u64 {
    let mut x = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Whether something happens that does so `part` times in `whole`.
pub(super) fn chance(rng: &mut Rng, part: u32, whole: u32) -> bool {
    rng.u32(0..whole) < part
}

/// A number whose logarithm is spread evenly.
pub(super) fn log_uniform(rng: &mut Rng, range: Range<usize>) -> usize {
    let (low, high) = ((range.start.max(1) as f64).ln(), (range.end.max(2) as f64).ln());
    let value = (low + rng.f64() * (high - low)).exp() as usize;
    value.clamp(range.start, (range.end - 1).max(range.start))
}

/// Which strategies place a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Auto,
    Contiguous,
    /// Pages that are not neighbours, or runs of so many bytes.
    Scattered(Option<usize>),
    Pool,
}

/// How a buffer is placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placing {
    pub(super) len: usize,
    pub(super) how: How,
    pub(super) alignment: u64,
}

impl Placing {
    pub(super) fn random(rng: &mut Rng, len: usize) -> Placing {
        let how = match rng.u32(0..8) {
            0 => How::Auto,
            1 | 2 => How::Contiguous,
            3 | 4 => How::Pool,
            5 => How::Scattered(Some(4096 << rng.u32(1..5))),
            _ => How::Scattered(None),
        };
        let alignment = if chance(rng, 1, 4) { 1 << rng.u32(0..17) } else { 1 };
        Placing { len, how, alignment }
    }
}

/// A piece of a buffer: offset and length in bytes.
pub(super) type Piece = (usize, usize);

/// What a transfer does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Work {
    /// Copies these pieces of sources, one after another: (source, offset, length).
    Copy(Vec<(usize, usize, usize)>),
    /// Fills with 8 bytes that repeat.
    Fill(u64),
}

/// What becomes of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// Its result is taken.
    Take,
    /// Nobody asks for its result.
    Detach,
    /// The channel is aborted at once.
    Abort,
}

/// How a transfer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Await {
    Transfer,
    All,
    /// By calls that do not wait.
    Poll,
    /// For too short a time, then as [`Await::Transfer`].
    Short,
}

/// A transfer to one lane's buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transfer {
    /// Which of the buffers is written.
    pub(super) lane: usize,
    /// Its buffer is placed anew before.
    pub(super) place: Option<Placing>,
    pub(super) len: usize,
    pub(super) work: Work,
    /// Where the bytes go, one piece after another.
    pub(super) target: Vec<Piece>,
    /// Whether the device is told at once.
    pub(super) issue: bool,
    /// Whether a full ring is waited for, or refuses.
    pub(super) wait_for_room: bool,
    pub(super) then: Then,
    pub(super) wait: Await,
}

/// An operation between slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SlotWork {
    /// From the first byte of one to the first byte of another.
    Copy {
        len: usize,
    },
    /// From an offset to an offset.
    Range {
        from: usize,
        to: usize,
        len: usize,
    },
    Fill {
        pattern: u64,
        len: usize,
    },
    /// Parts of slots to one, from an offset on.
    Gather {
        parts: Vec<Piece>,
        to: usize,
    },
    /// One slot, from an offset on, to parts of slots.
    Scatter {
        from: usize,
        parts: Vec<Piece>,
    },
}

/// The next thing that a channel does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Transfer(Transfer),
    Slots(Vec<SlotWork>),
}

/// What a channel has to work with in a round.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// The longest transfer.
    pub(super) max_size: usize,
    /// Length of each buffer that is read.
    pub(super) sources: Vec<usize>,
    /// How many buffers are written in turn.
    pub(super) lanes: usize,
    /// The most pieces of a side.
    pub(super) max_pieces: usize,
    pub(super) can_fill: bool,
    /// Bytes of a slot, and the most parts of an operation between them; without slots none.
    pub(super) slots: Option<(usize, usize)>,
    /// Whether transfers are cancelled.
    pub(super) cancel: bool,
    /// Every length and offset is a multiple of so many bytes.
    pub(super) unit: usize,
}

impl Transfer {
    /// The transfer of so many bytes for each one.
    fn scaled(mut self, unit: usize) -> Transfer {
        if let Some(placing) = &mut self.place {
            placing.len *= unit;
        }
        self.len *= unit;
        if let Work::Copy(pieces) = &mut self.work {
            pieces.iter_mut().for_each(|(_, at, len)| (*at, *len) = (*at * unit, *len * unit));
        }
        self.target.iter_mut().for_each(|(at, len)| (*at, *len) = (*at * unit, *len * unit));
        self
    }
}

/// The operations of a channel in a round.
#[derive(Debug, Clone)]
pub(super) struct Planner {
    seed: u64,
    path: [u64; 2],
    shape: Shape,
    /// Units of each lane's buffer; 0 before it is placed.
    lanes: Vec<usize>,
    next: u64,
    next_lane: usize,
}

impl Planner {
    pub(super) fn new(seed: u64, round: u64, channel: u64, mut shape: Shape) -> Planner {
        let lanes = vec![0; shape.lanes];
        // It is planned in units.
        shape.max_size = (shape.max_size / shape.unit).max(1);
        shape.sources.iter_mut().for_each(|len| *len /= shape.unit);
        Planner { seed, path: [round, channel], shape, lanes, next: 0, next_lane: 0 }
    }

    /// The number of the next step.
    pub(super) fn number(&self) -> u64 {
        self.next
    }

    pub(super) fn step(&mut self) -> Step {
        let [round, channel] = self.path;
        let mut rng = rng(self.seed, &[round, channel, self.next]);
        self.next += 1;
        match self.shape.slots {
            Some((len, parts)) if chance(&mut rng, 8, 100) => {
                let count = rng.usize(1..=24);
                let fills = self.shape.can_fill;
                Step::Slots((0..count).map(|_| slot_work(&mut rng, len, parts, fills)).collect())
            }
            _ => Step::Transfer(self.transfer(&mut rng).scaled(self.shape.unit)),
        }
    }

    fn transfer(&mut self, rng: &mut Rng) -> Transfer {
        let lane = self.next_lane;
        self.next_lane = (lane + 1) % self.lanes.len();
        let max = self.shape.max_size;
        let place = (self.lanes[lane] == 0 || chance(rng, 1, 100)).then(|| {
            // Half of the buffers have room for the longest transfer.
            let least = if rng.bool() { max } else { 64 };
            let room = log_uniform(rng, least..2 * max.max(64) + 1);
            Placing::random(rng, room + 2 * EDGE)
        });
        if let Some(placing) = place {
            self.lanes[lane] = placing.len;
        }
        let room = self.lanes[lane] - 2 * EDGE;
        let shortest_source = self.shape.sources.iter().copied().min().unwrap_or(1);
        let most = max.min(room).min(shortest_source);
        let len = size(rng, most);
        let work = if self.shape.can_fill && chance(rng, 1, 8) {
            Work::Fill(rng.u64(..))
        } else {
            Work::Copy(self.source(rng, len))
        };
        let target = target(rng, len, room, self.shape.max_pieces);
        let then = match rng.u32(0..1000) {
            _ if !self.shape.cancel => Then::Take,
            0..30 => Then::Detach,
            30..33 => Then::Abort,
            _ => Then::Take,
        };
        let wait = match rng.u32(0..8) {
            0 => Await::All,
            1 | 2 => Await::Poll,
            3 => Await::Short,
            _ => Await::Transfer,
        };
        let (issue, wait_for_room) = (chance(rng, 1, 6), rng.bool());
        Transfer { lane, place, len, work, target, issue, wait_for_room, then, wait }
    }

    /// Pieces of sources; they may overlap, for they are only read.
    fn source(&self, rng: &mut Rng, len: usize) -> Vec<(usize, usize, usize)> {
        let sources = &self.shape.sources;
        let piece = |rng: &mut Rng, len| {
            let which = rng.usize(0..sources.len());
            (which, aligned(rng, sources[which] - len), len)
        };
        lengths(rng, len, self.shape.max_pieces).into_iter().map(|len| piece(rng, len)).collect()
    }
}

/// Pieces of a buffer that are disjoint, in any order; `room` is the buffer's length without its
/// edges.
pub(super) fn target(rng: &mut Rng, len: usize, room: usize, max_pieces: usize) -> Vec<Piece> {
    let lengths = lengths(rng, len, max_pieces);
    let mut spare = room - len;
    let mut at = EDGE + aligned(rng, spare);
    spare -= at - EDGE;
    let with_gaps = chance(rng, 1, 4);
    let mut pieces: Vec<Piece> = Vec::with_capacity(lengths.len());
    for len in lengths {
        if with_gaps && !pieces.is_empty() {
            let gap = rng.usize(0..=spare.min(64));
            (at, spare) = (at + gap, spare - gap);
        }
        pieces.push((at, len));
        at += len;
    }
    rng.shuffle(&mut pieces);
    pieces
}

/// A size of 1 byte to `most`: small ones are frequent.
fn size(rng: &mut Rng, most: usize) -> usize {
    let range = match rng.u32(0..100) {
        0..82 => 1..SMALL,
        82..94 => SMALL..MEDIUM,
        _ => MEDIUM..usize::MAX,
    };
    log_uniform(rng, range.start.min(most)..range.end.min(most) + 1)
}

/// An offset up to `most`, often a multiple of 64.
fn aligned(rng: &mut Rng, most: usize) -> usize {
    let at = rng.usize(0..=most);
    if chance(rng, 1, 3) { at & !63 } else { at }
}

/// Cuts a length into pieces of at least a byte.
fn lengths(rng: &mut Rng, len: usize, most: usize) -> Vec<usize> {
    let count = match rng.u32(0..10) {
        0..6 => 1,
        6..9 => rng.usize(1..=8),
        _ => rng.usize(1..=32),
    };
    let count = count.min(most).min(len);
    let mut cuts: Vec<usize> = (1..count).map(|_| rng.usize(1..len)).collect();
    cuts.push(len);
    cuts.sort_unstable();
    cuts.dedup();
    let mut before = 0;
    cuts.into_iter().map(|cut| cut - std::mem::replace(&mut before, cut)).collect()
}

fn slot_work(rng: &mut Rng, slot: usize, most_parts: usize, can_fill: bool) -> SlotWork {
    let range = |rng: &mut Rng, most: usize| {
        let len = log_uniform(rng, 1..most + 1);
        (aligned(rng, slot - len), len)
    };
    match rng.u32(0..8) {
        0 if can_fill => SlotWork::Fill { pattern: rng.u64(..), len: rng.usize(1..=slot) },
        1 | 2 => {
            let (from, len) = range(rng, slot);
            SlotWork::Range { from, to: aligned(rng, slot - len), len }
        }
        which @ (3 | 4) => {
            let count = rng.usize(1..=most_parts.min(5));
            let parts: Vec<Piece> = (0..count).map(|_| range(rng, slot / count)).collect();
            let single = aligned(rng, slot - parts.iter().map(|(_, len)| len).sum::<usize>());
            match which {
                3 => SlotWork::Gather { parts, to: single },
                _ => SlotWork::Scatter { from: single, parts },
            }
        }
        _ => SlotWork::Copy { len: rng.usize(1..=slot) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Shape {
        Shape {
            max_size: 256 << 10,
            sources: vec![300_000, 262_144],
            lanes: 5,
            max_pieces: 32,
            can_fill: true,
            slots: Some((512, 4)),
            cancel: true,
            unit: 1,
        }
    }

    fn steps(seed: u64, round: u64, channel: u64) -> Vec<Step> {
        let mut planner = Planner::new(seed, round, channel, shape());
        (0..2000).map(|_| planner.step()).collect()
    }

    #[test]
    fn a_seed_makes_the_same_operations_and_each_channel_and_round_others() {
        assert_eq!(steps(1, 2, 3), steps(1, 2, 3));
        for other in [steps(2, 2, 3), steps(1, 3, 3), steps(1, 2, 2)] {
            assert_ne!(steps(1, 2, 3), other);
        }
    }

    #[test]
    fn every_kind_of_operation_comes_up_and_each_fits_its_buffers() {
        let shape = shape();
        let mut lanes = vec![0; shape.lanes];
        let (mut fills, mut detached, mut aborted, mut gathers, mut scattered) = (0, 0, 0, 0, 0);
        let mut longest = 0;
        for step in steps(7, 0, 0) {
            let transfer = match step {
                Step::Transfer(transfer) => transfer,
                Step::Slots(works) => {
                    for work in works {
                        match work {
                            SlotWork::Copy { len } | SlotWork::Fill { len, .. } => {
                                assert!((1..=512).contains(&len));
                            }
                            SlotWork::Range { from, to, len } => {
                                assert!(len > 0 && from.max(to) + len <= 512);
                            }
                            SlotWork::Gather { parts, to: at }
                            | SlotWork::Scatter { from: at, parts } => {
                                let total: usize = parts.iter().map(|(_, len)| len).sum();
                                assert!(at + total <= 512 && (1..=4).contains(&parts.len()));
                                assert!(parts.iter().all(|(at, len)| *len > 0 && at + len <= 512));
                                gathers += 1;
                            }
                        }
                    }
                    continue;
                }
            };
            if let Some(placing) = transfer.place {
                lanes[transfer.lane] = placing.len;
            }
            let room = lanes[transfer.lane];
            longest = longest.max(transfer.len);
            match &transfer.work {
                Work::Fill(_) => fills += 1,
                Work::Copy(pieces) => {
                    let total: usize = pieces.iter().map(|(_, _, len)| len).sum();
                    assert_eq!(total, transfer.len);
                    for (which, at, len) in pieces {
                        assert!(*len > 0 && at + len <= shape.sources[*which]);
                    }
                }
            }
            let mut pieces = transfer.target.clone();
            assert_eq!(pieces.iter().map(|(_, len)| len).sum::<usize>(), transfer.len);
            scattered += usize::from(pieces.len() > 8);
            pieces.sort_unstable();
            assert!(pieces[0].0 >= EDGE, "{transfer:?}");
            assert!(pieces.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            assert!(pieces.last().is_some_and(|(at, len)| at + len + EDGE <= room), "{transfer:?}");
            detached += usize::from(transfer.then == Then::Detach);
            aborted += usize::from(transfer.then == Then::Abort);
        }
        let seen = [fills, detached, aborted, gathers, scattered];
        assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
        assert!(longest > 100_000, "{longest}");
    }

    #[test]
    fn a_device_that_moves_words_is_given_whole_words() {
        let shape = Shape { unit: 16, can_fill: false, slots: None, ..shape() };
        let mut planner = Planner::new(1, 0, 0, shape.clone());
        let mut longest = 0;
        for _ in 0..2000 {
            let Step::Transfer(transfer) = planner.step() else { panic!("there are no slots") };
            let Work::Copy(pieces) = &transfer.work else { panic!("it cannot fill") };
            longest = longest.max(transfer.len);
            assert!(transfer.len > 0 && transfer.len <= shape.max_size);
            for &(which, at, len) in pieces {
                assert!(at % 16 == 0 && len % 16 == 0 && at + len <= shape.sources[which]);
            }
            assert!(transfer.target.iter().all(|(at, len)| at % 16 == 0 && len % 16 == 0));
        }
        assert!(longest > 100_000, "{longest}");
    }

    #[test]
    fn sizes_are_spread_over_orders_of_magnitude() {
        let mut rng = rng(1, &[]);
        let sizes: Vec<usize> = (0..10_000).map(|_| log_uniform(&mut rng, 1..1025)).collect();
        assert!(sizes.iter().all(|size| (1..=1024).contains(size)));
        let below = sizes.iter().filter(|&&size| size < 32).count();
        assert!((4000..6000).contains(&below), "half of the orders, {below} of 10000");
    }
}
