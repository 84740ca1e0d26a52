//! Keeps several queues of a device busy from one thread, polled.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::error::BenchError;

/// How often completion is looked for between two looks at the clock.
const LOOKS: u32 = 64;
/// How long nothing may end until others may have the processor.
const SPIN: Duration = Duration::from_micros(20);
/// How long nothing may end until the device itself is asked.
const PATIENCE: Duration = Duration::from_millis(10);

/// Transfers of one queue that take turns.
pub(super) trait Lane {
    /// What they go through.
    type Queue;

    /// Begins as many batches as may be in flight and the quota allows.
    fn submit(&mut self, queue: &mut Self::Queue) -> Result<(), BenchError>;

    /// Takes what ended and records how long it took; returns how many did.
    fn reap(
        &mut self,
        queue: &mut Self::Queue,
        now: Instant,
        latency: &mut Histogram<u64>,
    ) -> Result<u64, BenchError>;

    /// Whether something is in flight.
    fn is_busy(&self) -> bool;

    /// How many may still be begun.
    fn set_quota(&mut self, quota: u64);

    /// Looks for completions, in memory; returns how many there are.
    fn poll(queue: &mut Self::Queue) -> Result<usize, BenchError>;

    /// Asks the device itself.
    fn check_device(queue: &mut Self::Queue) -> Result<(), BenchError>;
}

/// Keeps the lanes' transfers in flight until the time is over or the quotas are used up, each
/// lane on its queue; returns how many ended, and the time until the last did.
pub(super) fn drive<L: Lane>(
    queues: &mut [L::Queue],
    lanes: &mut [L],
    time: Duration,
    timeout: Duration,
    latency: &mut Histogram<u64>,
) -> Result<(u64, Duration), BenchError> {
    let begin = Instant::now();
    let (mut ended, mut last, mut asked) = (0, begin, begin);
    let mut looks = 0;
    loop {
        let before = ended;
        let mut busy = false;
        for (queue, lane) in queues.iter_mut().zip(lanes.iter_mut()) {
            lane.submit(queue)?;
            busy |= lane.is_busy();
            if L::poll(queue)? > 0 {
                last = Instant::now();
                ended += lane.reap(queue, last, latency)?;
            }
        }
        if !busy {
            return Ok((ended, last - begin));
        }
        if ended > before {
            looks = 0;
            if last - begin >= time {
                lanes.iter_mut().for_each(|lane| lane.set_quota(0));
            }
            continue;
        }
        looks += 1;
        if looks % LOOKS != 0 {
            std::hint::spin_loop();
            continue;
        }
        let now = Instant::now();
        if now - last.max(asked) >= PATIENCE {
            asked = now;
            for (queue, lane) in queues.iter_mut().zip(lanes.iter_mut()) {
                L::check_device(queue)?;
                let taken = lane.reap(queue, now, latency)?;
                if taken > 0 {
                    (ended, last) = (ended + taken, now);
                }
            }
            if now - last >= timeout {
                return Err(BenchError::Timeout { seconds: timeout.as_secs() });
            }
        }
        if now - last >= SPIN {
            std::thread::yield_now();
        }
    }
}
