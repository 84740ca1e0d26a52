//! The server over a real socket.

mod client;
mod hostile;
mod silent;

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::Ordering;

use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Ended, Server, ServerError, Stop};
use client::{BAR0_SIZE, Client, Probe, Running, access, longs, message, words};

const EINVAL: u32 = libc::EINVAL as u32;
const EEXIST: u32 = libc::EEXIST as u32;
const EOPNOTSUPP: u32 = libc::EOPNOTSUPP as u32;

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("guest", MFdFlags::MFD_ALLOW_SEALING).unwrap());
    file.set_len(len).unwrap();
    file
}

#[test]
fn the_handshake_answers_with_a_subset_of_what_was_proposed() {
    let running = Running::start();
    let mut client = Client::connect(&running.path);
    let reply = client.greet();
    assert_eq!(reply[..4], [0; 4]);
    assert_eq!(
        std::str::from_utf8(&reply[4..]).unwrap(),
        concat!(
            r#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"#,
            r#""pgsizes":4096,"write_multiple":true}}"#,
            "\0"
        )
    );
    // The least that a client may say; a newer minor version comes down to ours.
    drop(client);
    let mut client = Client::connect(&running.path);
    let version = [0u16, 7].map(u16::to_ne_bytes).concat();
    assert_eq!(client.call(1, &version).payload, [0; 4]);
}

#[test]
fn the_device_its_regions_and_interrupts_are_described() {
    let running = Running::start();
    let mut client = running.connect();
    let device = client.call(4, &words(&[16, 0, 0, 0]));
    assert_eq!(device.payload, words(&[16, 3, 9, 5]));

    let region = |size: u64, flags: u32, index: u32| {
        [words(&[32, flags, index, 0]), longs(&[size, 0])].concat()
    };
    for (index, size, flags) in [(0, 64, 3), (1, 0, 0), (6, 0, 0), (7, 256, 3), (8, 0, 0)] {
        let reply = client.call(5, &region(0, 0, index));
        assert_eq!(reply.payload, region(size, flags, index));
    }
    for (index, flags, count) in [(0, 7, 1), (1, 9, 0), (2, 1, 4), (3, 0, 0), (4, 0, 0)] {
        let reply = client.call(7, &words(&[16, 0, index, 0]));
        assert_eq!(reply.payload, words(&[16, flags, index, count]));
    }

    // Not there, or no room for the answer.
    assert_eq!(client.call(5, &region(0, 0, 9)).error, EINVAL);
    assert_eq!(client.call(7, &words(&[16, 0, 5, 0])).error, EINVAL);
    assert_eq!(client.call(4, &words(&[15, 0, 0, 0])).error, EINVAL);
    // Not offered: region I/O descriptors, DMA through the socket, dirty pages, features.
    for command in [6, 11, 12, 14, 16, 999] {
        assert_eq!(client.call(command, &[0; 32]).error, EOPNOTSUPP);
    }
}

#[test]
fn regions_are_read_and_written() {
    let running = Running::start();
    let mut client = running.connect();
    let data = 0x1122_3344_5566_7788u64.to_le_bytes();
    assert_eq!(client.write(0, 8, &data).payload, access(0, 8, 8));
    assert_eq!(client.read(0, 8, 8).payload, [&access(0, 8, 8)[..], &data].concat());
    assert_eq!(*running.probe.accesses.lock().unwrap(), [('w', 8, 8), ('r', 8, 8)]);

    // A whole region at once reaches the function in accesses of the bus.
    running.probe.accesses.lock().unwrap().clear();
    assert_eq!(client.read(7, 0, 256).payload.len(), 16 + 256);
    let accesses: Vec<_> = (0..64).map(|n| ('r', n * 4, 4)).collect();
    assert_eq!(*running.probe.accesses.lock().unwrap(), accesses);

    // Outside: refused, not passed on, and the stream stays in step.
    running.probe.accesses.lock().unwrap().clear();
    let size = BAR0_SIZE as u64;
    for (region, offset) in [(0, size), (0, size - 4), (0, u64::MAX), (1, 0), (8, 0), (77, 0)] {
        assert_eq!(client.read(region, offset, 8).error, EINVAL);
        assert_eq!(client.write(region, offset, &data).error, EINVAL);
    }
    assert_eq!(client.read(0, 0, u32::MAX).error, EINVAL);
    assert!(running.probe.accesses.lock().unwrap().is_empty());
    assert_eq!(client.read(0, size - 8, 8).error, 0);
}

