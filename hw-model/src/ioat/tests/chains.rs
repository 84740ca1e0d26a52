//! Data, chains and counts.

use super::*;

#[test]
fn a_copy_moves_every_byte_and_no_other() {
    let rig = Rig::one();
    for (n, (size, shift)) in
        [(1, 0), (64, 0), (4096, 1), (100_000, 7), (1 << 20, 3)].into_iter().enumerate()
    {
        let source = rig.pattern(size + 16);
        rig.put(TARGET, &vec![0xa5; size + 16]);
        rig.reset();
        rig.clear_completion();
        rig.descriptor(RING, size as u32, DONE, SOURCE + shift, TARGET + 8, RING);
        rig.run(RING, 1, RING);
        assert_eq!(rig.get(TARGET + 8, size), source[shift as usize..][..size]);
        assert_eq!(rig.get(TARGET, 8), [0xa5; 8]);
        assert_eq!(rig.get(TARGET + 8 + size as u64, 8), [0xa5; 8]);
        assert_eq!(rig.stats().descriptors, n as u64 + 1);
    }
}

#[test]
fn a_fill_repeats_its_pattern_from_the_first_byte() {
    let rig = Rig::one();
    rig.put(TARGET, &[0; 32]);
    rig.descriptor(RING, 21, FILL | DONE, 0x0807_0605_0403_0201, TARGET + 3, RING);
    rig.run(RING, 1, RING);
    let expected: Vec<u8> = (0..21).map(|n| n % 8 + 1).collect();
    assert_eq!(rig.get(TARGET + 3, 21), expected);
    assert_eq!((rig.get(TARGET, 3), rig.get(TARGET + 24, 8)), (vec![0; 3], vec![0; 8]));
}

#[test]
fn descriptors_are_executed_in_order_and_a_fence_changes_nothing() {
    let rig = Rig::one();
    let source = rig.pattern(64);
    // Each copies what the one before has written.
    rig.descriptor(RING, 64, 0, SOURCE, TARGET, RING + 0x1000);
    rig.descriptor(RING + 0x1000, 64, FENCE, TARGET, TARGET + 64, RING + 0x40);
    rig.descriptor(RING + 0x40, 64, FENCE | DONE, TARGET + 64, TARGET + 128, RING);
    rig.run(RING, 3, RING + 0x40);
    assert_eq!(rig.get(TARGET + 128, 64), source);
    assert_eq!(rig.stats().completions, 1);
}

#[test]
fn a_ring_of_one_runs_as_often_as_it_is_counted() {
    let rig = Rig::one();
    rig.descriptor(RING, 64, DONE, SOURCE, TARGET, RING);
    rig.run(RING, 5, RING);
    for count in 6..50u16 {
        // The only descriptor is used again for other work.
        let source = SOURCE + 64 * u64::from(count);
        rig.put(source, &[count as u8; 64]);
        rig.clear_completion();
        rig.descriptor(RING, 64, DONE, source, TARGET, RING);
        rig.ring(count);
        wait("it is done", || rig.completion() == RING | IDLE);
        assert_eq!(rig.get(TARGET, 64), vec![count as u8; 64]);
    }
    assert_eq!(rig.stats().descriptors, 49);
}

#[test]
fn a_link_written_after_its_descriptor_ran_is_followed() {
    let rig = Rig::one();
    // The last counted descriptor leads astray until more is counted.
    let astray = RING + 0x4000;
    rig.descriptor(astray, 64, FILL | DONE, u64::MAX, TARGET + 0x1000, astray);
    rig.null_ring(RING, 4);
    rig.descriptor(RING + 64, 1, NULL | DONE, 0, 0, astray);
    rig.run(RING, 2, RING + 64);
    for n in 0..20u64 {
        let at = RING + 0x1000 + 64 * (n * 7 % 20);
        rig.descriptor(at, 8, FILL | DONE, n, TARGET, astray);
        let last = rig.completion() & !0x3f;
        rig.word(last + 24).store(at, Ordering::Release);
        rig.ring(3 + n as u16);
        wait("the new one is done", || rig.completion() == at | IDLE);
        assert_eq!(rig.get(TARGET, 8), n.to_le_bytes());
    }
    assert_eq!(rig.get(TARGET + 0x1000, 64), [0; 64]);
}

#[test]
fn a_chain_is_extended_while_it_runs() {
    let rig = Rig::one();
    const LEN: u64 = 256;
    let place = |n: u64| RING + 64 * (n % LEN);
    rig.null_ring(RING, LEN);
    rig.arm(RING);
    let mut done = 0;
    let mut filled = 0u64;
    while done < 20_000 {
        while filled < done + LEN - 1 && filled < 20_000 {
            rig.descriptor(place(filled), 8, FILL | DONE, filled, TARGET, place(filled + 1));
            filled += 1;
            if filled.is_multiple_of(3) {
                rig.ring(filled as u16);
            }
        }
        rig.ring(filled as u16);
        let word = rig.completion();
        if word != 0 {
            let behind = (word & !0x3f).wrapping_sub(place(done)) / 64;
            done += (behind % LEN + 1) % LEN;
        }
        assert_eq!(rig.errors(), 0);
    }
    assert_eq!(rig.get(TARGET, 8), 19_999u64.to_le_bytes());
    wait("all are counted", || rig.stats().descriptors == 20_000);
}

