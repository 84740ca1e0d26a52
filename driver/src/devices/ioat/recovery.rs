//! What becomes of a channel and its transfers after a failure.
//!
//! Every way ends the same: the engine stands still, CHANSTS has told which descriptors
//! were done, each transfer in flight either ended or has all of its descriptors still
//! before it, and the channel begins anew at the first of these. So nothing is done twice
//! and nothing is left out.

use std::ops::Range;

use super::regs::State;
use super::{Channel, ChannelErrors, IoatError, Loss, LossStep, OnError, TransferError};
use crate::device::DeviceError;
use crate::dma::Iova;
use crate::events::Event;
use crate::queue::{QueueError, Slot};

/// How many wrong completion words a transfer survives without any progress.
const BOGUS_COMPLETIONS: u32 = 2;

/// How many recoveries of a channel are warned of.
const MOST_WARNINGS: u64 = 16;

/// Why the channel is set up again, and so who fails.
#[derive(Debug)]
enum Cause {
    /// The device stands still for no reason of a transfer: nobody.
    Stopped,
    /// The channel halted: the oldest in flight.
    Halt,
    /// What the device writes was wrong: the oldest in flight, if nothing moves any more.
    Bogus(QueueError),
    /// The caller wishes it: all of them.
    Abort,
}

/// How an engine was stopped.
struct Stopped {
    /// CHANSTS and CHANERR while it stood, for RESET clears them.
    status: u64,
    errors: ChannelErrors,
    /// It stood before RESET; else it may have done more than it said.
    is_exact: bool,
}

impl Channel {
    /// Stops the engine and ends every transfer in flight with
    /// [`TransferError::Aborted`], except those that turn out to be done. The channel can
    /// be used afterwards.
    ///
    /// # Errors
    ///
    /// Fails when the engine cannot be stopped or set up again: the channel is lost then.
    pub fn abort(&mut self) -> Result<(), IoatError> {
        self.refuse_when_lost()?;
        let ended = self.recover(Cause::Abort).map(drop);
        self.run_wakers();
        ended
    }

    /// Asks the device itself, over the bus, how far it is; returns how many transfers
    /// ended.
    ///
    /// [`Channel::poll`] suffices as long as the device keeps to its rules. This finds out
    /// about a device that is gone, halted without a word, or done without a word; every
    /// wait does it when nothing moves for 10 ms.
    ///
    /// # Errors
    ///
    /// As [`Channel::poll`].
    pub fn check_device(&mut self) -> Result<usize, IoatError> {
        let ended = self.ask_device();
        self.run_wakers();
        ended
    }

    fn ask_device(&mut self) -> Result<usize, IoatError> {
        if !self.is_busy() {
            return Ok(0);
        }
        if self.engine.events.check().is_err() {
            return self.end_by_event();
        }
        let status = match self.status() {
            Ok(status) => status,
            Err(error) => return self.lose(LossStep::Look, None, error),
        };
        // Reading the register has pushed the device's earlier writes to memory before it
        // (PCIe Base 4.0, 2.4.1): what memory does not say now, it will not say.
        let recoveries = self.stats.recoveries;
        let ended = self.poll()?;
        if self.stats.recoveries != recoveries || self.ring.producer().in_flight() == 0 {
            return Ok(ended);
        }
        let more = match State::of(status) {
            State::Halted => self.recover_from_halt()?,
            // Nothing that this driver did leads there.
            State::Suspended => self.recover(Cause::Stopped)?,
            _ => match self.ring.take_mark() {
                // Done, and no completion word has told.
                Ok(newly @ 1..) => {
                    self.stats.lost_completions += 1;
                    self.advanced(newly)?
                }
                Ok(0) if State::of(status) == State::Idle && self.ring.is_last(status) => {
                    self.stats.lost_completions += 1;
                    self.recover(Cause::Stopped)?
                }
                Ok(_) => 0,
                Err(bogus) => self.recover_from_bogus(bogus)?,
            },
        };
        Ok(ended + more)
    }

    #[cold]
    pub(super) fn recover_from_halt(&mut self) -> Result<usize, IoatError> {
        self.recover(Cause::Halt)
    }

