//! What a device may reach, given up by several threads at once, under many schedules.

use std::sync::Arc;

use super::{Held, InFlight};
use crate::device::Device;
use crate::sync::{Mutex, explore, thread};
use crate::testing::{NoRegisters, Scripted};

type Backing = Arc<Scripted<NoRegisters>>;

/// Something that the device may reach; notes that it was dropped, and whether the device was
/// stopped then.
struct Reached {
    number: u32,
    backing: Backing,
    dropped: Arc<Mutex<Vec<(u32, bool)>>>,
}

impl Drop for Reached {
    fn drop(&mut self) {
        let is_stopped = self.backing.config()[4] & 4 == 0;
        self.dropped.lock().unwrap().push((self.number, is_stopped));
    }
}

/// A function that does DMA.
struct Rig {
    backing: Backing,
    device: Device,
    dropped: Arc<Mutex<Vec<(u32, bool)>>>,
}

impl Rig {
    fn new() -> Rig {
        let backing = Scripted::new((1, 1), |_| NoRegisters);
        let mut device = Device::open(backing.attach()).unwrap();
        device.set_bus_master(true).unwrap();
        Rig { backing, device, dropped: Arc::default() }
    }

    fn reached(&self, number: u32) -> Reached {
        let (backing, dropped) = (Arc::clone(&self.backing), Arc::clone(&self.dropped));
        Reached { number, backing, dropped }
    }

    /// Each of these was dropped once, and all but the first `completed` with the device stopped.
    fn check(self, count: u32, completed: u32) {
        drop(self.device);
        let mut dropped = self.dropped.lock().unwrap().clone();
        dropped.sort_unstable();
        let numbers: Vec<u32> = dropped.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..count).collect::<Vec<_>>(), "each once");
        for (number, is_stopped) in dropped {
            assert!(number < completed || is_stopped, "{number} was dropped under the device");
        }
    }
}

#[test]
fn what_is_in_flight_is_given_up_once_and_with_the_device_stopped() {
    explore(|| {
        let rig = Rig::new();
        let mut tables = [InFlight::new(&rig.device), InFlight::new(&rig.device)];
        let done = tables[0].insert(rig.reached(0));
        tables[0].insert(rig.reached(1));
        tables[1].insert(rig.reached(2));
        let stray = tables[1].insert(rig.reached(3));
        let [mut first, second] = tables;
        let completing = thread::spawn(move || {
            assert!(first.complete(stray).is_none(), "a slot of another table");
            assert!(first.complete(done).is_some());
            assert!(first.complete(done).is_none(), "completed twice");
        });
        let dropping = thread::spawn(move || drop(second));
        rig.device.park(rig.reached(4));
        completing.join().unwrap();
        dropping.join().unwrap();
        rig.check(5, 1);
    });
}

#[test]
fn what_is_parked_while_the_device_is_stopped_or_reset_is_dropped_once_and_then() {
    explore(|| {
        let mut rig = Rig::new();
        let function = Arc::clone(rig.device.function());
        let items = [rig.reached(0), rig.reached(1)];
        let parking = {
            let function = Arc::clone(&function);
            thread::spawn(move || {
                for item in items {
                    function.park(Box::new(item));
                }
            })
        };
        let held = Held::new(&rig.device, rig.reached(2));
        let holding = thread::spawn(move || drop(held));
        let stopping = thread::spawn(move || function.quiesce().unwrap());
        rig.device.reset().unwrap();
        for thread in [parking, holding, stopping] {
            thread.join().unwrap();
        }
        rig.check(3, 0);
    });
}
