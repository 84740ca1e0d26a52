//! A channel's thread and whoever drives the function, under many schedules.

use super::*;
use crate::function::{Event, PciFunction};
use crate::ioat::Ioat;
use crate::sync::{explore, thread};
use crate::vfio_user::disconnect;

/// The smallest memory that the tests of this module need: descriptors in the first half, data in
/// the second.
const LEN: usize = 0x4000;
const CHAIN: u64 = BASE + 0x1000;
const FROM: u64 = BASE + 0x2000;
const TO: u64 = BASE + 0x3000;

const CHANCMD: u64 = 0x84;
const DMACOUNT: u64 = 0x86;
const CHANSTS: u64 = 0x88;
const CHAINADDR: u64 = 0x90;
const CHANERR: u64 = 0xa8;

/// A function by itself, and memory that it reaches.
struct Bare {
    ioat: Ioat,
    memory: TestMemory,
}

impl Bare {
    /// A bus master with a chain of descriptors that copy the words from FROM on to those from TO
    /// on, one each; the first is armed.
    fn new(descriptors: u64, control: u32) -> Arc<Bare> {
        let ioat = Ioat::new(IoatConfig::default()).unwrap();
        let bare = Bare { ioat, memory: TestMemory::new() };
        bare.map();
        for n in 0..descriptors {
            bare.word(FROM + 8 * n).store(0x100 + n, Ordering::Relaxed);
            let at = CHAIN + 64 * n;
            let words = [8 | u64::from(control | DONE) << 32, FROM + 8 * n, TO + 8 * n, at + 64];
            for (i, word) in (0..).zip(words) {
                bare.word(at + 8 * i).store(word, Ordering::Relaxed);
            }
        }
        bare.start();
        Arc::new(bare)
    }

    fn map(&self) {
        // SAFETY: the memory outlives the function, whose field comes first, and no reference
        // points into it but to atomics.
        let mapped = unsafe {
            self.ioat.memory().map_host(BASE, LEN as u64, self.memory.0, DmaAccess::ReadWrite)
        };
        mapped.unwrap();
    }

    /// Bus mastering, the completion address, and the chain.
    fn start(&self) {
        self.ioat.write(Region::Config, 0x04, &6u16.to_le_bytes());
        self.set(0x98, WORD);
        self.write(0x80, &0x1du16.to_le_bytes());
        self.set(CHAINADDR, CHAIN);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.ioat.write(Region::Bar(0), offset, data);
    }

    fn set(&self, offset: u64, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }

    fn get<const N: usize>(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ioat.read(Region::Bar(0), offset, &mut bytes[..N]);
        u64::from_le_bytes(bytes)
    }

    fn ring(&self, count: u16) {
        self.write(DMACOUNT, &count.to_le_bytes());
    }

    fn word(&self, iova: u64) -> &AtomicU64 {
        // SAFETY: aligned, inside of the memory, and only accessed so or by the device.
        unsafe { AtomicU64::from_ptr(self.memory.at(iova, 8).cast()) }
    }

    /// Waits, without an end of its own, until CHANSTS has this state.
    fn until(&self, state: u64) {
        while self.get::<8>(CHANSTS) & 7 != state {
            thread::yield_now();
        }
    }

    /// Each descriptor is counted once; the last one after CHANSTS shows it.
    fn counts(&self, descriptors: u64) {
        while self.ioat.stats().descriptors < descriptors {
            thread::yield_now();
        }
        assert_eq!(self.ioat.stats().descriptors, descriptors);
    }

    /// How many words arrived: all of the first ones, and none behind.
    fn arrived(&self, descriptors: u64) -> u64 {
        let is_there = |&n: &u64| self.word(TO + 8 * n).load(Ordering::Acquire) == 0x100 + n;
        let count = (0..descriptors).take_while(is_there).count() as u64;
        assert!((count..descriptors).all(|n| self.word(TO + 8 * n).load(Ordering::Acquire) == 0));
        count
    }

