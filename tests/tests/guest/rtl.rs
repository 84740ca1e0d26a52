//! LitePCIe's gateware, simulated, through a real kernel's VFIO (type1) and an emulated IOMMU;
//! and under LitePCIe's own Linux driver, which nobody here wrote.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::litepcie::{Config, LitePcie};
use vfio_dma_model::tlp::Stats;
use vfio_dma_tests::same_program::{Extent, run_engine, run_in_units};
use vfio_dma_tests::{Dice, Machine, RTL_SIZE, address, rtl_size, vfio_dma};
use vfio_dma_tools::rtl::litepcie::Options;
use vfio_dma_tools::rtl::{LinuxDriver, RtlConfig, describe, linux_driver};
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm::{GuestFile, Kernel, VmConfig};

use crate::examples;
use crate::support::{bind, machine_state, open};

#[path = "../../../hw-model/rtl/template/driver.rs"]
mod driver;
#[path = "../rtl/segments.rs"]
#[expect(dead_code, reason = "simulated hardware in this process needs more of it")]
mod segments;

use segments::{copy, mixed, whole};

/// Bytes of a word of the card's bus.
const WORD: usize = 16;
const LONG: Duration = Duration::from_secs(120);

/// Debian's kernel, one card, and the engine of the template.
pub(crate) fn machine() -> Machine {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hw-model/rtl/template/dma_engine.sv");
    let text = format!("rtl,top=dma_engine,file={}", file.display());
    let engine = describe(&text).unwrap().unwrap();
    let mut vm = VmConfig { files: examples::files(), ..VmConfig::default() };
    if let Ok(size) = std::env::var(RTL_SIZE) {
        vm.env.push((RTL_SIZE.into(), size.into()));
    }
    with(vec![RtlConfig::litepcie(Options::default()), engine], vm)
}

/// The full kernel, one card, and LitePCIe's own driver for it.
pub(crate) fn linux() -> Machine {
    let options = Options::default();
    let built = linux_driver(&options).unwrap_or_else(|error| panic!("{error}"));
    let LinuxDriver { module, util } = built;
    let place = |host, guest: &str| GuestFile { host, guest: guest.into(), mode: 0o755 };
    let files = vec![place(module, MODULE), place(util, UTIL)];
    let vm = VmConfig { kernel: Kernel::Full, files, ..VmConfig::default() };
    with(vec![RtlConfig::litepcie(options)], vm)
}

fn with(hardware: Vec<RtlConfig>, vm: VmConfig) -> Machine {
    let start = |config: RtlConfig| {
        let function = config.start().unwrap_or_else(|error| panic!("{error}"));
        Served::of(function).unwrap()
    };
    let served: Vec<_> = hardware.into_iter().map(start).collect();
    let vm = VmConfig { devices: served.iter().map(Served::device).collect(), ..vm };
    let verify = move || served.iter().try_for_each(|card| check(&card.function().stats()));
    Machine { vm, verify: Box::new(verify) }
}

/// What holds for a card once its guest has ended; one that no case drove did nothing.
fn check(stats: &Stats) -> Result<(), String> {
    match [stats.all_malformed(), stats.faults, stats.host_timeouts] {
        [0, 0, 0] => Ok(()),
        _ => Err(format!("the card, or the driver, did what it should not: {stats:#?}")),
    }
}

pub(crate) fn the_same_program_moves_the_same_bytes() {
    run_in_units(open(address(0)), &Extent { longest: 1 << 20, limit: LONG }, WORD);
}

/// The template's engine, by the driver that is copied for one's own, and by its example.
pub(crate) fn the_engine_of_the_template_copies() {
    let engine = driver::Engine::probe(open(address(1)), ()).unwrap();
    run_engine(Box::new(engine), &Extent { longest: 256 << 10, limit: LONG }, WORD);
    let said = output("/bin/verilog_engine", &[&address(1).to_string()]);
    assert_eq!(said.matches("every byte is right").count(), 2, "{said}");
}

pub(crate) fn bytes_arrive_contiguous_and_in_segments_of_any_size() {
    let len = rtl_size();
    let mut card = LitePcie::probe(open(address(0)), Config::default()).unwrap();
    let mut dice = Dice::seeded();
    let begin = Instant::now();
    assert_eq!(copy(&mut card, len, &whole(len), &whole(len), 1), 0);
    let (from, to) = (mixed(len, &mut dice), mixed(len, &mut dice));
    println!("{} segments to {}", from.len(), to.len());
    assert_eq!(copy(&mut card, len, &from, &to, 2), 0);
    println!("{len} bytes, twice, in {:?}", begin.elapsed());
}

pub(crate) fn ctrl_c_stops_a_copy_in_the_middle() {
    bind(address(0));
    let before = machine_state();
    let mut child = Command::new("/bin/vfio-dma")
        .args([
            "run",
            "--placement",
            "sg",
            "--size",
            "64M",
            "--timeout",
            "600",
            &address(0).to_string(),
        ])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // An interrupt comes with every 64th descriptor, of 16384.
    let bus_master = || fs::read(format!("/sys/bus/pci/devices/{}/config", address(0))).unwrap()[4];
    let patience = Instant::now() + LONG;
    while bus_master() & 4 == 0 || interrupts_of("vfio-msi") == 0 {
        assert!(Instant::now() < patience && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(50));
    }
    let sent = Instant::now();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(sent.elapsed() < Duration::from_secs(20), "{:?}: {said}", sent.elapsed());
    assert!(said.contains("interrupted: ") && said.contains(" descriptors were"), "{said}");
    assert_eq!(machine_state(), before, "bus mastering is off");
}

