//! The driver against a server that replies with nonsense.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::backend::{Backend, IrqKind, Region};
use vfio_dma::device::Device;
use vfio_dma::dma::{Direction, Request};

/// What a hostile server sends for a request: nonsense, or a reply that is nearly right.
#[derive(Debug, Clone)]
enum Reply {
    Noise(Vec<u8>),
    Nearly { payload: Vec<u8>, changes: Vec<(prop::sample::Index, u8)>, cut: bool },
}

fn reply() -> impl Strategy<Value = Reply> {
    let change = (any::<prop::sample::Index>(), any::<u8>());
    let changes = prop::collection::vec(change, 0..3);
    // Any reply begins with one of these words or so.
    let word = prop_oneof![Just(0u32), Just(3), Just(9), Just(16), Just(32), any::<u32>()];
    let payload = prop::collection::vec(word, 0..12)
        .prop_map(|words| words.into_iter().flat_map(u32::to_ne_bytes).collect());
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Reply::Noise),
        8 => (payload, changes, prop::bool::weighted(0.05))
            .prop_map(|(payload, changes, cut)| Reply::Nearly { payload, changes, cut }),
    ]
}

/// Greets well, echoes up to `good` requests in a way that passes for a reply, and then
/// sends the replies of the script.
fn hostile(listener: &UnixListener, good: usize, script: &[Reply]) {
    let (mut socket, _) = listener.accept().unwrap();
    let mut script = script.iter();
    for n in 0.. {
        let mut header = [0; 16];
        if socket.read_exact(&mut header).is_err() {
            return;
        }
        let size = u32::from_ne_bytes(header[4..8].try_into().unwrap());
        let mut payload = vec![0; size as usize - 16];
        if socket.read_exact(&mut payload).is_err() {
            return;
        }
        let reply = |payload: &[u8]| {
            let size = (16 + payload.len() as u32).to_ne_bytes();
            [&header[..4], &size, &[1, 0, 0, 0, 0, 0, 0, 0], payload].concat()
        };
        let bytes = if n < good {
            match header[2] {
                1 => reply(&[0; 4]),
                4 => reply(&[16, 3, 9, 5].map(u32::to_ne_bytes).concat()),
                5 => {
                    let words = [32, 3, u32::from(payload[8]), 0, 4096, 0, 0, 0];
                    reply(&words.map(u32::to_ne_bytes).concat())
                }
                7 => reply(&[16, 1, u32::from(payload[8]), 1].map(u32::to_ne_bytes).concat()),
                9 => reply(&[&payload[..16], &vec![0x86; payload[12].into()]].concat()),
                _ => reply(&payload[..payload.len().min(16)]),
            }
        } else {
            match script.next() {
                None => return,
                Some(Reply::Noise(noise)) => noise.clone(),
                Some(Reply::Nearly { payload, changes, cut }) => {
                    let mut bytes = reply(payload);
                    for (at, value) in changes {
                        let at = at.index(bytes.len());
                        bytes[at] = *value;
                    }
                    if *cut {
                        bytes.pop();
                    }
                    bytes
                }
            }
        };
        if socket.write_all(&bytes).is_err() {
            return;
        }
    }
}

#[test]
fn the_driver_survives_whatever_a_server_answers() {
    const PATIENCE: Duration = Duration::from_millis(50);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let script = prop::collection::vec(reply(), 0..8);
    runner
        .run(&(0..40usize, script), |(good, script)| {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("s");
            let listener = UnixListener::bind(&socket).unwrap();
            let server = std::thread::spawn(move || hostile(&listener, good, &script));
            let start = Instant::now();
            if let Ok(backend) = VfioUser::connect_within(&socket, PATIENCE) {
                let event = tempfile::tempfile().unwrap();
                let events = [event.as_fd()];
                // Whether these succeed is the server's choice; that they end is not.
                let _ = backend.irq_enable(IrqKind::MsiX, &events);
                let _ = backend.region_write(Region::Bar(0), 0, &[0; 4]);
                let _ = backend.region_read(Region::Bar(0), 0, &mut [0; 100]);
                let _ = backend.reset();
                if let Ok(mut device) = Device::open(backend) {
                    let request = Request::new(4096, Direction::ToDevice);
                    let _ = device.allocate(&request);
                    let _ = device.capabilities();
                    let _ = device.quiesce();
                }
            }
            prop_assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
            prop_assert!(server.join().is_ok(), "the server of the test panicked");
            Ok(())
        })
        .unwrap();
}
