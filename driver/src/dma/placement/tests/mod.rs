//! Every strategy wins once and is the reason for falling through once.

mod in_place;
mod later;
mod limits;
mod no_iommu;
mod pool;

use super::*;
use crate::dma::testing::Lab;
use crate::dma::{Direction, Placement};

impl Lab {
    /// What a strategy works with, for a device without limits.
    fn context<'a>(&'a self, request: &'a Request) -> Context<'a> {
        Context::new(&self.device, &self.space, &DmaLimits::default(), request).unwrap()
    }
}

const BOTH: Direction = Direction::Bidirectional;
const CONTIGUOUS: Strategy = Strategy::IommuContiguous(PageSize::Base);

fn report(result: Result<Buffer, DmaError>) -> Report {
    match result {
        Ok(buffer) => buffer.report().clone(),
        Err(DmaError::NoPlacement(report)) => report,
        Err(error) => panic!("{error}"),
    }
}

fn winner(report: &Report) -> Option<Strategy> {
    report.placed().map(|(strategy, _, _)| strategy)
}

fn cause(report: &Report, strategy: Strategy) -> &Cause {
    &report.reason(strategy).unwrap_or_else(|| panic!("{strategy} has no reason: {report}")).cause
}

#[test]
fn contiguous_wins_where_nothing_is_in_the_way() {
    let lab = Lab::wide();
    for len in [1, 4096, 100_000, (4 << 20) + 1] {
        let mut buffer = lab.place(&Request::new(len, BOTH)).unwrap();
        lab.verify(&mut buffer);
        let (strategy, segments, map_calls) = buffer.report().placed().unwrap();
        // The 2 MiB pool of the machine may have pages or not.
        assert!(matches!(strategy, Strategy::IommuContiguous(_)), "{}", buffer.report());
        assert_eq!((segments, map_calls), (1, 1));
        assert_eq!(*cause(buffer.report(), Strategy::Pool), Cause::NoPool);
    }
    assert_eq!(lab.space.usage().map_calls, 4);
    assert!(lab.is_empty());
}

#[test]
fn transparent_huge_pages_make_one_map_call() {
    let lab = Lab::wide();
    let request =
        Request::new(8 << 20, BOTH).order([Strategy::IommuContiguous(PageSize::Transparent)]);
    let mut buffer = lab.place(&request).unwrap();
    lab.verify(&mut buffer);
    assert_eq!(buffer.segments()[0].iova.0 % (2 << 20), 0, "aligned, so that huge pages map");
    assert_eq!(lab.space.usage().map_calls, 1);
}

#[test]
fn a_gibibyte_is_one_map_call_when_contiguous() {
    // Of pages that are never touched: the table does not pin them.
    let lab = Lab::wide();
    let request =
        Request::new(1 << 30, BOTH).order([Strategy::IommuContiguous(PageSize::Transparent)]);
    let buffer = lab.place(&request).unwrap();
    assert_eq!(buffer.segments().len(), 1);
    drop(buffer);
    let usage = lab.space.usage();
    assert_eq!((usage.map_calls, usage.unmap_calls), (1, 1));
    assert!(!usage.map_time.is_zero(), "{usage:?}");
    assert!(lab.is_empty());
}

#[test]
fn a_pool_of_no_huge_pages_is_a_reason() {
    // More than any machine that runs this has; the kernel refuses for real.
    let lab = Lab::wide();
    let len = 1 << 44;
    let order = [PageSize::Huge1G, PageSize::Huge2M].map(Strategy::IommuContiguous);
    let report = report(lab.place(&Request::new(len, BOTH).order(order)));
    for (strategy, page) in [(order[0], PageSize::Huge1G), (order[1], PageSize::Huge2M)] {
        let Cause::HugePages { page: found, free } = cause(&report, strategy) else {
            panic!("{report}");
        };
        assert_eq!(*found, page);
        assert_eq!(*free, page.free());
        let reason = report.reason(strategy).unwrap();
        assert!(reason.set_by().unwrap().ends_with("kB/nr_hugepages"));
        assert!(reason.to_string().contains(page.pool().unwrap()), "{reason}");
    }
    assert!(lab.is_empty());
}

