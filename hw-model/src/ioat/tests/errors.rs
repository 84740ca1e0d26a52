//! What halts a channel, and how it comes back.

use super::*;

/// A good descriptor, then the one under test.
fn second(rig: &Rig, size: u32, control: u32, source: u64, target: u64) {
    rig.descriptor(RING, 1, NULL | DONE, 0, 0, RING + 64);
    rig.descriptor(RING + 64, size, control | DONE, source, target, RING);
    rig.arm(RING);
}

#[test]
fn each_descriptor_error_has_its_bit() {
    const READ_DATA: u64 = 1 << 8;
    const WRITE_DATA: u64 = 1 << 9;
    const CONTROL: u64 = 1 << 10;
    const LENGTH: u64 = 1 << 11;
    const FAR: u64 = 1 << 52;
    const NOWHERE: u64 = 0x9000_0000;
    let rig = Rig::one();
    for (size, control, source, target, error) in [
        (64, 0, FAR - 63, TARGET, 1 << 0),
        (64, 0, u64::MAX, TARGET, 1 << 0),
        (64, 0, SOURCE, FAR, 1 << 1),
        (64, FILL, u64::MAX, FAR, 1 << 1),
        (64, 0, NOWHERE, TARGET, READ_DATA),
        (64, 0, SOURCE, NOWHERE, WRITE_DATA),
        (64, FILL, 0, NOWHERE, WRITE_DATA),
        (64, 0, BASE + SIZE as u64 - 63, TARGET, READ_DATA),
        (64, 0x87 << 24, SOURCE, TARGET, CONTROL),
        (64, 0x88 << 24, SOURCE, TARGET, CONTROL),
        (64, 0x89 << 24, SOURCE, TARGET, CONTROL),
        (64, 0x8a << 24, SOURCE, TARGET, CONTROL),
        (64, 1 << 6, SOURCE, TARGET, CONTROL),
        (0, 0, SOURCE, TARGET, LENGTH),
        (0, NULL, 0, 0, LENGTH),
        ((1 << 20) + 1, 0, SOURCE, TARGET, LENGTH),
    ] {
        second(&rig, size, control, source, target);
        rig.halts(3, error, RING);
        rig.recover();
        rig.works();
        rig.reset();
        rig.clear_completion();
    }
}

#[test]
fn chain_and_completion_addresses_have_their_bits() {
    let rig = Rig::one();
    for (chain, error) in [(RING + 8, 1 << 4), (1 << 52, 1 << 4), (0x9000_0000, 1 << 8)] {
        rig.arm(chain);
        rig.halts(1, error, 0);
        rig.recover();
    }
    for (next, error) in [(RING + 0x20, 1 << 3), (1 << 52, 1 << 2), (0x9000_0000, 1 << 8)] {
        rig.descriptor(RING, 1, NULL | DONE, 0, 0, next);
        rig.arm(RING);
        rig.halts(2, error, RING);
        rig.recover();
    }
    for (word, error) in [(WORD + 4, 1 << 12), (1 << 52, 1 << 12), (0x9000_0000, 1 << 9)] {
        rig.write(0x98, 8, word);
        rig.null_ring(RING, 1);
        rig.arm(RING);
        rig.ring(1);
        wait("the channel halts", || rig.state() == HALTED);
        assert_eq!((rig.errors(), rig.status()), (error, HALTED), "no descriptor is good");
        rig.recover();
    }
    rig.set_up(0);
    rig.works();
}

#[test]
fn what_is_no_command_is_an_error() {
    let rig = Rig::one();
    for command in [0x24, 0x01, 0x02, 0x08, 0x10, 0xff] {
        rig.null_ring(RING, 2);
        rig.run(RING, 1, RING);
        rig.write(0x84, 1, command);
        wait("the channel halts", || rig.state() == HALTED);
        assert_eq!((rig.errors(), rig.completion()), (1 << 5, RING | HALTED));
        rig.recover();
    }
    rig.write(0x84, 1, 0);
    rig.works();
}

