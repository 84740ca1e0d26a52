//! Reads in every shape, by every method, many at a time.

use std::sync::Arc;
use std::time::Duration;

use vfio_dma::backend::IrqKind;
use vfio_dma::devices::nvme::{
    DataMethod, Finished, IoQueue, Nvme, NvmeError, QueueConfig, Token, WhenFull,
};
use vfio_dma::dma::{Buffer, Direction, Request};
use vfio_dma::queue::{SharedQueue, WaitMode};
use vfio_dma_tests::{Dice, address};

use super::{
    Kind, LARGE, LIMIT, SIZE, SLOW, SMALL, Shape, WRITTEN, ended, initial, nvme, nvme_at, only,
};
use crate::support::open;

/// Reads blocks of the part that nobody writes, in every shape and by every method.
pub(super) fn read_everything(nvme: &Nvme, drive: u8, rounds: u64) {
    let mut dice = Dice::seeded();
    let namespace = only(nvme);
    let block = u64::from(namespace.block_size());
    let mut queue = nvme.queue(QueueConfig { size: 64, ..QueueConfig::default() }).unwrap();
    let largest = queue.max_transfer(&namespace);
    let mut lens: Vec<u64> = vec![1, 2, 8, 9, largest / block, largest / block + 1];
    lens.extend((0..rounds).map(|_| 1 + dice.roll(400_000 / block)));
    for blocks in lens {
        for kind in [Kind::Contiguous, Kind::Pages, Kind::Odd] {
            let len = blocks * block;
            let lba = dice.roll((WRITTEN - len) / block);
            for method in [DataMethod::Auto, DataMethod::Prp, DataMethod::Sgl, DataMethod::Bounce] {
                queue.set_method(method);
                let way = Direction::FromDevice;
                let shape = Shape::new(nvme, &mut dice, kind, len as usize, way);
                let token = queue.read(&namespace, lba, shape.table(), WhenFull::Return);
                if (kind, method) == (Kind::Odd, DataMethod::Prp) && shape.pieces.len() > 1 {
                    let refused = token.unwrap_err();
                    let is_told = matches!(refused.error, NvmeError::Undescribable { .. });
                    assert!(is_told && refused.table.is_some(), "{refused:?}");
                    continue;
                }
                let finished = ended(&mut queue, token);
                let Finished { method: by, commands: count, .. } = &finished;
                println!("{len} bytes at {lba}: {kind:?} {method:?}: {count} by {by:?}");
                let commands = len.div_ceil(largest);
                assert!(u64::from(finished.commands) >= commands, "{finished:?}");
                match method {
                    DataMethod::Auto => assert_ne!(finished.method, DataMethod::Auto),
                    method => assert_eq!(finished.method, method),
                }
                drop(finished.into_table().expect("it went well"));
                shape.check(initial(drive), lba * block);
            }
        }
    }
    assert_eq!(queue.in_flight(), 0);
    let stats = queue.stats();
    assert_eq!((stats.timeouts, stats.recoveries), (0, 0), "{stats:?}");
}

pub(crate) fn reads_what_the_host_put_there() {
    for drive in [SMALL, LARGE] {
        let nvme = nvme(drive);
        let space = Arc::clone(nvme.space());
        read_everything(&nvme, drive, 3);
        drop(nvme);
        assert_eq!(space.usage().mappings, 0, "all is unmapped");
    }
}

pub(crate) fn identifies_itself_and_tells_its_health() {
    let nvme = nvme(SMALL);
    let info = nvme.info();
    assert_eq!((&*info.serial, &*info.model), ("vfio-dma-d0", "QEMU NVMe Ctrl"), "{info:?}");
    assert_eq!((nvme.version(), info.version), ((1, 4, 0), (1, 4, 0)));
    assert_eq!((info.max_transfer, info.takes_sgl(), nvme.queues()), (Some(512 << 10), true, 16));
    assert_eq!((nvme.max_queue_size(), nvme.page_size()), (2048, 4096));
    assert_eq!(nvme.irq(), Some(IrqKind::MsiX));
    let namespace = only(&nvme);
    let shape = (namespace.id(), namespace.block_size(), namespace.bytes());
    assert_eq!(shape, (1, 512, SIZE));
    let before = nvme.smart_log().unwrap();
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let buffer = nvme.allocate(&Request::new(512, Direction::FromDevice)).unwrap();
    let token = queue.read(&namespace, 0, buffer.into(), WhenFull::Return);
    ended(&mut queue, token).into_result().unwrap();
    let after = nvme.smart_log().unwrap();
    assert_eq!((after.host_reads - before.host_reads, after.media_errors), (1, 0), "{after:?}");
    assert_eq!(nvme.error_log().unwrap(), []);
    assert!(nvme.write_cache().unwrap());
    nvme.set_write_cache(false).unwrap();
    assert!(!nvme.write_cache().unwrap());
    nvme.set_write_cache(true).unwrap();
    nvme.enable_events(0xff).unwrap();
    assert_eq!(nvme.take_events().unwrap(), []);
    let refused = nvme.feature(0xc0).unwrap_err();
    let NvmeError::Command { status, .. } = refused else { panic!("{refused:?}") };
    assert_eq!((status.code_type(), status.code(), status.do_not_retry()), (0, 2, true));
    assert_eq!(status.name(), Some("invalid field in command"));
}

