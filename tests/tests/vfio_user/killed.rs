//! A server that ends, or is killed, with work in hand.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use vfio_dma_model::ioat::Ioat;
use vfio_dma_model::vfio_user::{Server, Stop};

use super::*;

/// A process that serves the model, killed when dropped.
pub(super) struct Process(Child);

impl Process {
    /// One in which the first completion is so late that it can be killed before that.
    fn start(socket: &Path) -> Process {
        Process::start_with(socket, "late-completion=30s@1")
    }

    pub(super) fn start_with(socket: &Path, faults: &str) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "killed::serves_the_model_in_a_process_of_its_own"]);
        command.env("VFIO_USER_SOCKET", socket).env("VFIO_USER_FAULTS", faults);
        command.stdout(Stdio::null());
        let process = Process(command.spawn().unwrap());
        wait("the process listens", || UnixStream::connect(socket).is_ok());
        process
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
#[ignore = "the server of other tests: they start it as a process, and kill it"]
fn serves_the_model_in_a_process_of_its_own() {
    let socket = std::env::var_os("VFIO_USER_SOCKET").expect("the parent names the socket");
    let faults = std::env::var("VFIO_USER_FAULTS").unwrap_or_default().parse().unwrap();
    let ioat = Ioat::new(IoatConfig { faults, ..IoatConfig::default() }).unwrap();
    let server = Server::bind(socket).unwrap();
    server.serve(&ioat, &Stop::new().unwrap()).unwrap();
}

#[test]
fn a_server_that_is_killed_is_noticed_and_leaves_the_driver_whole() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("ioat");
    let mut process = Process::start(&socket);
    let mut device = open(&socket);
    let mut channel = Channel::new(&device);
    let vectors = device.vectors(IrqKind::MsiX, 1).unwrap();
    let pattern = Pattern::new(9);
    let mut source = buffer(&device, 1 << 20, Direction::ToDevice);
    let target = buffer(&device, 1 << 20, Direction::FromDevice);
    pattern.fill(&mut source, 0, 1 << 20, 0).unwrap();
    channel.start(iova(&source), iova(&target), 1 << 20);
    // The doorbell has arrived: what is read later was carried out later.
    channel.bar.read::<u16>(0x86).unwrap();
    process.kill();

    let start = Instant::now();
    let error = device.config().vendor_id().unwrap_err();
    assert!(error.to_string().contains("is gone: "), "{error}");
    let error = channel.bar.write::<u16>(0x86, 2).unwrap_err();
    assert!(matches!(error, MmioError::Backend(BackendError::Gone { .. })), "{error}");
    assert!(is_gone(&device.reset().unwrap_err()));
    assert!(is_gone(&device.quiesce().unwrap_err()));
    let request = Request::new(4096, Direction::ToDevice);
    let error = device.allocate(&request).unwrap_err();
    assert!(error.to_string().contains("is gone: "), "{error}");
    assert_eq!(channel.word(), 0, "no completion is made up");
    pattern.check(&source, 0, 1 << 20, 0).unwrap().unwrap();
    drop((vectors, source, target, channel, device));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());

    let error = VfioUser::connect(&socket).unwrap_err();
    assert!(error.to_string().contains("no server listens"), "{error}");
    std::fs::remove_file(&socket).unwrap();
    let _next = Process::start(&socket);
    assert_eq!(open(&socket).config().vendor_id().unwrap(), 0x8086);
}

#[test]
fn a_server_that_ends_with_a_descriptor_in_hand_is_gone() {
    let (_served, socket) = serve("exit@1");
    let device = open(&socket);
    let mut channel = Channel::new(&device);
    let source = buffer(&device, 4096, Direction::ToDevice);
    let target = buffer(&device, 4096, Direction::FromDevice);
    channel.start(iova(&source), iova(&target), 4096);
    wait("the server is gone", || match channel.bar.read::<u64>(0x88) {
        Ok(_) => false,
        Err(error) => {
            assert!(matches!(error, MmioError::Backend(BackendError::Gone { .. })), "{error}");
            true
        }
    });
    assert_eq!(channel.word(), 0);
}
