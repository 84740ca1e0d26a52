//! The ring as a state machine, against a device that follows its chain and a model that
//! is a queue.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::testing::{HostIommu, buffer};

/// Linked descriptors of 32 bytes; completion by address, as I/OAT reports it.
#[derive(Debug)]
struct Linked;

impl Format for Linked {
    type Command = u64;
    type Words = [u64; 2];
    const SIZE: usize = 32;
    fn encode(command: &u64, next: Iova) -> [u64; 2] {
        [*command, next.0]
    }
    fn last_done(word: u64) -> LastDone {
        if word == 0 { LastDone::None } else { LastDone::Address(word) }
    }
}

/// Descriptors of 16 bytes in an array; completion by index plus one, as NVMe's heads.
#[derive(Debug)]
struct Indexed;

impl Format for Indexed {
    type Command = u64;
    type Words = [u64; 2];
    const SIZE: usize = 16;
    fn encode(command: &u64, next: Iova) -> [u64; 2] {
        [*command, next.0]
    }
    fn last_done(word: u64) -> LastDone {
        word.checked_sub(1).map_or(LastDone::None, LastDone::Slot)
    }
}

/// What a test needs to play the device of a format.
trait Report: Format<Command = u64> {
    fn word(address: u64, ring: u64) -> u64;
}

impl Report for Linked {
    fn word(address: u64, _: u64) -> u64 {
        address
    }
}

impl Report for Indexed {
    fn word(address: u64, ring: u64) -> u64 {
        (address - ring) / 16 + 1
    }
}

/// A device: it follows the links and counts modulo 2^16.
struct Device {
    host: Arc<HostIommu>,
    ring: u64,
    word: u64,
    at: u64,
    doorbell: u16,
    count: u16,
}

impl Device {
    /// Does up to `most` descriptors, reports the last and returns their commands.
    fn work<F: Report>(&mut self, most: u16) -> Vec<u64> {
        let todo = self.doorbell.wrapping_sub(self.count).min(most);
        let mut seen = Vec::with_capacity(todo.into());
        for _ in 0..todo {
            seen.push(self.host.load(self.at).unwrap());
            self.host.store(self.word, F::word(self.at, self.ring)).unwrap();
            self.at = self.host.load(self.at + 8).unwrap();
        }
        self.count = self.count.wrapping_add(todo);
        seen
    }
}

/// A small generator, so that millions of steps cost little (xorshift64*).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }
}

