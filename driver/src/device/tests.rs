//! The one owner of a device, and what its parts can still do.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;
use crate::dma::Direction;
use crate::events::Event;
use crate::irq::IrqError;
use crate::mmio::MmioError;
use crate::pci::PciError;
use crate::pci::config::reg;
use crate::queue::InFlight;
use crate::testing::{NoRegisters, Registers, Scripted};

fn opened() -> (Arc<Scripted<NoRegisters>>, Device) {
    let scripted = Scripted::new((1, 1), |_| NoRegisters);
    let device = Device::open(scripted.attach()).unwrap();
    (scripted, device)
}

/// Offset of a power management capability, which the function has then.
const POWER: usize = 0x40;

fn with_power_management() -> (Arc<Scripted<NoRegisters>>, Device) {
    let scripted = Scripted::new((1, 1), |_| NoRegisters);
    {
        let mut config = scripted.config();
        config[0x06] = 0x10; // there is a list
        config[0x34] = POWER as u8;
        config[POWER..POWER + 8].copy_from_slice(&[1, 0, 3, 0, 0, 0, 0, 0]);
    }
    scripted.maps_bar.store(true, Ordering::Relaxed);
    let device = Device::open(scripted.attach()).unwrap();
    (scripted, device)
}

#[test]
fn nothing_stops_a_function_from_answering_while_a_bar_is_mapped() {
    let (scripted, mut device) = with_power_management();
    let pmcsr = POWER as u16 + 4;
    let bar = device.bar(0).unwrap();
    for (offset, value) in [(reg::COMMAND, 0), (pmcsr, 3), (pmcsr, 1)] {
        let refused = device.config_mut().write_u16(offset, value).unwrap_err().to_string();
        assert!(refused.contains("while BARs are mapped"), "{refused}");
    }
    let refused = device.config_mut().write_u8(reg::COMMAND, 0);
    assert!(refused.is_err(), "a byte of the register is the register");
    bar.write(0, 7u32).unwrap();
    assert_eq!(bar.read::<u32>(0).unwrap(), 7, "it answers");
    assert_eq!(scripted.config()[POWER + 4], 0);

    // Another mapping, other writes: nobody is in the way of those.
    drop(bar);
    device.config_mut().write_u16(pmcsr, 3).unwrap();
    let error = device.bar(0).unwrap_err();
    assert!(
        matches!(
            error,
            DeviceError::NotDecoding { reason: DecodeOff::PowerState { state: 3 }, .. }
        ),
        "{error}"
    );
    device.config_mut().write_u16(pmcsr, 0).unwrap();
    device.config_mut().write_u16(reg::COMMAND, 0).unwrap();
    let error = device.bar(0).unwrap_err();
    assert!(
        matches!(error, DeviceError::NotDecoding { reason: DecodeOff::MemorySpace, .. }),
        "{error}"
    );
    device.config_mut().write_u16(reg::COMMAND, 2).unwrap();
    device.bar(0).unwrap();
}

#[test]
fn a_bar_that_is_trapped_is_in_nobodys_way() {
    let (_scripted, mut device) = opened();
    let bar = device.bar(0).unwrap();
    device.config_mut().write_u16(reg::COMMAND, 0).unwrap();
    assert_eq!(bar.read::<u32>(0).unwrap(), 0);
}

#[test]
fn configuration_writes_leave_bus_mastering_as_it_is() {
    let (scripted, mut device) = opened();
    let error = device.config_mut().set_bus_master(true).unwrap_err();
    assert!(matches!(error, PciError::NotKept { .. }), "{error}");
    device.set_bus_master(true).unwrap();
    device.config_mut().write_u32(reg::COMMAND, 0x0402).unwrap();
    assert_eq!(scripted.config()[4..6], [0x06, 0x04]);
    device.set_bus_master(false).unwrap();
    device.config_mut().write_u8(reg::COMMAND, 0x06).unwrap();
    assert_eq!(scripted.config()[4], 0x02);
    assert!(matches!(device.bar(6), Err(DeviceError::Backend(_))));
}

#[test]
fn bus_mastering_that_was_taken_away_does_not_come_back_by_another_bit() {
    let (scripted, mut device) = opened();
    for _ in 0..500 {
        device.set_bus_master(true).unwrap();
        let mut in_flight = InFlight::new(&device);
        in_flight.insert(());
        let other = std::thread::spawn(move || drop(in_flight));
        for disable in [true, false, true, false] {
            device.config_mut().set_interrupt_disable(disable).unwrap();
        }
        other.join().unwrap();
        assert_eq!(scripted.config()[4] & 4, 0, "the function was stopped");
    }
}

#[test]
fn a_device_that_is_closed_does_no_dma() {
    let (scripted, mut device) = opened();
    device.set_bus_master(true).unwrap();
    let bar = device.bar(0).unwrap();
    drop(device);
    assert_eq!(scripted.config()[4] & 4, 0);
    bar.write(0, 1u32).unwrap();
}

