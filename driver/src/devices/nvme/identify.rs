//! What a controller and its namespaces say of themselves (NVM Express Base 1.4, 5.15.2).

use super::{CopyLimits, NvmeError};

/// Bytes of an identify data structure.
pub(super) const LEN: usize = 4096;

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at + 2)) << 16 | u32::from(u16_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at + 4)) << 32 | u64::from(u32_at(bytes, at))
}

/// Text of a fixed length, padded with spaces; what is not printable ASCII becomes `?`.
fn text(bytes: &[u8]) -> String {
    let printable = |&byte: &u8| if (0x20..0x7f).contains(&byte) { byte.into() } else { '?' };
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    bytes[..end].iter().map(printable).collect::<String>().trim().to_string()
}

/// What a controller can do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct ControllerInfo {
    /// Serial number, without the padding.
    pub serial: String,
    /// Model number, without the padding.
    pub model: String,
    /// Firmware revision, without the padding.
    pub firmware: String,
    /// Version of the specification: major, minor, tertiary.
    pub version: (u16, u8, u8),
    /// The most bytes of a command's data; `None` for no limit. MDTS is the log2 of it in
    /// units of the smallest page.
    pub max_transfer: Option<u64>,
    /// The number of namespaces: NN.
    pub namespaces: u32,
    /// Abort commands that may be outstanding: ACL, plus 1.
    pub abort_limit: u32,
    /// Asynchronous event requests that may be outstanding: AERL, plus 1.
    pub event_limit: u32,
    /// Entries of the error log: ELPE, plus 1.
    pub error_log_entries: u32,
    /// Optional commands: ONCS.
    pub optional_commands: u16,
    /// Formats of the copy command's source ranges: OCFS, a bit each.
    pub copy_formats: u16,
    /// Which SGLs are taken: SGLS, 0 for none.
    pub sgls: u32,
    /// Whether it has a volatile write cache.
    pub has_write_cache: bool,
    /// Shadow doorbells are offered (OACS bit 8).
    pub has_shadow_doorbells: bool,
    /// The longest that a normal shutdown takes, in microseconds: RTD3E, 0 when not told.
    pub shutdown_latency: u32,
}

impl ControllerInfo {
    pub(super) fn parse(bytes: &[u8; LEN], min_page: u64) -> ControllerInfo {
        let version = u32_at(bytes, 80);
        let mdts = bytes[77];
        ControllerInfo {
            serial: text(&bytes[4..24]),
            model: text(&bytes[24..64]),
            firmware: text(&bytes[64..72]),
            version: ((version >> 16) as u16, (version >> 8) as u8, version as u8),
            max_transfer: match mdts {
                0 => None,
                mdts => Some(min_page.checked_shl(mdts.into()).unwrap_or(u64::MAX)),
            },
            namespaces: u32_at(bytes, 516),
            abort_limit: u32::from(bytes[258]) + 1,
            event_limit: u32::from(bytes[259]) + 1,
            error_log_entries: u32::from(bytes[262]) + 1,
            optional_commands: u16_at(bytes, 520),
            copy_formats: u16_at(bytes, 534),
            sgls: u32_at(bytes, 536),
            has_write_cache: bytes[525] & 1 != 0,
            has_shadow_doorbells: u16_at(bytes, 256) & 1 << 8 != 0,
            shutdown_latency: u32_at(bytes, 88),
        }
    }

    /// Whether data may be described by SGLs: SGLS, bits 1:0.
    #[must_use]
    pub fn takes_sgl(&self) -> bool {
        matches!(self.sgls & 3, 1 | 2)
    }

    /// Whether every address and length in an SGL is a multiple of 4 bytes: SGLS, bits 1:0.
    #[must_use]
    pub fn sgl_is_dword_aligned(&self) -> bool {
        self.sgls & 3 == 2
    }

