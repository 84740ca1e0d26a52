//! Each fault on request, and that the channel works afterwards where it should.

use super::*;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Four null descriptors that write the word and interrupt.
fn prepare(rig: &Rig) {
    for n in 0..4 {
        let next = RING + 64 * ((n + 1) % 4);
        rig.descriptor(RING + 64 * n, 1, NULL | DONE | INT, 0, 0, next);
    }
    rig.arm(RING);
}

#[test]
fn any_error_bit_halts_at_its_descriptor_once() {
    let rig = Rig::one();
    for bit in 0..19 {
        let error = crate::ioat::ChannelError::from_bits(1 << bit).unwrap();
        rig.inject(FaultPlan::at(3, Fault::Error(error)));
        prepare(&rig);
        rig.halts(4, 1 << bit, RING + 64);
        let flags = [(14, 0x10), (15, 0x08)].into_iter().find(|(b, _)| *b == bit);
        assert_eq!(rig.status() & 0x18, flags.map_or(0, |(_, flag)| flag));
        rig.recover();
        assert_eq!(rig.status(), HALTED);
        prepare(&rig);
        rig.ring(4);
        wait("the retry passes", || rig.completion() == (RING + 192) | IDLE);
        rig.reset();
        rig.clear_completion();
    }
}

#[test]
fn a_halt_can_come_without_a_bit() {
    let rig = Rig::with_faults("halt@2");
    let events = rig.connect(IrqKind::MsiX, 1);
    prepare(&rig);
    rig.halts(4, 0, RING);
    assert_eq!(events[0].read(), Ok(1));
    rig.write(0x80, 2, 0x1d);
    wait("it interrupts for the error too", || events[0].read() == Ok(1));
    rig.recover();
    rig.works();
}

#[test]
fn a_word_can_be_missing() {
    let rig = Rig::with_faults("no-completion@2");
    prepare(&rig);
    rig.ring(2);
    wait("both are done", || rig.status() == (RING + 64) | IDLE);
    settle();
    assert_eq!(rig.completion(), RING | ACTIVE);
    rig.ring(3);
    wait("the next is written", || rig.completion() == (RING + 128) | IDLE);
}

#[test]
fn a_word_can_come_late_and_after_its_interrupt() {
    let rig = Rig::with_faults("late-completion=60s@2,late-completion=50ms@1");
    let event = &rig.connect(IrqKind::MsiX, 1)[0];
    prepare(&rig);
    let start = Instant::now();
    rig.ring(1);
    wait("the word comes", || rig.completion() == RING | IDLE);
    assert!(start.elapsed() >= ms(50));
    assert_eq!(event.read(), Ok(1));
    rig.write(0x80, 2, 0x1d);
    rig.ring(2);
    wait("it interrupts", || event.read() == Ok(1));
    assert_eq!((rig.status(), rig.completion()), ((RING + 64) | IDLE, RING | IDLE));
    // A reset does not wait for it.
    rig.reset();
    assert_eq!(rig.completion(), RING | IDLE);
    rig.works();
}

#[test]
fn a_word_can_come_twice_and_over_a_newer_one() {
    let rig = Rig::with_faults("double-completion=30ms@1");
    prepare(&rig);
    rig.ring(2);
    wait("both are done", || rig.completion() == (RING + 64) | IDLE);
    wait("the first comes again", || rig.completion() & !7 == RING);
    wait("it is counted", || rig.stats().completions == 3);
    // A reset forgets the second one.
    rig.inject(FaultPlan::at(1, Fault::DoubleCompletion(ms(20))));
    rig.ring(3);
    wait("it is done", || rig.completion() == (RING + 128) | IDLE);
    rig.reset();
    rig.clear_completion();
    std::thread::sleep(ms(40));
    assert_eq!(rig.completion(), 0);
}

#[test]
fn a_word_can_be_torn() {
    let rig = Rig::with_faults("torn-completion=50ms@1");
    rig.word(WORD).store(0x1111_2222_3333_4444, Ordering::Release);
    prepare(&rig);
    rig.ring(1);
    let torn = 0x1111_2222_0000_0000 | RING | IDLE;
    wait("the lower half comes", || rig.completion() == torn);
    wait("the upper half comes", || rig.completion() == RING | IDLE);
}

#[test]
fn a_word_can_be_stale_or_go_astray() {
    let rig =
        Rig::with_faults("stale-completion@2,astray-completion@3,astray-completion=0x1000100@4");
    prepare(&rig);
    rig.ring(1);
    wait("the first is written", || rig.completion() == RING | IDLE);
    rig.clear_completion();
    rig.ring(2);
    wait("the first is written again", || rig.completion() == RING | IDLE);
    // The word comes before CHANSTS.
    wait("it is idle", || rig.status() == (RING + 64) | IDLE);
    rig.ring(4);
    let word = |at| rig.word(at).load(Ordering::Acquire);
    wait("the fourth is astray", || word(BASE + 0x100) == (RING + 192) | IDLE);
    assert_eq!(word(WORD + 64) & !7, RING + 128);
    assert_eq!(rig.completion(), RING | IDLE);
}