pub(crate) fn the_command_line_copies() {
    bind(address(0));
    let device = address(0).to_string();
    let said = vfio_dma(&["run", &device, "--placement", "sg", "--size", "1M", "--timeout", "60"]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.out.contains("litepcie") && said.out.contains("every byte is right"), "{said:#?}");
}

/// LitePCIe's module and its program, in the guest.
const MODULE: &str = "/lib/litepcie.ko";
const UTIL: &str = "/bin/litepcie_util";
/// What `litepcie_util dma_test` lets pass before it compares: 128 rounds of 256 buffers.
const UNCHECKED: u64 = 128 * 256;
/// Words that are compared of a buffer.
const WORDS_PER_BUFFER: f64 = 2048.0;
/// Rounds of 256 buffers that have to be right in a row.
const LAPS: f64 = 8.0;
/// Buffers of 8 KiB between two interrupts of one direction.
const BUFFERS_PER_INTERRUPT: u64 = 32;

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}{error}");
    said
}

/// The kernel's log since the last call, which must have no warning or oops.
fn kernel_log() -> String {
    let log = output("dmesg", &["-c"]);
    for bad in ["WARNING:", "BUG:", "Call Trace", "Oops", "soft lockup", "DMAR: ["] {
        assert!(!log.contains(bad), "{bad} in the kernel's log:\n{log}");
    }
    log
}

/// Interrupts of the card's Linux driver so far.
fn interrupts() -> u64 {
    interrupts_of("litepcie")
}

/// Interrupts so far of all lines whose name has this in it.
fn interrupts_of(name: &str) -> u64 {
    let table = fs::read_to_string("/proc/interrupts").unwrap();
    let lines = table.lines().filter(|line| line.contains(name));
    lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// Waits until the card has sent so many interrupts.
fn wait_for(count: u64, test: &mut Child, limit: Duration) {
    let deadline = Instant::now() + limit;
    while interrupts() < count {
        assert_eq!(test.try_wait().unwrap(), None, "the test ended by itself: {}", kernel_log());
        let late = Instant::now() > deadline;
        assert!(!late, "{} of {count} interrupts: {}", interrupts(), kernel_log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

pub(crate) fn linuxs_own_driver_binds_the_card_and_its_dma_test_passes() {
    let _ = kernel_log();
    output("insmod", &[MODULE]);
    let device = address(0);
    let driver = fs::read_link(format!("/sys/bus/pci/devices/{device}/driver"));
    let log = kernel_log();
    assert!(driver.is_ok_and(|path| path.ends_with("litepcie")), "{log}");
    assert!(log.contains("Version LitePCIe under Verilator"), "{log}");
    assert!(log.contains("32 MSI IRQs allocated"), "{log}");

    let info = output(UTIL, &["info"]);
    assert!(info.contains("SoC Identifier   : LitePCIe under Verilator"), "{info}");
    let scratch = output(UTIL, &["scratch_test"]);
    for value in ["0x12345678", "0xdeadbeef"] {
        assert!(scratch.contains(&format!("Read: {value}")), "{scratch}");
    }

    // All 32 bits of each word are compared.
    let mut test = Command::new(UTIL);
    test.args(["-w", "32", "dma_test"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let begin = Instant::now();
    let mut test = test.spawn().unwrap();
    // Both directions, and a quarter more.
    let wanted = 2 * UNCHECKED / BUFFERS_PER_INTERRUPT * 5 / 4;
    wait_for(wanted, &mut test, Duration::from_secs(400));
    kill(Pid::from_raw(test.id() as i32), Signal::SIGINT).unwrap();
    let ended = test.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:#?}");
    // Rate, buffers sent, buffers received, difference, errors.
    let rows: Vec<Vec<f64>> = said
        .lines()
        .map(|line| line.split_whitespace().map_while(|word| word.parse().ok()).collect())
        .filter(|row: &Vec<f64>| row.len() == 5)
        .collect();
    let received = rows.last().map_or(0.0, |row| row[2]) as u64;
    println!("{received} buffers in {:?}, of which {UNCHECKED} unchecked", begin.elapsed());
    assert!(received > UNCHECKED, "only {received} buffers came: {said}");
    // The card does not wait for the program: where the machine holds the guest up for half a
    // second, buffers are written over before they are compared, each as a whole.
    let (mut last, mut right, mut longest) = (UNCHECKED as f64, 0.0, 0.0f64);
    for row in rows.iter().filter(|row| row[2] > UNCHECKED as f64) {
        right = if row[4] == 0.0 { right + row[2] - last } else { 0.0 };
        (last, longest) = (row[2], longest.max(right));
        assert_eq!(row[4] % WORDS_PER_BUFFER, 0.0, "a part of a buffer is wrong: {said}");
    }
    assert!(longest >= LAPS * 256.0, "{longest} buffers were right in a row: {said}");
    kernel_log();

    output("rmmod", &["litepcie"]);
    let gone = fs::read_link(format!("/sys/bus/pci/devices/{}/driver", address(0)));
    assert!(gone.is_err(), "it is unbound");
    kernel_log();
}
