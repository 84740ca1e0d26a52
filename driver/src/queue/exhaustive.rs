//! Every state of small queues, and every step from it.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::{CompletionCount, CompletionRing, Producer, QueueError, Tags};
use crate::dma::Coherent;
use crate::testing::buffer;

/// A ring as plain numbers: positions that only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Positions {
    done: u64,
    published: u64,
    filled: u64,
    origin: u64,
}

/// What `ring` should be, asked in every way.
fn check(ring: &Producer, is: Positions, size: u64) {
    assert_eq!((ring.done(), ring.published(), ring.filled()), (is.done, is.published, is.filled));
    assert_eq!(u64::from(ring.free()), size - 1 - (is.filled - is.done));
    assert_eq!(u64::from(ring.in_flight()), is.published - is.done);
    assert_eq!(u64::from(ring.tail()), is.filled % size);
    assert_eq!(u64::from(ring.last_done_slot()), (is.done + size - 1) % size);
    let run = u64::from(ring.run());
    assert!(run <= u64::from(ring.free()) && is.filled % size + run <= size);
    assert_eq!(run == 0, ring.free() == 0);
    for slot in 0..size + 2 {
        // Of the positions that may be reported as the newest done, the one with this slot.
        let newest = (is.done..=is.published).find(|&behind| (behind + size - 1) % size == slot);
        match newest.filter(|_| slot < size) {
            Some(behind) => assert_eq!(ring.behind_slot(slot), Ok(behind)),
            None => assert!(matches!(ring.behind_slot(slot), Err(QueueError::NotInFlight { .. }))),
        }
    }
    for bits in 2..5u32 {
        let Ok(count) = CompletionCount::new(bits, ring) else {
            assert!(size >= 1 << bits, "a count of {bits} bits is enough for {size}");
            continue;
        };
        for value in 0..1u64 << bits {
            let newly = value;
            let expected = (newly <= is.published - is.done).then_some(is.done + newly);
            assert_eq!(count.position(ring, value).ok(), expected);
        }
    }
}

#[test]
fn every_step_from_every_state_of_small_rings() {
    let mut steps = 0u32;
    for size in 2..=6u64 {
        let first = Positions { done: 0, published: 0, filled: 0, origin: 0 };
        let ring = Producer::new(size as u32).unwrap();
        let (mut known, mut todo) = (HashSet::from([first]), VecDeque::from([(ring, first)]));
        while let Some((ring, is)) = todo.pop_front() {
            check(&ring, is, size);
            // Two laps and a half show every wrap.
            if is.filled > 5 * size / 2 {
                continue;
            }
            let mut go = |ring: Producer, is: Positions| {
                steps += 1;
                if known.insert(is) {
                    todo.push_back((ring, is));
                }
            };
            for count in 0..=u64::from(ring.free()) {
                let mut next = ring.clone();
                next.advance(count as u32);
                go(next, Positions { filled: is.filled + count, ..is });
            }
            assert!(ring.require(ring.free() + 1).is_err());
            let mut next = ring.clone();
            let published = next.publish();
            assert_eq!(published.is_some(), is.filled > is.published);
            if let Some(published) = published {
                assert_eq!(published.position, is.filled);
                assert_eq!(published.count, is.filled - is.origin);
                assert_eq!(u64::from(published.tail), is.filled % size);
                go(next, Positions { published: is.filled, ..is });
            }
            for at in 0..=is.filled + 2 {
                let mut next = ring.clone();
                let newly = next.complete_to(at);
                assert_eq!(newly.is_ok(), (is.done..=is.published).contains(&at));
                match newly {
                    Ok(newly) => {
                        assert_eq!(newly, is.done..at);
                        go(next, Positions { done: at, ..is });
                    }
                    Err(_) => assert_eq!(next, ring, "a refusal changes nothing"),
                }
                let mut next = ring.clone();
                let restarted = next.restart(at);
                assert_eq!(restarted.is_ok(), (is.done..=is.filled).contains(&at));
                match restarted {
                    Ok(()) => {
                        let filled = is.filled;
                        go(next, Positions { done: at, published: at, filled, origin: at });
                    }
                    Err(_) => assert_eq!(next, ring, "a refusal changes nothing"),
                }
            }
        }
    }
    assert!(steps > 30_000, "{steps} steps");
}

#[test]
fn entries_of_a_completion_ring_are_taken_once_in_every_interleaving() {
    for size in 2..=5u64 {
        let (memory, host) = buffer(size as usize * 16);
        let base = memory.segments()[0].iova.0;
        let entries = Coherent::<[u32; 4]>::new(memory, size as usize).unwrap();
        let mut ring = CompletionRing::new(entries).unwrap();
        // Bit n says whether step n is the device's or the driver's: over two laps of each.
        let steps = (4 * size + 2).min(16);
        for order in 0..1u32 << steps {
            ring.clear();
            let (mut written, mut taken) = (0u64, 0u64);
            for step in 0..steps {
                if order >> step & 1 == 0 {
                    // A device that looks at the head leaves one slot free.
                    if written - taken < size - 1 {
                        let (slot, lap) = (written % size, written / size);
                        host.store(base + 16 * slot, written).unwrap();
                        let phase = u64::from(lap.is_multiple_of(2)) << 48;
                        host.store(base + 16 * slot + 8, phase).unwrap();
                        written += 1;
                    }
                } else {
                    let entry = ring.take().map(|entry| u64::from(entry[0]));
                    assert_eq!(entry, (taken < written).then_some(taken), "{order:b}");
                    taken += u64::from(entry.is_some());
                    assert_eq!(u64::from(ring.head()), taken % size);
                }
            }
        }
    }
}

/// Takes every step that is left, from what `path` led to.
fn tags(capacity: u32, path: &mut Vec<Option<u16>>, depth: u32, count: &mut u32) {
    let mut tags = Tags::new(capacity).unwrap();
    let (mut known, mut given) = (BTreeMap::new(), vec![0, 0x1000, 0xf000, 0x0fff]);
    for (n, step) in path.iter().enumerate() {
        match step {
            None => {
                let next = tags.next_tag();
                assert_eq!(next.is_some(), known.len() < capacity as usize);
                match tags.insert(n) {
                    Ok(tag) => {
                        assert_eq!(next, Some(tag));
                        assert_eq!(known.insert(tag, n), None, "a tag is in flight once");
                        given.push(tag);
                    }
                    Err(item) => assert_eq!((next, item), (None, n)),
                }
            }
            Some(tag) => assert_eq!(tags.complete(*tag).ok(), known.remove(tag)),
        }
        assert_eq!((tags.len(), tags.len() + tags.free()), (known.len(), capacity as usize));
    }
    *count += 1;
    if depth == 0 {
        return;
    }
    given.sort_unstable();
    given.dedup();
    for step in std::iter::once(None).chain(given.into_iter().map(Some)) {
        path.push(step);
        self::tags(capacity, path, depth - 1, count);
        path.pop();
    }
}

#[test]
fn commands_complete_once_in_every_order_whatever_tags_come() {
    let mut count = 0;
    for capacity in 1..=3 {
        tags(capacity, &mut Vec::new(), 6, &mut count);
    }
    assert!(count > 60_000, "{count} paths");
}
