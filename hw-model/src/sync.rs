//! What concurrent code synchronises through: locks, atomics, threads, the clock.
//!
//! They are the standard library's, but for the crate's own tests built with `--cfg shuttle`
//! (`tools/sanitizers.sh shuttle`). There they are [shuttle](https://docs.rs/shuttle)'s: one
//! thread runs at a time, and a scheduler decides at each of these operations which one goes on.
//! Nothing times out there, so that a thread that nobody wakes is a deadlock, which fails the
//! test. Every atomic operation is sequentially consistent, whatever it asks for.

#[cfg(not(all(test, shuttle)))]
pub(crate) use std::{
    hint,
    sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64},
    },
    thread,
    time::Instant,
};

#[cfg(all(test, shuttle))]
pub(crate) use shuttle::{
    hint,
    sync::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64},
    },
    thread,
};

#[cfg(all(test, shuttle))]
pub(crate) use explored::{Instant, explore};

#[cfg(all(test, shuttle))]
mod explored {
    use std::cell::Cell;
    use std::ops::Add;
    use std::time::Duration;

    use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
    use shuttle::{Config, MaxSteps, Runner};

    thread_local! {
        /// All threads of a test run in one.
        static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    /// A moment of a clock that each look at it moves on by 10 us: what happens depends on the
    /// schedule alone.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct Instant(Duration);

    impl Instant {
        pub(crate) fn now() -> Instant {
            Instant(NOW.with(|now| now.replace(now.get() + Duration::from_micros(10))))
        }

        pub(crate) fn elapsed(self) -> Duration {
            Instant::now().saturating_duration_since(self)
        }

        pub(crate) fn saturating_duration_since(self, earlier: Instant) -> Duration {
            self.0.saturating_sub(earlier.0)
        }
    }

    impl Add<Duration> for Instant {
        type Output = Instant;

        fn add(self, time: Duration) -> Instant {
            Instant(self.0 + time)
        }
    }

    /// Runs a test under many schedules: `VFIO_DMA_SCHEDULES` of each kind, 1000 by default. A
    /// schedule that fails is printed, with what repeats it.
    pub(crate) fn explore(body: impl Fn() + Clone + Send + Sync + 'static) {
        let schedules = match std::env::var("VFIO_DMA_SCHEDULES") {
            Ok(text) => text.parse().expect("VFIO_DMA_SCHEDULES is a number"),
            Err(_) => 1000,
        };
        run(RandomScheduler::new(schedules), body.clone());
        // Few changes of the running thread, at random places: what needs a long delay.
        run(PctScheduler::new(3, schedules), body);
    }

    fn run(scheduler: impl Scheduler + 'static, body: impl Fn() + Send + Sync + 'static) {
        let mut config = Config::new();
        config.stack_size = 256 << 10;
        config.max_steps = MaxSteps::FailAfter(100_000);
        config.silence_warnings = true;
        Runner::new(scheduler, config).run(body);
    }
}