#[test]
fn writes_may_be_combined_and_unanswered() {
    let running = Running::start();
    let mut client = running.connect();
    let one = |offset: u64, count: u32, data: u64| {
        [access(0, offset, count), data.to_le_bytes().to_vec()].concat()
    };
    let writes = [longs(&[2]), one(0, 4, 0x0102_0304), one(16, 8, u64::MAX)].concat();
    assert_eq!(client.call(15, &writes).payload, longs(&[2]));
    assert_eq!(running.probe.bar0.lock().unwrap()[..5], [4, 3, 2, 1, 0]);
    // The second is out of bounds: one was done.
    let writes = [longs(&[2]), one(0, 1, 9), one(64, 8, 0)].concat();
    assert_eq!(client.call(15, &writes).payload, longs(&[1]));

    const NO_REPLY: u32 = 0x10;
    let posted = [access(0, 24, 2), vec![0xab, 0xcd]].concat();
    client.send(&message(100, 10, NO_REPLY, &posted), &[]);
    client.send(&message(101, 10, NO_REPLY, &[access(0, 99, 1), vec![1]].concat()), &[]);
    // The next reply belongs to the next request that wants one.
    assert_eq!(client.read(0, 24, 2).payload[16..], [0xab, 0xcd]);
}

#[test]
fn memory_is_mapped_reached_and_taken_away() {
    let running = Running::start();
    let mut client = running.connect();
    let guest = memfd(16 << 12);
    guest.write_all_at(b"hello", 5 << 12).unwrap();
    // QEMU unmaps what it never mapped when it starts.
    assert_eq!(client.unmap(0, 1 << 47), 0);
    assert_eq!(client.map(0x10_0000, 4 << 12, Some((guest.as_fd(), 4 << 12)), 3), 0);
    assert_eq!(client.map(0xfe00_0000, 0x1000, None, 3), 0);

    let memory = &running.probe.memory;
    let mut data = [0; 5];
    memory.read(0x10_1000, &mut data).unwrap();
    assert_eq!(&data, b"hello");
    memory.write(0x10_3ffb, b"world").unwrap();
    guest.read_exact_at(&mut data, (8 << 12) - 5).unwrap();
    assert_eq!(&data, b"world");
    assert!(memory.read(0xfe00_0000, &mut data).is_err());

    assert_eq!(client.unmap(0x10_1000, 0x1000), EINVAL);
    assert_eq!(client.unmap(0x10_0000, 4 << 12), 0);
    assert!(memory.read(0x10_1000, &mut data).is_err());
    // All at once: VFIO_DMA_UNMAP_FLAG_ALL.
    assert_eq!(memory.ranges(), 1);
    let all = [words(&[24, 2]), longs(&[0, 0])].concat();
    assert_eq!(client.call(3, &all).error, 0);
    assert_eq!(memory.ranges(), 0);
}

#[test]
fn two_hundred_thousand_ranges_are_served() {
    const RANGES: u64 = 200_000;
    const IN_FLIGHT: u64 = 100;
    let running = Running::start();
    let mut client = running.connect();
    let guest = memfd(RANGES << 12);
    // What a guest's IOMMU makes of scattered pages: no two ranges touch, and every one
    // comes with a descriptor of its own.
    for batch in (0..RANGES).step_by(IN_FLIGHT as usize) {
        for n in batch..batch + IN_FLIGHT {
            let payload = [words(&[32, 3]), longs(&[n << 12, n << 13, 1 << 12])].concat();
            client.send(&message(n as u16, 2, 0, &payload), &[guest.as_raw_fd()]);
        }
        for n in batch..batch + IN_FLIGHT {
            let (id, _, reply) = client.reply();
            assert_eq!((id, reply.error), (n as u16, 0), "range {n}");
        }
    }
    let memory = &running.probe.memory;
    assert_eq!((memory.ranges() as u64, memory.files()), (RANGES, 1));
    for n in [0, 1, RANGES / 2, RANGES - 1] {
        memory.store_u64(n << 13, n).unwrap();
        let mut word = [0; 8];
        guest.read_exact_at(&mut word, n << 12).unwrap();
        assert_eq!(u64::from_le_bytes(word), n);
    }
    assert_eq!(client.unmap(0, RANGES << 13), 0);
    assert_eq!((memory.ranges(), memory.files()), (0, 0));
}

