//! What the kernel refuses is an error that names the request's values and what helps, for every
//! request to VFIO and iommufd and every errno that it has; a number above 0 is no success.

mod kernel;
mod provoke;
mod table;

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use vfio_dma::backend::vfio::{Access, Container, Ioas, IoasOptions, Passed};
use vfio_dma::backend::{Backend, BackendError, Event, Iommu, IrqKind};
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Config, Edu};
use vfio_dma_tests::address;
use vfio_dma_tools::vm::{Kernel, VmConfig};

use kernel::{Answer, answering, recording};
use provoke::{CARD, IOVA, LEN, Outcome, THROUGH_IOMMUFD, drive, map, memory, open_files};
use table::{Above, DEVICE, IOMMUFD, LOGGED, NO_IOMMU, Row, TYPE1};

use crate::support::{bind, copy_and_verify, open_through};

/// edu, a card whose BAR 2 is memory, and a drive behind a port, whose bus is reset.
pub(crate) fn machine() -> VmConfig {
    let devices =
        ["edu", "ivshmem-plain,memdev=card", "pcie-root-port,id=above,chassis=1,x-speed=5"];
    let own = [
        "-object",
        "memory-backend-ram,share=on,id=card,size=1M",
        "-device",
        "nvme,serial=first,bus=above",
    ];
    VmConfig {
        kernel: Kernel::Full,
        devices: devices.map(Into::into).into(),
        qemu_args: own.map(Into::into).into(),
        ..VmConfig::default()
    }
}

fn bind_all() {
    [address(0), address(CARD), drive()].into_iter().for_each(bind);
}

/// The variant of an error, as `Debug` names it.
fn variant(error: &BackendError) -> String {
    let text = format!("{error:?}");
    text.split([' ', '(']).next().unwrap().to_owned()
}

fn check(what: &str, error: &BackendError, expected: &str, values: &[&str], remedy: &str) {
    let text = error.to_string();
    assert_eq!(variant(error), expected, "{what}: {text}");
    for value in values {
        assert!(text.contains(value), "{what}: {value:?} is missing: {text}");
    }
    match error.remedy() {
        Some(found) => {
            assert!(!remedy.is_empty(), "{what}: the table has no remedy: {text}");
            let found = found.to_string();
            assert!(found.contains(remedy) && text.contains(&found), "{what}: {remedy:?}: {text}");
        }
        None => assert_eq!(remedy, "", "{what}: {text}"),
    }
}

fn check_errno(what: &str, error: &BackendError, errno: Errno) {
    let BackendError::Os { source, .. } = error else { return };
    assert_eq!(source.raw_os_error(), Some(errno as i32), "{what}: {error}");
    let said = io::Error::from_raw_os_error(errno as i32).to_string();
    assert!(error.to_string().contains(&said), "{what}: {error}");
}

/// Has the request answered with each errno of a row, and with a number above 0.
fn refuse(row: &Row) {
    let files = open_files();
    for &(errno, expected, remedy) in row.refusals {
        let what = format!("{} {errno}", row.name);
        let (outcome, given) = answering(row.number, Answer::Refused(errno), row.operation);
        assert!(given > 0, "{what}: {:?} was not asked: {outcome:?}", row.node);
        let error = outcome.expect_err(&what);
        check(&what, &error, expected, row.values, remedy);
        check_errno(&what, &error, errno);
    }
    let what = format!("{}: a number above 0", row.name);
    match row.above_zero {
        Above::Error(expected) => {
            let (outcome, given) = answering(row.number, Answer::Value(1), row.operation);
            assert!(given > 0, "{what}");
            let error = outcome.expect_err(&what);
            assert_eq!(variant(&error), expected, "{what}: {error}");
        }
        Above::Yes => {
            let (outcome, given) = answering(row.number, Answer::Value(7), row.operation);
            assert!(given > 0 && outcome.is_ok(), "{what}: {outcome:?}");
            // A no.
            let (outcome, _) = answering(row.number, Answer::Value(0), row.operation);
            check(&what, &outcome.unwrap_err(), "Precondition", &["type1v2"], "modprobe");
        }
        Above::Descriptor => {}
    }
    // Nothing is left of it, and the kernel is asked again.
    let outcome = (row.operation)();
    assert_eq!(outcome.is_ok(), row.succeeds(), "{} afterwards: {outcome:?}", row.name);
    assert_eq!(open_files(), files, "{}", row.name);
}

