//! The right to write to a namespace.

use std::ops::Range;
use std::time::Duration;

use super::signature::{self, HEAD, TAIL};
use super::transfer::WhenFull;
use super::{IoQueue, Namespace, NvmeError};
use crate::dma::{Direction, Request};

/// Bytes read at a time when a drive is looked at.
const PART: u64 = 128 << 10;

/// What somebody says who wants a drive to be written: which one it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consent {
    serial: String,
    bytes: u64,
    blocks: Option<Range<u64>>,
    destroys_signatures: bool,
}

impl Consent {
    /// The drive with this serial number, and its namespace with this many bytes.
    #[must_use]
    pub fn new(serial: impl Into<String>, bytes: u64) -> Consent {
        Consent { serial: serial.into(), bytes, blocks: None, destroys_signatures: false }
    }

    /// Only these blocks.
    #[must_use]
    pub fn blocks(self, blocks: Range<u64>) -> Consent {
        Consent { blocks: Some(blocks), ..self }
    }

    /// Also when there is a partition table, a file system or the like on it.
    #[must_use]
    pub fn destroying_signatures(self) -> Consent {
        Consent { destroys_signatures: true, ..self }
    }
}

/// The right to write to blocks of a namespace; see [`IoQueue::writable`].
#[derive(Debug)]
pub struct Writable {
    pub(super) namespace: Namespace,
    blocks: Range<u64>,
}

impl Writable {
    /// The namespace that may be written.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The blocks that may be written.
    #[must_use]
    pub fn blocks(&self) -> Range<u64> {
        self.blocks.clone()
    }

    /// Refuses blocks that may not be written.
    pub(super) fn check(&self, lba: u64, blocks: u64) -> Result<(), NvmeError> {
        let Range { start: first, end } = self.blocks;
        if lba >= first && lba.checked_add(blocks).is_some_and(|last| last <= end) {
            return Ok(());
        }
        Err(NvmeError::NotWritable { lba, blocks, namespace: self.namespace.id, first, end })
    }
}

impl IoQueue {
    /// Gives the right to write to a namespace, to who names the drive's serial number and the
    /// namespace's size. The first and the last MiB are read before, to see whether there is
    /// data on it.
    ///
    /// # Errors
    ///
    /// Fails when another drive is named than this, the namespace is write protected or cannot
    /// be read, or when a signature of data is on it, unless the consent includes that.
    pub fn writable(
        &mut self,
        namespace: &Namespace,
        consent: &Consent,
        timeout: Duration,
    ) -> Result<Writable, NvmeError> {
        let location = self.controller.location.clone();
        let (serial, id) = (self.controller.info.serial.clone(), namespace.id);
        if namespace.controller != self.controller.instance {
            return Err(NvmeError::NoNamespace { location, namespace: id });
        }
        // An empty serial number tells no drive from another.
        if serial != consent.serial.trim() || serial.is_empty() {
            let named = consent.serial.clone();
            return Err(NvmeError::OtherSerial { location, serial, named });
        }
        if namespace.bytes() != consent.bytes {
            let (bytes, named) = (namespace.bytes(), consent.bytes);
            return Err(NvmeError::OtherSize { location, namespace: id, bytes, named });
        }
        if namespace.is_write_protected {
            return Err(NvmeError::WriteProtected { location, namespace: id });
        }
        namespace.check_format(&location)?;
        let all = 0..namespace.blocks;
        let blocks = consent.blocks.clone().unwrap_or(all.clone());
        if blocks.start > blocks.end || blocks.end > all.end {
            let (lba, count) = (blocks.start, blocks.end.saturating_sub(blocks.start));
            let size = namespace.blocks;
            return Err(NvmeError::OutOfRange { lba, blocks: count, namespace: id, size });
        }
        let size = namespace.bytes();
        let head = self.bytes_of(namespace, 0..HEAD.min(size), timeout)?;
        let tail = self.bytes_of(namespace, size - TAIL.min(size)..size, timeout)?;
        let found = signature::find(size, &head, &tail);
        if !found.is_empty() && !consent.destroys_signatures {
            return Err(NvmeError::HasData { location, namespace: id, found });
        }
        Ok(Writable { namespace: *namespace, blocks })
    }

    /// Reads bytes, at multiples of 4 KiB or of a block.
    fn bytes_of(
        &mut self,
        namespace: &Namespace,
        range: Range<u64>,
        timeout: Duration,
    ) -> Result<Vec<u8>, NvmeError> {
        let block = u64::from(namespace.block_size);
        let mut bytes = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let len = PART.min(range.end - at) as usize;
            let request = Request::new(len, Direction::FromDevice);
            let buffer = self.controller.allocator.allocate(&request)?;
            let when_full = WhenFull::Wait(timeout);
            let token = self.read(namespace, at / block, buffer.into(), when_full);
            let token = token.map_err(|refused| refused.error)?;
            let table = self.wait(token, timeout)?.into_table()?;
            let start = bytes.len();
            bytes.resize(start + len, 0);
            for buffer in table.buffers() {
                buffer.read(0, &mut bytes[start..])?;
            }
            at += len as u64;
        }
        Ok(bytes)
    }
}
