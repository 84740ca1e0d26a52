//! A function has one owner in a process, and its BARs never end the process.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vfio_dma::Remedy;
use vfio_dma::backend::BackendError;
use vfio_dma::device::{DecodeOff, Device, DeviceError};
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::edu::{Completion, Config, Edu};
use vfio_dma::host::Sysfs;
use vfio_dma::mmio::MmioError;
use vfio_dma::pci::Address;
use vfio_dma::pci::capability::id;
use vfio_dma::pci::config::reg;
use vfio_dma::session::Session;
use vfio_dma_tests::address;

use crate::support::{bind, copy_and_verify, open};

/// The guest's network card, which has power management.
const CARD: u8 = 5;

fn is_refused(opened: Result<Device, DeviceError>, at: Address) {
    match opened {
        Err(DeviceError::Backend(error @ BackendError::AlreadyOpen { .. })) => {
            let said = error.to_string();
            assert!(said.contains(&at.to_string()) && !said.contains("fuser"), "{said}");
            assert_eq!(error.remedy(), Some(&Remedy::UseOpenDevice));
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) fn a_function_is_opened_once_in_a_process() {
    let at = address(0);
    bind(at);
    let mut session = Session::new();
    let config = || Config { completion: Completion::Polled, ..Config::default() };
    let mut edu = Edu::probe(session.open(at).unwrap(), config()).unwrap();
    is_refused(session.open(at), at);
    is_refused(Session::new().open(at), at);
    // The first owner has lost nothing by that.
    copy_and_verify(&mut edu, 3000, 1);
    let bar = edu.device().bar(0).unwrap();
    drop(edu);
    // A part of it is still in use.
    is_refused(Session::new().open(at), at);
    drop(bar);
    copy_and_verify(&mut Edu::probe(session.open(at).unwrap(), config()).unwrap(), 3000, 2);
    // Nor does a function of another address stand in its way.
    let (first, second) = (session.open(at).unwrap(), address(1));
    bind(second);
    drop((first, session.open(second).unwrap()));
}

pub(crate) fn a_bar_that_is_mapped_keeps_its_function_answering() {
    let mut card = open(address(CARD));
    let capabilities = card.capabilities().unwrap();
    let power = capabilities.find(id::POWER_MANAGEMENT).expect("power management").offset + 4;
    let bar = card.bar(0).unwrap();
    assert!(bar.mapped().next().is_some(), "the case needs a mapping");
    let status = bar.read::<u32>(8).unwrap();
    for (offset, value) in [(power, 3), (reg::COMMAND, 0)] {
        let refused = card.config_mut().write_u16(offset, value).unwrap_err().to_string();
        assert!(refused.contains("while BARs are mapped"), "{refused}");
        assert_eq!(bar.read::<u32>(8).unwrap(), status);
    }
    // A reset in between neither ends the process nor the mapping.
    card.reset().unwrap();
    assert_ne!(bar.read::<u32>(8).unwrap(), u32::MAX);
    drop(bar);

    card.config_mut().write_u16(power, 3).unwrap();
    let off = |opened: Result<_, DeviceError>| match opened {
        Err(DeviceError::NotDecoding { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(off(card.bar(0)), DecodeOff::PowerState { state: 3 });
    card.config_mut().write_u16(power, 0).unwrap();
    let command = card.config().read_u16(reg::COMMAND).unwrap();
    card.config_mut().write_u16(reg::COMMAND, command & !2).unwrap();
    assert_eq!(off(card.bar(0)), DecodeOff::MemorySpace);
    card.config_mut().write_u16(reg::COMMAND, command).unwrap();
    assert_ne!(card.bar(0).unwrap().read::<u32>(8).unwrap(), u32::MAX);
}

pub(crate) fn a_command_register_that_is_cleared_from_outside_is_no_signal() {
    for index in [0, CARD] {
        let device = open(address(index));
        // Mapped, and not touched yet.
        let bar = device.bar(0).unwrap();
        assert!(bar.mapped().next().is_some(), "the case needs a mapping");
        let dir = Sysfs::new().tree().device_dir(address(index)).unwrap();
        let config = File::options().write(true).open(dir.join("config")).unwrap();
        let command = device.config().read_u16(reg::COMMAND).unwrap();
        let set = |command: u16| {
            config.write_all_at(&command.to_le_bytes(), reg::COMMAND.into()).unwrap();
        };
        set(command & !3);
        for offset in [0, 8] {
            match bar.read::<u32>(offset) {
                Ok(_) | Err(MmioError::BusError { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        set(command);
        drop((bar, device));
        open(address(index)).bar(0).unwrap().read::<u32>(8).unwrap();
    }
}