    /// Whether the compare command is offered: ONCS, bit 0.
    #[must_use]
    pub fn can_compare(&self) -> bool {
        self.optional_commands & 1 != 0
    }

    /// Whether blocks can be deallocated: ONCS, bit 2.
    #[must_use]
    pub fn can_deallocate(&self) -> bool {
        self.optional_commands & 1 << 2 != 0
    }

    /// Whether the write zeroes command is offered: ONCS, bit 3.
    #[must_use]
    pub fn can_write_zeroes(&self) -> bool {
        self.optional_commands & 1 << 3 != 0
    }

    /// Whether the verify command is offered: ONCS, bit 7.
    #[must_use]
    pub fn can_verify(&self) -> bool {
        self.optional_commands & 1 << 7 != 0
    }

    /// Whether the copy command is offered, with source ranges of format 0: ONCS, bit 8, and
    /// OCFS, bit 0. Each namespace has limits of its own.
    #[must_use]
    pub fn can_copy(&self) -> bool {
        self.optional_commands & 1 << 8 != 0 && self.copy_formats & 1 != 0
    }
}

/// A namespace of a controller: a drive, or a part of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Namespace {
    pub(super) id: u32,
    pub(super) blocks: u64,
    pub(super) block_size: u32,
    metadata: u16,
    protection: u8,
    pub(super) is_write_protected: bool,
    pub(super) copy_limits: CopyLimits,
    /// Which controller it is of, in this process.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) controller: u64,
}

impl Namespace {
    pub(super) fn parse(id: u32, controller: u64, bytes: &[u8; LEN]) -> Option<Namespace> {
        let blocks = u64_at(bytes, 0);
        // An inactive namespace is all zeros.
        if blocks == 0 {
            return None;
        }
        let flbas = bytes[26];
        // Bits 6:5 hold the upper bits of the index where there are more than 16 formats.
        let format = usize::from(flbas & 0xf | (flbas & 0x60) >> 1);
        let lbaf = u32_at(bytes, 128 + 4 * format);
        Some(Namespace {
            id,
            blocks,
            block_size: 1u32.checked_shl(lbaf >> 16 & 0xff).unwrap_or(0),
            metadata: lbaf as u16,
            protection: bytes[29] & 7,
            is_write_protected: bytes[99] & 1 != 0,
            copy_limits: CopyLimits {
                range_blocks: u16_at(bytes, 74),
                command_blocks: u32_at(bytes, 76),
                ranges: u16::from(bytes[80]) + 1,
            },
            controller,
        })
    }

    /// Its number, from 1 on.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its size in blocks: NSZE.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes of a block; 0 when it says no number that a block can have.
    #[must_use]
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Bytes of metadata of each block. A namespace that has any is not driven.
    #[must_use]
    pub fn metadata(&self) -> u16 {
        self.metadata
    }

    /// The type of its protection information, 0 for none: DPS, bits 2:0. A namespace that has
    /// any is not driven.
    #[must_use]
    pub fn protection(&self) -> u8 {
        self.protection
    }

    /// Whether it was write protected when it was identified: NSATTR, bit 0.
    #[must_use]
    pub fn is_write_protected(&self) -> bool {
        self.is_write_protected
    }

    /// What it takes of a copy command.
    #[must_use]
    pub fn copy_limits(&self) -> CopyLimits {
        self.copy_limits
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.blocks.saturating_mul(self.block_size.into())
    }

    /// Refuses a format that is not driven.
    pub(super) fn check_format(&self, location: &str) -> Result<(), NvmeError> {
        let Namespace { id, block_size, metadata, protection, .. } = *self;
        if matches!(block_size, 512..=4096) && (metadata, protection) == (0, 0) {
            return Ok(());
        }
        let location = location.to_string();
        Err(NvmeError::Format { location, namespace: id, block_size, metadata, protection })
    }
}

