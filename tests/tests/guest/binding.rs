//! bind, unbind, list.

use std::fs;
use std::process::Command;

use vfio_dma::host::Sysfs;
use vfio_dma_tests::{address, vfio_dma};
use vfio_dma_tools::vm::{Device, UDEVADM, UDEVD, VmConfig, udev};

use crate::support::machine_state;

fn driver(index: u8) -> Option<String> {
    Sysfs::new().device(address(index)).unwrap().driver
}

pub(crate) fn bind_and_unbind_restore_the_driver() {
    let device = address(0).to_string();
    let _ = vfio_dma(&["unbind", &device]);
    assert_eq!(driver(0), None);
    let before = machine_state();
    for round in 0..3 {
        let said = vfio_dma(&["bind", &device]);
        assert_eq!(said.status, 0, "{round}: {said:#?}");
        assert_eq!(driver(0).as_deref(), Some("vfio-pci"));
        let again = vfio_dma(&["bind", &device]);
        assert_eq!(again.status, 0, "binding twice is fine: {again:#?}");
        let said = vfio_dma(&["unbind", &device]);
        assert_eq!(said.status, 0, "{said:#?}");
        assert_eq!(machine_state(), before, "round {round}");
    }
}

pub(crate) fn run_binds_and_restores() {
    let device = address(0).to_string();
    let _ = vfio_dma(&["unbind", &device]);
    let before = machine_state();
    let said = vfio_dma(&["run", "--bind", "--size", "4K", &device]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.out.contains("every byte is right"), "{said:#?}");
    assert_eq!(machine_state(), before);
    // What fails after binding restores the driver too.
    let said = vfio_dma(&["run", "--bind", "--size", "300M", &device]);
    assert_eq!(said.status, 1, "{said:#?}");
    assert_eq!(machine_state(), before);
}

