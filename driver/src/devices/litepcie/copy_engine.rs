//! Channel 0 of a card as a copy engine, through its loopback.

use std::sync::Arc;
use std::time::Duration;

use super::error::{Failed, LitePcieError};
use super::{Config, LitePcie};
use crate::device::Device;
use crate::devices::{CopyEngine, CopyError, CopyFailed, PciDriver, ProbeFailed};
use crate::dma::{AddressSpace, Buffer, Request, SgTable};

impl From<LitePcieError> for CopyError {
    fn from(error: LitePcieError) -> CopyError {
        CopyError::engine(error)
    }
}

/// Opens a card as a copy engine.
pub(in crate::devices) fn open_copy_engine(
    device: Device,
) -> Result<Box<dyn CopyEngine>, ProbeFailed<CopyError>> {
    let card = LitePcie::probe(device, Config::default());
    Ok(Box::new(card.map_err(|failed| failed.map(CopyError::from))?))
}

impl CopyEngine for LitePcie {
    fn location(&self) -> &str {
        self.device.location()
    }

    fn space(&self) -> &Arc<AddressSpace> {
        self.device.space()
    }

    fn allocate(&self, request: &Request) -> Result<Buffer, CopyError> {
        Ok(LitePcie::allocate(self, request)?)
    }

    fn copy_tables(
        &mut self,
        source: SgTable,
        target: SgTable,
        limit: Duration,
    ) -> Result<(SgTable, SgTable), CopyFailed> {
        LitePcie::copy(self, 0, source, target, limit).map_err(|Failed { error, tables }| {
            CopyFailed { error: Box::new(error.into()), tables }
        })
    }
}
