//! Each transition of the channel's state machine, as software sees it.

use super::*;

#[test]
fn a_channel_is_halted_until_it_is_armed() {
    let rig = Rig::one();
    assert_eq!(rig.status(), HALTED);
    rig.ring(3);
    settle();
    assert_eq!(rig.status(), HALTED);
    rig.null_ring(RING, 4);
    rig.arm(RING);
    assert_eq!((rig.status(), rig.read(0x86, 2)), (ARMED, 0));
    rig.ring(0);
    settle();
    assert_eq!(rig.status(), ARMED);
    rig.ring(2);
    wait("it is idle", || rig.state() == IDLE);
    assert_eq!(rig.status(), (RING + 64) | IDLE);
    assert_eq!(rig.completion(), (RING + 64) | IDLE);
}

#[test]
fn words_say_active_before_the_last() {
    let rig = Rig::with_faults("late-completion=50ms@2");
    rig.null_ring(RING, 2);
    rig.arm(RING);
    rig.ring(2);
    wait("the first is done", || rig.completion() == RING | ACTIVE);
    wait("the second is done", || rig.completion() == (RING + 64) | IDLE);
}

#[test]
fn a_chain_is_armed_by_one_write_or_by_two_halves() {
    let rig = Rig::one();
    rig.null_ring(RING, 1);
    rig.write(0x90, 8, RING);
    assert_eq!(rig.status(), ARMED);
    rig.run(RING, 1, RING);
    rig.reset();
    rig.clear_completion();
    rig.write(0x94, 4, RING >> 32);
    assert_eq!(rig.status(), ARMED);
    rig.write(0x90, 4, RING & 0xffff_ffff);
    rig.ring(1);
    wait("the chain is done", || rig.completion() == RING | IDLE);
}

#[test]
fn a_reset_halts_from_armed_idle_suspended_and_halted() {
    let rig = Rig::one();
    rig.null_ring(RING, 4);
    rig.reset();
    rig.arm(RING);
    rig.reset();
    rig.run(RING, 2, RING + 64);
    rig.reset();
    assert_eq!((rig.status(), rig.read(0x86, 2)), (HALTED, 0));
    rig.arm(RING);
    rig.suspend();
    wait("it is suspended", || rig.state() == SUSPENDED);
    rig.reset();
    rig.works();
}

#[test]
fn a_reset_stops_a_transfer_in_hand() {
    let rig = Rig::one();
    // One descriptor that fills 1 MiB, 60,000 times: some seconds of work.
    rig.descriptor(RING, 1 << 20, FILL | DONE, 0x55, TARGET, RING);
    rig.arm(RING);
    rig.ring(60_000);
    wait("it is active", || rig.completion() != 0);
    assert_eq!(rig.state(), ACTIVE);
    rig.reset();
    rig.put(TARGET, &[0; 64]);
    rig.clear_completion();
    let descriptors = rig.stats().descriptors;
    settle();
    assert_eq!((rig.completion(), rig.get(TARGET, 64)), (0, vec![0; 64]));
    assert_eq!(rig.stats().descriptors, descriptors);
    rig.works();
}

#[test]
fn a_channel_is_suspended_in_mid_chain_and_resumed_by_its_count() {
    let rig = Rig::one();
    rig.descriptor(RING, 1 << 20, FILL | DONE, 0x55, TARGET, RING);
    rig.arm(RING);
    rig.ring(2000);
    wait("it runs", || rig.completion() != 0);
    rig.suspend();
    wait("it is suspended", || rig.state() == SUSPENDED);
    assert_eq!(rig.read(0x84, 1), 0);
    let done = rig.stats().descriptors;
    assert!(done < 2000);
    rig.put(TARGET, &[0; 64]);
    settle();
    assert_eq!((rig.stats().descriptors, rig.get(TARGET, 64)), (done, vec![0; 64]));
    assert_eq!(rig.status(), RING | SUSPENDED);
    // What is left becomes short work.
    rig.descriptor(RING, 64, FILL | DONE, 0x77, TARGET, RING);
    rig.ring(2000);
    wait("it is idle", || rig.state() == IDLE);
    wait("the count follows", || rig.stats().descriptors == 2000);
    assert_eq!(rig.get(TARGET, 9), [0x77, 0, 0, 0, 0, 0, 0, 0, 0x77]);
}

