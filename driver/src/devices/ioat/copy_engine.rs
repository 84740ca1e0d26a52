//! A channel as a copy engine.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Channel, Finished, IoatError, Refused, Tables, TransferError, WhenFull};
use crate::devices::{CopyEngine, CopyError, CopyFailed, SlotCopy, SlotCopyFailed, SlotEngine};
use crate::dma::{AddressSpace, Buffer, Request, SgTable, SlotPool};
use crate::queue::{QueueError, SlotPair};

impl From<IoatError> for CopyError {
    fn from(error: IoatError) -> CopyError {
        CopyError::engine(error)
    }
}

impl From<TransferError> for CopyError {
    fn from(error: TransferError) -> CopyError {
        CopyError::engine(error)
    }
}

fn failed(error: impl Into<CopyError>, tables: Option<Tables>) -> CopyFailed {
    let both = tables.and_then(|Tables { source, target }| Some((source?, target)));
    CopyFailed { error: Box::new(error.into()), tables: both }
}

/// The channel copies one list after another; a copy that is late is aborted.
impl CopyEngine for Channel {
    fn location(&self) -> &str {
        &self.engine.location
    }

    fn space(&self) -> &Arc<AddressSpace> {
        self.engine.allocator.space()
    }

    fn allocate(&self, request: &Request) -> Result<Buffer, CopyError> {
        Ok(self.engine.allocator.allocate(request).map_err(IoatError::from)?)
    }

    fn slots(&mut self) -> Option<&mut dyn SlotEngine> {
        Some(self)
    }

    fn copy_tables(
        &mut self,
        source: SgTable,
        target: SgTable,
        limit: Duration,
    ) -> Result<(SgTable, SgTable), CopyFailed> {
        let begin = Instant::now();
        let token = Channel::copy(self, source, target, WhenFull::Wait(limit))
            .map_err(|Refused { error, tables }| failed(error, Some(tables)))?;
        let waited = self.wait(token, limit.saturating_sub(begin.elapsed()));
        let (late, Finished { result, tables }) = match waited {
            Ok(finished) => (None, finished),
            Err(late) => {
                // Whether the abort succeeds or loses the channel, it ends the transfer.
                let aborted = self.abort();
                match self.take(token) {
                    Ok(Some(finished)) => (Some(late), finished),
                    _ => return Err(failed(aborted.err().unwrap_or(late), None)),
                }
            }
        };
        match (result, tables, late) {
            (Ok(()), Some(Tables { source: Some(source), target }), _) => Ok((source, target)),
            (Err(_), tables, Some(late)) => Err(failed(late, tables)),
            (Err(error), tables, None) => Err(failed(error, tables)),
            // A copy has a source, and only a failed one keeps its tables.
            (Ok(()), tables, _) => Err(failed(IoatError::NoSuchTransfer, tables)),
        }
    }
}

impl SlotEngine for Channel {
    fn copy_slots(
        &mut self,
        source: &Arc<SlotPool>,
        target: &Arc<SlotPool>,
        copies: &mut VecDeque<SlotCopy>,
    ) -> Result<usize, CopyError> {
        let before = copies.len();
        let refused = self.batch(source, target, |batch| {
            while let Some(SlotCopy { source, target, len }) = copies.pop_front() {
                let Err(refused) = batch.copy(source, target, len) else { continue };
                let (error, slots) = refused.into_parts();
                if let SlotPair { source: Some(source), target: Some(target) } = slots {
                    copies.push_front(SlotCopy { source, target, len });
                }
                return Some(error);
            }
            None
        })?;
        match refused {
            None | Some(IoatError::Queue(QueueError::Full { .. })) => Ok(before - copies.len()),
            Some(error) => Err(error.into()),
        }
    }

    fn reap_slots(
        &mut self,
        into: &mut Vec<SlotPair>,
        limit: Duration,
    ) -> Result<Vec<SlotCopyFailed>, CopyError> {
        let reaped = self.wait_reap(into, limit)?;
        if reaped.failed == 0 {
            return Ok(Vec::new());
        }
        let failed = |failed: super::SlotsFailed| SlotCopyFailed {
            error: failed.error.into(),
            slots: failed.slots,
        };
        Ok(self.take_failed().into_iter().map(failed).collect())
    }
}
