//! Transfers that threads and tasks wait for, under many schedules.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Wake, Waker};

use super::*;
use crate::backend::IrqKind;
use crate::queue::SharedQueue;
use crate::sync::{Mutex, explore, thread};

/// Far longer than a schedule takes: who is not woken waits for ever.
const HOURS: Duration = Duration::from_secs(36_000);

struct Rig {
    backing: Backing,
    ioat: Ioat,
    shared: SharedChannel,
}

impl Rig {
    /// A device that holds everything back, and a channel that sleeps until its interrupt.
    fn new() -> Rig {
        let wait = WaitMode::Interrupt(IrqKind::MsiX);
        let (backing, ioat, channel) = open(Config { wait, ..config() });
        backing.registers().hold = true;
        let shared = SharedChannel::new(channel).unwrap();
        Rig { backing, ioat, shared }
    }

    fn start(&self, seed: u64) -> Completion {
        let (source, target) = scattered(&self.ioat, 1, seed);
        self.shared.copy(source, target).unwrap()
    }

    /// The device does what it has, holds back what comes, and so once more; then all.
    fn device(&self) -> thread::JoinHandle<()> {
        let backing = Arc::clone(&self.backing);
        thread::spawn(move || {
            for _ in 0..2 {
                let mut registers = backing.registers();
                registers.release();
                registers.hold = true;
            }
            backing.registers().release();
        })
    }

    /// Nothing is left of any transfer.
    fn end(self) {
        let Rig { backing, ioat, shared } = self;
        drop((shared, ioat));
        assert_eq!(backing.host.mappings(), 0, "buffers are left");
    }
}

fn poll(completion: &mut Completion, waker: &Waker) -> Poll<Result<Finished, IoatError>> {
    Pin::new(completion).poll(&mut Context::from_waker(waker))
}

fn good(finished: Result<Finished, IoatError>, seed: u64) {
    check(&finished.unwrap().into_result().unwrap(), seed);
}

#[test]
fn a_completion_that_comes_as_the_thread_falls_asleep_is_seen() {
    explore(|| {
        let rig = Rig::new();
        let first = rig.start(1);
        let device = rig.device();
        let second = rig.start(2);
        good(first.wait(HOURS), 1);
        good(second.wait(HOURS), 2);
        device.join().unwrap();
        // The thread sleeps without a limit by now, or is about to.
        good(rig.start(3).wait(HOURS), 3);
        rig.end();
    });
}

#[test]
fn two_threads_each_get_their_own_transfers() {
    explore(|| {
        let rig = Rig::new();
        let device = rig.device();
        let threads = [1, 2].map(|seed| {
            let shared = rig.shared.clone();
            let (source, target) = scattered(&rig.ioat, 1, seed);
            thread::spawn(move || good(shared.copy(source, target).unwrap().wait(HOURS), seed))
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        device.join().unwrap();
        assert_eq!(rig.shared.stats().transfers, 2);
        rig.end();
    });
}

/// Says whether it was woken; its owner knows whether somebody keeps it.
#[derive(Default)]
struct Flag(Mutex<bool>);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        *self.0.lock().unwrap() = true;
    }
}

#[test]
fn the_last_waker_is_woken_and_none_is_kept() {
    explore(|| {
        let rig = Rig::new();
        let mut completion = rig.start(1);
        let device = rig.device();
        let flags = [Arc::new(Flag::default()), Arc::new(Flag::default())];
        let mut finished = None;
        for flag in &flags {
            if finished.is_none()
                && let Poll::Ready(ready) = poll(&mut completion, &Arc::clone(flag).into())
            {
                finished = Some(ready);
            }
        }
        let finished = finished.unwrap_or_else(|| {
            while !*flags[1].0.lock().unwrap() {
                thread::yield_now();
            }
            match poll(&mut completion, Waker::noop()) {
                Poll::Ready(ready) => ready,
                Poll::Pending => panic!("woken, and nothing has ended"),
            }
        });
        good(finished, 1);
        device.join().unwrap();
        assert!(matches!(
            poll(&mut completion, Waker::noop()),
            Poll::Ready(Err(IoatError::NoSuchTransfer))
        ));
        drop(completion);
        rig.end();
        assert_eq!(flags.map(|flag| Arc::strong_count(&flag)), [1, 1], "a waker is kept");
    });
}

#[test]
fn a_transfer_that_is_given_up_or_aborted_ends_once() {
    explore(|| {
        let rig = Rig::new();
        let flag = Arc::new(Flag::default());
        let mut given_up = rig.start(1);
        let _ = poll(&mut given_up, &Arc::clone(&flag).into());
        let waited = rig.start(2);
        let device = rig.device();
        let giving_up = thread::spawn(move || drop(given_up));
        let aborting = {
            let shared = rig.shared.clone();
            thread::spawn(move || shared.abort().unwrap())
        };
        // Well, or with the error of the abort.
        let finished = waited.wait(HOURS).unwrap();
        match finished.result.clone() {
            Ok(()) => good(Ok(finished), 2),
            Err(error) => {
                assert_eq!(error, TransferError::Aborted);
                drop(finished);
            }
        }
        for thread in [giving_up, aborting, device] {
            thread.join().unwrap();
        }
        rig.end();
        assert_eq!(Arc::strong_count(&flag), 1, "a waker is kept");
    });
}

/// A waker that owns a transfer, and what keeps the channel.
struct Owns(Mutex<Option<Completion>>);

impl Wake for Owns {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().unwrap().take());
    }
}

#[test]
fn the_channel_ends_with_whoever_lets_go_last_its_own_thread_too() {
    explore(|| {
        let rig = Rig::new();
        let mut first = rig.start(1);
        let waker = Arc::new(Owns(Mutex::new(Some(rig.start(2))))).into();
        let _ = poll(&mut first, &waker);
        drop(waker);
        let device = rig.device();
        // Its waker, and with that the last transfer, goes when the thread has ended it.
        let dropping = thread::spawn(move || drop(first));
        let Rig { backing, ioat, shared } = rig;
        drop(shared);
        dropping.join().unwrap();
        device.join().unwrap();
        drop(ioat);
        // Where the thread itself was the last, it is still about to end.
        while backing.host.mappings() != 0 {
            thread::yield_now();
        }
    });
}

#[test]
fn what_is_submitted_with_the_queue_for_oneself_is_served_too() {
    explore(|| {
        let wait = WaitMode::Interrupt(IrqKind::MsiX);
        let (backing, ioat, mut channel) = open(Config { wait, ..config() });
        channel.is_shared = true;
        let queue = SharedQueue::new(channel, "ioat").unwrap();
        // The first interrupt is let through from the start, the second only by the thread.
        for seed in 1..3 {
            let flag = Arc::new(Flag::default());
            let token = queue.with(|channel| {
                let (source, target) = scattered(&ioat, 1, seed);
                let token = channel.copy(source, target, WhenFull::Return).unwrap();
                channel.set_waker(token, Arc::clone(&flag).into()).unwrap();
                channel.issue().unwrap();
                token
            });
            while !*flag.0.lock().unwrap() {
                thread::yield_now();
            }
            let finished = queue.with(|channel| channel.take(token)).unwrap().unwrap();
            good(Ok(finished), seed);
        }
        drop((queue, ioat));
        assert_eq!(backing.host.mappings(), 0);
    });
}