    #[cold]
    pub(super) fn recover_from_bogus(&mut self, bogus: QueueError) -> Result<usize, IoatError> {
        // The device decides how often: the first are warnings, the rest is counted.
        let is_seldom = self.stats.recoveries < MOST_WARNINGS;
        let level = if is_seldom { log::Level::Warn } else { log::Level::Debug };
        log::log!(level, "{} channel {}: {bogus}", self.engine.location, self.index);
        self.recover(Cause::Bogus(bogus))
    }

    /// Makes the engine stand still and resets it.
    fn stop_and_reset(&self) -> Result<Stopped, IoatError> {
        let mut status = self.status()?;
        let mut is_exact = matches!(State::of(status), State::Halted | State::Suspended);
        if !is_exact {
            is_exact = match self.suspend() {
                Ok(()) => true,
                Err(error @ IoatError::Timeout { .. }) => {
                    log::warn!("{error}");
                    false
                }
                Err(error) => return Err(error),
            };
            status = self.status()?;
        }
        let errors = self.errors()?;
        self.reset()?;
        Ok(Stopped { status, errors, is_exact })
    }

    /// Stops the engine, ends what has to end, and sets the channel up for the rest.
    fn recover(&mut self, cause: Cause) -> Result<usize, IoatError> {
        self.stats.recoveries += 1;
        let Stopped { status, errors, is_exact } = match self.stop_and_reset() {
            Ok(stopped) => stopped,
            Err(error) => {
                let errors = self.errors().ok();
                return self.lose(LossStep::Stop, errors, error);
            }
        };
        let newly = self.ring.take_status(status);
        if let Ok(newly) = newly {
            self.stats.descriptors += newly;
        }
        let moved = newly.as_ref().is_ok_and(|&newly| newly > 0);
        let mut ended = self.retire();
        let cause = match (newly, cause) {
            // Whatever is not known to be done may be half done.
            _ if !is_exact => Cause::Abort,
            // Without CHANSTS there is nothing to go on from.
            (Err(bogus), _) => {
                self.bogus_completions = BOGUS_COMPLETIONS;
                Cause::Bogus(bogus)
            }
            (Ok(_), Cause::Bogus(bogus)) => {
                self.bogus_completions = if moved { 1 } else { self.bogus_completions + 1 };
                Cause::Bogus(bogus)
            }
            (Ok(_), cause) => cause,
        };
        let done = self.ring.producer().done();
        let at_marker = self.ring.is_marker(done);
        // What is to be done next.
        let next = if at_marker { done + 1 } else { done };
        let one_fails = next < self.ring.producer().published()
            && match &cause {
                Cause::Stopped => false,
                // What carries no data fails no transfer: CHANSTS has told what it would.
                Cause::Halt => !at_marker,
                // CHANSTS tells what the word did not, so nothing has failed yet.
                Cause::Bogus(_) => self.bogus_completions >= BOGUS_COMPLETIONS,
                Cause::Abort => true,
            };
        let rest_fails = match &cause {
            Cause::Stopped => false,
            Cause::Halt | Cause::Bogus(_) => {
                one_fails && self.engine.config.on_error == OnError::FailTheRest
            }
            Cause::Abort => true,
        };
        let behind = match &cause {
            Cause::Abort => TransferError::Aborted,
            _ => TransferError::Behind,
        };
        let filled = self.ring.producer().filled();
        let next = match (self.slots.operation(next), self.order.front()) {
            (Some(operation), _) if one_fails => {
                let error = self.describe_slots(&operation, &cause, errors);
                self.fail_slots(next..operation.end, error, &behind);
                self.bogus_completions = 0;
                operation.end
            }
            (None, Some(&slot)) if one_fails => {
                let error = self.describe(slot, &cause, errors);
                // One that streams has nothing behind it.
                let next = self.jobs.get(slot).and_then(|job| job.end());
                self.order.pop_front();
                self.end(slot, Err(error));
                ended += 1;
                self.bogus_completions = 0;
                next.unwrap_or(filled)
            }
            _ => next,
        };
        let next = if rest_fails {
            while let Some(slot) = self.order.pop_front() {
                self.end(slot, Err(behind.clone()));
                ended += 1;
            }
            self.fail_slots(next..filled, behind.clone(), &behind);
            filled
        } else {
            next
        };
        if let Err(error) = self.arm(next) {
            self.lose(LossStep::Rearm, Some(errors), error)?;
        }
        self.feed_remaining();
        match self.issue() {
            Ok(()) => Ok(ended),
            Err(error) => self.lose(LossStep::Doorbell, Some(errors), error),
        }
    }