#[test]
fn a_suspended_channel_takes_a_new_chain() {
    let rig = Rig::one();
    rig.null_ring(RING, 2);
    rig.run(RING, 1, RING);
    rig.suspend();
    wait("it is suspended", || rig.state() == SUSPENDED);
    rig.null_ring(RING + 0x1000, 2);
    rig.arm(RING + 0x1000);
    assert_eq!(rig.status(), ARMED);
    rig.ring(2);
    wait("the chain is done", || rig.completion() == (RING + 0x1040) | IDLE);
}

#[test]
fn a_running_channel_takes_no_chain_and_a_halted_one_no_suspend() {
    let rig = Rig::one();
    rig.suspend();
    assert_eq!((rig.status(), rig.read(0x84, 1)), (HALTED, 0));
    rig.null_ring(RING, 2);
    rig.run(RING, 1, RING);
    rig.arm(RING + 0x1000);
    assert_eq!(rig.status(), RING | IDLE);
    rig.ring(2);
    wait("the old chain goes on", || rig.completion() == (RING + 64) | IDLE);
}

#[test]
fn a_function_level_reset_forgets_everything() {
    let rig = Rig::one();
    let events = rig.connect(IrqKind::MsiX, 1);
    rig.descriptor(RING, 1 << 20, FILL | DONE, 0x55, TARGET, RING);
    rig.arm(RING);
    rig.ring(60_000);
    wait("it runs", || rig.completion() != 0);
    rig.write(0x0c, 2, 5);
    rig.set_config(0x98, 0x8000);
    let descriptors = rig.stats().descriptors;
    assert_eq!((rig.status(), rig.read(0x86, 2), rig.read(0x0c, 2)), (HALTED, 0, 0x8000));
    assert_eq!(rig.read(0x98, 8), 0, "CHANCMP");
    assert_eq!(rig.config(0x04) & 0xffff, 0, "the command register");
    assert_eq!(rig.config(0x98) & 0xffff, 0x2810);
    settle();
    assert_eq!((rig.stats().descriptors, rig.stats().resets), (descriptors, 1));
    rig.bus_master(true);
    rig.set_up(0);
    rig.clear_completion();
    rig.descriptor(RING, 1, NULL | DONE | INT, 0, 0, RING);
    rig.run(RING, 1, RING);
    wait("connected vectors survive", || events[0].read() == Ok(1));
}

#[test]
fn in_d3hot_only_configuration_space_answers() {
    let rig = Rig::one();
    rig.set_config(0xe4, 3);
    assert_eq!(rig.status(), u64::MAX);
    rig.write(0x90, 8, RING);
    rig.set_config(0xe4, 0);
    assert_eq!(rig.status(), HALTED, "the write was dropped, and nothing was reset");
    rig.works();
}

#[test]
fn suspended_at_any_moment_no_descriptor_is_left_out_or_done_twice() {
    let rig = Rig::one();
    const LEN: u64 = 1024;
    rig.null_ring(SOURCE, LEN);
    rig.arm(SOURCE);
    let place = |n: u64| SOURCE + 64 * (n % LEN);
    rig.ring(1);
    wait("the first is done", || rig.stats().descriptors == 1);
    let (mut filled, mut caught) = (1, 0);
    for round in 0..3000u64 {
        filled += 1 + round * 7919 % 60;
        rig.ring(filled as u16);
        if round % 3 == 0 {
            (0..round % 50).for_each(|_| std::hint::spin_loop());
            rig.suspend();
            wait("it is suspended", || rig.state() == SUSPENDED);
            let done = rig.stats().descriptors;
            assert_eq!(rig.status() & !0x3f, place(done - 1));
            assert_eq!(rig.completion() & !0x3f, place(done - 1));
            caught += u64::from(done < filled);
            rig.ring(filled as u16);
        }
        wait("it keeps up", || rig.stats().descriptors + 10_000 >= filled);
    }
    wait("all are done", || rig.status() == place(filled - 1) | IDLE);
    wait("all are counted", || rig.stats().descriptors == filled);
    assert!(caught > 100, "only {caught} suspensions hit a running channel");
}