/// 1 to 64 in flight, on 1 to 4 queues, each with a thread of its own.
pub(crate) fn many_in_flight_on_several_queues() {
    let nvme = nvme(SMALL);
    let namespace = only(&nvme);
    for (queues, depth) in [(1, 1), (1, 64), (2, 7), (4, 16), (4, 64)] {
        std::thread::scope(|scope| {
            for n in 0..queues {
                let nvme = &nvme;
                scope.spawn(move || {
                    let mut dice = Dice::new(n + 1);
                    let size = depth + 1;
                    let mut queue = nvme.queue(QueueConfig { size, ..QueueConfig::default() });
                    let queue = queue.as_mut().unwrap();
                    let read = |queue: &mut IoQueue, dice: &mut Dice| {
                        let lba = dice.roll(WRITTEN / 512 - 8);
                        let way = Direction::FromDevice;
                        let buffer = Arc::new(nvme.allocate(&Request::new(4096, way)).unwrap());
                        let table = Arc::clone(&buffer).into();
                        (queue.read(&namespace, lba, table, WhenFull::Return), lba, buffer)
                    };
                    let mut waiting: Vec<(Token, u64, Arc<Buffer>)> = Vec::new();
                    for _ in 0..depth {
                        let (token, lba, buffer) = read(queue, &mut dice);
                        waiting.push((token.unwrap(), lba, buffer));
                    }
                    // Filled to the brim.
                    assert_eq!(queue.free(), 0);
                    let (refused, ..) = read(queue, &mut dice);
                    let refused = refused.unwrap_err();
                    assert!(
                        refused.error.to_string().contains("1 entries are needed"),
                        "{refused}"
                    );
                    let before = queue.stats();
                    queue.wait_all(LIMIT).unwrap();
                    let after = queue.stats();
                    assert_eq!(after.doorbells - before.doorbells, 1, "one for all of them");
                    for (token, lba, buffer) in waiting {
                        let finished = queue.take(token).unwrap().unwrap();
                        drop(finished.into_table().unwrap());
                        let again = queue.take(token).unwrap_err();
                        assert!(matches!(again, NvmeError::NoSuchTransfer));
                        let buffer = Arc::into_inner(buffer).unwrap();
                        initial(SMALL).check(&buffer, 0, 4096, lba * 512).unwrap().unwrap();
                    }
                });
            }
        });
    }
}

pub(crate) fn every_way_of_waiting_ends() {
    for wait in [
        WaitMode::Poll,
        WaitMode::Interrupt(IrqKind::MsiX),
        WaitMode::Interrupt(IrqKind::Intx),
        WaitMode::Adaptive { irq: IrqKind::MsiX, spin: Duration::from_micros(50) },
    ] {
        let by_interrupt = matches!(wait, WaitMode::Interrupt(_));
        // A drive that is done before the first look is not slept for: this one is not.
        let drive = if by_interrupt { SLOW } else { SMALL };
        let nvme = nvme_at(open(address(drive)), wait);
        let namespace = only(&nvme);
        let mut queue = nvme.queue(QueueConfig::default()).unwrap();
        for n in 0.. {
            let interrupts = queue.stats().interrupts;
            if n >= 20 && (!by_interrupt || interrupts > 0) {
                assert!(wait != WaitMode::Poll || interrupts == 0);
                break;
            }
            assert!(n < 1000, "{wait:?}: {interrupts} interrupts");
            let lba = n % 100;
            let buffer = nvme.allocate(&Request::new(8192, Direction::FromDevice)).unwrap();
            let token = queue.read(&namespace, lba, buffer.into(), WhenFull::Return);
            let table = ended(&mut queue, token).into_table().unwrap();
            let buffer = table.into_buffer().unwrap();
            initial(drive).check(&buffer, 0, 8192, lba * 512).unwrap().unwrap();
        }
        // With INTx only the first queue has the line.
        let second = nvme.queue(QueueConfig { wait: Some(wait), ..QueueConfig::default() });
        match (wait, second) {
            (WaitMode::Interrupt(IrqKind::Intx), second) => {
                assert!(matches!(second, Err(NvmeError::NoVector { queue: 2, .. })), "{second:?}");
            }
            (_, second) => drop(second.unwrap()),
        }
        // As futures.
        let shared = SharedQueue::new(queue, "nvme").unwrap();
        let reads: Vec<_> = (0..8)
            .map(|lba| {
                let buffer = nvme.allocate(&Request::new(512, Direction::FromDevice)).unwrap();
                shared.submit(|q| q.read(&namespace, lba, buffer.into(), WhenFull::Return)).unwrap()
            })
            .collect();
        for (lba, read) in (0..).zip(reads) {
            let table = read.wait(LIMIT).unwrap().into_table().unwrap();
            initial(drive)
                .check(&table.into_buffer().unwrap(), 0, 512, lba * 512)
                .unwrap()
                .unwrap();
        }
    }
}
