//! Trying again later: when something was freed, or between two transfers.

use std::time::Instant;

use super::{Cause, Outcome, Reason, Report, Site, Strategy, Verdict, Won};
use crate::backend::Translation;
use crate::dma::{Buffer, DmaError};

/// Waits until something is freed and tries the strategies before this one again, until
/// the request's patience ends; a last time then, for memory that others freed.
pub(super) fn wait(site: &Site<'_>, seen: u64, before: &[Strategy]) -> Verdict {
    let patience = site.request.patience;
    let begin = Instant::now();
    // A deadline that no clock reaches is none that can be waited for.
    let Some(deadline) = begin.checked_add(patience).filter(|_| !patience.is_zero()) else {
        return Err(site.skipped(Cause::NoPatience));
    };
    let (mut seen, first) = (seen, seen);
    let mut tries = 0;
    loop {
        let freed = site.space.wait_for_free(seen, deadline);
        seen = site.space.frees();
        tries += 1;
        for (i, &strategy) in before.iter().enumerate() {
            if strategy == Strategy::Deferred {
                continue;
            }
            if let Ok(won) = site.attempt(strategy, seen, &before[..i]) {
                return Ok(Won { buffer: won.buffer, tries, through: Some(strategy) });
            }
        }
        if !freed {
            let milliseconds = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
            let frees = seen.wrapping_sub(first);
            return Err(site.declined(Cause::Waited { milliseconds, frees }, tries));
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
        let (space, device, request) =
            (self.space().clone(), self.device().clone(), self.request().clone());
        let site = Site { space: &space, device: &device, request: &request };
        let mut report = Report::new(&request);
        let remapped = match space.translation() {
            Translation::Iommu => self.remap().map_err(|error| site.failed(&error, 1)),
            Translation::Physical => Err(site.skipped(Cause::Translation(Translation::Physical))),
        };
        match remapped {
            Ok(()) => {
                let (segments, map_calls) = (self.segments().len(), self.map_calls());
                let outcome = Outcome::Placed { segments, map_calls, through: None };
                report.attempts.push(super::Attempt {
                    strategy: Strategy::Remap,
                    tries: 1,
                    outcome,
                });
                self.set_report(report);
                return Ok(());
            }
            Err(declined) => report.attempts.push(declined.attempt(Strategy::Remap)),
        }
        let order = Strategy::order(super::Placement::Contiguous, space.translation());
        if self.is_lent() {
            let reason = Reason { asked: request.len as u64, cause: Cause::Lent };
            let skipped =
                |strategy| super::Declined { reason: reason.clone(), tries: 0 }.attempt(strategy);
            report.attempts.extend(order.into_iter().map(skipped));
            return Err(DmaError::NoPlacement(report));
        }
        let mut contiguous = site.run(&order, report).map_err(DmaError::NoPlacement)?;
        contiguous.copy_from(self)?;
        *self = contiguous;
        Ok(())
    }
}