#[test]
fn a_doorbell_in_mid_run_does_not_take_the_status_back() {
    let rig = Rig::one();
    const LEN: u64 = 4096;
    const AHEAD: u64 = 1000;
    rig.null_ring(SOURCE, LEN);
    rig.arm(SOURCE);
    let (mut seen, mut filled) = (0, 0);
    while seen < 100_000 {
        filled = (seen + AHEAD).min(filled + 37);
        rig.ring(filled as u16);
        let status = rig.status();
        if status & !0x3f != 0 {
            let place = ((status & !0x3f) - SOURCE) / 64 + 1;
            let step = place.wrapping_sub(seen) % LEN;
            assert!(step <= filled - seen, "{seen} were done, now {place} modulo {LEN}");
            seen += step;
        }
        assert!(rig.stats().descriptors >= seen.saturating_sub(1));
        assert!([ACTIVE, IDLE, ARMED].contains(&(status & 7)));
    }
}

#[test]
fn the_count_wraps_and_65535_may_be_ahead() {
    let rig = Rig::one();
    rig.null_ring(RING, 16);
    rig.arm(RING);
    rig.ring(0xffff);
    wait("all are done", || rig.state() == IDLE);
    wait("all are counted", || rig.stats().descriptors == 0xffff);
    assert_eq!(rig.status(), (RING + 64 * 14) | IDLE);
    rig.ring(9);
    wait("ten more are done", || rig.status() == (RING + 64 * 8) | IDLE);
    wait("all are counted", || rig.stats().descriptors == 0x1_0009);
}

#[test]
fn a_running_channel_may_be_counted_up_by_as_much_as_can_be_ahead() {
    let rig = Rig::one();
    let place = |n: u64| RING + 64 * (n % 16);
    for n in 0..16 {
        rig.descriptor(place(n), 4096, DONE, SOURCE, TARGET, place(n + 1));
    }
    for _ in 0..5 {
        rig.arm(RING);
        let before = rig.stats().descriptors;
        rig.ring(1000);
        wait("the first is done", || rig.stats().descriptors > before);
        // What the channel knew when it began is a whole turn of the count behind.
        let all = rig.stats().descriptors - before + 65_535;
        rig.ring(all as u16);
        wait("all are done", || rig.stats().descriptors - before == all);
        wait("it is idle", || rig.status() == place(all - 1) | IDLE);
        assert_eq!(rig.errors(), 0);
        rig.reset();
    }
}

#[test]
fn transfers_rings_and_words_may_span_ranges() {
    let rig = Rig::one();
    let iommu = rig.model.iommu();
    iommu.unmap(BASE, SIZE).unwrap();
    let page = 4096;
    for n in 0..SIZE as u64 / page {
        let request = MapRequest {
            iova: BASE + n * page,
            host: NonNull::new(rig.memory.at(BASE + n * page, 4096)).unwrap(),
            len: 4096,
            access: DmaAccess::ReadWrite,
            file: None,
        };
        // SAFETY: the memory outlives the mapping, as in `Rig::new`.
        unsafe { iommu.map(&request) }.unwrap();
    }
    let source = rig.pattern(1 << 20);
    // A ring over 16 pages, each descriptor copies 1000 bytes at odd places.
    for n in 0..1000u64 {
        let next = RING + 64 * ((n + 1) % 1000);
        rig.descriptor(RING + 64 * n, 1000, DONE, SOURCE + 1000 * n, TARGET + 1000 * n + 1, next);
    }
    rig.run(RING, 1000, RING + 64 * 999);
    assert_eq!(rig.get(TARGET + 1, 1_000_000), source[..1_000_000]);
}

#[test]
fn eight_channels_work_side_by_side() {
    let rig = Rig::new(IoatConfig { channels: 8, ..IoatConfig::default() });
    assert_eq!(rig.read(0x00, 1), 8);
    let source = rig.pattern(64 << 10);
    std::thread::scope(|scope| {
        for channel in 0..8u8 {
            let (rig, source) = (&rig, &source);
            scope.spawn(move || {
                let n = u64::from(channel);
                let ring = RING + 0x1000 * n;
                let target = TARGET + 0x1_0000 * n;
                for place in 0..64u64 {
                    let (at, piece) = (ring + 64 * place, 1024 * place);
                    let next = ring + 64 * ((place + 1) % 64);
                    rig.descriptor(at, 1024, DONE, SOURCE + piece, target + piece, next);
                }
                rig.write(Rig::reg(channel, 0x10), 8, ring);
                let word = rig.word(WORD + 64 * n);
                for round in 1..=20u16 {
                    rig.write(Rig::reg(channel, 0x06), 2, u64::from(round) * 64);
                    let done = || rig.read(Rig::reg(channel, 0x08), 8) == (ring + 64 * 63) | IDLE;
                    wait("the round is done", done);
                    wait("its word is written", || word.load(Ordering::Acquire) & 7 == IDLE);
                }
                assert_eq!(&rig.get(target, 64 << 10), source);
            });
        }
    });
    wait("all are counted", || rig.stats().descriptors == 8 * 20 * 64);
}

