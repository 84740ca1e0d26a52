//! Where a buffer is placed: strategies in order, each of which succeeds or says why not.

use std::fmt;
use std::sync::Arc;

use crate::backend::Backend;

use super::{AddressSpace, Buffer, Direction, DmaError, Memory, PageSize};

/// What a device demands of the addresses it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Constraints {
    /// The highest address that the device reaches: 2^28 - 1 for 28 address bits.
    pub address_mask: u64,
    /// Alignment of a buffer's first byte, a power of two in bytes.
    pub alignment: u64,
}

impl Default for Constraints {
    /// All of a 64-bit address space, byte by byte.
    fn default() -> Self {
        Constraints { address_mask: u64::MAX, alignment: 1 }
    }
}

/// A buffer that a caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Length in bytes.
    pub len: usize,
    /// Which way data will flow.
    pub direction: Direction,
    /// What the device demands.
    pub constraints: Constraints,
}

/// A way to place a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Memory of this page size, mapped at one IOVA range through the IOMMU.
    IommuContiguous(PageSize),
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Strategy::IommuContiguous(pages) => {
                write!(f, "IOMMU-contiguous in {pages}")
            }
        }
    }
}

/// What came of a strategy.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The buffer is placed.
    Placed {
        /// Segments that the device sees.
        segments: usize,
        /// Map calls that it took.
        map_calls: u64,
    },
    /// It was tried and failed, for this reason.
    Failed(String),
    /// It was not tried, for this reason.
    Skipped(String),
}

/// One strategy and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Attempt {
    /// What was tried.
    pub strategy: Strategy,
    /// What came of it.
    pub outcome: Outcome,
}

/// How a buffer came to be placed, or why it could not be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Bytes asked for.
    pub len: usize,
    /// Which way data flows.
    pub direction: Direction,
    /// The strategies in the order that they were considered.
    pub attempts: Vec<Attempt>,
}

impl Report {
    pub(super) fn new(request: &Request) -> Report {
        Report { len: request.len, direction: request.direction, attempts: Vec::new() }
    }

    /// The strategy that placed the buffer, with its figures.
    #[must_use]
    pub fn placed(&self) -> Option<(Strategy, usize, u64)> {
        self.attempts.iter().find_map(|attempt| match attempt.outcome {
            Outcome::Placed { segments, map_calls } => {
                Some((attempt.strategy, segments, map_calls))
            }
            _ => None,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.placed() {
            Some((strategy, segments, map_calls)) => write!(
                f,
                "{} bytes placed in {segments} segment{} with {map_calls} map call{}: {strategy}",
                self.len,
                plural(segments as u64),
                plural(map_calls)
            )?,
            None => write!(f, "no contiguous buffer of {} bytes could be placed", self.len)?,
        }
        for attempt in &self.attempts {
            if let Outcome::Failed(why) = &attempt.outcome {
                write!(f, "\n  {}: {why}", attempt.strategy)?;
            }
        }
        // Those that share a reason share a line.
        let mut skipped: Vec<(&str, Vec<String>)> = Vec::new();
        for attempt in &self.attempts {
            let Outcome::Skipped(why) = &attempt.outcome else { continue };
            let name = attempt.strategy.to_string();
            match skipped.iter_mut().find(|(reason, _)| reason == why) {
                Some((_, names)) => names.push(name),
                None => skipped.push((why, vec![name])),
            }
        }
        for (why, names) in skipped {
            write!(f, "\n  not tried: {}: {why}", names.join("; "))?;
        }
        Ok(())
    }
}

fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}

/// Places a buffer for a device: contiguous, from the largest pages that the buffer fills.
///
/// # Errors
///
/// [`DmaError::NoPlacement`] with the reason of every strategy when none succeeded.
pub fn place(
    space: &Arc<AddressSpace>,
    device: &Arc<dyn Backend>,
    request: &Request,
) -> Result<Buffer, DmaError> {
    if request.len == 0 {
        return Err(DmaError::Empty);
    }
    let mut report = Report::new(request);
    for page_size in PageSize::DESCENDING {
        let strategy = Strategy::IommuContiguous(page_size);
        if page_size != PageSize::Base && request.len < page_size.bytes() {
            let why = format!("{} bytes do not fill one page", request.len);
            report.attempts.push(Attempt { strategy, outcome: Outcome::Skipped(why) });
            continue;
        }
        let placed = Memory::allocate(request.len, page_size, space.needs_fd())
            .map_err(DmaError::from)
            .and_then(|memory| Buffer::map(space, device, memory, request));
        match placed {
            Ok(mut buffer) => {
                let outcome = Outcome::Placed { segments: buffer.segments().len(), map_calls: 1 };
                report.attempts.push(Attempt { strategy, outcome });
                buffer.set_report(report);
                return Ok(buffer);
            }
            Err(error) => {
                let outcome = Outcome::Failed(error.to_string());
                report.attempts.push(Attempt { strategy, outcome });
            }
        }
    }
    Err(DmaError::NoPlacement(report))
}
