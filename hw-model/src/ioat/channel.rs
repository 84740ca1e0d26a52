//! The state of a channel: what software asked for, and how far the engine came.
//!
//! Everything here happens under the channel's lock, by the thread that accesses registers
//! or by the channel's own thread. While the latter works without the lock, `busy` is set:
//! only then may it touch memory or raise interrupts, and whoever must know the channel
//! quiet waits for `busy` to end.
//!
//! While `running` is set, too, it executes several descriptors without the lock. How far it
//! came is in CHANSTS, which it alone writes then, and in the state only at the run's end;
//! the run ends after the descriptor in hand when the channel is poked.

use std::ops::Deref;

use super::registers::{CHANSTS_SOFT, CHANSTS_UNAFFILIATED, ChannelError, ChannelIds};
use crate::sync::Instant;
use crate::worker::{self, CachePadded, Count, Worker};

/// The channel's state in bits 2:0 of CHANSTS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Active = 0,
    Idle = 1,
    Suspended = 2,
    Halted = 3,
    Armed = 4,
}

/// Where the chain goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    /// There is no chain.
    Nowhere,
    /// At the descriptor that CHAINADDR named.
    At(u64),
    /// At the descriptor that the one at this address names as its next, once there is one.
    After(u64),
}

/// A completion word that is to be written once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resend {
    pub(super) at: Instant,
    pub(super) address: u64,
    pub(super) word: u64,
}

/// What the fault plan counts.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FaultCounts {
    pub(super) descriptors: u64,
    pub(super) resets: u64,
    pub(super) suspends: u64,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) status: Status,
    /// The last descriptor that was completed; 0 when the chain has none yet.
    pub(super) completed: u64,
    pub(super) position: Position,
    /// What DMACOUNT was last written with, and how many descriptors of it are done, both
    /// modulo 2^16.
    pub(super) count: u16,
    pub(super) done: u16,
    /// Changes whenever what was fetched ahead is void.
    pub(super) epoch: u64,
    /// RESET is asked for; it ends when the engine is quiet.
    pub(super) reset: bool,
    pub(super) reset_hangs: bool,
    /// SUSPEND is asked for; it ends after the descriptor in hand.
    pub(super) suspend: bool,
    pub(super) suspend_hangs: bool,
    /// CHANCMD was written with what is no command.
    pub(super) bad_command: bool,
    /// An interrupt is wanted, and waits for rearming or for the delay.
    pub(super) interrupt: bool,
    pub(super) interrupt_due: Option<Instant>,
    pub(super) resend: Option<Resend>,
    /// The last completion word that was written.
    pub(super) word: u64,
    /// The bits of CHANERR_INT that this channel set.
    pub(super) mirrored: u64,
    pub(super) fault_counts: FaultCounts,
    /// The engine executes descriptors, and publishes the state.
    pub(super) running: bool,
}

impl State {
    fn power_on() -> State {
        State {
            status: Status::Halted,
            completed: 0,
            position: Position::Nowhere,
            count: 0,
            done: 0,
            epoch: 0,
            reset: false,
            reset_hangs: false,
            suspend: false,
            suspend_hangs: false,
            bad_command: false,
            interrupt: false,
            interrupt_due: None,
            resend: None,
            word: 0,
            mirrored: 0,
            fault_counts: FaultCounts::default(),
            running: false,
        }
    }

    /// How many descriptors are counted and not done.
    pub(super) fn ahead(&self) -> u16 {
        self.count.wrapping_sub(self.done)
    }

    /// A new chain begins at `address`, with a count of zero. Returns whether the channel's
    /// state allows it.
    pub(super) fn arm(&mut self, address: u64) -> bool {
        let allowed = matches!(self.status, Status::Halted | Status::Suspended | Status::Armed);
        if allowed && !self.reset {
            self.status = Status::Armed;
            self.begin(Position::At(address));
        }
        allowed && !self.reset
    }

