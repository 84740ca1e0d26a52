//! How much is measured unless asked for otherwise: sizes, segments, batches, rounds, time.

use std::fmt;
use std::time::Duration;

/// How much is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// A few sizes, in less than 30 seconds
    Quick,
    /// All sizes from 64 bytes to 64 MiB
    Full,
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Profile::Quick => "quick",
            Profile::Full => "full",
        })
    }
}

impl Profile {
    /// Rounds, unless asked for otherwise.
    #[must_use]
    pub fn rounds(self) -> u32 {
        match self {
            Profile::Quick => 10,
            Profile::Full => 20,
        }
    }

    /// How long it may take in all.
    #[must_use]
    pub fn budget(self) -> Duration {
        match self {
            Profile::Quick => Duration::from_secs(22),
            Profile::Full => Duration::from_secs(900),
        }
    }

    pub(super) fn sizes(self) -> Vec<u64> {
        match self {
            Profile::Quick => vec![4 << 10, 64 << 10, 1 << 20, 16 << 20],
            Profile::Full => (3..=13).map(|n| 1 << (2 * n)).collect(),
        }
    }

    pub(super) fn segments(self) -> Vec<u64> {
        match self {
            Profile::Quick => {
                vec![256, 1 << 10, 4 << 10, 8 << 10, 16 << 10, 64 << 10, 256 << 10]
            }
            Profile::Full => {
                let mut segments: Vec<u64> = (3..=10).map(|n| 1 << (2 * n)).collect();
                segments.extend([8 << 10, 32 << 10, 2 << 20]);
                segments.sort_unstable();
                segments
            }
        }
    }

    pub(super) fn batches(self) -> Vec<u32> {
        match self {
            Profile::Quick => vec![1, 16, 128, 1024],
            Profile::Full => (0..=10).map(|n| 1 << n).collect(),
        }
    }

    pub(super) fn batch_sizes(self) -> &'static [u64] {
        match self {
            Profile::Quick => &[64],
            Profile::Full => &[64, 4 << 10],
        }
    }

    pub(super) fn channel_sizes(self) -> &'static [u64] {
        match self {
            Profile::Quick => &[64 << 10],
            Profile::Full => &[4 << 10, 64 << 10, 1 << 20],
        }
    }

    pub(super) fn slot_sizes(self) -> &'static [u64] {
        match self {
            Profile::Quick => &[64, 1 << 10, 4 << 10, 16 << 10],
            Profile::Full => &[64, 128, 256, 512, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 16 << 10],
        }
    }

    pub(super) fn latency_sizes(self) -> &'static [u64] {
        match self {
            Profile::Quick => &[64, 4 << 10, 64 << 10],
            Profile::Full => &[64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10],
        }
    }
}
