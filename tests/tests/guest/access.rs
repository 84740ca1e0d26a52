//! The ways through VFIO other than groups with type1: iommufd, and no-IOMMU mode.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use vfio_dma::backend::vfio::Access;
use vfio_dma::backend::{BackendError, DmaAccess, IrqKind, MapRequest, Translation};
use vfio_dma::device::{Device, DeviceError};
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Completion, Config, Edu};
use vfio_dma::devices::pci_testdev::PciTestdev;
use vfio_dma::dma::{Direction, Memory, PageSize, Request};
use vfio_dma::host::Sysfs;
use vfio_dma::mmio::{Reg, WriteOnly};
use vfio_dma::pci::Address;
use vfio_dma::session::Session;
use vfio_dma_tests::{Machine, address, vfio_dma};
use vfio_dma_tools::vm::{self, Iommu, Kernel, VmConfig};

use crate::errors::as_user;
use crate::examples;
use crate::interrupts::{SOON, check_intx, check_msix};
use crate::memory::check_directions;
use crate::support::{
    bind, check_refusal, copy_and_verify, leaves_machine_alone, open_through, open_without_iommu,
    refused, share_a_buffer, without_iommu,
};

const EDU: u8 = 0;
const EDU_32: u8 = 1;
const TESTDEV: u8 = 2;
const CARD: u8 = 3;

const CONTAINER: &str = "/dev/vfio/vfio";
const IOMMU: &str = "/dev/iommu";
const PARAMETER: &str = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";

fn machine(iommu: Iommu, kernel_args: Vec<String>) -> Machine {
    let devices = ["edu", "edu,dma_mask=0xffffffff", "pci-testdev,membar=16M", "e1000e,romfile="];
    let devices = devices.map(vm::Device::from).into();
    let files = examples::files();
    VmConfig { kernel: Kernel::Full, iommu, devices, files, kernel_args, ..VmConfig::default() }
        .into()
}

pub(crate) fn iommufd() -> Machine {
    machine(Iommu::default(), Vec::new())
}

pub(crate) fn noiommu() -> Machine {
    machine(Iommu::None, vec!["vfio.enable_unsafe_noiommu_mode=1".into()])
}

/// The device's own node, such as /dev/vfio/devices/vfio0.
fn cdev(index: u8) -> PathBuf {
    let dir = Sysfs::new().tree().device_dir(address(index)).unwrap().join("vfio-dev");
    let name = fs::read_dir(dir).unwrap().next().unwrap().unwrap().file_name();
    Path::new("/dev/vfio/devices").join(name)
}

fn name(device: &Device) -> String {
    device.space().iommu().name().to_owned()
}

