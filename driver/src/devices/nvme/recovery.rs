//! What becomes of a queue and its transfers when a command does not end, or the controller
//! was reset.
//!
//! A reset counts the controller's epoch on. A queue of a former epoch takes the completions
//! that had come before, ends every other transfer, and is made again.

use std::time::{Duration, Instant};

use super::controller::State;
use super::io::InCommand;
use super::{IoQueue, NvmeError, Token, TransferError};
use crate::events::Event;
use crate::queue::Slot;

/// A queue on which nothing moved for so long is looked after.
const STILL: Duration = Duration::from_millis(10);

impl IoQueue {
    /// Asks the controller itself, over the bus, whether it is there and well, and ends what has
    /// ended; returns how many transfers ended. A command that is late is aborted; when that
    /// does not help, the controller is reset.
    ///
    /// [`IoQueue::poll`] suffices as long as the controller keeps to its rules. Every wait
    /// does this when nothing moves for 10 ms.
    ///
    /// # Errors
    ///
    /// As [`IoQueue::poll`].
    pub fn check_device(&mut self) -> Result<usize, NvmeError> {
        let mut ended = self.poll()?;
        if self.running > 0 && self.controller.events.check().is_err() {
            return self.end_by_event();
        }
        if self.running > 0 {
            ended += match self.controller.check_status() {
                Ok(()) => self.check_deadlines()?,
                // Another queue may have had it reset meanwhile.
                Err(_) if self.controller.epoch() != self.epoch => self.resync()?,
                Err(error) => self.reset_controller(&error.to_string())?,
            };
        }
        self.run_wakers();
        Ok(ended)
    }

    /// Looks at the clock, and aborts the commands that are late.
    #[cold]
    pub(super) fn check_deadlines(&mut self) -> Result<usize, NvmeError> {
        self.polls = 0;
        let (now, timeout, grace) = (Instant::now(), self.config.timeout, self.config.abort_grace);
        self.ring_again(now)?;
        let (mut late, mut is_stuck) = (Vec::new(), false);
        for (tag, command) in self.memory.pair.tags.iter_mut() {
            match command.deadline {
                // A deadline too far to tell never comes.
                None => command.deadline = now.checked_add(timeout),
                Some(deadline) if deadline > now => {}
                Some(_) if command.is_late => is_stuck = true,
                Some(_) => {
                    command.is_late = true;
                    command.deadline = now.checked_add(grace);
                    late.push(tag);
                }
            }
        }
        if is_stuck {
            return self.reset_controller("a command that was aborted did not end");
        }
        for tag in late {
            self.stats.timeouts += 1;
            log::warn!("{}: queue {}: a command is late", self.controller.location, self.id);
            // It fails when the controller was reset for it: what comes next sees that.
            if let Err(error) = self.controller.abort(self.id, tag, grace) {
                log::warn!("{error}");
            }
        }
        if self.controller.epoch() != self.epoch { self.resync() } else { Ok(0) }
    }

    /// Writes the doorbells' registers when what lies in memory alone has moved nothing for a
    /// while.
    fn ring_again(&mut self, now: Instant) -> Result<(), NvmeError> {
        let taken = self.memory.pair.completion.taken();
        match self.progress {
            Some((then, since)) if then == taken => {
                let condition = self.controller.condition();
                let doorbells = self.controller.doorbells();
                let is_still = now.duration_since(since) >= STILL && condition.epoch == self.epoch;
                if is_still && self.memory.pair.ring_again(doorbells)? {
                    self.stats.repeated_doorbells += 1;
                }
            }
            _ => self.progress = Some((taken, now)),
        }
        Ok(())
    }

    /// Resets the controller, unless somebody else did; returns how many transfers ended.
    #[cold]
    pub(super) fn reset_controller(&mut self, why: &str) -> Result<usize, NvmeError> {
        let mut admin = self.controller.admin();
        if self.controller.epoch() == self.epoch {
            self.controller.reset(&mut admin, why);
        }
        drop(admin);
        self.resync()
    }

    /// Ends every transfer in flight when there is an event of the function; returns how many.
    #[cold]
    pub(super) fn end_by_event(&mut self) -> Result<usize, NvmeError> {
        if self.controller.events.pending().is_none() {
            return Ok(0);
        }
        self.reset_controller("an event of the function")
    }

