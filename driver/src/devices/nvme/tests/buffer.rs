//! Queues in the controller memory buffer.

use super::device::{BUFFER, probe_with};
use super::*;

const WITH_BUFFER: Config = Config {
    wait: None,
    queues: 4,
    admin_timeout: Duration::from_secs(1),
    shadow_doorbells: true,
    memory_buffer: true,
};

#[test]
fn queues_lie_in_the_memory_buffer_as_far_as_it_takes_them() {
    for (uses, expected) in [(1, (true, false)), (3, (true, true))] {
        let scripted = scripted();
        scripted.registers().buffer = vec![u64::MAX; BUFFER as usize / 8];
        scripted.registers().buffer_uses = uses;
        let nvme = probe_with(&scripted, WITH_BUFFER).unwrap();
        assert_eq!((nvme.has_memory_buffer(), nvme.memory_buffer()), (true, Some(BUFFER)));
        let inside = QueueConfig { memory_buffer: true, ..quick() };
        let mut queues = [inside, inside, quick()].map(|config| nvme.queue(config).unwrap());
        let lies = queues.each_ref().map(IoQueue::in_memory_buffer);
        assert_eq!(lies, [expected, expected, (false, false)]);
        for round in 0..3 {
            for lba in 0..50 {
                for queue in &mut queues {
                    check_read(&nvme, queue, lba);
                }
            }
            // It is where it was, whatever the controller forgets with a reset.
            nvme.reset().unwrap();
            assert_eq!(scripted.registers().starts, round + 2);
        }
        let [first, ..] = queues;
        drop(first);
        let mut again = nvme.queue(inside).unwrap();
        assert_eq!(again.in_memory_buffer(), expected);
        check_read(&nvme, &mut again, 7);
        let space = Arc::clone(nvme.space());
        drop((again, nvme));
        assert_eq!(scripted.registers().buffer_at & 3, 3, "queues are left");
        let _ = space;
    }
}

#[test]
fn a_memory_buffer_is_left_alone_and_its_addresses_come_back() {
    let scripted = scripted();
    scripted.registers().buffer = vec![0; BUFFER as usize / 8];
    scripted.registers().buffer_uses = 1;
    let nvme = probe_with(&scripted, WITH_BUFFER).unwrap();
    let space = Arc::clone(nvme.space());
    // More than it has room for lies in memory.
    let large = QueueConfig { size: 2048, memory_buffer: true, ..quick() };
    let mut queue = nvme.queue(large).unwrap();
    assert_eq!(queue.in_memory_buffer(), (false, false));
    check_read(&nvme, &mut queue, 3);
    drop((queue, nvme));
    assert_eq!(scripted.registers().buffer_at & 3, 0, "switched off");
    assert_eq!((space.usage().mappings, space.iovas().allocated()), (0, 0));
}

#[test]
fn a_memory_buffer_that_is_not_there_is_refused() {
    let scripted = scripted();
    let failed = probe_with(&scripted, WITH_BUFFER).unwrap_err();
    assert!(matches!(failed.error(), NvmeError::NotOffered { .. }), "{failed}");
    drop(failed);
    let nvme = probe(&scripted).unwrap();
    let refused = nvme.queue(QueueConfig { memory_buffer: true, ..quick() }).unwrap_err();
    assert!(matches!(refused, NvmeError::NotOffered { .. }), "{refused}");
    assert!(nvme.queue(quick()).is_ok(), "no queue is used up");
    drop(nvme);
    // One that says nonsense of itself.
    scripted.registers().buffer = vec![0; BUFFER as usize / 8];
    scripted.registers().buffer_uses = 0x701;
    let failed = probe_with(&scripted, WITH_BUFFER).unwrap_err();
    assert!(matches!(failed.error(), NvmeError::Nonsense { what: "CMBLOC", .. }), "{failed}");
}
