//! What becomes of a channel and its transfers after a failure.
//!
//! Every way ends the same: the engine stands still, CHANSTS has told which descriptors
//! were done, each transfer in flight either ended or has all of its descriptors still
//! before it, and the channel begins anew at the first of these. So nothing is done twice
//! and nothing is left out.

use super::descriptor::Descriptor;
use super::regs::State;
use super::{Channel, ChannelErrors, IoatError, OnError, TransferError};
use crate::ring::{Format, LastDone, RingError};

/// Whether a completion word, or CHANSTS, tells of a halt.
#[inline]
pub(super) fn is_halt(word: u64) -> bool {
    State::of(word) == State::Halted
}

/// How many wrong completion words a transfer survives without any progress.
const LIES: u32 = 2;

/// Who fails.
#[derive(Debug)]
enum Blame {
    /// Nobody: the device was done and had not said so.
    Nobody,
    /// The oldest in flight: the channel halted on it.
    Halt,
    /// The oldest in flight, if nothing moves any more: the completion word was wrong.
    Lie(RingError),
    /// All of them.
    Abort,
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
        self.recover(Blame::Abort).map(drop)
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
        if self.order.is_empty() {
            return Ok(0);
        }
        let status = match self.status() {
            Ok(status) => status,
            Err(error) => return self.lose(error),
        };
        // Reading the register has pushed the device's earlier writes to memory before it
        // (PCIe Base 4.0, 2.4.1): what the word does not say now, it will not say.
        let recoveries = self.stats.recoveries;
        let ended = self.poll()?;
        if self.stats.recoveries != recoveries || self.ring.in_flight() == 0 {
            return Ok(ended);
        }
        let more = match State::of(status) {
            State::Halted => self.recover_from_halt()?,
            // Nothing that this driver did leads there.
            State::Suspended => self.recover(Blame::Nobody)?,
            State::Idle if self.says_all(status) => {
                self.stats.lost_completions += 1;
                self.recover(Blame::Nobody)?
            }
            _ => 0,
        };
        Ok(ended + more)
    }

    /// Whether a status tells that all that was published is done.
    fn says_all(&self, status: u64) -> bool {
        match Descriptor::last_done(status) {
            LastDone::Address(address) => {
                let last = self.ring.done() + u64::from(self.ring.in_flight()) - 1;
                address == self.ring.address(last).0
            }
            _ => false,
        }
    }

    #[cold]
    pub(super) fn recover_from_halt(&mut self) -> Result<usize, IoatError> {
        self.recover(Blame::Halt)
    }

    #[cold]
    pub(super) fn recover_from_lie(&mut self, lie: RingError) -> Result<usize, IoatError> {
        log::warn!("{} channel {}: {lie}", self.engine.location(), self.index);
        self.recover(Blame::Lie(lie))
    }

    /// Makes the engine stand still and resets it; returns what it said while it stood, for
    /// RESET clears that. The flag is `false` when only RESET stopped it: it may have done
    /// more than it said.
    fn stand(&self) -> Result<(u64, ChannelErrors, bool), IoatError> {
        let mut status = self.status()?;
        let mut stood = matches!(State::of(status), State::Halted | State::Suspended);
        if !stood {
            stood = match self.suspend() {
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
        Ok((status, errors, stood))
    }

    /// Stops the engine, ends what has to end, and sets the channel up for the rest.
    fn recover(&mut self, blame: Blame) -> Result<usize, IoatError> {
        self.stats.recoveries += 1;
        let (status, errors, stood) = match self.stand() {
            Ok(stood) => stood,
            Err(error) => return self.lose(error),
        };
        let told = self.ring.reap_as(status);
        if let Ok(done) = &told {
            self.stats.descriptors += done.end - done.start;
        }
        let moved = told.as_ref().is_ok_and(|done| !done.is_empty());
        let mut ended = self.retire();
        let blame = match (told, blame) {
            // Whatever is not known to be done may be half done.
            _ if !stood => Blame::Abort,
            // Without CHANSTS there is nothing to go on from.
            (Err(lie), _) => {
                self.lies = LIES;
                Blame::Lie(lie)
            }
            (Ok(_), Blame::Lie(lie)) => {
                self.lies = if moved { 1 } else { self.lies + 1 };
                Blame::Lie(lie)
            }
            (Ok(_), blame) => blame,
        };
        let nobody = match &blame {
            Blame::Nobody => true,
            // CHANSTS tells what the word did not, so nothing has failed yet.
            Blame::Lie(_) => self.lies < LIES,
            Blame::Halt | Blame::Abort => false,
        };
        let one_fails = !nobody && self.ring.in_flight() > 0;
        let rest_fails = match &blame {
            Blame::Nobody => false,
            Blame::Halt | Blame::Lie(_) => {
                one_fails && self.engine.config.on_error == OnError::FailTheRest
            }
            Blame::Abort => true,
        };
        let next = match self.order.front() {
            Some(&key) if one_fails => {
                let error = self.describe(key, &blame, errors);
                // One that streams has nothing behind it.
                let next = self.jobs.get(key).and_then(|job| job.end);
                self.order.pop_front();
                self.end(key, Err(error));
                ended += 1;
                self.lies = 0;
                next.unwrap_or(self.ring.filled())
            }
            _ => self.ring.done(),
        };
        let next = if rest_fails {
            let error = match blame {
                Blame::Abort => TransferError::Aborted,
                _ => TransferError::Behind,
            };
            while let Some(key) = self.order.pop_front() {
                self.end(key, Err(error.clone()));
                ended += 1;
            }
            self.ring.filled()
        } else {
            next
        };
        if let Err(error) = self.arm(next) {
            self.lose(error)?;
        }
        self.feed_rest();
        match self.issue() {
            Ok(()) => Ok(ended),
            Err(error) => self.lose(error),
        }
    }

    fn describe(&self, key: usize, blame: &Blame, errors: ChannelErrors) -> TransferError {
        match blame {
            Blame::Halt => {}
            Blame::Lie(lie) => return TransferError::Completion(lie.clone()),
            Blame::Abort | Blame::Nobody => return TransferError::Aborted,
        }
        // The one after the last that was done.
        let position = self.ring.done();
        let piece = self.jobs.get(key).and_then(|job| job.piece_at(position, &self.engine.limits));
        match piece {
            Some((piece, what, done)) => TransferError::Halted {
                errors,
                piece,
                slot: self.ring.slot(position),
                source_address: what.source.0,
                target: what.target,
                len: what.len,
                done,
            },
            None => TransferError::Lost(format!("halted with {errors} at no known descriptor")),
        }
    }

    /// Gives the channel up: the device is kept from memory altogether, and every transfer
    /// in flight ends. Its buffers come back if the device is known to be quiet.
    #[cold]
    pub(super) fn lose(&mut self, error: IoatError) -> Result<usize, IoatError> {
        log::error!("{error}: the channel is given up");
        self.lost = true;
        self.feeding = None;
        if let Err(why) = self.engine.device.quiesce() {
            self.loose = true;
            log::error!(
                "{} cannot be stopped, the buffers in flight stay mapped and allocated: {why}",
                self.engine.location()
            );
        }
        let reason = error.to_string();
        while let Some(key) = self.order.pop_front() {
            if self.loose
                && let Some(job) = self.jobs.get_mut(key)
            {
                std::mem::forget(job.tables.take());
            }
            self.end(key, Err(TransferError::Lost(reason.clone())));
        }
        Err(error)
    }
}
