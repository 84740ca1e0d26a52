//! What configuration space is read from and written to.

use std::cell::Cell;
use std::sync::Arc;

use super::AccessError;

/// Anything that configuration space can be read from: bytes at an offset, little endian.
pub trait ConfigAccess {
    /// Size in bytes: 256, or 4096 for PCI Express.
    ///
    /// # Errors
    ///
    /// Fails when the holder cannot tell.
    fn size(&self) -> Result<u64, AccessError>;

    /// Reads `data.len()` bytes at `offset`.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside configuration space or the access fails.
    fn read(&self, offset: u16, data: &mut [u8]) -> Result<(), AccessError>;
}

/// Configuration space that can be written too.
pub trait ConfigWrite: ConfigAccess {
    /// Writes `data` at `offset`.
    ///
    /// # Errors
    ///
    /// Fails when the range is not inside configuration space or the access fails.
    fn write(&self, offset: u16, data: &[u8]) -> Result<(), AccessError>;
}

/// An access that does not lie inside a copy of configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "configuration space: access of {len} bytes at {offset:#x} is outside of its {size:#x} bytes"
)]
pub struct OutOfBounds {
    /// Byte offset of the access.
    pub offset: u16,
    /// Length of the access in bytes.
    pub len: usize,
    /// Size of the copy in bytes.
    pub size: u64,
}

impl<A: ConfigAccess + ?Sized> ConfigAccess for &A {
    fn size(&self) -> Result<u64, AccessError> {
        (**self).size()
    }

    fn read(&self, offset: u16, data: &mut [u8]) -> Result<(), AccessError> {
        (**self).read(offset, data)
    }
}

impl<A: ConfigWrite + ?Sized> ConfigWrite for &A {
    fn write(&self, offset: u16, data: &[u8]) -> Result<(), AccessError> {
        (**self).write(offset, data)
    }
}

impl<A: ConfigAccess + ?Sized> ConfigAccess for Arc<A> {
    fn size(&self) -> Result<u64, AccessError> {
        (**self).size()
    }

    fn read(&self, offset: u16, data: &mut [u8]) -> Result<(), AccessError> {
        (**self).read(offset, data)
    }
}

impl<A: ConfigWrite + ?Sized> ConfigWrite for Arc<A> {
    fn write(&self, offset: u16, data: &[u8]) -> Result<(), AccessError> {
        (**self).write(offset, data)
    }
}

/// A copy of configuration space, or of its beginning, in memory, to look at.
impl ConfigAccess for [u8] {
    fn size(&self) -> Result<u64, AccessError> {
        Ok(self.len() as u64)
    }

    fn read(&self, offset: u16, data: &mut [u8]) -> Result<(), AccessError> {
        data.copy_from_slice(range_of(self, offset, data.len())?);
        Ok(())
    }
}

/// A copy of configuration space, or of its beginning, in memory; every byte is writable.
impl ConfigAccess for [Cell<u8>] {
    fn size(&self) -> Result<u64, AccessError> {
        Ok(self.len() as u64)
    }

    fn read(&self, offset: u16, data: &mut [u8]) -> Result<(), AccessError> {
        let range = range_of(self, offset, data.len())?;
        for (to, from) in data.iter_mut().zip(range) {
            *to = from.get();
        }
        Ok(())
    }
}

impl ConfigWrite for [Cell<u8>] {
    fn write(&self, offset: u16, data: &[u8]) -> Result<(), AccessError> {
        for (from, to) in data.iter().zip(range_of(self, offset, data.len())?) {
            to.set(*from);
        }
        Ok(())
    }
}

fn range_of<T>(space: &[T], offset: u16, len: usize) -> Result<&[T], OutOfBounds> {
    let start = usize::from(offset);
    start.checked_add(len).and_then(|end| space.get(start..end)).ok_or(OutOfBounds {
        offset,
        len,
        size: space.len() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::ConfigSpace;

    #[test]
    fn accesses_outside_are_refused() {
        let mut bytes = [0; 64];
        let config = ConfigSpace::new(Cell::from_mut(&mut bytes[..]).as_slice_of_cells());
        config.read_u32(60).unwrap();
        for offset in [61, 64, u16::MAX] {
            let error = config.read_u32(offset).unwrap_err();
            assert_eq!(error.access(), Some(&OutOfBounds { offset, len: 4, size: 64 }));
            assert!(config.write_u32(offset, 0).is_err());
        }
    }
}
