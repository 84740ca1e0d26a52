//! Functions that the host uses are not taken from it.

use std::fs;
use std::io::Write as _;
use std::process::Command;

use vfio_dma::host::{HostUse, Sysfs};
use vfio_dma_tests::{Machine, address, vfio_dma};
use vfio_dma_tools::vm::{self, Kernel, VmConfig};

use crate::support::{leaves_machine_alone, refused};

pub(crate) const EDU: u8 = 0;
const DISK: u8 = 1;
const CARD: u8 = 2;
pub(crate) const PHYSICAL: u8 = 3;
pub(crate) const MANY_MESSAGES: u8 = 4;

/// A disk, network cards, one with virtual functions, and a controller with 16 MSI messages
/// that needs no driver here.
pub(crate) fn machine() -> Machine {
    with(Vec::new())
}

/// The same, where interrupts are not remapped: VFIO attaches no device unless it is told to,
/// and there is one MSI message for each device.
pub(crate) fn unremapped() -> Machine {
    with(vec!["intremap=off".into()])
}

fn with(kernel_args: Vec<String>) -> Machine {
    let mut disk = tempfile::NamedTempFile::new().expect("a file for the guest's disk");
    disk.as_file_mut().set_len(64 << 20).expect("room for the guest's disk");
    let drive = format!("if=none,id=disk,format=raw,file={}", disk.path().display());
    let devices = [
        "edu",
        "nvme,drive=disk,serial=1",
        "e1000e,romfile=",
        "igb,romfile=",
        "nec-usb-xhci,msi=on,msix=off,intrs=16",
    ];
    let vm = VmConfig {
        kernel: Kernel::Full,
        devices: devices.map(vm::Device::from).into(),
        qemu_args: ["-drive".into(), drive.into()].into(),
        kernel_args,
        ..VmConfig::default()
    };
    // The file is there until the guest has ended.
    let verify = move || disk.close().map_err(|error| error.to_string());
    Machine { vm, verify: Box::new(verify) }
}

/// Runs a line of shell, which must succeed.
pub(crate) fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn driver(index: u8) -> Option<String> {
    Sysfs::new().device(address(index)).unwrap().driver
}

/// The kernel's name of the only namespace of the guest's disk.
fn disk() -> &'static str {
    assert_eq!(driver(DISK).as_deref(), Some("nvme"));
    "nvme0n1"
}

/// A function is refused by `bind`, nothing changes, and the reason and remedy are told.
fn check_refused(index: u8, parts: &[&str]) {
    let device = address(index).to_string();
    let before = driver(index);
    leaves_machine_alone(|| {
        let parts = [&["the host uses", "--force"], parts].concat();
        refused(&["bind", &device], &parts);
    });
    assert_eq!(driver(index), before);
}

/// It is taken when nobody uses it, and given back.
fn check_taken(index: u8) {
    let before = driver(index);
    assert_eq!(Sysfs::new().uses(address(index)).unwrap(), []);
    let said = vfio_dma(&["bind", &address(index).to_string()]);
    assert_eq!(said.status, 0, "{said:#?}");
    let said = vfio_dma(&["unbind", &address(index).to_string()]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert_eq!(driver(index), before);
}

pub(crate) fn a_disk_with_a_mounted_file_system_is_refused() {
    let disk = disk();
    sh(&format!(
        "mke2fs /dev/{disk} && mkdir -p '/mnt/a b' && mount -t ext4 /dev/{disk} '/mnt/a b'"
    ));
    check_refused(DISK, &[disk, "is mounted at /mnt/a b", "umount"]);
    sh("echo kept > '/mnt/a b/file' && umount '/mnt/a b'");
    check_taken(DISK);
    sh(&format!("mount -t ext4 /dev/{disk} '/mnt/a b'"));
    assert_eq!(sh("cat '/mnt/a b/file'"), "kept\n");
    // Another mount namespace shows it, this one does not.
    let mut other = Command::new("unshare")
        .args(["-m", "sh", "-c", "echo; read line"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0];
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut ready).unwrap();
    sh("umount '/mnt/a b'");
    check_refused(DISK, &[disk, "is mounted at /mnt/a b"]);
    drop(other.stdin.take());
    other.wait().unwrap();
    check_taken(DISK);
}

pub(crate) fn a_disk_that_is_swapped_to_is_refused() {
    let disk = disk();
    sh(&format!("mkswap /dev/{disk} && swapon /dev/{disk}"));
    check_refused(DISK, &["swaps to", disk, &format!("swapoff /dev/{disk}")]);
    sh(&format!("swapoff /dev/{disk}"));
    check_taken(DISK);
}

pub(crate) fn a_disk_that_something_is_made_of_is_refused() {
    let disk = disk();
    let number = fs::read_to_string(format!("/sys/class/block/{disk}/dev")).unwrap();
    fs::write("/sys/module/md_mod/parameters/new_array", "md_test").unwrap();
    let array = "/sys/class/block/md_test/md";
    fs::write(format!("{array}/new_dev"), number).unwrap();
    check_refused(DISK, &[&format!("md_test is made of {disk}")]);
    fs::write(format!("{array}/array_state"), "clear").unwrap();
}

pub(crate) fn a_disk_that_is_open_is_refused() {
    let disk = disk();
    for node in [format!("/dev/{disk}"), "/dev/nvme0".into()] {
        let mut holder = Command::new("sh")
            .args(["-c", &format!("exec 3<{node}; echo; read line")])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut ready).unwrap();
        check_refused(DISK, &[&format!("process {} (sh) has {node} open", holder.id())]);
        drop(holder.stdin.take());
        holder.wait().unwrap();
    }
    check_taken(DISK);
}

