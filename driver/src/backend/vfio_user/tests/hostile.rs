//! Servers that do not speak the protocol, or not in time: every call ends.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};

use super::*;
use crate::pci::Remedy;

#[test]
fn nonsense_ends_the_connection_with_a_reason() {
    type Nonsense = (&'static str, fn(&Came) -> Act);
    let cases: [Nonsense; 14] = [
        ("closed", |_| Act::Close),
        ("within 300 ms", |_| Act::Silence),
        ("a message of 15 bytes", |c| {
            Act::Raw([&message(c.id, 9, 1, 0, &[])[..4], &words(&[15, 1, 0])].concat())
        }),
        ("a message of 1048609 bytes", |c| {
            Act::Raw([&message(c.id, 9, 1, 0, &[])[..4], &words(&[1_048_609, 1, 0])].concat())
        }),
        ("flags 0x2", |c| Act::Raw(message(c.id, 9, 2, 0, &[]))),
        ("a reply to message", |c| Act::Raw(message(c.id.wrapping_add(1), 9, 1, 0, &[]))),
        ("a reply to message", |c| Act::Raw(message(c.id.wrapping_sub(1), 10, 1, 0, &[]))),
        ("with command 10", |c| Act::Raw(message(c.id, 10, 1, 0, &[]))),
        ("within 300 ms", |c| Act::Raw(message(c.id, 9, 1, 0, &[0; 20])[..30].to_vec())),
        ("at least 16 needed", |_| Act::Reply(vec![0; 15])),
        ("3 bytes", |c| Act::Reply([&c.payload[..16], &[0; 3]].concat())),
        ("5 bytes", |c| Act::Reply([&c.payload[..16], &[0; 5]].concat())),
        ("4 bytes", |c| Act::Reply([longs(&[8]), c.payload[8..16].to_vec(), vec![0; 4]].concat())),
        ("within 300 ms", |_| Act::Raw(message(0, 11, 0x10, 0, &[0; 16]))),
    ];
    for (n, (reason, act)) in cases.into_iter().enumerate() {
        let server = Scripted::start(move |came| {
            (came.command == 9 && word(&came.payload, 8) == 0).then(|| act(came))
        });
        let device = server.connect().unwrap();
        let start = Instant::now();
        let found = is_gone(device.region_read(Region::Bar(0), 0, &mut [0; 4]));
        assert!(found.contains(reason), "case {n}: {found}");
        assert!(start.elapsed() < 3 * PATIENCE, "case {n}");
        // For good, with the same reason, and at once.
        let start = Instant::now();
        assert_eq!(is_gone(device.region_write(Region::Bar(0), 0, &[0; 4])), found);
        assert_eq!(is_gone(device.reset()), found);
        assert!(start.elapsed() < PATIENCE / 2);
    }
}

#[test]
fn a_server_that_sends_a_byte_at_a_time_or_floods_does_not_gain_time() {
    for drip in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            receive(&mut socket).unwrap();
            let reply = message(0, 1, 1, 0, &[0; 400]);
            let flood = message(0, 12, 0x10, 0, &[0; 16]).repeat(10);
            if drip {
                for byte in reply {
                    if socket.write_all(&[byte]).is_err() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            } else {
                while socket.write_all(&flood).is_ok() {}
            }
        });
        let start = Instant::now();
        is_gone(VfioUser::connect_within(&path, PATIENCE));
        assert!(start.elapsed() < 3 * PATIENCE, "{:?}", start.elapsed());
        server.join().unwrap();
    }
}

