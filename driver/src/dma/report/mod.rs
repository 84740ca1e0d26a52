//! What came of each strategy.

mod reason;
mod size;
mod strategy;

use std::fmt;

use self::size::Size;
use super::Direction;

pub use reason::{Cause, Reason};
pub use strategy::{Placement, Strategy};

/// What came of a strategy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Outcome {
    /// The buffer is placed.
    Placed {
        /// Segments that the device sees.
        segments: usize,
        /// Map calls that it took.
        map_calls: u64,
        /// The strategy that placed it in the end, after [`Strategy::Deferred`] has waited.
        #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
        through: Option<Strategy>,
    },
    /// It was tried and failed, for this reason.
    Failed(Reason),
    /// It was not tried, for this reason.
    Skipped(Reason),
}

/// One strategy and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Attempt {
    /// What was tried.
    pub strategy: Strategy,
    /// How often: 0 when it was not tried, more than 1 when it was tried again.
    pub tries: u32,
    /// What came of it in the end.
    pub outcome: Outcome,
}

/// The NUMA nodes that a buffer is on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct NodeReport {
    /// The node that was wished for.
    pub wanted: u32,
    /// The nodes that the pages are on, and the bytes on each.
    pub found: Vec<(u32, u64)>,
}

impl fmt::Display for NodeReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [(node, _)] = self.found[..] {
            write!(f, "on NUMA node {node}")?;
            return if node == self.wanted { Ok(()) } else { write!(f, ", not {}", self.wanted) };
        }
        f.write_str("on NUMA nodes ")?;
        for (i, &(node, bytes)) in self.found.iter().enumerate() {
            write!(f, "{}{node} ({})", if i > 0 { ", " } else { "" }, Size(bytes))?;
        }
        write!(f, "; {} was wished for", self.wanted)
    }
}

/// How a buffer came to be placed, or why it could not be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Report {
    /// Bytes asked for.
    pub len: usize,
    /// Which way data flows.
    pub direction: Direction,
    /// The strategies in the order that they were considered.
    pub attempts: Vec<Attempt>,
    /// The NUMA nodes that the memory is on; `None` where there is one only, or none was wished
    /// for.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub node: Option<NodeReport>,
}

impl Report {
    pub(super) fn new(len: usize, direction: Direction) -> Report {
        Report { len, direction, attempts: Vec::new(), node: None }
    }

    /// The strategy that placed the buffer, with its segments and map calls.
    #[must_use]
    pub fn placed(&self) -> Option<(Strategy, usize, u64)> {
        self.attempts.iter().find_map(|attempt| match attempt.outcome {
            Outcome::Placed { segments, map_calls, .. } => {
                Some((attempt.strategy, segments, map_calls))
            }
            _ => None,
        })
    }

    /// Why a strategy did not place the buffer; `None` when it did, or was not reached.
    #[must_use]
    pub fn reason(&self, strategy: Strategy) -> Option<&Reason> {
        let attempt = self.attempts.iter().find(|attempt| attempt.strategy == strategy)?;
        match &attempt.outcome {
            Outcome::Failed(reason) | Outcome::Skipped(reason) => Some(reason),
            Outcome::Placed { .. } => None,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.attempts.iter().find(|a| matches!(a.outcome, Outcome::Placed { .. })) {
            Some(Attempt {
                strategy,
                tries,
                outcome: Outcome::Placed { segments, map_calls, through },
            }) => {
                write!(
                    f,
                    "{} placed in {segments} segment{} with {map_calls} map call{}: \
                     {strategy}",
                    Size(self.len as u64),
                    plural(*segments as u64),
                    plural(*map_calls)
                )?;
                if let Some(through) = through {
                    write!(f, ", then {through}")?;
                }
                write_tries(f, *tries)?;
                if let Some(node) = &self.node {
                    write!(f, ", {node}")?;
                }
            }
            _ => write!(f, "no buffer of {} could be placed", Size(self.len as u64))?,
        }
        for attempt in &self.attempts {
            if let Outcome::Failed(why) = &attempt.outcome {
                write!(f, "\n  {}", attempt.strategy)?;
                write_tries(f, attempt.tries)?;
                write!(f, ": {why}")?;
            }
        }
        // Those that share a reason share a line.
        let mut skipped: Vec<(String, Vec<String>)> = Vec::new();
        for attempt in &self.attempts {
            let Outcome::Skipped(why) = &attempt.outcome else { continue };
            let (why, name) = (why.to_string(), attempt.strategy.to_string());
            match skipped.iter_mut().find(|(reason, _)| *reason == why) {
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

fn write_tries(f: &mut fmt::Formatter<'_>, tries: u32) -> fmt::Result {
    if tries > 1 { write!(f, " ({tries} tries)") } else { Ok(()) }
}

fn plural(n: u64) -> &'static str {
    if n == 1 { "" } else { "s" }
}
