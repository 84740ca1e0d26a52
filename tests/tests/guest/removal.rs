//! A function that is taken away while it is in use: the kernel's unbind returns, everything
//! in flight ends exactly once, and the buffers come back.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vfio_dma::backend::vfio::Access;
use vfio_dma::backend::{BackendError, IrqKind};
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Config, Edu};
use vfio_dma::devices::ioat::{self, Ioat, IoatError, SharedChannel, TransferError, WhenFull};
use vfio_dma::devices::nvme::{self, Nvme};
use vfio_dma::dma::{Direction, Request};
use vfio_dma::events::Event;
use vfio_dma::irq::IrqError;
use vfio_dma::mmio::MmioError;
use vfio_dma::pci::Address;
use vfio_dma_model::ioat::IoatConfig;
use vfio_dma_tests::{Machine, address};
use vfio_dma_tools::vm::VmConfig;

use crate::ioatdma;
use crate::support::{bind, edu_behind_port, open, open_through};

/// The longest that the kernel may take to get a function back.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);

/// A write to a file of sysfs, in a process of its own: the kernel may keep it waiting.
pub(crate) struct Write {
    child: Child,
    begin: Instant,
}

impl Write {
    fn begin(path: &str, text: &str) -> Write {
        let child =
            Command::new("sh").args(["-c", r#"echo "$0" > "$1""#, text, path]).spawn().unwrap();
        Write { child, begin: Instant::now() }
    }

    /// Waits until the kernel is done; how long that took.
    pub(crate) fn end(mut self) -> Duration {
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return self.begin.elapsed();
            }
            assert!(self.begin.elapsed() < 5 * LIMIT, "the kernel does not come back");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub(crate) fn unbind(address: Address) -> Write {
    Write::begin("/sys/bus/pci/drivers/vfio-pci/unbind", &address.to_string())
}

fn remove(address: Address) -> Write {
    Write::begin(&format!("/sys/bus/pci/devices/{address}/remove"), "1")
}

/// Has the kernel find the function again that was removed.
fn rescan(address: Address) {
    Write::begin("/sys/bus/pci/rescan", "1").end();
    assert!(PathBuf::from(format!("/sys/bus/pci/devices/{address}")).exists());
}

/// The command line in mid-work.
struct Working(Child);

impl Working {
    fn begin(args: &[&str]) -> Working {
        let child = Command::new("/bin/vfio-dma")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Until it moves data.
        std::thread::sleep(Duration::from_secs(3));
        Working(child)
    }

    /// Its exit status and what it complained of.
    fn end(mut self) -> (Option<i32>, String) {
        let begin = Instant::now();
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            if begin.elapsed() > 2 * LIMIT {
                self.0.kill().unwrap();
                let _ = self.0.wait();
                panic!("the command does not end");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut said = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.code(), said)
    }
}

pub(crate) fn unbind_under_a_run_returns() {
    bind(address(0));
    let run = Working::begin(&["run", "--size", "1M", &address(0).to_string()]);
    let took = unbind(address(0)).end();
    let (status, said) = run.end();
    assert!(took < LIMIT, "{took:?}: {said}");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("is to be removed"), "{said}");
}

pub(crate) fn sysfs_remove_under_a_bench_returns() {
    let edu = edu_behind_port();
    bind(edu);
    let bench = Working::begin(&["bench", &edu.to_string()]);
    let took = remove(edu).end();
    let (status, said) = bench.end();
    rescan(edu);
    assert!(took < LIMIT, "{took:?}: {said}");
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("is to be removed"), "{said}");
}

pub(crate) fn sigterm_ends_a_bench() {
    bind(address(0));
    let bench = Working::begin(&["bench", &address(0).to_string()]);
    kill(Pid::from_raw(bench.0.id() as i32), Signal::SIGTERM).unwrap();
    let begin = Instant::now();
    let (_, said) = bench.end();
    assert!(begin.elapsed() < LIMIT, "{:?}: {said}", begin.elapsed());
}

/// A program that holds everything and looks at nothing does not keep the kernel waiting, and
/// finds out what happened when it looks.
fn unbind_under_a_sleeper(device: Device, function: Address) {
    let mut edu = Edu::probe(device, Config::default()).unwrap();
    let bar = edu.device().bar(0).unwrap();
    let events = edu.device().events().clone();
    let space = edu.device().space().clone();
    let buffer = |edu: &Edu| edu.allocate(&Request::new(9000, Direction::Bidirectional)).unwrap();
    let (source, target) = (buffer(&edu), buffer(&edu));
    let took = unbind(function).end();
    assert!(took < LIMIT, "{took:?}");
    assert_eq!(events.pending(), Some(Event::Removal));
    let failed = bar.read::<u32>(0).unwrap_err();
    assert!(matches!(failed, MmioError::Backend(BackendError::ToBeRemoved { .. })), "{failed}");
    bar.write(0, 1u32).unwrap_err();
    let failed = edu.copy(source, 0, target, 0, 9000).unwrap_err();
    let removed = "is to be removed";
    assert!(failed.to_string().contains(removed), "{failed}");
    assert!(failed.buffers.is_some(), "nothing began");
    drop(failed);
    assert_eq!(space.usage().mappings, 0, "all is unmapped");
    drop((edu, bar));
    // Nothing of the former opening is in the way.
    drop(open(function));
}

pub(crate) fn unbind_under_a_sleeper_returns() {
    unbind_under_a_sleeper(open(address(0)), address(0));
}

pub(crate) fn unbind_through_iommufd_returns() {
    unbind_under_a_sleeper(open_through(Access::Iommufd, address(0)), address(0));
}

/// An engine that reports nothing for as long as a removal may take, and goes no further
/// meanwhile: what is submitted is in flight when the kernel wants the function back.
pub(crate) fn slow_ioat() -> Machine {
    let faults = "late-completion=10s".parse().expect("the grammar's own example");
    let model = IoatConfig { faults, ..IoatConfig::default() };
    ioatdma::machine(VmConfig::default(), vec![model])
}

/// The engine has 64 transfers, none of which is done: each ends once, with its buffers, the
/// kernel's unbind returns, and the model's record, which the host checks, has no access to memory
/// that is not mapped any more.
pub(crate) fn unbind_with_64_transfers_in_flight_ends_each_once() {
    // Of buffers that are in use the kernel unmaps page by page, and each page is a round trip to
    // the model of an emulated processor: this is about transfers, not about that.
    const LEN: usize = 16 << 10;
    for round in 0..3 {
        let ioat = Ioat::probe(open(address(0)), ioat::Config::default()).unwrap();
        let space = ioat.space().clone();
        let place = |direction| ioat.allocate(&Request::new(LEN, direction)).unwrap();
        let mut channel = ioat.channel(0).unwrap();
        let tables: Vec<_> =
            (0..64).map(|_| (place(Direction::ToDevice), place(Direction::FromDevice))).collect();
        let more = (place(Direction::ToDevice), place(Direction::FromDevice));
        let mut removed = 0;
        let writing;
        if round < 2 {
            let tokens: Vec<_> = tables
                .into_iter()
                .map(|(source, target)| {
                    channel.copy(source.into(), target.into(), WhenFull::Return).unwrap()
                })
                .collect();
            channel.issue().unwrap();
            writing = unbind(address(0));
            ioat.device_events().wait(LIMIT).unwrap().expect("it asks");
            for token in tokens {
                let finished = channel.wait(token, LIMIT).unwrap();
                assert!(finished.tables.is_some(), "the buffers come back");
                match finished.result {
                    Err(TransferError::Removed) => removed += 1,
                    other => panic!("it was in flight: {other:?}"),
                }
                assert!(matches!(channel.take(token), Err(IoatError::NoSuchTransfer)), "once");
            }
            let refused = channel.copy(more.0.into(), more.1.into(), WhenFull::Return);
            let token = refused
                .map_err(|refused| refused.error)
                .and_then(|token| channel.issue().map(|()| token));
            assert!(token.unwrap_err().to_string().contains("is to be removed"));
            drop(channel);
        } else {
            let shared = SharedChannel::new(channel).unwrap();
            let completions: Vec<_> = tables
                .into_iter()
                .map(|(source, target)| shared.copy(source.into(), target.into()).unwrap())
                .collect();
            writing = unbind(address(0));
            for completion in completions {
                let finished = completion.wait(2 * LIMIT).unwrap();
                assert!(finished.tables.is_some(), "the buffers come back");
                match finished.result {
                    // The engine has moved the bytes of the first, and may tell when it is stopped.
                    Ok(()) => {}
                    Err(TransferError::Removed) => removed += 1,
                    Err(other) => panic!("{other}"),
                }
            }
            drop((shared, more));
        }
        drop(ioat);
        let took = writing.end();
        println!("round {round}: {removed} of 64 removed, unbind took {took:?}");
        assert!(removed >= 63, "they were in flight");
        assert!(took < LIMIT, "{took:?}");
        assert_eq!(space.usage().mappings, 0, "all is unmapped");
    }
}

/// QEMU's monitor, which the guest reaches through a serial card of its own.
pub(crate) fn monitor(command: &str) {
    let card = format!("/{}/", address(0));
    let ports = std::fs::read_dir("/sys/class/tty").unwrap().map(|port| port.unwrap());
    let of_card = |port: &std::fs::DirEntry| {
        std::fs::read_link(port.path()).is_ok_and(|link| link.display().to_string().contains(&card))
    };
    let port = ports.into_iter().find(of_card).expect("the card has a port");
    let tty = format!("/dev/{}", port.file_name().display());
    // What the monitor said before was echoed to it as the beginning of a line.
    let script = r#"exec 3<>"$0"; stty raw -echo <&3; echo >&3; sleep 1; echo "$1" >&3; sleep 1"#;
    let status = Command::new("sh").args(["-c", script, &tty, command]).status().unwrap();
    assert!(status.success(), "{status}");
}

/// A guest whose QEMU takes commands from it, with a function at 0000:01:00.0, behind a root
/// port.
pub(crate) fn behind_port(function: &str) -> VmConfig {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let socket = format!("path=vfio-dma-monitor-{}-{number},abstract=on", std::process::id());
    let own = [
        "-chardev".into(),
        format!("socket,id=monitor,{socket},server=on,wait=off"),
        "-mon".into(),
        "chardev=monitor,mode=readline".into(),
        "-chardev".into(),
        format!("socket,id=guest,{socket}"),
        "-device".into(),
        format!("{function},id=victim,bus=first"),
    ];
    let devices = ["pci-serial,chardev=guest", "pcie-root-port,id=first,chassis=1"];
    VmConfig {
        devices: devices.map(Into::into).into(),
        qemu_args: own.map(Into::into).into(),
        kernel_args: vec!["8250.nr_uarts=8".into()],
        ..VmConfig::default()
    }
}

pub(crate) fn an_unplugged_function_ends_its_transfer() {
    let function = edu_behind_port();
    let mut edu = Edu::probe(open(function), Config::default()).unwrap();
    let events = edu.device().events().clone();
    let buffer =
        |edu: &Edu| edu.allocate(&Request::new(1 << 20, Direction::Bidirectional)).unwrap();
    let (source, target) = (buffer(&edu), buffer(&edu));
    let transfer = edu.copy(source, 0, target, 0, 1 << 20).unwrap();
    monitor("device_del victim");
    // 51 s by itself; the slot's button is answered after 5 s.
    let begin = Instant::now();
    let failed = transfer.wait().unwrap_err();
    println!("{failed} after {:?}", begin.elapsed());
    assert_eq!(events.pending(), Some(Event::Removal), "{failed}");
    assert!(failed.to_string().contains("is to be removed"), "{failed}");
    assert!(failed.buffers.is_some(), "the buffers come back");
    let asked = Instant::now();
    drop((failed, edu));
    while PathBuf::from(format!("/sys/bus/pci/devices/{function}")).exists() {
        assert!(asked.elapsed() < LIMIT, "it is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Has a bridge pass messages of errors on, which is left to the firmware: SERR# Enable in Bridge
/// Control (PCI-to-PCI Bridge 1.2, 3.2.5.18).
fn forward_errors(bridge: Address) {
    const CONTROL: u64 = 0x3e;
    let config = format!("/sys/bus/pci/devices/{bridge}/config");
    let config = File::options().read(true).write(true).open(config).unwrap();
    let mut control = [0; 2];
    config.read_exact_at(&mut control, CONTROL).unwrap();
    control[0] |= 1 << 1;
    config.write_all_at(&control, CONTROL).unwrap();
}

/// edu behind a port whose own interrupt tells the kernel of what is plugged and unplugged, not the
/// firmware.
pub(crate) fn behind_hot_plug_port() -> VmConfig {
    let mut config = behind_port("edu");
    let native = ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"];
    config.qemu_args.extend(native.map(Into::into));
    config
}

/// Has the function below a port leave without the kernel, as when a card is pulled: QEMU takes it
/// away when the power of its slot is switched off (Slot Control, PCI Express Base 4.0, 7.5.3.10).
/// The power is on again before the kernel looks.
fn pull_out(port: Address) {
    const POWER_OFF: u16 = 1 << 10;
    const INDICATOR_OFF: u16 = 3 << 8;
    const INDICATOR_ON: u16 = 1 << 8;
    let config = vfio_dma::host::Sysfs::new().config(port).unwrap();
    let capabilities = vfio_dma::pci::Capabilities::read(&config).unwrap();
    let (offset, _) = capabilities.pci_express().expect("a port");
    let at = u64::from(offset) + 0x18;
    let path = format!("/sys/bus/pci/devices/{port}/config");
    let config = File::options().read(true).write(true).open(path).unwrap();
    let mut control = [0; 2];
    config.read_exact_at(&mut control, at).unwrap();
    let on = u16::from_le_bytes(control) & !(POWER_OFF | INDICATOR_OFF);
    let write = |control: u16| config.write_all_at(&control.to_le_bytes(), at).unwrap();
    write(on | INDICATOR_ON);
    // The guest has one processor, and the kernel's thread for the slot a lower priority.
    let schedule = |policy, priority| {
        let parameters = libc::sched_param { sched_priority: priority };
        // SAFETY: the parameters are a valid structure, and 0 is this thread.
        assert_eq!(unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) }, 0);
    };
    schedule(libc::SCHED_FIFO, 99);
    write(on | POWER_OFF | INDICATOR_OFF);
    write(on | INDICATOR_ON);
    schedule(libc::SCHED_OTHER, 0);
}

/// The function leaves without a word, in the middle of a transfer: nothing is left to be asked to
/// stop, and the kernel is not kept waiting.
pub(crate) fn a_function_that_is_pulled_out_ends_its_transfer() {
    let function = edu_behind_port();
    let mut edu = Edu::probe(open(function), Config::default()).unwrap();
    let events = edu.device().events().clone();
    let space = edu.device().space().clone();
    let bar = edu.device().bar(0).unwrap();
    let buffer =
        |edu: &Edu| edu.allocate(&Request::new(1 << 20, Direction::Bidirectional)).unwrap();
    let (source, target) = (buffer(&edu), buffer(&edu));
    let transfer = edu.copy(source, 0, target, 0, 1 << 20).unwrap();
    pull_out(address(1));
    let begin = Instant::now();
    let failed = transfer.wait().unwrap_err();
    println!("{failed} after {:?}", begin.elapsed());
    assert!(begin.elapsed() < LIMIT, "{failed}");
    assert!(failed.to_string().contains("is to be removed"), "{failed}");
    assert!(failed.buffers.is_some(), "the buffers come back");
    drop(failed);
    let asked = Instant::now();
    assert_eq!(events.wait(5 * LIMIT).unwrap(), Some(Event::Removal));
    let failed = bar.read::<u32>(0).unwrap_err();
    assert!(matches!(failed, MmioError::Backend(BackendError::ToBeRemoved { .. })), "{failed}");
    drop((bar, edu));
    while PathBuf::from(format!("/sys/bus/pci/devices/{function}")).exists() {
        assert!(asked.elapsed() < 5 * LIMIT, "it is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(space.usage().mappings, 0, "all is unmapped");
}

/// A drive that reads 64 KiB a second.
pub(crate) fn slow_drive() -> VmConfig {
    let mut config = behind_port("nvme,serial=1,drive=slow");
    let drive = "if=none,id=slow,driver=null-co,size=16M,read-zeroes=on,throttling.bps-total=65536";
    config.qemu_args.extend(["-drive", drive].map(Into::into));
    config
}

/// The port above a drive reports an error that the link did not mend, while the drive reads: each
/// read ends once, with its buffer, and after a reset the drive reads again.
pub(crate) fn an_uncorrectable_error_ends_transfers_until_the_reset() {
    let nvme = Nvme::probe(open(edu_behind_port()), nvme::Config::default()).unwrap();
    let [namespace] = nvme.namespaces() else { panic!("{:?}", nvme.namespaces()) };
    let namespace = *namespace;
    let mut queue = nvme.queue(nvme::QueueConfig::default()).unwrap();
    let tokens: Vec<_> = (0..8)
        .map(|n| {
            let buffer = nvme.allocate(&Request::new(128 << 10, Direction::FromDevice)).unwrap();
            queue.read(&namespace, n * 256, buffer.into(), nvme::WhenFull::Return).unwrap()
        })
        .collect();
    queue.issue().unwrap();
    monitor("pcie_aer_inject_error first COMP_TIME");
    let mut failed = 0;
    for token in tokens {
        let finished = queue.wait(token, 10 * LIMIT).unwrap();
        assert!(finished.table.is_some(), "the buffers come back");
        match finished.result {
            Err(nvme::TransferError::BusError) => failed += 1,
            // The first may have been read.
            other => other.unwrap(),
        }
        assert!(matches!(queue.take(token), Err(nvme::NvmeError::NoSuchTransfer)), "once");
    }
    assert!(failed > 0, "{failed} of 8");
    drop((queue, nvme));
    let nvme = Nvme::probe(open(edu_behind_port()), nvme::Config::default()).unwrap();
    let namespace = nvme.namespaces()[0];
    let mut queue = nvme.queue(nvme::QueueConfig::default()).unwrap();
    let buffer = nvme.allocate(&Request::new(4096, Direction::FromDevice)).unwrap();
    let token = queue.read(&namespace, 0, buffer.into(), nvme::WhenFull::Return).unwrap();
    queue.issue().unwrap();
    queue.wait(token, 10 * LIMIT).unwrap().result.unwrap();
}

/// A random number generator that waits for an interrupt.
pub(crate) fn an_uncorrectable_error_ends_a_wait_until_the_reset() {
    forward_errors(address(1));
    let mut device = open(edu_behind_port());
    let events = device.events().clone();
    let vector = device.vectors(IrqKind::MsiX, 1).unwrap().remove(0);
    let waiting = std::thread::spawn(move || {
        let failed = vector.wait(20 * LIMIT).unwrap_err();
        (vector, failed)
    });
    // An uncorrectable error: a completion that did not come in time.
    monitor("pcie_aer_inject_error victim COMP_TIME");
    let (vector, failed) = waiting.join().unwrap();
    assert!(matches!(failed, IrqError::Backend(BackendError::BusError { .. })), "{failed}");
    assert_eq!(events.pending(), Some(Event::Error));
    let failed = device.check_events().unwrap_err();
    assert!(failed.remedy().is_some(), "{failed}");
    device.reset().unwrap();
    assert_eq!(events.pending(), None);
    device.check_events().unwrap();
    let failed = vector.wait(Duration::from_millis(10)).unwrap_err();
    assert!(matches!(failed, IrqError::Timeout { .. }), "{failed}");
}
