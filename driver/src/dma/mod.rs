//! Memory that a device reads and writes.
//!
//! An [`AddressSpace`] is what one IOMMU (or model) translates; it hands out IOVAs and
//! counts what is mapped. A [`Buffer`] is memory placed in it: the processor sees one run
//! of bytes, the device a list of [`Segment`]s, one when the placement is contiguous. How
//! a buffer came to be is in its [`Report`].
//!
//! # Placement
//!
//! [`Allocator::allocate`] tries strategies in order; each succeeds or says why not
//! ([`Reason`]), and the buffer keeps what came of them ([`Report`]):
//!
//! | strategy | what it does |
//! |---|---|
//! | [`Strategy::Pool`] | takes from what [`Allocator::reserve`] put aside |
//! | [`Strategy::IommuContiguous`] | one IOVA range over pages of one size |
//! | [`Strategy::PhysicalContiguous`] | no IOMMU: pages that lie next to each other |
//! | [`Strategy::SmallerBlocks`] | as few and as large blocks as can be had |
//! | [`Strategy::Deferred`] | waits for memory to be freed, see also [`Buffer::promote`] |
//! | [`Strategy::ScatterGather`] | pages as they come, neighbours merged |
//!
//! On a machine with several NUMA nodes memory comes from the device's, unless the request says
//! otherwise ([`Node`]), and the report says where it is.
//!
//! Memory that the caller has already is mapped where it is: [`Allocator::adopt_file`],
//! [`Allocator::adopt`].
//!
//! # Without an IOMMU
//!
//! Where a device sees physical addresses, memory is locked (`mlock`). That promises that a
//! page stays in memory: it is not swapped out. It does **not** promise that the page stays
//! at its physical address: compaction (unless `/proc/sys/vm/compact_unevictable_allowed`
//! is 0), NUMA balancing and memory hot-unplug may migrate a locked page. Pages of the huge
//! page pools are not compacted. [`Buffer::has_moved`] tells whether that happened. Behind
//! an IOMMU none of this matters, as VFIO pins what it maps.
//!
//! # Who may touch a buffer
//!
//! A [`Buffer`] belongs to the processor. A driver's transfer takes it by value and gives
//! it back when the device is done with it, so that nothing can read, write, remap or
//! drop it meanwhile. A device is not trusted to keep to that: no Rust reference ever
//! points into a buffer, only volatile copies reach it.
//!
//! A buffer that a transfer uses is gone for its former owner, which the compiler checks:
//!
//! ```compile_fail,E0382
//! # use vfio_dma::devices::edu::Edu;
//! # use vfio_dma::dma::{Direction, Request};
//! # fn f(edu: &mut Edu) -> Result<(), Box<dyn std::error::Error>> {
//! let buffer = edu.allocate(&Request::new(4096, Direction::ToDevice))?;
//! let transfer = edu.write(buffer, 0, 0, 4096)?;
//! drop(buffer); // the transfer owns it
//! # drop(transfer);
//! # Ok(())
//! # }
//! ```
//!
//! ```
//! # use vfio_dma::devices::edu::Edu;
//! # use vfio_dma::dma::{Direction, Request};
//! # fn f(edu: &mut Edu) -> Result<(), Box<dyn std::error::Error>> {
//! let buffer = edu.allocate(&Request::new(4096, Direction::ToDevice))?;
//! let buffer = edu.write(buffer, 0, 0, 4096)?.wait()?;
//! drop(buffer); // given back by `wait`
//! # Ok(())
//! # }
//! ```

mod allocator;
mod buffer;
mod coherent;
mod direction;
mod error;
mod iova;
mod limits;
mod mapping;
mod memory;
mod pattern;
pub(crate) mod peer;
mod placement;
mod pool;
mod report;
mod request;
#[cfg(all(test, shuttle))]
mod schedules;
mod sg;
mod slots;
mod space;
#[cfg(test)]
mod testing;

pub use allocator::Allocator;
pub use buffer::Buffer;
pub(crate) use coherent::Unborrowed;
pub use coherent::{Coherent, Element, Elements, Shared};
pub use direction::Direction;
pub use error::DmaError;
pub use iova::{Iova, IovaAllocator, IovaError, Segment};
pub use limits::{DmaLimits, LimitExceeded, LimitsError};
pub use memory::{FrameError, Memory, MemoryAccessError, MemoryError, PageSize};
pub use pattern::{Mismatch, Pattern};
pub use peer::PeerMapping;
pub use placement::Reservation;
pub use pool::{Pool, PoolUsage};
pub use report::{Attempt, Cause, NodeReport, Outcome, Placement, Reason, Report, Strategy};
pub use request::{Node, Request};
pub use sg::{Piece, Pieces, SgError, SgList, SgTable, Walk};
pub(crate) use slots::SlotTable;
pub use slots::{Slot, SlotError, SlotPool, SlotPoolError, SlotPoolFailed};
pub(crate) use space::ReservedIova;
pub use space::{AddressSpace, Usage};
