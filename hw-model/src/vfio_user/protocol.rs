//! The messages of the vfio-user protocol, as they are on the wire.
//!
//! Source: QEMU's `docs/interop/vfio-user.rst` (protocol version 0.9.2); names in capitals
//! are its own. Numbers have the byte order of the host, both sides being on one machine.
//! Structures that come from `include/uapi/linux/vfio.h` keep that header's layout.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The only major version that exists.
pub const MAJOR: u16 = 0;
/// The minor version that is spoken here: the oldest, so at most that of any client.
pub const MINOR: u16 = 0;

/// The most bytes that one message reads from or writes to a region
/// (`max_data_xfer_size`, the protocol's default).
pub const MAX_DATA: u32 = 1 << 20;

/// The most descriptors that one message carries (`max_msg_fds`; QEMU accepts up to 16).
pub const MAX_FDS: usize = 16;

/// The longest message that is accepted, in bytes: a region write of [`MAX_DATA`].
pub const MAX_MESSAGE: usize = size_of::<Header>() + size_of::<RegionAccess>() + MAX_DATA as usize;

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// `VFIO_USER_VERSION`: the first message of a connection.
    Version = 1,
    /// `VFIO_USER_DMA_MAP`
    DmaMap = 2,
    /// `VFIO_USER_DMA_UNMAP`
    DmaUnmap = 3,
    /// `VFIO_USER_DEVICE_GET_INFO`
    DeviceGetInfo = 4,
    /// `VFIO_USER_DEVICE_GET_REGION_INFO`
    DeviceGetRegionInfo = 5,
    /// `VFIO_USER_DEVICE_GET_IRQ_INFO`
    DeviceGetIrqInfo = 7,
    /// `VFIO_USER_DEVICE_SET_IRQS`
    DeviceSetIrqs = 8,
    /// `VFIO_USER_REGION_READ`
    RegionRead = 9,
    /// `VFIO_USER_REGION_WRITE`
    RegionWrite = 10,
    /// `VFIO_USER_DEVICE_RESET`
    DeviceReset = 13,
    /// `VFIO_USER_REGION_WRITE_MULTI`
    RegionWriteMulti = 15,
}

impl Command {
    /// The command with this number; `None` for those that a server of this kind refuses.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Command> {
        use Command::{
            DeviceGetInfo, DeviceGetIrqInfo, DeviceGetRegionInfo, DeviceReset, DeviceSetIrqs,
            DmaMap, DmaUnmap, RegionRead, RegionWrite, RegionWriteMulti, Version,
        };
        let all = [
            Version,
            DmaMap,
            DmaUnmap,
            DeviceGetInfo,
            DeviceGetRegionInfo,
            DeviceGetIrqInfo,
            DeviceSetIrqs,
            RegionRead,
            RegionWrite,
            DeviceReset,
            RegionWriteMulti,
        ];
        all.into_iter().find(|&command| command as u16 == number)
    }
}

bitflags! {
    /// The flags of a message's header; bits 3:0 are its type.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Type 1: a reply. Type 0 is a command.
        const REPLY = 0x1;
        /// The sender of this command wants no reply.
        const NO_REPLY = 0x10;
        /// In a reply: the command failed, the header's error says why.
        const ERROR = 0x20;
    }
}

/// The bits of the flags that tell the type of the message.
pub const TYPE_MASK: u32 = 0xf;

/// What every message starts with.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of a command, repeated in the reply.
    pub id: u16,
    /// A [`Command`], repeated in the reply.
    pub command: u16,
    /// Length of the whole message in bytes, this header included.
    pub size: u32,
    /// [`Flags`].
    pub flags: u32,
    /// In an error reply: the errno.
    pub error: u32,
}

/// `VFIO_USER_VERSION`, both ways; optionally followed by [`VersionData`] as JSON and a NUL.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Version {
    /// Must be equal on both sides.
    pub major: u16,
    /// The reply's is at most the request's.
    pub minor: u16,
}

