//! What becomes of a channel when the kernel wants the function back, or tells of an error.

use super::*;
use crate::backend::BackendError;
use crate::device::DeviceError;
use crate::dma::SlotPool;
use crate::events::Event;

fn is_error_of(event: Event, error: &IoatError) -> bool {
    match error {
        IoatError::Device(DeviceError::Backend(BackendError::ToBeRemoved { .. })) => {
            event == Event::Removal
        }
        IoatError::Device(DeviceError::Backend(BackendError::BusError { .. })) => {
            event == Event::Error
        }
        _ => false,
    }
}

#[test]
fn an_event_ends_every_transfer_of_every_channel_once() {
    for (event, expected) in
        [(Event::Removal, TransferError::Removed), (Event::Error, TransferError::BusError)]
    {
        let (backing, ioat, mut channel) = open(config());
        let mut other = ioat.channel(1).unwrap();
        backing.registers().hold = true;
        let submit = |channel: &mut Channel| {
            let (source, target) = scattered(&ioat, 3, 1);
            channel.copy(source, target, WhenFull::Return).unwrap()
        };
        let tokens: Vec<_> = (0..4).map(|_| submit(&mut channel)).collect();
        channel.issue().unwrap();
        let of_other = submit(&mut other);
        other.issue().unwrap();
        backing.signal(event, ioat.device_events());
        for token in tokens {
            let finished = channel.wait(token, SECOND).unwrap();
            assert_eq!(finished.result, Err(expected.clone()));
            assert!(finished.tables.is_some(), "the buffers come back");
            assert!(matches!(channel.take(token), Err(IoatError::NoSuchTransfer)));
        }
        assert_eq!(backing.config()[4] & 4, 0, "bus mastering is off");
        // One that only looks at memory finds out too.
        let failed = other.poll().unwrap_err();
        assert!(is_error_of(event, &failed), "{failed}");
        assert_eq!(other.take(of_other).unwrap().unwrap().result, Err(expected));
        let (source, target) = scattered(&ioat, 1, 1);
        let refused = channel.copy(source, target, WhenFull::Return).unwrap_err();
        assert!(is_error_of(event, &refused.error), "{refused}");
        drop((refused, channel, other, ioat));
        assert_eq!(backing.host.mappings(), 0);
    }
}

#[test]
fn an_event_gives_the_slots_of_every_operation_back_once() {
    for event in [Event::Removal, Event::Error] {
        let (backing, ioat, mut channel) = open(config());
        let buffer = ioat.allocate(&Request::new(64 * 64, Direction::Bidirectional)).unwrap();
        let (pool, mut slots) = SlotPool::new(buffer, 64).unwrap();
        backing.registers().hold = true;
        let mut fill = |channel: &mut Channel| {
            channel.batch(&pool, &pool, |batch| {
                for _ in 0..4 {
                    let (source, target) = (slots.pop().unwrap(), slots.pop().unwrap());
                    batch.copy(source, target, 64).unwrap();
                }
            })
        };
        fill(&mut channel).unwrap();
        backing.signal(event, ioat.device_events());
        // With the doorbell.
        let failed = fill(&mut channel).unwrap_err();
        assert!(is_error_of(event, &failed), "{failed}");
        let mut back = Vec::new();
        let reaped = channel.wait_reap(&mut back, SECOND).unwrap();
        assert_eq!((reaped.done, reaped.failed), (0, 8));
        for failed in channel.take_failed() {
            let expected = match event {
                Event::Removal => TransferError::Removed,
                Event::Error => TransferError::BusError,
            };
            assert_eq!(failed.error, expected);
            back.push(failed.slots.expect("the device is quiet"));
        }
        assert_eq!(back.len(), 8);
        assert_eq!(channel.wait_reap(&mut back, SECOND).unwrap().failed, 0);
        assert!(is_error_of(event, &fill(&mut channel).unwrap_err()));
        assert!(channel.detach_pools());
        drop((channel, ioat, pool));
        assert_eq!(backing.host.mappings(), 0);
    }
}

#[test]
fn a_function_that_left_before_the_event_gives_its_buffers_back() {
    let (backing, ioat, mut channel) = open(config());
    backing.registers().hold = true;
    let (source, target) = scattered(&ioat, 3, 1);
    let token = channel.copy(source, target, WhenFull::Return).unwrap();
    channel.issue().unwrap();
    backing.registers().gone = true;
    backing.config().fill(0xff);
    backing.signal(Event::Removal, ioat.device_events());
    let finished = channel.wait(token, SECOND).unwrap();
    assert_eq!(finished.result, Err(TransferError::Removed));
    assert!(finished.tables.is_some(), "a device that is closed reaches no memory");
    assert!(backing.revoked.load(std::sync::atomic::Ordering::Acquire));
}
