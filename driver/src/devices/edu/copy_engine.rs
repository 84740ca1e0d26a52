//! edu as a copy engine: every byte goes through the device's own buffer.

use std::sync::Arc;
use std::time::Duration;

use super::{Edu, Failed};
use crate::device::Device;
use crate::devices::{CopyEngine, CopyError, CopyFailed};
use crate::dma::{Buffer, Request, SgTable};

fn failed(failed: Failed<(SgTable, SgTable)>) -> CopyFailed {
    let Failed { error, buffers } = failed;
    CopyFailed { error: Box::new(error.into()), tables: buffers.map(|tables| *tables) }
}

impl CopyEngine for Edu {
    fn device(&self) -> &Arc<Device> {
        Edu::device(self)
    }

    fn place(&self, request: Request) -> Result<Buffer, CopyError> {
        Ok(Edu::place(self, request)?)
    }

    fn copy(
        &mut self,
        source: SgTable,
        target: SgTable,
        limit: Duration,
    ) -> Result<(SgTable, SgTable), CopyFailed> {
        self.copy_tables(source, target).map_err(failed)?.wait_within(limit).map_err(failed)
    }
}
