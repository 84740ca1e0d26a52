//! Registers whose place and width are known at run time only.

use super::{Bar, MmioError, Result};
use crate::registers::Register;

impl Bar {
    /// Reads a register, as one access of its width.
    ///
    /// # Errors
    ///
    /// As [`Bar::read`], and for a width other than 1, 2, 4 or 8 bytes.
    pub fn read_register(&self, register: &Register) -> Result<u64> {
        let at = register.offset;
        Ok(match register.width {
            1 => self.read::<u8>(at)?.into(),
            2 => self.read::<u16>(at)?.into(),
            4 => self.read::<u32>(at)?.into(),
            8 => self.read(at)?,
            _ => return Err(self.no_access(register)),
        })
    }

    /// Writes a register, as one access of its width; bits of `value` above it are not written.
    ///
    /// # Errors
    ///
    /// As [`Bar::write`], and for a width other than 1, 2, 4 or 8 bytes.
    pub fn write_register(&self, register: &Register, value: u64) -> Result<()> {
        let at = register.offset;
        match register.width {
            1 => self.write(at, value as u8),
            2 => self.write(at, value as u16),
            4 => self.write(at, value as u32),
            8 => self.write(at, value),
            _ => Err(self.no_access(register)),
        }
    }

    fn no_access(&self, register: &Register) -> MmioError {
        MmioError::Width { region: self.region, offset: register.offset, width: register.width }
    }
}
