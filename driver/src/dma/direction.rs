//! Which way data flows.

use std::fmt;

use crate::backend::DmaAccess;

/// Which way data flows through a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum Direction {
    /// From memory to the device: the device only reads.
    ToDevice,
    /// From the device to memory: the device only writes.
    FromDevice,
    /// Both.
    Bidirectional,
}

impl Direction {
    /// What the device may do with memory for this direction.
    #[must_use]
    pub fn access(self) -> DmaAccess {
        match self {
            Direction::ToDevice => DmaAccess::Read,
            Direction::FromDevice => DmaAccess::Write,
            Direction::Bidirectional => DmaAccess::ReadWrite,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::ToDevice => "to the device",
            Direction::FromDevice => "from the device",
            Direction::Bidirectional => "both ways",
        })
    }
}
