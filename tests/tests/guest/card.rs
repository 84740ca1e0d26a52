//! `peek`, `poke`, `dump` and `config`: the registers of cards that keep their drivers.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use vfio_dma::backend::BackendError;
use vfio_dma::host::{BarKind, Silence, Sysfs};
use vfio_dma::mmio::{Bar, MmioError};
use vfio_dma_tests::{Said, address, vfio_dma};
use vfio_dma_tools::vm::{Modules, VmConfig};

use crate::support::{bind, leaves_machine_alone, misused, open, refused};

/// edu has no driver of its own in Linux.
const EDU: u8 = 0;
const TESTDEV: u8 = 1;

/// The registers of edu as a file in the guest.
fn registers() -> String {
    let path = "/tmp/edu.toml";
    fs::write(path, include_str!("../../../driver/examples/edu.registers.toml")).unwrap();
    path.to_owned()
}

fn edu() -> String {
    address(EDU).to_string()
}

fn works(args: &[&str]) -> String {
    let said = vfio_dma(args);
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{args:?}: {said:#?}");
    said.out
}

fn without_driver() {
    let _ = vfio_dma(&["unbind", &edu()]);
    assert_eq!(Sysfs::new().device(address(EDU)).unwrap().driver, None);
}

pub(crate) fn registers_are_read_and_written_without_a_driver() {
    without_driver();
    let (edu, file) = (edu(), registers());
    leaves_machine_alone(|| {
        let out = works(&["peek", &edu, "0", "0"]);
        assert!(out.starts_with("0x0000") && out.contains(" 0x010000ed"), "{out}");
        let out = works(&["peek", &edu, "0", "ID", "id.device", "--registers", &file]);
        assert!(out.contains("ID") && out.contains("major=0x1 device=edu"), "{out}");
        assert!(out.contains("ID.device 0xed (edu)"), "{out}");
        let out = works(&["poke", &edu, "0", "4", "0x12345678"]);
        assert_eq!(out, "0x0004 wrote 0x12345678\n");
        let out = works(&["peek", &edu, "0", "4"]);
        assert!(out.contains("0xedcba987"), "it reads as the complement: {out}");
        let status = ["poke", &edu, "0", "STATUS", "irq-factorial=1", "--registers", &file];
        let out = works(&status);
        assert!(out.contains("wrote 0x00000080, was 0x00000000, reads 0x00000080"), "{out}");
        let out = works(&["poke", &edu, "0", "STATUS.irq-factorial", "0", "--registers", &file]);
        assert!(out.contains("reads 0x00000000"), "{out}");
        let json = works(&["peek", &edu, "0", "ID", "--json", "--registers", &file]);
        let json: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["reached"], "sysfs");
        assert_eq!(json["registers"][0]["value"], 0x0100_00ed);
        assert_eq!(json["registers"][0]["fields"][2]["meaning"], "edu");
    });
    misused(&["poke", &edu, "0", "ID", "1", "--registers", &file], &["ID is read only"]);
    misused(&["peek", &edu, "0", "NONE", "--registers", &file], &["it has ID, LIVENESS"]);
    refused(&["peek", &edu, "1", "0"], &["has no BAR1", "BAR0 (memory, 0x100000 bytes)"]);
    // Nothing is at this offset of edu.
    let said = vfio_dma(&["peek", &edu, "0", "0x10"]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.err.contains("answers in configuration space"), "{said:#?}");
}

pub(crate) fn dumps_are_hexadecimal_or_by_name() {
    without_driver();
    let (edu, file) = (edu(), registers());
    let out = works(&["dump", &edu, "0", "0..0x10"]);
    assert!(out.starts_with("0x00000000: 010000ed "), "{out}");
    let said = vfio_dma(&["dump", &edu, "0", "--registers", &file]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.out.contains("DMA_COMMAND") && !said.out.contains("IRQ_RAISE"), "{said:#?}");
    assert!(said.err.contains("not read: 0x0060 IRQ_RAISE: write only"), "{said:#?}");
    let said = vfio_dma(&["dump", &edu, "0", "0x60..0x70", "--registers", &file]);
    assert!(said.out.starts_with("0x00000060: ........ ........ ffffffff"), "{said:#?}");
    // Named, it is read.
    let said = vfio_dma(&["dump", &edu, "0", "IRQ_RAISE", "--registers", &file]);
    assert!(said.out.contains("0xffffffff   [write only]"), "{said:#?}");
}

