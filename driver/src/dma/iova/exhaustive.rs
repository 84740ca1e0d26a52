//! Every state of a small address space, and every request in it.

use std::collections::{BTreeSet, HashSet, VecDeque};

use super::*;

const PAGE: u64 = 0x1000;
/// Granules that can be handed out: two windows, of 3 and of 4.
const GRANULES: [u64; 7] = [1, 2, 3, 5, 6, 7, 8];

/// What is allocated: first granule and how many, ascending.
type Ranges = BTreeSet<(u64, u64)>;

fn taken(used: &Ranges) -> HashSet<u64> {
    used.iter().flat_map(|&(first, count)| first..first + count).collect()
}

/// The free runs of a state, as the allocator tells them.
fn free_runs(used: &Ranges) -> Vec<RangeInclusive<u64>> {
    let taken = taken(used);
    let mut runs: Vec<RangeInclusive<u64>> = Vec::new();
    for granule in GRANULES.into_iter().filter(|granule| !taken.contains(granule)) {
        let (start, end) = (granule * PAGE, granule * PAGE + PAGE - 1);
        match runs.last_mut() {
            Some(last) if *last.end() + 1 == start => *last = *last.start()..=end,
            _ => runs.push(start..=end),
        }
    }
    runs
}

/// The highest first granule of `count` free ones at a multiple of `align`, all at or below
/// `last`.
fn highest(used: &Ranges, count: u64, align: u64, last: u64) -> Option<u64> {
    let taken = taken(used);
    let free = |granule: u64| GRANULES.contains(&granule) && !taken.contains(&granule);
    let fits = |first: &u64| first.is_multiple_of(align) && (*first..first + count).all(free);
    (1..=(last + 1).saturating_sub(count)).rev().find(fits)
}

fn check_allocate(
    allocator: &IovaAllocator,
    used: &Ranges,
    mut go: impl FnMut(IovaAllocator, Ranges),
) {
    for count in 1..=4 {
        for align in [1, 2, 4] {
            for last in 0..=9 {
                // One byte less than whole granules is as long, and the mask cuts a granule off.
                for (len, mask) in
                    [(count * PAGE, last * PAGE + PAGE - 1), (count * PAGE - 1, last * PAGE + PAGE)]
                {
                    let mut next = allocator.clone();
                    let result = next.allocate(len, align * PAGE, mask);
                    let expected = highest(used, count, align, last);
                    assert_eq!(result.ok(), expected.map(|first| Iova(first * PAGE)));
                    let mut used = used.clone();
                    match expected {
                        Some(first) => assert!(used.insert((first, count))),
                        None => assert_eq!(next.free, allocator.free, "a refusal takes nothing"),
                    }
                    go(next, used);
                }
            }
        }
    }
}

fn check_runs(allocator: &IovaAllocator, used: &Ranges, mut go: impl FnMut(IovaAllocator, Ranges)) {
    let before = taken(used);
    let free = (GRANULES.len() - before.len()) as u64;
    for count in 1..=8 {
        for longest in [1, 2, 8] {
            for least in [1, 2] {
                let mut next = allocator.clone();
                let result =
                    next.allocate_runs(count * PAGE, longest * PAGE, least * PAGE, u64::MAX);
                let Ok(plan) = result else {
                    assert!(least > 1 || count > free, "{count} of {free} granules");
                    assert_eq!((&next.free, &next.used), (&allocator.free, &allocator.used));
                    continue;
                };
                let mut used = used.clone();
                for (n, &(start, len)) in plan.iter().enumerate() {
                    assert!(len <= longest * PAGE && (len >= least * PAGE || n + 1 == plan.len()));
                    let (first, granules) = (start.0 / PAGE, len / PAGE);
                    assert!((first..first + granules).all(|granule| {
                        GRANULES.contains(&granule) && !taken(&used).contains(&granule)
                    }));
                    used.insert((first, granules));
                }
                assert_eq!((taken(&used).len() - before.len()) as u64, count);
                go(next, used);
            }
        }
    }
}

fn check_free(allocator: &IovaAllocator, used: &Ranges, mut go: impl FnMut(IovaAllocator, Ranges)) {
    for first in 0..10 {
        for count in 0..=5 {
            let mut next = allocator.clone();
            let freed = next.free(Iova(first * PAGE), count * PAGE);
            let mut used = used.clone();
            assert_eq!(freed.is_ok(), used.remove(&(first, count)));
            if freed.is_err() {
                assert_eq!((&next.free, &next.used), (&allocator.free, &allocator.used));
            }
            go(next, used);
        }
    }
}

#[test]
fn every_request_in_every_state_of_a_small_address_space() {
    let windows = [PAGE..=4 * PAGE - 1, 5 * PAGE..=9 * PAGE - 1];
    let allocator = IovaAllocator::new(PAGE, &windows);
    let mut known = HashSet::from([Ranges::new()]);
    let mut todo = VecDeque::from([(allocator, Ranges::new())]);
    while let Some((allocator, used)) = todo.pop_front() {
        assert_eq!(allocator.free_runs().collect::<Vec<_>>(), free_runs(&used), "{used:?}");
        assert_eq!(allocator.allocated(), used.len());
        let free = (GRANULES.len() - taken(&used).len()) as u64;
        assert_eq!(allocator.free_bytes(u64::MAX), free * PAGE);
        let longest = (1..=4).rev().find(|&count| highest(&used, count, 1, 9).is_some());
        assert_eq!(allocator.longest_run(1, u64::MAX), longest.unwrap_or(0) * PAGE);
        let mut go = |next, used: Ranges| {
            if known.insert(used.clone()) {
                todo.push_back((next, used));
            }
        };
        check_allocate(&allocator, &used, &mut go);
        check_runs(&allocator, &used, &mut go);
        check_free(&allocator, &used, &mut go);
    }
    // Each window apart: its granules free, or in ranges of every length.
    assert_eq!(known.len(), 13 * 34);
}
