//! Everything that can be wrong gives one message with the value and the remedy, and
//! leaves the machine as it was.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::sys::resource::{Resource, setrlimit};
use vfio_dma::host::Sysfs;
use vfio_dma_tests::{Said, address, vfio_dma};

use crate::support::{bind, check_refusal, leaves_machine_alone, misused, open, refused};

pub(crate) fn unknown_and_malformed_addresses() {
    leaves_machine_alone(|| {
        for command in ["run", "bind", "unbind"] {
            refused(&[command, "0000:00:1e.7"], &["0000:00:1e.7", "vfio-dma list"]);
        }
        for bad in ["", "5.0", "0000:00:20.0", "0000:00:05.8", "0000:00:05.0 ", "xyz", "::."] {
            for command in ["run", "bind", "unbind"] {
                misused(&[command, bad], &[&format!("{bad:?}"), "0000:00:05.0"]);
            }
        }
    });
}

pub(crate) fn not_bound() {
    let device = address(0).to_string();
    let _ = vfio_dma(&["unbind", &device]);
    leaves_machine_alone(|| {
        refused(&["run", &device], &[&device, "no driver", "vfio-dma bind 0000:00:05.0"]);
    });
}

pub(crate) fn busy() {
    let device = address(0).to_string();
    let held = open(address(0));
    leaves_machine_alone(|| {
        refused(&["run", &device], &[&device, "busy", "/dev/vfio/", "fuser"]);
    });
    drop(held);
    let said = vfio_dma(&["run", "--size", "100", &device]);
    assert_eq!(said.status, 0, "free again: {said:#?}");
}

/// Runs the command line as user 1000, with a limit on locked memory if one is given.
pub(crate) fn as_user(args: &[&str], memlock: Option<u64>) -> Said {
    let mut command = Command::new("/bin/vfio-dma");
    command.args(args).stdin(Stdio::null()).uid(1000).gid(1000);
    if let Some(limit) = memlock {
        // SAFETY: setrlimit is one system call, which a child may make between fork and exec.
        unsafe { command.pre_exec(move || Ok(setrlimit(Resource::RLIMIT_MEMLOCK, limit, limit)?)) };
    }
    let output = command.output().expect("/bin/vfio-dma is this program");
    Said {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

pub(crate) fn group_node(index: u8) -> String {
    let group = Sysfs::new().device(address(index)).unwrap().group.unwrap();
    group.node().display().to_string()
}

pub(crate) fn not_root() {
    let device = address(0).to_string();
    bind(address(0));
    let _ = vfio_dma(&["unbind", &address(1).to_string()]);
    let node = group_node(0);
    leaves_machine_alone(|| {
        let said = as_user(&["run", &device], None);
        check_refusal(&said, &[&node, "1000", "chown 1000"]);
        let said = as_user(&["bind", &address(1).to_string()], None);
        check_refusal(&said, &["/sys/bus/pci/", "root"]);
    });
    // The remedy works.
    std::os::unix::fs::chown(&node, Some(1000), None).unwrap();
    let said = as_user(&["run", "--size", "4K", &device], None);
    assert_eq!(said.status, 0, "{said:#?}");
    std::os::unix::fs::chown(&node, Some(0), None).unwrap();
}

pub(crate) fn memory_lock_limit() {
    let device = address(0).to_string();
    bind(address(0));
    let node = group_node(0);
    std::os::unix::fs::chown(&node, Some(1000), None).unwrap();
    leaves_machine_alone(|| {
        let said = as_user(&["run", "--size", "256K", &device], Some(65_536));
        check_refusal(&said, &["256 KiB", "64 KiB", "ulimit -l"]);
    });
    let said = as_user(&["run", "--size", "16K", &device], Some(65_536));
    assert_eq!(said.status, 0, "below the limit: {said:#?}");
    std::os::unix::fs::chown(&node, Some(0), None).unwrap();
}

pub(crate) fn mask_below_every_range() {
    let device = address(0).to_string();
    bind(address(0));
    leaves_machine_alone(|| {
        refused(&["run", "--address-bits", "12", &device], &["0xfff", "0x1000"]);
    });
}

pub(crate) fn not_a_device_we_drive() {
    // The host bridge.
    leaves_machine_alone(|| {
        refused(&["run", "0000:00:00.0"], &["0000:00:00.0", "8086:29c0", "vfio-dma list"]);
    });
}

pub(crate) fn member_on_a_host_driver() {
    let (edu, serial) = ("0000:00:05.0", "0000:00:05.1");
    let _ = vfio_dma(&["bind", edu]);
    leaves_machine_alone(|| {
        refused(&["run", edu], &[edu, serial, "serial", "vfio-dma bind"]);
    });
    // The remedy works.
    assert_eq!(vfio_dma(&["bind", serial]).status, 0);
    let said = vfio_dma(&["run", "--size", "4K", edu]);
    assert_eq!(said.status, 0, "{said:#?}");
    // And is undone: the serial card gets its driver back.
    assert_eq!(vfio_dma(&["unbind", serial]).status, 0);
    let info = Sysfs::new().device(serial.parse().unwrap()).unwrap();
    assert_eq!(info.driver.as_deref(), Some("serial"));
}

pub(crate) fn no_iommu() {
    let device = address(0).to_string();
    let _ = vfio_dma(&["bind", &device]);
    leaves_machine_alone(|| {
        refused(&["run", &device], &[&device, "IOMMU", "intel_iommu=on"]);
    });
}

pub(crate) fn no_vfio_module() {
    let device = address(0).to_string();
    leaves_machine_alone(|| {
        refused(&["bind", &device], &["vfio-pci", "CONFIG_VFIO_PCI"]);
        refused(&["run", "--bind", &device], &["vfio-pci", "CONFIG_VFIO_PCI"]);
    });
}
