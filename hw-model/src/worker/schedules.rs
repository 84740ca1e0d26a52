//! A worker and those who give it work, under many schedules.

use std::sync::Arc;

use super::*;
use crate::sync::{explore, thread};

/// What the worker is told to do, and what it has done.
type Shared = (Worker<Vec<u32>>, Mutex<Vec<u32>>);

/// Takes numbers off a list, one by one, until it is to stop.
fn work((worker, done): &Shared) {
    let mut spin = Spin::default();
    let mut state = worker.lock();
    while !state.stop {
        let Some(number) = state.pop() else {
            (state, _) = worker.rest(state, None, &mut spin);
            continue;
        };
        state.busy = true;
        drop(state);
        if !worker.aborted() {
            done.lock().unwrap().push(number);
        }
        state = worker.lock();
        worker.release(&mut state);
    }
}

fn give((worker, _): &Shared, number: u32) {
    let mut state = worker.lock();
    state.push(number);
    worker.poke(&state);
}

fn stop((worker, _): &Shared) {
    let mut state = worker.lock();
    state.stop = true;
    worker.poke(&state);
}

fn start(shared: &Arc<Shared>) -> thread::JoinHandle<()> {
    let shared = Arc::clone(shared);
    thread::spawn(move || work(&shared))
}

#[test]
fn a_worker_that_falls_asleep_misses_no_work() {
    explore(|| {
        let shared = Arc::new((Worker::new(Vec::new()), Mutex::default()));
        let worker = start(&shared);
        let giver = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || (0..3).for_each(|number| give(&shared, number)))
        };
        give(&shared, 3);
        giver.join().unwrap();
        // Nobody pokes it any more: what it has not seen by itself it never will.
        while shared.1.lock().unwrap().len() < 4 {
            thread::yield_now();
        }
        stop(&shared);
        worker.join().unwrap();
        let mut done = shared.1.lock().unwrap().clone();
        done.sort_unstable();
        assert_eq!(done, [0, 1, 2, 3]);
    });
}

#[test]
fn who_waits_until_a_worker_is_quiet_is_woken_and_finds_it_so() {
    explore(|| {
        let shared = Arc::new((Worker::new(Vec::new()), Mutex::default()));
        let worker = start(&shared);
        let waiter = || {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                give(&shared, 1);
                let (worker, done) = &*shared;
                let mut state = worker.lock();
                if state.busy {
                    worker.abort();
                }
                state = worker.wait_quiet(state);
                assert!(!state.busy && !worker.aborted());
                // Nothing is done while the lock is held.
                let before = done.lock().unwrap().len();
                thread::yield_now();
                assert_eq!(done.lock().unwrap().len(), before);
            })
        };
        let waiters = [waiter(), waiter()];
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
        stop(&shared);
        worker.join().unwrap();
    });
}

#[test]
fn a_worker_that_is_to_stop_does_however_it_waits() {
    explore(|| {
        let shared = Arc::new((Worker::new(Vec::new()), Mutex::default()));
        let worker = start(&shared);
        stop(&shared);
        worker.join().unwrap();
        // One that lets time pass, too.
        let shared = Arc::new((Worker::new(false), ()));
        let pausing = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let time = Duration::from_secs(3600);
                drop(shared.0.pause(shared.0.lock(), time, |&until| until));
            })
        };
        let mut state = shared.0.lock();
        **state = true;
        shared.0.poke(&state);
        drop(state);
        pausing.join().unwrap();
    });
}
