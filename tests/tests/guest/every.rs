//! Every command for a card, on every function of a guest that has one of each kind: edu, a test
//! device, a drive's controller, network cards, one with virtual functions, a controller of USB,
//! ports, a bridge and the chipset.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};

use vfio_dma::host::{BarKind, PciDeviceInfo, Sysfs};
use vfio_dma::pci::Address;
use vfio_dma_tests::{Said, vfio_dma};

/// What the command line says to lines of the shell.
fn shell(address: Address, lines: &str) -> Said {
    let mut child = Command::new("/bin/vfio-dma")
        .args(["shell", &address.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    Said {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// What was said is an answer, or one message with its reason: never a panic, a signal, or a way to
/// call the command that it does not know.
fn answered(args: &[&str], said: &Said) -> bool {
    assert!(matches!(said.status, 0 | 1), "{args:?}: {said:#?}");
    assert!(!said.err.contains("panicked"), "{args:?}: {said:#?}");
    // What doctor finds is its answer.
    if said.status == 1 && args[0] != "doctor" {
        let messages = said
            .err
            .lines()
            .filter(|line| line.starts_with("vfio-dma: ") && !line.starts_with("vfio-dma: note:"));
        assert_eq!(messages.count(), 1, "one message: {args:?}: {said:#?}");
    }
    said.status == 0
}

fn ask(args: &[&str]) -> bool {
    answered(args, &vfio_dma(args))
}

fn works(args: &[&str]) {
    let said = vfio_dma(args);
    assert!(answered(args, &said), "{args:?}: {said:#?}");
}

/// The functions, and whether they are part of the machine.
fn functions() -> Vec<(PciDeviceInfo, bool)> {
    let all = Sysfs::new().enumerate().unwrap();
    let is_own = |info: &PciDeviceInfo| {
        let class = info.class.name();
        info.class.is_pci_bridge() || class.contains("bridge")
    };
    all.into_iter().map(|info| (is_own(&info), info)).map(|(own, info)| (info, own)).collect()
}

/// What reads: of each function, whatever it is.
pub(crate) fn what_reads_answers_for_every_function() {
    works(&["status"]);
    works(&["list"]);
    let functions = functions();
    let kinds: BTreeMap<String, usize> =
        functions.iter().fold(BTreeMap::new(), |mut kinds, (info, _)| {
            *kinds.entry(info.class.name().to_string()).or_default() += 1;
            kinds
        });
    assert!(functions.len() >= 13 && kinds.len() >= 6, "{kinds:?}");
    for (info, _) in &functions {
        let bdf = info.address.to_string();
        works(&["show", &bdf]);
        works(&["show", &bdf, "--json"]);
        works(&["config", &bdf]);
        works(&["config", &bdf, "VENDOR_ID", "COMMAND.memory-space"]);
        ask(&["doctor", &bdf]);
        let said = shell(info.address, "config VENDOR_ID\npeek 0 0\nexit\n");
        assert!(answered(&["shell", &bdf], &said) || !said.err.is_empty(), "{said:#?}");
        assert!(said.out.contains("VENDOR_ID"), "{said:#?}");
        for index in 0..6 {
            let number = index.to_string();
            let there = info.bars.iter().any(|bar| bar.index == index);
            let word = ask(&["peek", &bdf, &number, "0"]);
            let range = ask(&["dump", &bdf, &number, "0..0x20"]);
            assert!(there || !word && !range, "{bdf} has no BAR{index}");
        }
        for scope in ["function", "slot", "bus"] {
            ask(&["reset", &bdf, "--scope", scope, "--dry-run"]);
        }
        ask(&["loopback", &bdf]);
    }
}

/// What changes something: of each function that is no part of the machine.
pub(crate) fn what_acts_answers_for_every_function() {
    let sysfs = Sysfs::new();
    let functions = functions();
    let physical = |info: &PciDeviceInfo| sysfs.tree().physical_function(info.address);
    let virtual_ones: Vec<Address> = functions
        .iter()
        .filter(|(info, _)| physical(info).is_some())
        .map(|(info, _)| info.address)
        .collect();
    for (info, is_own) in functions {
        let bdf = info.address.to_string();
        // Those went with their physical one when the port above that was removed.
        if sysfs.tree().device_dir(info.address).is_err() {
            assert!(virtual_ones.contains(&info.address), "{bdf} is gone");
            continue;
        }
        if is_own {
            let refused = [
                &["bind", &bdf][..],
                &["irq", "--bind", &bdf],
                &["config", &bdf, "COMMAND.serr=1"],
                &["remove", &bdf],
                &["run", "--bind", &bdf],
            ];
            for args in refused {
                // A port without anything behind it may be removed.
                let done = ask(args);
                assert!(!done || args[0] == "remove" || args[0] == "config", "{args:?}");
                if done && args[0] == "remove" {
                    works(&["rescan", &bdf]);
                }
            }
            continue;
        }
        // A physical function with virtual ones is in use by them.
        let has_virtual = sysfs.uses(info.address).is_ok_and(|uses| !uses.is_empty());
        let is_virtual = virtual_ones.contains(&info.address);
        if has_virtual || is_virtual {
            for args in [&["bind", &bdf][..], &["irq", "--bind", &bdf], &["remove", &bdf]] {
                let said = vfio_dma(args);
                assert!(
                    matches!(said.status, 0..=2) && !said.err.contains("panicked"),
                    "{said:#?}"
                );
            }
            continue;
        }
        works(&["bind", &bdf]);
        ask(&["irq", &bdf]);
        ask(&["run", &bdf]);
        ask(&["reset", &bdf]);
        let memory = info.bars.iter().find(|bar| bar.kind != BarKind::Io && bar.size >= 8);
        if let Some(bar) = memory {
            let index = bar.index.to_string();
            ask(&["peek", &bdf, &index, "0"]);
            ask(&["poke", &bdf, &index, "0", "0"]);
        }
        works(&["config", &bdf, "COMMAND.memory-space=1"]);
        works(&["unbind", &bdf]);
        works(&["remove", &bdf]);
        works(&["rescan", &bdf]);
        let back = sysfs.device(info.address).unwrap();
        assert_eq!((back.vendor, back.device), (info.vendor, info.device));
        assert_eq!(back.bars.len(), info.bars.len(), "{bdf}");
    }
}
