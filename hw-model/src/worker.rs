//! A thread of a device that works on a state which others change under a lock.
//!
//! A device's engine (an I/OAT channel, one direction of a card) is a thread that decides
//! with the lock held and works without it. Meanwhile [`Locked::busy`] is set: who must know
//! the engine quiet waits for that to end ([`Worker::wait_quiet`]). Whoever changes the state
//! pokes the engine ([`Worker::poke`]), which is a store while it is awake.
//!
//! When there is nothing to do it sleeps. Before, it may spin for some tens of microseconds,
//! because waking a thread takes as long: it does so while work follows work closely, and
//! stops when it does not.

use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Condvar, Instant, Mutex, MutexGuard, hint};

/// How long [`Worker::wait_quiet`] waits: thousands of times what an engine needs.
const STUCK: Duration = Duration::from_secs(2);

/// How often an engine that spins looks for a poke between two looks at the clock.
const LOOKS: u32 = if cfg!(all(test, shuttle)) { 1 } else { 32 };

/// The longest that an engine spins before it sleeps.
const SPIN_MOST: Duration = Duration::from_micros(50);
/// The shortest.
const SPIN_LEAST: Duration = Duration::from_micros(1);

/// A state, and what its worker does.
#[derive(Debug)]
pub(crate) struct Locked<S> {
    state: S,
    /// The worker has something in hand: only then may it touch memory or raise interrupts.
    pub(crate) busy: bool,
    /// The worker is to end.
    pub(crate) stop: bool,
    sleeping: bool,
    /// How many threads wait for `busy` to end.
    waiting: u32,
}

impl<S> Deref for Locked<S> {
    type Target = S;

    #[inline]
    fn deref(&self) -> &S {
        &self.state
    }
}

impl<S> DerefMut for Locked<S> {
    #[inline]
    fn deref_mut(&mut self) -> &mut S {
        &mut self.state
    }
}

/// A state that is locked.
pub(crate) type Guard<'a, S> = MutexGuard<'a, Locked<S>>;

/// What a worker and those who give it work share.
#[derive(Debug)]
pub(crate) struct Worker<S> {
    state: Mutex<Locked<S>>,
    /// The worker sleeps here.
    work: Condvar,
    /// Who needs the worker quiet waits here.
    quiet: Condvar,
    /// Changes with each [`Worker::poke`], for a worker that spins.
    signal: AtomicU32,
    /// What is in hand is to stop between two pieces.
    abort: AtomicBool,
}

impl<S> Worker<S> {
    pub(crate) fn new(state: S) -> Self {
        let locked = Locked { state, busy: false, stop: false, sleeping: false, waiting: 0 };
        Worker {
            state: Mutex::new(locked),
            work: Condvar::new(),
            quiet: Condvar::new(),
            signal: AtomicU32::new(0),
            abort: AtomicBool::new(false),
        }
    }

    pub(crate) fn lock(&self) -> Guard<'_, S> {
        // The state is changed by assignments that do not panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the worker that there may be something to do: a store when it is awake, a
    /// system call only when it sleeps.
    pub(crate) fn poke(&self, state: &Locked<S>) {
        self.signal.fetch_add(1, Ordering::Relaxed);
        if state.sleeping {
            self.work.notify_one();
        }
    }

    /// Different after each poke.
    pub(crate) fn signal(&self) -> u32 {
        self.signal.load(Ordering::Relaxed)
    }

    /// What is in hand is to stop between two pieces.
    pub(crate) fn abort(&self) {
        self.abort.store(true, Ordering::Relaxed);
    }

    pub(crate) fn aborted(&self) -> bool {
        self.abort.load(Ordering::Relaxed)
    }

    /// The worker has nothing in hand any more.
    pub(crate) fn release(&self, state: &mut Locked<S>) {
        state.busy = false;
        self.abort.store(false, Ordering::Relaxed);
        if state.waiting != 0 {
            // A system call, even when nobody is there.
            self.quiet.notify_all();
        }
    }

