//! Whether there is data on a drive: signatures of partition tables, file systems, volume
//! managers and encryption, at the places where they keep them (each format's own documentation;
//! the places are those that libblkid looks at too).

use std::fmt;

/// Bytes from the begin of a drive that are looked at.
pub(super) const HEAD: u64 = (2 << 20) + 4096;
/// Bytes before the end of a drive that are looked at.
pub(super) const TAIL: u64 = 1 << 20;

/// What kind of data a signature stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Signature {
    /// A partition table.
    PartitionTable,
    /// A file system.
    FileSystem,
    /// A member of a volume group, pool or cache.
    Volume,
    /// A member of a RAID.
    Raid,
    /// An encrypted volume.
    Encrypted,
    /// Swap space.
    Swap,
}

/// A signature that was found on a drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Found {
    /// What kind of data it stands for.
    pub kind: Signature,
    /// Whose it is.
    pub name: &'static str,
    /// Where it begins, in bytes from the begin of the drive.
    pub offset: u64,
}

impl Found {
    pub(super) fn list(found: &[Found]) -> String {
        found.iter().map(Found::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (at byte {})", self.name, self.offset)
    }
}

use Signature::{Encrypted, FileSystem, PartitionTable, Raid, Swap, Volume};

/// Signatures at a distance from the begin.
#[rustfmt::skip]
const FROM_BEGIN: &[(Signature, &str, u64, &[u8])] = &[
    (PartitionTable, "a DOS partition table or boot sector", 510, &[0x55, 0xaa]),
    (PartitionTable, "a GUID partition table", 512, b"EFI PART"),
    (PartitionTable, "a GUID partition table", 4096, b"EFI PART"),
    (PartitionTable, "an Apple partition map", 512, b"PM\0\0"),
    (PartitionTable, "a Sun disk label", 508, &[0xda, 0xbe]),
    (PartitionTable, "a BSD disk label", 512, &[0x57, 0x45, 0x56, 0x82]),
    (PartitionTable, "a BSD disk label", 64, &[0x57, 0x45, 0x56, 0x82]),
    (FileSystem, "ext2, ext3 or ext4", 1080, &[0x53, 0xef]),
    (FileSystem, "XFS", 0, b"XFSB"),
    (FileSystem, "Btrfs", 65_600, b"_BHRfS_M"),
    (FileSystem, "F2FS", 1024, &[0x10, 0x20, 0xf5, 0xf2]),
    (FileSystem, "EROFS", 1024, &[0xe2, 0xe1, 0xf5, 0xe0]),
    (FileSystem, "NILFS2", 1030, &[0x34, 0x34]),
    (FileSystem, "JFS", 32_768, b"JFS1"),
    (FileSystem, "ReiserFS", 65_588, b"ReIsEr"),
    (FileSystem, "ReiserFS", 8_244, b"ReIsEr"),
    (FileSystem, "Reiser4", 65_536, b"ReIsEr4"),
    (FileSystem, "GFS2", 65_536, &[0x01, 0x16, 0x19, 0x70]),
    (FileSystem, "OCFS2", 1024, b"OCFSV2"),
    (FileSystem, "OCFS2", 2048, b"OCFSV2"),
    (FileSystem, "OCFS2", 4096, b"OCFSV2"),
    (FileSystem, "OCFS2", 8192, b"OCFSV2"),
    (FileSystem, "SquashFS", 0, b"hsqs"),
    (FileSystem, "cramfs", 0, &[0x45, 0x3d, 0xcd, 0x28]),
    (FileSystem, "romfs", 0, b"-rom1fs-"),
    (FileSystem, "ISO 9660", 32_769, b"CD001"),
    (FileSystem, "UDF", 34_817, b"NSR0"),
    (FileSystem, "UDF", 36_865, b"NSR0"),
    (FileSystem, "NTFS", 3, b"NTFS    "),
    (FileSystem, "exFAT", 3, b"EXFAT   "),
    (FileSystem, "FAT", 54, b"FAT1"),
    (FileSystem, "FAT", 82, b"FAT32"),
    (FileSystem, "HFS+", 1024, b"H+"),
    (FileSystem, "HFS+", 1024, b"HX"),
    (FileSystem, "APFS", 32, b"NXSB"),
    (FileSystem, "UFS", 9_564, &[0x54, 0x19, 0x01, 0x00]),
    (FileSystem, "UFS2", 66_908, &[0x19, 0x01, 0x54, 0x19]),
    (FileSystem, "VMFS", 1 << 20, &[0x0d, 0xd0, 0x01, 0xc0]),
    (FileSystem, "VMFS", 2 << 20, &[0x5e, 0xf1, 0xab, 0x2f]),
    (FileSystem, "bcachefs", 4120, &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9]),
    (Volume, "bcache", 4120, &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca]),
    (Volume, "LVM", 0, b"LABELONE"),
    (Volume, "LVM", 512, b"LABELONE"),
    (Volume, "LVM", 1024, b"LABELONE"),
    (Volume, "LVM", 1536, b"LABELONE"),
    (Volume, "Stratis", 516, b"!Stra0tis"),
    (Volume, "Stratis", 4612, b"!Stra0tis"),
    (Volume, "Ceph BlueStore", 0, b"bluestore block device"),
    (Volume, "VDO", 0, b"dmvdo001"),
    (Volume, "dm-integrity", 0, b"integrt\0"),
    (Volume, "dm-verity", 0, b"verity\0\0"),
    (Raid, "md RAID 1.1", 0, &[0xfc, 0x4e, 0x2b, 0xa9]),
    (Raid, "md RAID 1.2", 4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
    (Encrypted, "LUKS", 0, b"LUKS\xba\xbe"),
    (Encrypted, "LUKS2", 0x4000, b"SKUL\xba\xbe"),
    (Encrypted, "LUKS2", 0x8000, b"SKUL\xba\xbe"),
    (Encrypted, "LUKS2", 0x1_0000, b"SKUL\xba\xbe"),
    (Encrypted, "LUKS2", 0x2_0000, b"SKUL\xba\xbe"),
    (Encrypted, "LUKS2", 0x4_0000, b"SKUL\xba\xbe"),
    (Encrypted, "LUKS2", 0x8_0000, b"SKUL\xba\xbe"),
    (Encrypted, "LUKS2", 0x10_0000, b"SKUL\xba\xbe"),
    (Encrypted, "LUKS2", 0x20_0000, b"SKUL\xba\xbe"),
    (Encrypted, "BitLocker", 3, b"-FVE-FS-"),
    (Swap, "swap space", 4086, b"SWAPSPACE2"),
    (Swap, "swap space", 4086, b"SWAP-SPACE"),
    (Swap, "a hibernated system", 4086, b"S1SUSPEND"),
    (Swap, "swap space", 8182, b"SWAPSPACE2"),
    (Swap, "swap space", 16_374, b"SWAPSPACE2"),
    (Swap, "swap space", 65_526, b"SWAPSPACE2"),
];