/// The JSON object of a version message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionData {
    /// What the sender can do.
    #[serde(default)]
    pub capabilities: Capabilities,
}

/// What the sender of a version message can do; members that are unknown are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// How many descriptors the sender takes in one message; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_msg_fds: Option<u64>,
    /// The most bytes of a region read or write; 1 MiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_data_xfer_size: Option<u64>,
    /// Page sizes for DMA mappings: bit n stands for 2^n bytes; 4 KiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pgsizes: Option<u64>,
    /// Whether `VFIO_USER_REGION_WRITE_MULTI` is understood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_multiple: Option<bool>,
}

/// `VFIO_USER_DMA_MAP` (`struct vfio_iommu_type1_dma_map`); the reply has no payload.
///
/// The memory's descriptor comes along; without one the memory cannot be reached.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DmaMap {
    /// Size of this structure.
    pub argsz: u32,
    /// Bit 0: the device may read, bit 1: it may write.
    pub flags: u32,
    /// Where the memory starts in its file.
    pub offset: u64,
    /// First device address.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
}

/// `VFIO_USER_DMA_UNMAP` (`struct vfio_iommu_type1_dma_unmap`), both ways.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DmaUnmap {
    /// Size of this structure.
    pub argsz: u32,
    /// `VFIO_DMA_UNMAP_FLAG_*`.
    pub flags: u32,
    /// First device address.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
}

/// `VFIO_USER_DEVICE_GET_INFO` (`struct vfio_device_info`), both ways.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct DeviceInfo {
    /// Size of this structure: in a request the room for the reply.
    pub argsz: u32,
    /// `VFIO_DEVICE_FLAGS_*`.
    pub flags: u32,
    /// How many regions there are, empty ones included.
    pub num_regions: u32,
    /// How many kinds of interrupt there are, unused ones included.
    pub num_irqs: u32,
}

/// `VFIO_USER_DEVICE_GET_REGION_INFO` (`struct vfio_region_info`), both ways.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RegionInfo {
    /// Size of this structure and its capabilities: in a request the room for the reply.
    pub argsz: u32,
    /// `VFIO_REGION_INFO_FLAG_*`.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Where capabilities start; 0 for none.
    pub cap_offset: u32,
    /// Length of the region in bytes.
    pub size: u64,
    /// Offset for `mmap`.
    pub offset: u64,
}

/// `VFIO_USER_DEVICE_GET_IRQ_INFO` (`struct vfio_irq_info`), both ways.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IrqInfo {
    /// Size of this structure: in a request the room for the reply.
    pub argsz: u32,
    /// `VFIO_IRQ_INFO_*`.
    pub flags: u32,
    /// Which kind of interrupt.
    pub index: u32,
    /// How many vectors it has.
    pub count: u32,
}

/// `VFIO_USER_DEVICE_SET_IRQS` (`struct vfio_irq_set`); the reply has no payload.
///
/// With `DATA_BOOL` a byte for each vector follows; with `DATA_EVENTFD` either a descriptor
/// for each vector comes along, or none, which disconnects them.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct IrqSet {
    /// Size of this structure and the data.
    pub argsz: u32,
    /// `VFIO_IRQ_SET_*`: one kind of data and one action.
    pub flags: u32,
    /// Which kind of interrupt.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// How many vectors.
    pub count: u32,
}

/// `VFIO_USER_REGION_READ` and `VFIO_USER_REGION_WRITE`, both ways; the data follows a
/// write's request and a read's reply.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RegionAccess {
    /// Byte offset in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Length of the data in bytes.
    pub count: u32,
}

/// `VFIO_USER_REGION_WRITE_MULTI`, both ways; in a request as many [`WriteOne`] follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct WriteMulti {
    /// How many writes.
    pub count: u64,
}

