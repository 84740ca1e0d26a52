//! One channel: its commands, how it is set up, and how it is shut down.

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;

use super::regs::{self, ChannelRegs, State};
use super::ring::Ring;
use super::transfer::{Job, Remaining};
use super::{ChannelErrors, Engine, IoatError, Loss, LossStep, SlotsFailed};
use crate::deadline::Deadline;
use crate::device::DeviceError;
use crate::events::Events;
use crate::mmio::{SplitOrder, poll_until};
use crate::queue::{InFlight, Slot, SlotsInFlight, Wakers};

/// How long a channel is given to take a chain before it is told again.
const ARM_ATTEMPT: Duration = Duration::from_millis(2);
/// How often a channel is armed that halts at once.
const ARM_TRIES: u32 = 4;

/// What a channel did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Stats {
    /// Transfers that ended, well or not.
    pub transfers: u64,
    /// Descriptors that the device did, those for the mark counted in.
    pub descriptors: u64,
    /// Doorbells written.
    pub doorbells: u64,
    /// Interrupts waited for that came.
    pub interrupts: u64,
    /// Times that the channel was reset and set up again.
    pub recoveries: u64,
    /// Times that the device was done and had not said so.
    pub lost_completions: u64,
    /// Completion words that named a descriptor which the device had not come to.
    pub stale_completions: u64,
}

/// One channel of an I/OAT device.
///
/// Dropping it stops the engine, then frees the buffers of the transfers in flight.
#[derive(Debug)]
pub struct Channel {
    pub(super) engine: Arc<Engine>,
    /// The function's, at hand for every doorbell.
    pub(super) events: Events,
    pub(super) index: u8,
    pub(super) regs: ChannelRegs,
    /// Kept by the device when the engine cannot be stopped.
    pub(super) ring: ManuallyDrop<Ring>,
    /// Every transfer that was not taken.
    pub(super) jobs: InFlight<Job>,
    /// Those in flight, oldest first.
    pub(super) order: VecDeque<Slot>,
    /// What has slots of pools.
    pub(super) slots: SlotsInFlight,
    /// What had, and failed.
    pub(super) failed_slots: Vec<SlotsFailed>,
    /// The youngest, while parts of it wait for room in the ring.
    pub(super) feeding: Option<Remaining>,
    /// Wrong completion words in a row, without any progress.
    pub(super) bogus_completions: u32,
    /// Why it was given up: nothing is in flight then, and nothing is taken on.
    pub(super) lost: Option<Box<Loss>>,
    /// Nothing keeps the engine from reaching the ring.
    pub(super) not_quiesced: bool,
    /// Wakers that are done with; an owner that shares the channel runs them later.
    pub(super) wakers: Wakers,
    pub(super) is_shared: bool,
    pub(super) stats: Stats,
}

impl Channel {
    pub(super) fn open(engine: &Arc<Engine>, index: u8) -> Result<Channel, IoatError> {
        let regs = engine.claim(index)?;
        let size = engine.config.ring_size;
        let ring = Ring::new(&engine.allocator, size, !engine.vectors.is_empty());
        let ring = ring.inspect_err(|_| engine.release(index, None))?;
        let capacity = ring.capacity() as usize;
        let jobs = InFlight::with_capacity(&engine.device(), capacity);
        let slots = SlotsInFlight::new(&engine.device(), size);
        let mut channel = Channel {
            engine: Arc::clone(engine),
            events: engine.events.clone(),
            index,
            regs,
            ring: ManuallyDrop::new(ring),
            jobs,
            order: VecDeque::with_capacity(capacity),
            slots,
            failed_slots: Vec::new(),
            feeding: None,
            bogus_completions: 0,
            lost: None,
            not_quiesced: false,
            wakers: Wakers::default(),
            is_shared: false,
            stats: Stats::default(),
        };
        // From here on a failure drops the channel, which stops it.
        channel.reset()?;
        channel.arm(0)?;
        Ok(channel)
    }

