//! One face for every device that copies from memory to memory.
//!
//! A program that keeps to [`CopyEngine`] is the same text for every engine, however the
//! device is reached and wherever its buffers were placed:
//!
//! ```no_run
//! use std::time::Duration;
//! use vfio_dma::devices::open_copy_engine;
//! use vfio_dma::dma::{Direction, Request};
//! use vfio_dma::session::Session;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Session::new().open("0000:00:05.0".parse()?)?;
//! let mut engine = open_copy_engine(device)?;
//! let mut source = engine.allocate(&Request::new(100_000, Direction::ToDevice))?;
//! let target = engine.allocate(&Request::new(100_000, Direction::FromDevice))?;
//! source.write(0, b"hello")?;
//! let (source, target) = engine.copy(source, target, Duration::from_secs(30))?;
//! # drop((source, target));
//! # Ok(())
//! # }
//! ```
//!
//! What only one engine has (several transfers in flight, interrupts, fills) is in its own
//! module.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Identity;
use crate::device::DeviceError;
use crate::dma::{AddressSpace, Buffer, Request, SgTable, Slot, SlotPool};
use crate::pci::PciError;
use crate::queue::SlotPair;

/// A copy, or the opening of an engine, that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The crate knows no copy engine with these ids.
    #[error("{location} is {identity}, which is not a copy engine that is known here")]
    NoEngine {
        /// The device.
        location: String,
        /// What it says of itself.
        identity: Identity,
    },
    /// The device did not answer.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// The engine's driver refused or failed, with an error of its own; see
    /// [`CopyError::of_engine`].
    #[error("{0}")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl CopyError {
    /// The error of an engine's driver.
    #[must_use]
    pub fn engine(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> CopyError {
        CopyError::Engine(error.into())
    }

    /// The error of an engine's driver, when it is of this type: such as `IoatError` when the
    /// driver of I/OAT refuses, and `TransferError` when a transfer did not end well.
    #[must_use]
    pub fn of_engine<E: std::error::Error + 'static>(&self) -> Option<&E> {
        match self {
            CopyError::Engine(error) => error.downcast_ref(),
            _ => None,
        }
    }
}

impl From<PciError> for CopyError {
    fn from(error: PciError) -> CopyError {
        DeviceError::from(error).into()
    }
}

/// A copy that failed, and its tables when the device is known not to use them.
pub struct CopyFailed {
    /// Why.
    pub error: Box<CopyError>,
    /// Source and target; `None` when the device could not be stopped. They then stay mapped
    /// and allocated until the process ends.
    pub tables: Option<(SgTable, SgTable)>,
}

impl fmt::Debug for CopyFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tables = self.tables.is_some();
        f.debug_struct("CopyFailed").field("error", &self.error).field("tables", &tables).finish()
    }
}

impl fmt::Display for CopyFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for CopyFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.error)
    }
}

/// A device that copies from memory to memory.
///
/// Implementors keep the tables until the device is done with them, or is known to reach
/// memory no more; a table that neither holds for is leaked, never dropped.
pub trait CopyEngine: fmt::Debug + Send {
    /// How a user names the device: an address such as `0000:00:05.0`, a socket's path, `model`.
    fn location(&self) -> &str;

    /// The address space that its buffers are mapped in.
    fn space(&self) -> &Arc<AddressSpace>;

    /// Places a buffer that the engine reaches.
    ///
    /// # Errors
    ///
    /// Says what was tried and why it failed.
    fn allocate(&self, request: &Request) -> Result<Buffer, CopyError>;

    /// Copies all of `source` to `target`, and returns both once every byte arrived. The
    /// lists may differ in shape, not in length.
    ///
    /// # Errors
    ///
    /// Refuses lists of different length, lists that overlap, and buffers of another address
    /// space or direction, before the device is told anything. Fails when the device does, or
    /// is not done within `limit`: it is stopped then, and part of the target may be written.
    fn copy_tables(
        &mut self,
        source: SgTable,
        target: SgTable,
        limit: Duration,
    ) -> Result<(SgTable, SgTable), CopyFailed>;

    /// The engine as one that copies between slots, where it can.
    fn slots(&mut self) -> Option<&mut dyn SlotEngine> {
        None
    }
}

/// A copy from slot to slot of pools.
#[derive(Debug, PartialEq, Eq)]
pub struct SlotCopy {
    /// The slot that is read, from its first byte on.
    pub source: Slot,
    /// The slot that is written, from its first byte on.
    pub target: Slot,
    /// Length in bytes.
    pub len: usize,
}

/// A copy from slot to slot that failed.
#[derive(Debug)]
pub struct SlotCopyFailed {
    /// Why.
    pub error: CopyError,
    /// The slots; `None` when the device could not be stopped. They do not come back then, and
    /// their pools stay mapped and allocated until the process ends.
    pub slots: Option<SlotPair>,
}

/// An engine that copies between slots of pools: many small copies, told together, which come
/// back in their order.
///
/// The calls are for a batch each. What costs least for one engine is in its own module.
pub trait SlotEngine {
    /// Takes as many copies from the front as there is room for, and tells the engine of them
    /// together; returns how many. The engine keeps the pools mapped from here on.
    ///
    /// # Errors
    ///
    /// Fails when the pools cannot be used with the engine, or it with them. A copy that is
    /// refused stays the first, and those before it are told.
    fn copy_slots(
        &mut self,
        source: &Arc<SlotPool>,
        target: &Arc<SlotPool>,
        copies: &mut VecDeque<SlotCopy>,
    ) -> Result<usize, CopyError>;

    /// Waits until something comes back, or nothing is in flight: appends the slots of copies
    /// that went well, in their order, and returns those that did not.
    ///
    /// # Errors
    ///
    /// Fails when nothing comes back within `limit`, and when the engine is lost: what is in
    /// flight then comes back as failed with the next call.
    fn reap_slots(
        &mut self,
        into: &mut Vec<SlotPair>,
        limit: Duration,
    ) -> Result<Vec<SlotCopyFailed>, CopyError>;
}

impl dyn CopyEngine + '_ {
    /// Copies all of `source`, a buffer or a table of several, to `target`; see
    /// [`CopyEngine::copy_tables`].
    ///
    /// # Errors
    ///
    /// As [`CopyEngine::copy_tables`].
    pub fn copy(
        &mut self,
        source: impl Into<SgTable>,
        target: impl Into<SgTable>,
        limit: Duration,
    ) -> Result<(SgTable, SgTable), CopyFailed> {
        self.copy_tables(source.into(), target.into(), limit)
    }
}
