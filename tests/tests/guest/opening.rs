//! What keeps a device from being opened or memory from being mapped is told, with what mends
//! it, by the error and by doctor.

use std::fs::{self, File};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use vfio_dma::backend::vfio::{Access, VfToken};
use vfio_dma::backend::{BackendError, IrqKind};
use vfio_dma::device::DeviceError;
use vfio_dma::dma::{Direction, Request};
use vfio_dma::host::Sysfs;
use vfio_dma::irq::IrqError;
use vfio_dma::pci::Address;
use vfio_dma::session::Session;
use vfio_dma_tests::{address, vfio_dma};

use crate::in_use::{EDU, MANY_MESSAGES, PHYSICAL, sh};
use crate::support::{bind, open, open_through, refused};

const ALLOW: [&str; 2] = [
    "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts",
    "/sys/module/iommufd/parameters/allow_unsafe_interrupts",
];

/// What doctor says of a device under one name: status, finding, remedy.
fn doctor(device: Address, name: &str) -> [String; 3] {
    let said = vfio_dma(&["doctor", "--json", &device.to_string()]);
    let report: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let all_ok = checks.iter().all(|check| check["status"] != "failed");
    assert_eq!((said.status == 0, &report["ready"]), (all_ok, &all_ok.into()), "{said:#?}");
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("no check {name}: {}", said.out));
    ["status", "finding", "remedy"].map(|key| check[key].as_str().unwrap_or_default().to_owned())
}

pub(crate) fn without_interrupt_remapping_doctor_and_the_error_say_so() {
    let device = address(EDU);
    bind(device);
    for node in ALLOW {
        fs::write(node, "N").unwrap();
    }
    let [status, finding, remedy] = doctor(device, "attach");
    assert_eq!(status, "failed", "{finding}");
    assert!(finding.contains("does not remap interrupts"), "{finding}");
    assert!(remedy.contains("allow_unsafe_interrupts=1"), "{remedy}");
    refused(&["run", &device.to_string()], &["allow_unsafe_interrupts=1"]);
    for node in ALLOW {
        fs::write(node, "Y").unwrap();
    }
    assert_eq!(doctor(device, "attach")[0], "ok");
    let driver = Sysfs::new().device(device).unwrap().driver;
    assert_eq!(driver.as_deref(), Some("vfio-pci"), "it is left as it was");
}

pub(crate) fn fewer_messages_than_asked_for_are_an_error_with_their_number() {
    for node in ALLOW {
        fs::write(node, "Y").unwrap();
    }
    for access in [Access::Type1, Access::Iommufd] {
        let device = open_through(access, address(MANY_MESSAGES));
        assert_eq!(device.vector_count(IrqKind::Msi).unwrap(), 16);
        let error = device.vectors(IrqKind::Msi, 2).unwrap_err();
        assert!(
            matches!(
                error,
                DeviceError::Irq(IrqError::Backend(BackendError::FewerVectors {
                    requested: 2,
                    available: 1,
                    ..
                }))
            ),
            "{error:?}"
        );
        assert!(error.to_string().contains("remap"), "{error}");
        assert_eq!(device.vectors_up_to(IrqKind::Msi, 16).unwrap().len(), 1);
        assert_eq!(device.vectors(IrqKind::Msi, 1).unwrap().len(), 1);
    }
}

pub(crate) fn all_messages_are_had_where_interrupts_are_remapped() {
    let device = open(address(MANY_MESSAGES));
    assert_eq!(device.vectors(IrqKind::Msi, 16).unwrap().len(), 16);
}

pub(crate) fn a_virtual_function_takes_the_token_of_its_physical_one() {
    let physical = address(PHYSICAL);
    bind(physical);
    fs::write("/sys/module/vfio_pci/parameters/enable_sriov", "Y").unwrap();
    let dir = Sysfs::new().tree().device_dir(physical).unwrap();
    fs::write(dir.join("sriov_numvfs"), "1").unwrap();
    let link = fs::read_link(dir.join("virtfn0")).unwrap();
    let function: Address = link.file_name().unwrap().to_str().unwrap().parse().unwrap();
    bind(function);
    let [status, finding, _] = doctor(function, "config-space");
    assert_eq!(status, "ok", "{finding}");
    assert!(finding.contains(&format!("virtual function of {physical}")), "{finding}");
    let text = "14d63f20-8445-11ea-8900-1f9ce7d5650d";
    let token: VfToken = text.parse().unwrap();
    let other = VfToken::from_bytes([7; 16]);
    for access in [Access::Type1, Access::Iommufd] {
        let mut session = Session::through(access);
        let error = session.open(function).unwrap_err().to_string();
        let parts = [function.to_string(), physical.to_string(), "none was given".into()];
        assert!(parts.iter().all(|part| error.contains(part)), "{access}: {error}");
        let held = session.open_with(physical, Some(&token)).unwrap();
        let error = session.open_with(function, Some(&other)).unwrap_err().to_string();
        assert!(error.contains("another one was given"), "{access}: {error}");
        let opened = session.open_with(function, Some(&token)).unwrap();
        // The kernel shows the ids that the function does not have itself.
        assert_eq!(opened.config().vendor_id().unwrap(), 0x8086);
        drop((opened, held));
    }
    let [status, finding, remedy] = doctor(function, "attach");
    assert_eq!(status, "failed", "{finding}");
    assert!(remedy.contains("--vf-token"), "{remedy}");
    refused(&["unbind", &physical.to_string()], &[&function.to_string(), "sriov_numvfs"]);
    let error = open_with_a_token_for_nothing();
    assert!(error.contains("a token is for a physical function"), "{error}");
    let _ = vfio_dma(&["unbind", &function.to_string()]);
    fs::write(dir.join("sriov_numvfs"), "0").unwrap();
    assert_eq!(vfio_dma(&["unbind", &physical.to_string()]).status, 0);
}