    /// Follows a reset of the controller: ends every transfer in flight, and makes the queue
    /// again. Returns how many transfers ended.
    #[cold]
    pub(super) fn resync(&mut self) -> Result<usize, NvmeError> {
        let before = self.running;
        if self.lost.is_some() {
            return Ok(0);
        }
        // What had ended before is known from memory, which no reset touches. The rest of
        // a transfer is not fed any more.
        let feeding = self.feeding.take().map(|remaining| remaining.slot);
        let condition = self.controller.condition().clone();
        let mut ended_early = true;
        while ended_early {
            ended_early = match self.memory.pair.reap() {
                Ok(Some((completed, command))) => {
                    // Some controllers say of a command that they gave it up for the reset.
                    if completed.status.is_abort()
                        && !command.is_late
                        && let Some(job) = self.jobs.get_mut(command.slot)
                    {
                        job.fail(TransferError::Reset(condition.why.clone()));
                    }
                    if feeding == Some(command.slot) {
                        self.forget(&command);
                    } else {
                        self.command_ended(&completed, &command);
                    }
                    true
                }
                Ok(None) | Err(_) => false,
            };
        }
        let mut slots: Vec<(Slot, Option<TransferError>)> = Vec::new();
        let timeout = self.config.timeout;
        let jobs = &self.jobs;
        self.memory.pair.tags.complete_all(|command| {
            let name = jobs.get(command.slot).map_or("a command", |job| job.operation.name());
            let late = command.is_late.then_some(TransferError::TimedOut {
                command: name,
                lba: command.lba,
                blocks: command.blocks,
                waited: timeout,
            });
            match slots.iter_mut().find(|(slot, _)| *slot == command.slot) {
                Some((_, error)) => *error = error.take().or(late),
                None => slots.push((command.slot, late)),
            }
        });
        if let Some(slot) = feeding.filter(|slot| slots.iter().all(|(known, _)| known != slot)) {
            slots.push((slot, None));
        }
        let is_kept = condition.state == (State::Dead { is_quiet: false });
        for (slot, late) in slots {
            let why = condition.why.clone();
            let error = late.unwrap_or(match (condition.state, condition.event) {
                (State::Alive, _) => TransferError::Reset(why),
                (State::Dead { .. }, Some(Event::Removal)) => TransferError::Removed,
                (State::Dead { .. }, Some(Event::Error)) => TransferError::BusError,
                (State::Dead { .. }, None) => TransferError::Lost(why),
            });
            if let Some(job) = self.jobs.get_mut(slot) {
                job.outstanding = 0;
                job.fail(error);
            }
            if is_kept { self.end_and_park(slot) } else { self.end(slot) }
        }
        let ended = before - self.running;
        let made = self.make_again(condition.state);
        self.run_wakers();
        made.map(|()| ended)
    }

    /// A command of a transfer ended that cannot be finished any more.
    fn forget(&mut self, command: &InCommand) {
        if let Some(job) = self.jobs.get_mut(command.slot) {
            job.outstanding -= 1;
        }
    }

    fn make_again(&mut self, state: State) -> Result<(), NvmeError> {
        if let State::Dead { is_quiet } = state {
            if is_quiet {
                self.memory.release();
            }
            let why = self.controller.condition().why.clone();
            self.lost = Some(why);
            return self.refuse_when_lost();
        }
        let mut admin = self.controller.admin();
        // It may have been reset once more: nothing of this queue was in flight then.
        self.epoch = self.controller.epoch();
        self.memory.pair.clear();
        let interrupts = self.wait.irq().is_some();
        let made = self.controller.create_pair(&mut admin, &self.memory.pair, interrupts);
        drop(admin);
        self.stats.recoveries += 1;
        if let Err(error) = &made {
            self.lost = Some(error.to_string());
        }
        made
    }

    /// Asks the controller to give the commands of a transfer up. It ends as soon as they have
    /// ended: with [`TransferError::Status`] when they were given up, or well when they were
    /// done before.
    ///
    /// # Errors
    ///
    /// Fails when the result was taken before, or the controller does not answer: it is reset
    /// then.
    pub fn abort(&mut self, token: Token) -> Result<(), NvmeError> {
        if self.is_finished(token)? {
            return Ok(());
        }
        self.issue()?;
        if self.feeding.as_ref().is_some_and(|feeding| feeding.slot == token.0) {
            self.feeding = None;
            let Some(job) = self.jobs.get_mut(token.0) else { return Ok(()) };
            job.fail(TransferError::Aborted);
            if job.outstanding == 0 {
                self.end(token.0);
                return Ok(());
            }
        }
        let all = self.memory.pair.tags.iter_mut();
        let tags: Vec<u16> =
            all.filter(|(_, command)| command.slot == token.0).map(|(tag, _)| tag).collect();
        for tag in tags {
            self.controller.abort(self.id, tag, self.config.abort_grace)?;
        }
        Ok(())
    }
}