pub(crate) fn who_insists_gets_a_disk_in_use() {
    let disk = disk();
    sh(&format!("mke2fs /dev/{disk} && mkdir -p /mnt/c && mount -t ext4 /dev/{disk} /mnt/c"));
    let said = vfio_dma(&["bind", "--force", &address(DISK).to_string()]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert_eq!(driver(DISK).as_deref(), Some("vfio-pci"));
    sh("umount -l /mnt/c");
    let said = vfio_dma(&["unbind", &address(DISK).to_string()]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert_eq!(driver(DISK).as_deref(), Some("nvme"));
}

pub(crate) fn run_and_bench_refuse_as_bind_does() {
    let device = address(EDU);
    let _ = vfio_dma(&["unbind", &device.to_string()]);
    let bar = Sysfs::new().tree().device_dir(device).unwrap().join("resource0");
    let other = fs::File::open(&bar).unwrap();
    let text = device.to_string();
    for command in ["run", "bench"] {
        leaves_machine_alone(|| {
            let parts = [&text, "the host uses", "resource0 open", "--force"];
            refused(&[command, "--bind", &text], &parts);
        });
    }
    let said = vfio_dma(&["run", "--bind", "--force", "--size", "4K", &text]);
    assert_eq!(said.status, 0, "{said:#?}");
    drop(other);
    let said = vfio_dma(&["run", "--bind", "--size", "4K", &text]);
    assert_eq!(said.status, 0, "{said:#?}");
}

pub(crate) fn a_network_card_in_use_is_refused() {
    let dir = Sysfs::new().tree().device_dir(address(CARD)).unwrap().join("net");
    let name = fs::read_dir(dir).unwrap().next().unwrap().unwrap().file_name();
    let name = name.to_str().unwrap();
    sh(&format!("ip address add 192.0.2.7/24 dev {name} && ip link set {name} up"));
    check_refused(CARD, &[name, "is up", "192.0.2.7", &format!("ip link set {name} down")]);
    sh(&format!("ip link set {name} down"));
    check_refused(CARD, &[name, "192.0.2.7", "flush"]);
    sh(&format!("ip address flush dev {name} && ip link set {name} up"));
    check_refused(CARD, &[name, "is up"]);
    sh(&format!("ip link set {name} down"));
    check_taken(CARD);
}

pub(crate) fn bridges_are_refused() {
    for (device, name) in [("0000:00:00.0", "host bridge"), ("0000:00:1f.0", "ISA bridge")] {
        leaves_machine_alone(|| {
            refused(&["bind", device], &["a part of the machine", name, "--force"]);
        });
    }
}

pub(crate) fn a_function_with_virtual_functions_is_refused() {
    let device = address(PHYSICAL);
    assert_eq!(driver(PHYSICAL).as_deref(), Some("igb"));
    let count = Sysfs::new().tree().device_dir(device).unwrap().join("sriov_numvfs");
    fs::write(&count, "2").unwrap();
    let uses = Sysfs::new().uses(device).unwrap();
    let Some(HostUse::VirtualFunctions { functions, .. }) = uses.first() else {
        panic!("{uses:?}")
    };
    check_refused(PHYSICAL, &[&functions[0], &functions[1], "echo 0 > ", "sriov_numvfs"]);
    let mut file = fs::OpenOptions::new().write(true).open(&count).unwrap();
    file.write_all(b"0").unwrap();
    check_taken(PHYSICAL);
}
