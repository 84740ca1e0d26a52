//! The client against servers that are written byte by byte: what a well-behaved server may
//! do, and what a hostile one does.

mod hostile;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::backend::{DmaAccess, MapRequest};

/// How long the client waits for a server that is silent.
const PATIENCE: Duration = Duration::from_millis(300);

/// What a server does with a request.
enum Act {
    /// A reply with this payload.
    Reply(Vec<u8>),
    /// A reply with a descriptor too.
    With(Vec<u8>, File),
    /// An error reply with this errno.
    Fail(u32),
    /// These bytes, whatever they are.
    Raw(Vec<u8>),
    /// Nothing.
    Silence,
    /// The end of the connection.
    Close,
}

/// A request as it came: id, command, flags, payload and how many descriptors.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Came {
    id: u16,
    command: u16,
    flags: u32,
    payload: Vec<u8>,
    fds: usize,
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

fn message(id: u16, command: u16, flags: u32, error: u32, payload: &[u8]) -> Vec<u8> {
    let size = 16 + payload.len() as u32;
    let head = [id.to_ne_bytes(), command.to_ne_bytes()].concat();
    [head, words(&[size, flags, error]), payload.to_vec()].concat()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// What a server does that behaves: a BAR0 of 16 KiB that reads as 0x5a and ten MSI-X vectors.
fn behave(came: &Came) -> Act {
    let payload = &came.payload;
    Act::Reply(match came.command {
        1 => [&[0; 4][..], br#"{"capabilities":{"max_msg_fds":4,"pgsizes":4096}}"#, &[0]].concat(),
        4 => words(&[16, 1 | 2, 9, 5]),
        5 => {
            let index = word(payload, 8);
            let size = [(0, 0x4000), (7, 256)].iter().find(|(i, _)| *i == index);
            let flags = if size.is_some() { 3 } else { 0 };
            let size = size.map_or(0, |(_, size)| *size);
            [words(&[32, flags, index, 0]), longs(&[size, 0])].concat()
        }
        7 => {
            let index = word(payload, 8);
            words(&[16, 1, index, [1, 0, 10, 0, 0][index as usize]])
        }
        9 => [&payload[..16], &vec![0x5a; word(payload, 12) as usize]].concat(),
        10 => payload[..16].to_vec(),
        3 => payload.clone(),
        2 | 8 | 13 => Vec::new(),
        _ => return Act::Fail(95),
    })
}

/// A server in a thread for one client, and what it was sent.
struct Scripted {
    path: PathBuf,
    came: Arc<Mutex<Vec<Came>>>,
    _directory: tempfile::TempDir,
}

impl Scripted {
    /// `script` decides, and leaves to [`behave`] what it returns `None` for.
    fn start(mut script: impl FnMut(&Came) -> Option<Act> + Send + 'static) -> Scripted {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let came = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&came);
        std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            while let Some(request) = receive(&mut socket) {
                record.lock().unwrap().push(request.clone());
                let act = script(&request).unwrap_or_else(|| behave(&request));
                let (id, command) = (request.id, request.command);
                let (bytes, file) = match act {
                    Act::Reply(_) if request.flags & 0x10 != 0 => continue,
                    Act::Reply(payload) => (message(id, command, 1, 0, &payload), None),
                    Act::With(payload, file) => (message(id, command, 1, 0, &payload), Some(file)),
                    Act::Fail(errno) => (message(id, command, 0x21, errno, &[]), None),
                    Act::Raw(bytes) => (bytes, None),
                    Act::Silence => continue,
                    Act::Close => return,
                };
                let sent = match file {
                    Some(file) => {
                        socket.send_with_fd(&bytes[..], file.as_raw_fd()).map(drop).is_ok()
                    }
                    None => socket.write_all(&bytes).is_ok(),
                };
                if !sent {
                    return;
                }
            }
        });
        Scripted { path, came, _directory: directory }
    }

    fn connect(&self) -> Result<VfioUser> {
        VfioUser::connect_within(&self.path, PATIENCE)
    }

    /// The requests with this command so far.
    fn came(&self, command: u16) -> Vec<Came> {
        let came = self.came.lock().unwrap();
        came.iter().filter(|came| came.command == command).cloned().collect()
    }
}

