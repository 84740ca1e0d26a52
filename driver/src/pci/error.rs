//! What can go wrong with configuration space.

use super::Remedy;

/// Why whatever holds configuration space refused an access, in its own words.
///
/// The type behind it is found with [`PciError::access`] or by downcasting.
pub type AccessError = Box<dyn std::error::Error + Send + Sync>;

/// The result of an operation on configuration space.
pub type Result<T> = std::result::Result<T, PciError>;

/// An operation on configuration space that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// Configuration space could not be reached.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// A configuration register does not keep what was written.
    #[error("{register} at {offset:#x}: wrote {wrote:#06x}, reads back {read:#06x}")]
    NotKept {
        /// The register.
        register: &'static str,
        /// Its offset in configuration space.
        offset: u16,
        /// The value written.
        wrote: u16,
        /// The value read back.
        read: u16,
    },
    /// Configuration space reads all ones: nothing answers at the address any more.
    #[error(
        "the device does not answer: its ids, command and status all read {value:#010x}\n  remedy: {}",
        Remedy::BringBack
    )]
    Gone {
        /// What offset 0 reads.
        value: u32,
    },
}

impl PciError {
    /// The error of the holder of configuration space, if it is an `E`.
    #[must_use]
    pub fn access<E: std::error::Error + 'static>(&self) -> Option<&E> {
        match self {
            PciError::Access(error) => error.downcast_ref(),
            _ => None,
        }
    }

    /// What the reader can do about it, where that is known.
    #[must_use]
    pub fn remedy(&self) -> Option<&Remedy> {
        matches!(self, PciError::Gone { .. }).then_some(&Remedy::BringBack)
    }
}
