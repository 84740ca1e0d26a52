//! The messages of the vfio-user protocol that a client sends and understands.
//!
//! Source: QEMU's `docs/interop/vfio-user.rst` (protocol version 0.9.2); names in capitals
//! are its own. Numbers have the byte order of the host: both sides are on one machine.
//! Structures that come from `include/uapi/linux/vfio.h` keep that header's layout.

use serde::{Deserialize, Serialize};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol version that is spoken: the oldest, which every server of major 0 has.
pub(super) const VERSION: Version = Version { major: 0, minor: 0 };

/// The most bytes that are read or written by one message, whatever the server would take
/// (`max_data_xfer_size`, the protocol's default).
pub(super) const MAX_DATA: u32 = 1 << 20;

/// The longest message that is accepted, in bytes: the data of a region read.
pub(super) const MAX_MESSAGE: usize =
    size_of::<Header>() + size_of::<RegionAccess>() + MAX_DATA as usize;

/// What a message asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Command {
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
}

/// The bits of a header's flags that tell the type: 0 a command, 1 a reply.
pub(super) const TYPE_MASK: u32 = 0xf;
/// Type 0: a command.
pub(super) const TYPE_COMMAND: u32 = 0;
/// Type 1: a reply.
pub(super) const TYPE_REPLY: u32 = 1;
/// Bit 4: the sender of this command wants no reply.
pub(super) const NO_REPLY: u32 = 1 << 4;
/// Bit 5, in a reply: the command failed.
pub(super) const ERROR: u32 = 1 << 5;

/// What every message starts with.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Header {
    /// Chosen by the sender of a command, repeated in the reply.
    pub(super) id: u16,
    /// A [`Command`], repeated in the reply.
    pub(super) command: u16,
    /// Length of the whole message in bytes, this header included.
    pub(super) size: u32,
    /// [`TYPE_MASK`], [`NO_REPLY`] and [`ERROR`].
    pub(super) flags: u32,
    /// In an error reply: the errno, or 0 when the server does not say.
    pub(super) error: u32,
}

/// `VFIO_USER_VERSION`, both ways; [`VersionData`] follows as JSON and a NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Version {
    /// Must be equal on both sides.
    pub(super) major: u16,
    /// The reply's is at most the request's.
    pub(super) minor: u16,
}

/// The JSON object of a version message.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct VersionData {
    /// What the sender can do.
    #[serde(default)]
    pub(super) capabilities: Capabilities,
}

/// What the sender of a version message can do; members that are unknown are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Capabilities {
    /// How many descriptors the sender takes in one message; 1 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) max_msg_fds: Option<u64>,
    /// The most bytes of a region read or write; 1 MiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) max_data_xfer_size: Option<u64>,
    /// How many DMA mappings can exist at a time; 65,535 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) max_dma_maps: Option<u64>,
    /// Page sizes for DMA mappings: bit n stands for 2^n bytes; 4 KiB when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pgsizes: Option<u64>,
}

/// `VFIO_USER_DMA_MAP` (`struct vfio_iommu_type1_dma_map`); the reply has no payload.
///
/// The memory's descriptor comes along.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct DmaMap {
    /// Size of this structure.
    pub(super) argsz: u32,
    /// Bit 0: the device may read, bit 1: it may write.
    pub(super) flags: u32,
    /// Where the memory starts in its file, in bytes.
    pub(super) offset: u64,
    /// First device address.
    pub(super) address: u64,
    /// Length in bytes.
    pub(super) size: u64,
}

/// `VFIO_USER_DMA_UNMAP` (`struct vfio_iommu_type1_dma_unmap`), both ways.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct DmaUnmap {
    /// Size of this structure: the room for the reply.
    pub(super) argsz: u32,
    /// Unused: 0.
    pub(super) flags: u32,
    /// First device address.
    pub(super) address: u64,
    /// Length in bytes.
    pub(super) size: u64,
}

/// `VFIO_USER_DEVICE_GET_INFO` (`struct vfio_device_info`), both ways.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct DeviceInfo {
    /// In a request the room for the reply, in a reply the room that it needs, in bytes.
    pub(super) argsz: u32,
    /// `VFIO_DEVICE_FLAGS_*`.
    pub(super) flags: u32,
    /// How many regions there are, empty ones included.
    pub(super) num_regions: u32,
    /// How many kinds of interrupt there are, unused ones included.
    pub(super) num_irqs: u32,
}

/// `VFIO_USER_DEVICE_GET_REGION_INFO` (`struct vfio_region_info`), both ways; a reply's
/// capabilities follow, and with `VFIO_REGION_INFO_FLAG_MMAP` a descriptor comes along.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct RegionDescription {
    /// In a request the room for the reply, in a reply the room that it needs, in bytes.
    pub(super) argsz: u32,
    /// `VFIO_REGION_INFO_FLAG_*`.
    pub(super) flags: u32,
    /// Which region.
    pub(super) index: u32,
    /// Where the first capability is, from the start of this structure; 0 for none.
    pub(super) cap_offset: u32,
    /// Length of the region in bytes.
    pub(super) size: u64,
    /// Where the region starts in its descriptor, in bytes.
    pub(super) offset: u64,
}

