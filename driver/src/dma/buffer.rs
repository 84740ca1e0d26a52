//! A buffer that a device reads or writes.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use vm_memory::VolatileSlice;

use crate::backend::{Backend, DmaAccess};

use super::{AddressSpace, DmaError, Iova, Memory, Report};

/// Which way data flows through a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
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

/// A run of a buffer that is contiguous for the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Segment {
    /// First device address.
    pub iova: Iova,
    /// Length in bytes.
    pub len: usize,
}

/// Memory that is mapped for a device and owned by the processor.
///
/// Dropping it unmaps it, then frees it. A driver that hands a buffer to a device keeps
/// it until the device is done or known to be quiet; when memory cannot be unmapped it is
/// never freed.
pub struct Buffer {
    space: Arc<AddressSpace>,
    memory: ManuallyDrop<Memory>,
    mapped: Segment,
    len: usize,
    direction: Direction,
    report: Report,
    /// Keeps the device's group in its container: the mapping lives no longer than that.
    _device: Arc<dyn Backend>,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("len", &self.len)
            .field("direction", &self.direction)
            .field("segments", &self.segments())
            .finish_non_exhaustive()
    }
}

impl Buffer {
    /// Maps `memory` contiguously; `len` bytes of it are the buffer.
    pub(super) fn map(
        space: &Arc<AddressSpace>,
        device: &Arc<dyn Backend>,
        memory: Memory,
        request: &super::Request,
    ) -> Result<Buffer, DmaError> {
        let granule = space.granule() as usize;
        // The memory has whole pages of at least the IOMMU's smallest size or the map fails.
        let mapped_len = request.len.next_multiple_of(granule).min(memory.len());
        let align = memory.page_size().bytes() as u64;
        // SAFETY: the buffer owns the memory and frees it only after unmapping succeeded.
        let iova = unsafe {
            let access = request.direction.access();
            space.map(&memory, mapped_len, access, &request.constraints, align)
        }?;
        Ok(Buffer {
            space: Arc::clone(space),
            memory: ManuallyDrop::new(memory),
            mapped: Segment { iova, len: mapped_len },
            len: request.len,
            direction: request.direction,
            report: Report::new(request),
            _device: Arc::clone(device),
        })
    }

    pub(super) fn set_report(&mut self, report: Report) {
        self.report = report;
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a buffer has at least one byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Which way data may flow.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// How the buffer came to be placed where it is.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The address space it is mapped in.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// What the device sees, in the order of the bytes; one segment when contiguous.
    #[must_use]
    pub fn segments(&self) -> Vec<Segment> {
        vec![Segment { iova: self.mapped.iova, len: self.len }]
    }

    /// What the device sees of `len` bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the buffer.
    pub fn segments_of(&self, offset: usize, len: usize) -> Result<Vec<Segment>, DmaError> {
        self.check(offset, len)?;
        Ok(if len == 0 {
            Vec::new()
        } else {
            vec![Segment { iova: Iova(self.mapped.iova.0 + offset as u64), len }]
        })
    }

    /// Copies bytes out of the buffer.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the buffer.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> Result<(), DmaError> {
        self.slice(offset, into.len())?.copy_to(into);
        Ok(())
    }

    /// Copies bytes into the buffer.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside the buffer.
    pub fn write(&mut self, offset: usize, from: &[u8]) -> Result<(), DmaError> {
        self.slice(offset, from.len())?.copy_from(from);
        Ok(())
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), DmaError> {
        if offset.checked_add(len).is_some_and(|end| end <= self.len) {
            Ok(())
        } else {
            Err(DmaError::OutOfBounds { offset, len, size: self.len })
        }
    }

    /// The memory of a range, for volatile access.
    pub(crate) fn slice(&self, offset: usize, len: usize) -> Result<VolatileSlice<'_>, DmaError> {
        self.check(offset, len)?;
        self.memory.as_volatile_slice().subslice(offset, len).map_err(|_| DmaError::OutOfBounds {
            offset,
            len,
            size: self.len,
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match self.space.unmap(self.mapped.iova, self.mapped.len) {
            // SAFETY: the memory is not used again after this.
            Ok(()) => unsafe { ManuallyDrop::drop(&mut self.memory) },
            Err(error) => log::error!(
                "{} bytes at IOVA {} stay allocated, a device may still reach them: {error}",
                self.mapped.len,
                self.mapped.iova
            ),
        }
    }
}
