//! How much a reset resets.

use std::fmt;

/// How much is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResetScope {
    /// The function alone.
    Function,
    /// All functions of its slot, whose power is switched off and on.
    Slot,
    /// All functions below the bridge above it.
    Bus,
}

impl fmt::Display for ResetScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ResetScope::Function => "function",
            ResetScope::Slot => "slot",
            ResetScope::Bus => "bus",
        })
    }
}
