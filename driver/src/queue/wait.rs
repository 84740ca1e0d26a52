//! Waiting: by looking at memory, by an interrupt, or by the one and then the other.

use std::time::{Duration, Instant};

use crate::backend::{BackendError, IrqKind};
use crate::deadline::Deadline;
use crate::events::Events;
use crate::irq::{IrqError, Vector};

/// How long nothing may move until the device is asked over the bus; also how long one
/// sleep lasts, so that an interrupt that got lost costs no more than this.
pub(super) const PATIENCE: Duration = Duration::from_millis(10);

/// How often memory is looked at between two looks at the clock.
const LOOKS: u32 = 64;

/// How long to look without letting other threads run.
const SPIN: Duration = Duration::from_millis(1);

/// How a wait learns that the device is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum WaitMode {
    /// By looking at memory: quickest, and takes a processor.
    Poll,
    /// By an interrupt.
    Interrupt(IrqKind),
    /// By looking for a while, then by an interrupt.
    Adaptive {
        /// Kind of interrupt.
        irq: IrqKind,
        /// How long to look.
        spin: Duration,
    },
}

impl WaitMode {
    /// The kind of interrupt that is needed.
    #[must_use]
    pub fn irq(self) -> Option<IrqKind> {
        match self {
            WaitMode::Poll => None,
            WaitMode::Interrupt(irq) | WaitMode::Adaptive { irq, .. } => Some(irq),
        }
    }

    /// How long to look before sleeping; `None` never sleeps.
    fn spin(self) -> Option<Duration> {
        match self {
            WaitMode::Poll => None,
            WaitMode::Interrupt(_) => Some(Duration::ZERO),
            WaitMode::Adaptive { spin, .. } => Some(spin),
        }
    }
}

/// What a device supplies so that its queue can be waited for.
pub trait Queue {
    /// Why an operation fails.
    type Error: From<IrqError>;

    /// Tells the device of what was submitted since the last time.
    ///
    /// # Errors
    ///
    /// Fails when the device cannot be reached.
    fn issue(&mut self) -> Result<(), Self::Error>;

    /// Looks at memory and ends what is done; returns how much ended.
    ///
    /// # Errors
    ///
    /// Fails when the device cannot be reached or set up again.
    fn poll(&mut self) -> Result<usize, Self::Error>;

    /// Asks the device itself, over the bus, how far it is: called when nothing moves for
    /// 10 ms. Returns how much ended.
    ///
    /// # Errors
    ///
    /// As [`Queue::poll`].
    fn check_device(&mut self) -> Result<usize, Self::Error>;

    /// A number that grows whenever the device gets further.
    fn done(&self) -> u64;

    /// How much is submitted and has not ended.
    fn in_flight(&self) -> usize;

    /// The events of the device's function ([`Device::events`]): a wait ends with
    /// [`Queue::handle_event`] when there is one. `None` where a queue does without.
    ///
    /// [`Device::events`]: crate::device::Device::events
    fn events(&self) -> Option<&Events> {
        None
    }

    /// There is an event of the function: stops the device, and ends everything in flight with
    /// an error that says so. Called by every wait, and by the thread of a
    /// [`SharedQueue`](super::SharedQueue), as long as the event is pending.
    ///
    /// # Errors
    ///
    /// The error of the event.
    fn handle_event(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// The queue's interrupt, where it has one.
    fn vector(&self) -> Option<&Vector>;

    /// Lets the next interrupt pass.
    ///
    /// # Errors
    ///
    /// Fails when the device cannot be reached.
    fn arm_interrupt(&mut self) -> Result<(), Self::Error>;

    /// Clears what an interrupt that came needs cleared.
    ///
    /// # Errors
    ///
    /// Fails when the device cannot be reached.
    fn acknowledge_interrupt(&mut self) -> Result<(), Self::Error>;

    /// Says that something did not end in time.
    fn timeout(&self, what: &'static str, waited: Duration) -> Self::Error;
}

/// The times of a wait: the last progress, the last question to the device; and how far the
/// device was.
struct Clock {
    moved: Instant,
    asked: Instant,
    done: u64,
}

/// Waits until a condition on a queue holds, at most for so long.
///
/// What was submitted is issued first. When nothing moves for 10 ms the device is asked
/// itself, and once more before the wait gives up.
///
/// # Errors
///
/// [`Queue::timeout`] when the condition does not hold in time, and as [`Queue::poll`] and
/// [`Queue::handle_event`].
pub fn wait_until<Q: Queue>(
    queue: &mut Q,
    mode: WaitMode,
    limit: Duration,
    what: &'static str,
    mut is_done: impl FnMut(&Q) -> bool,
) -> Result<(), Q::Error> {
    queue.issue()?;
    let spin = mode.spin();
    let (begin, deadline) = (Instant::now(), Deadline::after(limit));
    let mut looks = 0;
    let mut clock: Option<Clock> = None;
    loop {
        queue.poll()?;
        if is_done(queue) {
            return Ok(());
        }
        looks += 1;
        if looks < LOOKS && spin != Some(Duration::ZERO) {
            std::hint::spin_loop();
            continue;
        }
        looks = 0;
        if queue.events().is_some_and(|events| events.pending().is_some()) {
            queue.handle_event()?;
            if is_done(queue) {
                return Ok(());
            }
        }
        let now = Instant::now();
        let done = queue.done();
        let clock = clock.get_or_insert(Clock { moved: now, asked: now, done });
        if done != clock.done {
            (clock.done, clock.moved) = (done, now);
        }
        let is_late = deadline.has_passed();
        if is_late || now - clock.moved.max(clock.asked) >= PATIENCE {
            clock.asked = now;
            queue.check_device()?;
            if is_done(queue) {
                return Ok(());
            }
            if is_late {
                return Err(queue.timeout(what, limit));
            }
        }
        match spin {
            Some(spin) if now - begin >= spin && queue.vector().is_some() => {
                // What ended before the interrupt was let through again raised none: look
                // once more.
                queue.arm_interrupt()?;
                queue.poll()?;
                if is_done(queue) {
                    return Ok(());
                }
                sleep(queue, deadline.left().min(PATIENCE))?;
            }
            _ if now - clock.moved >= SPIN => std::thread::yield_now(),
            _ => {}
        }
    }
}

/// Sleeps until the queue's interrupt comes, or for so long; returns whether it came.
fn sleep<Q: Queue>(queue: &mut Q, limit: Duration) -> Result<bool, Q::Error> {
    let Some(vector) = queue.vector() else { return Ok(false) };
    match vector.wait(limit) {
        Ok(_) => {
            queue.acknowledge_interrupt()?;
            Ok(true)
        }
        Err(IrqError::Timeout { .. }) => Ok(false),
        // The queue itself says what becomes of what is in flight.
        Err(IrqError::Backend(
            BackendError::ToBeRemoved { .. } | BackendError::BusError { .. },
        )) if queue.events().is_some() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What an event loop does when the queue's interrupt is there: ends what is done and lets
/// the next interrupt through. Returns how much ended.
///
/// # Errors
///
/// As [`Queue::poll`].
pub fn service<Q: Queue>(queue: &mut Q) -> Result<usize, Q::Error> {
    if queue.events().is_some_and(|events| events.pending().is_some()) {
        queue.handle_event()?;
    }
    sleep(queue, Duration::ZERO)?;
    let ended = queue.poll()?;
    if queue.in_flight() == 0 || queue.vector().is_none() {
        return Ok(ended);
    }
    // What ends from here on raises an interrupt; what ended just before is seen now.
    queue.arm_interrupt()?;
    Ok(ended + queue.poll()?)
}
