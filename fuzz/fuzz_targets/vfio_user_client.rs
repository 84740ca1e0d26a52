//! Bytes of a hostile server to the driver's end of a socket: errors within the bound, no panic.
#![no_main]

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::backend::{Backend, IrqKind, Region};
use vfio_dma::device::Device;
use vfio_dma::dma::{Direction, Request};
use vfio_dma_fuzz::Bytes;

/// How long the driver waits for a reply.
const PATIENCE: Duration = Duration::from_millis(20);

static SOCKET: LazyLock<(UnixListener, PathBuf)> = LazyLock::new(|| {
    let path = tempfile::tempdir().expect("a directory").keep().join("s");
    (UnixListener::bind(&path).expect("a socket"), path)
});

/// Serves one client: well for some requests, and then by the bytes.
fn serve(mut stream: UnixStream, data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let good = bytes.u8() % 40;
    for number in 0u8.. {
        let mut header = [0; 16];
        if stream.read_exact(&mut header).is_err() {
            return;
        }
        let size = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let mut payload = vec![0; size as usize - 16];
        if stream.read_exact(&mut payload).is_err() {
            return;
        }
        let reply = |payload: &[u8]| {
            let size = (16 + payload.len() as u32).to_le_bytes();
            [&header[..4], &size, &[1, 0, 0, 0, 0, 0, 0, 0], payload].concat()
        };
        let word = |at: usize| payload.get(at).copied().unwrap_or(0);
        let sound = || match header[2] {
            1 => reply(&[0; 4]),
            4 => reply(&[16, 3, 9, 5].map(u32::to_le_bytes).concat()),
            5 => {
                let words = [32, 3, u32::from(word(8)), 0, 4096, 0, 0, 0];
                reply(&words.map(u32::to_le_bytes).concat())
            }
            7 => reply(&[16, 1, u32::from(word(8)), 1].map(u32::to_le_bytes).concat()),
            9 if payload.len() >= 16 => {
                reply(&[&payload[..16], &vec![0x86; word(12).into()]].concat())
            }
            _ => reply(&payload[..payload.len().min(16)]),
        };
        let sent = if number < good {
            sound()
        } else if bytes.is_empty() {
            return;
        } else {
            match bytes.u8() {
                0..=31 => {
                    let len = usize::from(bytes.u8());
                    bytes.take(len).to_vec()
                }
                32..=127 => {
                    let len = usize::from(bytes.u8());
                    reply(bytes.take(len))
                }
                // Nearly right: a few bytes differ.
                changes => {
                    let mut sent = sound();
                    for _ in 0..changes % 4 {
                        let at = usize::from(bytes.u8()) % sent.len();
                        sent[at] = bytes.u8();
                    }
                    sent
                }
            }
        };
        if stream.write_all(&sent).is_err() {
            return;
        }
    }
}

fn drive() {
    let Ok(backend) = VfioUser::connect_within(&SOCKET.1, PATIENCE) else { return };
    let event = tempfile::tempfile().expect("a file");
    let events = [event.as_fd()];
    // Whether these succeed is the server's choice; that they end is not.
    let _ = backend.irq_enable(IrqKind::MsiX, &events);
    let _ = backend.region_write(Region::Bar(0), 0, &[0; 4]);
    let _ = backend.region_read(Region::Bar(0), 0, &mut [0; 100]);
    let _ = backend.reset();
    let Ok(mut device) = Device::open(backend) else { return };
    let _ = device.capabilities();
    if let Ok(bar) = device.bar(0) {
        let _ = bar.read::<u32>(0);
        let _ = bar.read::<u64>(bar.size().saturating_sub(8));
        let _ = bar.write::<u8>(bar.size(), 0);
    }
    let buffer = device.allocate(&Request::new(4096, Direction::Bidirectional));
    let _ = device.quiesce();
    drop(buffer);
}

fuzz_target!(|data: &[u8]| {
    let (listener, _) = &*SOCKET;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            if let Ok((stream, _)) = listener.accept() {
                serve(stream, data);
            }
        });
        drive();
        // A scope's end does not wait for a thread's own memory, which then looks like a leak.
        let _ = server.join();
    });
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
});
