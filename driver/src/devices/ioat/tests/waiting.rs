//! Interrupts, wakers and futures: how a transfer's end reaches who waits for it.

use super::*;

/// Far more than a busy machine takes.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn interrupts_end_waits_and_a_lost_one_only_delays() {
    let irq = crate::backend::IrqKind::MsiX;
    for wait in
        [WaitMode::Interrupt(irq), WaitMode::Adaptive { irq, spin: Duration::from_micros(20) }]
    {
        let (backing, ioat, mut channel) = open(Config { wait, ..config() });
        for seed in 0..50 {
            backing.registers().hold = true;
            backing.registers().lose_interrupts = seed % 10 == 9;
            let (source, target) = scattered(&ioat, 3, seed);
            let token = channel.copy(source, target, WhenFull::Return).unwrap();
            channel.issue().unwrap();
            let device = Arc::clone(&backing);
            let worker = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(1));
                device.registers().release();
            });
            check(&channel.wait(token, LIMIT).unwrap().into_result().unwrap(), seed);
            worker.join().unwrap();
        }
        assert!(channel.stats().interrupts >= 30, "{:?}", channel.stats());
    }
}

#[test]
fn futures_are_woken_by_the_channels_thread() {
    let irq = crate::backend::IrqKind::MsiX;
    for wait in [WaitMode::Interrupt(irq), WaitMode::Poll] {
        let (backing, ioat, channel) = open(Config { wait, ..config() });
        let shared = SharedChannel::new(channel).unwrap();
        for seed in 0..50 {
            backing.registers().hold = true;
            let start = |seed| {
                let (source, target) = scattered(&ioat, 3, seed);
                shared.copy(source, target).unwrap()
            };
            let [first, second, dropped] = [start(seed), start(seed + 1), start(seed + 2)];
            drop(dropped);
            backing.registers().release();
            check(&second.wait(LIMIT).unwrap().into_result().unwrap(), seed + 1);
            check(&first.wait(LIMIT).unwrap().into_result().unwrap(), seed);
        }
        drop(shared);
        assert_eq!(backing.host.mappings(), 0, "nothing is left of the dropped ones");
    }
}

/// A waker that owns a transfer, which is given up when it is dropped or woken.
struct Owns(std::sync::Mutex<Option<Completion>>);

impl std::task::Wake for Owns {
    fn wake(self: Arc<Self>) {
        drop(self.0.lock().unwrap().take());
    }
}

#[test]
fn a_waker_that_owns_a_transfer_of_the_same_channel_is_no_deadlock() {
    use std::future::Future;
    use std::pin::Pin;
    use std::task::{Context, Waker};

    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (backing, ioat, channel) = open(config());
        let shared = SharedChannel::new(channel).unwrap();
        backing.registers().hold = true;
        let start = |seed| {
            let (source, target) = scattered(&ioat, 2, seed);
            shared.copy(source, target).unwrap()
        };
        let owner = |seed| Waker::from(Arc::new(Owns(Some(start(seed)).into())));
        let poll = |completion: &mut Completion, waker: &Waker| {
            Pin::new(completion).poll(&mut Context::from_waker(waker)).is_ready()
        };
        let mut replaced = start(0);
        // The first waker is dropped when the second takes its place, ...
        assert!(!poll(&mut replaced, &owner(1)));
        assert!(!poll(&mut replaced, Waker::noop()));
        // ... another when nobody waits any more, ...
        let mut given_up = start(2);
        assert!(!poll(&mut given_up, &owner(3)));
        drop(given_up);
        // ... one when it is woken, and one with the whole channel.
        let mut woken = start(4);
        assert!(!poll(&mut woken, &owner(5)));
        backing.registers().release();
        replaced.wait(LIMIT).unwrap().into_result().unwrap();
        woken.wait(LIMIT).unwrap().into_result().unwrap();
        backing.registers().hold = true;
        let mut last = start(6);
        assert!(!poll(&mut last, &owner(7)));
        backing.registers().release();
        drop((last, shared));
        ended.send(()).unwrap();
    });
    end.recv_timeout(Duration::from_secs(30)).expect("nobody waits for a lock for ever");
}