    fn describe(&self, slot: Slot, cause: &Cause, errors: ChannelErrors) -> TransferError {
        match cause {
            Cause::Halt => {}
            Cause::Bogus(bogus) => return TransferError::Completion(bogus.clone()),
            Cause::Abort | Cause::Stopped => return TransferError::Aborted,
        }
        // The one after the last that was done.
        let position = self.ring.producer().done();
        let data = self.ring.data_before(position);
        let limits = self.engine.cuts();
        match self.jobs.get(slot).and_then(|job| job.piece_at(data, &limits)) {
            Some((piece, what, done)) => TransferError::Halted {
                errors,
                piece,
                slot: self.ring.producer().slot(position),
                source_address: what.source.0,
                target: what.target,
                len: what.len,
                done,
            },
            None => TransferError::Lost(format!("halted with {errors} at no known descriptor")),
        }
    }

    /// As [`Channel::describe`], of descriptors between slots.
    fn describe_slots(
        &self,
        operation: &Range<u64>,
        cause: &Cause,
        errors: ChannelErrors,
    ) -> TransferError {
        match cause {
            Cause::Halt => {}
            Cause::Bogus(bogus) => return TransferError::Completion(bogus.clone()),
            Cause::Abort | Cause::Stopped => return TransferError::Aborted,
        }
        let position = self.ring.producer().done();
        // As the device saw them: nothing is decided by what the ring says.
        let [len, source_address, target] = self.ring.filled_words(position);
        let done = (operation.start..position).map(|at| self.ring.filled_words(at)[0]).sum();
        TransferError::Halted {
            errors,
            piece: position - operation.start,
            slot: self.ring.producer().slot(position),
            source_address,
            target: Iova(target),
            len,
            done,
        }
    }

    /// Gives the channel up when there is an event of the function.
    #[cold]
    pub(super) fn end_by_event(&mut self) -> Result<usize, IoatError> {
        let Err(event) = self.engine.events.check() else { return Ok(0) };
        let errors = self.errors().ok();
        let lost = self.lose(LossStep::Event, errors, DeviceError::from(event).into());
        self.run_wakers();
        lost
    }

    /// Gives the channel up: every transfer in flight ends. Its buffers come back if the
    /// device is known to be quiet; while other channels are open it is not stopped, and keeps
    /// them.
    #[cold]
    pub(super) fn lose(
        &mut self,
        step: LossStep,
        errors: Option<ChannelErrors>,
        error: IoatError,
    ) -> Result<usize, IoatError> {
        // An event may have come first.
        let loss = match &self.lost {
            Some(loss) => (**loss).clone(),
            None => {
                let loss = Loss { step, cause: error.to_string(), errors };
                let (location, index) = (&self.engine.location, self.index);
                log::error!("{location} channel {index} is given up: {loss}");
                self.lost = Some(Box::new(loss.clone()));
                loss
            }
        };
        let why = loss.to_string();
        self.slots.forget_latest();
        self.feeding = None;
        // An event ends the other channels too.
        let for_all = self.engine.events.pending().is_some();
        self.not_quiesced = !self.engine.lose(self.index, loss, for_all);
        let lost = match self.engine.events.pending() {
            Some(Event::Removal) => TransferError::Removed,
            Some(Event::Error) => TransferError::BusError,
            None => TransferError::Lost(why),
        };
        while let Some(slot) = self.order.pop_front() {
            if self.not_quiesced
                && let Some(tables) = self.jobs.get_mut(slot).and_then(|job| job.tables.take())
            {
                self.engine.device().park(tables);
            }
            self.end(slot, Err(lost.clone()));
        }
        let (done, filled) = (self.ring.producer().done(), self.ring.producer().filled());
        if self.fail_slots(done..filled, lost.clone(), &lost) > 0 && self.not_quiesced {
            self.slots.park();
        }
        Err(error)
    }
}