#[test]
fn a_failed_map_reaches_the_client() {
    let running = Running::start();
    let mut client = running.connect();
    let guest = memfd(4 << 12);
    let whole = Some((guest.as_fd(), 0));
    assert_eq!(client.map(0, 0x5000, whole, 3), EINVAL, "the file is shorter");
    assert_eq!(client.map(0, 0, whole, 3), EINVAL, "no bytes");
    assert_eq!(client.map(u64::MAX - 1, 0x1000, whole, 3), EINVAL, "wraps");
    assert_eq!(client.map(0, 0x1000, whole, 0), EINVAL, "neither read nor write");
    assert_eq!(client.map(0, 0x1000, whole, 7), EINVAL, "an unknown flag");
    let two = [guest.as_fd(), guest.as_fd()];
    let payload = [words(&[32, 3]), longs(&[0, 0, 0x1000])].concat();
    assert_eq!(client.call_with(2, &payload, &two).error, EINVAL, "two descriptors");
    assert_eq!(running.probe.memory.ranges(), 0);

    assert_eq!(client.map(0, 0x2000, whole, 3), 0);
    assert_eq!(client.map(0x1000, 0x1000, whole, 3), EEXIST);
    assert_eq!(running.probe.memory.ranges(), 1);
}

#[test]
fn interrupts_are_connected_masked_and_disconnected() {
    const NONE: u32 = 1;
    const BOOL: u32 = 2;
    const EVENTFD: u32 = 4;
    const MASK: u32 = 8;
    const UNMASK: u32 = 16;
    const TRIGGER: u32 = 32;
    let running = Running::start();
    let mut client = running.connect();
    let events: Vec<EventFd> = (0..3).map(|_| EventFd::new().unwrap()).collect();
    let fds: Vec<_> = events.iter().map(AsFd::as_fd).collect();
    assert_eq!(client.set_irqs(EVENTFD | TRIGGER, 2, 1, 3, &[], &fds), 0);
    {
        let connected = running.probe.events.lock().unwrap();
        assert!(connected[0].is_none());
        for (n, event) in connected[1..].iter().enumerate() {
            nix::unistd::write(event.as_ref().unwrap(), &(n as u64 + 1).to_ne_bytes()).unwrap();
        }
    }
    for (n, event) in events.iter().enumerate() {
        assert_eq!(event.read().unwrap(), n as u64 + 1);
    }
    // No descriptors: these vectors are disconnected, as QEMU does it.
    assert_eq!(client.set_irqs(EVENTFD | TRIGGER, 2, 2, 1, &[], &[]), 0);
    let connected = || -> Vec<bool> {
        running.probe.events.lock().unwrap().iter().map(Option::is_some).collect()
    };
    assert_eq!(connected(), [false, true, false, true]);

    assert_eq!(client.set_irqs(NONE | MASK, 0, 0, 1, &[], &[]), 0);
    assert_eq!(client.set_irqs(NONE | UNMASK, 0, 0, 1, &[], &[]), 0);
    assert_eq!(client.set_irqs(BOOL | TRIGGER, 2, 1, 3, &[1, 0, 1], &[]), 0);
    assert_eq!(
        *running.probe.irq_calls.lock().unwrap(),
        ["INTx 0 masked=true", "INTx 0 masked=false", "MSI-X 1 triggered", "MSI-X 3 triggered"]
    );
    // Count 0 disables, also what the function does not have.
    assert_eq!(client.set_irqs(NONE | TRIGGER, 2, 0, 0, &[], &[]), 0);
    assert_eq!(client.set_irqs(NONE | TRIGGER, 1, 0, 0, &[], &[]), 0);
    assert_eq!(connected(), [false; 4]);

    let file = memfd(4096);
    let refused = [
        client.set_irqs(EVENTFD | TRIGGER, 2, 2, 3, &[], &fds), // beyond the last vector
        client.set_irqs(EVENTFD | TRIGGER, 2, u32::MAX, 3, &[], &fds),
        client.set_irqs(EVENTFD | TRIGGER, 2, 0, 2, &[], &fds), // three descriptors for two
        client.set_irqs(EVENTFD | TRIGGER, 2, 0, 1, &[], &[file.as_fd()]), // not an eventfd
        client.set_irqs(EVENTFD | NONE | TRIGGER, 2, 0, 1, &[], &[]),
        client.set_irqs(NONE, 2, 0, 1, &[], &[]),
        client.set_irqs(NONE | TRIGGER, 9, 0, 1, &[], &[]),
        client.set_irqs(NONE | MASK, 2, 0, 0, &[], &[]),
    ];
    assert_eq!(refused, [EINVAL; 8]);
    let resample = client.set_irqs(EVENTFD | UNMASK, 0, 0, 1, &[], &fds[..1]);
    assert_eq!(resample, EOPNOTSUPP);
    assert_eq!(connected(), [false; 4]);
}

