//! The driver against registers that are scripted: what a device may do to it.

mod device;
mod events;
mod losses;
#[cfg(shuttle)]
mod schedules;
mod slots;
mod waiting;

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::dma::{Direction, Pattern, SgTable};
use crate::queue::QueueError;
use crate::testing::Scripted;
use device::Fake;

const SECOND: Duration = Duration::from_secs(1);

type Backing = Arc<Scripted<Fake>>;

fn config() -> Config {
    Config {
        wait: WaitMode::Poll,
        ring_size: 32,
        command_timeout: Duration::from_millis(20),
        ..Config::default()
    }
}

fn open(config: Config) -> (Backing, Ioat, Channel) {
    let backing = Scripted::new((0x8086, 0x2021), Fake::new);
    let device = Device::open(backing.attach()).unwrap();
    let ioat = Ioat::probe(device, config).unwrap();
    let channel = ioat.channel(0).unwrap();
    (backing, ioat, channel)
}

/// A source with a pattern and a target, as tables of `len` bytes.
fn pair(ioat: &Ioat, len: usize, seed: u64) -> (SgTable, SgTable) {
    let mut source = ioat.allocate(&Request::new(len, Direction::ToDevice)).unwrap();
    Pattern::new(seed).fill(&mut source, 0, len, 0).unwrap();
    let target = ioat.allocate(&Request::new(len, Direction::FromDevice)).unwrap();
    (source.into(), target.into())
}

/// A copy in `pieces` descriptors: the target's ranges are taken out of order.
fn scattered(ioat: &Ioat, pieces: usize, seed: u64) -> (SgTable, SgTable) {
    let (source, target) = pair(ioat, pieces * 64, seed);
    let target = Arc::new(target.into_buffer().unwrap());
    let ranges = (0..pieces).rev().map(|n| (Arc::clone(&target), n * 64, 64));
    (source, SgTable::gather(ranges).unwrap())
}

fn check(tables: &Tables, seed: u64) {
    let source = &tables.source.as_ref().unwrap().buffers()[0];
    let target = &tables.target.buffers()[0];
    let len = source.len();
    Pattern::new(seed).check(source, 0, len, 0).unwrap().unwrap();
    let mut expected = vec![0; len];
    source.read(0, &mut expected).unwrap();
    // What lies at the target's segments, in their order, is the source.
    let base = target.segments()[0].iova.0;
    let mut at = 0;
    for segment in tables.target.list().segments() {
        let mut found = vec![0; segment.len];
        target.read((segment.iova.0 - base) as usize, &mut found).unwrap();
        assert_eq!(found, expected[at..at + segment.len]);
        at += segment.len;
    }
}

#[test]
fn copies_and_fills_of_any_length_arrive() {
    let (_backing, ioat, mut channel) = open(config());
    assert_eq!((ioat.version(), ioat.channels(), ioat.can_fill()), ((3, 2), 2, true));
    for len in [1, 7, 64, 4095, 4096, 100_000, 3 << 20] {
        let (source, target) = pair(&ioat, len, len as u64);
        let token = channel.copy(source, target, WhenFull::Return).unwrap();
        check(&channel.wait(token, SECOND).unwrap().into_result().unwrap(), len as u64);
        assert!(matches!(channel.take(token), Err(IoatError::NoSuchTransfer)));
    }
    // Ranges of odd lengths: the pattern goes on from one to the next.
    let buffer = Arc::new(ioat.allocate(&Request::new(4096, Direction::Bidirectional)).unwrap());
    let ranges = [(1000, 13), (3, 1), (500, 22)].map(|(at, len)| (Arc::clone(&buffer), at, len));
    let target = SgTable::gather(ranges).unwrap();
    let token = channel.fill(target, 0x0807_0605_0403_0201, WhenFull::Return).unwrap();
    channel.wait(token, SECOND).unwrap().into_result().unwrap();
    let mut at = 0..;
    for (offset, len) in [(1000, 13), (3, 1), (500, 22)] {
        let mut found = vec![0; len];
        buffer.read(offset, &mut found).unwrap();
        let expected: Vec<u8> = at.by_ref().take(len).map(|i: usize| (i % 8) as u8 + 1).collect();
        assert_eq!(found, expected, "at {offset}");
    }
}

