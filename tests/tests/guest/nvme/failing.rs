//! What goes wrong ends once, with a typed error, and the drive works afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_dma::devices::nvme::{
    IoQueue, Namespace, Nvme, NvmeError, QueueConfig, Token, TransferError, WhenFull,
};
use vfio_dma::dma::{Buffer, Direction, Request, SgTable};

use vfio_dma_tests::address;

use super::{BROKEN, LARGE, LIMIT, SIZE, SLOW, SMALL, ended, initial, nvme, only};
use crate::removal;

pub(crate) fn what_cannot_be_is_refused_before_the_controller_sees_it() {
    let (nvme, other) = (nvme(SMALL), nvme(LARGE));
    let namespace = only(&nvme);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let allocate = |nvme: &Nvme, len, way| nvme.allocate(&Request::new(len, way)).unwrap();
    let mut refuse = |namespace: &Namespace, lba, buffer: Buffer| {
        let refused = queue.read(namespace, lba, buffer.into(), WhenFull::Return).unwrap_err();
        assert!(refused.table.is_some());
        refused.error
    };
    let from = Direction::FromDevice;
    let blocks = SIZE / 512;
    for lba in [blocks, blocks - 1, u64::MAX] {
        let error = refuse(&namespace, lba, allocate(&nvme, 1024, from));
        assert!(matches!(error, NvmeError::OutOfRange { .. }), "{error}");
    }
    let error = refuse(&namespace, 0, allocate(&nvme, 511, from));
    assert!(matches!(error, NvmeError::PartOfBlock { len: 511, .. }), "{error}");
    let error = refuse(&namespace, 0, allocate(&nvme, 512, Direction::ToDevice));
    assert!(matches!(error, NvmeError::WrongDirection { .. }), "{error}");
    let error = refuse(&namespace, 0, allocate(&other, 512, from));
    assert!(matches!(error, NvmeError::ForeignBuffer { .. }), "{error}");
    let error = refuse(&only(&other), 0, allocate(&nvme, 512, from));
    assert!(matches!(error, NvmeError::NoNamespace { .. }), "{error}");
    let shared = Arc::new(allocate(&nvme, 1024, from));
    let twice = [(Arc::clone(&shared), 0, 512), (shared, 256, 512)];
    let table = SgTable::gather(twice).unwrap();
    let refused = queue.read(&namespace, 0, table, WhenFull::Return).unwrap_err();
    assert!(matches!(refused.error, NvmeError::Sg(_)), "{refused}");
    let verify = queue.verify(&namespace, 0, 8, WhenFull::Return).unwrap_err();
    assert!(matches!(verify.error, NvmeError::NotOffered { .. }), "{verify}");
    for size in [1, 4097] {
        let error = nvme.queue(QueueConfig { size, ..QueueConfig::default() }).unwrap_err();
        assert!(matches!(error, NvmeError::Queue(_)), "{error}");
    }
    assert_eq!(queue.stats().commands, 0);
}

pub(crate) fn a_bad_medium_is_told_by_name() {
    let nvme = nvme(BROKEN);
    let namespace = only(&nvme);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let mut read = |lba, len| {
        let buffer = nvme.allocate(&Request::new(len, Direction::FromDevice)).unwrap();
        let token = queue.read(&namespace, lba, buffer.into(), WhenFull::Return);
        let finished = ended(&mut queue, token);
        assert!(finished.table.is_some(), "the buffer comes back");
        finished.result
    };
    read(0, 4096).unwrap();
    let error = read(8, 512).unwrap_err();
    let TransferError::Status { lba: 8, blocks: 1, status, .. } = error else { panic!("{error}") };
    assert_eq!(status.name(), Some("unrecovered read error"));
    read(16, 4096).unwrap();
    // One command of a long transfer fails, the transfer ends once.
    let error = read(0, 1 << 20).unwrap_err();
    assert!(matches!(error, TransferError::Status { .. }), "{error}");
    read(16, 4096).unwrap();
    assert!(!nvme.error_log().unwrap().is_empty() || nvme.smart_log().is_ok());
}

/// Starts reads that take a quarter of a second each.
pub(super) fn slow_reads(nvme: &Nvme, queue: &mut IoQueue, count: u64) -> Vec<Token> {
    let namespace = only(nvme);
    let read = |n: u64| {
        let buffer = nvme.allocate(&Request::new(128 << 10, Direction::FromDevice)).unwrap();
        queue.read(&namespace, n % 32 * 256, buffer.into(), WhenFull::Return).unwrap()
    };
    let tokens = (0..count).map(read).collect();
    queue.issue().unwrap();
    tokens
}

pub(super) fn check_read(nvme: &Nvme, queue: &mut IoQueue, drive: u8) {
    let namespace = only(nvme);
    let block = namespace.block_size() as usize;
    let buffer = nvme.allocate(&Request::new(block, Direction::FromDevice)).unwrap();
    let token = queue.read(&namespace, 3, buffer.into(), WhenFull::Return);
    let table = ended(queue, token).into_table().expect("it works again");
    let buffer = table.into_buffer().unwrap();
    initial(drive).check(&buffer, 0, block, 3 * block as u64).unwrap().unwrap();
}