#[test]
fn fragmented_iovas_give_blocks_the_longest_first() {
    let lab = Lab::fragmented(&[20, 40, 30, 16]);
    let len = 80 * 4096 - 5;
    let mut buffer = lab.place(&Request::new(len, BOTH)).unwrap();
    lab.verify(&mut buffer);
    assert_eq!(winner(buffer.report()), Some(Strategy::SmallerBlocks), "{}", buffer.report());
    assert_eq!(
        *cause(buffer.report(), CONTIGUOUS),
        Cause::IovaRun {
            needed: 80 * 4096,
            align: 4096,
            mask: u64::MAX,
            free: 106 * 4096,
            longest: 40 * 4096
        }
    );
    let lens: Vec<usize> = buffer.segments().iter().map(|segment| segment.len).collect();
    assert_eq!(lens, [40 * 4096, 30 * 4096, 10 * 4096 - 5]);
    assert_eq!(buffer.report().placed().unwrap().2, 3, "one map call for each");
    drop(buffer);
    assert!(lab.is_empty());
}

#[test]
fn blocks_need_a_least_length_and_scatter_gather_does_not() {
    let lab = Lab::fragmented(&[3; 30]);
    let mut buffer = lab.place(&Request::new(80 * 4096, BOTH)).unwrap();
    lab.verify(&mut buffer);
    let report = buffer.report();
    assert_eq!(winner(report), Some(Strategy::ScatterGather), "{report}");
    assert!(matches!(
        cause(report, Strategy::SmallerBlocks),
        Cause::IovaRun { needed: 0x1_0000, longest: 0x3000, .. }
    ));
    assert_eq!(buffer.segments().len(), 27, "one for each run, not for each page");
    let text = report.to_string();
    assert!(text.contains("27 segments with 27 map calls: scatter/gather"), "{text}");
    assert!(text.contains("deferred until memory is freed: the caller does not wait"), "{text}");
}

#[test]
fn nothing_is_placed_when_even_scatter_gather_finds_no_room() {
    let lab = Lab::fragmented(&[3; 10]);
    let report = report(lab.place(&Request::new(31 * 4096, BOTH)));
    assert_eq!(winner(&report), None);
    assert!(matches!(
        cause(&report, Strategy::ScatterGather),
        Cause::IovaRun { free: 122_880, .. }
    ));
    assert!(report.to_string().starts_with("no buffer of 124 KiB could be placed"), "{report}");
    assert!(lab.is_empty());
}

#[test]
fn forced_scatter_gather_takes_pages_that_are_not_neighbours() {
    let lab = Lab::wide();
    let request = Request::new(50_000, BOTH).placement(Placement::ScatterGather);
    let mut buffer = lab.place(&request).unwrap();
    lab.verify(&mut buffer);
    assert_eq!(buffer.segments().len(), 13);
    assert_eq!(buffer.report().attempts.len(), 1);
    let longer = Request { longest_run: Some(16 << 10), ..request.clone() };
    let mut buffer = lab.place(&longer).unwrap();
    lab.verify(&mut buffer);
    assert_eq!(buffer.segments().len(), 4);
    let forced = Request::new(50_000, BOTH).placement(Placement::Contiguous);
    assert_eq!(lab.place(&forced).unwrap().segments().len(), 1);
    let narrow = Lab::fragmented(&[3; 30]);
    let report = report(narrow.place(&forced));
    assert_eq!(winner(&report), None, "contiguous or nothing");
    assert_eq!(report.attempts.len(), 6);
}

