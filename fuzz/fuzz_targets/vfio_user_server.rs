//! Bytes of a client to the server of a model: that client may lose its connection, and the next
//! one is served.
#![no_main]

use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vfio_dma_fuzz::Bytes;
use vfio_dma_model::ioat::{Ioat, IoatConfig};
use vfio_dma_model::vfio_user::{Server, Stop};

/// How long the server may take for anything here.
const LIMIT: Duration = Duration::from_secs(8);

/// Size of a message's header in bytes.
const HEADER: usize = 16;

/// The server's socket: it serves for as long as the process lives.
static SOCKET: LazyLock<PathBuf> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory").keep();
    let path = directory.join("s");
    let server = Server::bind(&path).expect("a socket");
    std::thread::spawn(move || {
        let ioat = Ioat::new(IoatConfig::default()).expect("a model");
        let ended = server.serve(&ioat, &Stop::new().expect("an eventfd"));
        panic!("the server ended: {ended:?}");
    });
    path
});

fn connect() -> UnixStream {
    let stream = UnixStream::connect(&*SOCKET).expect("the server listens");
    stream.set_read_timeout(Some(LIMIT)).expect("a bound");
    stream.set_write_timeout(Some(LIMIT)).expect("a bound");
    stream
}

fn message(command: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(7u16.to_le_bytes());
    bytes.extend(command.to_le_bytes());
    bytes.extend(((HEADER + payload.len()) as u32).to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(payload);
    bytes
}

/// The version, negotiated.
fn greet(stream: &mut UnixStream) {
    stream.write_all(&message(1, &[0, 0, 1, 0, b'{', b'}', 0])).expect("the server reads");
    let mut header = [0; HEADER];
    stream.read_exact(&mut header).expect("the server replies");
    let size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
    stream.read_exact(&mut vec![0; size - HEADER]).expect("the whole reply");
}

/// Sends a message with descriptors; the server may have closed the connection.
fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> bool {
    let raw: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let sent = sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    );
    sent.is_ok()
}

fn descriptors(bytes: &mut Bytes<'_>) -> Vec<OwnedFd> {
    let count = bytes.u8() % 4;
    let one = |_| -> OwnedFd {
        if bytes.u8() & 1 == 0 {
            EventFd::new().expect("an eventfd").into()
        } else {
            let memory = memfd_create("fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd");
            let len = i64::from(bytes.u8()) << 12;
            nix::unistd::ftruncate(&memory, len).expect("memory of that size");
            memory
        }
    };
    (0..count).map(one).collect()
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let mut stream = connect();
    let greeted = bytes.u8() & 7 != 0;
    if greeted {
        greet(&mut stream);
    }
    while !bytes.is_empty() {
        let (shape, len) = (bytes.u8(), usize::from(bytes.u8()));
        let sent = match shape {
            // No message at all.
            0..=15 => send(&stream, bytes.take(len), &[]),
            // A message whose header is right.
            _ => {
                let command = u16::from(shape % 17);
                let descriptors =
                    if shape & 64 == 0 { Vec::new() } else { descriptors(&mut bytes) };
                send(&stream, &message(command, bytes.take(len)), &descriptors)
            }
        };
        if !sent {
            break;
        }
    }
    stream.shutdown(std::net::Shutdown::Write).ok();
    let mut replies = Vec::new();
    match stream.read_to_end(&mut replies) {
        Ok(_) => {}
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(error) => panic!("the server does not end the connection: {error}"),
    }
    // The next client is served.
    let mut next = connect();
    greet(&mut next);
});
