//! A function's configuration space, through its backend.

use crate::backend::{Backend, BackendError, Region};
use crate::pci::capability::{self, Capability, PciExpress};
use crate::pci::registers::{COMMAND, COMMAND_BUS_MASTER, DEVICE_ID, VENDOR_ID};

/// An operation on configuration space that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The vendor id reads all ones: nothing answers.
    #[error("{location}: configuration space reads all ones: the device is gone")]
    Gone {
        /// The device.
        location: String,
    },
    /// The command register does not take bus mastering.
    #[error(
        "{location}: bus mastering was set to {wanted} in the command register, which reads \
         {command:#06x}"
    )]
    BusMaster {
        /// The device.
        location: String,
        /// What was written.
        wanted: bool,
        /// What the register reads.
        command: u16,
    },
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

type Result<T> = std::result::Result<T, ConfigError>;

/// A function's configuration space.
#[derive(Debug, Clone, Copy)]
pub struct ConfigSpace<'a> {
    backend: &'a dyn Backend,
}

impl<'a> ConfigSpace<'a> {
    /// The configuration space of a device.
    #[must_use]
    pub fn new(backend: &'a dyn Backend) -> ConfigSpace<'a> {
        ConfigSpace { backend }
    }

    /// Reads bytes.
    ///
    /// # Errors
    ///
    /// Fails when the range is outside of configuration space, or the backend refuses.
    pub fn read(&self, offset: u16, data: &mut [u8]) -> Result<()> {
        Ok(self.backend.region_read(Region::Config, offset.into(), data)?)
    }

    /// Reads 8 bits.
    ///
    /// # Errors
    ///
    /// As [`ConfigSpace::read`].
    pub fn read_u8(&self, offset: u16) -> Result<u8> {
        let mut bytes = [0; 1];
        self.read(offset, &mut bytes)?;
        Ok(bytes[0])
    }

    /// Reads 16 bits.
    ///
    /// # Errors
    ///
    /// As [`ConfigSpace::read`].
    pub fn read_u16(&self, offset: u16) -> Result<u16> {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// Reads 32 bits.
    ///
    /// # Errors
    ///
    /// As [`ConfigSpace::read`].
    pub fn read_u32(&self, offset: u16) -> Result<u32> {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Writes 16 bits.
    ///
    /// # Errors
    ///
    /// Fails when the range is outside of configuration space, or the backend refuses.
    pub fn write_u16(&self, offset: u16, value: u16) -> Result<()> {
        Ok(self.backend.region_write(Region::Config, offset.into(), &value.to_le_bytes())?)
    }

    /// Writes 32 bits.
    ///
    /// # Errors
    ///
    /// As [`ConfigSpace::write_u16`].
    pub fn write_u32(&self, offset: u16, value: u32) -> Result<()> {
        Ok(self.backend.region_write(Region::Config, offset.into(), &value.to_le_bytes())?)
    }

    /// Vendor and device id.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Gone`] when nothing answers.
    pub fn ids(&self) -> Result<(u16, u16)> {
        let vendor = self.read_u16(VENDOR_ID)?;
        if vendor == u16::MAX {
            return Err(ConfigError::Gone { location: self.backend.location() });
        }
        Ok((vendor, self.read_u16(DEVICE_ID)?))
    }

    /// Whether the function may start DMA.
    ///
    /// # Errors
    ///
    /// Fails when the backend refuses.
    pub fn bus_master(&self) -> Result<bool> {
        Ok(self.read_u16(COMMAND)? & COMMAND_BUS_MASTER != 0)
    }

    /// Gives the function the right to start DMA, or takes it away, and reads it back.
    ///
    /// # Errors
    ///
    /// Fails when nothing answers, or the register does not take the bit.
    pub fn set_bus_master(&self, on: bool) -> Result<()> {
        self.ids()?;
        let command = self.read_u16(COMMAND)?;
        let wanted = if on { command | COMMAND_BUS_MASTER } else { command & !COMMAND_BUS_MASTER };
        if wanted != command {
            self.write_u16(COMMAND, wanted)?;
        }
        let command = self.read_u16(COMMAND)?;
        if (command & COMMAND_BUS_MASTER != 0) == on {
            Ok(())
        } else {
            let location = self.backend.location();
            Err(ConfigError::BusMaster { location, wanted: on, command })
        }
    }

    /// The capabilities, in the order of the function's lists: first the standard, then
    /// the extended ones.
    ///
    /// # Errors
    ///
    /// Fails when the backend refuses. A list that loops or leaves configuration space
    /// ends there.
    pub fn capabilities(&self) -> Result<Vec<Capability>> {
        let size = self.backend.region_info(Region::Config)?.size.min(4096);
        let mut bytes = vec![0; size as usize];
        // Word by word: a function may answer wider reads of unimplemented space with an error.
        for (at, word) in (0..).step_by(4).zip(bytes.chunks_exact_mut(4)) {
            self.read(at, word)?;
        }
        Ok(capability::walk(&bytes))
    }

    /// Whether transactions that the function started are pending (PCI Express Base 4.0,
    /// 7.5.3.5); `None` for a function without the capability, which has no such bit.
    ///
    /// # Errors
    ///
    /// Fails when the backend refuses.
    pub fn transactions_pending(&self) -> Result<Option<bool>> {
        for capability in self.capabilities()? {
            if let Capability::PciExpress(PciExpress { offset, .. }) = capability {
                let status = self.read_u16(offset + capability::EXPRESS_DEVICE_STATUS)?;
                return Ok(Some(status & capability::EXPRESS_TRANSACTIONS_PENDING != 0));
            }
        }
        Ok(None)
    }
}