/// Signatures at a distance before the end.
#[rustfmt::skip]
const BEFORE_END: &[(Signature, &str, u64, &[u8])] = &[
    (PartitionTable, "a GUID partition table's copy", 512, b"EFI PART"),
    (PartitionTable, "a GUID partition table's copy", 4096, b"EFI PART"),
    (Raid, "Intel RAID", 1024, b"Intel Raid ISM Cfg Sig. "),
    (Raid, "a DDF RAID", 512, &[0xde, 0x11, 0xde, 0x11]),
];

/// A member of an md RAID: its magic number.
const MD: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];

/// An uberblock of ZFS: its magic number, of either endianness.
const ZFS: [[u8; 8]; 2] = [[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c]];
/// Bytes of a label of ZFS; the second half of it holds uberblocks, at multiples of 1 KiB.
const ZFS_LABEL: u64 = 256 << 10;

/// What is on a drive of `size` bytes, of which these are the first and the last.
pub(super) fn find(size: u64, head: &[u8], tail: &[u8]) -> Vec<Found> {
    let tail_start = size - tail.len() as u64;
    // A short drive is in both.
    let holds = |offset: u64, magic: &[u8]| {
        let is_in = |bytes: &[u8], start: u64| {
            let at = offset.checked_sub(start).and_then(|at| usize::try_from(at).ok());
            let bytes = at.and_then(|at| bytes.get(at..));
            bytes.is_some_and(|bytes| bytes.starts_with(magic))
        };
        is_in(head, 0) || is_in(tail, tail_start)
    };
    let mut found = Vec::new();
    let mut add = |kind, name, offset: u64, magic: &[u8]| {
        if holds(offset, magic) {
            found.push(Found { kind, name, offset });
        }
    };
    for &(kind, name, offset, magic) in FROM_BEGIN {
        add(kind, name, offset, magic);
    }
    for &(kind, name, before, magic) in BEFORE_END {
        if let Some(offset) = size.checked_sub(before) {
            add(kind, name, offset, magic);
        }
    }
    // md 1.0: 8 to 12 KiB before the end, at a multiple of 4 KiB; 0.90: the last multiple of 64
    // KiB that leaves 64 KiB, in either byte order.
    if let Some(last) = size.checked_sub(8192) {
        add(Raid, "md RAID 1.0", last & !4095, &MD);
    }
    if let Some(last) = (size & !0xffff).checked_sub(0x1_0000) {
        add(Raid, "md RAID 0.90", last, &MD);
        add(Raid, "md RAID 0.90", last, &[0xa9, 0x2b, 0x4e, 0xfc]);
    }
    // ZFS has two labels at the begin and two at the end.
    let end = size & !(ZFS_LABEL - 1);
    let labels =
        [Some(0), Some(ZFS_LABEL), end.checked_sub(2 * ZFS_LABEL), end.checked_sub(ZFS_LABEL)];
    let uberblocks = labels.into_iter().flatten().flat_map(|label| {
        (ZFS_LABEL / 2..ZFS_LABEL).step_by(1024).map(move |offset| label + offset)
    });
    let is_zfs = |offset: &u64| ZFS.iter().any(|magic| holds(*offset, magic));
    if let Some(offset) = uberblocks.into_iter().find(is_zfs) {
        found.push(Found { kind: Volume, name: "ZFS", offset });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 8 << 20;

    fn look(image: &[u8]) -> Vec<Found> {
        let (head, tail) = (image.len().min(HEAD as usize), image.len().min(TAIL as usize));
        find(image.len() as u64, &image[..head], &image[image.len() - tail..])
    }

    fn with(size: usize, offset: usize, magic: &[u8]) -> Vec<u8> {
        let mut image = vec![0; size];
        image[offset..offset + magic.len()].copy_from_slice(magic);
        image
    }

    #[test]
    fn an_empty_drive_has_none() {
        assert_eq!(look(&vec![0; SIZE]), []);
        assert_eq!(look(&[0; 512]), []);
        assert_eq!(look(&vec![0xff; SIZE]), []);
    }

    #[test]
    fn each_signature_is_found_where_it_lies() {
        for &(kind, name, offset, magic) in FROM_BEGIN {
            let found = look(&with(SIZE, offset as usize, magic));
            assert!(found.contains(&Found { kind, name, offset }), "{name} at {offset}: {found:?}");
        }
        for &(kind, name, before, magic) in BEFORE_END {
            let offset = SIZE as u64 - before;
            let found = look(&with(SIZE, offset as usize, magic));
            assert_eq!(found, [Found { kind, name, offset }]);
        }
    }

    #[test]
    fn what_lies_by_the_size_is_found_at_any_size() {
        for size in [SIZE, SIZE + 512, SIZE + 5 * 4096, SIZE + 70_000 - 70_000 % 512] {
            let md = (size - 8192) & !4095;
            assert_eq!(look(&with(size, md, &MD))[0].name, "md RAID 1.0", "{size}");
            let old = (size & !0xffff) - 0x1_0000;
            assert_eq!(look(&with(size, old, &[0xa9, 0x2b, 0x4e, 0xfc]))[0].name, "md RAID 0.90");
            let end = size & !(ZFS_LABEL as usize - 1);
            for label in [0, 256 << 10, end - (512 << 10), end - (256 << 10)] {
                for magic in ZFS {
                    let offset = label + (128 << 10) + 37 * 1024;
                    let found = look(&with(size, offset, &magic));
                    assert_eq!(found.len(), 1, "{found:?}");
                    assert_eq!((found[0].name, found[0].offset), ("ZFS", offset as u64));
                }
            }
        }
    }

    #[test]
    fn everything_that_is_looked_for_is_read() {
        assert!(FROM_BEGIN.iter().all(|(.., at, magic)| at + magic.len() as u64 <= HEAD));
        assert!(BEFORE_END.iter().all(|(.., before, _)| *before <= TAIL));
        const { assert!(TAIL >= 3 * ZFS_LABEL && HEAD >= 2 * ZFS_LABEL) };
    }
}