#[test]
fn a_batch_costs_one_doorbell_and_no_register_read() {
    let (backing, ioat, mut channel) = open(config());
    let before = backing.registers().reads;
    let mut tables: Vec<_> = (0..5).map(|seed| scattered(&ioat, 3, seed)).collect();
    for round in 0..50_000 {
        let mut tokens = [None; 5];
        for (token, (source, target)) in tokens.iter_mut().zip(tables.drain(..)) {
            *token = Some(channel.copy(source, target, WhenFull::Return).unwrap());
        }
        channel.issue().unwrap();
        assert_eq!(channel.poll().unwrap(), 5);
        for token in tokens.into_iter().flatten() {
            let done = channel.take(token).unwrap().unwrap().into_result().unwrap();
            tables.push((done.source.unwrap(), done.target));
        }
        assert_eq!(channel.stats().doorbells, round + 1);
    }
    // A marker behind every seven descriptors, and one behind the last: 18 in a batch, and the
    // doorbell has wrapped 13 times.
    assert_eq!(channel.stats().descriptors, 900_000);
    assert_eq!(backing.registers().executed, 750_000);
    assert_eq!(backing.registers().reads, before);
}

#[test]
fn a_transfer_larger_than_the_ring_streams_through() {
    for ring_size in [4, 5, 16] {
        let (backing, ioat, mut channel) = open(Config { ring_size, ..config() });
        let (source, target) = scattered(&ioat, 200, 9);
        let token = channel.copy(source, target, WhenFull::Return).unwrap();
        let (source, target) = scattered(&ioat, 1, 10);
        let refused = channel.copy(source, target, WhenFull::Return).unwrap_err();
        assert!(matches!(refused.error, IoatError::Queue(QueueError::Full { .. })));
        let Tables { source, target } = refused.tables;
        let wait = WhenFull::Wait(SECOND);
        let second = channel.copy(source.unwrap(), target, wait).unwrap();
        check(&channel.wait(second, SECOND).unwrap().into_result().unwrap(), 10);
        check(&channel.wait(token, SECOND).unwrap().into_result().unwrap(), 9);
        assert_eq!(backing.registers().executed, 201);
    }
}

#[test]
fn waiting_for_room_ends_at_its_deadline() {
    let (backing, ioat, mut channel) = open(config());
    backing.registers().hold = true;
    let (source, target) = scattered(&ioat, 30, 1);
    let first = channel.copy(source, target, WhenFull::Return).unwrap();
    let (source, target) = scattered(&ioat, 1, 2);
    let wait = WhenFull::Wait(Duration::from_millis(30));
    let refused = channel.copy(source, target, wait).unwrap_err();
    assert!(refused.to_string().contains("1 entries are needed, 0 of 30 are free"));
    let late = channel.wait(first, Duration::from_millis(30)).unwrap_err();
    assert!(matches!(late, IoatError::Timeout { .. }), "{late}");
    backing.registers().release();
    check(&channel.wait(first, SECOND).unwrap().into_result().unwrap(), 1);
}

/// Submits five transfers of three descriptors, of which the 8th descriptor fails.
fn fail_the_eighth(on_error: OnError, bits: u32) -> Vec<Result<Tables, TransferError>> {
    let (backing, ioat, mut channel) = open(Config { on_error, ..config() });
    backing.registers().fail_at = Some((7, bits));
    let submit = |seed| {
        let (source, target) = scattered(&ioat, 3, seed);
        channel.copy(source, target, WhenFull::Return).unwrap()
    };
    let tokens: Vec<_> = (0..5).map(submit).collect();
    let results = tokens
        .iter()
        .map(|&token| channel.wait(token, SECOND).unwrap().into_result())
        .collect::<Vec<_>>();
    assert_eq!(channel.stats().recoveries, 1);
    let executed = if on_error == OnError::RunTheRest { 13 } else { 7 };
    assert_eq!(backing.registers().executed, executed, "nothing is done twice");
    let (source, target) = scattered(&ioat, 15, 77);
    let token = channel.copy(source, target, WhenFull::Return).unwrap();
    check(&channel.wait(token, SECOND).unwrap().into_result().unwrap(), 77);
    results
}

