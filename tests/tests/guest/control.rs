//! `reset`, `remove` and `rescan`, and the guest that these and `irq` are tried in.

use std::fs;

use serde_json::Value;
use vfio_dma::host::{PciDeviceInfo, Sysfs};
use vfio_dma::pci::Address;
use vfio_dma_tests::{address, vfio_dma};
use vfio_dma_tools::vm::{Device, Kernel, VmConfig};

use crate::support::{bind, leaves_machine_alone, misused, open, refused};

/// edu and a network card on the root bus; behind one port an edu device and a test device, which
/// are functions of one slot; behind another an edu device alone.
pub(crate) fn machine() -> VmConfig {
    let devices = [
        "edu",
        "pci-testdev,membar=16M",
        "pcie-root-port,id=two,chassis=1",
        "pcie-root-port,id=one,chassis=2",
        "e1000e,romfile=",
    ];
    let behind =
        ["edu,bus=two,addr=0.0,multifunction=on", "pci-testdev,bus=two,addr=0.1", "edu,bus=one"];
    let arguments = behind.iter().flat_map(|device| ["-device", device]);
    VmConfig {
        devices: devices.map(Device::from).into(),
        qemu_args: arguments.map(Into::into).collect(),
        ..VmConfig::default()
    }
}

/// The same with a kernel that resets all that is below a bridge, and that gives new functions no
/// drivers when it is told so.
pub(crate) fn full() -> VmConfig {
    VmConfig { kernel: Kernel::Full, ..machine() }
}

fn parse(text: &str) -> Address {
    text.parse().unwrap()
}

/// The two functions behind the first port.
fn two() -> [Address; 2] {
    [parse("0000:01:00.0"), parse("0000:01:00.1")]
}

/// The function that is alone behind its port.
fn one() -> Address {
    parse("0000:02:00.0")
}

fn driver(address: Address) -> Option<String> {
    Sysfs::new().device(address).unwrap().driver
}

fn works(args: &[&str]) -> String {
    let said = vfio_dma(args);
    assert_eq!((said.status, said.err.as_str()), (0, ""), "{args:?}: {said:#?}");
    said.out
}

pub(crate) fn a_function_is_reset_where_there_is_a_way() {
    let (edu, one) = (address(0).to_string(), one().to_string());
    refused(&["reset", &edu], &["the kernel knows no method"]);
    refused(&["reset", &edu, "--scope", "bus"], &["it is on a root bus"]);
    refused(&["reset", &edu, "--scope", "slot"], &["no slot whose power"]);
    leaves_machine_alone(|| {
        let out = works(&["reset", &one]);
        assert!(out.contains("function reset, by the kernel: bus"), "{out}");
        assert!(out.contains("nothing else is hit") && out.ends_with("was reset\n"), "{out}");
        let out = works(&["reset", &one, "--scope", "bus", "--json"]);
        let json: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&json["done"], json["hits"].as_array().unwrap().len()), (&true.into(), 1));
    });
    misused(&["reset", &one, "--method", "magic"], &["no reset method \"magic\"; it has"]);
    misused(&["reset", &one, "--method", "flr", "--scope", "bus"], &["--method is for"]);
    // Its network card has methods of its own: one is asked for, and the kernel's order stays.
    let card = address(4);
    let methods = || Sysfs::new().inspect(card).unwrap().reset_methods.unwrap();
    let before = methods();
    let method = before.last().unwrap().clone();
    let out = works(&["reset", &card.to_string(), "--method", &method]);
    assert!(out.contains(&format!("by the kernel: {method}\n")), "{out}");
    assert_eq!(methods(), before);
}

pub(crate) fn a_bus_reset_says_what_else_it_hits() {
    let [edu, testdev] = two();
    bind(edu);
    let before = Sysfs::new().device(edu).unwrap();
    let out = works(&["reset", &edu.to_string(), "--scope", "bus", "--dry-run"]);
    assert!(out.contains(&format!("also hit: {testdev} ")), "{out}");
    assert!(out.ends_with("nothing was changed\n"), "{out}");
    // A process has one of them open.
    let device = open(edu);
    refused_after_telling(&["reset", &testdev.to_string(), "--scope", "bus"], "is in use by");
    drop(device);
    let out = works(&["reset", &testdev.to_string(), "--scope", "bus"]);
    assert!(out.ends_with("was reset\n"), "{out}");
    assert_eq!(Sysfs::new().device(edu).unwrap(), before, "{out}");
    assert_eq!(driver(testdev), None);
    // Both answer.
    let out = works(&["peek", &edu.to_string(), "0", "0"]);
    assert!(out.contains("0x010000ed"), "{out}");
    assert_eq!(vfio_dma(&["unbind", &edu.to_string()]).status, 0);
}

