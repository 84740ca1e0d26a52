//! What concurrent code synchronises through: locks, atomics, threads, eventfds, the clock.
//!
//! They are the standard library's, but for the crate's own tests built with `--cfg shuttle`
//! (`tools/sanitizers.sh shuttle`). There they are [shuttle](https://docs.rs/shuttle)'s: one
//! thread runs at a time, and a scheduler decides at each of these operations which one goes on.
//! Nothing times out there, so that a thread that nobody wakes is a deadlock, which fails the
//! test. Every atomic operation is sequentially consistent, whatever it asks for.

#[cfg(not(all(test, shuttle)))]
use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

#[cfg(not(all(test, shuttle)))]
pub(crate) use std::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8},
    },
    thread,
    time::Instant,
};

#[cfg(not(all(test, shuttle)))]
pub(crate) use nix::{poll::poll, sys::eventfd::EventFd};

/// Waits for events, or until `timeout` has passed.
#[cfg(not(all(test, shuttle)))]
pub(crate) fn epoll_wait(
    epoll: &Epoll,
    ready: &mut [EpollEvent],
    timeout: EpollTimeout,
) -> nix::Result<usize> {
    epoll.wait(ready, timeout)
}

#[cfg(all(test, shuttle))]
pub(crate) use shuttle::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8},
    },
    thread,
};

#[cfg(all(test, shuttle))]
pub(crate) use explored::{EventFd, Instant, epoll_wait, explore, poll};

#[cfg(all(test, shuttle))]
mod explored {
    use std::cell::Cell;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::time::Duration;

    use nix::poll::{PollFd, PollTimeout};
    use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};
    use nix::sys::eventfd::EfdFlags;
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
            Instant::now().0.saturating_sub(self.0)
        }
    }

    /// The kernel's, read and written as the schedule says.
    #[derive(Debug)]
    pub(crate) struct EventFd(nix::sys::eventfd::EventFd);

    impl EventFd {
        pub(crate) fn from_flags(flags: EfdFlags) -> nix::Result<EventFd> {
            nix::sys::eventfd::EventFd::from_flags(flags).map(EventFd)
        }

        pub(crate) fn write(&self, value: u64) -> nix::Result<usize> {
            shuttle::thread::sleep(Duration::ZERO);
            self.0.write(value)
        }

        pub(crate) fn read(&self) -> nix::Result<u64> {
            shuttle::thread::sleep(Duration::ZERO);
            self.0.read()
        }
    }

    impl AsFd for EventFd {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }
    }

    /// As [`nix::poll::poll`], while other threads go on; does not time out.
    pub(crate) fn poll(fds: &mut [PollFd<'_>], timeout: PollTimeout) -> nix::Result<i32> {
        loop {
            match nix::poll::poll(fds, PollTimeout::ZERO) {
                Ok(0) if timeout != PollTimeout::ZERO => shuttle::thread::yield_now(),
                polled => return polled,
            }
        }
    }

    /// As [`Epoll::wait`], while other threads go on. A timeout passes at once when there is
    /// nothing and the others have had a turn.
    pub(crate) fn epoll_wait(
        epoll: &Epoll,
        ready: &mut [EpollEvent],
        timeout: EpollTimeout,
    ) -> nix::Result<usize> {
        loop {
            match epoll.wait(ready, EpollTimeout::ZERO) {
                Ok(0) if timeout != EpollTimeout::ZERO => shuttle::thread::yield_now(),
                waited => return waited,
            }
            if timeout.is_some() {
                NOW.with(|now| now.set(now.get() + timeout.duration().unwrap_or_default()));
                return epoll.wait(ready, EpollTimeout::ZERO);
            }
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
