//! Slots that the model has, over a socket, when their channel goes away.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use vfio_dma::devices::PciDriver;
use vfio_dma::devices::ioat::{Channel, Config, Ioat};
use vfio_dma::dma::{Direction, Request, Slot, SlotPool};
use vfio_dma::queue::SlotPair;
use vfio_dma_model::function::PciFunction;

use super::{LIMIT, open, serve};

const SLOTS: usize = 32;

fn pool(ioat: &Ioat, slot: usize, direction: Direction) -> (Arc<SlotPool>, Vec<Slot>) {
    SlotPool::new(ioat.allocate(&Request::new(SLOTS * slot, direction)).unwrap(), slot).unwrap()
}

fn pairs(sources: Vec<Slot>, targets: Vec<Slot>) -> Vec<SlotPair> {
    let pair = |(source, target)| SlotPair { source: Some(source), target: Some(target) };
    sources.into_iter().zip(targets).map(pair).collect()
}

/// A round trip of every slot, with bytes of its own.
fn copy_all(ioat: &Ioat, channel: &mut Channel, seed: u8) {
    const SLOT: usize = 1000;
    let (from, mut sources) = pool(ioat, SLOT, Direction::ToDevice);
    let (to, targets) = pool(ioat, SLOT, Direction::FromDevice);
    for slot in &mut sources {
        let byte = seed ^ slot.index() as u8;
        from.write(slot, 0, &[byte; SLOT]).unwrap();
    }
    let mut pairs = pairs(sources, targets);
    assert_eq!(channel.copy_pairs(&from, &to, &mut pairs, SLOT).unwrap(), SLOTS);
    let mut back = Vec::new();
    while back.len() < SLOTS {
        assert_eq!(channel.wait_reap(&mut back, LIMIT).unwrap().failed, 0);
    }
    for SlotPair { source, target } in &back {
        let mut found = [0; SLOT];
        to.read(target.as_ref().unwrap(), 0, &mut found).unwrap();
        assert_eq!(found, [seed ^ source.as_ref().unwrap().index() as u8; SLOT]);
    }
    assert!(channel.detach_pools());
}

#[test]
fn a_drop_and_a_panic_with_slots_in_flight_leave_no_late_access() {
    const SLOT: usize = 1 << 20;
    let (served, socket) = serve("");
    let ioat = Ioat::probe(open(&socket), Config::default()).unwrap();
    let mut cut_short = 0;
    for round in 0..20 {
        let mut channel = ioat.channel(0).unwrap();
        copy_all(&ioat, &mut channel, round as u8);
        let before = served.ioat().stats().descriptors;
        let (from, sources) = pool(&ioat, SLOT, Direction::ToDevice);
        let (to, targets) = pool(&ioat, SLOT, Direction::FromDevice);
        let mut pairs = pairs(sources, targets);
        channel.copy_pairs(&from, &to, &mut pairs, SLOT).unwrap();
        drop((from, to));
        sleep(Duration::from_micros(50 * round));
        let panicked = catch_unwind(AssertUnwindSafe(move || {
            let _channel = channel;
            if round % 2 == 1 {
                resume_unwind(Box::new("with slots in flight"));
            }
        }));
        assert_eq!(panicked.is_err(), round % 2 == 1);
        assert_eq!(ioat.space().usage().mappings, 0);
        assert_eq!(served.ioat().memory().ranges(), 0, "all is unmapped");
        let done = served.ioat().stats().descriptors;
        sleep(Duration::from_millis(5));
        let stats = served.ioat().stats();
        assert_eq!(stats.descriptors, done, "the engine stands");
        let memory = stats.memory;
        let late = memory.refused_not_mapped + memory.refused_unbacked + memory.refused_denied;
        assert_eq!((late, stats.errors), (0, 0));
        cut_short += u64::from(done - before < SLOTS as u64 + 1);
    }
    assert!(cut_short > 0, "nothing was stopped in the middle");
}
