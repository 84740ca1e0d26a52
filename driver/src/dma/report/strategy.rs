//! The ways to place a buffer, and their order.

use std::fmt;

use crate::backend::Translation;
use crate::dma::PageSize;

/// Which strategies a caller wishes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Placement {
    /// All of them in order: contiguous where that can be had, scatter/gather otherwise.
    #[default]
    Auto,
    /// One segment, or nothing.
    Contiguous,
    /// Scatter/gather at once, in base pages that are not neighbours unless
    /// [`Request::longest_run`](crate::dma::Request::longest_run) says otherwise.
    ScatterGather,
}

/// A way to place a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Strategy {
    /// A piece of a [`Pool`](crate::dma::Pool) that the request names.
    Pool,
    /// Memory of this page size, mapped at one IOVA range through the IOMMU.
    IommuContiguous(PageSize),
    /// Physically contiguous memory: of base pages by holding what was not contiguous
    /// and trying again, of the other sizes by one allocation.
    PhysicalContiguous(PageSize),
    /// A few large blocks, the largest first.
    SmallerBlocks,
    /// Waiting until something is freed, then the strategies before it again.
    Deferred,
    /// Pages as they come, neighbours merged.
    ScatterGather,
    /// Memory that the caller has already, mapped where it is.
    InPlace,
    /// The same memory at one IOVA range instead of several.
    Remap,
}

impl Strategy {
    /// The order in which strategies are tried when the caller names none.
    #[must_use]
    pub fn order(placement: Placement, translation: Translation) -> Vec<Strategy> {
        let contiguous = |pages| match translation {
            Translation::Iommu => Strategy::IommuContiguous(pages),
            Translation::Physical => Strategy::PhysicalContiguous(pages),
        };
        let pool = [Strategy::Pool];
        let whole = pool.into_iter().chain(PageSize::DESCENDING.map(contiguous));
        match placement {
            Placement::Auto => whole
                .chain([Strategy::SmallerBlocks, Strategy::Deferred, Strategy::ScatterGather])
                .collect(),
            Placement::Contiguous => whole.chain([Strategy::Deferred]).collect(),
            Placement::ScatterGather => vec![Strategy::ScatterGather],
        }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Strategy::Pool => f.write_str("reserved pool"),
            Strategy::IommuContiguous(pages) => write!(f, "IOMMU-contiguous in {pages}"),
            Strategy::PhysicalContiguous(PageSize::Base) => {
                f.write_str("physically contiguous by hold and retry")
            }
            Strategy::PhysicalContiguous(pages) => write!(f, "physically contiguous in {pages}"),
            Strategy::SmallerBlocks => f.write_str("smaller blocks"),
            Strategy::Deferred => f.write_str("deferred until memory is freed"),
            Strategy::ScatterGather => f.write_str("scatter/gather"),
            Strategy::InPlace => f.write_str("the caller's memory in place"),
            Strategy::Remap => f.write_str("remapped at one IOVA range"),
        }
    }
}
