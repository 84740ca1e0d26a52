//! Why a strategy did not place a buffer.

use std::fmt;

use nix::errno::Errno;

use crate::backend::Translation;
use crate::dma::limits::LimitExceeded;
use crate::dma::memory::{FrameError, PageSize};

use super::plural;
use super::size::Size;

/// What is in the way, with the limit that was met.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The buffer is smaller than one page of this size.
    SmallerThanPage(PageSize),
    /// The request names no pool.
    NoPool,
    /// The pool has no piece that is long enough and under the mask.
    PoolSpent {
        /// Bytes that were reserved.
        capacity: u64,
        /// Bytes that are free.
        free: u64,
        /// The longest free piece under the mask, in bytes.
        longest: u64,
    },
    /// The kernel's pool has too few huge pages.
    HugePages {
        /// Their size.
        page: PageSize,
        /// Pages that are free; `None` when the kernel has no such pool.
        free: Option<u64>,
    },
    /// Pages could be mapped, but not had.
    NotPopulated {
        /// Their size.
        page: PageSize,
        /// The kernel's error number: EFAULT where touching one would raise SIGBUS.
        errno: i32,
    },
    /// Locking or pinning goes over the limit on locked memory.
    MemoryLock {
        /// The limit in bytes.
        limit: u64,
        /// Bytes locked already.
        locked: u64,
    },
    /// Pinning goes over the limit for all processes of the user together (iommufd).
    UserMemoryLock {
        /// The limit in bytes.
        limit: u64,
    },
    /// The device reaches no address that can be had.
    AddressMask {
        /// The highest address that the device reaches.
        mask: u64,
        /// The lowest address that could have been used, where it is known.
        lowest: Option<u64>,
    },
    /// No free run of IOVAs is long enough.
    IovaRun {
        /// The run needed, in bytes.
        needed: u64,
        /// Its alignment in bytes.
        align: u64,
        /// The highest address that the device reaches.
        mask: u64,
        /// Bytes that are free under the mask.
        free: u64,
        /// The longest free run, in bytes.
        longest: u64,
    },
    /// The address space has too few mappings left.
    Mappings {
        /// Mappings needed.
        needed: u64,
        /// Mappings left.
        available: u64,
    },
    /// The strategy is for another kind of address space.
    Translation(Translation),
    /// Physical addresses cannot be read.
    Frames(FrameError),
    /// No memory was physically contiguous.
    NotContiguous {
        /// The block needed, in bytes.
        needed: u64,
        /// The longest run that was found, in bytes.
        longest: u64,
        /// Bytes that were held meanwhile, so that the same pages do not return.
        held: u64,
    },
    /// The pages that could be had are on other NUMA nodes than the one that was asked for.
    OtherNode {
        /// The node asked for.
        wanted: u32,
        /// Bytes that are on others.
        elsewhere: u64,
    },
    /// The caller gives no time to wait.
    NoPatience,
    /// Nothing that was freed in the time given helped.
    Waited {
        /// Time that passed, in milliseconds.
        milliseconds: u64,
        /// How often something was freed.
        frees: u64,
    },
    /// The memory belongs to the caller, its bytes cannot go elsewhere.
    Lent,
    /// The device could not be given what was placed.
    Limit(LimitExceeded),
    /// Something else, in its own words.
    Other(String),
}

/// Why a strategy did not place a buffer: what was asked, and what was in the way.
///
/// As JSON: `reason` (a stable name), `asked` in bytes, `limit` (bytes, or mappings for
/// `mappings`; null when there is no figure), `set_by` (null when nothing sets it) and
/// `text`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reason {
    /// Bytes asked for.
    pub asked: u64,
    /// What was in the way.
    pub cause: Cause,
}