fn backend_error(result: Result<Device, DeviceError>) -> BackendError {
    match result {
        Err(DeviceError::Backend(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// The kernel's log has nothing to complain about; the last case of a scenario.
pub(crate) fn the_kernel_is_content() {
    let output = Command::new("dmesg").output().unwrap();
    let log = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(log.contains("Linux version"), "the whole log: {log}");
    for bad in ["WARNING:", "BUG:", "Call Trace", "Oops"] {
        assert!(!log.contains(bad), "{bad} in the kernel's log:\n{log}");
    }
}

/// Runs `body` while these nodes are not there.
fn without<T>(nodes: &[&str], body: impl FnOnce() -> T) -> T {
    let away = |node: &str| format!("{node}.away");
    nodes.iter().for_each(|node| fs::rename(node, away(node)).unwrap());
    let result = body();
    nodes.iter().for_each(|node| fs::rename(away(node), node).unwrap());
    result
}

fn give(nodes: &[&Path], user: u32) {
    nodes.iter().for_each(|node| chown(node, Some(user), None).unwrap());
}

pub(crate) fn edu_moves_64_kib_by_msi_through_iommufd() {
    bind(address(EDU));
    let device = address(EDU).to_string();
    let said = vfio_dma(&["run", &device, "--size", "64K", "--iommu", "iommufd", "--json"]);
    assert_eq!(said.status, 0, "{said:#?}");
    let outcome: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(outcome["iommu"], "iommufd");
    assert_eq!(outcome["completion"], "msi");
    assert_eq!((&outcome["bytes"], &outcome["verified"]), (&65_536.into(), &true.into()));
}

pub(crate) fn two_devices_share_an_ioas() {
    bind(address(EDU));
    bind(address(EDU_32));
    let mut session = Session::through(Access::Iommufd);
    let mut open = |index| {
        let device = session.open(address(index)).unwrap();
        Edu::probe(device, Config { completion: Completion::Msi, ..Config::default() }).unwrap()
    };
    let (mut first, mut second) = (open(EDU), open(EDU_32));
    assert!(Arc::ptr_eq(first.device().space(), second.device().space()));
    assert_eq!(name(first.device()), "iommufd");
    copy_and_verify(&mut first, 3000, 1);
    let shared = share_a_buffer(&mut first, &mut second);
    // The one that stays goes on when the other leaves.
    drop(first);
    drop(shared);
    copy_and_verify(&mut second, 3000, 2);
    assert_eq!(second.device().space().usage().mappings, 0);
}

pub(crate) fn iommufd_enforces_directions() {
    let device = open_through(Access::Iommufd, address(EDU));
    let config = Config { completion: Completion::Polled, ..Config::default() };
    check_directions(&Edu::probe(device, config).unwrap());
}

pub(crate) fn iommufd_windows_leave_reserved_regions_out() {
    let of = |access| {
        let device = open_through(access, address(EDU));
        device.space().iommu().info().unwrap()
    };
    let info = of(Access::Iommufd);
    assert_eq!((info.translation, info.page_sizes), (Translation::Iommu, 0x1000));
    // The same IOMMU through the other interface: 48 bits without the MSI window.
    assert_eq!(info.ranges, of(Access::Type1).ranges);
    assert!(info.ranges.iter().all(|range| !range.contains(&0xfee0_0000)), "{:x?}", info.ranges);
    assert_eq!(*info.ranges.last().unwrap().end(), (1 << 48) - 1);
}

pub(crate) fn iommufd_refuses_what_is_mapped_and_unmaps_exactly() {
    let device = open_through(Access::Iommufd, address(EDU));
    let iommu = device.space().iommu();
    let memory = Memory::allocate(8192, PageSize::Base, false).unwrap();
    let map = |iova| {
        let access = DmaAccess::ReadWrite;
        let request = MapRequest { iova, host: memory.base(), len: 8192, access, file: None };
        // SAFETY: the memory lives until the end of the case, when nothing is mapped.
        unsafe { iommu.map(&request) }.map_err(|error| error.to_string())
    };
    map(0x10_0000).unwrap();
    let error = map(0x10_0000).unwrap_err();
    assert!(error.contains("0x100000") && error.contains("mapped already"), "{error}");
    let error = map(0xfee0_0000).unwrap_err();
    assert!(error.contains("0xfee00000") && error.contains("reserved"), "{error}");
    for (iova, len) in [(0x20_0000, 8192), (0x10_0000, 4096), (0x10_1000, 4096)] {
        let error = iommu.unmap(iova, len).unwrap_err().to_string();
        assert!(error.contains(&format!("{iova:#x}")), "{error}");
    }
    iommu.unmap(0x10_0000, 8192).unwrap();
    map(0x10_0000).unwrap();
    iommu.unmap(0x10_0000, 8192).unwrap();
}

pub(crate) fn iommufd_cycles_leave_nothing_behind() {
    let open_files = || fs::read_dir("/proc/self/fd").unwrap().count();
    let cycle = || {
        let device = open_through(Access::Iommufd, address(EDU));
        let config = Config { completion: Completion::Polled, ..Config::default() };
        let edu = Edu::probe(device, config).unwrap();
        let space = Arc::clone(edu.device().space());
        for i in 0..100 {
            let buffer = edu
                .allocate(&Request::new([1, 4096, 100_000][i % 3], Direction::ToDevice))
                .unwrap();
            drop(buffer);
        }
        assert_eq!((space.usage().mappings, space.usage().map_calls), (0, 100));
    };
    cycle();
    let before = open_files();
    (0..10).for_each(|_| cycle());
    assert_eq!(open_files(), before);
}

/// What takes no DMA: registers, regions, each kind of interrupt, and reset.
fn check_without_dma(open: fn(Address) -> Device) {
    let device = open(address(EDU));
    let edu = Edu::probe(device, Config::default()).unwrap();
    assert_eq!(edu.version().unwrap(), (1, 0));
    drop(edu);
    let mut device = open(address(EDU));
    check_intx(&device);
    // edu raises by register (QEMU docs/specs/edu.rst); an MSI is a write to memory.
    const RAISE: Reg<u32, WriteOnly> = Reg::at(0x60);
    device.set_bus_master(true).unwrap();
    let msi = device.vectors(IrqKind::Msi, 1).unwrap().remove(0);
    device.bar(0).unwrap().set(RAISE, 1).unwrap();
    assert_eq!(msi.wait(SOON).unwrap(), 1);
    drop(msi);
    let mut card = open(address(CARD));
    check_msix(&mut card);
    card.reset().unwrap();
}

pub(crate) fn registers_and_interrupts_work_through_iommufd() {
    check_without_dma(|address| open_through(Access::Iommufd, address));
}

pub(crate) fn the_group_and_the_character_device_exclude_each_other() {
    let device = address(EDU).to_string();
    for (held, node) in [(Access::Iommufd, "vfio"), (Access::Type1, "/dev/vfio/")] {
        let held = open_through(held, address(EDU));
        leaves_machine_alone(|| {
            for iommu in ["type1", "iommufd"] {
                refused(&["run", &device, "--iommu", iommu], &[&device, "busy", node, "fuser"]);
            }
            refused(&["run", &device], &[&device, "type1: ", "iommufd: ", "busy", "fuser"]);
        });
        drop(held);
    }
    let said = vfio_dma(&["run", "--size", "100", "--iommu", "iommufd", &device]);
    assert_eq!(said.status, 0, "free again: {said:#?}");
}

pub(crate) fn iommufd_tells_an_unprivileged_user_what_to_do() {
    bind(address(EDU));
    let device = address(EDU).to_string();
    let node = cdev(EDU);
    let run = ["run", "--size", "4K", "--iommu", "iommufd", &device];
    leaves_machine_alone(|| {
        check_refusal(&as_user(&run, None), &[IOMMU, "1000", "chown 1000 /dev/iommu"]);
        chown(IOMMU, Some(1000), None).unwrap();
        let parts = format!("chown 1000 {}", node.display());
        check_refusal(&as_user(&run, None), &["1000", &parts]);
    });
    chown(&node, Some(1000), None).unwrap();
    let said = as_user(&run, None);
    assert_eq!(said.status, 0, "the remedy works: {said:#?}");
    chown(&node, Some(0), None).unwrap();
    chown(IOMMU, Some(0), None).unwrap();
}

pub(crate) fn iommufd_memory_lock_limit() {
    bind(address(EDU));
    let device = address(EDU).to_string();
    let node = cdev(EDU);
    give(&[Path::new(IOMMU), &node], 1000);
    let run = |size| {
        let args = ["run", "--iommu", "iommufd", "--size", size, &device];
        as_user(&args, Some(65_536))
    };
    let parts = ["256 KiB", "64 KiB", "all processes of this user", "ulimit -l", "through type1"];
    leaves_machine_alone(|| check_refusal(&run("256K"), &parts));
    let said = run("16K");
    assert_eq!(said.status, 0, "below the limit: {said:#?}");
    give(&[Path::new(IOMMU), &node], 0);
}

pub(crate) fn auto_prefers_type1_and_falls_back_to_iommufd() {
    bind(address(EDU));
    let opened = || Session::new().open(address(EDU)).map(|device| name(&device));
    assert_eq!(opened().unwrap(), "type1v2");
    assert_eq!(without(&[CONTAINER], opened).unwrap(), "iommufd");
    assert_eq!(without(&[IOMMU], opened).unwrap(), "type1v2");
}

pub(crate) fn every_way_that_failed_is_told() {
    bind(address(EDU));
    let device = address(EDU).to_string();
    leaves_machine_alone(|| {
        without(&[CONTAINER, IOMMU], || {
            let parts =
                ["type1: ", CONTAINER, "modprobe vfio-pci", "iommufd: ", IOMMU, "CONFIG_IOMMUFD"];
            refused(&["run", &device], &parts);
            // A way that is asked for by name is the only one that is told of.
            let error = backend_error(Session::through(Access::Iommufd).open(address(EDU)));
            assert!(!error.to_string().contains(CONTAINER), "{error}");
        });
    });
    // A reason that all ways share is told once.
    let said = vfio_dma(&["run", &address(TESTDEV).to_string()]);
    assert!(!said.err.contains("iommufd"), "{said:#?}");
    check_refusal(&said, &["not to vfio-pci", "vfio-dma bind"]);
    // Without the node of the device itself.
    let node = cdev(EDU).display().to_string();
    without(&[&node], || {
        let parts = [&node, "CONFIG_VFIO_DEVICE_CDEV"];
        refused(&["run", &device, "--iommu", "iommufd"], &parts);
    });
}

pub(crate) fn noiommu_is_refused_where_there_is_an_iommu() {
    bind(address(EDU));
    let device = address(EDU).to_string();
    leaves_machine_alone(|| {
        let parts = [&device, "has an IOMMU", "--iommu type1"];
        refused(&["run", &device, "--iommu", "noiommu"], &parts);
    });
}

pub(crate) fn auto_never_takes_noiommu() {
    bind(address(EDU));
    let device = address(EDU).to_string();
    leaves_machine_alone(|| {
        for iommu in ["auto", "type1", "iommufd"] {
            let parts = [&device, "no IOMMU", "/dev/vfio/noiommu-", "--iommu noiommu"];
            refused(&["run", &device, "--iommu", iommu], &parts);
        }
    });
}

pub(crate) fn registers_and_interrupts_work_without_an_iommu() {
    check_without_dma(open_without_iommu);
}

pub(crate) fn testdev_passes_without_an_iommu() {
    bind(address(TESTDEV));
    let device = address(TESTDEV).to_string();
    let said = vfio_dma(&["run", &device, "--writes", "100", "--iommu", "noiommu"]);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.out.contains("portio-no-eventfd") && said.out.contains("0 failed"), "{said:#?}");
    assert_eq!(said.err.matches("no-IOMMU mode").count(), 1, "one warning: {said:#?}");
    assert!(said.err.contains("WARN") && said.err.contains("all of this machine's memory"));
    // Two devices in one session share physical memory.
    bind(address(EDU));
    let mut session = without_iommu();
    let testdev = session.open(address(TESTDEV)).unwrap();
    let edu = session.open(address(EDU)).unwrap();
    assert!(Arc::ptr_eq(testdev.space(), edu.space()));
    let results = PciTestdev::probe(testdev, ()).unwrap().run(100).unwrap();
    assert!(results.iter().all(|test| test.passed()), "{results:#?}");
}

pub(crate) fn a_buffer_cannot_be_mapped_without_an_iommu() {
    let device = open_without_iommu(address(EDU));
    let iommu = Arc::clone(device.space().iommu());
    assert_eq!(iommu.info().unwrap().translation, Translation::Physical);
    let memory = Memory::allocate(4096, PageSize::Base, false).unwrap();
    let access = DmaAccess::ReadWrite;
    let request = MapRequest { iova: 0x1000, host: memory.base(), len: 4096, access, file: None };
    // SAFETY: the memory outlives the case's devices, and nothing refers into it.
    let error = unsafe { iommu.map(&request) }.unwrap_err();
    assert!(matches!(error, BackendError::Unsupported { .. }), "{error:?}");
    assert_eq!(device.space().usage().map_calls, 0);
}

pub(crate) fn edu_moves_data_in_physical_memory() {
    bind(address(EDU_32));
    let device = address(EDU_32).to_string();
    for (placement, size, strategy) in
        [("contiguous", "16K", "physical-contiguous"), ("sg", "32K", "scatter-gather")]
    {
        let said = vfio_dma(&[
            "run",
            &device,
            "--iommu",
            "noiommu",
            "--address-bits",
            "32",
            "--size",
            size,
            "--placement",
            placement,
            "--json",
        ]);
        assert_eq!(said.status, 0, "{said:#?}");
        let outcome: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!((&outcome["iommu"], &outcome["verified"]), (&"noiommu".into(), &true.into()));
        assert!(outcome["source"].to_string().contains(strategy), "{said:#?}");
    }
}

pub(crate) fn a_device_without_an_iommu_is_opened_once() {
    let device = address(EDU).to_string();
    let held = open_without_iommu(address(EDU));
    let parts = [&device, "busy", "/dev/vfio/noiommu-", "fuser"];
    refused(&["run", &device, "--iommu", "noiommu"], &parts);
    drop(held);
    // Everything is closed, in an order that the kernel takes.
    for _ in 0..10 {
        drop(open_without_iommu(address(EDU)));
    }
}

pub(crate) fn noiommu_takes_a_capability() {
    bind(address(TESTDEV));
    let device = address(TESTDEV).to_string();
    let node = Sysfs::new().device(address(TESTDEV)).unwrap().group.unwrap().node();
    let run = ["run", &device, "--iommu", "noiommu"];
    let denied = as_user(&run, None);
    check_refusal(&denied, &["1000", "chown 1000"]);
    give(&[Path::new(CONTAINER), &node], 1000);
    check_refusal(&as_user(&run, None), &[&device, "CAP_SYS_RAWIO", "setcap"]);
    give(&[Path::new(CONTAINER), &node], 0);
}

pub(crate) fn noiommu_says_how_it_is_switched_on() {
    let device = address(EDU_32).to_string();
    let _ = vfio_dma(&["unbind", &device]);
    let run = ["run", &device, "--iommu", "noiommu"];
    // On, and the device is not bound.
    refused(&run, &[&device, "vfio-dma bind"]);
    fs::write(PARAMETER, "N").unwrap();
    refused(&run, &["switched off", &format!("echo Y > {PARAMETER}"), "bind the device"]);
    // The remedy works.
    fs::write(PARAMETER, "Y").unwrap();
    bind(address(EDU_32));
    let edu = without_iommu().open(address(EDU_32)).unwrap();
    assert_eq!(name(&edu), "noiommu");
}