/// Active namespaces in a list of them (CNS 2): numbers that grow, up to the first 0.
pub(super) fn namespace_list(bytes: &[u8; LEN]) -> Vec<u32> {
    let ids = (0..LEN / 4).map(|i| u32_at(bytes, 4 * i)).take_while(|&id| id != 0);
    let mut last = 0;
    // One that does not grow is the device's mistake, and would be asked for without end.
    ids.take_while(|&id| std::mem::replace(&mut last, id) < id).collect()
}

/// The SMART / health information log page (5.14.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SmartLog {
    /// Warnings, a bit each: spare below its threshold, temperature, reliability, read only,
    /// volatile memory backup, persistent memory.
    pub critical_warning: u8,
    /// Temperature in kelvins.
    pub temperature: u16,
    /// Spare capacity left, in percent.
    pub available_spare: u8,
    /// How much of the drive's life is used, in percent; may exceed 100.
    pub percentage_used: u8,
    /// Blocks of 512,000 bytes that the host read.
    pub data_units_read: u128,
    /// Blocks of 512,000 bytes that the host wrote.
    pub data_units_written: u128,
    /// Read commands.
    pub host_reads: u128,
    /// Write commands.
    pub host_writes: u128,
    /// Shutdowns without a notification.
    pub unsafe_shutdowns: u128,
    /// Errors of media and data integrity.
    pub media_errors: u128,
    /// Entries that the error log ever had.
    pub error_log_entries: u128,
}

impl SmartLog {
    /// Bytes of the log page.
    pub(super) const LEN: usize = 512;

    pub(super) fn parse(bytes: &[u8]) -> SmartLog {
        let wide = |at| u128::from(u64_at(bytes, at + 8)) << 64 | u128::from(u64_at(bytes, at));
        SmartLog {
            critical_warning: bytes[0],
            temperature: u16_at(bytes, 1),
            available_spare: bytes[3],
            percentage_used: bytes[5],
            data_units_read: wide(32),
            data_units_written: wide(48),
            host_reads: wide(64),
            host_writes: wide(80),
            unsafe_shutdowns: wide(144),
            media_errors: wide(160),
            error_log_entries: wide(176),
        }
    }
}

/// An entry of the error information log page (5.14.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ErrorLogEntry {
    /// Its number, counted from 1 on over the controller's life.
    pub count: u64,
    /// The submission queue of the command.
    pub queue: u16,
    /// The command's identifier.
    pub command: u16,
    /// What came of it.
    pub status: super::Status,
    /// The first block of the command that failed.
    pub lba: u64,
    /// The namespace.
    pub namespace: u32,
}

impl ErrorLogEntry {
    /// Bytes of an entry.
    pub(super) const LEN: usize = 64;

