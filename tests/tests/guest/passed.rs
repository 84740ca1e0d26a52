//! Devices opened from descriptors that another process passed, and an address space that two
//! processes share.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use vfio_dma::backend::BackendError;
use vfio_dma::backend::vfio::{Container, Ioas, IoasOptions, Passed};
use vfio_dma::device::DeviceError;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Config, Edu};
use vfio_dma::host::Sysfs;
use vfio_dma::pci::Address;
use vfio_dma::session::Session;
use vfio_dma_tests::address;

use crate::examples::run;
use crate::support::{bind, copy_and_verify};

fn node(path: impl AsRef<Path>) -> OwnedFd {
    File::options().read(true).write(true).open(path).unwrap().into()
}

fn container() -> OwnedFd {
    node("/dev/vfio/vfio")
}

fn group(address: Address) -> OwnedFd {
    node(Sysfs::new().device(address).unwrap().group.unwrap().node())
}

fn character_device(address: Address) -> OwnedFd {
    node(Sysfs::new().tree().vfio_nodes(address).pop().unwrap())
}

/// What a helper does that opens the device itself: the group in the container, its IOMMU set.
pub(crate) fn device(container: &OwnedFd, group: &OwnedFd, address: Address) -> OwnedFd {
    const SET_CONTAINER: libc::Ioctl = 0x3b68;
    const SET_IOMMU: libc::Ioctl = 0x3b66;
    const TYPE1V2: libc::c_int = 3;
    const GET_DEVICE_FD: libc::Ioctl = 0x3b6a;
    let fd = container.as_raw_fd();
    // SAFETY: the argument points to a descriptor.
    let status = unsafe { libc::ioctl(group.as_raw_fd(), SET_CONTAINER, &raw const fd) };
    assert_eq!(status, 0);
    // SAFETY: the argument is a number.
    assert_eq!(unsafe { libc::ioctl(fd, SET_IOMMU, TYPE1V2) }, 0);
    let name = std::ffi::CString::new(address.to_string()).unwrap();
    // SAFETY: the argument is a string that ends.
    let device = unsafe { libc::ioctl(group.as_raw_fd(), GET_DEVICE_FD, name.as_ptr()) };
    assert!(device >= 0);
    // SAFETY: the kernel has just made the descriptor.
    unsafe { OwnedFd::from_raw_fd(device) }
}

pub(crate) fn who_may_not_open_anything_drives_a_card() {
    bind(address(0));
    for (method, iommu) in [("type1", "type1v2"), ("iommufd", "iommufd")] {
        let said = run("passed_descriptors", &[&address(0).to_string(), method]);
        assert_eq!(said, format!("user 65534 through {iommu}: without any right\n"));
    }
}

/// Each kind of descriptor, and two devices in one container.
pub(crate) fn a_device_is_opened_from_what_was_passed() {
    bind(address(0));
    bind(address(1));
    let drive =
        |device| copy_and_verify(&mut Edu::probe(device, Config::default()).unwrap(), 3000, 1);

    // The group alone: the container's node is open to all.
    drive(Session::new().open_passed(address(0), Passed::Group(group(address(0))), None).unwrap());

    // The device, in a container that its group is in, and another group into the same.
    let (held, group0) = (container(), group(address(0)));
    let opened = device(&held, &group0, address(0));
    let mut session = Session::in_container(Container::from_fd(held).unwrap());
    let passed = Passed::Device { device: opened, group: Some(group0) };
    let first = session.open_passed(address(0), passed, None).unwrap();
    let second = Passed::Group(group(address(1)));
    let second = session.open_passed(address(1), second, None).unwrap();
    assert!(std::sync::Arc::ptr_eq(first.space(), second.space()));
    let error = session.open(address(0)).unwrap_err();
    assert!(matches!(error, DeviceError::Backend(BackendError::AlreadyOpen { .. })), "{error}");
    drive(first);
    drive(second);

    // Without its group's descriptor, which the device holds by itself.
    let (held, group0) = (container(), group(address(0)));
    let opened = device(&held, &group0, address(0));
    drop(group0);
    let mut session = Session::in_container(Container::from_fd(held).unwrap());
    let passed = Passed::Device { device: opened, group: None };
    drive(session.open_passed(address(0), passed, None).unwrap());

    // All is given back: the nodes open again.
    let ioas =
        Ioas::with(IoasOptions { iommufd: Some(node("/dev/iommu")), ..IoasOptions::default() });
    let mut session = Session::in_ioas(ioas.unwrap());
    let passed = Passed::CharacterDevice(character_device(address(0)));
    drive(session.open_passed(address(0), passed, None).unwrap());
    drive(session.open(address(1)).unwrap());
}

pub(crate) fn what_was_passed_is_checked() {
    bind(address(0));
    bind(address(1));
    let wrong = |error: BackendError, expected: &str, found: &str| {
        let text = error.to_string();
        assert!(matches!(error, BackendError::WrongDescriptor { .. }), "{text}");
        assert!(text.contains(expected) && text.contains(found), "{text}");
    };
    let null = || node("/dev/null");
    wrong(Container::from_fd(null()).unwrap_err(), "a container", "/dev/null");
    let options = |iommufd| IoasOptions { iommufd: Some(iommufd), ..IoasOptions::default() };
    wrong(Ioas::with(options(container())).unwrap_err(), "iommufd", "/dev/vfio/vfio");
    let no_such = IoasOptions { id: Some(77), ..options(node("/dev/iommu")) };
    let error = Ioas::with(no_such).unwrap_err().to_string();
    assert!(error.contains("77"), "{error}");

    let open = |passed| match Session::new().open_passed(address(0), passed, None) {
        Err(DeviceError::Backend(error)) => error,
        other => panic!("{other:?}"),
    };
    wrong(open(Passed::Group(null())), "the IOMMU group /dev/vfio/", "/dev/null");
    wrong(open(Passed::Group(group(address(1)))), "the IOMMU group /dev/vfio/", "/dev/vfio/");
    wrong(open(Passed::CharacterDevice(null())), "the character device of", "/dev/null");
    let other = character_device(address(1));
    wrong(open(Passed::CharacterDevice(other)), "0000:00:05.0", "/dev/vfio/devices/");

    let (held, group1) = (container(), group(address(1)));
    let opened = device(&held, &group1, address(1));
    let mut session = Session::in_container(Container::from_fd(held).unwrap());
    let duplicate = opened.as_fd().try_clone_to_owned().unwrap();
    for (device, found) in [(duplicate, "0000:00:06.0"), (null(), "/dev/null")] {
        let passed = Passed::Device { device, group: None };
        match session.open_passed(address(0), passed, None) {
            Err(DeviceError::Backend(error)) => wrong(error, "the device 0000:00:05.0", found),
            other => panic!("{other:?}"),
        }
    }
    // Its own, in a container that has no group.
    let mut empty = Session::in_container(Container::from_fd(container()).unwrap());
    let passed = Passed::Device { device: opened, group: None };
    let error = empty.open_passed(address(1), passed, None).unwrap_err();
    assert!(error.to_string().contains("the container has no group"), "{error}");
    assert!(error.remedy().is_some(), "{error}");
}

pub(crate) fn two_processes_share_an_ioas() {
    bind(address(0));
    bind(address(1));
    let said = run("shared_space", &[&address(0).to_string(), &address(1).to_string()]);
    // Each maps from the top of its range on.
    assert_eq!(said, "0xffff000 to 0x7fff000: from one to another card\n");
}