    /// The memory is somebody else's from here on: fills it.
    fn take_memory(&self) {
        for at in (0..LEN as u64).step_by(8) {
            self.word(BASE + at).store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// No engine has anything in hand.
    fn is_quiet(&self) -> bool {
        self.ioat.device.channels.iter().all(|channel| !channel.lock().busy)
    }

    fn is_untouched(&self) -> bool {
        let word = |at| self.word(BASE + at).load(Ordering::Acquire);
        (0..LEN as u64).step_by(8).all(|at| word(at) == u64::MAX)
    }
}

fn beside(bare: &Arc<Bare>, run: impl FnOnce(&Bare) + Send + 'static) -> thread::JoinHandle<()> {
    let bare = Arc::clone(bare);
    thread::spawn(move || run(&bare))
}

#[test]
fn no_doorbell_is_lost() {
    explore(|| {
        let bare = Bare::new(4, 0);
        bare.ring(1);
        bare.ring(2);
        bare.ring(4);
        bare.until(IDLE);
        let last = CHAIN + 3 * 64;
        assert_eq!(bare.get::<8>(CHANSTS), last | IDLE);
        assert_eq!(bare.word(WORD).load(Ordering::Acquire), last | IDLE);
        assert_eq!((bare.arrived(4), bare.get::<4>(CHANERR)), (4, 0));
        bare.counts(4);
    });
}

#[test]
fn a_channel_is_suspended_and_goes_on_at_any_moment() {
    explore(|| {
        let bare = Bare::new(4, 0);
        bare.ring(2);
        bare.write(CHANCMD, &[0x04]);
        bare.until(SUSPENDED);
        let done = bare.arrived(4);
        assert_eq!(bare.ioat.stats().descriptors, done);
        bare.ring(4);
        bare.until(IDLE);
        assert_eq!(bare.arrived(4), 4);
        bare.counts(4);
    });
}

#[test]
fn a_reset_ends_what_doorbells_begin_at_the_same_time() {
    explore(|| {
        let bare = Bare::new(3, 0);
        let doorbells = beside(&bare, |bare| {
            bare.ring(1);
            bare.ring(3);
        });
        bare.write(CHANCMD, &[0x20]);
        while bare.get::<1>(CHANCMD) != 0 {
            thread::yield_now();
        }
        assert_eq!(bare.get::<8>(CHANSTS) & 7, HALTED);
        // A channel that was reset has no chain, whatever counts on.
        bare.take_memory();
        doorbells.join().unwrap();
        thread::yield_now();
        assert!(bare.is_untouched(), "written after the reset had ended");
        assert_eq!((bare.get::<8>(CHANSTS) & 7, bare.get::<4>(CHANERR)), (HALTED, 0));
    });
}

#[test]
fn a_function_level_reset_leaves_nothing_running() {
    explore(|| {
        let bare = Bare::new(3, INT);
        let doorbells = beside(&bare, |bare| {
            bare.ring(2);
            bare.ring(3);
        });
        bare.ioat.reset();
        assert!(bare.is_quiet(), "an engine is at work");
        bare.take_memory();
        doorbells.join().unwrap();
        thread::yield_now();
        assert!(bare.is_untouched(), "written after the function was reset");
        assert_eq!(bare.get::<8>(CHANSTS) & 7, HALTED);
        bare.start();
        assert_eq!(bare.get::<8>(CHANSTS) & 7, ARMED);
    });
}

#[test]
fn an_unmap_is_waited_for_and_halts_the_channel() {
    explore(|| {
        let bare = Bare::new(3, 0);
        bare.ring(2);
        let doorbell = beside(&bare, |bare| bare.ring(3));
        assert_eq!(bare.ioat.memory().unmap(BASE, LEN as u64), Ok(LEN as u64));
        bare.take_memory();
        doorbell.join().unwrap();
        loop {
            match bare.get::<8>(CHANSTS) & 7 {
                // It was quicker.
                IDLE => break assert_eq!(bare.get::<4>(CHANERR), 0),
                HALTED => break assert_ne!(bare.get::<4>(CHANERR), 0),
                _ => thread::yield_now(),
            }
        }
        assert!(bare.is_untouched(), "written after it was unmapped");
    });
}

#[test]
fn a_client_that_leaves_keeps_its_memory_and_its_eventfds() {
    let eventfd = || {
        let ours = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let event = Event::new(ours.as_fd().try_clone_to_owned().unwrap()).unwrap();
        (ours, event)
    };
    // As long as one event lives, the next ones are made quickly.
    let keep = eventfd();
    explore(move || {
        let bare = Bare::new(3, INT);
        let (ours, event) = eventfd();
        bare.ioat.irq_connect(IrqKind::MsiX, 0, &[Some(event)]);
        bare.ring(1);
        bare.ring(3);
        disconnect(&bare.ioat);
        assert!(bare.is_quiet(), "an engine is at work");
        bare.take_memory();
        let _ = ours.read();
        thread::yield_now();
        assert!(ours.read().is_err() && bare.is_untouched());
        assert_eq!(bare.ioat.memory().ranges(), 0);
        // The next client finds a function like new.
        bare.map();
        bare.start();
        assert_eq!(bare.get::<8>(CHANSTS) & 7, ARMED);
    });
    drop(keep);
}

#[test]
fn a_function_that_is_dropped_at_work_has_ended_it() {
    explore(|| {
        let bare = Bare::new(3, 0);
        bare.ring(3);
        let Some(Bare { ioat, memory }) = Arc::into_inner(bare) else {
            panic!("it is the only one")
        };
        drop(ioat);
        let word = memory.at(TO, 8).cast::<u64>();
        // SAFETY: inside of the memory, which nobody else reaches any more.
        let before = unsafe { word.read_volatile() };
        thread::yield_now();
        // SAFETY: as above.
        assert_eq!(unsafe { word.read_volatile() }, before);
    });
}

#[test]
fn every_attention_is_told_of_once_the_status_was_read() {
    let ours = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let event = Event::new(ours.as_fd().try_clone_to_owned().unwrap()).unwrap();
    let ours = Arc::new(ours);
    let shared = Arc::clone(&ours);
    explore(move || {
        let bare = Bare::new(2, INT);
        while shared.read().is_ok() {}
        bare.ioat.irq_connect(IrqKind::Msi, 0, &[Some(event.clone())]);
        bare.write(0x03, &[1]);
        bare.ring(1);
        // What a driver does: waits for the message, reads what it is about, and rearms.
        let mut seen = 0;
        while seen < 2 {
            while shared.read().is_err() {
                thread::yield_now();
            }
            let attention = bare.get::<4>(0x04);
            bare.write(0x80, &0x1du16.to_le_bytes());
            if attention != 0 {
                seen += 1;
                if seen == 1 {
                    bare.ring(2);
                }
            }
        }
        bare.until(IDLE);
    });
    drop(ours);
}

#[test]
fn faults_are_put_in_force_while_others_take_effect() {
    explore(|| {
        let bare = Bare::new(3, INT);
        bare.ioat.inject("no-completion@/1".parse().unwrap());
        bare.ring(1);
        let doorbell = beside(&bare, |bare| bare.ring(3));
        bare.ioat.inject("no-completion@/1,no-interrupt@/1".parse().unwrap());
        let fired = bare.ioat.faults_fired();
        assert_eq!(fired.len(), 2);
        doorbell.join().unwrap();
        bare.until(IDLE);
        assert_eq!(bare.arrived(3), 3);
        assert_eq!(bare.word(WORD).load(Ordering::Acquire), 0, "no word is written");
    });
}
