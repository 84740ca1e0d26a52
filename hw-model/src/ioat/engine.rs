//! A channel's thread.
//!
//! It takes one descriptor at a time: with the lock held it decides what is next, without it
//! the descriptor is fetched and the data moved, and with it again the completion is written
//! and the state moves on. When there is nothing to do it sleeps. Before, it may spin for
//! some tens of microseconds, because waking a thread takes as long: it does so while
//! doorbells follow each other closely, and stops when they do not.

use std::time::{Duration, Instant};

use super::channel::{Channel, Guard, Resend};
use super::descriptor::{Control, Descriptor};
use super::device::{Device, Life};
use super::execute::{Fetcher, Stop, execute};
use super::fault::{DescriptorFaults, Fault};
use super::record::count;
use super::registers::ChannelError;

/// The longest that an engine spins before it sleeps.
const SPIN_MOST: Duration = Duration::from_micros(50);
/// The shortest.
const SPIN_LEAST: Duration = Duration::from_micros(1);

/// Runs a channel until it is told to stop.
pub(super) fn run(device: &Device, channel: &Channel) {
    let mut engine = Engine { device, channel, fetcher: Fetcher::default(), spin: SPIN_LEAST };
    let mut state = channel.lock();
    while !state.stop {
        if device.settle(channel, &mut state) {
            state = engine.deliver(state);
        } else if device.life() != Life::Alive {
            state = channel.sleep(state, None);
        } else if state.timer().is_some_and(|due| due <= Instant::now()) {
            state = engine.timers(state);
        } else if state.runnable() {
            state = engine.step(state);
        } else {
            state = engine.rest(state);
        }
    }
}

struct Engine<'a> {
    device: &'a Device,
    channel: &'a Channel,
    fetcher: Fetcher,
    spin: Duration,
}

impl<'a> Engine<'a> {
    /// Executes one descriptor.
    fn step(&mut self, mut state: Guard<'a>) -> Guard<'a> {
        let Engine { device, channel, .. } = *self;
        state.busy = true;
        state.seen.descriptors += 1;
        let number = state.seen.descriptors;
        let (epoch, position, ahead) = (state.epoch, state.position, state.ahead());
        drop(state);

        let faults = device.descriptor_faults(channel, number);
        self.fetcher.follow(epoch);
        let result = match faults {
            DescriptorFaults { end: Some(end), .. } => {
                device.end(end);
                Err(Stop::Aborted)
            }
            DescriptorFaults { halt: Some(errors), .. } => Err(Stop::Halt(errors)),
            _ => execute(device, channel, &mut self.fetcher, position, ahead),
        };

        let mut state = channel.lock();
        // A reset that could not wait has begun anew.
        if !state.reset && state.epoch == epoch {
            match result {
                Ok((address, descriptor)) => {
                    state = self.complete(state, address, &descriptor, &faults);
                }
                Err(Stop::Halt(errors)) => {
                    if device.halt(channel, &mut state, errors) {
                        state = self.deliver(state);
                    }
                }
                Err(Stop::Aborted) => {}
            }
        }
        channel.release(&mut state);
        state
    }

    /// The descriptor's data is moved: the state moves on, the completion word is written,
    /// and the interrupt raised.
    fn complete(
        &self,
        mut state: Guard<'a>,
        address: u64,
        descriptor: &Descriptor,
        faults: &DescriptorFaults,
    ) -> Guard<'a> {
        let Engine { device, channel, .. } = *self;
        let control = descriptor.control();
        let before = state.completed;
        state.advance(address);

        let completion = control.contains(Control::COMPLETION);
        let late = match faults.completion {
            Some(Fault::LateCompletion(time)) if completion => Some(time),
            _ => None,
        };
        if completion && late.is_none() {
            let written;
            (state, written) = self.write_completion(state, faults.completion);
            if let Err(errors) = written {
                // Whoever waits for the word will not see it: the descriptor is not good.
                state.completed = before;
                if device.halt(channel, &mut state, errors) {
                    state = self.deliver(state);
                }
                return state;
            }
        }
        if state.reset {
            return state;
        }
        // After the word: a read of CHANSTS on the bus would push it ahead.
        device.publish(channel, &state);
        count(&device.counters.descriptors);
        state = self.interrupt(state, control.contains(Control::INTERRUPT), faults.interrupt);
        if let Some(time) = late {
            state = channel.pause(state, time);
            if !state.reset {
                let written;
                (state, written) = self.write_completion(state, None);
                if let Err(errors) = written
                    && device.halt(channel, &mut state, errors)
                {
                    state = self.deliver(state);
                }
            }
        }
        state
    }