#[test]
fn a_device_that_makes_no_sense_is_not_opened() {
    type Nonsense = (&'static str, fn(&Came) -> Option<Act>);
    let cases: [Nonsense; 13] = [
        ("version 1.0", |c| (c.command == 1).then(|| Act::Reply(vec![1, 0, 0, 0]))),
        ("version 0.1", |c| (c.command == 1).then(|| Act::Reply(vec![0, 0, 1, 0]))),
        ("version data", |c| (c.command == 1).then(|| Act::Reply(vec![0, 0, 0, 0, b'{', 0]))),
        ("a usable limit", |c| {
            let caps = br#"{"capabilities":{"pgsizes":0}}"#;
            (c.command == 1).then(|| Act::Reply([&[0; 4][..], caps, &[0]].concat()))
        }),
        ("errno", |c| (c.command == 1).then_some(Act::Fail(71))),
        ("a PCI device", |c| (c.command == 4).then(|| Act::Reply(words(&[16, 1, 9, 5])))),
        ("a PCI device", |c| (c.command == 4).then(|| Act::Reply(words(&[16, 3, 7, 5])))),
        ("region 1 described", |c| {
            let other = || Act::Reply([words(&[32, 3, 1, 0]), longs(&[0, 0])].concat());
            (c.command == 5).then(other)
        }),
        ("of 65537 bytes", |c| {
            let long = || Act::Reply([words(&[65_537, 3, 0, 0]), longs(&[0, 0])].concat());
            (c.command == 5).then(long)
        }),
        ("an area of", |c| {
            (c.command == 5).then(|| Act::With(sparse(100, &[0x3000, 0x1001]), memfd(0x8000)))
        }),
        ("a capability at", |c| {
            let mut cut = sparse(100, &[0, 0x1000]);
            cut.truncate(80);
            (c.command == 5).then(|| Act::With(cut, memfd(0x8000)))
        }),
        ("capabilities at", |c| {
            let mut looped = sparse(100, &[0, 0x1000]);
            looped[44] = 40;
            (c.command == 5).then(|| Act::With(looped, memfd(0x8000)))
        }),
        ("interrupts 3 described", |c| (c.command == 7).then(|| Act::Reply(words(&[16, 1, 3, 1])))),
    ];
    for (n, (reason, script)) in cases.into_iter().enumerate() {
        let server = Scripted::start(script);
        let error = server.connect().unwrap_err().to_string();
        let known = error.contains(reason) || (reason == "errno" && error.contains("os error 71"));
        assert!(known, "case {n}: {error}");
    }
}

#[test]
fn an_unmap_of_something_else_is_not_believed() {
    for (address, len) in [(0x1000, 0x1000), (0x3000, 0x2000)] {
        let server = Scripted::start(move |came| {
            let other = [&came.payload[..8], &longs(&[address, len])[..]].concat();
            (came.command == 3).then_some(Act::Reply(other))
        });
        let device = server.connect().unwrap();
        let file = memfd(0x2000);
        let request = MapRequest {
            iova: 0x1000,
            host: NonNull::without_provenance(0x1000.try_into().unwrap()),
            len: 0x2000,
            access: DmaAccess::ReadWrite,
            file: Some((file.as_fd(), 0)),
        };
        // SAFETY: the server maps nothing.
        unsafe { device.iommu().map(&request) }.unwrap();
        // What was never mapped is not asked for.
        for (iova, len) in [(0x8000, 0x1000), (0x1000, 0x1000), (0x2000, 0x1000)] {
            let refused = device.iommu().unmap(iova, len);
            assert!(matches!(refused, Err(BackendError::Precondition { .. })), "{refused:?}");
        }
        assert!(server.came(3).is_empty());
        let reason = is_gone(device.iommu().unmap(0x1000, 0x2000));
        assert!(reason.contains(&format!("{len} bytes at {address:#x}")), "{reason}");
        assert_eq!(device.iommu().info().unwrap().available_mappings, Some(65_534));
    }
}

#[test]
fn sockets_without_a_server_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let problem = |path: &Path| VfioUser::connect(path).unwrap_err().to_string();
    assert!(problem(&path).contains("no such socket"), "{}", problem(&path));
    drop(UnixListener::bind(&path).unwrap());
    assert!(problem(&path).contains("no server listens"), "{}", problem(&path));
    assert!(matches!(
        VfioUser::connect(&path).unwrap_err().remedy(),
        Some(Remedy::StartServer { socket, .. }) if *socket == path
    ));
    let long = directory.path().join("x".repeat(120));
    assert!(problem(&long).contains("at most 107 bytes"));
    std::fs::remove_file(&path).unwrap();

    // A server that accepts nobody: clients that have left keep their place in its queue.
    let listener = UnixListener::bind(&path).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
    let attempts = (0..4).map(|_| {
        let attempt = VfioUser::connect_within(&path, Duration::from_millis(20));
        attempt.unwrap_err().to_string()
    });
    let attempts: Vec<_> = attempts.collect();
    assert!(attempts[0].contains("no answer from the server within 20 ms"), "{attempts:?}");
    assert!(attempts[3].contains("does not accept clients"), "{attempts:?}");
}