    /// Waits until the worker has nothing in hand: a piece of a transfer at most, unless the
    /// memory itself does not answer. After [`STUCK`] it gives up.
    pub(crate) fn wait_quiet<'a>(&self, mut state: Guard<'a, S>) -> Guard<'a, S> {
        state.waiting += 1;
        let quiet = self.quiet.wait_timeout_while(state, STUCK, |state| state.busy);
        let mut state = quiet.unwrap_or_else(PoisonError::into_inner).0;
        state.waiting -= 1;
        state
    }

    /// Sleeps until poked, or until `due`.
    pub(crate) fn sleep<'a>(&self, mut state: Guard<'a, S>, due: Option<Instant>) -> Guard<'a, S> {
        state.sleeping = true;
        state = match due.map(|due| due.saturating_duration_since(Instant::now())) {
            None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(time) => {
                let woken = self.work.wait_timeout(state, time);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        state.sleeping = false;
        state
    }

    /// Lets `time` pass; returns early when the worker is to end, or `until` says so.
    pub(crate) fn pause<'a>(
        &self,
        mut state: Guard<'a, S>,
        time: Duration,
        until: impl Fn(&S) -> bool,
    ) -> Guard<'a, S> {
        let end = Instant::now() + time;
        while !until(&state) && !state.stop && Instant::now() < end {
            state = self.sleep(state, Some(end));
        }
        state
    }

    /// Waits for work, or until `due`: spinning first when work is likely to come soon, then
    /// asleep. Returns whether it slept.
    pub(crate) fn rest<'a>(
        &'a self,
        mut state: Guard<'a, S>,
        due: Option<Instant>,
        spin: &mut Spin,
    ) -> (Guard<'a, S>, bool) {
        let start = Instant::now();
        if due.is_none_or(|due| due > start + spin.0) {
            let before = self.signal();
            drop(state);
            let poked = self.spin(before, start + spin.0);
            state = self.lock();
            spin.0 = if poked { SPIN_MOST } else { (spin.0 / 2).max(SPIN_LEAST) };
            if poked || self.signal() != before {
                return (state, false);
            }
        }
        if state.stop {
            return (state, false);
        }
        state = self.sleep(state, due);
        if start.elapsed() < SPIN_MOST {
            // It would have been worth it.
            spin.0 = SPIN_MOST;
        }
        (state, true)
    }

    /// Spins until poked; gives up at `until`.
    fn spin(&self, before: u32, until: Instant) -> bool {
        loop {
            for _ in 0..LOOKS {
                if self.signal() != before {
                    return true;
                }
                hint::spin_loop();
            }
            if Instant::now() >= until {
                return false;
            }
        }
    }
}

/// How long a worker spins before it sleeps: it learns that from how soon work came.
#[derive(Debug)]
pub(crate) struct Spin(Duration);

impl Default for Spin {
    fn default() -> Self {
        Spin(SPIN_LEAST)
    }
}

/// A count that only one thread at a time writes, and any reads.
///
/// Adding takes no locked instruction: that would wait until the stores before it, such as
/// that of a completion word, have reached the cache.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Adds some; only whoever has the work may: the worker while it is busy, others with the
    /// lock held while it is not.
    #[inline]
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    /// Adds one.
    #[inline]
    pub(crate) fn add_one(&self) {
        self.add(1);
    }

    #[inline]
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Apart from others' cache lines (two, for processors fetch them in pairs): writing it does
/// not slow down who reads what would lie beside it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct CachePadded<T>(pub(crate) T);

impl<T> Deref for CachePadded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(all(test, shuttle))]
mod schedules;

#[cfg(test)]
mod tests {
    use super::*;

    /// A worker that takes numbers off a list, one by one.
    fn work(worker: &Worker<Vec<u32>>, done: &Count) {
        let mut spin = Spin::default();
        let mut state = worker.lock();
        while !state.stop {
            if state.pop().is_none() {
                (state, _) = worker.rest(state, None, &mut spin);
                continue;
            }
            state.busy = true;
            drop(state);
            done.add_one();
            state = worker.lock();
            worker.release(&mut state);
        }
    }

    #[test]
    fn nothing_that_is_given_to_a_worker_is_lost() {
        let (worker, done) = (Worker::new(Vec::new()), Count::default());
        std::thread::scope(|scope| {
            scope.spawn(|| work(&worker, &done));
            for n in 0..2_000 {
                let mut state = worker.lock();
                state.push(n);
                worker.poke(&state);
                drop(state);
                if n % 100 == 0 {
                    // Long enough for it to fall asleep.
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            let begin = Instant::now();
            while done.get() < 2_000 {
                assert!(begin.elapsed() < Duration::from_secs(10), "{} were done", done.get());
                std::thread::yield_now();
            }
            let state = worker.wait_quiet(worker.lock());
            assert!(!state.busy && state.is_empty());
            drop(state);
            let mut state = worker.lock();
            state.stop = true;
            worker.poke(&state);
        });
    }

    #[test]
    fn who_waits_for_quiet_gives_up_on_a_worker_that_hangs() {
        let worker = Worker::new(());
        let mut state = worker.lock();
        state.busy = true;
        let begin = Instant::now();
        assert!(worker.wait_quiet(state).busy);
        assert!((STUCK..STUCK * 3).contains(&begin.elapsed()));
    }

    #[test]
    fn a_pause_ends_in_time_or_when_it_is_to() {
        let worker = Worker::new(false);
        let begin = Instant::now();
        let mut state = worker.pause(worker.lock(), Duration::from_millis(20), |&end| end);
        assert!(begin.elapsed() >= Duration::from_millis(20));
        **state = true;
        let begin = Instant::now();
        drop(worker.pause(state, Duration::from_secs(60), |&end| end));
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