impl Reason {
    /// A stable name in kebab case.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.cause {
            Cause::SmallerThanPage(_) => "smaller-than-page",
            Cause::NoPool => "no-pool",
            Cause::PoolSpent { .. } => "pool-spent",
            Cause::HugePages { .. } => "huge-pages",
            Cause::NotPopulated { .. } => "not-populated",
            Cause::MemoryLock { .. } => "memory-lock",
            Cause::UserMemoryLock { .. } => "user-memory-lock",
            Cause::AddressMask { .. } => "address-mask",
            Cause::IovaRun { .. } => "iova-run",
            Cause::Mappings { .. } => "mappings",
            Cause::Translation(_) => "translation",
            Cause::Frames(_) => "frames",
            Cause::NotContiguous { .. } => "not-contiguous",
            Cause::OtherNode { .. } => "other-node",
            Cause::NoPatience => "no-patience",
            Cause::Waited { .. } => "waited",
            Cause::Lent => "lent",
            Cause::Limit(_) => "device-limit",
            Cause::Other(_) => "other",
        }
    }

    /// The limit that was met: bytes, or mappings for [`Cause::Mappings`].
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        match self.cause {
            Cause::SmallerThanPage(page) => Some(page.bytes() as u64),
            Cause::NoPool | Cause::NoPatience => Some(0),
            Cause::PoolSpent { longest, .. }
            | Cause::IovaRun { longest, .. }
            | Cause::NotContiguous { longest, .. } => Some(longest),
            Cause::HugePages { page, free } => free.map(|free| free * page.bytes() as u64),
            Cause::MemoryLock { limit, .. } | Cause::UserMemoryLock { limit } => Some(limit),
            Cause::AddressMask { mask, .. } => Some(mask),
            Cause::Mappings { available, .. } => Some(available),
            Cause::NotPopulated { .. }
            | Cause::OtherNode { .. }
            | Cause::Translation(_)
            | Cause::Frames(_)
            | Cause::Waited { .. }
            | Cause::Lent
            | Cause::Other(_) => None,
            Cause::Limit(LimitExceeded::TooManySegments { limit, .. }) => Some(limit),
            Cause::Limit(_) => None,
        }
    }

    /// Where the limit is set.
    #[must_use]
    pub fn set_by(&self) -> Option<String> {
        Some(match self.cause {
            Cause::NoPool | Cause::PoolSpent { .. } => "what Device::reserve was asked for".into(),
            Cause::HugePages { page, .. } => format!("{}/nr_hugepages", page.pool()?),
            Cause::NotPopulated { page, .. } => page.refused_by().into(),
            Cause::MemoryLock { .. } | Cause::UserMemoryLock { .. } => {
                "RLIMIT_MEMLOCK (`ulimit -l`, or `memlock` in /etc/security/limits.conf)".into()
            }
            Cause::AddressMask { .. } => "the device's address bits".into(),
            Cause::IovaRun { .. } => {
                "the IOMMU's ranges (/sys/kernel/iommu_groups/*/reserved_regions), the device's \
                 address bits and what is mapped already"
                    .into()
            }
            Cause::Mappings { .. } => {
                "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit".into()
            }
            Cause::Frames(_) => "CAP_SYS_ADMIN".into(),
            Cause::NotContiguous { .. } => "how fragmented the machine's memory is".into(),
            Cause::OtherNode { wanted, .. } => {
                format!("the free memory of /sys/devices/system/node/node{wanted}/meminfo")
            }
            Cause::NoPatience | Cause::Waited { .. } => "Request::patience".into(),
            Cause::Limit(_) => "what the device takes (Device::set_dma_limits)".into(),
            Cause::Translation(_) => "whether the machine has an IOMMU in use".into(),
            Cause::SmallerThanPage(_) | Cause::Lent | Cause::Other(_) => return None,
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = Size(self.asked);
        match &self.cause {
            Cause::SmallerThanPage(_) => write!(f, "{asked} do not fill one page"),
            Cause::NoPool => f.write_str("the request names no pool"),
            Cause::PoolSpent { capacity, free, longest } => write!(
                f,
                "{asked} asked for, the longest free piece has {}: {} of {} reserved are free",
                Size(*longest),
                Size(*free),
                Size(*capacity)
            ),
            Cause::HugePages { page, free } => {
                let needed = self.asked.div_ceil(page.bytes() as u64);
                // Only sizes with a pool get here.
                let path = page.pool().unwrap_or_default();
                match free {
                    Some(free) => write!(
                        f,
                        "{needed} page{} needed, {free} free: echo {needed} > {path}/nr_hugepages",
                        plural(needed)
                    ),
                    None => write!(f, "the kernel has no pool of {page}: {path} is missing"),
                }
            }
            Cause::NotPopulated { page, errno } => write!(
                f,
                "{page} are promised and cannot be had: {}; look at {}",
                Errno::from_raw(*errno).desc(),
                page.refused_by()
            ),
            Cause::MemoryLock { limit, locked } => write!(
                f,
                "the limit on locked memory is {}, {} are locked and {asked} more are asked for: \
                 raise RLIMIT_MEMLOCK (`ulimit -l`, or `memlock` in /etc/security/limits.conf)",
                Size(*limit),
                Size(*locked)
            ),
            Cause::UserMemoryLock { limit } => write!(
                f,
                "all processes of this user may pin {} together through iommufd, and \
                 {asked} more are asked for: raise RLIMIT_MEMLOCK (`ulimit -l`, or `memlock` in \
                 /etc/security/limits.conf), end what else pins memory, or open the device \
                 through type1, which counts for each process by itself",
                Size(*limit)
            ),
            Cause::AddressMask { mask, lowest } => {
                write!(f, "the device reaches addresses up to {mask:#x}, ")?;
                match lowest {
                    Some(lowest) => write!(f, "the first that can be had is {lowest:#x}"),
                    None => f.write_str("none below can be had"),
                }
            }
            Cause::IovaRun { needed, align, mask, free, longest } => write!(
                f,
                "no free IOVA run of {} aligned to {align:#x} under {mask:#x}: {} are free there, \
                 the longest run has {}",
                Size(*needed),
                Size(*free),
                Size(*longest)
            ),
            Cause::Mappings { needed, available } => write!(
                f,
                "{needed} mapping{} needed, {available} left: raise \
                 /sys/module/vfio_iommu_type1/parameters/dma_entry_limit",
                plural(*needed)
            ),
            Cause::Translation(Translation::Iommu) => {
                f.write_str("an IOMMU translates: physical addresses mean nothing to the device")
            }
            Cause::Translation(Translation::Physical) => {
                f.write_str("no IOMMU translates: the device sees physical addresses")
            }
            Cause::Frames(error) => error.fmt(f),
            Cause::NotContiguous { needed, longest, held } => write!(
                f,
                "no {} lie next to each other, the longest run has {} ({} were held while trying \
                 again)",
                Size(*needed),
                Size(*longest),
                Size(*held)
            ),
            Cause::OtherNode { wanted, elsewhere } => write!(
                f,
                "NUMA node {wanted} has too little memory left: {} of {asked} came from others",
                Size(*elsewhere)
            ),
            Cause::NoPatience => f.write_str("the caller does not wait"),
            Cause::Waited { milliseconds, frees } => {
                write!(f, "freed {frees} times in {milliseconds} ms, never enough")
            }
            Cause::Lent => f.write_str("the memory is the caller's, its bytes cannot move"),
            Cause::Limit(limit) => limit.fmt(f),
            Cause::Other(text) => f.write_str(text),
        }
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut reason = serializer.serialize_struct("Reason", 5)?;
        reason.serialize_field("reason", self.name())?;
        reason.serialize_field("asked", &self.asked)?;
        reason.serialize_field("limit", &self.limit())?;
        reason.serialize_field("set_by", &self.set_by())?;
        reason.serialize_field("text", &self.to_string())?;
        reason.end()
    }
}