pub(crate) fn several_are_bound_and_given_back() {
    let kind = "1234:11e8";
    let _ = vfio_dma(&["unbind", kind]);
    let before = machine_state();
    let said = vfio_dma(&["bind", kind, &address(1).to_string()]);
    assert_eq!((said.status, said.out.lines().count()), (0, 4), "{said:#?}");
    let bound = || {
        let all = Sysfs::new().enumerate().unwrap();
        all.iter().filter(|info| info.driver.as_deref() == Some("vfio-pci")).count()
    };
    assert_eq!(bound(), 4, "{said:#?}");
    let said = vfio_dma(&["unbind", kind, &address(1).to_string()]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert_eq!(machine_state(), before);
    // A whole group, by its number and by a member; without the port that is above it.
    let group = Sysfs::new().device(address(0)).unwrap().group.unwrap().number;
    let said = vfio_dma(&["bind", &format!("group:{group}")]);
    assert!(said.status == 0 && said.out.starts_with(&address(0).to_string()), "{said:#?}");
    let behind = crate::support::edu_behind_port().to_string();
    let said = vfio_dma(&["bind", &behind, "--group"]);
    assert!(said.status == 0 && said.out.contains(&behind), "{said:#?}");
    let said = vfio_dma(&["unbind", "--group", &behind, &address(0).to_string()]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert_eq!(machine_state(), before);
    // One of them is not there: nothing is bound.
    let said = vfio_dma(&["bind", kind, "dead:beef"]);
    crate::support::check_refusal(&said, &["no PCI function is dead:beef", "vfio-dma list"]);
    assert_eq!(machine_state(), before);
}

/// A guest in which udev is started by the case.
pub(crate) fn with_udev() -> VmConfig {
    VmConfig {
        devices: vec![Device::from("edu"), Device::from("pci-testdev")],
        files: udev().expect("udev can be fetched"),
        ..VmConfig::default()
    }
}

fn run(program: &[&str], arguments: &[&str]) {
    let output = Command::new(program[0]).args(&program[1..]).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program:?} {arguments:?}: {said}");
}

/// As when the machine starts: the kernel has found the devices, and udev is told of each.
fn start() {
    // It looks for changed rules by itself, but only now and then.
    run(&UDEVADM, &["control", "--reload"]);
    run(&UDEVADM, &["trigger", "--type=devices", "--subsystem-match=pci", "--action=add"]);
    run(&UDEVADM, &["settle", "--timeout=60"]);
}

pub(crate) fn a_binding_outlives_a_reboot() {
    let (edu, text) = (address(0), address(0).to_string());
    let said = vfio_dma(&["bind", &text, "--persist"]);
    assert!(said.status == 0 && said.out.contains("bound whenever it appears"), "{said:#?}");
    let rule = format!("/etc/udev/rules.d/40-vfio-dma-{text}.rules");
    assert!(fs::metadata(&rule).is_ok());
    let said = vfio_dma(&["unbind", &text]);
    assert!(said.err.contains("binds 0000:00:05.0 to vfio-pci again"), "{said:#?}");
    // What the reboot forgets.
    let _ = fs::remove_dir_all("/run/vfio-dma");
    assert_eq!(driver(0), None);
    run(&UDEVD, &["--daemon"]);
    start();
    assert_eq!(driver(0).as_deref(), Some("vfio-pci"));
    assert_eq!(driver(1), None, "other cards are left alone");
    let said = vfio_dma(&["status"]);
    assert!(said.out.contains("(bound to vfio-pci when the machine starts)"), "{said:#?}");
    // Another card at the address is left alone.
    let text_of_rule = fs::read_to_string(&rule).unwrap();
    // Exchanged as a whole, as an editor does: udev looks at the directory.
    fs::write("/tmp/rule", text_of_rule.replace("0x11e8", "0x11e9")).unwrap();
    fs::remove_file(&rule).unwrap();
    fs::copy("/tmp/rule", &rule).unwrap();
    let said = vfio_dma(&["unbind", &text]);
    assert_eq!(said.status, 0, "{said:#?}");
    start();
    assert_eq!(driver(0), None);
    // It is removed, and nothing is bound any more.
    fs::write(&rule, text_of_rule).unwrap();
    let said = vfio_dma(&["unbind", &text, "--persist"]);
    assert!(said.status == 0 && said.out.contains("is removed"), "{said:#?}");
    assert!(fs::metadata(&rule).is_err());
    start();
    assert_eq!(driver(0), None);
    assert_eq!(Sysfs::new().persistent(edu), None);
}

pub(crate) fn status_tells_who_uses_what() {
    let device = address(0).to_string();
    crate::support::bind(address(0));
    let opened = crate::support::open(address(0));
    let said = vfio_dma(&["status"]);
    assert_eq!(said.status, 0, "{said:#?}");
    let line = said.out.lines().find(|line| line.contains(&device)).unwrap();
    assert!(line.contains("vfio-pci") && line.contains("yes: process"), "{line}");
    let heading = said.out.lines().any(|line| line == "PCI bridge" || line == "PCI");
    assert!(heading || said.out.contains("bridge"), "{said:#?}");
    drop(opened);
    let said = vfio_dma(&["status", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    let functions = json["functions"].as_array().unwrap();
    assert_eq!(functions.len(), Sysfs::new().enumerate().unwrap().len());
    let own = functions.iter().find(|function| function["address"] == *device).unwrap();
    assert_eq!((&own["in_use"], &own["driver"]), (&false.into(), &"vfio-pci".into()));
    let _ = vfio_dma(&["unbind", &device]);
}

pub(crate) fn list_names_the_devices() {
    let said = vfio_dma(&["list"]);
    assert_eq!(said.status, 0, "{said:#?}");
    for part in ["0000:00:05.0", "1234:11e8", "edu", "pci-testdev", "1b36:0005"] {
        assert!(said.out.contains(part), "{part}: {said:#?}");
    }
    let said = vfio_dma(&["list", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    let text = json.to_string();
    assert!(text.contains("0000:00:08.0"), "{text}");
    assert!(fs::metadata("/sys/bus/pci/devices/0000:00:08.0").is_ok());
}

pub(crate) fn a_refused_bind_gives_the_driver_back() {
    // Without an IOMMU vfio-pci does not take the serial card, after its own driver let go.
    let device = address(1).to_string();
    assert_eq!(driver(1).as_deref(), Some("serial"));
    let before = machine_state();
    let said = vfio_dma(&["bind", &device]);
    crate::support::check_refusal(
        &said,
        &[&device, "no IOMMU group", "intel_iommu=on", "as before, with the driver serial"],
    );
    assert_eq!(machine_state(), before);
}