    /// DMACOUNT was written. It starts an armed channel, lengthens the work of a running one
    /// and resumes a suspended one.
    pub(super) fn ring(&mut self, count: u16) {
        self.count = count;
        let chained = self.position != Position::Nowhere;
        let ahead = self.ahead() != 0;
        self.status = match self.status {
            Status::Armed if !ahead => Status::Armed,
            Status::Armed | Status::Active | Status::Idle | Status::Suspended if chained => {
                if ahead { Status::Active } else { Status::Idle }
            }
            unchanged => unchanged,
        };
    }

    /// A descriptor is done.
    pub(super) fn advance(&mut self, address: u64) {
        self.advance_to(self.done.wrapping_add(1), address);
    }

    /// So many descriptors, modulo 2^16, are done, the last of them at `address`.
    pub(super) fn advance_to(&mut self, done: u16, address: u64) {
        self.done = done;
        self.completed = address;
        self.position = Position::After(address);
        self.status = if self.ahead() == 0 { Status::Idle } else { Status::Active };
    }

    /// SUSPEND takes effect.
    pub(super) fn suspend_now(&mut self) {
        self.suspend = false;
        if matches!(self.status, Status::Active | Status::Idle | Status::Armed) {
            self.status = Status::Suspended;
            self.resend = None;
            // Software may change descriptors that were not executed yet.
            self.epoch += 1;
        }
    }

    /// The channel halts; the chain is lost.
    pub(super) fn halt_now(&mut self) {
        self.status = Status::Halted;
        self.suspend = false;
        self.suspend_hangs = false;
        self.begin_nowhere();
    }

    /// RESET takes effect.
    pub(super) fn reset_now(&mut self) {
        self.halt_now();
        self.reset = false;
        self.bad_command = false;
        self.completed = 0;
        self.count = 0;
        self.done = 0;
        self.interrupt = false;
        self.interrupt_due = None;
    }

    /// Everything but the counts of the fault plan is as it was at power-on.
    pub(super) fn power_cycle(&mut self) {
        *self = State {
            epoch: self.epoch + 1,
            fault_counts: self.fault_counts,
            running: self.running,
            ..State::power_on()
        };
    }

    fn begin(&mut self, position: Position) {
        self.position = position;
        self.completed = 0;
        self.count = 0;
        self.done = 0;
        self.resend = None;
        self.epoch += 1;
    }

    fn begin_nowhere(&mut self) {
        self.position = Position::Nowhere;
        self.resend = None;
        self.epoch += 1;
    }

    /// Whether a descriptor can be executed.
    pub(super) fn runnable(&self) -> bool {
        self.status == Status::Active && self.ahead() != 0 && !self.suspend && !self.reset
    }

    /// What CHANSTS reads and completion words say, with these errors.
    pub(super) fn word_of(&self, errors: ChannelError) -> u64 {
        word(self.completed, self.status, errors)
    }

    /// When the engine has to do something by itself.
    pub(super) fn timer(&self) -> Option<Instant> {
        let resend = self.resend.map(|resend| resend.at);
        [self.interrupt_due, resend].into_iter().flatten().min()
    }
}

/// CHANSTS after the descriptor at `completed`.
#[inline]
pub(super) fn word(completed: u64, status: Status, errors: ChannelError) -> u64 {
    let bit = |error, bit| if errors.contains(error) { bit } else { 0 };
    (completed & !0x3f)
        | bit(ChannelError::SOFT, CHANSTS_SOFT)
        | bit(ChannelError::UNAFFILIATED, CHANSTS_UNAFFILIATED)
        | status as u64
}

/// A channel: its state, and its engine's thread.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) index: u8,
    pub(super) ids: ChannelIds,
    worker: Worker<State>,
    /// Descriptors that were executed to their end.
    pub(super) descriptors: CachePadded<Count>,
    /// Completion words that were written.
    pub(super) completions: Count,
}

