//! What a device model is to the outside: a PCI function.
//!
//! A transport (the vfio-user server, or the embedded backend) turns its messages into
//! calls of [`PciFunction`]; the function does the rest and never fails: like hardware,
//! it answers an illegal read with all ones and drops an illegal write.

use vfio_dma::backend::{IrqKind, Region};

use crate::memory::DmaMap;

pub use crate::event::Event;

/// A PCI function that a transport serves.
pub trait PciFunction: Send + Sync {
    /// Size of a region in bytes; 0 when it is not implemented.
    fn region_size(&self, region: Region) -> u64;

    /// Reads from a region. An access that the device does not allow reads all ones.
    fn read(&self, region: Region, offset: u64, data: &mut [u8]);

    /// Writes to a region. An access that the device does not allow is dropped.
    fn write(&self, region: Region, offset: u64, data: &[u8]);

    /// The number of vectors of this kind.
    fn irq_count(&self, kind: IrqKind) -> u32;

    /// Connects vectors `start..start + events.len()` to eventfds; `None` disconnects one.
    fn irq_connect(&self, kind: IrqKind, start: u32, events: &[Option<Event>]);

    /// Disconnects every vector of this kind.
    fn irq_disconnect(&self, kind: IrqKind);

    /// Masks or unmasks a vector; what is raised while masked is delivered on unmask.
    fn irq_set_masked(&self, kind: IrqKind, vector: u32, masked: bool);

    /// Signals a vector's eventfd as if the device had raised it (a loopback test).
    fn irq_trigger(&self, kind: IrqKind, vector: u32);

    /// Resets the function as a function-level reset does.
    fn reset(&self);

    /// The memory that the function's DMA reaches.
    fn memory(&self) -> &DmaMap;

    /// Whether the process that serves the function should end (an injected fault).
    fn wants_exit(&self) -> bool {
        false
    }
}