#[test]
fn packets_are_counted_for_a_link() {
    use crate::link::{LinkMeter, TlpKind};
    let meter = Arc::new(LinkMeter::default());
    let rig = Rig::new(IoatConfig { meter: Some(meter.clone()), ..IoatConfig::default() });
    let _events = rig.connect(IrqKind::MsiX, 1);
    let before = meter.snapshot();
    for n in 0..4 {
        let control = if n == 3 { DONE | INT } else { 0 };
        rig.descriptor(RING + 64 * n, 4096, control, SOURCE, TARGET, RING + 64 * ((n + 1) % 4));
    }
    rig.write(0x90, 8, RING);
    rig.ring(4);
    wait("the interrupt is counted", || {
        meter.snapshot().since(&before).get(TlpKind::Interrupt).packets == 1
    });
    let counts = meter.snapshot().since(&before);
    assert_eq!((counts.payload(), counts.descriptors()), (2 * 4 * 4096, 4));
    assert_eq!(counts.get(TlpKind::CompletionWrite).data, 8);
    assert_eq!(counts.get(TlpKind::DescriptorCompletion).data, 4 * 64);
    assert_eq!(counts.get(TlpKind::HostWrite).packets, 2, "CHAINADDR and the doorbell");
}

/// Ranges come and go, so that those of the transfers move about in the table.
#[test]
fn two_channels_copy_while_the_map_changes() {
    let rig = Rig::new(IoatConfig { channels: 2, ..IoatConfig::default() });
    let iommu = rig.model.iommu();
    iommu.unmap(BASE, SIZE).unwrap();
    let page = 4096;
    let map = |iova: u64, at: u64| {
        let host = NonNull::new(rig.memory.at(at, page)).unwrap();
        let access = DmaAccess::ReadWrite;
        // SAFETY: the memory outlives the mapping, as in `Rig::new`.
        unsafe { iommu.map(&MapRequest { iova, host, len: page, access, file: None }) }.unwrap();
    };
    for at in (BASE..BASE + SIZE as u64).step_by(page) {
        map(at, at);
    }
    let source = rig.pattern(64 << 10);
    let stop = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for channel in 0..2u8 {
            let (rig, source, stop) = (&rig, &source, &stop);
            scope.spawn(move || {
                let n = u64::from(channel);
                let (ring, target) = (RING + 0x1000 * n, TARGET + 0x10_0000 * n);
                let word = rig.word(WORD + 64 * n);
                for place in 0..64u64 {
                    // Every second one spans two pages on either side.
                    let (at, piece) = (ring + 64 * place, 1024 * place);
                    let next = ring + 64 * ((place + 1) % 64);
                    rig.descriptor(at, 1024, DONE, SOURCE + piece, target + 100 + piece, next);
                }
                rig.write(Rig::reg(channel, 0x10), 8, ring);
                for round in 1..=40u16 {
                    rig.put(target + 100, &vec![0; 64 << 10]);
                    word.store(0, Ordering::Release);
                    // In parts, so that runs end and are lengthened.
                    for part in 0..4 {
                        let count = u64::from((round - 1) * 64 + 16 * (part + 1));
                        rig.write(Rig::reg(channel, 0x06), 2, count);
                    }
                    let last = (ring + 64 * 63) | IDLE;
                    wait("the round is done", || word.load(Ordering::Acquire) == last);
                    assert!(rig.get(target + 100, 64 << 10) == *source, "round {round}");
                }
                stop.fetch_add(1, Ordering::Relaxed);
            });
        }
        let mut longest = Duration::ZERO;
        let mut round = 0u64;
        while stop.load(Ordering::Relaxed) < 2 {
            round += 1;
            // Below, between the pages of the transfers' tables and above them.
            let bases = [0x10_0000, BASE - 0x40_0000, BASE + 2 * SIZE as u64];
            let base = bases[(round % 3) as usize];
            let places: Vec<u64> = (0..round % 300).map(|n| base + n * 2 * page as u64).collect();
            let begin = Instant::now();
            places.iter().for_each(|&iova| map(iova, BASE + 0x70_0000));
            places.iter().for_each(|&iova| iommu.unmap(iova, page).unwrap());
            longest = longest.max(begin.elapsed());
        }
        assert!(longest < Duration::from_secs(3), "{round} rounds, the longest {longest:?}");
    });
    let stats = rig.stats();
    assert_eq!((stats.errors, stats.memory.refused_not_mapped), (0, 0));
    wait("all are counted", || rig.stats().descriptors == 2 * 40 * 64);
    let written = 2 * 40 * 64 * (1024 + 8);
    wait("and all bytes", || rig.stats().memory.bytes_written == written);
}
