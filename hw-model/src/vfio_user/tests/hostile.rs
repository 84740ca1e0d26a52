//! Clients that do not speak the protocol: their connection ends, and nothing else.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::prelude::*;

use super::client::{BAR0_SIZE, Client, QEMU_CAPABILITIES, Running, access, longs, message, words};
use super::{Ended, Server, Stop, memfd};
use crate::ioat::{Ioat, IoatConfig};

/// The server still serves: the proof that it survived.
fn still_serves(running: &Running) {
    let mut client = running.connect();
    assert_eq!(client.read(0, BAR0_SIZE as u64 - 4, 4).error, 0);
}

#[test]
fn what_is_not_a_message_ends_the_connection() {
    let running = Running::start();
    let greeted = true;
    let header = |size: u32, flags: u32| [&[1, 0, 9, 0][..], &words(&[size, flags, 0])].concat();
    let version = |data: &[u8]| message(1, 1, 0, &[&[0; 4][..], data].concat());
    let cases: Vec<(&str, bool, Vec<u8>)> = vec![
        ("size below the header's", greeted, header(15, 0)),
        ("size 0", greeted, header(0, 0)),
        ("size over the limit", greeted, header(16 + 16 + (1 << 20) + 1, 0)),
        ("size of 4 GiB", greeted, header(u32::MAX, 0)),
        ("a reply", greeted, header(16, 1)),
        ("an unknown type", greeted, header(16, 2)),
        ("a second version", greeted, version(b"{}\0")),
        ("a structure cut short", greeted, message(1, 2, 0, &[0; 31])),
        ("a request without its structure", greeted, message(1, 9, 0, &[])),
        ("less data than promised", greeted, message(1, 10, 0, &access(0, 0, 4))),
        (
            "more data than promised",
            greeted,
            message(1, 10, 0, &[access(0, 0, 1), vec![0; 2]].concat()),
        ),
        ("fewer writes than promised", greeted, message(1, 15, 0, &longs(&[1]))),
        ("a part of a write", greeted, message(1, 15, 0, &[longs(&[1]), vec![0; 23]].concat())),
        ("fewer booleans than vectors", greeted, message(1, 8, 0, &words(&[20, 2 | 32, 2, 0, 4]))),
        ("no version at first", !greeted, message(1, 4, 0, &words(&[16, 0, 0, 0]))),
        ("an unknown command at first", !greeted, message(1, 77, 0, &[])),
        ("a version without numbers", !greeted, message(1, 1, 0, &[0; 3])),
        ("another major version", !greeted, message(1, 1, 0, &[1, 0, 0, 0])),
        ("version data without NUL", !greeted, version(b"{}")),
        ("version data that is not JSON", !greeted, version(b"{\"capabilities\":\0")),
        (
            "a capability of the wrong type",
            !greeted,
            version(b"{\"capabilities\":{\"max_msg_fds\":\"many\"}}\0"),
        ),
    ];
    for (what, greet, bytes) in cases {
        let mut client = Client::connect(&running.path);
        if greet {
            client.greet();
        }
        client.send(&bytes, &[]);
        assert!(client.is_closed(), "{what}");
        still_serves(&running);
    }
}

#[test]
fn too_many_descriptors_end_the_connection() {
    let running = Running::start();
    let file = memfd(4096);
    let mut client = running.connect();
    client.send(&message(1, 13, 0, &[]), &[file.as_raw_fd(); 17]);
    assert!(client.is_closed());
    // In one message, but sent in parts.
    let mut client = running.connect();
    let bytes = message(1, 9, 0, &access(0, 0, 4));
    client.send(&bytes[..20], &[file.as_raw_fd(); 16]);
    client.send(&bytes[20..], &[file.as_raw_fd(); 16]);
    assert!(client.is_closed());
    still_serves(&running);
}

#[test]
fn a_client_may_leave_at_any_byte_of_a_message() {
    let running = Running::start();
    let file = memfd(4096);
    let map = message(1, 2, 0, &[words(&[32, 3]), longs(&[0, 0, 4096])].concat());
    for cut in 0..map.len() {
        let mut client = running.connect();
        client.send(&map[..cut], &[]);
    }
    for cut in 1..map.len() {
        let mut client = running.connect();
        client.send(&map[..cut], &[file.as_fd().as_raw_fd()]);
    }
    still_serves(&running);
    assert_eq!(running.probe.memory.ranges(), 0);
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let running = Running::start();
    let mut client = running.connect();
    for byte in message(9, 9, 0, &access(7, 4, 4)) {
        client.send(&[byte], &[]);
    }
    assert_eq!(client.reply().2.payload[16..], [4; 4]);
}

