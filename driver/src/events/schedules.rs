//! Events that come while others use, reset and leave the function, under many schedules.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::watcher::{Source, Watcher};
use super::*;
use crate::sync::{AtomicBool, explore, thread};
use crate::testing::{NoRegisters, Scripted};

/// Counts how often it had to leave.
#[derive(Default)]
struct User(Mutex<u32>);

impl Revoke for User {
    fn revoke(&self) {
        *self.0.lock().unwrap() += 1;
    }
}

fn events() -> Events {
    Events::new("here".into()).unwrap()
}

fn beside(run: impl FnOnce() + Send + 'static) -> thread::JoinHandle<()> {
    thread::spawn(run)
}

fn readable(events: &Events) -> bool {
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
}

#[test]
fn who_begins_to_use_a_device_that_is_being_closed_leaves_it() {
    explore(|| {
        let (events, user) = (events(), Arc::new(User::default()));
        let backend = Scripted::new((1, 1), |_| NoRegisters).attach();
        let closing = {
            let events = events.clone();
            beside(move || assert!(events.revoke(&backend)))
        };
        let user_of_it: Arc<dyn Revoke> = Arc::clone(&user) as _;
        events.before_revoke(&user_of_it);
        closing.join().unwrap();
        assert!(*user.0.lock().unwrap() > 0, "it was not told to leave");
        assert!(events.is_closed());
    });
}

#[test]
fn what_there_is_to_tell_and_the_descriptor_agree() {
    explore(|| {
        let events = events();
        let happens = |event| {
            let events = events.clone();
            beside(move || events.happened(event))
        };
        let threads = [happens(Event::Error), happens(Event::Error)];
        events.was_reset();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(readable(&events), events.pending().is_some());
        let removal = happens(Event::Removal);
        events.was_reset();
        removal.join().unwrap();
        assert!(readable(&events));
        assert_eq!(events.pending(), Some(Event::Removal));
    });
}

/// What the process's thread does, until `stop`; it has to be woken for that.
fn watch(watcher: &Arc<Watcher>, stop: &Arc<AtomicBool>) -> thread::JoinHandle<()> {
    let (watcher, stop) = (Arc::clone(watcher), Arc::clone(stop));
    beside(move || {
        let mut leaving = Vec::new();
        while !stop.load(Ordering::Relaxed) || !leaving.is_empty() {
            watcher.turn(&mut leaving).unwrap();
        }
    })
}

fn source(event: Event, events: &Events, backend: &Arc<dyn Backend>) -> (Source, OwnedFd) {
    let signalled = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let kernels = nix::unistd::dup(signalled.as_fd()).unwrap();
    let backend = Arc::downgrade(backend);
    (Source { signalled, event, events: events.clone(), backend }, kernels)
}

/// What the kernel does.
fn signal(eventfd: &OwnedFd) {
    thread::yield_now();
    nix::unistd::write(eventfd, &1u64.to_ne_bytes()).unwrap();
}

#[test]
fn an_event_is_told_to_whoever_watches_and_an_owner_that_stays_is_closed() {
    explore(|| {
        let (watcher, stop) = (Watcher::new().unwrap(), Arc::new(AtomicBool::new(false)));
        let thread = watch(&watcher, &stop);
        let scripted = Scripted::new((1, 1), |_| NoRegisters);
        let backend: Arc<dyn Backend> = Arc::new(scripted.attach());
        let (events, others) = (events(), events());
        let user = Arc::new(User::default());
        let user_of_it: Arc<dyn Revoke> = Arc::clone(&user) as _;
        events.before_revoke(&user_of_it);

        let (removal, kernels) = source(Event::Removal, &events, &backend);
        let removal = watcher.add(removal).unwrap();
        // One that leaves while its error is told.
        let (error, of_other) = source(Event::Error, &others, &backend);
        let error = watcher.add(error).unwrap();
        let other = beside(move || {
            signal(&of_other);
            drop(error);
        });
        signal(&kernels);
        while !events.is_closed() {
            thread::yield_now();
        }
        assert_eq!(events.pending(), Some(Event::Removal));
        assert!(scripted.revoked.load(Ordering::Acquire));
        assert_eq!(*user.0.lock().unwrap(), 1, "it leaves once");
        other.join().unwrap();
        drop(removal);

        // Nobody else wakes the thread.
        let (bell, rings) = source(Event::Error, &others, &backend);
        let bell = watcher.add(bell).unwrap();
        stop.store(true, Ordering::Relaxed);
        signal(&rings);
        thread.join().unwrap();
        drop(bell);
        assert!(watcher.is_idle());
    });
}

#[test]
fn an_owner_that_leaves_in_time_is_not_closed_afterwards() {
    explore(|| {
        let (watcher, stop) = (Watcher::new().unwrap(), Arc::new(AtomicBool::new(false)));
        let thread = watch(&watcher, &stop);
        let scripted = Scripted::new((1, 1), |_| NoRegisters);
        let backend: Arc<dyn Backend> = Arc::new(scripted.attach());
        let events = events();
        let (removal, kernels) = source(Event::Removal, &events, &backend);
        let watch = watcher.add(removal).unwrap();
        signal(&kernels);
        // As a function is dropped: what it watches, then the device.
        drop(watch);
        let was_revoked = scripted.revoked.load(Ordering::Acquire);
        drop(backend);
        let other: Arc<dyn Backend> = Arc::new(scripted.attach());
        let (bell, rings) = source(Event::Error, &events, &other);
        let bell = watcher.add(bell).unwrap();
        stop.store(true, Ordering::Relaxed);
        signal(&rings);
        thread.join().unwrap();
        drop(bell);
        // The watcher may have been about to.
        assert!(events.is_closed() == scripted.revoked.load(Ordering::Acquire));
        assert!(!was_revoked || events.is_closed());
        assert!(watcher.is_idle());
    });
}
