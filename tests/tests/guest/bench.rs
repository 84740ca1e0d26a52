//! The benchmark, inside a guest.

use std::time::{Duration, Instant};

use vfio_dma_tests::{address, vfio_dma};
use vfio_dma_tools::bench::results::{Cell, Method, Results, Series};

use crate::support::bind;

/// What the quick profile may take, the start of the program and all files included.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs the quick profile on the guest's first device.
fn quick(name: &str) -> Results {
    bind(address(0));
    let json = format!("/tmp/{name}.json");
    let begin = Instant::now();
    let page = format!("/tmp/{name}.html");
    let device = address(0).to_string();
    let said = vfio_dma(&["bench", &device, "--json", &json, "--report", &page]);
    let elapsed = begin.elapsed();
    assert_eq!(said.status, 0, "{said:#?}");
    println!("{}\n{elapsed:?}", said.out);
    assert!(elapsed < LIMIT, "{elapsed:?}");
    assert!(said.out.contains("Contiguous against scatter/gather"), "{said:#?}");
    assert!(std::fs::read_to_string(&page).unwrap().contains("<svg"));
    let text = std::fs::read_to_string(&json).unwrap();
    let results: Results = serde_json::from_str(&text).unwrap();
    assert_eq!(results.ended_early, None);
    assert_eq!(results.setup.device.driver, name);
    assert_eq!(results.setup.device.location, address(0).to_string());
    assert!(results.setup.machine.hypervisor.as_ref().unwrap().contains("QEMU"), "{text}");
    for cell in &results.cells {
        assert_eq!(cell.bytes_per_second.rounds, 10, "{cell:?}");
    }
    results
}

/// Descriptors of the ring that is measured with.
const RING: u64 = 4096;

fn scattered(results: &Results) -> Vec<&Cell> {
    let of = |cell: &&Cell| cell.series == Series::Segments && cell.segment.is_some();
    results.cells.iter().filter(of).collect()
}

pub(crate) fn ioat_is_measured_in_time() {
    let results = quick("ioat");
    let scattered = scattered(&results);
    assert!(!scattered.is_empty(), "{:?}", results.notes);
    for cell in scattered {
        assert!(cell.of_contiguous.is_some(), "{cell:?}");
        // A doorbell's descriptors end with a marker, and so does each quarter of the ring.
        let pieces = cell.transfer / cell.segment.unwrap();
        let markers = (pieces * u64::from(cell.batch)).div_ceil(RING / 4 - 1);
        let expected = pieces as f64 + markers as f64 / f64::from(cell.batch);
        assert_eq!(cell.descriptors, expected, "{cell:?}");
    }
    let has = |series| results.cells.iter().any(|cell| cell.series == series);
    assert!(has(Series::Batch) && has(Series::Channels) && has(Series::Latency));
}

pub(crate) fn litepcie_is_measured_in_time() {
    let results = quick("litepcie");
    assert!(results.notes.iter().any(|note| note.contains("loopback")), "{:?}", results.notes);
    let scattered = scattered(&results);
    // A machine that does much else has no time for all variants, which the notes say.
    let is_short = results.notes.iter().any(|note| note.contains("for lack of time"));
    assert!(is_short || !scattered.is_empty(), "{:?}", results.notes);
    for cell in scattered {
        assert!(is_short || cell.of_contiguous.is_some(), "{cell:?}");
        assert!(cell.cycles.is_none(), "{cell:?}");
        // Both sides.
        let pieces = cell.transfer / cell.segment.unwrap();
        assert_eq!(cell.descriptors, 2.0 * pieces as f64, "{cell:?}");
    }
}

pub(crate) fn edu_is_measured_in_time_and_says_what_was_left_out() {
    let results = quick("edu");
    assert!(results.notes.iter().any(|note| note.contains("100 ms")), "{:?}", results.notes);
    let [cell] = scattered(&results)[..] else { panic!("one: {:?}", results.cells) };
    assert_eq!((cell.transfer, cell.segment, cell.map_calls), (8192, Some(4096), 4));
    // 100 ms for each piece, one way.
    let latency = cell.latency.as_ref().unwrap();
    assert!(latency.p50 >= 380_000_000, "{latency:?}");
}

pub(crate) fn nvme_is_measured_in_time() {
    let results = quick("nvme");
    assert!(results.notes.iter().any(|note| note.contains("the medium")), "{:?}", results.notes);
    let scattered = scattered(&results);
    // A machine that does much else has no time for all variants, which the notes say.
    let is_short = results.notes.iter().any(|note| note.contains("for lack of time"));
    assert!(is_short || !scattered.is_empty(), "{:?}", results.notes);
    // Each way to tell where data is, in both shapes, and what a read takes without its data.
    let methods: Vec<_> = (results.cells.iter())
        .filter(|cell| cell.series == Series::Methods)
        .map(|cell| (cell.segment, cell.method))
        .collect();
    let told = [None, Some(4096)].map(|segment| [Method::Prp, Method::Sgl].map(|m| (segment, m)));
    // QEMU's drive does not say that it verifies.
    let expected = [told.as_flattened(), &[(None, Method::OneBlock)]].concat();
    assert!(is_short || methods == expected, "{methods:?}: {:?}", results.notes);
    let is_said = results.notes.iter().any(|note| note.contains("the medium's"));
    assert!(is_short || is_said, "{:?}", results.notes);
    for cell in scattered {
        assert!(cell.of_contiguous.is_some(), "{cell:?}");
        // A command moves up to 512 KiB.
        let commands = cell.transfer.div_ceil(512 << 10);
        assert_eq!(cell.descriptors, commands as f64, "{cell:?}");
    }
    let has = |series| results.cells.iter().any(|cell| cell.series == series);
    let all = [Series::Batch, Series::Channels, Series::Latency].into_iter().all(has);
    assert!(is_short || all, "{:?}", results.notes);
}