#[test]
fn a_reset_reaches_the_function() {
    let running = Running::start();
    let mut client = running.connect();
    assert_eq!(client.call(13, &[]).error, 0);
    assert_eq!(running.probe.resets.load(Ordering::SeqCst), 1);
}

#[test]
fn when_a_client_leaves_the_next_finds_nothing_of_it() {
    let running = Running::start();
    let guest = memfd(4096);
    for round in 1..=3 {
        let mut client = running.connect();
        assert_eq!(client.map(0, 4096, Some((guest.as_fd(), 0)), 3), 0);
        let event = EventFd::new().unwrap();
        assert_eq!(client.set_irqs(4 | 32, 2, 0, 1, &[], &[event.as_fd()]), 0);
        drop(client);
        running.await_resets(round);
        // Unmapped after the reset, and before the next client is served.
        running.connect();
        running.await_resets(round + 1);
        running.probe.resets.fetch_sub(1, Ordering::SeqCst);
        assert_eq!(running.probe.memory.ranges(), 0);
        assert!(running.probe.events.lock().unwrap().iter().all(Option::is_none));
    }
}

#[test]
fn a_second_client_waits_for_the_first_to_leave() {
    let running = Running::start();
    let mut first = running.connect();
    let mut second = Client::connect(&running.path);
    let greeting = [&[0; 4][..], b"{}\0"].concat();
    second.send(&message(7, 1, 0, &greeting), &[]);
    assert_eq!(first.write(0, 0, &[1]).error, 0);
    drop(first);
    assert_eq!(second.reply().0, 7);
    assert_eq!(second.read(0, 0, 1).error, 0);
}

#[test]
fn requests_may_be_sent_before_the_replies_are_read() {
    let running = Running::start();
    let mut client = running.connect();
    for id in 0..500 {
        client.send(&message(id, 9, 0, &access(0, 0, 4)), &[]);
    }
    for id in 0..500 {
        let (reply_id, command, reply) = client.reply();
        assert_eq!((reply_id, command, reply.error), (id, 9, 0));
    }
}

