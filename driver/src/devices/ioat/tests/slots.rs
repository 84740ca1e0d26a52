//! Operations between slots on a small ring: few enough for Miri, which looks at how the ring and
//! what is in flight are filled through pointers.

use super::*;
use crate::dma::{Slot, SlotPool};
use crate::queue::SlotPair;

const SLOT: usize = 64;

fn pool(ioat: &Ioat, direction: Direction) -> (Arc<SlotPool>, Vec<Slot>) {
    SlotPool::new(ioat.allocate(&Request::new(4 * SLOT, direction)).unwrap(), SLOT).unwrap()
}

/// Expects that so many are done and that each pair's target has the bytes of its source.
fn reap(channel: &mut Channel, pools: [&SlotPool; 2], count: usize) -> Vec<SlotPair> {
    let mut back = Vec::new();
    let reaped = channel.wait_reap(&mut back, SECOND).unwrap();
    assert_eq!((reaped.done, reaped.failed, back.len()), (count, 0, count));
    for pair in &back {
        let slots = [pair.source.as_ref().unwrap(), pair.target.as_ref().unwrap()];
        let [mut from, mut to] = [[0; SLOT]; 2];
        pools[0].read(slots[0], 0, &mut from).unwrap();
        pools[1].read(slots[1], 0, &mut to).unwrap();
        assert_eq!(from, to);
    }
    back
}

#[test]
fn pairs_and_batches_fill_a_ring_that_wraps() {
    let (_backing, ioat, mut channel) = open(Config { ring_size: 16, ..config() });
    let (from, sources) = pool(&ioat, Direction::ToDevice);
    let (to, targets) = pool(&ioat, Direction::FromDevice);
    let pair = |(source, target)| SlotPair { source: Some(source), target: Some(target) };
    let mut pairs: Vec<_> = sources.into_iter().zip(targets).map(pair).collect();
    for round in 0..3 {
        for (n, pair) in (0..).zip(&mut pairs) {
            from.write(pair.source.as_mut().unwrap(), 0, &[8 * round + n; SLOT]).unwrap();
        }
        assert_eq!(channel.copy_pairs(&from, &to, &mut pairs, SLOT).unwrap(), 4);
        assert!(pairs.is_empty());
        let mut pairs_back = reap(&mut channel, [&from, &to], 4);
        for (n, pair) in (0..).zip(&mut pairs_back) {
            from.write(pair.source.as_mut().unwrap(), 0, &[8 * round + 4 + n; SLOT]).unwrap();
        }
        let filled = channel.batch(&from, &to, |batch| {
            while let Some(pair) = pairs_back.pop() {
                batch.copy_pair(pair, SLOT).unwrap();
            }
        });
        filled.unwrap();
        pairs = reap(&mut channel, [&from, &to], 4);
    }
}
