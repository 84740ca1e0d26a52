//! What is in flight comes back once: every order in which a few things are submitted, completed,
//! completed again, and cancelled.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{InFlight, Producer, Slot, SlotPair, SlotsInFlight};
use crate::device::Device;
use crate::dma::{self, SlotPool};
use crate::testing::{NoRegisters, Scripted, buffer};

fn device() -> Device {
    Device::open(Scripted::new((1, 1), |_| NoRegisters).attach()).unwrap()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Submit,
    /// Of what was submitted as the n-th, whatever became of it; one more is another table's.
    Complete(usize),
    CompleteAll,
    /// Leaves everything to the device, which cannot be stopped yet.
    Park,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    InFlight,
    Back,
    Parked,
}

/// What is in flight at a time at most.
const CAPACITY: usize = 3;

/// Goes one path; returns how much was submitted in it, and how much of that is in flight.
fn go(device: &mut Device, foreign: Slot, path: &[Step]) -> (usize, usize) {
    let mut table = InFlight::with_capacity(device, CAPACITY);
    let mut slots: Vec<Slot> = Vec::new();
    let (mut tokens, mut states): (Vec<Arc<usize>>, Vec<Is>) = (Vec::new(), Vec::new());
    for &step in path {
        match step {
            Step::Submit => {
                let token = Arc::new(tokens.len());
                let slot = table.insert(Arc::clone(&token));
                assert!(!slots.contains(&slot), "a name is given once");
                slots.push(slot);
                tokens.push(token);
                states.push(Is::InFlight);
            }
            Step::Complete(n) => {
                let slot = slots.get(n).copied().unwrap_or(foreign);
                let is_in_flight = states.get(n) == Some(&Is::InFlight);
                assert_eq!(table.get(slot).is_some(), is_in_flight, "{path:?}");
                match table.complete(slot) {
                    Some(item) => {
                        assert!(is_in_flight && Arc::ptr_eq(&item, &tokens[n]), "{path:?}");
                        states[n] = Is::Back;
                    }
                    None => assert!(!is_in_flight, "{path:?}"),
                }
            }
            Step::CompleteAll => {
                let mut back: Vec<usize> = table.complete_all().map(|item| *item).collect();
                back.sort_unstable();
                let all = |n: &usize| states[*n] == Is::InFlight;
                assert_eq!(back, (0..states.len()).filter(all).collect::<Vec<_>>(), "{path:?}");
                back.into_iter().for_each(|n| states[n] = Is::Back);
            }
            Step::Park => {
                table.park();
                for state in states.iter_mut().filter(|state| **state == Is::InFlight) {
                    *state = Is::Parked;
                }
            }
        }
        for (n, (token, state)) in tokens.iter().zip(&states).enumerate() {
            let held = usize::from(*state != Is::Back);
            assert_eq!(Arc::strong_count(token), 1 + held, "{n} of {path:?}");
        }
        let in_flight = states.iter().filter(|state| **state == Is::InFlight).count();
        assert_eq!((table.len(), table.is_empty()), (in_flight, in_flight == 0));
    }
    let in_flight = table.len();
    // What was never completed goes when the function stands still, and so does what was parked.
    drop(table);
    device.quiesce().unwrap();
    assert!(tokens.iter().all(|token| Arc::strong_count(token) == 1), "{path:?}");
    (slots.len(), in_flight)
}

fn walk(device: &mut Device, foreign: Slot, path: &mut Vec<Step>, depth: u32, count: &mut u32) {
    let (submitted, in_flight) = go(device, foreign, path);
    *count += 1;
    if depth == 0 {
        return;
    }
    let submit = (in_flight < CAPACITY).then_some(Step::Submit);
    let steps = submit.into_iter().chain((0..=submitted).map(Step::Complete));
    for step in steps.chain([Step::CompleteAll, Step::Park]) {
        path.push(step);
        walk(device, foreign, path, depth - 1, count);
        path.pop();
    }
}

#[test]
fn what_is_submitted_comes_back_once_in_every_order() {
    let mut device = device();
    let mut other = InFlight::new(&device);
    let foreign = other.insert(Arc::new(0));
    let mut count = 0;
    walk(&mut device, foreign, &mut Vec::new(), 6, &mut count);
    assert!(count > 10_000, "{count} paths");
    assert!(other.complete(foreign).is_some(), "no other table's name took it");
}

