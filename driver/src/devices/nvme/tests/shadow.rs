//! Shadow doorbells: when registers are written, and what a reset makes of them.

use super::device::probe_with;
use super::*;

/// Where the doorbells of I/O queue 1 lie in the pages: tail, then head.
const QUEUE_1: u64 = 8;

#[test]
fn a_register_is_written_when_the_event_index_is_passed_and_not_before() {
    let scripted = scripted();
    scripted.registers().offers_shadow = true;
    let nvme = probe(&scripted).unwrap();
    assert!(nvme.has_shadow_doorbells());
    let mut queue = nvme.queue(quick()).unwrap();
    for round in 0..3 {
        let [shadow, event] = scripted.registers().shadow.expect("it was told of the pages");
        let host = std::sync::Arc::clone(&scripted.host);
        assert_eq!(host.load(shadow + QUEUE_1), Some(0), "a queue begins with 0");
        // It wants to know when the tail leaves 3, and of every head.
        host.store(event + QUEUE_1, 0xffff_ffff_0000_0003).unwrap();
        let before = queue.stats();
        let mut tokens = Vec::new();
        for n in 1..=4 {
            tokens.push(read(&nvme, &mut queue, n).unwrap());
            queue.issue().unwrap();
            assert_eq!(host.load(shadow + QUEUE_1), Some(n), "the tail is in memory");
            let now = queue.stats();
            let written = (now.doorbells - before.doorbells, now.shadow_doorbells);
            assert_eq!(written, (n / 4, before.shadow_doorbells + n.min(3)));
        }
        for token in tokens {
            queue.wait(token, LIMIT).unwrap().into_result().unwrap();
        }
        assert_eq!(queue.stats().head_doorbells - before.head_doorbells, 1);
        assert_eq!(host.load(shadow + QUEUE_1), Some(4 << 32 | 4), "the head is too");
        assert_eq!(scripted.registers().starts, round + 1);
        nvme.reset().unwrap();
        assert_eq!(queue.poll().unwrap(), 0);
    }
    let space = Arc::clone(nvme.space());
    drop((queue, nvme));
    assert_eq!(space.usage().mappings, 0);
}

#[test]
fn a_doorbell_that_the_controller_missed_in_memory_is_written_again() {
    let scripted = scripted();
    scripted.registers().offers_shadow = true;
    let nvme = probe(&scripted).unwrap();
    let mut queue = nvme.queue(QueueConfig { timeout: LIMIT, ..quick() }).unwrap();
    let [_, event] = scripted.registers().shadow.unwrap();
    // It says that it will look by itself, and does not.
    scripted.host.store(event + QUEUE_1, 9).unwrap();
    check_read(&nvme, &mut queue, 5);
    let Stats { doorbells, shadow_doorbells, repeated_doorbells, .. } = queue.stats();
    assert_eq!((doorbells, shadow_doorbells), (0, 1));
    assert_eq!(repeated_doorbells, 1);
}

#[test]
fn shadow_doorbells_can_be_left_off_and_are_not_for_who_does_not_offer_them() {
    for (offers, wanted) in [(true, false), (false, true)] {
        let scripted = scripted();
        scripted.registers().offers_shadow = offers;
        let config = Config { shadow_doorbells: wanted, ..Config::default() };
        let nvme = probe_with(&scripted, config).unwrap();
        assert!(!nvme.has_shadow_doorbells() && scripted.registers().shadow.is_none());
        let mut queue = nvme.queue(quick()).unwrap();
        for n in 1..=20 {
            check_read(&nvme, &mut queue, n);
            let Stats { doorbells, shadow_doorbells, head_doorbells, .. } = queue.stats();
            assert_eq!((doorbells, shadow_doorbells, head_doorbells), (n, 0, n));
        }
    }
}
