//! The part of a device that a BAR is made of.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::{Backend, MappedRegion, Region, RegionInfo, Result};

/// Regions of a device: those of an opened one, or those that sysfs shows.
///
/// The contracts are those of [`Backend`]'s methods.
pub(crate) trait Regions: Send + Sync + fmt::Debug {
    /// As [`Backend::region_info`].
    fn info(&self, region: Region) -> Result<RegionInfo>;
    /// As [`Backend::region_read`].
    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> Result<()>;
    /// As [`Backend::region_write`].
    fn write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()>;
    /// As [`Backend::map_region`].
    fn map(&self, region: Region, area: Range<u64>) -> Result<Box<dyn MappedRegion>>;
}

impl Regions for Arc<dyn Backend> {
    fn info(&self, region: Region) -> Result<RegionInfo> {
        self.region_info(region)
    }

    fn read(&self, region: Region, offset: u64, data: &mut [u8]) -> Result<()> {
        self.region_read(region, offset, data)
    }

    fn write(&self, region: Region, offset: u64, data: &[u8]) -> Result<()> {
        self.region_write(region, offset, data)
    }

    fn map(&self, region: Region, area: Range<u64>) -> Result<Box<dyn MappedRegion>> {
        self.map_region(region, area)
    }
}