/// What is hit is said before the refusal.
fn refused_after_telling(args: &[&str], part: &str) {
    let said = vfio_dma(args);
    assert_eq!(said.status, 1, "{said:#?}");
    assert!(said.out.contains("also hit") && said.err.contains(part), "{said:#?}");
    assert!(!said.out.contains("was reset"), "{said:#?}");
}

pub(crate) fn a_function_comes_back_with_its_driver() {
    let sysfs = Sysfs::new();
    let (edu, text) = (address(0), address(0).to_string());
    let _ = vfio_dma(&["unbind", &text]);
    for bound in [false, true] {
        if bound {
            bind(edu);
        }
        let before = sysfs.device(edu).unwrap();
        let out = works(&["rescan", &text]);
        check_back(&before, &sysfs.device(edu).unwrap(), &out);
        let before = sysfs.device(edu).unwrap();
        // In two steps, by two processes.
        let out = works(&["remove", &text]);
        assert!(out.contains("is removed") && sysfs.device(edu).is_err(), "{out}");
        refused(&["peek", &text, "0", "0"], &["no PCI device"]);
        works(&["rescan", &text]);
        let after = sysfs.device(edu).unwrap();
        assert_eq!(after.driver, before.driver);
        // The BAR is where sysfs says.
        works(&["config", &text, "COMMAND.memory-space=1"]);
        assert!(works(&["peek", &text, "0", "0"]).contains("0x010000ed"));
    }
    // What it had before it was bound is still known.
    let said = vfio_dma(&["unbind", &text]);
    assert!(said.out.contains("it has no driver, as before"), "{said:#?}");
    let autoprobe = fs::read_to_string("/sys/bus/pci/drivers_autoprobe").unwrap();
    assert_eq!(autoprobe, "1\n");
    let out = works(&["rescan"]);
    assert_eq!(out, "nothing new was found\n");
    // A bridge goes and comes with what is behind it.
    let port = address(3).to_string();
    let out = works(&["remove", &port]);
    assert!(out.contains(&format!("{}: is removed with it", one())), "{out}");
    let json = works(&["rescan", &port, "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["functions"][0]["after"]["driver"], "pcieport", "{json:#}");
    assert!(sysfs.device(one()).is_ok());
    refused(&["rescan", "0000:00:1f.7", "--wait", "1"], &["did not come back within"]);
}

/// The function is as before, but for the address of its BAR: the kernel may give it another one.
fn check_back(before: &PciDeviceInfo, after: &PciDeviceInfo, out: &str) {
    let same = (before.vendor, before.device, &before.driver, before.bars.len());
    assert_eq!(same, (after.vendor, after.device, &after.driver, after.bars.len()), "{out}");
    let (was, is) = (before.bars[0], after.bars[0]);
    assert_eq!(was.size, is.size, "{out}");
    assert!(out.contains("is back"), "{out}");
    if was.start == is.start {
        assert!(out.contains("ids and BARs are as before"), "{out}");
    } else {
        assert!(
            out.contains(&format!("BAR0 was memory, {:#x} bytes at {:#x}", was.size, was.start))
        );
        assert!(
            out.contains(&format!("is memory, {:#x} bytes at {:#x}", is.size, is.start)),
            "{out}"
        );
    }
}

/// In the guest of `in_use`: the kernel has drivers there.
pub(crate) fn what_the_host_uses_is_neither_reset_nor_removed() {
    let disk = address(1);
    let text = disk.to_string();
    assert_eq!(driver(disk).as_deref(), Some("nvme"));
    let file = fs::File::open("/dev/nvme0n1").unwrap();
    for command in ["reset", "remove", "rescan"] {
        let said = vfio_dma(&[command, &text]);
        assert_eq!(said.status, 1, "{said:#?}");
        assert!(said.err.contains("has /dev/nvme0n1 open"), "{said:#?}");
        assert!(said.err.contains("option: --force"), "{said:#?}");
    }
    drop(file);
    let out = works(&["rescan", &text]);
    assert!(out.contains("is back, its driver is nvme"), "{out}");
    assert_eq!(driver(disk).as_deref(), Some("nvme"));
    // One that is vfio-pci's comes back so, though the kernel has a driver for it.
    bind(disk);
    let out = works(&["rescan", &text]);
    assert!(out.contains("is back, its driver is vfio-pci"), "{out}");
    let said = vfio_dma(&["unbind", &text]);
    assert!(said.out.contains("its driver is nvme, as before"), "{said:#?}");
    for _ in 0..100 {
        if fs::metadata("/dev/nvme0n1").is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
