//! What becomes of a card when the kernel wants the function back, or tells of an error.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::backend::BackendError;
use crate::device::DeviceError;
use crate::dma::Direction;
use crate::events::Event;
use crate::irq::IrqError;
use crate::testing::{Registers, Scripted};

/// A card of one channel that takes descriptors and does nothing.
#[derive(Debug, Default)]
struct Silent {
    registers: BTreeMap<u64, u64>,
    resets: u32,
}

impl Registers for Silent {
    fn read(&mut self, offset: u64, _: usize) -> u64 {
        let written = self.registers.get(&offset).copied().unwrap_or(0);
        // `enable` says of both directions that no request is being made.
        if offset == 0x1800 || offset == 0x1820 { written | 2 } else { written }
    }

    fn write(&mut self, offset: u64, _: usize, value: u64) {
        self.registers.insert(offset, value);
    }

    fn reset(&mut self) {
        self.registers.clear();
        self.resets += 1;
    }
}

fn open() -> (Arc<Scripted<Silent>>, LitePcie) {
    let scripted = Scripted::new((0x10ee, 0x7024), |_| Silent::default());
    let device = Device::open(scripted.attach()).unwrap();
    (scripted, LitePcie::probe(device, Config::default()).unwrap())
}

fn tables(card: &LitePcie) -> (SgTable, SgTable) {
    let place = |direction| card.allocate(&Request::new(4096, direction)).unwrap().into();
    (place(Direction::ToDevice), place(Direction::FromDevice))
}

fn is_error_of(event: Event, error: &LitePcieError) -> bool {
    let (LitePcieError::Irq(IrqError::Backend(error))
    | LitePcieError::Device(DeviceError::Backend(error))) = error
    else {
        return false;
    };
    match event {
        Event::Removal => matches!(error, BackendError::ToBeRemoved { .. }),
        Event::Error => matches!(error, BackendError::BusError { .. }),
    }
}

#[test]
fn an_event_ends_a_copy_and_gives_its_tables_back() {
    for event in [Event::Removal, Event::Error] {
        let (scripted, mut card) = open();
        let (source, target) = tables(&card);
        let failed = std::thread::scope(|scope| {
            let copying = scope.spawn(|| card.copy(0, source, target, Duration::MAX).unwrap_err());
            std::thread::sleep(Duration::from_millis(20));
            scripted.raise(event);
            copying.join().unwrap()
        });
        assert!(is_error_of(event, &failed.error), "{failed}");
        let (source, target) = failed.tables.expect("the card is quiet");
        let again = card.copy(0, source, target, Duration::from_millis(1)).unwrap_err();
        match event {
            Event::Removal => {
                assert!(is_error_of(event, &again.error), "{again}");
                assert_eq!(scripted.registers().resets, 0);
                assert_eq!(scripted.config()[4] & 4, 0, "bus mastering is off");
            }
            // A reset mends it, and the card goes on as it did.
            Event::Error => {
                assert!(matches!(again.error, LitePcieError::Timeout { .. }), "{again}");
            }
        }
        drop((again, card));
        assert_eq!(scripted.host.mappings(), 0);
    }
}

#[test]
fn an_event_lets_a_loop_be_stopped_and_gives_its_tables_back() {
    for is_gone in [false, true] {
        let (scripted, mut card) = open();
        let (source, target) = tables(&card);
        let events = card.device().events().clone();
        let looping = card.start_loop(0, Some(source), Some(target)).unwrap();
        looping.written().unwrap();
        if is_gone {
            scripted.config().fill(0xff);
        }
        scripted.signal(Event::Removal, &events);
        let failed = looping.read().unwrap_err();
        assert!(is_error_of(Event::Removal, &failed), "{failed}");
        let (source, target) = looping.stop().unwrap();
        assert!(source.is_some() && target.is_some());
        let failed = card.start_loop(0, source, target).unwrap_err();
        assert!(is_error_of(Event::Removal, &failed), "{failed}");
    }
}