pub(crate) fn type1_says_what_each_refusal_means() {
    bind_all();
    TYPE1.iter().chain(DEVICE).for_each(refuse);
}

pub(crate) fn iommufd_says_what_each_refusal_means() {
    bind_all();
    THROUGH_IOMMUFD.store(true, Ordering::Relaxed);
    IOMMUFD.iter().chain(DEVICE).for_each(refuse);
}

pub(crate) fn no_iommu_mode_says_what_each_refusal_means() {
    bind(address(0));
    NO_IOMMU.iter().for_each(refuse);
}

/// What is logged, line by line.
struct Lines(Mutex<Vec<String>>);

impl log::Log for Lines {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

static LINES: Lines = Lines(Mutex::new(Vec::new()));

pub(crate) fn what_cannot_be_given_back_is_logged() {
    bind_all();
    log::set_logger(&LINES).unwrap();
    log::set_max_level(log::LevelFilter::Warn);
    for row in LOGGED {
        let errnos = row.refusals.iter().map(|&(errno, ..)| errno);
        let answers = errnos.map(|errno| (Answer::Refused(errno), errno));
        for (answer, errno) in answers.chain([(Answer::Value(1), Errno::EPROTO)]) {
            let (outcome, given) = answering(row.number, answer, row.operation);
            outcome.unwrap();
            assert!(given > 0, "{}", row.name);
            let lines = std::mem::take(&mut *LINES.0.lock().unwrap());
            let [line] = &lines[..] else { panic!("{} {errno}: {lines:?}", row.name) };
            let parts = row.values.iter().all(|value| line.contains(value));
            assert!(parts && line.contains(&errno.to_string()), "{}: {line}", row.name);
        }
        (row.operation)().unwrap();
        assert!(LINES.0.lock().unwrap().is_empty(), "{}", row.name);
    }
}

/// Where an errno says that something is not there, which is no error.
pub(crate) fn what_is_not_there_is_no_error() {
    bind_all();
    for iommufd in [false, true] {
        THROUGH_IOMMUFD.store(iommufd, Ordering::Relaxed);
        let open = || -> Result<Box<dyn Backend>, BackendError> {
            Ok(if iommufd {
                Box::new(Ioas::new()?.open(drive())?)
            } else {
                Box::new(Container::new()?.open(drive())?)
            })
        };
        // VFIO_DEVICE_GET_IRQ_INFO of a kind that there is not.
        let (device, given) = answering(109, Answer::Refused(Errno::EINVAL), open);
        let device = device.unwrap();
        assert!(given > 0);
        assert_eq!(device.irq_count(IrqKind::MsiX).unwrap(), 0);
        drop(device);
        let device = open().unwrap();
        assert!(device.irq_count(IrqKind::MsiX).unwrap() >= 2);
        // VFIO_DEVICE_SET_IRQS of events that an older kernel or a function does not have, and of
        // vectors that are not enabled.
        let event = nix::sys::eventfd::EventFd::new().unwrap();
        for errno in [Errno::EINVAL, Errno::ENOTTY] {
            let notify = || device.notify(Event::Error, event.as_fd());
            let (told, given) = answering(110, Answer::Refused(errno), notify);
            assert!(given > 0 && !told.unwrap());
        }
        device.irq_disable(IrqKind::Msi).unwrap();
    }
}

/// The table has all requests that the driver makes, and no others.
pub(crate) fn the_table_has_every_request() {
    bind_all();
    let rows = || TYPE1.iter().chain(DEVICE).chain(IOMMUFD).chain(LOGGED);
    let made = recording(|| {
        for iommufd in [false, true] {
            THROUGH_IOMMUFD.store(iommufd, Ordering::Relaxed);
            for row in rows() {
                assert_eq!((row.operation)().is_ok(), row.succeeds(), "{}", row.name);
            }
        }
        for access in [Access::Type1, Access::Iommufd] {
            let device = open_through(access, address(0));
            copy_and_verify(&mut Edu::probe(device, Config::default()).unwrap(), 3000, 1);
        }
    });
    let listed: BTreeSet<_> = rows().map(|row| (row.node, row.number)).collect();
    assert_eq!(made, listed);
}

/// What the kernel of this guest refuses by itself says the same.
pub(crate) fn what_the_kernel_refuses_by_itself_says_the_same() {
    bind_all();
    let refused = |what: &str, outcome: Outcome, errno, values: &[&str], remedy: &str| {
        let error = outcome.expect_err(what);
        check(what, &error, "Os", values, remedy);
        check_errno(what, &error, errno);
    };
    let container = Container::new().unwrap();
    let edu = container.open(address(0)).unwrap();
    let ioas = Ioas::new().unwrap();
    let card = ioas.open(address(CARD)).unwrap();
    let memory = memory();
    for iommu in [&*container as &dyn Iommu, &*ioas] {
        // SAFETY: the memory outlives the mapping, which is undone below; what else is asked for
        // is refused.
        let map = |iova, host| unsafe { map(iommu, iova, host) };
        let name = iommu.name();
        map(IOVA, memory.base()).unwrap();
        let values = ["8192 bytes", "0x100000"];
        refused(name, map(IOVA, memory.base()), Errno::EEXIST, &values, "mapped already");
        let reserved = map(0xfee0_0000, memory.base());
        refused(name, reserved, Errno::EINVAL, &["0xfee00000"], "reserved_regions");
        let wrapping = map(u64::MAX - 0xfff, memory.base());
        refused(name, wrapping, Errno::EOVERFLOW, &["0xfffffffffffff000"], "");
        let nowhere = NonNull::new(0x1000 as *mut u8).unwrap();
        refused(name, map(0x20_0000, nowhere), Errno::EFAULT, &["0x200000"], "memfd");
        let part = iommu.unmap(IOVA, 4096);
        let errno = if name == "iommufd" { Errno::ENOENT } else { Errno::EINVAL };
        refused(name, part, errno, &["4096 bytes", "0x100000"], "");
        iommu.unmap(IOVA, LEN).unwrap();
    }
    // edu knows no reset of its own, and is on the root bus.
    let outcome = edu.reset();
    let error = outcome.unwrap_err();
    assert!(error.to_string().contains("reset_method"), "{error}");
    refused("hot reset", edu.bus_reset_scope().map(drop), Errno::ENODEV, &[], "root bus");
    refused("mask", edu.intx_set_masked(true), Errno::EINVAL, &["INTx"], "enable it first");
    let trigger = edu.irq_trigger(IrqKind::Msi, 0);
    refused("trigger", trigger, Errno::EINVAL, &["MSI vector 0"], "enable it first");
    let event = nix::sys::eventfd::EventFd::new().unwrap();
    edu.irq_enable(IrqKind::Msi, &[event.as_fd()]).unwrap();
    let both = edu.irq_enable(IrqKind::Intx, &[event.as_fd()]);
    refused("INTx beside MSI", both, Errno::EINVAL, &["1 INTx"], "disable it first");
    drop((edu, card));
    let token = provoke::open_type1_with_token();
    refused("token", token, Errno::EINVAL, &["0000:00:05.0"], "sriov_numvfs");
    let token = provoke::open_iommufd_with_token();
    refused("token", token, Errno::EINVAL, &["0000:00:05.0"], "6.17");
    let absent = IoasOptions {
        iommufd: Some(provoke::node("/dev/iommu")),
        id: Some(77),
        ..IoasOptions::default()
    };
    refused("IOAS", Ioas::with(absent).map(drop), Errno::ENOENT, &["77"], "no address space");
    // A node that is bound to an iommufd already.
    let node = provoke::character_device();
    let twice = node.try_clone().unwrap();
    let held = ioas.open_passed(address(0), Passed::CharacterDevice(node), None).unwrap();
    drop(held);
    let passed = ioas.open_passed(address(0), Passed::CharacterDevice(twice), None);
    let error = passed.map(drop).unwrap_err();
    check("bound already", &error, "Precondition", &["0000:00:05.0", "busy"], "fuser");
}
