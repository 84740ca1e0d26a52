//! Linux's own driver for the I/OAT engine, `drivers/dma/ioat`, on the model: nobody here
//! wrote it, so what it accepts can be taken for the real device's behaviour.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use vfio_dma_model::ioat::{FaultPlan, IoatConfig, Personality, Stats};
use vfio_dma_tests::{Machine, address};
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm::{Iommu, Kernel, Modules, VmConfig};

/// A guest with these models; the first is 0000:00:05.0.
pub(crate) fn machine(vm: VmConfig, models: Vec<IoatConfig>) -> Machine {
    let served: Vec<Served> =
        models.into_iter().map(|config| Served::start(config).expect("the model serves")).collect();
    let devices = served.iter().map(Served::device).collect();
    let verify = move || served.iter().try_for_each(|model| check(&model.ioat().stats()));
    Machine { vm: VmConfig { devices, ..vm }, verify: Box::new(verify) }
}

/// What holds for a model in every scenario once its guest has ended.
fn check(stats: &Stats) -> Result<(), String> {
    let idle = stats.descriptors == 0 || stats.doorbells == 0;
    // The driver keeps what it maps mapped until the engine is done with it.
    if idle || stats.memory.refused_not_mapped > 0 || stats.illegal_accesses > 0 {
        return Err(format!("{stats:#?}"));
    }
    Ok(())
}

fn channels(channels: u8) -> IoatConfig {
    IoatConfig { channels, ..IoatConfig::default() }
}

/// Debian's kernel, where the driver is a module; both personalities.
pub(crate) fn stock() -> Machine {
    let icelake = IoatConfig { personality: Personality::IceLake, ..IoatConfig::default() };
    let mut modules = Modules::vfio();
    modules.include.push("ioatdma".into());
    machine(VmConfig { modules, ..VmConfig::default() }, vec![channels(1), icelake])
}

fn full(iommu: Iommu, models: Vec<IoatConfig>) -> Machine {
    machine(VmConfig { kernel: Kernel::Full, iommu, ..VmConfig::default() }, models)
}

/// The kernel that has dmatest: one function with one channel, one with four.
pub(crate) fn intel() -> Machine {
    full(Iommu::default(), vec![channels(1), channels(4)])
}

pub(crate) fn amd() -> Machine {
    full(Iommu::Amd, vec![channels(1)])
}

pub(crate) fn virtio() -> Machine {
    full(Iommu::Virtio, vec![channels(1)])
}

pub(crate) fn no_iommu() -> Machine {
    full(Iommu::None, vec![channels(1)])
}

/// What goes wrong, for one function each, after the driver's self-test at probe: the
/// fault, how many tests of that run fail, and what the kernel says.
///
/// Of CHANERR's bits Linux takes read and write errors as recoverable, and gives the
/// descriptor up; on others it stops the kernel. A word that comes again is written before
/// the next one: over a newer one, Linux looks for a descriptor that it has done away with.
const FAULTS: [(&str, u64, &str); 8] = [
    ("chanerr=8@40", 1, "'data error'"),
    ("chanerr=9@40", 1, "'data error'"),
    ("halt@40", 1, "Channel halted"),
    ("no-completion@40", 1, "Reset channel"),
    ("late-completion=20ms@40", 0, "summary"),
    ("double-completion=1us@40", 0, "summary"),
    ("no-interrupt@40", 0, "summary"),
    ("spurious-interrupt@40", 0, "summary"),
];

pub(crate) fn faulty() -> Machine {
    let models = FAULTS.map(|(fault, ..)| {
        let faults: FaultPlan = fault.parse().expect("the grammar's own examples");
        IoatConfig { faults, ..IoatConfig::default() }
    });
    full(Iommu::default(), models.into())
}

/// The kernel's log since the last call, which must have no warning, oops or lockup.
fn log() -> String {
    let output = Command::new("dmesg").arg("-c").output().expect("busybox has dmesg");
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    for bad in ["WARNING:", "BUG:", "Call Trace", "Oops", "soft lockup", "hung task"] {
        assert!(!log.contains(bad), "{bad} in the kernel's log:\n{log}");
    }
    log
}

fn shell(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().expect("busybox has sh");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {said}{error}");
    said
}

/// The driver's name for the interrupts it asked for, as /proc/interrupts has it.
fn interrupts(name: &str) -> u64 {
    let table = fs::read_to_string("/proc/interrupts").expect("procfs");
    let lines = table.lines().filter(|line| line.ends_with(name));
    let counts = lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    counts.sum()
}

fn probes_with(style: &str) {
    let _ = log();
    shell(&format!("modprobe ioatdma ioat_interrupt_style={style}"));
    let log = log();
    assert!(!log.contains("Self-test") && !log.contains("failed"), "{log}");
    for (index, version) in [(0, "3.2"), (1, "3.4")] {
        let device = address(index);
        let driver = fs::read_link(format!("/sys/bus/pci/devices/{device}/driver"));
        assert!(driver.is_ok_and(|path| path.ends_with("ioatdma")), "{device}: {log}");
        let quickdata = format!("/sys/class/dma/dma{index}chan0/quickdata");
        let found = fs::read_to_string(format!("{quickdata}/version")).expect("a channel");
        assert_eq!(found.trim(), version);
    }
    let name = format!("ioat-{style}");
    assert!(interrupts(&name) >= 2, "each self-test ends with one {name}: {log}");
    shell("modprobe -r ioatdma");
    let gone = fs::read_link(format!("/sys/bus/pci/devices/{}/driver", address(0)));
    assert!(gone.is_err(), "unbound");
    let log = self::log();
    assert!(!log.contains("rror") && !log.contains("timed out"), "no complaint on removal: {log}");
}

