//! A channel's thread.
//!
//! With the lock held it decides what is next; without it, it executes a run of descriptors:
//! each is fetched, its data moved, its completion word written and shown in CHANSTS, before
//! the next. With the lock again the state moves on. A run ends at the last descriptor that
//! is counted, and at one that interrupts: these are completed with the lock held, since the
//! count tells whether the channel is idle then. It also ends, after the
//! descriptor in hand, when a register is written, unless that only counts more descriptors.
//! With a fault plan in force each descriptor is a run of its own.
//!
//! How it is woken and waited for is [`Worker`](crate::worker::Worker)'s.

use super::channel::{Channel, Guard, Position, Resend};
use super::descriptor::{Control, Descriptor};
use super::device::{Device, Life};
use super::execute::{Fetcher, Stop, execute};
use super::fault::{DescriptorFaults, Fault, Planned};
use super::registers::ChannelError;
use super::stats::count;
use crate::bus_master::BusMaster;
use crate::sync::Instant;
use crate::worker::Spin;

/// Runs a channel until it is told to stop.
pub(super) fn run(device: &Device, channel: &Channel) {
    let mut engine = Engine {
        device,
        channel,
        fetcher: Fetcher::default(),
        port: BusMaster::lasting(&device.memory, device.config.meter.as_deref()),
        spin: Spin::default(),
    };
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
    /// Released whenever the channel's lock is taken: who holds that lock may wait for the
    /// map's.
    port: BusMaster<'a>,
    spin: Spin,
}

/// A run of descriptors: where it stands.
struct Run {
    position: Position,
    /// How many are counted, and were not executed yet.
    ahead: u16,
    /// DMACOUNT was read, and said that there are more than were known.
    extended: bool,
    /// How many are done, modulo 2^16.
    done: u16,
    /// The last descriptor that is done.
    last: Option<u64>,
    /// The last completion word that was written.
    word: Option<u64>,
}

