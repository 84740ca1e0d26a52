//! The client's side of the protocol, written from the specification alone, and a function
//! to serve: just enough to see what arrives.

use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use std::os::fd::AsRawFd;
use std::sync::Arc;

use vfio_dma::backend::{IrqKind, Region};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::function::{Event, PciFunction};
use crate::memory::DmaMap;
use crate::vfio_user::{Ended, Server, Stop};

/// Registers that remember what is written, and counts of everything else.
#[derive(Default)]
pub(super) struct Probe {
    pub(super) memory: DmaMap,
    pub(super) bar0: Mutex<Vec<u8>>,
    pub(super) accesses: Mutex<Vec<(char, u64, usize)>>,
    pub(super) events: Mutex<Vec<Option<Event>>>,
    pub(super) irq_calls: Mutex<Vec<String>>,
    pub(super) resets: AtomicU32,
    pub(super) exit: AtomicBool,
}

pub(super) const BAR0_SIZE: usize = 64;

impl Probe {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Probe {
            bar0: Mutex::new(vec![0; BAR0_SIZE]),
            events: Mutex::new(vec![None; 4]),
            ..Probe::default()
        })
    }

    fn note(&self, call: String) {
        self.irq_calls.lock().unwrap().push(call);
    }
}

impl PciFunction for Probe {
    fn region_size(&self, region: Region) -> u64 {
        match region {
            Region::Bar(0) => BAR0_SIZE as u64,
            Region::Config => 256,
            _ => 0,
        }
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) {
        self.accesses.lock().unwrap().push(('r', offset, data.len()));
        let offset = offset as usize;
        match region {
            Region::Bar(0) => {
                data.copy_from_slice(&self.bar0.lock().unwrap()[offset..][..data.len()])
            }
            _ => data.fill(offset as u8),
        }
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) {
        self.accesses.lock().unwrap().push(('w', offset, data.len()));
        if region == Region::Bar(0) {
            self.bar0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        }
    }

    fn irq_count(&self, kind: IrqKind) -> u32 {
        match kind {
            IrqKind::MsiX => 4,
            IrqKind::Intx => 1,
            IrqKind::Msi => 0,
        }
    }

    fn irq_connect(&self, _: IrqKind, start: u32, events: &[Option<Event>]) {
        self.events.lock().unwrap()[start as usize..][..events.len()].clone_from_slice(events);
    }

    fn irq_disconnect(&self, kind: IrqKind) {
        if kind == IrqKind::MsiX {
            self.events.lock().unwrap().fill(None);
        }
    }

    fn irq_set_masked(&self, kind: IrqKind, vector: u32, masked: bool) {
        self.note(format!("{kind} {vector} masked={masked}"));
    }

    fn irq_trigger(&self, kind: IrqKind, vector: u32) {
        self.note(format!("{kind} {vector} triggered"));
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }

    fn memory(&self) -> &DmaMap {
        &self.memory
    }

    fn wants_exit(&self) -> bool {
        self.exit.load(Ordering::SeqCst)
    }
}

/// A server in a thread, with its socket in a directory of its own.
pub(super) struct Running {
    pub(super) probe: Arc<Probe>,
    pub(super) path: PathBuf,
    pub(super) stop: Stop,
    thread: Option<JoinHandle<Ended>>,
    _directory: tempfile::TempDir,
}

impl Running {
    pub(super) fn start() -> Running {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.sock");
        let server = Server::bind(&path).unwrap();
        let (probe, stop) = (Probe::new(), Stop::new().unwrap());
        let thread = {
            let (probe, stop) = (probe.clone(), stop.clone());
            std::thread::spawn(move || server.serve(&*probe, &stop).unwrap())
        };
        Running { probe, path, stop, thread: Some(thread), _directory: directory }
    }

    /// Stops the server, and says how it ended.
    pub(super) fn stop(self) -> Ended {
        self.stop.stop();
        self.join()
    }

    /// Waits for the server to end by itself.
    pub(super) fn join(mut self) -> Ended {
        self.thread.take().unwrap().join().unwrap()
    }

    pub(super) fn connect(&self) -> Client {
        let mut client = Client::connect(&self.path);
        client.greet();
        client
    }

    /// Waits until the server has cleaned up after `sessions` clients.
    pub(super) fn await_resets(&self, sessions: u32) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.probe.resets.load(Ordering::SeqCst) < sessions {
            assert!(Instant::now() < deadline, "the server does not clean up after its client");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                assert_eq!(ended.unwrap(), Ended::Stopped);
            }
        }
    }
}

/// A reply: its error, or 0, and its payload.
#[derive(Debug, PartialEq)]
pub(super) struct Reply {
    pub(super) error: u32,
    pub(super) payload: Vec<u8>,
}

