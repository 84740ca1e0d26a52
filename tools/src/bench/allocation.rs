//! What it costs to get memory for the device, by strategy and page size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vfio_dma::backend::Translation;
use vfio_dma::dma::{
    Allocator, Direction, DmaError, PageSize, Placement, Pool, Request, Reservation, Strategy,
};

use super::results::Allocation;
use super::spread::spread;

/// Bytes of each buffer.
const LEN: usize = 2 << 20;

/// One method of getting memory, and what it took so far.
struct Method {
    strategy: Strategy,
    failed: Option<String>,
    allocate: Vec<f64>,
    /// The time of map calls in it.
    map: Vec<f64>,
    release: Vec<f64>,
    /// Time that it took in all.
    spent: Duration,
    segments: u64,
    map_calls: u64,
}

/// The methods of getting memory for a device.
pub(super) struct Allocations {
    allocator: Allocator,
    methods: Vec<Method>,
    /// What one method may take over all rounds.
    share: Duration,
    pool: Option<Arc<Pool>>,
}

impl Allocations {
    /// Every strategy that the device's translation has; `budget` is for all rounds of all.
    pub(super) fn new(allocator: &Allocator, budget: Duration) -> Self {
        let contiguous = |pages| match allocator.space().translation() {
            Translation::Iommu => Strategy::IommuContiguous(pages),
            Translation::Physical => Strategy::PhysicalContiguous(pages),
        };
        let reservation = Reservation { len: LEN, page_size: PageSize::Base };
        let (pool, why) = match allocator.reserve(&[reservation]) {
            Ok(pool) => (Some(pool), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let method = |strategy| Method {
            strategy,
            failed: None,
            allocate: Vec::new(),
            map: Vec::new(),
            release: Vec::new(),
            spent: Duration::ZERO,
            segments: 0,
            map_calls: 0,
        };
        let mut methods = vec![Method { failed: why, ..method(Strategy::Pool) }];
        methods.extend(PageSize::DESCENDING.map(contiguous).map(method));
        methods.extend([Strategy::SmallerBlocks, Strategy::ScatterGather].map(method));
        let share = budget / methods.len() as u32;
        Allocations { allocator: allocator.clone(), methods, share, pool }
    }

    /// Gets and gives back memory by every method once.
    pub(super) fn round(&mut self) {
        for method in &mut self.methods {
            // One that failed fails for a reason that stays; one that is slow has had its
            // share, and its spread tells of how many rounds it is.
            let used_up = method.allocate.len() >= 2 && method.spent >= self.share;
            if method.failed.is_some() || used_up {
                continue;
            }
            // In single pages, as scatter/gather is measured with.
            let placement = match method.strategy {
                Strategy::ScatterGather => Placement::ScatterGather,
                _ => Placement::Auto,
            };
            let mut request = Request::new(LEN, Direction::FromDevice)
                .placement(placement)
                .order([method.strategy]);
            request.pool.clone_from(&self.pool);
            let before = self.allocator.space().usage();
            let begin = Instant::now();
            let placed = self.allocator.allocate(&request);
            let placing = begin.elapsed();
            match placed {
                Ok(buffer) => {
                    method.segments = buffer.segments().len() as u64;
                    let after = self.allocator.space().usage();
                    method.map_calls = after.map_calls - before.map_calls;
                    let begin = Instant::now();
                    let released = buffer.release();
                    let releasing = begin.elapsed();
                    method.failed = released.err().map(|error| error.to_string());
                    method.allocate.push(placing.as_nanos() as f64);
                    if method.map_calls > 0 {
                        method.map.push((after.map_time - before.map_time).as_nanos() as f64);
                    }
                    method.release.push(releasing.as_nanos() as f64);
                    method.spent += placing + releasing;
                }
                Err(error) => method.failed = Some(reason(&error, method.strategy)),
            }
        }
    }

    /// What came of it.
    pub(super) fn finish(self) -> Vec<Allocation> {
        let row = |method: Method| Allocation {
            strategy: method.strategy.to_string(),
            page_size: match method.strategy {
                Strategy::IommuContiguous(pages) | Strategy::PhysicalContiguous(pages) => {
                    Some(pages.bytes() as u64)
                }
                _ => None,
            },
            len: LEN as u64,
            failed: method.failed,
            allocate: spread(method.allocate),
            map: spread(method.map),
            release: spread(method.release),
            segments: method.segments,
            map_calls: method.map_calls,
        };
        self.methods.into_iter().map(row).collect()
    }
}

/// The reason alone: the strategy is known.
fn reason(error: &DmaError, strategy: Strategy) -> String {
    match error {
        DmaError::NoPlacement(report) => {
            report.reason(strategy).map_or_else(|| error.to_string(), ToString::to_string)
        }
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_dma::device::Device;
    use vfio_dma::dma::DmaLimits;
    use vfio_dma_model::embedded::Embedded;
    use vfio_dma_model::ioat::IoatConfig;

    #[test]
    fn every_way_is_measured_or_says_why_not() {
        let model = Embedded::new(IoatConfig::default()).unwrap();
        let device = Device::open(model.attach().unwrap()).unwrap();
        let mut allocations = Allocations::new(device.allocator(), Duration::from_secs(10));
        for _ in 0..3 {
            allocations.round();
        }
        let rows = allocations.finish();
        let find = |name: &str| rows.iter().find(|row| row.strategy.contains(name)).unwrap();
        for row in &rows {
            assert_ne!(row.failed.is_some(), row.allocate.is_some(), "{row:?}");
            assert_eq!(row.map.is_some(), row.map_calls > 0, "{row:?}");
            if let Some((map, allocate)) = row.map.zip(row.allocate) {
                assert!(map.min > 0.0 && map.max < allocate.max, "a part of it: {row:?}");
            }
        }
        let sg = find("scatter/gather");
        assert_eq!((sg.segments, sg.map_calls, sg.allocate.unwrap().rounds), (512, 512, 3));
        let base = find("4 KiB pages");
        assert_eq!((base.segments, base.map_calls, base.page_size), (1, 1, Some(4096)));
        assert_eq!(find("pool").map_calls, 0, "a pool is mapped already");
        assert_eq!(device.space().usage().mappings, 0, "the pool goes with its handle");
    }

    #[test]
    fn a_reason_is_told_without_the_list_of_strategies() {
        let model = Embedded::new(IoatConfig::default()).unwrap();
        let mut device = Device::open(model.attach().unwrap()).unwrap();
        // No page lies below the first one.
        let low = DmaLimits { address_mask: 0xfff, ..DmaLimits::default() };
        device.set_dma_limits(low).unwrap();
        let mut allocations = Allocations::new(device.allocator(), Duration::from_secs(10));
        allocations.round();
        for row in allocations.finish() {
            let failed = row.failed.unwrap();
            assert!(!failed.is_empty() && row.allocate.is_none(), "{failed}");
        }
    }
}