#[test]
fn descriptors_are_not_kept() {
    let running = Running::start();
    let mut client = running.connect();
    let guest = memfd(1 << 20);
    let (ours, theirs) = nix::unistd::pipe().unwrap();
    for n in 0..64 {
        assert_eq!(client.map(n << 12, 1 << 12, Some((guest.as_fd(), n << 12)), 3), 0);
        // Where none is expected, and where it is refused.
        assert_eq!(client.call_with(13, &[], &[theirs.as_fd()]).error, 0);
        assert_eq!(client.set_irqs(4 | 32, 2, 0, 1, &[], &[theirs.as_fd()]), EINVAL);
    }
    // Once the last copy is closed, the reader sees the end of the pipe.
    drop(theirs);
    nix::fcntl::fcntl(&ours, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
    assert_eq!(nix::unistd::read(&ours, &mut [0]), Ok(0));
    assert_eq!(running.probe.memory.files(), 1);
}

#[test]
fn the_socket_file_is_owned_by_one_live_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let server = Server::bind(&path).unwrap();
    let error = Server::bind(&path).unwrap_err();
    assert!(matches!(error, ServerError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("another server is listening"));
    drop(server);
    assert!(!path.exists(), "the file goes with its server");

    // A server that died leaves its file.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    drop(Server::bind(&path).unwrap());

    File::create(&path).unwrap().write_all(b"precious").unwrap();
    assert!(matches!(Server::bind(&path), Err(ServerError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");

    // A file that took the place of ours is not removed.
    std::fs::remove_file(&path).unwrap();
    let server = Server::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let other = UnixListener::bind(&path).unwrap();
    drop(server);
    assert!(path.exists());
    drop(other);

    // A live server whose queue is full answers nobody.
    let full = directory.path().join("full");
    let listener = UnixListener::bind(&full).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _waits = std::os::unix::net::UnixStream::connect(&full).unwrap();
    assert!(matches!(Server::bind(&full), Err(ServerError::InUse { .. })));

    let says = |path: &std::path::Path| Server::bind(path).unwrap_err().to_string();
    let datagrams = directory.path().join("datagrams");
    let _datagrams = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
    assert!(says(&datagrams).contains("a socket of another kind"), "{}", says(&datagrams));
    let (link, dead) = (directory.path().join("link"), directory.path().join("dead"));
    drop(UnixListener::bind(&dead).unwrap());
    std::os::unix::fs::symlink(&dead, &link).unwrap();
    assert!(says(&link).contains("a symbolic link"), "{}", says(&link));
    assert!(dead.exists());
    assert!(says("@name".as_ref()).contains("./@name"));
    assert!(!std::path::Path::new("@name").exists());

    let long = directory.path().join("x".repeat(120));
    assert!(matches!(Server::bind(long), Err(ServerError::TooLong { .. })));
    assert!(matches!(Server::bind("/nonexistent/s"), Err(ServerError::Os { .. })));
}

#[test]
fn a_server_stops_when_told_and_when_its_function_wants_to() {
    let running = Running::start();
    let _client = running.connect();
    let stop = running.stop.clone();
    stop.stop();
    let path = running.path.clone();
    assert_eq!(running.join(), Ended::Stopped);
    assert!(!path.exists());

    for connected in [true, false] {
        let running = Running::start();
        let client = connected.then(|| running.connect());
        running.probe.exit.store(true, Ordering::SeqCst);
        let probe = running.probe.clone();
        assert_eq!(running.join(), Ended::Exit);
        assert_eq!(probe.resets.load(Ordering::SeqCst), 0);
        drop(client);
    }

    // A handle that is stopped beforehand.
    let directory = tempfile::tempdir().unwrap();
    let server = Server::bind(directory.path().join("s")).unwrap();
    let ended = server.serve(&*Probe::new(), &stop).unwrap();
    assert_eq!(ended, Ended::Stopped);
    assert!(!Stop::new().unwrap().is_stopped());
}

#[test]
fn a_lock_on_the_directory_is_not_waited_for_without_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let held = File::open(directory.path()).unwrap();
    let held = nix::fcntl::Flock::lock(held, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let error = Server::bind(&path).unwrap_err();
    assert!(matches!(error, ServerError::Locked { .. }), "{error}");
    drop(held);
    drop(Server::bind(&path).unwrap());
}

#[test]
fn a_client_that_is_silent_for_too_long_makes_room_for_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let server = Server::bind(&path).unwrap().idle_timeout(std::time::Duration::from_millis(300));
    let stop = Stop::new().unwrap();
    let serving = {
        let stop = stop.clone();
        std::thread::spawn(move || server.serve(&*Probe::new(), &stop).unwrap())
    };
    let mut silent = Client::connect(&path);
    silent.greet();
    let mut next = Client::connect(&path);
    next.greet();
    assert!(silent.is_closed());
    // Its silence begins anew with each message.
    for _ in 0..4 {
        std::thread::sleep(std::time::Duration::from_millis(150));
        assert_eq!(next.read(0, 0, 4).error, 0);
    }
    stop.stop();
    assert_eq!(serving.join().unwrap(), Ended::Stopped);
}