/// Keeps the eventfds that it is given.
#[derive(Debug, Default)]
struct Vectors(Vec<OwnedFd>);

impl Registers for Vectors {
    fn read(&mut self, _: u64, _: usize) -> u64 {
        0
    }
    fn write(&mut self, _: u64, _: usize, vector: u64) {
        nix::unistd::write(&self.0[vector as usize], &1u64.to_ne_bytes()).unwrap();
    }
    fn connect(&mut self, events: Vec<OwnedFd>) {
        self.0 = events;
    }
}

#[test]
fn vectors_are_handed_out_once_and_each_is_its_owners() {
    let scripted = Scripted::new((1, 1), |_| Vectors::default());
    let device = Device::open(scripted.attach()).unwrap();
    let bar = device.bar(0).unwrap();
    let mut vectors = device.vectors(IrqKind::MsiX, 2).unwrap();
    for kind in [IrqKind::MsiX, IrqKind::Msi, IrqKind::Intx] {
        let refused = device.vectors(kind, 1).unwrap_err();
        assert!(
            matches!(refused, DeviceError::Irq(IrqError::InUse { taken: IrqKind::MsiX, .. })),
            "{refused}"
        );
    }
    bar.write(0, 1u32).unwrap();
    drop(vectors.remove(0));
    assert_eq!(scripted.disabled.load(Ordering::Relaxed), 0, "one of them is in use");
    let second = vectors.remove(0);
    assert_eq!((second.index(), second.kind()), (1, IrqKind::MsiX));
    assert_eq!(second.wait(Duration::ZERO).unwrap(), 1);
    bar.write(0, 1u32).unwrap();
    bar.write(0, 1u32).unwrap();
    assert_eq!(second.take_count().unwrap(), 2);
    assert_eq!(second.take_count().unwrap(), 0);
    assert!(second.as_fd().try_clone_to_owned().is_ok());
    drop(second);
    assert_eq!(scripted.disabled.load(Ordering::Relaxed), 1);
    let other = device.vectors(IrqKind::Msi, 1).unwrap();
    assert!(device.vectors(IrqKind::MsiX, 9).is_err());
    drop(other);
}

#[test]
fn the_longest_wait_for_an_interrupt_is_no_panic() {
    let scripted = Scripted::new((1, 1), |_| Vectors::default());
    let device = Device::open(scripted.attach()).unwrap();
    let bar = device.bar(0).unwrap();
    let vector = device.vectors(IrqKind::MsiX, 1).unwrap().remove(0);
    bar.write(0, 0u32).unwrap();
    assert_eq!(vector.wait(Duration::MAX).unwrap(), 1);
    let late = vector.wait(Duration::from_millis(1)).unwrap_err();
    assert!(matches!(late, IrqError::Timeout { vector: 0, .. }), "{late}");
}

/// Says when it is dropped, and whether the function could do DMA then.
struct Witness(Arc<Scripted<NoRegisters>>, Arc<AtomicU32>);

impl Drop for Witness {
    fn drop(&mut self) {
        let could_write = self.0.config()[4] & 4 != 0;
        self.1.fetch_add(if could_write { 100 } else { 1 }, Ordering::Relaxed);
    }
}

#[test]
fn what_is_in_flight_is_dropped_when_the_function_is_quiet() {
    let (scripted, mut device) = opened();
    let drops = Arc::new(AtomicU32::new(0));
    let witness = || Witness(Arc::clone(&scripted), Arc::clone(&drops));
    let count = || drops.swap(0, Ordering::Relaxed);

    device.set_bus_master(true).unwrap();
    let mut in_flight = InFlight::new(&device);
    let (first, second) = (in_flight.insert(witness()), in_flight.insert(witness()));
    let out = in_flight.complete(second).unwrap();
    assert!(in_flight.complete(second).is_none(), "once");
    let mut other = InFlight::new(&device);
    other.insert(witness());
    assert!(other.complete(first).is_none(), "of another queue");
    std::mem::forget(out);
    assert_eq!(count(), 0);
    drop(in_flight);
    assert_eq!(count(), 1, "bus mastering was off");

    device.set_bus_master(true).unwrap();
    other.park();
    assert!(other.is_empty());
    drop(other);
    assert_eq!((count(), scripted.config()[4] & 4), (0, 4), "parked, and nobody is stopped");
    device.quiesce().unwrap();
    assert_eq!(count(), 1);

    device.set_bus_master(true).unwrap();
    device.park(witness());
    device.reset().unwrap();
    device.park(witness());
    drop(device);
    assert_eq!(count(), 2);
}

#[test]
fn what_a_function_may_still_reach_is_never_dropped() {
    let (scripted, mut device) = opened();
    let drops = Arc::new(AtomicU32::new(0));
    let witness = || Witness(Arc::clone(&scripted), Arc::clone(&drops));
    device.set_bus_master(true).unwrap();
    let mut in_flight = InFlight::new(&device);
    in_flight.insert(witness());
    device.park(witness());
    // The function is gone: nobody knows what it does.
    scripted.config().fill(0xff);
    assert!(in_flight.quiesce().is_err());
    drop(in_flight);
    drop(device);
    assert_eq!(drops.load(Ordering::Relaxed), 0);
}