pub(super) struct Client {
    pub(super) socket: UnixStream,
    next_id: u16,
}

/// A message as bytes.
pub(super) fn message(id: u16, command: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&id.to_ne_bytes());
    bytes.extend_from_slice(&command.to_ne_bytes());
    bytes.extend_from_slice(&(16 + payload.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(payload);
    bytes
}

/// What QEMU 11 proposes.
pub(super) const QEMU_CAPABILITIES: &str = concat!(
    r#"{"capabilities": {"migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "#,
    r#""max_msg_fds": 16, "max_data_xfer_size": 1048576, "pgsizes": 4096, "#,
    r#""max_dma_maps": 65535, "write_multiple": true}}"#,
    "\0"
);

impl Client {
    pub(super) fn connect(path: &Path) -> Client {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        Client { socket, next_id: 1 }
    }

    pub(super) fn greet(&mut self) -> Vec<u8> {
        let mut payload = vec![0; 4];
        payload.extend_from_slice(QEMU_CAPABILITIES.as_bytes());
        let reply = self.call(1, &payload);
        assert_eq!(reply.error, 0);
        assert!(reply.payload.len() <= payload.len(), "QEMU has room for as much as it sent");
        reply.payload
    }

    pub(super) fn send(&mut self, bytes: &[u8], fds: &[RawFd]) {
        if fds.is_empty() {
            self.socket.write_all(bytes).unwrap();
        } else {
            assert_eq!(self.socket.send_with_fds(&[bytes], fds).unwrap(), bytes.len());
        }
    }

    pub(super) fn call(&mut self, command: u16, payload: &[u8]) -> Reply {
        self.call_with(command, payload, &[])
    }

    pub(super) fn call_with(
        &mut self,
        command: u16,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Reply {
        let id = self.next_id;
        self.next_id += 1;
        let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        self.send(&message(id, command, 0, payload), &fds);
        let (reply_id, reply_command, reply) = self.reply();
        assert_eq!((reply_id, reply_command), (id, command));
        reply
    }

    pub(super) fn reply(&mut self) -> (u16, u16, Reply) {
        let mut header = [0; 16];
        self.socket.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let half = |at: usize| u16::from_ne_bytes(header[at..at + 2].try_into().unwrap());
        let mut payload = vec![0; word(4) as usize - 16];
        self.socket.read_exact(&mut payload).unwrap();
        let error = match word(8) {
            0x01 => 0,
            0x21 => {
                assert!(word(12) != 0 && payload.is_empty(), "an error reply is a header");
                word(12)
            }
            flags => panic!("flags {flags:#x} in a reply"),
        };
        (half(0), half(2), Reply { error, payload })
    }

    /// Whether the server closes the connection; replies before that are passed over.
    pub(super) fn is_closed(&mut self) -> bool {
        let mut bytes = Vec::new();
        self.socket.read_to_end(&mut bytes).is_ok()
    }

    pub(super) fn read(&mut self, region: u32, offset: u64, count: u32) -> Reply {
        self.call(9, &access(region, offset, count))
    }

    pub(super) fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Reply {
        let mut payload = access(region, offset, data.len() as u32);
        payload.extend_from_slice(data);
        self.call(10, &payload)
    }

    pub(super) fn map(
        &mut self,
        address: u64,
        size: u64,
        fd: Option<(BorrowedFd<'_>, u64)>,
        flags: u32,
    ) -> u32 {
        let offset = fd.map_or(0, |(_, offset)| offset);
        let payload = [words(&[32, flags]), longs(&[offset, address, size])].concat();
        let fds: Vec<_> = fd.iter().map(|(fd, _)| *fd).collect();
        let reply = self.call_with(2, &payload, &fds);
        assert!(reply.payload.is_empty());
        reply.error
    }

    pub(super) fn unmap(&mut self, address: u64, size: u64) -> u32 {
        let payload = [words(&[24, 0]), longs(&[address, size])].concat();
        let reply = self.call(3, &payload);
        assert!(reply.error != 0 || reply.payload == payload, "the request comes back");
        reply.error
    }

    pub(super) fn set_irqs(
        &mut self,
        flags: u32,
        index: u32,
        start: u32,
        count: u32,
        data: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> u32 {
        let size = 20 + data.len() as u32;
        let payload = [&words(&[size, flags, index, start, count])[..], data].concat();
        self.call_with(8, &payload, fds).error
    }
}

pub(super) fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

pub(super) fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_ne_bytes()).collect()
}

pub(super) fn access(region: u32, offset: u64, count: u32) -> Vec<u8> {
    [longs(&[offset]), words(&[region, count])].concat()
}