    /// Writes the completion word of the descriptor that was just done.
    fn write_completion(
        &self,
        mut state: Guard<'a>,
        fault: Option<Fault>,
    ) -> (Guard<'a>, Result<(), ChannelError>) {
        let Engine { device, channel, .. } = *self;
        let target = device.bar.get(channel.ids.completion);
        let word = device.status_word(channel, &state);
        let result = match fault {
            Some(Fault::NoCompletion) => Ok(()),
            Some(Fault::StaleCompletion) => {
                let stale = state.word;
                device.store_completion(&mut state, target, stale)
            }
            Some(Fault::AstrayCompletion(address)) => {
                let astray = address.unwrap_or(target.wrapping_add(64));
                device.store_completion(&mut state, astray, word)
            }
            Some(Fault::DoubleCompletion(time)) => {
                state.resend = Some(Resend { at: Instant::now() + time, address: target, word });
                device.store_completion(&mut state, target, word)
            }
            Some(Fault::TornCompletion(time)) => {
                let first = device.store_half(&mut state, target, word, 0);
                state = channel.pause(state, time);
                match first {
                    Ok(()) if !state.reset => device.store_half(&mut state, target, word, 1),
                    first => first,
                }
            }
            _ => device.store_completion(&mut state, target, word),
        };
        (state, result)
    }

    fn interrupt(&self, mut state: Guard<'a>, wanted: bool, fault: Option<Fault>) -> Guard<'a> {
        let Engine { device, channel, .. } = *self;
        match fault {
            Some(Fault::LostInterrupt) => {}
            Some(Fault::SpuriousInterrupt) => state = self.deliver(state),
            _ => {
                if wanted && device.want_interrupt(channel, &mut state) {
                    state = self.deliver(state);
                    if fault == Some(Fault::DoubleInterrupt) {
                        state = self.deliver(state);
                    }
                }
            }
        }
        state
    }

    /// Raises the channel's interrupt with the lock released; the channel stays busy, so that
    /// nothing comes after a reset.
    fn deliver(&self, mut state: Guard<'a>) -> Guard<'a> {
        let was_busy = std::mem::replace(&mut state.busy, true);
        drop(state);
        self.device.deliver(self.channel);
        let mut state = self.channel.lock();
        if !was_busy {
            self.channel.release(&mut state);
        }
        state
    }

    /// Does what has become due.
    fn timers(&self, mut state: Guard<'a>) -> Guard<'a> {
        let Engine { device, channel, .. } = *self;
        let now = Instant::now();
        if let Some(Resend { address, word, .. }) = state.resend.filter(|r| r.at <= now) {
            state.resend = None;
            if let Err(errors) = device.store_completion(&mut state, address, word) {
                let n = channel.index;
                device.log.warn(format_args!("channel {n}: a repeated completion: {errors:?}"));
            }
        }
        if state.interrupt_due.is_some_and(|due| due <= now) {
            if device.take_interrupt(channel, &mut state) {
                state = self.deliver(state);
            } else {
                // Software has not rearmed the channel; that starts the delay again.
                state.interrupt_due = None;
            }
        }
        state
    }

    /// Waits for work: spinning first when it is likely to come soon, then asleep.
    fn rest(&mut self, mut state: Guard<'a>) -> Guard<'a> {
        let channel = self.channel;
        let due = state.timer();
        let start = Instant::now();
        if due.is_none_or(|due| due > start + self.spin) {
            let seen = channel.signal();
            drop(state);
            let poked = spin(channel, seen, start + self.spin);
            state = channel.lock();
            self.spin = if poked { SPIN_MOST } else { (self.spin / 2).max(SPIN_LEAST) };
            if poked || channel.signal() != seen {
                return state;
            }
        }
        if state.stop {
            return state;
        }
        state = channel.sleep(state, due);
        count(&self.device.counters.wakeups);
        if start.elapsed() < SPIN_MOST {
            // It would have been worth it.
            self.spin = SPIN_MOST;
        }
        state
    }
}

/// Spins until the channel is poked; gives up at `until`.
fn spin(channel: &Channel, seen: u32, until: Instant) -> bool {
    loop {
        for _ in 0..32 {
            if channel.signal() != seen {
                return true;
            }
            std::hint::spin_loop();
        }
        if Instant::now() >= until {
            return false;
        }
    }
}
