//! edu as a copy engine: every byte goes through the device's own buffer.

use std::sync::Arc;
use std::time::Duration;

use super::{Edu, EduError, Failed};
use crate::devices::{CopyEngine, CopyError, CopyFailed};
use crate::dma::{AddressSpace, Buffer, Request, SgTable};

impl From<EduError> for CopyError {
    fn from(error: EduError) -> CopyError {
        CopyError::engine(error)
    }
}

fn failed(failed: Failed<(SgTable, SgTable)>) -> CopyFailed {
    let Failed { error, buffers } = failed;
    CopyFailed { error: Box::new(error.into()), tables: buffers.map(|tables| *tables) }
}

impl CopyEngine for Edu {
    fn location(&self) -> &str {
        self.device.location()
    }

    fn space(&self) -> &Arc<AddressSpace> {
        self.device.space()
    }

    fn allocate(&self, request: &Request) -> Result<Buffer, CopyError> {
        Ok(Edu::allocate(self, request)?)
    }

    fn copy_tables(
        &mut self,
        source: SgTable,
        target: SgTable,
        limit: Duration,
    ) -> Result<(SgTable, SgTable), CopyFailed> {
        Edu::copy_tables(self, source, target).map_err(failed)?.wait_within(limit).map_err(failed)
    }
}