/// The next request; `None` when the client has left.
fn receive(socket: &mut UnixStream) -> Option<Came> {
    let mut header = [0; 16];
    let mut fds = [-1; 300];
    let mut vectors = [libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: 16 }];
    // SAFETY: the only vector describes `header`, which is borrowed mutably.
    let (got, count) = unsafe { socket.recv_with_fds(&mut vectors, &mut fds) }.ok()?;
    for &fd in &fds[..count] {
        nix::unistd::close(fd).unwrap();
    }
    socket.read_exact(&mut header[got..]).ok()?;
    let mut payload = vec![0; word(&header, 4) as usize - 16];
    socket.read_exact(&mut payload).ok()?;
    let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
    Some(Came { id: half(0), command: half(2), flags: word(&header, 8), payload, fds: count })
}

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}

fn is_gone<T: std::fmt::Debug>(result: Result<T>) -> String {
    match result {
        Err(BackendError::Gone { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_server_does_not_say_is_the_default_of_the_specification() {
    let silent = limits(&Capabilities::default()).unwrap();
    assert_eq!(silent, Limits { fds: 1, data: 1 << 20, maps: 65_535, page_sizes: 4096 });
    let most = |value| Capabilities {
        max_msg_fds: Some(value),
        max_data_xfer_size: Some(value),
        max_dma_maps: Some(value),
        pgsizes: Some(value),
    };
    let limits_of_most = limits(&most(u64::MAX)).unwrap();
    assert_eq!((limits_of_most.fds, limits_of_most.data), (253, 1 << 20));
    assert_eq!((limits_of_most.maps, limits_of_most.page_sizes), (u32::MAX, !0xfff));
    assert_eq!(limits(&most(0)), None);
    for useless in [
        Capabilities { max_msg_fds: Some(0), ..Capabilities::default() },
        Capabilities { max_data_xfer_size: Some(7), ..Capabilities::default() },
        Capabilities { max_dma_maps: Some(0), ..Capabilities::default() },
        Capabilities { pgsizes: Some(0xfff), ..Capabilities::default() },
    ] {
        assert_eq!(limits(&useless), None, "{useless:?}");
    }
}

#[test]
fn the_handshake_is_that_of_the_specification() {
    let server = Scripted::start(|_| None);
    let device = server.connect().unwrap();
    let version = server.came(1).remove(0);
    assert_eq!((version.id, version.flags, &version.payload[..4]), (0, 0, &[0; 4][..]));
    let json = str::from_utf8(&version.payload[4..]).unwrap();
    assert_eq!(
        json,
        "{\"capabilities\":{\"max_msg_fds\":253,\"max_data_xfer_size\":1048576,\
         \"max_dma_maps\":65535,\"pgsizes\":1075843072}}\0"
    );
    assert_eq!(device.region_info(Region::Bar(0)).unwrap().size, 0x4000);
    assert_eq!(device.region_info(Region::Rom).unwrap(), RegionInfo::default());
    assert_eq!(IRQS.map(|kind| device.irq_count(kind).unwrap()), [1, 0, 10]);
    // Memory and I/O space are enabled.
    let written = server.came(10).remove(0).payload;
    assert_eq!(written, [longs(&[4]), words(&[7, 2]), vec![0x5b, 0x5a]].concat());
    let info = device.iommu().info().unwrap();
    assert!(info.needs_fd && info.page_sizes == 4096);
    assert_eq!(info.available_mappings, Some(65_535));
}

#[test]
fn register_writes_are_posted_and_now_and_then_acknowledged() {
    let server = Scripted::start(|_| None);
    let device = server.connect().unwrap();
    server.came.lock().unwrap().clear();
    for n in 0..200u64 {
        device.region_write(Region::Bar(0), 8 * n, &n.to_le_bytes()).unwrap();
    }
    let mut data = [0; 4];
    device.region_read(Region::Bar(0), 0, &mut data).unwrap();
    assert_eq!(data, [0x5a; 4]);
    let writes = server.came(10);
    assert_eq!(writes.len(), 200);
    for (n, write) in (0u64..).zip(&writes) {
        assert_eq!(write.payload, [longs(&[8 * n]), words(&[0, 8]), longs(&[n])].concat());
        assert_eq!(write.flags, if n % 65 == 64 { 0 } else { 0x10 }, "write {n}");
    }
    // Configuration space is not posted.
    device.region_write(Region::Config, 4, &[6, 0]).unwrap();
    assert_eq!(server.came(10).last().unwrap().flags, 0);
}

#[test]
fn a_server_may_reply_to_what_wants_no_reply_and_ask_for_what_it_does_not_get() {
    let server = Scripted::start(|came| match came.command {
        10 if came.flags & 0x10 != 0 => {
            let errno = if came.id % 2 == 0 { 0 } else { 22 };
            let flags = if errno == 0 { 1 } else { 0x21 };
            Some(Act::Raw(message(came.id, 10, flags, errno, &came.payload[..16])))
        }
        // DMA_READ with a reply wanted and without, before the reply.
        9 if came.payload[8] == 0 => {
            let dma_read = longs(&[0x1000, 4]);
            let data = [&came.payload[..16], &[7; 4]].concat();
            let asked = message(came.id, 11, 0, 0, &dma_read);
            let posted = message(9, 11, 0x10, 0, &dma_read);
            let reply = message(came.id, 9, 1, 0, &data);
            Some(Act::Raw([asked, posted, reply].concat()))
        }
        // The reply to DMA_READ.
        11 => Some(Act::Silence),
        _ => None,
    });
    let device = server.connect().unwrap();
    for _ in 0..3 {
        for n in 0..70 {
            device.region_write(Region::Bar(0), 4 * n, &[1, 2, 3, 4]).unwrap();
        }
        let mut data = [0; 4];
        device.region_read(Region::Bar(0), 0, &mut data).unwrap();
        assert_eq!(data, [7; 4]);
    }
    device.reset().unwrap();
    let refused = server.came(11);
    assert_eq!(refused.len(), 3);
    assert!(refused.iter().all(|came| (came.flags, came.payload.len()) == (0x21, 0)));
}

#[test]
fn long_accesses_and_many_vectors_go_in_pieces_that_the_server_takes() {
    let server = Scripted::start(|came| {
        let caps = br#"{"capabilities":{"max_msg_fds":4,"max_data_xfer_size":1023}}"#;
        (came.command == 1).then(|| Act::Reply([&[0; 4][..], caps, &[0]].concat()))
    });
    let device = server.connect().unwrap();
    let mut data = vec![0; 2500];
    device.region_read(Region::Bar(0), 4, &mut data).unwrap();
    assert_eq!(data, vec![0x5a; 2500]);
    let reads = server.came(9);
    let lengths: Vec<u32> = reads.iter().map(|came| word(&came.payload, 12)).collect();
    assert_eq!(lengths[lengths.len() - 3..], [1016, 1016, 468]);

    let events: Vec<EventFd> = (0..10).map(|_| EventFd::new().unwrap()).collect();
    let fds: Vec<_> = events.iter().map(AsFd::as_fd).collect();
    device.irq_enable(IrqKind::MsiX, &fds).unwrap();
    let sets: Vec<_> = server.came(8).into_iter().map(|c| (c.payload, c.fds)).collect();
    let set = |start, count| (words(&[20, 4 | 32, 2, start, count]), count as usize);
    assert_eq!(sets, [set(0, 4), set(4, 4), set(8, 2)]);
    // Fewer, later: the others are taken away first.
    device.irq_enable(IrqKind::MsiX, &fds[..1]).unwrap();
    device.irq_disable(IrqKind::MsiX).unwrap();
    device.irq_disable(IrqKind::MsiX).unwrap();
    let sets: Vec<_> = server.came(8).into_iter().map(|c| (c.payload, c.fds)).collect();
    let none = (words(&[20, 1 | 32, 2, 0, 0]), 0);
    assert_eq!(sets[3..], [none.clone(), set(0, 1), none]);
}

#[test]
fn vectors_that_are_refused_half_way_are_all_taken_away() {
    let server = Scripted::start(|came| {
        (came.command == 8 && word(&came.payload, 12) == 4).then_some(Act::Fail(22))
    });
    let device = server.connect().unwrap();
    let events: Vec<EventFd> = (0..10).map(|_| EventFd::new().unwrap()).collect();
    let fds: Vec<_> = events.iter().map(AsFd::as_fd).collect();
    let error = device.irq_enable(IrqKind::MsiX, &fds).unwrap_err();
    assert!(error.to_string().contains("MSI-X vectors from 4 on"), "{error}");
    assert_eq!(server.came(8).last().unwrap().payload, words(&[20, 1 | 32, 2, 0, 0]));
    for count in [0, 11] {
        let events: Vec<_> = (0..count).map(|_| events[0].as_fd()).collect();
        let error = device.irq_enable(IrqKind::MsiX, &events).unwrap_err();
        assert!(matches!(error, BackendError::NoVectors { available: 10, .. }), "{error}");
    }
}

/// A reply to GET_REGION_INFO for a mappable BAR0 with one sparse capability.
fn sparse(argsz: u32, areas: &[u64]) -> Vec<u8> {
    sparse_at(argsz, 0x1000, areas)
}

/// As [`sparse`], with the region at this position of the file.
fn sparse_at(argsz: u32, position: u64, areas: &[u64]) -> Vec<u8> {
    sparse_of(0x4000, argsz, position, areas)
}

/// As [`sparse_at`], with a region of so many bytes.
fn sparse_of(size: u64, argsz: u32, position: u64, areas: &[u64]) -> Vec<u8> {
    let head = [words(&[argsz, 0xf, 0, 40]), longs(&[size, position])].concat();
    // An unknown capability at 40 leads to the areas at 56.
    let other = [words(&[99 | 1 << 16, 56]), longs(&[0])].concat();
    let header = words(&[1 | 1 << 16, 0, (areas.len() / 2) as u32, 0]);
    [head, longs(&[0]), other, header, longs(areas)].concat()
}

#[test]
fn what_the_server_offers_is_mapped_and_the_rest_is_trapped() {
    let file = memfd(0x5000);
    file.write_all_at(&[0xab], 0x1000 + 0x2008).unwrap();
    let shared = file.try_clone().unwrap();
    let server = Scripted::start(move |came| {
        let bar0 = came.command == 5 && word(&came.payload, 8) == 0;
        // The second area does not start on a page.
        let areas = [0x2000, 0x1000, 0x1800, 0x100, 0, 0x800];
        bar0.then(|| Act::With(sparse(4000, &areas), shared.try_clone().unwrap()))
    });
    let device: Arc<dyn Backend> = Arc::new(server.connect().unwrap());
    let info = device.region_info(Region::Bar(0)).unwrap();
    assert_eq!(info.mappable, [0x2000..0x3000, 0..0x800]);
    let events = crate::events::Events::new("here".into()).unwrap();
    let bar = crate::mmio::Bar::open(&device, Region::Bar(0), &events, &Arc::default());
    let bar = bar.unwrap();
    assert_eq!(bar.read::<u8>(0x2008).unwrap(), 0xab);
    assert_eq!(bar.read::<u8>(0x1008).unwrap(), 0x5a);
    bar.write::<u32>(0x2ffc, 0x1234_5678).unwrap();
    let mut found = [0; 4];
    file.read_exact_at(&mut found, 0x3ffc).unwrap();
    assert_eq!(found, 0x1234_5678u32.to_le_bytes());
    // Nothing is posted past which registers are reached.
    bar.write::<u32>(0x1000, 1).unwrap();
    assert_eq!(server.came(10).last().unwrap().flags, 0);
    for other in [0..0x4000, 0x2000..0x2fff, 0x1800..0x1900] {
        let error = device.map_region(Region::Bar(0), other).unwrap_err();
        assert!(matches!(error, BackendError::OutOfBounds { .. }), "{error}");
    }
}

#[test]
fn an_area_whose_registers_would_lose_their_alignment_is_trapped() {
    // The sum of both is a page's start; only that of the area is.
    for start in [4, 0] {
        let server = Scripted::start(move |came| {
            let bar0 = came.command == 5 && word(&came.payload, 8) == 0;
            bar0.then(|| Act::With(sparse_at(100, 0xffc, &[start, 0x1000]), memfd(0x5000)))
        });
        let device: Arc<dyn Backend> = Arc::new(server.connect().unwrap());
        assert!(device.region_info(Region::Bar(0)).unwrap().mappable.is_empty(), "{start}");
    }
}

#[test]
fn a_mapping_behind_the_end_of_its_file_is_refused() {
    let server = Scripted::start(|came| {
        let bar0 = came.command == 5 && word(&came.payload, 8) == 0;
        bar0.then(|| Act::With(sparse(100, &[0, 0x1000]), memfd(0x1fff)))
    });
    let device = server.connect().unwrap();
    let error = device.map_region(Region::Bar(0), 0..0x1000).unwrap_err();
    assert!(error.to_string().contains("0x1000 of 8191 bytes"), "{error}");
}

#[test]
fn a_long_description_is_asked_for_again() {
    let server = Scripted::start(|came| {
        if came.command != 5 || word(&came.payload, 8) != 0 {
            return None;
        }
        let room = word(&came.payload, 0);
        let short = [words(&[5000, 3, 0, 0]), longs(&[0x4000, 0])].concat();
        Some(Act::Reply(if room < 5000 { short } else { sparse(5000, &[0, 0x1000]) }))
    });
    server.connect().unwrap();
    assert_eq!(server.came(5).iter().filter(|c| word(&c.payload, 8) == 0).count(), 2);
}

#[test]
fn errors_of_the_server_are_told_with_their_errno() {
    let server = Scripted::start(|came| match came.command {
        9 if word(&came.payload, 8) == 0 => Some(Act::Fail(5)),
        2 => Some(Act::Fail(17)),
        13 => Some(Act::Fail(0)),
        _ => None,
    });
    let device = server.connect().unwrap();
    let errno = |error: BackendError| match error {
        BackendError::Os { source, .. } => source.raw_os_error().unwrap(),
        other => panic!("{other}"),
    };
    let read = device.region_read(Region::Bar(0), 0, &mut [0; 4]);
    assert_eq!(errno(read.unwrap_err()), libc::EIO);
    assert_eq!(errno(device.reset().unwrap_err()), libc::EIO);
    let file = memfd(4096);
    let request = MapRequest {
        iova: 0x1000,
        host: NonNull::without_provenance(0x1000.try_into().unwrap()),
        len: 4096,
        access: DmaAccess::Read,
        file: Some((file.as_fd(), 0)),
    };
    // SAFETY: the server maps nothing.
    let refused = unsafe { device.iommu().map(&request) };
    assert_eq!(errno(refused.unwrap_err()), libc::EEXIST);
    assert_eq!(server.came(2)[0].fds, 1);
    // The connection goes on.
    device.region_read(Region::Config, 0, &mut [0; 4]).unwrap();
}

#[test]
fn a_server_is_given_no_more_mappings_than_it_takes() {
    let server = Scripted::start(|came| {
        let caps = br#"{"capabilities":{"max_dma_maps":2,"pgsizes":65536}}"#;
        (came.command == 1).then(|| Act::Reply([&[0; 4][..], caps, &[0]].concat()))
    });
    let device = server.connect().unwrap();
    let file = memfd(0x4_0000);
    let map = |iova, access| {
        let request = MapRequest {
            iova,
            host: NonNull::without_provenance(0x1_0000.try_into().unwrap()),
            len: 0x1_0000,
            access,
            file: Some((file.as_fd(), iova)),
        };
        // SAFETY: the server maps nothing.
        unsafe { device.iommu().map(&request) }
    };
    map(0x1_0000, DmaAccess::Read).unwrap();
    map(0x2_0000, DmaAccess::Write).unwrap();
    assert_eq!(device.iommu().info().unwrap().available_mappings, Some(0));
    let error = map(0x3_0000, DmaAccess::ReadWrite).unwrap_err();
    assert!(error.to_string().contains("all 2 mappings"), "{error}");
    device.iommu().unmap(0x1_0000, 0x1_0000).unwrap();
    map(0x3_0000, DmaAccess::ReadWrite).unwrap();
    let error = map(0x1000, DmaAccess::Read).unwrap_err();
    assert!(error.to_string().contains("no multiple of 65536"), "{error}");
    let sent = |flags, iova| [words(&[32, flags]), longs(&[iova, iova, 0x1_0000])].concat();
    let maps: Vec<_> = server.came(2).into_iter().map(|came| (came.payload, came.fds)).collect();
    assert_eq!(maps, [(sent(1, 0x1_0000), 1), (sent(2, 0x2_0000), 1), (sent(3, 0x3_0000), 1)]);
    let unmaps: Vec<_> = server.came(3).into_iter().map(|came| came.payload).collect();
    assert_eq!(unmaps, [[words(&[24, 0]), longs(&[0x1_0000, 0x1_0000])].concat()]);
}
