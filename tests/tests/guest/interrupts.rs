//! Interrupts of every kind, and the capabilities that announce them.

use std::time::Duration;

use vfio_dma::backend::IrqKind;
use vfio_dma::device::Device;
use vfio_dma::irq::{IrqError, Vector};
use vfio_dma::mmio::{ReadWrite, Reg, WriteOnly};
use vfio_dma_tests::address;

use crate::support::open;

/// The guest's network card.
const CARD: u8 = 5;

pub(crate) const SOON: Duration = Duration::from_secs(5);

fn is_silent(vector: &Vector) -> bool {
    let waited = vector.wait(Duration::from_millis(100));
    matches!(waited, Err(IrqError::Timeout { .. }))
}

pub(crate) fn intx_can_be_masked() {
    check_intx(&open(address(0)));
}

/// Shows on an edu device that INTx arrives, masks itself and waits while masked.
pub(crate) fn check_intx(device: &Device) {
    // edu raises and acknowledges by register (QEMU docs/specs/edu.rst).
    const RAISE: Reg<u32, WriteOnly> = Reg::at(0x60);
    const ACK: Reg<u32, WriteOnly> = Reg::at(0x64);
    let bar = device.bar(0).unwrap();
    let line = device.vectors(IrqKind::Intx, 1).unwrap().remove(0);
    line.mask().unwrap();
    bar.set(RAISE, 1).unwrap();
    assert!(is_silent(&line), "masked");
    line.unmask().unwrap();
    assert_eq!(line.wait(SOON).unwrap(), 1, "pending, delivered on unmask");
    assert!(is_silent(&line), "it masks itself when it fires");
    bar.set(ACK, 1).unwrap();
    line.unmask().unwrap();
    bar.set(RAISE, 2).unwrap();
    assert_eq!(line.wait(SOON).unwrap(), 1);
    bar.set(ACK, 2).unwrap();
}

pub(crate) fn msix_vectors_arrive_one_by_one() {
    check_msix(&mut open(address(CARD)));
}

/// Shows on the network card that each MSI-X vector has its own eventfd.
pub(crate) fn check_msix(device: &mut Device) {
    // Intel 82574 data sheet, 10.2.4: interrupt cause set, mask set, vector allocation.
    const CAUSE_SET: Reg<u32, WriteOnly> = Reg::at(0x00c8);
    const MASK_SET: Reg<u32, ReadWrite> = Reg::at(0x00d0);
    const ALLOCATION: Reg<u32, ReadWrite> = Reg::at(0x00e4);
    const RX_QUEUE_0: u32 = 1 << 20;
    const TX_QUEUE_0: u32 = 1 << 22;
    let bar = device.bar(0).unwrap();
    device.set_bus_master(true).unwrap();
    let vectors = device.vectors(IrqKind::MsiX, 3).unwrap();
    // Receive queue 0 on vector 2, transmit queue 0 on vector 1; bit 3 of each is "valid".
    bar.set(ALLOCATION, 0x0000_090a).unwrap();
    bar.set(MASK_SET, RX_QUEUE_0 | TX_QUEUE_0).unwrap();
    bar.set(CAUSE_SET, RX_QUEUE_0).unwrap();
    assert!(vectors[2].wait(SOON).unwrap() >= 1);
    assert!(is_silent(&vectors[0]) && is_silent(&vectors[1]));
    bar.set(CAUSE_SET, TX_QUEUE_0).unwrap();
    assert!(vectors[1].wait(SOON).unwrap() >= 1);
    assert!(is_silent(&vectors[0]));
    assert_eq!(vectors.len(), 3);
}

pub(crate) fn kinds_exclude_each_other() {
    let device = open(address(0));
    let msi = device.vectors(IrqKind::Msi, 1).unwrap();
    for kind in [IrqKind::Intx, IrqKind::Msi] {
        let error = device.vectors(kind, 1).unwrap_err().to_string();
        assert!(error.contains("MSI vectors are in use"), "{error}");
    }
    drop(msi);
    drop(device.vectors(IrqKind::Intx, 1).unwrap());
    for (kind, count) in [(IrqKind::Msi, 2), (IrqKind::Msi, 0), (IrqKind::MsiX, 1)] {
        let error = device.vectors(kind, count).unwrap_err().to_string();
        assert!(error.contains(&kind.to_string()), "{error}");
    }
}

pub(crate) fn capabilities_are_those_of_the_device() {
    let edu = open(address(0));
    let found = edu.capabilities().unwrap();
    assert!(found.msi().is_some() && found.msi_x().is_none(), "{found:?}");
    assert_eq!(edu.transactions_pending().unwrap(), None, "not PCI Express");
    let card = open(address(CARD));
    let found = card.capabilities().unwrap();
    let msix = found.msi_x().expect("MSI-X");
    assert_eq!((msix.table_bar, msix.table()), (3, 0..5 * 16), "{found:?}");
    assert!(found.pci_express().is_some(), "{found:?}");
    assert!(found.find_extended(1).is_some(), "advanced error reporting: {found:?}");
    assert!(found.defects.is_empty(), "{found:?}");
    assert_eq!(card.transactions_pending().unwrap(), Some(false));
}