/// A step of a ring whose entries have slots.
#[derive(Debug, Clone, Copy)]
enum Entry {
    /// One with a slot, and one without.
    Fill,
    Skip,
    /// So many are done, the same as before among them.
    Done(u64),
    /// The device does so many from there on no more.
    Cancel(u64, u64),
}

const RING: u32 = 8;

fn entries() -> Vec<Entry> {
    let done = (0..3).map(Entry::Done);
    let cancel = (0..3).flat_map(|from| (1..3).map(move |count| Entry::Cancel(from, count)));
    [Entry::Fill, Entry::Skip].into_iter().chain(done).chain(cancel).collect()
}

/// Goes one path, with the slots of `free`, and gives all of them back.
fn go_slots(device: &Device, pool: &Arc<SlotPool>, free: &mut Vec<dma::Slot>, path: &[Entry]) {
    let before = free.len();
    let mut held = SlotsInFlight::new(device, RING);
    held.attach(pool, pool);
    let mut ring = Producer::new(RING).unwrap();
    let mut known: VecDeque<(u64, u32)> = VecDeque::new();
    for &entry in path {
        match entry {
            Entry::Fill => {
                let slot = free.pop().unwrap();
                known.push_back((ring.filled(), slot.index()));
                held.push(&ring, SlotPair { source: None, target: Some(slot) });
                ring.advance(1);
            }
            Entry::Skip => ring.advance(1),
            Entry::Done(count) => {
                ring.publish();
                let done = (ring.done() + count).min(ring.filled());
                ring.complete_to(done).unwrap();
                // Told twice: the second time there is nothing left.
                let mut back = Vec::new();
                assert_eq!(held.reap(done, &mut back), back.len());
                assert_eq!(held.reap(done, &mut Vec::new()), 0, "{path:?}");
                for pair in back {
                    let slot = pair.target.unwrap();
                    let (position, index) = known.pop_front().unwrap();
                    assert!(position < done && index == slot.index(), "{path:?}");
                    free.push(slot);
                }
                assert!(known.front().is_none_or(|known| known.0 >= done), "{path:?}");
            }
            Entry::Cancel(from, count) => {
                let range = ring.done() + from..ring.done() + from + count;
                let taken = held.take(range.clone());
                let (out, kept): (VecDeque<_>, VecDeque<_>) =
                    known.iter().copied().partition(|known| range.contains(&known.0));
                known = kept;
                assert_eq!(taken.len(), out.len(), "{path:?}");
                for ((position, pair), known) in taken.into_iter().zip(out) {
                    let slot = pair.target.unwrap();
                    assert_eq!((position, slot.index()), known, "{path:?}");
                    free.push(slot);
                }
                assert!(held.take(range).is_empty(), "{path:?}");
            }
        }
        let ahead = known.iter().filter(|known| known.0 >= ring.done()).count();
        assert_eq!(held.in_flight(ring.done()), ahead, "{path:?}");
        assert_eq!(free.len() + known.len(), before);
    }
    let rest = held.take(0..u64::MAX);
    assert_eq!(rest.len(), known.len(), "{path:?}");
    free.extend(rest.into_iter().filter_map(|(_, pair)| pair.target));
    assert!(held.detach_all());
    let mut indices: Vec<u32> = free.iter().map(dma::Slot::index).collect();
    indices.sort_unstable();
    assert!(indices.into_iter().eq(0..before as u32), "each is there once: {path:?}");
}

#[test]
fn slots_of_entries_come_back_once_in_every_order() {
    let device = device();
    let (pool, mut free) = SlotPool::new(buffer(4096).0, 256).unwrap();
    let (steps, mut count) = (entries(), 0u32);
    for depth in 0..=5 {
        for code in 0..steps.len().pow(depth) {
            let step = |n| steps[code / steps.len().pow(n) % steps.len()];
            let path: Vec<Entry> = (0..depth).map(step).collect();
            go_slots(&device, &pool, &mut free, &path);
            count += 1;
        }
    }
    assert!(count > 150_000, "{count} paths");
}
