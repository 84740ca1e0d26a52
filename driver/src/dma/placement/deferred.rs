//! Trying again later: when something was freed, or between two transfers.

use std::time::Instant;

use super::{Attempted, Context, Failed, Placed};
use crate::backend::Translation;
use crate::deadline::Deadline;
use crate::dma::{Attempt, Buffer, Cause, DmaError, Outcome, Placement, Reason, Strategy};

/// Waits until something is freed and tries the strategies before this one again, until
/// the request's patience ends; a last time then, for memory that others freed.
pub(super) fn wait(context: &Context<'_>, seen: u64, before: &[Strategy]) -> Attempted {
    let patience = context.request.patience;
    if patience.is_zero() {
        return Err(context.skipped(Cause::NoPatience));
    }
    let (begin, deadline) = (Instant::now(), Deadline::after(patience));
    let (mut seen, first) = (seen, seen);
    let mut tries = 0;
    loop {
        let freed = context.space.wait_for_free(seen, deadline);
        seen = context.space.frees();
        tries += 1;
        for (i, &strategy) in before.iter().enumerate() {
            if strategy == Strategy::Deferred {
                continue;
            }
            if let Ok(placed) = context.attempt(strategy, seen, &before[..i]) {
                return Ok(Placed { tries, through: Some(strategy), ..placed });
            }
        }
        if !freed {
            let milliseconds = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            let frees = seen.wrapping_sub(first);
            return Err(context.failed(Cause::Waited { milliseconds, frees }, tries));
        }
    }
}

impl Buffer {
    /// Makes a buffer of several segments contiguous, with its contents kept: at one IOVA
    /// range over the same memory where that can be had, else by a copy. A buffer that is
    /// contiguous stays as it is.
    ///
    /// The device's addresses change. Nothing else does: a `Buffer` that the caller holds
    /// is in no transfer.
    ///
    /// # Errors
    ///
    /// [`DmaError::NoPlacement`] with the reasons; the buffer is as it was then.
    pub fn promote(&mut self) -> Result<(), DmaError> {
        if self.segments().len() == 1 {
            return Ok(());
        }
        let (space, owner, request) =
            (self.space().clone(), self.owner().clone(), self.request().clone());
        let limits = *self.limits();
        let context = Context { space: &space, owner: &owner, limits, request: &request };
        let mut report = context.report();
        let remapped = match space.translation() {
            Translation::Iommu => self
                .remap(|len, align, skip| {
                    let least = context.alignment_at(skip)?;
                    Ok(space.take_run(len, align, least, limits.address_mask)?)
                })
                .map_err(|error| context.failed_by(&error, 1)),
            Translation::Physical => {
                Err(context.skipped(Cause::Translation(Translation::Physical)))
            }
        };
        match remapped {
            Ok(()) => {
                let (segments, map_calls) = (self.segments().len(), self.map_calls());
                let outcome = Outcome::Placed { segments, map_calls, through: None };
                report.attempts.push(Attempt { strategy: Strategy::Remap, tries: 1, outcome });
                self.set_report(report);
                return Ok(());
            }
            Err(failed) => report.attempts.push(failed.attempt(Strategy::Remap)),
        }
        let order = Strategy::order(Placement::Contiguous, space.translation());
        if self.is_lent() {
            let reason = Reason { asked: request.len as u64, cause: Cause::Lent };
            let skipped = |strategy| Failed { reason: reason.clone(), tries: 0 }.attempt(strategy);
            report.attempts.extend(order.into_iter().map(skipped));
            return Err(DmaError::NoPlacement(report));
        }
        let mut contiguous = context.run(&order, report).map_err(DmaError::NoPlacement)?;
        contiguous.copy_from(self)?;
        *self = contiguous;
        Ok(())
    }
}
