//! What becomes of a channel: commands, states, halts, completion words, and what its
//! registers show of them.
//!
//! Everything here happens with the channel's lock held, but for what is said to.

use super::channel::{Channel, State, Status, word};
use super::device::{Device, VERSION_3_3};
use super::registers::{
    CHANCMD_RESET, CHANCMD_SUSPEND, CHANCTRL_ERROR_COMPLETION, CHANCTRL_ERROR_INTERRUPT,
    CHANCTRL_INTERRUPT_DISABLED, ChannelError, ChannelReg,
};
use super::stats::count;
use crate::bus_master::BusMaster;
use crate::regs::Write;
use crate::worker::Locked;

impl Device {
    pub(super) fn channel_written(&self, channel: &Channel, reg: ChannelReg, write: Write) {
        let hang = match reg {
            ChannelReg::Command => self.command_hangs(channel, write.written),
            _ => false,
        };
        let mut state = channel.lock();
        let mut deliver = false;
        match reg {
            ChannelReg::Count => {
                count(&self.counters.doorbells);
                let ahead = state.ahead();
                state.ring(write.new as u16);
                if state.running && state.ahead() >= ahead {
                    // The engine is at work, and looks at the count when it was done.
                    return;
                }
            }
            ChannelReg::ChainAddress => self.arm(channel, &mut state, write.new),
            ChannelReg::Command => deliver = self.command(channel, &mut state, write.written, hang),
            ChannelReg::Control if write.written & CHANCTRL_INTERRUPT_DISABLED != 0 => {
                deliver = self.take_interrupt(channel, &mut state);
            }
            ChannelReg::Error => {}
            _ => return,
        }
        self.publish(channel, &state);
        channel.poke(&state);
        drop(state);
        if deliver {
            self.deliver(channel);
        }
    }

    fn arm(&self, channel: &Channel, state: &mut State, address: u64) {
        let mut errors = self.bar.get(channel.ids.error);
        if self.config.personality.version() < VERSION_3_3 {
            errors |= state.mirrored & self.pci.get(self.ids.chanerr_int);
        }
        if errors != 0 {
            self.log.warn(format_args!(
                "channel {}: CHAINADDR {address:#x} is ignored: CHANERR or CHANERR_INT has {errors:#x}",
                channel.index
            ));
        } else if state.arm(address) {
            self.bar.set(channel.ids.count, 0);
        } else {
            self.log.warn(format_args!(
                "channel {}: CHAINADDR {address:#x} is ignored: the channel is {:?}",
                channel.index, state.status
            ));
        }
    }

    /// Software wrote configuration space: an error whose bit it took out of CHANERR_INT does
    /// not count against its channel any more, also when another channel sets the bit again.
    pub(super) fn mirror_written(&self) {
        for channel in &self.channels {
            // With the lock held: a halt that comes in between sets both.
            let mut state = channel.lock();
            state.mirrored &= self.pci.get(self.ids.chanerr_int);
        }
    }

    fn command_hangs(&self, channel: &Channel, command: u64) -> bool {
        let counts = {
            let mut state = channel.lock();
            state.fault_counts.resets += u64::from(command == CHANCMD_RESET);
            state.fault_counts.suspends += u64::from(command == CHANCMD_SUSPEND);
            state.fault_counts
        };
        let rule = match command {
            CHANCMD_RESET => self.plan(|plan| plan.reset_hangs(channel.index, counts.resets)),
            CHANCMD_SUSPEND => self.plan(|plan| plan.suspend_hangs(channel.index, counts.suspends)),
            _ => None,
        };
        if let Some(rule) = rule {
            self.fired(rule);
        }
        rule.is_some()
    }

    /// Returns whether an interrupt is to be delivered.
    fn command(
        &self,
        channel: &Channel,
        state: &mut Locked<State>,
        command: u64,
        hang: bool,
    ) -> bool {
        match command {
            0 => {}
            CHANCMD_RESET => {
                state.reset = true;
                state.reset_hangs |= hang;
                if state.busy {
                    channel.abort();
                }
            }
            CHANCMD_SUSPEND => {
                let stoppable = [Status::Active, Status::Idle, Status::Armed];
                if stoppable.contains(&state.status) {
                    state.suspend = true;
                    state.suspend_hangs |= hang;
                }
            }
            _ => state.bad_command = true,
        }
        !state.busy && self.settle(channel, state)
    }

    /// Carries out what software commanded; the engine has nothing in hand. Returns whether
    /// an interrupt is to be delivered.
    pub(super) fn settle(&self, channel: &Channel, state: &mut State) -> bool {
        if state.reset {
            if !state.reset_hangs {
                state.reset_now();
                self.bar.set(channel.ids.count, 0);
                self.publish(channel, state);
            }
        } else if state.bad_command {
            state.bad_command = false;
            return self.halt(channel, state, ChannelError::COMMAND);
        } else if state.suspend && !state.suspend_hangs {
            state.suspend_now();
            self.publish(channel, state);
        }
        false
    }