pub(crate) fn probes_and_tests_itself_with_msix() {
    probes_with("msix");
}

pub(crate) fn probes_and_tests_itself_with_msi() {
    probes_with("msi");
}

pub(crate) fn probes_and_tests_itself_with_intx() {
    probes_with("intx");
}

fn parameter(name: &str, value: &str) {
    let path = format!("/sys/module/dmatest/parameters/{name}");
    fs::write(&path, value).unwrap_or_else(|error| panic!("{path} = {value}: {error}"));
}

/// Runs the kernel's dmatest on these channels; returns tests and failures.
fn dmatest(channels: &[String], iterations: u32, size: u32, polled: bool) -> (u64, u64) {
    dmatest_with_log(channels, iterations, size, polled).0
}

fn dmatest_with_log(
    channels: &[String],
    iterations: u32,
    size: u32,
    polled: bool,
) -> ((u64, u64), String) {
    let _ = log();
    for (name, value) in [
        ("iterations", iterations.to_string()),
        ("test_buf_size", size.to_string()),
        ("polled", u8::from(polled).to_string()),
        ("timeout", "3000".into()),
    ] {
        parameter(name, &value);
    }
    for channel in channels {
        parameter("channel", channel);
    }
    parameter("run", "1");
    let summary = |log: &str, channel: &str| {
        log.lines().find(|l| l.contains(channel) && l.contains("summary")).map(str::to_owned)
    };
    // Its parameter `wait` returns at once when a thread has not run yet: look for what each
    // prints last.
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut log = String::new();
    while !channels.iter().all(|channel| summary(&log, channel).is_some()) {
        assert!(Instant::now() < deadline, "dmatest does not end:\n{log}");
        std::thread::sleep(Duration::from_millis(20));
        log += &self::log();
    }
    let mut sums = (0, 0);
    for channel in channels {
        let line = summary(&log, channel).expect("it was just there");
        let words: Vec<&str> = line.split_whitespace().collect();
        let before = |name: &str| {
            let at = words.iter().position(|word| word.starts_with(name)).expect(&line);
            words[at - 1].parse::<u64>().expect(&line)
        };
        sums.0 += before("tests");
        sums.1 += before("failures");
    }
    parameter("run", "0");
    (sums, log)
}

fn channel(device: usize, channel: usize) -> String {
    format!("dma{device}chan{channel}")
}

/// Each buffer size with as many iterations as take a few seconds.
const SIZES: [(u32, u32); 4] = [(64, 1000), (4096, 1000), (65_536, 400), (1 << 20, 40)];

fn run_sizes(channels: &[String], polled: bool, divisor: u32) -> u64 {
    let mut all = 0;
    for (size, iterations) in SIZES {
        let iterations = iterations / divisor;
        let (tests, failures) = dmatest(channels, iterations, size, polled);
        assert_eq!(failures, 0, "{size} bytes, polled: {polled}");
        assert_eq!(tests, u64::from(iterations) * channels.len() as u64);
        all += tests;
    }
    all
}

pub(crate) fn dmatest_one_channel_by_interrupt() {
    assert_eq!(run_sizes(&[channel(0, 0)], false, 1), 2440);
    assert!(interrupts("ioat-msix") >= 1000);
}

pub(crate) fn dmatest_one_channel_polled() {
    assert_eq!(run_sizes(&[channel(0, 0)], true, 1), 2440);
}

fn four() -> Vec<String> {
    (0..4).map(|n| channel(1, n)).collect()
}

pub(crate) fn dmatest_four_channels_by_interrupt() {
    assert_eq!(run_sizes(&four(), false, 2), 4880);
}

pub(crate) fn dmatest_four_channels_polled() {
    assert_eq!(run_sizes(&four(), true, 2), 4880);
}

pub(crate) fn dmatest_behind_this_iommu() {
    for polled in [false, true] {
        assert_eq!(dmatest(&[channel(0, 0)], 300, 16_384, polled), (300, 0), "polled: {polled}");
    }
}

pub(crate) fn recovers_from_faults() {
    for (device, (fault, failing, report)) in FAULTS.iter().enumerate() {
        let channels = [channel(device, 0)];
        // The fault strikes once, in here.
        let (results, log) = dmatest_with_log(&channels, 100, 4096, false);
        assert_eq!(results, (100, *failing), "{fault}:\n{log}");
        assert!(log.contains(report), "{report} is missing after {fault}:\n{log}");
        assert_eq!(dmatest(&channels, 100, 4096, false), (100, 0), "after {fault}");
    }
}