/// Runs the command in the background, and this in the meantime.
fn meanwhile(args: &[&str], wait: Duration, body: impl FnOnce()) -> Said {
    let child = Command::new("/bin/vfio-dma")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(wait);
    body();
    let output = child.wait_with_output().unwrap();
    Said {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(crate) fn what_changes_is_watched() {
    without_driver();
    let (edu, file) = (edu(), registers());
    works(&["poke", &edu, "0", "4", "0"]);
    let watch = ["dump", &edu, "0", "LIVENESS", "--registers", &file, "--watch"];
    let watch = [&watch[..], &["--interval", "50", "--for", "8"]].concat();
    let said = meanwhile(&watch, Duration::from_secs(3), || {
        works(&["poke", &edu, "0", "4", "5", "--force"]);
    });
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.out.contains("LIVENESS             0xffffffff -> 0xfffffffa"), "{said:#?}");
}

pub(crate) fn ports_are_read_and_written() {
    let testdev = address(TESTDEV).to_string();
    let said = vfio_dma(&["dump", &testdev, "1", "0..0x10", "--width", "1"]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.err.contains("is not mapped: each access to it goes through"), "{said:#?}");
    refused(&["peek", &testdev, "1", "0:8"], &["take 1, 2 or 4 bytes"]);
    // The test device's registers: a write selects a test, offset 4 is its width.
    works(&["poke", &testdev, "1", "0:1", "0"]);
    let said = vfio_dma(&["peek", &testdev, "1", "4:4"]);
    assert_eq!(said.status, 0, "{said:#?}");
    let memory = works(&["dump", &testdev, "0", "0..0x10"]);
    assert!(memory.starts_with("0x00000000: "), "{memory}");
}

pub(crate) fn configuration_space_is_read_and_written_by_name() {
    without_driver();
    let edu = edu();
    let before = works(&["config", &edu, "COMMAND"]);
    let out = works(&["config", &edu, "COMMAND.bus-master=1", "COMMAND.bus-master"]);
    assert!(out.contains("COMMAND.bus-master 0x1"), "{out}");
    let raw = works(&["config", &edu, "0x4:2"]);
    assert!(raw.contains("0x0107") || raw.contains("0x0007"), "{raw}");
    works(&["config", &edu, "COMMAND.bus-master=0"]);
    assert_eq!(works(&["config", &edu, "command"]), before);
    let all = works(&["config", &edu, "--json"]);
    let json: Value = serde_json::from_str(&all).unwrap();
    assert_eq!(json["registers"][0]["name"], "VENDOR_ID");
    misused(&["config", &edu, "COMMAND.colour=1"], &["has no field \"colour\"", "bus-master"]);
    // A bit that the function does not have is not kept.
    let said = vfio_dma(&["config", &edu, "MIN_GNT=1"]);
    assert_eq!(said.status, 2, "{said:#?}");
}

pub(crate) fn silence_is_explained() {
    without_driver();
    let edu = edu();
    works(&["config", &edu, "COMMAND.memory-space=0"]);
    let found = Sysfs::new().silence(address(EDU), BarKind::Memory32).unwrap();
    assert_eq!(found, Some(Silence::MemoryOff));
    let hint = format!("vfio-dma config {edu} COMMAND.memory-space=1");
    refused(&["peek", &edu, "0", "0"], &["memory space bit", "clear", &hint]);
    works(&["config", &edu, "COMMAND.memory-space=1"]);
    assert!(works(&["peek", &edu, "0", "0"]).contains("0x010000ed"));
    let said = vfio_dma(&["peek", "0000:00:1f.7", "0", "0"]);
    assert!(said.status == 1 && said.err.contains("no PCI device 0000:00:1f.7"), "{said:#?}");
}

pub(crate) fn a_function_that_vfio_has_is_not_reset_unless_asked() {
    let edu = edu();
    bind(address(EDU));
    works(&["poke", &edu, "0", "4", "0x55"]);
    assert!(works(&["peek", &edu, "0", "4"]).contains("0xffffffaa"), "it was not reset");
    let said = vfio_dma(&["peek", &edu, "0", "0", "--vfio"]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.err.contains("opened through VFIO (--vfio), which resets it"), "{said:#?}");
    assert!(said.out.contains("0x010000ed"), "{said:#?}");
    // A process has it open: nothing is written, and sysfs does not give the BAR.
    let device = open(address(EDU));
    let bar = device.bar(0).unwrap();
    refused(&["poke", &edu, "0", "4", "1"], &["is in use by process"]);
    refused(&["config", &edu, "COMMAND.bus-master=1"], &["is in use by process"]);
    let said = vfio_dma(&["peek", &edu, "0", "0"]);
    assert!(said.status == 0 || said.err.contains("busy"), "{said:#?}");
    eprintln!("{said:#?}");
    drop(bar);
    drop(device);
    works(&["poke", &edu, "0", "4", "1"]);
    without_driver();
}

/// In the guest of `in_use`: the kernel has drivers there.
pub(crate) fn what_the_host_uses_is_read_and_not_written() {
    let bridge = "0000:00:1f.0";
    refused(&["config", bridge, "COMMAND.serr=1"], &["a part of the machine", "--force"]);
    let disk = address(1).to_string();
    assert_eq!(Sysfs::new().device(address(1)).unwrap().driver.as_deref(), Some("nvme"));
    let file = fs::File::open("/dev/nvme0n1").unwrap();
    let out = works(&["peek", &disk, "0", "0x8"]);
    assert!(out.starts_with("0x0008"), "{out}");
    refused(&["config", &disk, "COMMAND.bus-master=0"], &["has /dev/nvme0n1 open", "--force"]);
    refused(&["poke", &disk, "0", "0x20", "0"], &["has /dev/nvme0n1 open", "--force"]);
    drop(file);
    assert_eq!(Sysfs::new().check_unused(address(1)).map_err(|e| e.to_string()), Ok(()));
}

pub(crate) fn a_card_that_goes_away_is_an_error_and_no_signal() {
    without_driver();
    let edu = edu();
    let dir = Sysfs::new().tree().device_dir(address(EDU)).unwrap();
    let watch = ["dump", &edu, "0", "0..0x10", "--watch", "--interval", "50", "--for", "20"];
    let said = meanwhile(&watch, Duration::from_secs(3), || {
        fs::write(dir.join("remove"), "1").unwrap();
    });
    assert_eq!(said.status, 1, "{said:#?}");
    assert!(said.err.contains("there is no such function any more"), "{said:#?}");
    fs::write("/sys/bus/pci/rescan", "1").unwrap();
    // The kernel switches decoding on when a driver enables the function.
    works(&["config", &edu, "COMMAND.memory-space=1"]);
    assert!(works(&["peek", &edu, "0", "0"]).contains("0x010000ed"));
}

/// A driver of the host's that has its BARs for itself, as kernels with `IO_STRICT_DEVMEM` see to.
pub(crate) fn held() -> VmConfig {
    let mut modules = Modules::vfio();
    modules.load.push("nvme".into());
    VmConfig { devices: vec!["nvme,serial=1".into()], modules, ..VmConfig::default() }
}

pub(crate) fn a_bar_that_a_driver_has_for_itself_is_explained() {
    let sysfs = Sysfs::new();
    let card = address(0);
    assert_eq!(sysfs.device(card).unwrap().driver.as_deref(), Some("nvme"));
    let bdf = card.to_string();
    let parts = ["the driver nvme has the BAR for itself", "iomem=relaxed", &bdf];
    refused(&["peek", &bdf, "0", "0x8"], &parts);
    refused(&["dump", &bdf, "0", "0..0x10"], &parts);
    let error = Bar::through_sysfs(&sysfs, card, 0, false).unwrap_err();
    let MmioError::Backend(BackendError::Os { source, remedy, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!(source.raw_os_error(), Some(libc::EINVAL), "{error}");
    assert!(remedy.is_some(), "{error}");
    // What needs no BAR is there all the same.
    assert!(works(&["config", &bdf, "VENDOR_ID"]).contains("0x1b36"));
    fs::write("/sys/bus/pci/drivers/nvme/unbind", &bdf).unwrap();
    works(&["config", &bdf, "COMMAND.memory-space=1"]);
    assert!(works(&["peek", &bdf, "0", "0x8"]).starts_with("0x0008"));
}