pub(super) type Guard<'a> = worker::Guard<'a, State>;

impl Channel {
    pub(super) fn new(index: u8, ids: ChannelIds) -> Self {
        Channel {
            index,
            ids,
            worker: Worker::new(State::power_on()),
            descriptors: CachePadded::default(),
            completions: Count::default(),
        }
    }
}

impl Deref for Channel {
    type Target = Worker<State>;

    #[inline]
    fn deref(&self) -> &Worker<State> {
        &self.worker
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed() -> State {
        let mut state = State::power_on();
        assert_eq!(state.status, Status::Halted);
        assert!(state.arm(0x1000));
        state
    }

    #[test]
    fn states_are_numbered_as_in_chansts() {
        use Status::{Active, Armed, Halted, Idle, Suspended};
        assert_eq!([Active, Idle, Suspended, Halted, Armed].map(|s| s as u8), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn an_armed_channel_runs_when_it_is_counted_up() {
        let mut state = armed();
        assert_eq!((state.status, state.runnable()), (Status::Armed, false));
        state.ring(0);
        assert_eq!(state.status, Status::Armed);
        state.ring(2);
        assert_eq!((state.status, state.runnable()), (Status::Active, true));
        state.advance(0x1000);
        assert_eq!((state.status, state.position), (Status::Active, Position::After(0x1000)));
        state.advance(0x1040);
        assert_eq!((state.status, state.runnable()), (Status::Idle, false));
        state.ring(3);
        assert_eq!(state.status, Status::Active);
    }

    #[test]
    fn the_count_wraps() {
        let mut state = armed();
        state.ring(0xffff);
        assert_eq!(state.ahead(), 0xffff);
        (0..0xffff).for_each(|_| state.advance(0x1000));
        state.ring(3);
        assert_eq!((state.ahead(), state.status), (4, Status::Active));
        (0..4).for_each(|_| state.advance(0x1000));
        assert_eq!((state.done, state.status), (3, Status::Idle));
    }

    #[test]
    fn a_halted_channel_ignores_the_doorbell() {
        let mut state = State::power_on();
        state.ring(5);
        assert_eq!((state.status, state.runnable()), (Status::Halted, false));
        state.suspend_now();
        assert_eq!(state.status, Status::Halted);
        assert!(state.arm(0x40));
        assert_eq!((state.count, state.ahead()), (0, 0));
    }

    #[test]
    fn a_suspended_channel_resumes_by_its_count_or_takes_a_new_chain() {
        let mut state = armed();
        state.ring(3);
        state.advance(0x1000);
        let epoch = state.epoch;
        state.suspend_now();
        assert_eq!((state.status, state.runnable()), (Status::Suspended, false));
        assert_ne!(state.epoch, epoch);
        state.ring(3);
        assert_eq!((state.status, state.position), (Status::Active, Position::After(0x1000)));
        state.suspend_now();
        assert!(state.arm(0x2000));
        assert_eq!((state.completed, state.done), (0, 0));
    }

    #[test]
    fn a_running_channel_takes_no_chain() {
        let mut state = armed();
        state.ring(1);
        assert!(!state.arm(0x2000));
        state.advance(0x1000);
        assert!(!state.arm(0x2000));
        assert_eq!(state.position, Position::After(0x1000));
    }

    #[test]
    fn a_reset_halts_from_every_state() {
        let states: [fn(&mut State); 5] = [
            |_| {},
            |s| s.ring(1),
            |s| {
                s.ring(1);
                s.advance(0x1000);
            },
            |s| s.suspend_now(),
            |s| s.halt_now(),
        ];
        for prepare in states {
            let mut state = armed();
            prepare(&mut state);
            state.reset = true;
            assert!(!state.arm(0x40), "no chain before the reset ended");
            state.reset_now();
            assert_eq!((state.status, state.completed, state.count), (Status::Halted, 0, 0));
            assert!(!state.reset && state.arm(0x40));
        }
    }
}