    /// `None` for an entry that is not in use.
    pub(super) fn parse(bytes: &[u8]) -> Option<ErrorLogEntry> {
        let count = u64_at(bytes, 0);
        (count != 0).then(|| ErrorLogEntry {
            count,
            queue: u16_at(bytes, 8),
            command: u16_at(bytes, 10),
            // Bit 0 may hold the phase bit.
            status: super::Status::from_field(u16_at(bytes, 12) >> 1),
            lba: u64_at(bytes, 16),
            namespace: u32_at(bytes, 24),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What QEMU 11.1's device says of itself, as far as it is looked at.
    fn qemu() -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[4..24].copy_from_slice(b"deadbeef            ");
        bytes[24..64].copy_from_slice(b"QEMU NVMe Ctrl                          ");
        bytes[64..72].copy_from_slice(b"11.1.3  ");
        bytes[77] = 7;
        bytes[80..84].copy_from_slice(&0x0001_0400u32.to_le_bytes());
        bytes[256..258].copy_from_slice(&0x12bu16.to_le_bytes());
        (bytes[258], bytes[259], bytes[525]) = (3, 3, 7);
        bytes[516..520].copy_from_slice(&256u32.to_le_bytes());
        bytes[520..522].copy_from_slice(&0x75du16.to_le_bytes());
        bytes[534] = 0xf;
        bytes[536..540].copy_from_slice(&0x0008_0001u32.to_le_bytes());
        bytes
    }

    #[test]
    fn a_controller_is_read_where_its_fields_lie() {
        let info = ControllerInfo::parse(&qemu(), 4096);
        assert_eq!(
            [&*info.serial, &info.model, &info.firmware],
            ["deadbeef", "QEMU NVMe Ctrl", "11.1.3"]
        );
        assert_eq!((info.version, info.max_transfer), ((1, 4, 0), Some(512 << 10)));
        assert_eq!((info.namespaces, info.abort_limit, info.event_limit), (256, 4, 4));
        assert!(info.takes_sgl() && !info.sgl_is_dword_aligned());
        assert!(info.can_compare() && info.can_deallocate() && info.can_write_zeroes());
        assert!(info.can_copy());
        assert!(!info.can_verify() && info.has_write_cache && info.has_shadow_doorbells);
        let mut none = qemu();
        (none[77], none[536], none[4]) = (0, 0, 0x1b);
        let info = ControllerInfo::parse(&none, 4096);
        assert_eq!((info.max_transfer, info.takes_sgl()), (None, false));
        assert_eq!(info.serial, "?eadbeef");
        none[77] = 255;
        assert_eq!(ControllerInfo::parse(&none, 4096).max_transfer, Some(u64::MAX));
    }

    #[test]
    fn a_namespace_is_read_where_its_fields_lie() {
        let mut bytes = [0; LEN];
        assert_eq!(Namespace::parse(1, 0, &bytes), None, "inactive");
        bytes[..8].copy_from_slice(&1000u64.to_le_bytes());
        bytes[26] = 2;
        bytes[136..140].copy_from_slice(&0x000c_0000u32.to_le_bytes());
        let namespace = Namespace::parse(1, 0, &bytes).unwrap();
        assert_eq!((namespace.blocks, namespace.block_size), (1000, 4096));
        assert_eq!(namespace.bytes(), 4_096_000);
        assert!(!namespace.copy_limits().is_some());
        bytes[74..80].copy_from_slice(&[0x80, 0, 0, 2, 0, 0]);
        bytes[80] = 255;
        let limits = Namespace::parse(1, 0, &bytes).unwrap().copy_limits();
        assert_eq!((limits.range_blocks, limits.command_blocks, limits.ranges), (128, 512, 256));
        assert!(namespace.check_format("x").is_ok());
        bytes[136] = 8;
        bytes[29] = 1;
        let namespace = Namespace::parse(1, 0, &bytes).unwrap();
        assert_eq!((namespace.metadata, namespace.protection), (8, 1));
        let error = namespace.check_format("x").unwrap_err().to_string();
        assert!(error.contains("8 bytes of metadata") && error.contains("type 1"), "{error}");
        // Index 17 of 64: bit 5 of FLBAS is bit 4 of the index.
        bytes[26] = 0x21;
        bytes[196..200].copy_from_slice(&0x0009_0000u32.to_le_bytes());
        assert_eq!(Namespace::parse(1, 0, &bytes).unwrap().block_size, 512);
        bytes[196..200].copy_from_slice(&0x00ff_0000u32.to_le_bytes());
        assert!(Namespace::parse(1, 0, &bytes).unwrap().check_format("x").is_err());
    }

    #[test]
    fn a_list_of_namespaces_ends_at_zero_or_where_it_does_not_grow() {
        let mut bytes = [0; LEN];
        assert_eq!(namespace_list(&bytes), [0u32; 0]);
        for (i, id) in [1u32, 3, 9, 9, 10].into_iter().enumerate() {
            bytes[4 * i..4 * i + 4].copy_from_slice(&id.to_le_bytes());
        }
        assert_eq!(namespace_list(&bytes), [1, 3, 9]);
        assert_eq!(namespace_list(&[0xff; LEN]), [u32::MAX]);
    }
}