#[test]
fn a_part_of_a_huge_page_is_trapped() {
    let huge_pages = |areas: &'static [u64]| {
        Scripted::start(move |came| {
            let bar0 = came.command == 5 && word(&came.payload, 8) == 0;
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB;
            bar0.then(|| {
                let file = File::from(memfd_create(c"huge", flags).unwrap());
                file.set_len(8 << 20).unwrap();
                Act::With(sparse_of(8 << 20, 100, 2 << 20, areas), file)
            })
        })
    };
    let mappable = |areas| {
        let server = huge_pages(areas);
        let device: Arc<dyn Backend> = Arc::new(server.connect().unwrap());
        device.region_info(Region::Bar(0)).unwrap().mappable
    };
    assert_eq!(mappable(&[0, 0x1000]), []);
    assert_eq!(mappable(&[0x1000, 2 << 20]), []);
    assert_eq!(mappable(&[0, 0x20_1000]), []);
    assert_eq!(mappable(&[2 << 20, 2 << 20]), vec![2 << 20..4 << 20; 1]);
}

/// A descriptor whose last `close` waits for as long: there are bytes that its peer does not take.
fn lingering(seconds: libc::c_int) -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    let linger = libc::linger { l_onoff: 1, l_linger: seconds };
    setsockopt(&stream, sockopt::Linger, &linger).unwrap();
    stream.set_nonblocking(true).unwrap();
    while (&stream).write(&[0; 1 << 16]).is_ok() {}
    (stream.into(), peer)
}

/// Why a connection ends whose server sends such a descriptor with its reply to a command.
fn reason_for_lingering(command: u16) -> String {
    let (fd, _peer) = lingering(2);
    let fd = Mutex::new(Some(fd));
    let server = Scripted::start(move |came| {
        let bar0 = word(&came.payload, 8) == 0;
        let payload = match came.command {
            4 if command == 4 => words(&[16, 1 | 2, 9, 5]),
            5 if command == 5 && bar0 => sparse(100, &[0, 0x1000]),
            _ => return None,
        };
        Some(Act::With(payload, File::from(fd.lock().unwrap().take()?)))
    });
    is_gone(server.connect())
}

#[test]
fn a_file_that_cannot_be_closed_does_not_hold_the_client_up() {
    for command in [4, 5] {
        // Who closes last waits: now and then it is the server, which does not answer then.
        let mut reasons = (0..8).map(|_| reason_for_lingering(command));
        assert!(reasons.any(|reason| reason.contains("not closed within 300 ms")), "{command}");
    }
}

#[test]
fn what_is_no_memory_is_not_mapped() {
    let server = Scripted::start(|came| {
        let bar0 = came.command == 5 && word(&came.payload, 8) == 0;
        bar0.then(|| Act::With(sparse(100, &[0, 0x1000]), File::open("/dev/zero").unwrap()))
    });
    let device: Arc<dyn Backend> = Arc::new(server.connect().unwrap());
    let info = device.region_info(Region::Bar(0)).unwrap();
    assert_eq!((info.size, info.mappable.len()), (0x4000, 0));
}