    /// Shows the channel's state in CHANSTS and CHANCMD.
    ///
    /// CHANSTS is the engine's while it runs: its state was ACTIVE when it began, and stays
    /// so until it ends the run, and how far it came is not in `state`.
    pub(super) fn publish(&self, channel: &Channel, state: &State) {
        let reset = if state.reset { CHANCMD_RESET } else { 0 };
        let suspend = if state.suspend { CHANCMD_SUSPEND } else { 0 };
        if !state.running {
            self.bar.set(channel.ids.status, self.status_word(channel, state));
        }
        // After the state: software that sees a command done looks at the state next.
        self.bar.set(channel.ids.command, reset | suspend);
    }

    /// What CHANSTS is to read when the descriptor at `address` is done and there are more.
    #[inline]
    pub(super) fn active_word(&self, channel: &Channel, address: u64) -> u64 {
        let errors = self.bar.get(channel.ids.error) as u32;
        word(address, Status::Active, ChannelError::from_bits_truncate(errors))
    }

    /// What CHANSTS reads, and what is written as the completion word.
    pub(super) fn status_word(&self, channel: &Channel, state: &State) -> u64 {
        let errors = self.bar.get(channel.ids.error) as u32;
        state.word_of(ChannelError::from_bits_truncate(errors))
    }

    /// The channel halts because of an error. Returns whether an interrupt is to be
    /// delivered.
    pub(super) fn halt(&self, channel: &Channel, state: &mut State, errors: ChannelError) -> bool {
        count(&self.counters.errors);
        state.halt_now();
        let bits = u64::from(errors.bits());
        self.log.warn(format_args!(
            "channel {}: halted after the descriptor at {:#x}: {errors:?}",
            channel.index, state.completed
        ));
        let control = self.bar.get(channel.ids.control);
        if control & CHANCTRL_ERROR_COMPLETION != 0 {
            let all = self.bar.get(channel.ids.error) | bits;
            let word = state.word_of(ChannelError::from_bits_truncate(all as u32));
            let address = self.bar.get(channel.ids.completion);
            if let Err(error) = self.store_completion(channel, state, address, word) {
                self.log.warn(format_args!(
                    "channel {}: the completion of an error, to {address:#x}: {error:?}",
                    channel.index
                ));
            }
        }
        // After the word: a read of these registers on the bus would push it ahead.
        self.bar.set_bits(channel.ids.error, bits);
        let reported = bits & !self.bar.get(channel.ids.error_mask);
        let mirrored = reported & !self.pci.get(self.ids.chanerrmsk_int);
        self.pci.set_bits(self.ids.chanerr_int, mirrored);
        state.mirrored |= mirrored;
        self.publish(channel, state);
        let interrupts = control & CHANCTRL_ERROR_INTERRUPT != 0;
        interrupts && (bits == 0 || reported != 0) && self.want_interrupt(channel, state)
    }

    /// Writes a completion word, in one piece.
    pub(super) fn store_completion(
        &self,
        channel: &Channel,
        state: &mut State,
        address: u64,
        word: u64,
    ) -> Result<(), ChannelError> {
        self.write_word(channel, &mut self.bus_master(), address, word)?;
        state.word = word;
        Ok(())
    }

    /// As [`Device::store_completion`], without a lock on the channel.
    pub(super) fn write_word(
        &self,
        channel: &Channel,
        port: &mut BusMaster<'_>,
        address: u64,
        word: u64,
    ) -> Result<(), ChannelError> {
        self.check_completion(address)?;
        port.complete(address, word).map_err(|fault| super::execute::data_error(&fault))?;
        channel.completions.add_one();
        Ok(())
    }

    /// Writes one half of a completion word: 0 the lower, 1 the upper.
    pub(super) fn store_half(
        &self,
        channel: &Channel,
        state: &mut State,
        address: u64,
        word: u64,
        half: usize,
    ) -> Result<(), ChannelError> {
        self.check_completion(address)?;
        let bytes = &word.to_le_bytes()[4 * half..][..4];
        self.bus_master()
            .complete_part(address + 4 * half as u64, bytes)
            .map_err(|fault| super::execute::data_error(&fault))?;
        if half == 1 {
            channel.completions.add_one();
        }
        state.word = word;
        Ok(())
    }

    fn check_completion(&self, address: u64) -> Result<(), ChannelError> {
        if !address.is_multiple_of(8) || !self.config.reaches(address, 8) {
            return Err(ChannelError::COMPLETION_ADDRESS);
        }
        if !self.pci.may_issue_requests() {
            return Err(ChannelError::WRITE_DATA);
        }
        Ok(())
    }
}
