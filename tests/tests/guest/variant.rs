//! A driver of VFIO's that is not vfio-pci: it is known by what it does.

use vfio_dma::backend::vfio::Access;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Config, Edu};
use vfio_dma::host::Sysfs;
use vfio_dma::session::Session;
use vfio_dma_tests::{address, vfio_dma};
use vfio_dma_tools::vm::{Kernel, VmConfig};

use crate::support::copy_and_verify;

/// The kernel has such a driver built in.
pub(crate) fn machine() -> VmConfig {
    VmConfig { kernel: Kernel::Full, devices: vec!["edu".into()], ..VmConfig::default() }
}

const DRIVER: &str = "virtio-vfio-pci";

pub(crate) fn a_variant_opens_as_vfio_pci_does() {
    let edu = address(0);
    let sysfs = Sysfs::new();
    let dir = sysfs.tree().device_dir(edu).unwrap();
    let driver = std::fs::read_dir("/sys/bus/pci/drivers").unwrap();
    let driver = driver
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|name| name.replace('_', "-") == DRIVER)
        .expect("the kernel has the driver");
    std::fs::write(dir.join("driver_override"), &driver).unwrap();
    std::fs::write("/sys/bus/pci/drivers_probe", edu.to_string()).unwrap();
    let info = sysfs.device(edu).unwrap();
    assert_eq!(info.driver.as_deref(), Some(driver.as_str()));
    assert!(info.with_vfio);
    for access in [Access::Type1, Access::Iommufd] {
        let device = Session::through(access).open(edu).unwrap();
        copy_and_verify(&mut Edu::probe(device, Config::default()).unwrap(), 3000, 1);
    }
    let bdf = edu.to_string();
    let works = |args: &[&str]| {
        let said = vfio_dma(args);
        assert_eq!(said.status, 0, "{args:?}: {said:#?}");
        said.out
    };
    assert!(works(&["status"]).contains(&driver));
    works(&["doctor", &bdf]);
    works(&["run", &bdf, "--size", "4K"]);
    // It is with VFIO already, and is taken from there as from vfio-pci.
    works(&["bind", &bdf]);
    assert_eq!(sysfs.device(edu).unwrap().driver.as_deref(), Some(driver.as_str()));
    works(&["unbind", &bdf]);
    assert_eq!(sysfs.device(edu).unwrap().driver, None);
}
