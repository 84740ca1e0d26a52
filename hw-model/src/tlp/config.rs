//! How a function with a transaction layer is set up.

use super::error::EndpointError;
use super::root::RootConfig;
use crate::pci::{ConfigSpace, Header, capability};
use crate::regs::LayoutError;

/// Where the PCI Express capability is.
pub(super) const EXPRESS: u32 = 0x60;

/// How a function with a transaction layer is set up.
#[derive(Debug, Clone)]
pub struct TlpConfig {
    /// What identifies it.
    pub header: Header,
    /// Size of BAR0 in bytes, a power of two of at least 16: 32-bit memory.
    pub bar0: u32,
    /// Vectors of MSI: 1, 2, 4, 8, 16 or 32.
    pub vectors: u8,
    /// Max_Payload_Size in bytes, supported and set at first.
    pub max_payload: u16,
    /// How the root complex answers.
    pub root: RootConfig,
    /// Cycles without a packet after which the clock stops.
    pub quiet: u32,
    /// Cycles that a read of a register may take.
    pub register_timeout: u32,
}

impl TlpConfig {
    /// A function that is identified so, with 64 KiB of BAR0, one vector and 256 bytes of
    /// payload.
    #[must_use]
    pub fn new(header: Header) -> TlpConfig {
        TlpConfig {
            header,
            bar0: 64 << 10,
            vectors: 1,
            max_payload: 256,
            root: RootConfig::default(),
            quiet: 256,
            register_timeout: 20_000,
        }
    }
}

/// A function that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlpError {
    /// A size is none that PCI has.
    #[error("{what} is {value}; it must be {allowed}")]
    Value {
        /// What it is.
        what: &'static str,
        /// Its value.
        value: u64,
        /// What is possible.
        allowed: &'static str,
    },
    /// The table of configuration space contradicts itself.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The simulation failed.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The thread cannot be started.
    #[error(
        "starting the thread of the clock: {0}\n  remedy: raise the limit of processes (ulimit -u)"
    )]
    Thread(std::io::Error),
}

impl TlpConfig {
    /// Whether all is in its range.
    ///
    /// # Errors
    ///
    /// [`TlpError::Value`] for the first that is not.
    pub fn check(&self) -> Result<(), TlpError> {
        let power = |value: u64, least: u64, most: u64| {
            value.is_power_of_two() && (least..=most).contains(&value)
        };
        let root = &self.root;
        let boundary = u64::from(root.read_completion_boundary);
        let longest = u64::from(root.longest_completion);
        let checks = [
            (
                "the size of BAR0",
                self.bar0.into(),
                power(self.bar0.into(), 16, 1 << 30),
                "a power of two from 16 to 2^30",
            ),
            (
                "the number of vectors",
                self.vectors.into(),
                power(self.vectors.into(), 1, 32),
                "a power of two from 1 to 32",
            ),
            (
                "the maximum payload",
                self.max_payload.into(),
                power(self.max_payload.into(), 128, 4096),
                "a power of two from 128 to 4096",
            ),
            (
                "the read completion boundary",
                boundary,
                boundary == 64 || boundary == 128,
                "64 or 128",
            ),
            (
                "the longest completion",
                longest,
                longest != 0 && longest <= 4096 && longest.is_multiple_of(boundary.max(1)),
                "a multiple of the read completion boundary up to 4096",
            ),
        ];
        match checks.into_iter().find(|&(_, _, good, _)| !good) {
            Some((what, value, _, allowed)) => Err(TlpError::Value { what, value, allowed }),
            None => Ok(()),
        }
    }

    pub(super) fn config_space(&self) -> Result<ConfigSpace, LayoutError> {
        ConfigSpace::builder(self.header)
            .memory_bar32(0, self.bar0)
            .capability(capability::power_management(0x40))
            .capability(capability::msi_vectors(0x48, self.vectors))
            .capability(capability::express_with_payload(
                EXPRESS,
                self.max_payload,
                self.max_payload,
            ))
            .extended_capability(capability::advanced_error_reporting(0x100))
            .build()
    }
}
