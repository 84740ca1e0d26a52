//! The reset of a bus through VFIO: it takes all that it hits, and names what it does not have.

use vfio_dma::backend::BackendError;
use vfio_dma::backend::vfio::Access;
use vfio_dma::device::{Device, DeviceError};
use vfio_dma::mmio::{ReadWrite, Reg};
use vfio_dma::pci::Address;
use vfio_dma::session::Session;
use vfio_dma_tests::vfio_dma;
use vfio_dma_tools::vm::{Kernel, VmConfig};

use crate::support::{bind, open_through, refused};

/// Two functions of one slot behind a port: controllers of drives, which a reset stops. Another
/// on the root bus.
///
/// The port is slow enough for the kernel not to look whether its link is up, which QEMU does not
/// tell where the firmware handles hot-plug.
pub(crate) fn machine() -> VmConfig {
    let behind = [
        "nvme,serial=first,bus=above,addr=0.0,multifunction=on",
        "nvme,serial=second,bus=above,addr=0.1",
    ];
    let arguments = behind.iter().flat_map(|device| ["-device", device]);
    VmConfig {
        devices: ["edu", "pcie-root-port,id=above,chassis=1,x-speed=5"].map(Into::into).into(),
        qemu_args: arguments.map(Into::into).collect(),
        ..VmConfig::default()
    }
}

pub(crate) fn full() -> VmConfig {
    VmConfig { kernel: Kernel::Full, ..machine() }
}

fn functions() -> [Address; 2] {
    ["0000:01:00.0", "0000:01:00.1"].map(|text| text.parse().unwrap())
}

/// Controller Configuration (NVM Express Base 1.4, 3.1.5): 0 after a reset.
const CC: Reg<u32, ReadWrite> = Reg::at(0x14);
/// The sizes of entries: the controller stays disabled.
const SIZES: u32 = 0x0046_0000;

fn mark(device: &Device) {
    let bar = device.bar(0).unwrap();
    bar.set(CC, SIZES).unwrap();
    assert_eq!(bar.get(CC).unwrap(), SIZES);
}

fn marked(device: &Device) -> bool {
    device.bar(0).unwrap().get(CC).unwrap() == SIZES
}

fn resets_what_it_owns(access: Access) {
    let [first, second] = functions();
    bind(first);
    let _ = vfio_dma(&["unbind", &second.to_string()]);
    std::fs::write(format!("/sys/bus/pci/devices/{second}/driver/unbind"), second.to_string()).ok();
    let mut session = Session::through(access);
    let mut one = session.open(first).unwrap();
    mark(&one);
    let scope = one.bus_reset_scope().unwrap();
    let known: Vec<_> = scope.iter().map(|f| (f.address, f.owned, f.open_here)).collect();
    assert_eq!(known, [(first, true, true), (second, false, false)], "{access}");
    // One that VFIO does not have.
    let error = one.reset_bus(&mut []).unwrap_err();
    let DeviceError::Backend(BackendError::NotOwned { functions, .. }) = &error else {
        panic!("{error}");
    };
    assert_eq!(*functions, [second]);
    assert!(error.to_string().contains("0000:01:00.1") && error.remedy().is_some(), "{error}");
    assert!(marked(&one), "nothing was reset");

    // VFIO has it, and nobody has it open: it is reset as well.
    bind(second);
    drop(one);
    let mut one = session.open(first).unwrap();
    mark(&one);
    one.set_bus_master(true).unwrap();
    one.reset_bus(&mut []).unwrap();
    assert!(!marked(&one));
    assert!(!one.config().command().unwrap().contains(vfio_dma::pci::config::Command::BUS_MASTER));

    // This process has both open: the second must be lent for it.
    let mut two = session.open(second).unwrap();
    mark(&one);
    mark(&two);
    let error = one.reset_bus(&mut []).unwrap_err();
    let DeviceError::ResetHits { functions, .. } = &error else { panic!("{error}") };
    assert_eq!(*functions, [second]);
    assert!(marked(&one) && marked(&two));
    one.reset_bus(&mut [&mut two]).unwrap();
    assert!(!marked(&one) && !marked(&two));
    mark(&two);
    two.reset_bus(&mut [&mut one]).unwrap();
    assert!(!marked(&two));
    let edu = open_through(access, vfio_dma_tests::address(0));
    let error = edu.bus_reset_scope().unwrap_err();
    assert!(error.to_string().contains("root bus"), "{error}");
}

pub(crate) fn a_bus_is_reset_by_who_owns_its_groups() {
    resets_what_it_owns(Access::Type1);
}

pub(crate) fn a_bus_is_reset_by_who_owns_its_devices() {
    resets_what_it_owns(Access::Iommufd);
}

pub(crate) fn the_command_line_resets_a_bus_through_vfio() {
    let [first, second] = functions();
    bind(first);
    let _ = vfio_dma(&["unbind", &second.to_string()]);
    std::fs::write(format!("/sys/bus/pci/devices/{second}/driver/unbind"), second.to_string()).ok();
    let bdf = first.to_string();
    let args = ["reset", bdf.as_str(), "--scope", "bus", "--through-vfio"];
    refused(&args, &["0000:01:00.1", "vfio-dma bind"]);
    bind(second);
    let said = vfio_dma(&args);
    assert_eq!(said.status, 0, "{said:#?}");
    assert!(said.out.contains("0000:01:00.1") && said.out.contains("by VFIO"), "{said:#?}");
}
