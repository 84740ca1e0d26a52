//! What becomes of transfers when the controller goes wrong: each ends once, within a bound.

mod buffer;
mod device;
mod events;
mod shadow;

use std::time::Duration;

use super::*;
use crate::dma::Direction;
use device::{BLOCKS, Fault, probe, scripted};

const LIMIT: Duration = Duration::from_secs(20);

fn quick() -> QueueConfig {
    let (timeout, abort_grace) = (Duration::from_millis(30), Duration::from_millis(60));
    QueueConfig { size: 16, timeout, abort_grace, ..QueueConfig::default() }
}

fn read(nvme: &Nvme, queue: &mut IoQueue, lba: u64) -> Result<Token, Refused> {
    let buffer = nvme.allocate(&Request::new(512, Direction::FromDevice)).unwrap();
    queue.read(&nvme.namespaces()[0], lba, buffer.into(), WhenFull::Return)
}

fn check_read(nvme: &Nvme, queue: &mut IoQueue, lba: u64) {
    let token = read(nvme, queue, lba).unwrap();
    let table = queue.wait(token, LIMIT).unwrap().into_table().unwrap();
    let mut word = [0; 8];
    table.into_buffer().unwrap().read(0, &mut word).unwrap();
    assert_eq!(u64::from_le_bytes(word), lba);
}

#[test]
fn a_controller_is_brought_up_used_and_shut_down() {
    let scripted = scripted();
    let nvme = probe(&scripted).unwrap();
    assert_eq!((nvme.queues(), nvme.info().serial.as_str()), (4, "disk"));
    assert_eq!(nvme.namespaces()[0].blocks(), BLOCKS);
    let mut queues: Vec<_> = (0..4).map(|_| nvme.queue(quick()).unwrap()).collect();
    assert!(matches!(nvme.queue(quick()), Err(NvmeError::NoQueue { queues: 4, .. })));
    for lba in 0..100 {
        check_read(&nvme, &mut queues[lba as usize % 4], lba << 10);
    }
    drop(queues.remove(1));
    let mut again = nvme.queue(quick()).unwrap();
    assert_eq!(again.id(), 2);
    check_read(&nvme, &mut again, 7);
    let space = Arc::clone(nvme.space());
    drop(nvme);
    assert_eq!(scripted.registers().shutdowns, 0, "queues are left");
    drop((queues, again));
    assert_eq!((scripted.registers().shutdowns, space.usage().mappings), (1, 0));
}

#[test]
fn a_controller_that_never_is_ready_is_given_back() {
    let scripted = scripted();
    scripted.registers().fault = Fault::NeverReady;
    let failed = probe(&scripted).unwrap_err();
    assert!(matches!(failed.error(), NvmeError::Timeout { .. }), "{failed}");
    let (_, device) = failed.into_parts();
    assert_eq!(device.space().usage().mappings, 0);
    assert_eq!(scripted.config()[4] & 4, 0, "bus mastering is off");
    scripted.registers().fault = Fault::SilentAdmin;
    drop(device);
    let failed = probe(&scripted).unwrap_err();
    assert!(failed.to_string().contains("identify not done within 200 ms"), "{failed}");
}

/// Four reads on each of two queues, of which the controller makes what it will; how each
/// ended.
fn eight_reads(fault: Fault) -> (Nvme, [IoQueue; 2], Vec<Result<(), TransferError>>) {
    let scripted = scripted();
    let nvme = probe(&scripted).unwrap();
    let mut queues = [0, 1].map(|_| nvme.queue(quick()).unwrap());
    check_read(&nvme, &mut queues[0], 1);
    scripted.registers().fault = fault;
    let mut tokens = Vec::new();
    for (n, queue) in queues.iter_mut().enumerate() {
        tokens.extend((0..4).map(|lba| (n, read(&nvme, queue, lba).unwrap())));
    }
    queues.iter_mut().for_each(|queue| queue.issue().unwrap());
    let mut results = Vec::new();
    for (n, token) in tokens {
        let finished = queues[n].wait(token, LIMIT).unwrap();
        assert!(finished.table.is_some(), "the controller is quiet");
        results.push(finished.result);
        assert!(matches!(queues[n].take(token), Err(NvmeError::NoSuchTransfer)));
    }
    assert!(queues.iter().all(|queue| queue.in_flight() == 0));
    if !matches!(fault, Fault::Gone) {
        scripted.registers().fault = Fault::None;
        for queue in &mut queues {
            check_read(&nvme, queue, 99);
        }
    }
    (nvme, queues, results)
}