pub(crate) fn a_reset_ends_every_transfer_once() {
    let nvme = nvme(SLOW);
    let mut queues = [0, 1].map(|_| nvme.queue(QueueConfig::default()).unwrap());
    let tokens = queues.each_mut().map(|queue| slow_reads(&nvme, queue, 8));
    nvme.reset().unwrap();
    // QEMU lets what it has begun run to its end before it stops.
    let mut resets = 0;
    for (queue, tokens) in queues.iter_mut().zip(tokens) {
        for token in tokens {
            let finished = queue.wait(token, LIMIT).unwrap();
            assert!(finished.table.is_some());
            match finished.result {
                Ok(()) => {}
                Err(TransferError::Reset(why)) => {
                    assert!(why.contains("asked for"), "{why}");
                    resets += 1;
                }
                Err(other) => panic!("{other}"),
            }
            assert!(matches!(queue.take(token), Err(NvmeError::NoSuchTransfer)));
        }
        assert_eq!((queue.in_flight(), queue.stats().recoveries), (0, 1));
        check_read(&nvme, queue, SLOW);
    }
    println!("{resets} of 16 were reset");
    assert!(resets > 0);
}

pub(crate) fn a_command_that_is_late_is_given_up() {
    let nvme = nvme(SLOW);
    let config = QueueConfig {
        timeout: Duration::from_millis(300),
        abort_grace: Duration::from_secs(1),
        ..QueueConfig::default()
    };
    let mut queue = nvme.queue(config).unwrap();
    let begin = Instant::now();
    let tokens = slow_reads(&nvme, &mut queue, 8);
    let mut late = 0;
    for token in tokens {
        match queue.wait(token, LIMIT).unwrap().result {
            Ok(()) => {}
            Err(TransferError::TimedOut { .. } | TransferError::Reset(_)) => late += 1,
            Err(other) => panic!("{other}"),
        }
    }
    println!("{late} late after {:?}: {:?}", begin.elapsed(), queue.stats());
    assert!(late > 0 && queue.stats().timeouts > 0);
    assert!(begin.elapsed() < LIMIT);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    check_read(&nvme, &mut queue, SLOW);
}

pub(crate) fn a_read_that_is_aborted_ends_once() {
    let nvme = nvme(SLOW);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let tokens = slow_reads(&nvme, &mut queue, 16);
    for token in &tokens[8..] {
        queue.abort(*token).unwrap();
    }
    let mut aborted = 0;
    for (n, token) in tokens.into_iter().enumerate() {
        let finished = queue.wait(token, LIMIT).unwrap();
        assert!(finished.table.is_some(), "the buffers come back");
        match finished.result {
            Ok(()) => {}
            Err(TransferError::Status { status, .. }) if n >= 8 && status.is_abort() => {
                aborted += 1;
            }
            Err(other) => panic!("{n}: {other}"),
        }
        assert!(matches!(queue.abort(token), Err(NvmeError::NoSuchTransfer)), "once");
    }
    println!("{aborted} of 8 were given up");
    assert_eq!((queue.in_flight(), queue.stats().recoveries), (0, 0));
    check_read(&nvme, &mut queue, SLOW);
}

pub(crate) fn a_drop_and_a_panic_in_mid_transfer_stop_the_queue() {
    let nvme = nvme(SLOW);
    let space = Arc::clone(nvme.space());
    let before = space.usage().mappings;
    for round in 0..2 {
        let mut queue = nvme.queue(QueueConfig::default()).unwrap();
        slow_reads(&nvme, &mut queue, 8);
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _queue = queue;
            if round == 1 {
                std::panic::resume_unwind(Box::new("in mid-transfer"));
            }
        }));
        assert_eq!(ended.is_err(), round == 1);
        assert_eq!(space.usage().mappings, before, "all of the queue is unmapped");
    }
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    check_read(&nvme, &mut queue, SLOW);
    drop(queue);
    drop(nvme);
    assert_eq!(space.usage().mappings, 0, "all is unmapped");
}

pub(crate) fn an_unbind_with_64_reads_in_flight_ends_each_once() {
    let nvme = nvme(SLOW);
    let space = Arc::clone(nvme.space());
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let tokens = slow_reads(&nvme, &mut queue, 64);
    let unbound = removal::unbind(address(SLOW));
    let mut removed = 0;
    for token in tokens {
        let finished = queue.wait(token, LIMIT).unwrap();
        assert!(finished.table.is_some(), "the buffers come back");
        match finished.result {
            Ok(()) => {}
            Err(TransferError::Removed) => removed += 1,
            Err(other) => panic!("{other}"),
        }
        assert!(matches!(queue.take(token), Err(NvmeError::NoSuchTransfer)), "once");
    }
    let buffer = nvme.allocate(&Request::new(512, Direction::FromDevice)).unwrap();
    let refused = queue.read(&only(&nvme), 0, buffer.into(), WhenFull::Return).unwrap_err();
    assert!(refused.to_string().contains("is to be removed"), "{refused}");
    drop((refused, queue, nvme));
    let took = unbound.end();
    println!("{removed} of 64 removed, unbind took {took:?}");
    assert!(removed > 0);
    assert!(took < removal::LIMIT, "{took:?}");
    assert_eq!(space.usage().mappings, 0, "all is unmapped");
    // The drive works for who binds it again.
    let nvme = super::nvme(SLOW);
    check_read(&nvme, &mut nvme.queue(QueueConfig::default()).unwrap(), SLOW);
}
