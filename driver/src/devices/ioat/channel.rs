//! One channel: its commands, how it is set up, and how it is shut down.

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use slab::Slab;

use super::descriptor::Descriptor;
use super::regs::{self, ChannelRegs, State};
use super::transfer::{Job, Rest};
use super::{ChannelErrors, Engine, IoatError};
use crate::dma::{Constraints, Direction, Placement, Request};
use crate::mmio::SplitOrder;
use crate::ring::Ring;

/// What a channel did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Stats {
    /// Transfers that ended, well or not.
    pub transfers: u64,
    /// Descriptors that the device did.
    pub descriptors: u64,
    /// Doorbells written.
    pub doorbells: u64,
    /// Interrupts waited for that came.
    pub interrupts: u64,
    /// Times that the channel was reset and set up again.
    pub recoveries: u64,
    /// Recoveries because the device was done and had not said so.
    pub lost_completions: u64,
}

/// One channel of an I/OAT device.
///
/// Dropping it stops the engine, then frees the buffers of the transfers in flight.
#[derive(Debug)]
pub struct Channel {
    pub(super) engine: Arc<Engine>,
    pub(super) index: u8,
    pub(super) regs: ChannelRegs,
    /// Not dropped when the device cannot be stopped.
    pub(super) ring: ManuallyDrop<Ring<Descriptor>>,
    /// Every transfer that was not taken, by key.
    pub(super) jobs: Slab<Job>,
    /// The keys of those in flight, oldest first.
    pub(super) order: VecDeque<usize>,
    /// The youngest, while parts of it wait for room in the ring.
    pub(super) feeding: Option<Rest>,
    /// Wrong completion words in a row, without any progress.
    pub(super) lies: u32,
    /// Given up: nothing is in flight and nothing is taken on.
    pub(super) lost: bool,
    /// The device could not be stopped: it may still reach the ring.
    pub(super) loose: bool,
    /// Collects who is to be woken, for an owner that wakes them later.
    pub(super) woken: Option<Vec<Waker>>,
    pub(super) stats: Stats,
}

impl Channel {
    pub(super) fn open(engine: &Arc<Engine>, index: u8) -> Result<Channel, IoatError> {
        let regs = engine.claim(index)?;
        let ring = Channel::make_ring(engine).inspect_err(|_| engine.release(index))?;
        let capacity = ring.capacity() as usize;
        let mut channel = Channel {
            engine: Arc::clone(engine),
            index,
            regs,
            ring: ManuallyDrop::new(ring),
            jobs: Slab::with_capacity(capacity),
            order: VecDeque::with_capacity(capacity),
            feeding: None,
            lies: 0,
            lost: false,
            loose: false,
            woken: None,
            stats: Stats::default(),
        };
        // From here on a failure drops the channel, which stops it.
        channel.reset()?;
        channel.arm(0)?;
        Ok(channel)
    }

    fn make_ring(engine: &Engine) -> Result<Ring<Descriptor>, IoatError> {
        let size = engine.config.ring_size;
        let constraints = Constraints { alignment: 64, ..Constraints::default() };
        // A size that is no ring's is refused before memory is taken for it.
        let len = Ring::<Descriptor>::bytes(size.min(crate::ring::MAX_SIZE));
        let request = Request::new(len, Direction::Bidirectional)
            .constraints(constraints)
            .placement(Placement::Contiguous);
        Ok(Ring::new(engine.device.allocate(&request)?, size)?)
    }

    /// The number of the channel.
    #[must_use]
    pub fn index(&self) -> u8 {
        self.index
    }

    /// What the channel did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
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
        self.lost
    }

    pub(super) fn refuse_when_lost(&self) -> Result<(), IoatError> {
        if !self.lost {
            return Ok(());
        }
        let location = self.engine.location();
        Err(IoatError::ChannelLost { location, channel: self.index })
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
        let bar = &self.engine.bar;
        let chain = self.ring.restart(position)?;
        self.clear_errors()?;
        self.rearm_interrupt()?;
        // Both addresses go in halves, low first, as every known driver writes them: the
        // upper half of CHAINADDR is what arms the channel.
        let completion = self.ring.completion_address();
        bar.write64_split(self.regs.completion.offset(), completion.0, SplitOrder::LowFirst)?;
        bar.write64_split(self.regs.chain.offset(), chain.0, SplitOrder::LowFirst)?;
        let state = State::of(self.status()?);
        let errors = self.errors()?;
        if state == State::Halted && !errors.is_empty() {
            let location = self.engine.location();
            return Err(IoatError::NotArmed { location, channel: self.index, errors });
        }
        wait_for(&self.engine, self.index, "arming", || {
            Ok(State::of(self.status()?) != State::Halted)
        })
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
        if self.engine.version < 0x33 {
            // Before version 3.3 the mirror in configuration space has to be cleared too.
            let config = self.engine.device.config();
            let mirror = config.read_u32(regs::CONFIG_CHANERR_INT)?;
            if mirror != 0 {
                config.write_u32(regs::CONFIG_CHANERR_INT, mirror)?;
            }
        }
        Ok(())
    }

    /// Stops the engine so that it reaches no memory any more: by suspending and resetting
    /// it, or by taking the device's bus mastering away. `false` when neither works.
    pub(super) fn silence(&self) -> bool {
        // An engine that does not suspend is stopped by RESET all the same; asking for the
        // status then pushes what it wrote before to memory.
        let suspended = self.suspend();
        let stopped = self.reset().and_then(|()| self.status());
        if let (Err(error), Ok(_)) = (suspended, &stopped) {
            log::warn!("{error}");
        }
        let Err(error) = stopped else { return true };
        log::warn!("{error}; bus mastering is switched off for the whole device");
        match self.engine.device.quiesce() {
            Ok(()) => true,
            Err(error) => {
                log::error!(
                    "{} channel {} cannot be stopped, its buffers stay mapped and allocated: {error}",
                    self.engine.location(),
                    self.index
                );
                false
            }
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if !self.lost && !self.silence() {
            self.loose = true;
            for job in self.jobs.drain() {
                job.leak();
            }
        }
        if !self.loose {
            // SAFETY: the ring is not used again: this is the end of its channel.
            unsafe { ManuallyDrop::drop(&mut self.ring) };
        }
        self.engine.release(self.index);
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

/// Looks at a register until a condition holds: at once for a while, then ever more seldom.
pub(super) fn wait_for(
    engine: &Engine,
    channel: u8,
    what: &'static str,
    mut done: impl FnMut() -> Result<bool, IoatError>,
) -> Result<(), IoatError> {
    let begin = Instant::now();
    let waited = engine.config.command_timeout;
    let mut pause = Duration::from_micros(1);
    // The time is read before the register: a process that did not run meanwhile still
    // takes a last look.
    loop {
        let elapsed = begin.elapsed();
        if done()? {
            return Ok(());
        }
        if elapsed >= waited {
            let location = engine.location();
            return Err(IoatError::Timeout { location, channel, what, waited });
        }
        if elapsed > Duration::from_micros(50) {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }
}
