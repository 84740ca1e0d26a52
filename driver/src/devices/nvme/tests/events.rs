//! What becomes of a controller when the kernel wants the function back, or tells of an error.

use super::*;
use crate::backend::BackendError;
use crate::device::DeviceError;
use crate::events::Event as DeviceEvent;

fn is_error_of(event: DeviceEvent, error: &NvmeError) -> bool {
    match error {
        NvmeError::Device(DeviceError::Backend(BackendError::ToBeRemoved { .. })) => {
            event == DeviceEvent::Removal
        }
        NvmeError::Device(DeviceError::Backend(BackendError::BusError { .. })) => {
            event == DeviceEvent::Error
        }
        _ => false,
    }
}

#[test]
fn an_event_ends_every_transfer_of_every_queue_once_and_shuts_down() {
    for (event, expected, shutdowns) in [
        (DeviceEvent::Removal, TransferError::Removed, 1),
        (DeviceEvent::Error, TransferError::BusError, 0),
    ] {
        let scripted = scripted();
        let nvme = probe(&scripted).unwrap();
        let slow = QueueConfig { timeout: LIMIT, ..quick() };
        let [mut waits, mut polls, mut idle] = [0; 3].map(|_| nvme.queue(slow).unwrap());
        scripted.registers().fault = Fault::Silent { ends: false };
        let submit = |queue: &mut IoQueue| [0, 1, 2, 3].map(|lba| read(&nvme, queue, lba).unwrap());
        let (waited, polled) = (submit(&mut waits), submit(&mut polls));
        waits.issue().unwrap();
        polls.issue().unwrap();
        scripted.signal(event, nvme.device_events());
        for token in waited {
            let finished = waits.wait(token, LIMIT).unwrap();
            assert_eq!(finished.result, Err(expected.clone()));
            assert!(finished.table.is_some(), "the buffers come back");
            assert!(matches!(waits.take(token), Err(NvmeError::NoSuchTransfer)));
        }
        let failed = polls.poll().unwrap_err();
        assert!(is_error_of(event, &failed), "{failed}");
        for token in polled {
            let finished = polls.take(token).unwrap().unwrap();
            assert_eq!((finished.result, finished.table.is_some()), (Err(expected.clone()), true));
        }
        assert!(!scripted.registers().is_enabled());
        let refused = read(&nvme, &mut idle, 0).unwrap_err();
        assert!(is_error_of(event, &refused.error), "{refused}");
        drop(refused);
        for failed in [nvme.queue(slow).map(drop), nvme.smart_log().map(drop), nvme.reset()] {
            let failed = failed.unwrap_err();
            assert!(is_error_of(event, &failed), "{failed}");
        }
        let space = Arc::clone(nvme.space());
        drop((waits, polls, idle, nvme));
        assert_eq!(scripted.registers().shutdowns, shutdowns);
        assert_eq!(space.usage().mappings, 0);
    }
}

#[test]
fn an_event_ends_an_admin_command() {
    let scripted = scripted();
    let nvme = probe(&scripted).unwrap();
    scripted.registers().fault = Fault::SilentAdmin;
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| nvme.smart_log().unwrap_err());
        std::thread::sleep(Duration::from_millis(20));
        scripted.signal(DeviceEvent::Removal, nvme.device_events());
        waiting.join().unwrap()
    });
    assert!(is_error_of(DeviceEvent::Removal, &waiting), "{waiting}");
}

#[test]
fn a_queue_that_is_dropped_after_an_event_stops_the_controller_first() {
    let scripted = scripted();
    let nvme = probe(&scripted).unwrap();
    let mut queue = nvme.queue(quick()).unwrap();
    scripted.registers().fault = Fault::Silent { ends: false };
    read(&nvme, &mut queue, 0).unwrap();
    queue.issue().unwrap();
    scripted.signal(DeviceEvent::Removal, nvme.device_events());
    drop(queue);
    assert!(!scripted.registers().is_enabled(), "it reaches the queue's memory no more");
}

#[test]
fn a_controller_that_left_before_the_event_gives_its_buffers_back() {
    let scripted = scripted();
    let nvme = probe(&scripted).unwrap();
    let mut queue = nvme.queue(QueueConfig { timeout: LIMIT, ..quick() }).unwrap();
    scripted.registers().fault = Fault::Gone;
    let token = read(&nvme, &mut queue, 0).unwrap();
    queue.issue().unwrap();
    scripted.config().fill(0xff);
    scripted.signal(DeviceEvent::Removal, nvme.device_events());
    let finished = queue.wait(token, LIMIT).unwrap();
    assert_eq!(finished.result, Err(TransferError::Removed));
    assert!(finished.table.is_some(), "a device that is closed reaches no memory");
}