/// `struct vfio_info_cap_header`: what every capability of a region starts with.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct CapabilityHeader {
    /// `VFIO_REGION_INFO_CAP_*`.
    pub(super) id: u16,
    /// Version of the capability's layout.
    pub(super) version: u16,
    /// Where the next one is, from the start of the region's structure; 0 for none.
    pub(super) next: u32,
}

/// The start of `struct vfio_region_info_cap_sparse_mmap`, behind its header; as many
/// [`SparseArea`] follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct SparseMmap {
    /// How many areas follow.
    pub(super) nr_areas: u32,
    /// 0.
    pub(super) reserved: u32,
}

/// `struct vfio_region_sparse_mmap_area`: a piece of a region that can be mapped.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct SparseArea {
    /// Byte offset in the region.
    pub(super) offset: u64,
    /// Length in bytes.
    pub(super) size: u64,
}

/// `VFIO_USER_DEVICE_GET_IRQ_INFO` (`struct vfio_irq_info`), both ways.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct IrqInfo {
    /// In a request the room for the reply, in a reply the room that it needs, in bytes.
    pub(super) argsz: u32,
    /// `VFIO_IRQ_INFO_*`.
    pub(super) flags: u32,
    /// Which kind of interrupt.
    pub(super) index: u32,
    /// How many vectors it has.
    pub(super) count: u32,
}

/// `VFIO_USER_DEVICE_SET_IRQS` (`struct vfio_irq_set`); the reply has no payload.
///
/// With `VFIO_IRQ_SET_DATA_EVENTFD` a descriptor for each vector comes along.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct IrqSet {
    /// Size of this structure.
    pub(super) argsz: u32,
    /// `VFIO_IRQ_SET_*`: one kind of data and one action.
    pub(super) flags: u32,
    /// Which kind of interrupt.
    pub(super) index: u32,
    /// First vector.
    pub(super) start: u32,
    /// How many vectors.
    pub(super) count: u32,
}

/// `VFIO_USER_REGION_READ` and `VFIO_USER_REGION_WRITE`, both ways; the data follows a
/// write's request and a read's reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct RegionAccess {
    /// Byte offset in the region.
    pub(super) offset: u64,
    /// Which region.
    pub(super) region: u32,
    /// Length of the data in bytes.
    pub(super) count: u32,
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use super::*;

    /// The size of a structure and the offsets of its fields.
    macro_rules! layout {
        ($ty:ty: $($field:ident),*) => {
            (size_of::<$ty>(), vec![$(offset_of!($ty, $field)),*])
        };
    }

    #[test]
    fn layouts_are_those_of_the_specification() {
        let layouts = [
            (layout!(Header: id, command, size, flags, error), (16, vec![0, 2, 4, 8, 12])),
            (layout!(Version: major, minor), (4, vec![0, 2])),
            (layout!(DmaMap: argsz, flags, offset, address, size), (32, vec![0, 4, 8, 16, 24])),
            (layout!(DmaUnmap: argsz, flags, address, size), (24, vec![0, 4, 8, 16])),
            (layout!(DeviceInfo: argsz, flags, num_regions, num_irqs), (16, vec![0, 4, 8, 12])),
            (
                layout!(RegionDescription: argsz, flags, index, cap_offset, size, offset),
                (32, vec![0, 4, 8, 12, 16, 24]),
            ),
            (layout!(CapabilityHeader: id, version, next), (8, vec![0, 2, 4])),
            (layout!(SparseMmap: nr_areas, reserved), (8, vec![0, 4])),
            (layout!(SparseArea: offset, size), (16, vec![0, 8])),
            (layout!(IrqInfo: argsz, flags, index, count), (16, vec![0, 4, 8, 12])),
            (layout!(IrqSet: argsz, flags, index, start, count), (20, vec![0, 4, 8, 12, 16])),
            (layout!(RegionAccess: offset, region, count), (16, vec![0, 8, 12])),
        ];
        for (n, (found, expected)) in layouts.into_iter().enumerate() {
            assert_eq!(found, expected, "structure {n}");
        }
        assert_eq!(MAX_MESSAGE, 16 + 16 + 1_048_576);
    }

    #[test]
    fn command_numbers_and_flags_are_those_of_the_specification() {
        use Command::*;
        let commands = [
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
        ];
        assert_eq!(commands.map(|c| c as u16), [1, 2, 3, 4, 5, 7, 8, 9, 10, 13]);
        assert_eq!((TYPE_MASK, TYPE_REPLY, NO_REPLY, ERROR), (0xf, 0x1, 0x10, 0x20));
    }

    #[test]
    fn capabilities_have_the_names_of_the_specification() {
        let ours = Capabilities {
            max_msg_fds: Some(64),
            max_data_xfer_size: Some(1 << 20),
            max_dma_maps: None,
            pgsizes: Some(4096),
        };
        let json = serde_json::to_string(&VersionData { capabilities: ours }).unwrap();
        assert_eq!(
            json,
            r#"{"capabilities":{"max_msg_fds":64,"max_data_xfer_size":1048576,"pgsizes":4096}}"#
        );
        let theirs = r#"{"capabilities":{"max_dma_maps":7,"twin_socket":{"supported":false}}}"#;
        let theirs: VersionData = serde_json::from_str(theirs).unwrap();
        assert_eq!(theirs.capabilities.max_dma_maps, Some(7));
        assert_eq!(serde_json::from_str::<VersionData>("{}").unwrap(), VersionData::default());
    }
}