    /// The number of the channel.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// What the channel did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats { stale_completions: self.ring.stale_words(), ..self.stats }
    }

    /// Descriptors that can be filled now.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.ring.free()
    }

    /// Transfers that are submitted and have not ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.order.len()
    }

    /// Whether the channel was given up after a failure.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Why the channel was given up, if it was.
    #[must_use]
    pub fn loss(&self) -> Option<&Loss> {
        self.lost.as_deref()
    }

    #[inline]
    pub(super) fn refuse_when_lost(&self) -> Result<(), IoatError> {
        match &self.lost {
            Some(loss) => self.refuse(loss),
            None => Ok(()),
        }
    }

    #[cold]
    fn refuse(&self, loss: &Loss) -> Result<(), IoatError> {
        self.engine.events.check().map_err(DeviceError::from)?;
        let (location, loss) = (self.engine.location.clone(), Box::new(loss.clone()));
        Err(IoatError::ChannelLost { location, channel: self.index, loss })
    }

    pub(super) fn status(&self) -> Result<u64, IoatError> {
        match self.engine.bar.get(self.regs.status)? {
            u64::MAX => Err(self.engine.gone()),
            status => Ok(status),
        }
    }

    pub(super) fn errors(&self) -> Result<ChannelErrors, IoatError> {
        match self.engine.bar.get(self.regs.error)? {
            u32::MAX => Err(self.engine.gone()),
            bits => Ok(ChannelErrors::from_bits_retain(bits)),
        }
    }

    /// Stops after the descriptor in hand; what the device had begun is complete then.
    pub(super) fn suspend(&self) -> Result<(), IoatError> {
        self.engine.bar.set(self.regs.command, regs::COMMAND_SUSPEND)?;
        wait_for(&self.engine, self.index, "SUSPEND", || {
            // An idle channel may stay idle, an armed one armed: nothing moves in either.
            Ok(State::of(self.status()?) != State::Active)
        })
    }

    pub(super) fn reset(&self) -> Result<(), IoatError> {
        reset(&self.engine, self.index)
    }

    /// Lets the channel begin at the ring's position, with the doorbell at 0.
    ///
    /// The channel must be halted.
    pub(super) fn arm(&mut self, position: u64) -> Result<(), IoatError> {
        let (chain, completion) = self.ring.restart(position)?;
        let deadline = Deadline::after(self.engine.config.command_timeout);
        let mut halts = 0;
        loop {
            self.clear_errors()?;
            self.rearm_interrupt()?;
            // Both addresses go in halves, low first, as every known driver writes them: the
            // upper half of CHAINADDR is what arms the channel.
            let bar = &self.engine.bar;
            bar.write64_split(self.regs.completion.offset(), completion.0, SplitOrder::LowFirst)?;
            bar.write64_split(self.regs.chain.offset(), chain.0, SplitOrder::LowFirst)?;
            let attempt = ARM_ATTEMPT.min(deadline.left());
            let is_armed =
                || Ok::<_, IoatError>((State::of(self.status()?) != State::Halted).then_some(()));
            if poll_until(attempt, is_armed)?.is_some() {
                return Ok(());
            }
            let (location, channel, errors) =
                (self.engine.location.clone(), self.index, self.errors()?);
            if !errors.is_empty() {
                halts += 1;
                if halts == ARM_TRIES {
                    return Err(IoatError::NotArmed { location, channel, errors });
                }
                self.reset()?;
            } else if deadline.has_passed() {
                let waited = self.engine.config.command_timeout;
                return Err(IoatError::Timeout { location, channel, what: "arming", waited });
            }
            // Another channel has halted meanwhile, and its error was in the way of the chain; who
            // cleared it may have been that channel. So the chain is told again.
        }
    }

    /// Lets the next interrupt pass, and keeps errors halting and told.
    pub(super) fn rearm_interrupt(&self) -> Result<(), IoatError> {
        let control = regs::CONTROL_REARM
            | regs::CONTROL_COMPLETION_ON_ERROR
            | regs::CONTROL_ABORT_ON_ERROR
            | regs::CONTROL_ERROR_INTERRUPT;
        Ok(self.engine.bar.set(self.regs.control, control)?)
    }

    fn clear_errors(&self) -> Result<(), IoatError> {
        let errors = self.errors()?;
        self.engine.bar.set(self.regs.error, errors.bits())?;
        let mirror = self.mirrored_errors()?;
        if mirror != 0 {
            self.engine.device().config_mut().write_u32(regs::CONFIG_CHANERR_INT, mirror)?;
        }
        Ok(())
    }

    /// The errors of all channels in configuration space, which have to be cleared too before
    /// version 3.3; none from there on.
    fn mirrored_errors(&self) -> Result<u32, IoatError> {
        if self.engine.version >= 0x33 {
            return Ok(0);
        }
        Ok(self.engine.device().config_mut().read_u32(regs::CONFIG_CHANERR_INT)?)
    }

    /// Stops the engine so that it reaches no memory any more, by suspending and resetting
    /// it; says why when that does not work.
    fn stop(&self) -> Result<(), Loss> {
        // An engine that does not suspend is stopped by RESET all the same; asking for the
        // status then pushes what it wrote before to memory.
        let suspended = self.suspend();
        let stopped = self.reset().and_then(|()| self.status());
        if let (Err(error), Ok(_)) = (suspended, &stopped) {
            log::warn!("{error}");
        }
        stopped.map(drop).map_err(|error| {
            log::warn!("{error}: its memory is kept until the function is quiet");
            Loss { step: LossStep::Close, cause: error.to_string(), errors: self.errors().ok() }
        })
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let not_stopped = match self.lost.take() {
            Some(loss) => Some(*loss),
            None => self.stop().err().inspect(|_| self.not_quiesced = true),
        };
        if not_stopped.is_none() {
            self.jobs.complete_all().for_each(drop);
            self.slots.clear();
        }
        // SAFETY: the ring is not used again: this is the end of its channel.
        let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        if self.not_quiesced {
            self.jobs.park();
            self.slots.park();
            self.engine.device().park(ring);
        } else {
            self.jobs.complete_all().for_each(drop);
            self.slots.clear();
            drop(ring);
        }
        self.engine.release(self.index, not_stopped);
    }
}

/// Resets a channel; it is halted then, whatever it did before.
pub(super) fn reset(engine: &Engine, index: u8) -> Result<(), IoatError> {
    let regs = ChannelRegs::of(index);
    engine.bar.set(regs.command, regs::COMMAND_RESET)?;
    wait_for(engine, index, "RESET", || match engine.bar.get(regs.command)? {
        u8::MAX => Err(engine.gone()),
        command => Ok(command & regs::COMMAND_RESET == 0),
    })
}

/// Looks at a register until a condition holds, at most as long as a command may take.
pub(super) fn wait_for(
    engine: &Engine,
    channel: u8,
    what: &'static str,
    mut is_done: impl FnMut() -> Result<bool, IoatError>,
) -> Result<(), IoatError> {
    let waited = engine.config.command_timeout;
    let done = poll_until(waited, || Ok::<_, IoatError>(is_done()?.then_some(())))?;
    done.ok_or_else(|| IoatError::Timeout {
        location: engine.location.clone(),
        channel,
        what,
        waited,
    })
}
