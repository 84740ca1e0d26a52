//! The pages that memory is made of.

use std::fmt;
use std::sync::OnceLock;

/// The size of a page of memory, as the kernel hands it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub enum PageSize {
    /// The base page: 4 KiB, or what the kernel was built for.
    #[cfg_attr(feature = "serde", serde(rename = "4K"))]
    Base,
    /// Base pages that the kernel is asked to make huge (`MADV_HUGEPAGE`), 2 MiB aligned.
    #[cfg_attr(feature = "serde", serde(rename = "transparent-2M"))]
    Transparent,
    /// A page of the 2 MiB pool (`/sys/kernel/mm/hugepages/hugepages-2048kB`).
    #[cfg_attr(feature = "serde", serde(rename = "2M"))]
    Huge2M,
    /// A page of the 1 GiB pool (`/sys/kernel/mm/hugepages/hugepages-1048576kB`).
    #[cfg_attr(feature = "serde", serde(rename = "1G"))]
    Huge1G,
}

impl PageSize {
    /// From the largest to the smallest, in the order that they are worth trying.
    pub const DESCENDING: [PageSize; 4] =
        [PageSize::Huge1G, PageSize::Huge2M, PageSize::Transparent, PageSize::Base];

    /// Alignment and granularity in bytes.
    #[must_use]
    pub fn bytes(self) -> usize {
        match self {
            PageSize::Base => base_page(),
            PageSize::Transparent | PageSize::Huge2M => 2 << 20,
            PageSize::Huge1G => 1 << 30,
        }
    }

    /// The directory of the kernel's pool, for pages that come from one.
    #[must_use]
    pub const fn pool(self) -> Option<&'static str> {
        match self {
            PageSize::Huge2M => Some("/sys/kernel/mm/hugepages/hugepages-2048kB"),
            PageSize::Huge1G => Some("/sys/kernel/mm/hugepages/hugepages-1048576kB"),
            PageSize::Base | PageSize::Transparent => None,
        }
    }

    /// What keeps pages that are promised from being had.
    pub(in crate::dma) const fn refused_by(self) -> &'static str {
        match self {
            PageSize::Huge2M => "hugetlb.2MB.max of the process's cgroup, and its memory policy",
            PageSize::Huge1G => "hugetlb.1GB.max of the process's cgroup, and its memory policy",
            PageSize::Base | PageSize::Transparent => {
                "the room of the file system, and memory.max of the process's cgroup"
            }
        }
    }

    /// Pages that are free in the kernel's pool; `None` when there is no such pool.
    #[must_use]
    pub fn free(self) -> Option<u64> {
        let text = std::fs::read_to_string(format!("{}/free_hugepages", self.pool()?)).ok()?;
        text.trim().parse().ok()
    }
}

/// Bytes of the kernel's base page (`sysconf(_SC_PAGESIZE)`): 64 KiB in some kernels for
/// 64-bit Arm.
fn base_page() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let bytes = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE);
        // POSIX has every system answer; 4 KiB is what one that does not would have.
        bytes.ok().flatten().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(4096)
    })
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageSize::Base => return write!(f, "{} KiB pages", self.bytes() >> 10),
            PageSize::Transparent => "transparent huge pages",
            PageSize::Huge2M => "2 MiB huge pages",
            PageSize::Huge1G => "1 GiB huge pages",
        })
    }
}