#[test]
fn an_early_return_leaves_no_dma_running_into_freed_memory() {
    let (scripted, mut device) = opened();
    let transfer = |device: &mut Device| -> Result<(), DeviceError> {
        let buffer = device.allocate(&crate::dma::Request::new(4096, Direction::FromDevice))?;
        device.set_bus_master(true)?;
        let mut in_flight = InFlight::new(device);
        in_flight.insert((buffer, Witness(Arc::clone(&scripted), Arc::default())));
        device.bar(5)?; // fails
        Ok(())
    };
    let failed = transfer(&mut device);
    assert!(matches!(
        failed,
        Err(DeviceError::Backend(_) | DeviceError::Mmio(MmioError::Backend(_)))
    ));
    assert_eq!((scripted.config()[4] & 4, scripted.host.mappings()), (0, 0));
}

#[test]
fn a_wait_ends_with_an_event_of_the_function() {
    let scripted = Scripted::new((1, 1), |_| Vectors::default());
    scripted.maps_bar.store(true, Ordering::Relaxed);
    let mut device = Device::open(scripted.attach()).unwrap();
    let vector = device.vectors(IrqKind::MsiX, 1).unwrap().remove(0);
    let waiting = std::thread::spawn(move || {
        let failed = vector.wait(Duration::MAX).unwrap_err();
        (vector, failed)
    });
    let events = device.events().clone();
    scripted.signal(Event::Error, &events);
    let (vector, failed) = waiting.join().unwrap();
    assert!(matches!(failed, IrqError::Backend(BackendError::BusError { .. })), "{failed}");
    assert!(device.check_events().is_err());
    device.reset().unwrap();
    device.check_events().unwrap();
    assert!(matches!(vector.wait(Duration::ZERO), Err(IrqError::Timeout { .. })));
    drop(device);
    // A part keeps the function open, and so watched, no more than the device does.
    assert_eq!(events.wait(Duration::from_millis(10)).unwrap(), None);
}

#[test]
fn a_function_that_nobody_gives_back_is_taken() {
    let (scripted, mut device) = with_power_management();
    let (bar, events) = (device.bar(0).unwrap(), device.events().clone());
    device.set_bus_master(true).unwrap();
    let drops = Arc::new(AtomicU32::new(0));
    device.park(Witness(Arc::clone(&scripted), Arc::clone(&drops)));
    scripted.signal(Event::Removal, &events);
    bar.read::<u32>(0).unwrap();
    assert!(!scripted.revoked.load(Ordering::Acquire), "its owner has some time");
    let begin = std::time::Instant::now();
    while !events.is_closed() {
        assert!(begin.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(begin.elapsed() >= crate::events::GRACE / 2, "{:?}", begin.elapsed());
    // The backend answers nothing that is believed, and what it may reach is free.
    scripted.config().fill(0xff);
    let failed = bar.read::<u32>(0).unwrap_err();
    assert!(matches!(failed, MmioError::Backend(BackendError::ToBeRemoved { .. })), "{failed}");
    let failed = bar.write(0, 1u32).unwrap_err();
    assert!(matches!(failed, MmioError::Backend(BackendError::ToBeRemoved { .. })), "{failed}");
    device.quiesce().unwrap();
    assert_eq!(drops.load(Ordering::Relaxed) % 100, 0, "dropped once");
    assert_ne!(drops.load(Ordering::Relaxed), 0);
}

#[test]
fn a_function_that_leaves_without_a_word_gives_its_buffers_back() {
    let (scripted, mut device) = opened();
    device.set_bus_master(true).unwrap();
    let drops = Arc::new(AtomicU32::new(0));
    let mut in_flight = InFlight::new(&device);
    in_flight.insert(Witness(Arc::clone(&scripted), Arc::clone(&drops)));
    scripted.config().fill(0xff);
    assert!(in_flight.quiesce().is_err(), "it may come back");
    scripted.signal(Event::Removal, device.events());
    assert_eq!(in_flight.quiesce().unwrap().len(), 1);
    assert!(scripted.revoked.load(Ordering::Acquire), "the kernel stops what does not answer");
}

#[test]
fn memory_space_that_another_process_clears_stays_on_while_a_bar_is_mapped() {
    let (scripted, mut device) = with_power_management();
    let bar = device.bar(0).unwrap();
    scripted.config()[4] &= !2;
    device.set_bus_master(true).unwrap();
    assert_eq!(scripted.config()[4] & 6, 6);
    scripted.config()[4] &= !2;
    device.quiesce().unwrap();
    assert_eq!(scripted.config()[4] & 6, 2);
    drop(bar);
    scripted.config()[4] &= !2;
    device.set_bus_master(true).unwrap();
    assert_eq!(scripted.config()[4] & 6, 4, "nobody needs it");
}
