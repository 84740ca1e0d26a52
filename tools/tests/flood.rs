//! What a client can have the model's server log is limited, and nobody has to read it.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::backend::{Backend, Region};

const WRITES: u64 = 20_000;
/// Of a pipe that nobody reads the kernel holds 64 KiB.
const MOST: usize = 16 << 10;

#[test]
fn refused_accesses_without_end_are_a_few_lines() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("model");
    let mut server = Command::new(env!("CARGO_BIN_EXE_vfio-dma"))
        .arg("model")
        .arg("--socket")
        .arg(&socket)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while !socket.exists() {
        assert!(begin.elapsed() < Duration::from_secs(10), "the server does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let client = VfioUser::connect(&socket).unwrap();
    let begin = Instant::now();
    for n in 0..WRITES {
        // Nothing is there.
        client.region_write(Region::Bar(0), 0x1f00 + 8 * (n % 16), &[0; 4]).unwrap();
    }
    // It answers, though nobody has read a line.
    let mut id = [0; 2];
    client.region_read(Region::Config, 0, &mut id).unwrap();
    assert_eq!(id, [0x86, 0x80]);
    println!("{WRITES} writes in {:?}", begin.elapsed());
    drop(client);
    server.kill().unwrap();
    server.wait().unwrap();
    let mut log = String::new();
    server.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    assert!(log.contains("illegal write"), "{log}");
    assert!(log.len() < MOST, "{} bytes of log: {}", log.len(), &log[..2000]);
}