#[test]
fn a_halt_names_its_descriptor_and_ends_every_transfer_once() {
    for bits in [0, 0x100, 0x200, 0x4_0000] {
        for on_error in [OnError::RunTheRest, OnError::FailTheRest] {
            let results = fail_the_eighth(on_error, bits);
            for (seed, result) in results.iter().enumerate() {
                match (seed, result, on_error) {
                    (0 | 1, Ok(tables), _) => check(tables, seed as u64),
                    (2, Err(TransferError::Halted { errors, piece, slot, len, done, .. }), _) => {
                        assert_eq!(
                            (errors.bits(), *piece, *slot, *len, *done),
                            (bits, 1, 8, 64, 64)
                        );
                    }
                    (3 | 4, Ok(tables), OnError::RunTheRest) => check(tables, seed as u64),
                    (3 | 4, Err(TransferError::Behind), OnError::FailTheRest) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

#[test]
fn a_wrong_completion_word_is_survived_once_and_fails_one_transfer_the_next_time() {
    for wrong in [0x40, u64::MAX, 0x1000_0000_0000] {
        let (backing, ioat, mut channel) = open(config());
        backing.registers().hold = true;
        let submit = |channel: &mut Channel, seed| {
            let (source, target) = scattered(&ioat, 3, seed);
            channel.copy(source, target, WhenFull::Return).unwrap()
        };
        let tokens = [submit(&mut channel, 1), submit(&mut channel, 2), submit(&mut channel, 3)];
        channel.issue().unwrap();
        let word = backing.registers().word();
        let mut bogus = || {
            backing.host.store(word, wrong & !7).unwrap();
            channel.poll().unwrap()
        };
        assert_eq!([bogus(), bogus(), bogus()], [0, 1, 0]);
        let finished = channel.take(tokens[0]).unwrap().unwrap();
        assert!(finished.tables.is_some());
        let error = finished.result.unwrap_err();
        assert!(matches!(error, TransferError::Completion(_)), "{error}");
        backing.registers().release();
        for (token, seed) in [(tokens[1], 2), (tokens[2], 3)] {
            check(&channel.wait(token, SECOND).unwrap().into_result().unwrap(), seed);
        }
        assert_eq!(backing.registers().executed, 6, "nothing is done twice");
    }
}

#[test]
fn an_engine_that_does_not_suspend_is_reset() {
    let (backing, ioat, mut channel) = open(config());
    backing.registers().hold = true;
    let (source, target) = scattered(&ioat, 3, 1);
    let token = channel.copy(source, target, WhenFull::Return).unwrap();
    channel.issue().unwrap();
    backing.registers().no_suspend = true;
    channel.abort().unwrap();
    let finished = channel.take(token).unwrap().unwrap();
    assert_eq!(finished.result, Err(TransferError::Aborted));
    backing.registers().hold = false;
    let (source, target) = scattered(&ioat, 3, 2);
    let token = channel.copy(source, target, WhenFull::Return).unwrap();
    check(&channel.wait(token, SECOND).unwrap().into_result().unwrap(), 2);
}

#[test]
fn a_completion_word_that_never_comes_is_made_up_for() {
    let (backing, ioat, mut channel) = open(config());
    for seed in 0..5 {
        backing.registers().no_words = true;
        let (source, target) = scattered(&ioat, 7, seed);
        let token = channel.copy(source, target, WhenFull::Return).unwrap();
        check(&channel.wait(token, SECOND).unwrap().into_result().unwrap(), seed);
        assert_eq!(channel.stats().lost_completions, seed + 1);
    }
    assert_eq!(backing.registers().executed, 35, "nothing is done twice");
    assert_eq!(channel.stats().recoveries, 0, "the mark has told");
}

#[test]
fn a_device_that_is_gone_or_deaf_is_given_up_within_the_bound() {
    for gone in [true, false] {
        let (backing, ioat, mut channel) = open(config());
        backing.registers().hold = true;
        let (source, target) = scattered(&ioat, 3, 1);
        let token = channel.copy(source, target, WhenFull::Return).unwrap();
        channel.issue().unwrap();
        backing.registers().gone = gone;
        backing.registers().deaf = true;
        let begin = std::time::Instant::now();
        if !gone {
            let late = channel.wait(token, Duration::from_millis(30)).unwrap_err();
            assert!(matches!(late, IoatError::Timeout { .. }), "{late}");
            let error = channel.abort().unwrap_err();
            assert!(error.to_string().contains("RESET"), "{error}");
        }
        let finished = channel.wait(token, SECOND).unwrap();
        assert!(begin.elapsed() < SECOND);
        assert!(matches!(finished.result, Err(TransferError::Lost(_))));
        assert!(finished.tables.is_some(), "bus mastering is off: the buffers are safe");
        assert_eq!(backing.config()[4] & 4, 0);
        let Tables { source, target } = finished.tables.unwrap();
        let refused = channel.copy(source.unwrap(), target, WhenFull::Return).unwrap_err();
        let IoatError::ChannelLost { loss, .. } = refused.error else { panic!("{refused}") };
        assert_eq!(loss.step, if gone { LossStep::Look } else { LossStep::Stop });
    }
}

#[test]
fn buffers_of_a_device_that_cannot_be_stopped_are_never_unmapped() {
    let (backing, ioat, mut channel) = open(config());
    backing.registers().hold = true;
    backing.registers().deaf = true;
    let (source, target) = scattered(&ioat, 3, 1);
    channel.copy(source, target, WhenFull::Return).unwrap();
    channel.issue().unwrap();
    // Configuration space is gone too: bus mastering cannot be taken away.
    let registers = backing.config()[..8].to_vec();
    backing.config()[..8].fill(0xff);
    drop(channel);
    drop(ioat);
    assert_eq!(backing.host.mappings(), 4, "the ring, its status, the source and the target");
    backing.config()[..8].copy_from_slice(&registers);
}

#[test]
fn a_lost_channel_takes_no_other_along() {
    let (backing, ioat, mut first) = open(config());
    let mut second = ioat.channel(1).unwrap();
    let (source, target) = scattered(&ioat, 3, 1);
    second.copy(source, target, WhenFull::Return).unwrap();
    second.issue().unwrap();
    let mappings = backing.host.mappings();
    backing.registers().deaf_second = true;
    assert!(second.abort().is_err() && second.is_lost());
    drop(second);
    assert_eq!(backing.host.mappings(), mappings, "its engine may be running still");
    assert!(matches!(ioat.channel(1), Err(IoatError::ChannelLost { channel: 1, .. })));
    for seed in 0..10 {
        let (source, target) = scattered(&ioat, 3, seed);
        let token = first.copy(source, target, WhenFull::Return).unwrap();
        check(&first.wait(token, SECOND).unwrap().into_result().unwrap(), seed);
    }
    // With the last channel, what the lost one may reach is kept from it, and freed.
    drop(first);
    assert_eq!((backing.config()[4] & 4, backing.host.mappings()), (0, 0));
    // A reset gives it back.
    let mut channels = [ioat.channel(0).unwrap(), ioat.channel(1).unwrap()];
    assert_eq!((backing.config()[4] & 4, backing.registers().resets), (4, 1));
    let (source, target) = scattered(&ioat, 3, 9);
    let token = channels[0].copy(source, target, WhenFull::Return).unwrap();
    check(&channels[0].wait(token, SECOND).unwrap().into_result().unwrap(), 9);
}

#[test]
fn a_channel_that_is_opened_beside_a_lost_one_works() {
    let (backing, ioat, first) = open(config());
    drop(first);
    let mut lost = ioat.channel(1).unwrap();
    let (source, target) = scattered(&ioat, 3, 1);
    lost.copy(source, target, WhenFull::Return).unwrap();
    lost.issue().unwrap();
    backing.registers().deaf_second = true;
    assert!(lost.abort().is_err() && lost.is_lost());
    assert_eq!(backing.config()[4] & 4, 0, "its engine may be running still");
    // The function is reset for the next one, whether the lost one was dropped or not.
    let mut first = ioat.channel(0).unwrap();
    assert_eq!((backing.config()[4] & 4, backing.registers().resets), (4, 1));
    let (source, target) = scattered(&ioat, 3, 9);
    let token = first.copy(source, target, WhenFull::Return).unwrap();
    check(&first.wait(token, SECOND).unwrap().into_result().unwrap(), 9);
    drop(lost);
    let second = ioat.channel(1).unwrap();
    assert_eq!((backing.config()[4] & 4, backing.registers().resets), (4, 1));
    drop((first, second, ioat));
    assert_eq!(backing.host.mappings(), 0);
}

#[test]
fn a_halt_on_the_mark_fails_no_transfer() {
    let (backing, ioat, mut channel) = open(config());
    for seed in 0..5 {
        backing.registers().fail_marker = true;
        let (source, target) = scattered(&ioat, 12, seed);
        let token = channel.copy(source, target, WhenFull::Return).unwrap();
        check(&channel.wait(token, SECOND).unwrap().into_result().unwrap(), seed);
    }
    assert_eq!(backing.registers().executed, 60, "nothing is done twice");
    assert_eq!(channel.stats().recoveries, 5);
}

#[test]
fn a_channel_that_is_dropped_in_mid_transfer_stops_first() {
    for panics in [false, true] {
        let (backing, ioat, channel) = open(config());
        backing.registers().hold = true;
        let work = std::panic::AssertUnwindSafe(move || {
            let mut channel = channel;
            let (source, target) = scattered(&ioat, 3, 1);
            channel.copy(source, target, WhenFull::Return).unwrap();
            channel.issue().unwrap();
            assert!(!panics, "in mid-transfer");
        });
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        assert_eq!(std::panic::catch_unwind(work).is_err(), panics);
        std::panic::set_hook(hook);
        assert!(backing.registers().stopped_with_all_mapped);
        assert_eq!(backing.host.mappings(), 0);
    }
}

#[test]
fn abort_ends_everything_and_leaves_a_channel_that_works() {
    let (backing, ioat, mut channel) = open(config());
    backing.registers().hold = true;
    let submit = |channel: &mut Channel, seed| {
        let (source, target) = scattered(&ioat, 3, seed);
        channel.copy(source, target, WhenFull::Return).unwrap()
    };
    let tokens = [submit(&mut channel, 0), submit(&mut channel, 1)];
    channel.issue().unwrap();
    let unissued = submit(&mut channel, 2);
    channel.abort().unwrap();
    for token in tokens.into_iter().chain([unissued]) {
        let finished = channel.take(token).unwrap().unwrap();
        assert_eq!(finished.result, Err(TransferError::Aborted));
    }
    backing.registers().hold = false;
    let token = submit(&mut channel, 3);
    check(&channel.wait(token, SECOND).unwrap().into_result().unwrap(), 3);
}

#[test]
fn devices_and_transfers_that_make_no_sense_are_refused() {
    let open = |change: fn(&mut Fake), ids| {
        let backing = Scripted::new(ids, Fake::new);
        change(&mut backing.registers());
        let device = Device::open(backing.attach()).unwrap();
        Ioat::probe(device, config()).map_err(|failed| failed.into_parts().0)
    };
    let skx = (0x8086, 0x2021);
    assert!(matches!(open(|_| (), (0x8086, 0x2020)), Err(IoatError::NotIoat { .. })));
    let version = open(|f| f.version = 0x31, skx).unwrap_err().to_string();
    assert!(version.contains("version 3.1"), "{version}");
    assert!(matches!(open(|f| f.gone = true, skx), Err(IoatError::Gone { .. })));
    assert!(matches!(open(|f| f.channels = 0, skx), Err(IoatError::Nonsense { .. })));
    assert!(matches!(open(|f| f.xfercap = 5, skx), Err(IoatError::Nonsense { .. })));
    assert!(matches!(open(|f| f.deaf = true, skx), Err(IoatError::Timeout { .. })));

    let ioat = open(|_| (), (0x8086, 0x0b00)).unwrap();
    let mut channel = ioat.channel(0).unwrap();
    assert!(matches!(ioat.channel(0), Err(IoatError::NoChannel { channel: 0, .. })));
    assert!(matches!(ioat.channel(2), Err(IoatError::NoChannel { channel: 2, .. })));
    let (source, target) = pair(&ioat, 64, 1);
    let refused = channel.copy(target, source, WhenFull::Return).unwrap_err();
    assert!(matches!(refused.error, IoatError::WrongDirection { .. }));
    let buffer = Arc::new(ioat.allocate(&Request::new(4096, Direction::Bidirectional)).unwrap());
    let part = |at| SgTable::range(Arc::clone(&buffer), at, 100).unwrap();
    let refused = channel.copy(part(0), part(50), WhenFull::Return).unwrap_err();
    assert!(refused.to_string().contains("overlap"), "{refused}");
    let foreign =
        open(|_| (), skx).unwrap().allocate(&Request::new(100, Direction::Bidirectional)).unwrap();
    let foreign = SgTable::from(foreign);
    let refused = channel.copy(part(0), foreign, WhenFull::Return).unwrap_err();
    assert!(matches!(refused.error, IoatError::ForeignBuffer { .. }));
    drop(channel);
    assert!(ioat.channel(0).is_ok());
}