/// One of the writes of a [`WriteMulti`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct WriteOne {
    /// Where, and how much: at most 8 bytes.
    pub access: RegionAccess,
    /// The data; the first `count` bytes of it count.
    pub data: [u8; 8],
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    #[test]
    fn layouts_are_those_of_the_specification() {
        assert_eq!(size_of::<Header>(), 16);
        assert_eq!(
            [
                offset_of!(Header, id),
                offset_of!(Header, command),
                offset_of!(Header, size),
                offset_of!(Header, flags),
                offset_of!(Header, error),
            ],
            [0, 2, 4, 8, 12]
        );
        assert_eq!(size_of::<Version>(), 4);
        assert_eq!(offset_of!(Version, minor), 2);
        assert_eq!(size_of::<DmaMap>(), 32);
        assert_eq!(
            [
                offset_of!(DmaMap, argsz),
                offset_of!(DmaMap, flags),
                offset_of!(DmaMap, offset),
                offset_of!(DmaMap, address),
                offset_of!(DmaMap, size),
            ],
            [0, 4, 8, 16, 24]
        );
        assert_eq!(size_of::<DmaUnmap>(), 24);
        assert_eq!(
            [
                offset_of!(DmaUnmap, flags),
                offset_of!(DmaUnmap, address),
                offset_of!(DmaUnmap, size),
            ],
            [4, 8, 16]
        );
        assert_eq!(size_of::<DeviceInfo>(), 16);
        assert_eq!(
            [
                offset_of!(DeviceInfo, flags),
                offset_of!(DeviceInfo, num_regions),
                offset_of!(DeviceInfo, num_irqs),
            ],
            [4, 8, 12]
        );
        assert_eq!(size_of::<RegionInfo>(), 32);
        assert_eq!(
            [
                offset_of!(RegionInfo, flags),
                offset_of!(RegionInfo, index),
                offset_of!(RegionInfo, cap_offset),
                offset_of!(RegionInfo, size),
                offset_of!(RegionInfo, offset),
            ],
            [4, 8, 12, 16, 24]
        );
        assert_eq!(size_of::<IrqInfo>(), 16);
        assert_eq!(
            [offset_of!(IrqInfo, flags), offset_of!(IrqInfo, index), offset_of!(IrqInfo, count)],
            [4, 8, 12]
        );
        assert_eq!(size_of::<IrqSet>(), 20);
        assert_eq!(
            [
                offset_of!(IrqSet, flags),
                offset_of!(IrqSet, index),
                offset_of!(IrqSet, start),
                offset_of!(IrqSet, count),
            ],
            [4, 8, 12, 16]
        );
        assert_eq!(size_of::<RegionAccess>(), 16);
        assert_eq!([offset_of!(RegionAccess, region), offset_of!(RegionAccess, count)], [8, 12]);
        assert_eq!(size_of::<WriteMulti>(), 8);
        assert_eq!(size_of::<WriteOne>(), 24);
        assert_eq!(offset_of!(WriteOne, data), 16);
    }

    #[test]
    fn command_numbers_are_those_of_the_specification() {
        let known: Vec<u16> =
            (0..=u16::MAX).filter(|&n| Command::from_number(n).is_some()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 7, 8, 9, 10, 13, 15]);
        assert_eq!(Command::from_number(13), Some(Command::DeviceReset));
        assert_eq!((Flags::REPLY | Flags::NO_REPLY | Flags::ERROR).bits(), 0x31);
    }

    #[test]
    fn absent_capabilities_are_left_out() {
        let data = VersionData {
            capabilities: Capabilities { max_msg_fds: Some(16), ..Capabilities::default() },
        };
        let json = serde_json::to_string(&data).unwrap();
        assert_eq!(json, r#"{"capabilities":{"max_msg_fds":16}}"#);
        assert_eq!(serde_json::from_str::<VersionData>("{}").unwrap(), VersionData::default());
    }
}