#[test]
fn a_client_that_does_not_read_holds_up_neither_stop_nor_others() {
    let running = Running::start();
    {
        let mut client = running.connect();
        client.socket.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let request = message(1, 9, 0, &access(7, 0, 256));
        // Until both directions are full.
        while std::io::Write::write_all(&mut client.socket, &request).is_ok() {}
        let start = Instant::now();
        running.stop.stop();
        let stop = running.join();
        assert_eq!(stop, super::Ended::Stopped);
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn a_client_that_never_pauses_does_not_keep_the_server_from_stopping() {
    let running = Running::start();
    let client = running.connect();
    let mut writer = client.socket.try_clone().unwrap();
    let mut reader = client.socket;
    let flood = std::thread::spawn(move || {
        let posted = [access(0, 0, 4), vec![0; 4]].concat();
        let posted = message(1, 10, 0x10, &posted).repeat(100);
        while std::io::Write::write_all(&mut writer, &posted).is_ok() {}
    });
    std::thread::sleep(Duration::from_millis(50));
    running.stop.stop();
    let start = Instant::now();
    assert_eq!(running.join(), super::Ended::Stopped);
    assert!(start.elapsed() < Duration::from_secs(2));
    flood.join().unwrap();
    let _ = std::io::Read::read(&mut reader, &mut [0; 1]);
}

/// The function's own vectors: what they signal is the client's, to fill and to let block.
#[test]
fn a_client_that_lets_its_eventfd_block_does_not_hold_up_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let server = Server::bind(&path).unwrap();
    let stop = Stop::new().unwrap();
    let stopped = stop.clone();
    // Not joined when it hangs, so that the test fails.
    let (ended, ends) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let config = IoatConfig { channels: 8, ..IoatConfig::default() };
        let ioat = Ioat::new(config).unwrap();
        let _ = ended.send(server.serve(&ioat, &stopped).unwrap());
    });
    let event = EventFd::from_flags(EfdFlags::empty()).unwrap();
    let done = AtomicBool::new(false);
    let (served, filled) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let set = |flags| fcntl(&event, FcntlArg::F_SETFL(flags)).unwrap();
            let mut spins = 0;
            while !done.load(Ordering::Relaxed) {
                set(OFlag::O_NONBLOCK);
                let _ = event.read();
                // Empty when it is looked at, full when it is written, and blocking.
                set(OFlag::empty());
                spins = (spins + 7919) % 10_007;
                (0..spins).for_each(|_| std::hint::spin_loop());
                let _ = event.write(u64::MAX - 1);
                filled.fetch_add(1, Ordering::Relaxed);
                // Who waits for room now waits for ever.
                let before = served.load(Ordering::Relaxed);
                while served.load(Ordering::Relaxed) == before && !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
            // Nobody is to hang after the test.
            set(OFlag::O_NONBLOCK);
            let _ = event.read();
        });
        let attack = std::panic::catch_unwind(|| {
            let mut client = Client::connect(&path);
            client.greet();
            assert_eq!(client.set_irqs(4 | 32, 2, 0, 8, &[], &[event.as_fd(); 8]), 0);
            for _ in 0..10_000 {
                assert_eq!(client.set_irqs(1 | 32, 2, 0, 8, &[], &[]), 0);
                served.fetch_add(1, Ordering::Relaxed);
                // A signal that came first keeps the filling waiting: it is taken away.
                let before = filled.load(Ordering::Relaxed);
                let mut fds = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
                if filled.load(Ordering::Relaxed) == before
                    && poll(&mut fds, PollTimeout::ZERO) == Ok(1)
                {
                    let _ = event.read();
                }
            }
            drop(client);
            Client::connect(&path).greet();
        });
        done.store(true, Ordering::Relaxed);
        attack.unwrap();
    });
    stop.stop();
    assert_eq!(ends.recv_timeout(Duration::from_secs(5)), Ok(Ended::Stopped));
}

/// Valid messages to start from.
fn valid() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        Just((1, [&[0; 4][..], QEMU_CAPABILITIES.as_bytes()].concat())),
        Just((2, [words(&[32, 3]), longs(&[0, 0x1000, 0x1000])].concat())),
        Just((3, [words(&[24, 0]), longs(&[0x1000, 0x1000])].concat())),
        Just((4, words(&[16, 0, 0, 0]))),
        Just((5, [words(&[32, 0, 7, 0]), longs(&[0, 0])].concat())),
        Just((7, words(&[16, 0, 2, 0]))),
        Just((8, words(&[20, 1 | 32, 2, 0, 4]))),
        Just((9, access(0, 0, 64))),
        Just((10, [access(0, 4, 4), vec![1, 2, 3, 4]].concat())),
        Just((13, Vec::new())),
        Just((15, [longs(&[1]), access(0, 0, 8), vec![0; 8]].concat())),
    ];
    payload.prop_map(|(command, payload)| message(3, command, 0, &payload))
}

/// Valid messages with some bytes changed, cut off or added.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>());
    (valid(), prop::collection::vec(change, 0..4), any::<prop::sample::Index>(), 0..8u8).prop_map(
        |(mut bytes, changes, cut, how)| {
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            match how {
                0 => bytes.truncate(cut.index(bytes.len())),
                1 => bytes.extend(vec![0xff; cut.index(40)]),
                _ => {}
            }
            bytes
        },
    )
}

fn hostile_stream() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..200),
        4 => prop::collection::vec(mutated(), 1..6).prop_map(|messages| messages.concat()),
    ]
}

#[test]
fn the_server_survives_whatever_it_is_sent() {
    let running = Running::start();
    let file = memfd(8192);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    runner
        .run(&(any::<bool>(), 0..3usize, hostile_stream()), |(greet, fds, bytes)| {
            let mut client = Client::connect(&running.path);
            if greet {
                client.greet();
            }
            if fds > 0 && !bytes.is_empty() {
                client.send(&bytes, &vec![file.as_raw_fd(); fds]);
            } else {
                // The server may have closed before all of it was sent.
                let _ = std::io::Write::write_all(&mut client.socket, &bytes);
            }
            let _ = client.socket.shutdown(std::net::Shutdown::Write);
            prop_assert!(client.is_closed(), "the connection does not end");
            Ok(())
        })
        .unwrap();
    still_serves(&running);
    assert_eq!(running.probe.memory.ranges(), 0);
}