#[test]
fn nothing_after_the_failed_descriptor_is_touched() {
    let rig = Rig::one();
    rig.put(TARGET, &[0; 64]);
    second(&rig, 64, 0, 0x9000_0000, TARGET + 4096);
    rig.descriptor(RING + 128, 64, FILL, u64::MAX, TARGET, RING);
    rig.descriptor(RING + 64, 64, DONE, 0x9000_0000, TARGET + 4096, RING + 128);
    rig.halts(3, 1 << 8, RING);
    rig.ring(10);
    settle();
    assert_eq!((rig.state(), rig.get(TARGET, 64)), (HALTED, vec![0; 64]));
    assert_eq!(rig.stats().memory.refused_not_mapped, 1);
}

#[test]
fn a_channel_with_errors_takes_no_chain() {
    let rig = Rig::one();
    second(&rig, 0, 0, 0, 0);
    rig.halts(2, 1 << 11, RING);
    rig.arm(RING);
    assert_eq!(rig.state(), HALTED);
    rig.write(0xa8, 4, 0xffff_ffff);
    rig.arm(RING);
    assert_eq!(rig.state(), HALTED, "CHANERR_INT is still set");
    rig.set_config(0x180, 0xffff_ffff);
    rig.arm(RING);
    assert_eq!(rig.state(), ARMED);
}

#[test]
fn another_channels_error_in_the_mirror_does_not_keep_a_channel_halted() {
    let rig = Rig::new(IoatConfig { channels: 2, ..IoatConfig::default() });
    second(&rig, 0, 0, 0, 0);
    rig.halts(2, 1 << 11, RING);
    rig.recover();
    // The same error on the other channel, with the descriptor that channel 0 halted on.
    let offset = |offset| Rig::reg(1, offset);
    rig.write(offset(0x10), 4, (RING + 64) & 0xffff_ffff);
    rig.write(offset(0x14), 4, (RING + 64) >> 32);
    rig.write(offset(0x06), 2, 1);
    wait("the other channel halts", || rig.read(offset(0x28), 4) == 1 << 11);
    assert_eq!(rig.config(0x180), 1 << 11);
    rig.arm(RING);
    assert_eq!(rig.state(), ARMED);
}

#[test]
fn from_version_3_3_on_the_mirror_does_not_matter() {
    let personality = crate::ioat::Personality::IceLake;
    let rig = Rig::new(IoatConfig { personality, ..IoatConfig::default() });
    second(&rig, 0, 0, 0, 0);
    rig.halts(2, 1 << 11, RING);
    rig.write(0xa8, 4, 0xffff_ffff);
    rig.arm(RING);
    assert_eq!((rig.state(), rig.config(0x180)), (ARMED, 1 << 11));
}

#[test]
fn masks_keep_errors_from_the_mirror_and_from_interrupting() {
    let rig = Rig::one();
    let events = rig.connect(IrqKind::MsiX, 1);
    rig.write(0xac, 4, 1 << 11);
    second(&rig, 0, 0, 0, 0);
    rig.ring(2);
    wait("the channel halts", || rig.state() == HALTED);
    settle();
    assert_eq!((rig.errors(), rig.config(0x180)), (1 << 11, 0));
    assert!(events[0].read().is_err());
    rig.recover();
    rig.set_config(0x184, 1 << 10);
    second(&rig, 64, 0x87 << 24, 0, 0);
    rig.ring(2);
    wait("it interrupts", || events[0].read() == Ok(1));
    assert_eq!((rig.errors(), rig.config(0x180)), (1 << 10, 0));
}

#[test]
fn an_error_writes_the_word_only_when_asked() {
    let rig = Rig::one();
    rig.write(0x80, 2, 0x10);
    second(&rig, 0, 0, 0, 0);
    rig.ring(2);
    wait("the channel halts", || rig.state() == HALTED);
    settle();
    assert_eq!(rig.completion(), RING | ACTIVE);
}

#[test]
fn without_bus_mastering_there_is_no_dma() {
    let rig = Rig::one();
    rig.put(TARGET, &[0; 64]);
    rig.bus_master(false);
    rig.descriptor(RING, 64, FILL | DONE, 1, TARGET, RING);
    rig.arm(RING);
    rig.ring(1);
    wait("the channel halts", || rig.state() == HALTED);
    assert_eq!((rig.errors(), rig.completion(), rig.get(TARGET, 64)), (1 << 8, 0, vec![0; 64]));
    assert_eq!(rig.stats().memory.bytes_read, 0);
    rig.bus_master(true);
    rig.recover();
    rig.works();
}