impl<'a> Engine<'a> {
    /// Executes a run of descriptors.
    fn step(&mut self, mut state: Guard<'a>) -> Guard<'a> {
        let Engine { device, channel, .. } = *self;
        state.busy = true;
        state.running = true;
        let faulty = device.faulty();
        // Counted while there is a plan: putting one in force begins anew.
        state.fault_counts.descriptors += u64::from(faulty);
        let number = state.fault_counts.descriptors;
        let single = faulty || state.timer().is_some();
        let epoch = state.epoch;
        let signal = channel.signal();
        let (position, ahead) = (state.position, state.ahead());
        let done = state.done;
        let mut run = Run { position, ahead, extended: false, done, last: None, word: None };
        drop(state);

        let faults = match faulty {
            true => device.descriptor_faults(channel, number),
            false => DescriptorFaults::default(),
        };
        self.fetcher.follow(epoch);
        let result = match faults {
            DescriptorFaults { end: Some(end), .. } => {
                device.fired(end.rule);
                device.end(end.fault);
                Err(Stop::Aborted)
            }
            DescriptorFaults { halt: Some(halt), .. } => {
                device.fired(halt.rule);
                Err(Stop::Halt(halt.errors()))
            }
            _ if single => self.execute(&run).map(Some),
            _ => self.run(&mut run, signal),
        };
        self.port.release();

        let mut state = channel.lock();
        state.running = false;
        // A reset that could not wait has begun anew.
        if state.epoch == epoch {
            if run.extended {
                // Whoever wrote it may still be waiting for the lock.
                state.count = device.bar.get(channel.ids.count) as u16;
            }
            if let Some(last) = run.last {
                state.advance_to(run.done, last);
            }
            state.word = run.word.unwrap_or(state.word);
            if !state.reset {
                state = self.conclude(state, result, &faults);
            }
        }
        channel.release(&mut state);
        state
    }

    /// Executes descriptors up to one that is to be completed with the lock held, which it
    /// returns, or until the channel is poked.
    fn run(&mut self, run: &mut Run, signal: u32) -> Result<Option<(u64, Descriptor)>, Stop> {
        let Engine { device, channel, .. } = *self;
        loop {
            let (address, descriptor) = self.execute(run)?;
            let control = descriptor.control();
            if run.ahead == 1 {
                let ahead = (device.bar.get(channel.ids.count) as u16).wrapping_sub(run.done);
                run.extended |= ahead > 1;
                run.ahead = ahead.max(1);
            }
            if run.ahead == 1 || control.contains(Control::INTERRUPT) {
                return Ok(Some((address, descriptor)));
            }
            if channel.aborted() {
                return Err(Stop::Aborted);
            }
            let word = device.active_word(channel, address);
            if control.contains(Control::COMPLETION) {
                let target = device.bar.get(channel.ids.completion);
                device.write_word(channel, &mut self.port, target, word).map_err(Stop::Halt)?;
                run.word = Some(word);
            }
            // After the word: a read of CHANSTS on the bus would push it ahead.
            device.bar.set(channel.ids.status, word);
            channel.descriptors.add_one();
            run.position = Position::After(address);
            run.ahead -= 1;
            run.done = run.done.wrapping_add(1);
            run.last = Some(address);
            if channel.signal() != signal || device.life() != Life::Alive {
                return Ok(None);
            }
        }
    }

    #[inline]
    fn execute(&mut self, run: &Run) -> Result<(u64, Descriptor), Stop> {
        let access = (&mut self.fetcher, &mut self.port);
        execute(self.device, self.channel, access, run.position, run.ahead)
    }

    /// What comes of a run, with the state moved on over the descriptors that are done.
    fn conclude(
        &self,
        mut state: Guard<'a>,
        result: Result<Option<(u64, Descriptor)>, Stop>,
        faults: &DescriptorFaults,
    ) -> Guard<'a> {
        match result {
            Ok(Some((address, descriptor))) => {
                state = self.complete(state, address, &descriptor, faults);
            }
            Err(Stop::Halt(errors)) => {
                if self.device.halt(self.channel, &mut state, errors) {
                    state = self.deliver(state);
                }
            }
            Ok(None) | Err(Stop::Aborted) => self.device.publish(self.channel, &state),
        }
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
        // It shows only where there is a word to write.
        let fault = if completion { device.fire(faults.completion) } else { None };
        let late = match fault {
            Some(Fault::LateCompletion(time)) => Some(time),
            _ => None,
        };
        if completion && late.is_none() {
            let written;
            (state, written) = self.write_completion(state, fault);
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
        channel.descriptors.add_one();
        state = self.interrupt(state, control.contains(Control::INTERRUPT), faults.interrupt);
        if let Some(time) = late {
            state = channel.pause(state, time, |state| state.reset);
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
                device.store_completion(channel, &mut state, target, stale)
            }
            Some(Fault::AstrayCompletion(address)) => {
                let astray = address.unwrap_or(target.wrapping_add(64));
                device.store_completion(channel, &mut state, astray, word)
            }
            Some(Fault::DoubleCompletion(time)) => {
                state.resend = Some(Resend { at: Instant::now() + time, address: target, word });
                device.store_completion(channel, &mut state, target, word)
            }
            Some(Fault::TornCompletion(time)) => {
                let first = device.store_half(channel, &mut state, target, word, 0);
                state = channel.pause(state, time, |state| state.reset);
                match first {
                    Ok(()) if !state.reset => {
                        device.store_half(channel, &mut state, target, word, 1)
                    }
                    first => first,
                }
            }
            _ => device.store_completion(channel, &mut state, target, word),
        };
        (state, result)
    }

    fn interrupt(&self, mut state: Guard<'a>, wanted: bool, fault: Option<Planned>) -> Guard<'a> {
        let Engine { device, channel, .. } = *self;
        match fault.map(|planned| planned.fault) {
            Some(Fault::LostInterrupt) => {
                if wanted {
                    device.fire(fault);
                }
            }
            Some(Fault::SpuriousInterrupt) => {
                device.fire(fault);
                state = self.deliver(state);
            }
            kind => {
                if wanted && device.want_interrupt(channel, &mut state) {
                    state = self.deliver(state);
                    if kind == Some(Fault::DoubleInterrupt) {
                        device.fire(fault);
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
            if let Err(errors) = device.store_completion(channel, &mut state, address, word) {
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

    fn rest(&mut self, state: Guard<'a>) -> Guard<'a> {
        let due = state.timer();
        let (state, slept) = self.channel.rest(state, due, &mut self.spin);
        if slept {
            count(&self.device.counters.wakeups);
        }
        state
    }
}