/// Takes `steps` random steps; returns how often the doorbell wrapped.
fn run<F: Report>(size: u32, steps: u32, seed: u64) -> u32 {
    let (memory, host) = buffer(Ring::<F>::bytes(size));
    let mut ring = Ring::<F>::new(memory, size).unwrap();
    let first = ring.address(0).0;
    let word = ring.completion_address().0;
    let mut dice = Dice(seed | 1);
    // As if the chain had run on until shortly before the doorbell wraps.
    let begin = (1 << 16) - 1 - dice.roll(32);
    (ring.filled, ring.published, ring.done) = (begin, begin, begin);
    let (at, doorbell) = (ring.address(begin).0, begin as u16);
    let mut device = Device { host, ring: first, word, at, doorbell, count: doorbell };
    // The model: commands filled, published, and done by the device but not reaped.
    let (mut filled, mut published, mut worked) = (VecDeque::new(), VecDeque::new(), 0usize);
    let (mut next, mut wraps) = (0u64, 0);
    for step in 0..steps {
        let context = || format!("size {size}, seed {seed:#x}, step {step}");
        let most = u64::from(size) + 1;
        match dice.roll(100) {
            0..35 => {
                let count = dice.roll(most.min(64)) as u32;
                let used = filled.len() + published.len();
                assert_eq!(ring.free() as usize, size as usize - 1 - used, "{}", context());
                match ring.reserve(count) {
                    Err(RingError::Full { needed, free, capacity }) => {
                        assert!(needed > free && capacity == size - 1, "{}", context());
                    }
                    Err(error) => panic!("{error}: {}", context()),
                    Ok(mut batch) => {
                        // Some one by one, the others from an iterator that may end early.
                        let (singly, most) = (dice.roll(2) == 0, dice.roll(64));
                        let mut commands = next..next + u64::from(count);
                        if !singly {
                            let first = u64::from(count).min(most);
                            let short = commands.by_ref().take(dice.roll(64) as usize);
                            let begin = batch.position();
                            let filled = batch.fill_from(most, short);
                            assert_eq!(batch.position() - begin, filled, "{}", context());
                            assert!(filled <= first && commands.start == next + filled);
                        }
                        for command in commands {
                            batch.fill(&command).unwrap();
                        }
                        assert_eq!(batch.fill_from(1, [0]), 0, "{}", context());
                        assert!(batch.fill(&0).is_err(), "{}", context());
                        // Some batches are given up.
                        if dice.roll(8) > 0 {
                            assert_eq!(batch.commit().count(), count as usize);
                            filled.extend(next..next + u64::from(count));
                            next += u64::from(count);
                        }
                    }
                }
            }
            35..45 => {
                if ring.push(&next).is_ok() {
                    filled.push_back(next);
                    next += 1;
                } else {
                    assert_eq!(filled.len() + published.len(), size as usize - 1);
                }
            }
            45..65 => match ring.publish() {
                None => assert!(filled.is_empty(), "{}", context()),
                Some(doorbell) => {
                    wraps += u32::from(doorbell < device.doorbell);
                    device.doorbell = doorbell;
                    published.append(&mut filled);
                }
            },
            65..80 => {
                for command in device.work::<F>(dice.roll(most) as u16) {
                    assert_eq!(Some(&command), published.get(worked), "{}", context());
                    worked += 1;
                }
            }
            80..99 => {
                let reaped = ring.reap().unwrap();
                assert_eq!(reaped.count(), worked, "{}", context());
                published.drain(..worked);
                worked = 0;
            }
            _ if wraps > 0 && dice.roll(64) == 0 => {
                // A halt: reap what was done, then go on anywhere in what is left.
                ring.reap().unwrap();
                published.drain(..worked);
                worked = 0;
                published.append(&mut filled);
                let skipped = dice.roll(published.len() as u64 + 1);
                device.at = ring.restart(ring.done() + skipped).unwrap().0;
                (device.doorbell, device.count) = (0, 0);
                filled = published.split_off(skipped as usize);
                published.clear();
            }
            _ => {
                // A device that lies: outside of the ring, or not in flight.
                let honest = device.host.load(word).unwrap();
                let lie = match dice.roll(2) {
                    0 => F::word(first + u64::from(size) * F::SIZE as u64, first),
                    _ => {
                        let beyond = ring.done() + published.len() as u64;
                        F::word(ring.address(beyond).0, first)
                    }
                };
                let none_beyond = published.len() + 1 == size as usize;
                device.host.store(word, lie).unwrap();
                if !(none_beyond && ring.reap().is_ok()) {
                    let before = ring.done();
                    ring.reap().unwrap_err();
                    assert_eq!(ring.done(), before, "{}", context());
                }
                device.host.store(word, honest).unwrap();
            }
        }
    }
    wraps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    /// 8 seeds, 12 sizes, 2 formats, 20,000 steps each: 3.8 million.
    #[test]
    fn a_ring_does_what_a_queue_does(seed in any::<u64>()) {
        for log in 1..=12 {
            prop_assert!(run::<Linked>(1 << log, 20_000, seed) > 0, "size {}", 1 << log);
            prop_assert!(run::<Indexed>(1 << log, 20_000, !seed) > 0, "size {}", 1 << log);
        }
    }
}

