//! Interrupts that are raised while a transport masks, connects and leaves, under many schedules.

use std::os::fd::AsFd;
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::*;
use crate::sync::{explore, thread};

/// An eventfd and its other end.
fn event() -> (EventFd, Event) {
    let ours = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let event = Event::new(ours.as_fd().try_clone_to_owned().unwrap()).unwrap();
    (ours, event)
}

/// What is run beside the test.
fn beside(irq: &Arc<Interrupts>, run: impl FnOnce(&Interrupts) + Send + 'static) -> Joined {
    let irq = Arc::clone(irq);
    thread::spawn(move || run(&irq))
}

type Joined = thread::JoinHandle<()>;

#[test]
fn nothing_is_signalled_once_a_transport_has_left() {
    // As long as one event lives, the next ones are made quickly.
    let keep = event();
    explore(|| {
        let irq = Arc::new(Interrupts::new(1, 1, 2));
        let (ours, event) = event();
        irq.connect(IrqKind::MsiX, 0, &[Some(event.clone())]);
        irq.connect(IrqKind::Intx, 0, &[Some(event)]);
        let device = beside(&irq, |irq| {
            irq.signal(IrqKind::MsiX, 0);
            irq.set_level(true);
            irq.signal(IrqKind::MsiX, 0);
            irq.set_level(false);
            irq.set_level(true);
        });
        irq.disconnect(IrqKind::MsiX);
        irq.disconnect(IrqKind::Intx);
        let _ = ours.read();
        device.join().unwrap();
        assert!(ours.read().is_err(), "signalled after the transport has left");
    });
    drop(keep);
}

#[test]
fn what_is_raised_while_it_is_masked_comes_with_the_unmasking() {
    let keep = event();
    explore(|| {
        let irq = Arc::new(Interrupts::new(1, 0, 1));
        let (ours, event) = event();
        irq.connect(IrqKind::MsiX, 0, &[Some(event)]);
        let device = beside(&irq, |irq| irq.signal(IrqKind::MsiX, 0));
        let mask = beside(&irq, |irq| {
            irq.set_masked(IrqKind::MsiX, 0, true);
            irq.set_masked(IrqKind::MsiX, 0, false);
        });
        irq.mask_all_msix(true);
        irq.mask_all_msix(false);
        device.join().unwrap();
        mask.join().unwrap();
        assert_eq!(ours.read(), Ok(1), "each edge arrives once");
        assert_eq!(irq.pending(IrqKind::MsiX), 0);
    });
    drop(keep);
}

#[test]
fn a_level_that_stays_high_fires_after_each_unmasking() {
    let keep = event();
    explore(|| {
        let irq = Arc::new(Interrupts::new(1, 0, 0));
        let (ours, event) = event();
        irq.connect(IrqKind::Intx, 0, &[Some(event)]);
        let device = beside(&irq, |irq| irq.set_level(true));
        irq.set_masked(IrqKind::Intx, 0, false);
        device.join().unwrap();
        assert!(ours.read().is_ok(), "the level is high and nobody was told");
        irq.set_masked(IrqKind::Intx, 0, false);
        assert_eq!(ours.read(), Ok(1));
    });
    drop(keep);
}