/// The card that has no virtual functions.
fn open_with_a_token_for_nothing() -> String {
    bind(address(EDU));
    let token = VfToken::from_bytes([7; 16]);
    let opened = Session::through(Access::Type1).open_with(address(EDU), Some(&token));
    opened.map(drop).unwrap_err().to_string()
}

pub(crate) fn a_file_on_a_disk_is_read_by_a_device_and_not_written() {
    sh("mke2fs /dev/nvme0n1 && mkdir -p /mnt/d && mount -t ext4 /dev/nvme0n1 /mnt/d");
    fs::write("/mnt/d/file", [7; 8192]).unwrap();
    for access in [Access::Type1, Access::Iommufd] {
        let device = open_through(access, address(EDU));
        let file = File::open("/mnt/d/file").unwrap();
        let read = Request::new(8192, Direction::ToDevice);
        drop(device.allocator().adopt_file(&file, 0, &read).unwrap());
        let file = File::options().read(true).write(true).open("/mnt/d/file").unwrap();
        let written = Request::new(8192, Direction::FromDevice);
        let error = device.allocator().adopt_file(&file, 0, &written).unwrap_err().to_string();
        assert!(error.contains("file on a disk") && error.contains("memfd"), "{access}: {error}");
    }
    sh("umount /mnt/d");
}

pub(crate) fn a_bar_is_mapped_through_type1_only() {
    let device = address(EDU);
    bind(device);
    let path = Sysfs::new().tree().device_dir(device).unwrap().join("resource0");
    let bar = File::options().read(true).write(true).open(path).unwrap();
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let len = NonZeroUsize::new(4096).unwrap();
    // SAFETY: a new mapping, at an address of the kernel's choice, which stays.
    let base = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &bar, 0) }.unwrap();
    let request = Request::new(4096, Direction::Bidirectional);
    let adopt = |access| {
        let device = open_through(access, device);
        // SAFETY: the mapping is never undone, and nothing refers into it.
        let buffer = unsafe { device.allocator().adopt(base.cast(), &request) };
        buffer.map(drop).map_err(|error| error.to_string())
    };
    adopt(Access::Type1).unwrap();
    let error = adopt(Access::Iommufd).unwrap_err();
    assert!(
        error.contains("BAR is lent to a device") && error.contains("mapped through type1"),
        "{error}"
    );
}

/// Counts what is logged as an error.
struct Errors(AtomicUsize);

impl log::Log for Errors {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Error
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            eprintln!("{}", record.args());
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn flush(&self) {}
}

static ERRORS: Errors = Errors(AtomicUsize::new(0));

pub(crate) fn one_of_two_devices_of_a_group_is_closed_without_a_word() {
    log::set_logger(&ERRORS).unwrap();
    log::set_max_level(log::LevelFilter::Error);
    let functions: [Address; 2] =
        ["0000:00:05.0", "0000:00:05.1"].map(|address| address.parse().unwrap());
    functions.into_iter().for_each(bind);
    for _ in 0..3 {
        let mut session = Session::through(Access::Type1);
        let first = session.open(functions[0]).unwrap();
        let second = session.open(functions[1]).unwrap();
        assert!(std::sync::Arc::ptr_eq(first.space(), second.space()));
        drop(first);
        let first = session.open(functions[0]).unwrap();
        drop(second);
        drop(first.allocate(&Request::new(8192, Direction::ToDevice)).unwrap());
        drop(first);
        // The group has left the container, and joins it again.
        drop(session.open(functions[1]).unwrap());
    }
    assert_eq!(ERRORS.0.load(Ordering::SeqCst), 0);
    assert_eq!(vfio_dma(&["unbind", "0000:00:05.1"]).status, 0);
}