#[test]
fn memory_that_is_unmapped_under_a_transfer_is_not_touched_any_more() {
    let rig = Rig::one();
    rig.descriptor(RING, 1 << 20, FILL | DONE, 0x55, TARGET, RING);
    rig.arm(RING);
    rig.ring(60_000);
    wait("it runs", || rig.completion() != 0);
    rig.model.iommu().unmap(BASE, SIZE).unwrap();
    rig.put(TARGET, &[0; 64]);
    wait("the channel halts", || rig.state() == HALTED);
    assert!([1 << 8, 1 << 9].contains(&rig.errors()));
    assert_eq!(rig.get(TARGET, 64), [0; 64]);
    assert!(rig.stats().memory.refused_not_mapped > 0);
}

#[test]
fn transactions_are_pending_until_the_descriptor_in_hand_is_done() {
    const DEVICE_STATUS: u64 = 0x98;
    const PENDING: u32 = 1 << 21;
    let rig = Rig::one();
    assert_eq!(rig.config(DEVICE_STATUS) & PENDING, 0);
    for round in 0..100u64 {
        rig.put(TARGET, &[0; 8]);
        rig.clear_completion();
        rig.descriptor(RING, 1 << 20, FILL | DONE, u64::MAX, TARGET, RING);
        rig.arm(RING);
        rig.ring(60_000);
        wait("it runs", || rig.completion() != 0);
        std::thread::sleep(Duration::from_micros(37 * (round % 10)));
        rig.bus_master(false);
        wait("nothing is pending", || rig.config(DEVICE_STATUS) & PENDING == 0);
        // Whatever is written now must stay.
        let marks = [TARGET, TARGET + (1 << 20) - 8];
        for mark in marks {
            rig.word(mark).store(0x55, Ordering::Release);
        }
        let word = rig.completion();
        wait("the channel halts", || rig.state() == HALTED);
        assert_eq!(marks.map(|mark| rig.word(mark).load(Ordering::Acquire)), [0x55; 2]);
        assert_eq!(rig.completion(), word, "the word of an error is DMA too");
        // The word of the descriptor in hand was refused, or the fetch of the next one.
        assert!([1 << 8, 1 << 9].contains(&rig.errors()));
        assert_eq!(rig.status() & !0x3f, RING);
        rig.bus_master(true);
        rig.recover();
    }
}

/// A driver that unmaps too early is told by the record, whatever the engine reaches for first.
#[test]
fn a_late_access_in_the_middle_of_a_run_is_recorded() {
    let page = 4096;
    for (taken, errors) in
        [(SOURCE, 1 << 8), (TARGET, 1 << 9), (WORD & !0xfff, 1 << 9), (RING, 1 << 8)]
    {
        let rig = Rig::one();
        let iommu = rig.model.iommu();
        iommu.unmap(BASE, SIZE).unwrap();
        for iova in [SOURCE, TARGET, WORD & !0xfff, RING] {
            let request = MapRequest {
                iova,
                host: NonNull::new(rig.memory.at(iova, 4096)).unwrap(),
                len: page,
                access: DmaAccess::ReadWrite,
                file: None,
            };
            // SAFETY: the memory outlives the mapping, as in `Rig::new`.
            unsafe { iommu.map(&request) }.unwrap();
        }
        for n in 0..64 {
            let next = RING + 64 * ((n + 1) % 64);
            rig.descriptor(RING + 64 * n, 4096, DONE, SOURCE, TARGET, next);
        }
        rig.arm(RING);
        // It does not run out of work, however long this thread does not run.
        let more = || rig.ring((rig.stats().descriptors + 30_000) as u16);
        more();
        wait("it runs", || rig.completion() != 0);
        assert_eq!(rig.stats().memory.refused_not_mapped, 0);
        iommu.unmap(taken, page).unwrap();
        rig.put(taken, &[0xee; 64]);
        wait("the channel halts", || {
            more();
            rig.state() == HALTED
        });
        assert_eq!(rig.errors(), errors);
        let (stats, status) = (rig.stats(), rig.status());
        // A descriptor is fetched with those behind it, then alone; a halt tells of itself.
        let refused = stats.memory.refused_not_mapped;
        assert!((1..=2).contains(&refused), "{refused} late accesses");
        assert_eq!(status & !0x3f, RING + 64 * ((stats.descriptors - 1) % 64));
        assert_eq!(rig.get(taken, 64), [0xee; 64], "touched after unmap");
    }
}
