//! Memory and where a device sees it, as one value.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use super::{AddressSpace, DmaError, Memory, Segment};
use crate::backend::{Backend, DmaAccess};

/// Memory that a device reaches: it is unmapped once, then freed, when this is dropped.
///
/// Memory that cannot be unmapped is never freed.
pub(super) struct Mapping {
    space: Arc<AddressSpace>,
    memory: ManuallyDrop<Memory>,
    /// IOVA ranges that the memory is mapped at, one after another from its start; none where
    /// the device sees physical addresses.
    runs: Vec<Segment>,
    map_calls: u64,
    /// A former range could not be unmapped: the memory is never freed.
    stays_mapped: bool,
    /// Handed out, and not released since.
    live: bool,
    /// Its addresses came back: told once the memory is free too.
    came_back: bool,
    /// Keeps the device's group in its container: the mapping lives no longer than that.
    owner: Arc<dyn Backend>,
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("memory", &*self.memory)
            .field("runs", &self.runs)
            .finish_non_exhaustive()
    }
}

impl Mapping {
    /// Maps `memory` at IOVA ranges that cover it from its start. The ranges are free again
    /// when that fails.
    pub(super) fn new(
        space: &Arc<AddressSpace>,
        owner: &Arc<dyn Backend>,
        memory: Memory,
        runs: Vec<Segment>,
        access: DmaAccess,
    ) -> Result<Mapping, DmaError> {
        let mut mapping = Mapping::physical(space, owner, memory);
        mapping.live = false;
        mapping.map(runs, access)?;
        mapping.live = true;
        Ok(mapping)
    }

    /// Memory that the device sees at its physical addresses.
    pub(super) fn physical(
        space: &Arc<AddressSpace>,
        owner: &Arc<dyn Backend>,
        memory: Memory,
    ) -> Mapping {
        Mapping {
            space: Arc::clone(space),
            memory: ManuallyDrop::new(memory),
            runs: Vec::new(),
            map_calls: 0,
            stays_mapped: false,
            live: true,
            came_back: false,
            owner: Arc::clone(owner),
        }
    }

    fn map(&mut self, runs: Vec<Segment>, access: DmaAccess) -> Result<(), DmaError> {
        // SAFETY: the memory is this value's own, and is freed only after unmapping
        // succeeded.
        let mapped = unsafe { self.space.map(&self.memory, &runs, access) };
        match mapped {
            Ok(map_calls) => {
                (self.runs, self.map_calls) = (runs, map_calls);
                Ok(())
            }
            Err(failed) => {
                self.stays_mapped |= failed.stays_mapped;
                Err(failed.error)
            }
        }
    }

    /// Maps the same memory at other IOVA ranges, then takes the former ones away. Nothing
    /// has changed when it fails.
    pub(super) fn remap(&mut self, runs: Vec<Segment>, access: DmaAccess) -> Result<(), DmaError> {
        let former = self.runs.clone();
        self.map(runs, access)?;
        if let Err(error) = self.space.unmap(&self.memory, &former) {
            log::error!("the memory stays allocated, a device may reach it: {error}");
            self.stays_mapped = true;
        }
        self.space.note_free();
        Ok(())
    }

    pub(super) fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    pub(super) fn owner(&self) -> &Arc<dyn Backend> {
        &self.owner
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Where the memory is mapped, from its start; none where the device sees physical
    /// addresses.
    pub(super) fn runs(&self) -> &[Segment] {
        &self.runs
    }

    /// Map calls that the present ranges took.
    pub(super) fn map_calls(&self) -> u64 {
        self.map_calls
    }

    /// Unmaps and frees, and says whether that worked.
    pub(super) fn release(mut self) -> Result<(), DmaError> {
        self.tear_down()
    }

    /// Unmaps and frees once; later calls do nothing.
    fn tear_down(&mut self) -> Result<(), DmaError> {
        if !std::mem::take(&mut self.live) {
            return Ok(());
        }
        let unmapped = self.space.unmap(&self.memory, &self.runs);
        self.stays_mapped |= unmapped.is_err();
        unmapped?;
        self.came_back = true;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Err(error) = self.tear_down() {
            log::error!("{error}");
        }
        if self.stays_mapped {
            // There may be thousands of ranges: the first one tells mappings apart.
            log::error!(
                "{} bytes in {} ranges, from IOVA {:#x} on, stay allocated, a device may still \
                 reach them",
                self.memory.len(),
                self.runs.len(),
                self.runs.first().map_or(0, |run| run.iova.0)
            );
        } else {
            // SAFETY: nothing is mapped any more, and this is the end of the value.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
        if self.came_back {
            self.space.note_free();
        }
    }
}