#[test]
fn the_doorbell_wraps_at_every_size() {
    for log in 1..=12 {
        let size = 1 << log;
        let (memory, host) = buffer(Ring::<Linked>::bytes(size));
        let mut ring = Ring::<Linked>::new(memory, size).unwrap();
        let (first, word) = (ring.address(0).0, ring.completion_address().0);
        let mut device = Device { host, ring: first, word, at: first, doorbell: 0, count: 0 };
        let mut done = 0;
        while done < 200_000 {
            let batch = ring.free().min(32);
            let positions = {
                let mut batch = ring.reserve(batch).unwrap();
                while batch.fill(&(batch.next * 3)).is_ok() {}
                batch.commit()
            };
            device.doorbell = ring.publish().unwrap();
            assert_eq!(u64::from(device.doorbell), positions.end % 65_536);
            let seen = device.work::<Linked>(u16::MAX);
            assert!(seen.into_iter().eq(positions.clone().map(|p| p * 3)));
            assert_eq!(ring.reap().unwrap(), positions);
            done = positions.end;
        }
    }
}

#[test]
fn the_largest_ring_is_filled_to_the_last_but_one() {
    let (memory, host) = buffer(Ring::<Linked>::bytes(MAX_SIZE));
    let mut ring = Ring::<Linked>::new(memory, MAX_SIZE).unwrap();
    let (first, word) = (ring.address(0).0, ring.completion_address().0);
    let mut device = Device { host, ring: first, word, at: first, doorbell: 0, count: 0 };
    for round in 0..5 {
        while ring.push(&7).is_ok() {}
        assert_eq!((ring.free(), ring.filled() - ring.done()), (0, 32_767), "round {round}");
        device.doorbell = ring.publish().unwrap();
        assert_eq!(device.work::<Linked>(u16::MAX).len(), 32_767);
        assert_eq!(ring.reap().unwrap().count(), 32_767);
    }
}

#[test]
fn what_makes_no_ring_is_refused() {
    for size in [0, 1, 3, 1 << 16, u32::MAX] {
        let (memory, _) = buffer(4096);
        assert_eq!(Ring::<Linked>::new(memory, size).unwrap_err(), RingError::Size { size });
    }
    let (memory, _) = buffer(4096);
    let error = Ring::<Linked>::new(memory, 128).unwrap_err().to_string();
    assert!(error.contains("4160 bytes") && error.contains("4096 bytes"), "{error}");
    let (memory, _) = buffer(4096);
    let mut ring = Ring::<Linked>::new(memory, 64).unwrap();
    ring.push(&1).unwrap();
    assert!(ring.restart(2).is_err());
    assert_eq!(ring.restart(1).unwrap(), ring.address(1));
    assert!(ring.restart(0).is_err());
}

#[test]
fn every_wrong_completion_word_is_an_error_that_names_it() {
    let (memory, host) = buffer(Ring::<Linked>::bytes(8));
    let mut ring = Ring::<Linked>::new(memory, 8).unwrap();
    for n in 0..4 {
        ring.push(&n).unwrap();
    }
    ring.publish().unwrap();
    let (first, word) = (ring.address(0).0, ring.completion_address().0);
    for wrong in [first - 32, first + 8 * 32, first + 1, first + 31, u64::MAX, 1] {
        host.store(word, wrong).unwrap();
        let error = ring.reap().unwrap_err();
        assert!(matches!(error, RingError::OutsideRing { address, .. } if address == wrong));
        assert!(error.to_string().contains(&format!("{wrong:#x}")), "{error}");
    }
    host.store(word, ring.address(4).0).unwrap();
    let error = ring.reap().unwrap_err();
    assert_eq!(error, RingError::NotInFlight { slot: 4, first: 0, in_flight: 4 });
    host.store(word, ring.address(3).0).unwrap();
    assert_eq!(ring.reap().unwrap(), 0..4);
    // Seen again, and from before: the one is no news, the other a lie.
    assert_eq!(ring.reap().unwrap(), 4..4);
    host.store(word, ring.address(1).0).unwrap();
    assert!(ring.reap().is_err());
}