#[test]
fn interrupts_can_be_lost_doubled_and_invented() {
    let rig = Rig::one();
    let event = &rig.connect(IrqKind::MsiX, 1)[0];
    prepare(&rig);
    rig.inject(FaultPlan::at(1, Fault::LostInterrupt));
    rig.ring(1);
    wait("it is done", || rig.completion() == RING | IDLE);
    settle();
    assert!(event.read().is_err());
    rig.inject(FaultPlan::at(1, Fault::DoubleInterrupt));
    rig.ring(2);
    let mut count = 0;
    wait("it comes twice", || {
        count += event.read().unwrap_or(0);
        count == 2
    });
    // Not rearmed, and not asked for.
    rig.descriptor(RING + 128, 1, NULL | DONE, 0, 0, RING + 192);
    rig.inject(FaultPlan::at(1, Fault::SpuriousInterrupt));
    rig.ring(3);
    wait("it comes all the same", || event.read() == Ok(1));
}

#[test]
fn a_reset_that_never_ends_is_ended_by_a_function_level_reset() {
    let rig = Rig::with_faults("reset-hang@2");
    rig.reset();
    rig.null_ring(RING, 2);
    rig.run(RING, 1, RING);
    rig.write(0x84, 1, 0x20);
    rig.ring(2);
    rig.arm(RING);
    settle();
    assert_eq!((rig.read(0x84, 1), rig.completion()), (0x20, RING | IDLE));
    rig.write(0x84, 1, 0x20);
    assert_eq!(rig.read(0x84, 1), 0x20);
    rig.device.reset().unwrap();
    assert_eq!((rig.read(0x84, 1), rig.status()), (0, HALTED));
    rig.set_up(0);
    rig.works();
}

#[test]
fn a_suspend_that_never_ends_is_ended_by_a_reset() {
    let rig = Rig::with_faults("suspend-hang@1");
    rig.null_ring(RING, 2);
    rig.run(RING, 1, RING);
    rig.suspend();
    rig.ring(2);
    settle();
    assert_eq!((rig.read(0x84, 1), rig.completion()), (0x04, RING | IDLE));
    assert_ne!(rig.state(), SUSPENDED);
    rig.reset();
    rig.works();
    rig.suspend();
    wait("the next one ends", || rig.state() == SUSPENDED);
}

#[test]
fn a_device_that_is_gone_reads_all_ones_and_does_nothing() {
    let rig = Rig::with_faults("gone@2");
    prepare(&rig);
    rig.ring(4);
    wait("it is gone", || rig.status() == u64::MAX);
    assert_eq!((rig.config(0x00), rig.completion()), (u32::MAX, RING | ACTIVE));
    rig.device.reset().unwrap();
    rig.write(0x84, 1, 0x20);
    assert_eq!(rig.read(0x84, 1), 0xff);
    settle();
    assert_eq!((rig.stats().descriptors, rig.completion()), (1, RING | ACTIVE));
}

#[test]
fn a_server_can_be_asked_to_end() {
    use crate::function::PciFunction;
    let rig = Rig::with_faults("exit@2");
    prepare(&rig);
    assert!(!rig.model.function().wants_exit());
    rig.ring(4);
    wait("it wants to end", || rig.model.function().wants_exit());
    settle();
    assert_eq!((rig.stats().descriptors, rig.completion()), (1, RING | ACTIVE));
}

#[test]
fn every_kth_descriptor_of_one_channel_is_hit() {
    let rig = Rig::new(IoatConfig {
        channels: 2,
        faults: "no-completion@/3#1".parse().unwrap(),
        ..IoatConfig::default()
    });
    rig.null_ring(RING, 16);
    for channel in 0..2 {
        rig.write(Rig::reg(channel, 0x10), 8, RING);
        rig.write(Rig::reg(channel, 0x06), 2, 30);
    }
    wait("all are done", || rig.stats().descriptors == 60);
    assert_eq!(rig.stats().completions, 50);
}

#[test]
fn a_plan_put_in_force_in_mid_chain_counts_from_then() {
    let rig = Rig::one();
    rig.descriptor(RING, 1 << 20, FILL, 0x55, TARGET, RING);
    rig.arm(RING);
    rig.ring(60_000);
    wait("it runs", || rig.stats().descriptors > 2);
    rig.inject("chanerr=8@3".parse().unwrap());
    let before = rig.stats().descriptors;
    wait("it is halted", || rig.state() == HALTED);
    // The one in hand was not counted, two were, and the third was refused.
    let after = rig.stats().descriptors;
    assert!(after <= before + 3, "{before} before the plan, {after} at the third after it");
}