#[test]
fn a_caller_chooses_the_order() {
    let lab = Lab::wide();
    let order = [Strategy::SmallerBlocks, Strategy::ScatterGather];
    let mut buffer = lab.place(&Request::new(100_000, BOTH).order(order)).unwrap();
    lab.verify(&mut buffer);
    assert_eq!(winner(buffer.report()), Some(Strategy::SmallerBlocks));
    assert_eq!(buffer.segments().len(), 1, "the fewest that there can be");
    let none = report(lab.place(&Request::new(1, BOTH).order([])));
    assert!(none.attempts.is_empty());
    let wrong = [Strategy::PhysicalContiguous(PageSize::Base), Strategy::InPlace, Strategy::Remap];
    let report = report(lab.place(&Request::new(1, BOTH).order(wrong)));
    assert_eq!(*cause(&report, wrong[0]), Cause::Translation(Translation::Iommu));
    assert!(report.attempts.iter().all(|attempt| attempt.tries == 0), "{report}");
}

#[test]
fn memory_with_files_is_mapped_file_by_file() {
    let ranges = vec![0x1000..=0x3fff_ffff];
    let lab = Lab::with(ranges, |info| info.needs_fd = true, None);
    for strategy in [CONTIGUOUS, Strategy::SmallerBlocks, Strategy::ScatterGather] {
        let mut buffer = lab.place(&Request::new(3 << 20, BOTH).order([strategy])).unwrap();
        lab.verify(&mut buffer);
        assert_eq!(buffer.segments().len(), 1, "{}", buffer.report());
        let files = lab.table.files();
        assert!(!files.is_empty() && files.iter().all(Option::is_some), "{files:?}");
        // One mapping for each file; blocks may be made of pages of several sizes.
        assert_eq!(buffer.report().placed().unwrap().2, files.len() as u64);
        drop(buffer);
        assert!(lab.is_empty());
    }
    // Pages that are not neighbours are one file at several offsets.
    let scattered = Request::new(3 * 4096, BOTH).placement(Placement::ScatterGather);
    let mut buffer = lab.place(&scattered).unwrap();
    lab.verify(&mut buffer);
    let offsets: Vec<u64> = lab.table.files().into_iter().map(|file| file.unwrap().1).collect();
    assert_eq!(offsets, [0x2000, 0x1000, 0]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let lab = Lab::wide();
    assert!(matches!(lab.place(&Request::new(0, BOTH)), Err(DmaError::Empty)));
    for len in [usize::MAX, usize::MAX / 2, 1 << 62] {
        let report = report(lab.place(&Request::new(len, BOTH)));
        assert_eq!(winner(&report), None);
    }
    let request = Request::new(1, BOTH).alignment(3);
    assert!(matches!(lab.place(&request), Err(DmaError::BadAlignment { alignment: 3 })));
    let buffer = lab.place(&Request::new(10, BOTH)).unwrap();
    for (offset, len) in [(11, 0), (0, 11), (usize::MAX, 1), (10, 1)] {
        assert!(buffer.segments_of(offset, len).is_err());
    }
    drop(buffer);
    assert!(lab.is_empty());
}

#[cfg(feature = "serde")]
#[test]
fn reports_are_stable_json() {
    let lab = Lab::fragmented(&[20, 20]);
    let request = Request::new(30 * 4096, BOTH).order([CONTIGUOUS, Strategy::SmallerBlocks]);
    let buffer = lab.place(&request).unwrap();
    let json = serde_json::to_value(buffer.report()).unwrap();
    let reason = &json["attempts"][0]["outcome"]["failed"];
    assert_eq!(json["attempts"][0]["strategy"]["iommu-contiguous"], "4K");
    assert_eq!(reason["reason"], "iova-run");
    assert_eq!(reason["asked"], 30 * 4096);
    assert_eq!(reason["limit"], 20 * 4096);
    assert!(reason["set_by"].as_str().unwrap().contains("reserved_regions"));
    assert!(reason["text"].as_str().unwrap().contains("120 KiB"));
    let placed = &json["attempts"][1];
    assert_eq!(placed["strategy"], "smaller-blocks");
    assert_eq!(placed["tries"], 1);
    assert_eq!(placed["outcome"]["placed"], serde_json::json!({ "segments": 2, "map_calls": 2 }));
}

fn segments(buffer: &Buffer) -> Vec<Segment> {
    buffer.segments().to_vec()
}