#[test]
fn a_status_is_told_and_nothing_is_reset() {
    let (_, queues, results) = eight_reads(Fault::Status(0x4281));
    for result in results {
        let Err(TransferError::Status { command: "read", blocks: 1, status, .. }) = result else {
            panic!("{result:?}");
        };
        assert!(status.is(2, 0x81) && status.do_not_retry());
    }
    assert_eq!(queues[0].stats().recoveries, 0);
}

#[test]
fn a_fatal_status_resets_the_controller_and_ends_everything_once() {
    let (_, queues, results) = eight_reads(Fault::Fatal);
    for result in results {
        let Err(TransferError::Reset(why)) = result else { panic!("{result:?}") };
        assert!(why.contains("fatal status"), "{why}");
    }
    assert!(queues.iter().all(|queue| queue.stats().recoveries == 1));
}

#[test]
fn a_completion_that_cannot_be_true_resets_the_controller() {
    for fault in [Fault::OtherTag, Fault::BadHead] {
        let (_, queues, results) = eight_reads(fault);
        let reset = |result: &Result<(), TransferError>| matches!(result, Err(TransferError::Reset(why)) if why.contains("the device reports"));
        assert!(reset(&results[0]), "{results:?}");
        // What the other queue's completions said was true.
        assert!(results.iter().all(|result| result.is_ok() || reset(result)), "{results:?}");
        assert_eq!(queues[0].stats().recoveries, 1);
    }
}

#[test]
fn a_late_command_is_aborted() {
    let (_, queues, results) = eight_reads(Fault::Silent { ends: true });
    for result in results {
        assert!(matches!(result, Err(TransferError::TimedOut { .. })), "{result:?}");
    }
    for queue in queues {
        let Stats { timeouts, recoveries, .. } = queue.stats();
        assert_eq!((timeouts, recoveries), (4, 0));
    }
}

#[test]
fn an_abort_that_does_not_help_is_followed_by_a_reset() {
    let (_, queues, results) = eight_reads(Fault::Silent { ends: false });
    for result in &results[..4] {
        assert!(matches!(result, Err(TransferError::TimedOut { .. })), "{result:?}");
    }
    for result in &results[4..] {
        assert!(
            matches!(result, Err(TransferError::TimedOut { .. } | TransferError::Reset(_))),
            "{result:?}"
        );
    }
    assert_eq!(queues[0].stats().recoveries, 1);
}

#[test]
fn a_controller_that_is_gone_is_given_up_and_everything_ends() {
    let (nvme, mut queues, results) = eight_reads(Fault::Gone);
    for result in results {
        assert!(matches!(result, Err(TransferError::Lost(_))), "{result:?}");
    }
    for queue in &mut queues {
        let refused = read(&nvme, queue, 1).unwrap_err();
        assert!(matches!(refused.error, NvmeError::Lost { .. }) && queue.is_lost(), "{refused}");
    }
    assert!(matches!(nvme.queue(quick()), Err(NvmeError::Lost { .. })));
    assert!(matches!(nvme.smart_log(), Err(NvmeError::Lost { .. })));
    let space = Arc::clone(nvme.space());
    drop((queues, nvme));
    assert_eq!(space.usage().mappings, 0, "its function was reset");
}

#[test]
fn an_admin_command_without_an_answer_resets_the_controller() {
    let scripted = scripted();
    let nvme = probe(&scripted).unwrap();
    let mut queue = nvme.queue(quick()).unwrap();
    let token = read(&nvme, &mut queue, 5).unwrap();
    scripted.registers().fault = Fault::SilentAdmin;
    // It does not come back either.
    let error = nvme.smart_log().unwrap_err();
    assert!(matches!(error, NvmeError::Timeout { .. }), "{error}");
    let finished = queue.wait(token, LIMIT).unwrap();
    assert!(matches!(finished.result, Err(TransferError::Lost(_))), "{finished:?}");
    assert_eq!(scripted.registers().starts, 2);
}
