//! `vfio-dma bench`, as a user runs it, on the embedded model and on one behind a socket.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vfio_dma_model::ioat::IoatConfig;
use vfio_dma_tools::bench::results::{Results, Series, Spread};
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm;

/// Descriptors of the ring that is measured with.
const RING: u64 = 4096;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vfio-dma"));
    command.arg("bench").args(args).stdin(Stdio::null());
    command
}

fn bench(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn results(path: &Path) -> Results {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Few and short.
const SMALL: [&str; 8] = ["--size", "4K", "--segment", "1K", "--batch", "4", "--slice", "1"];

#[test]
fn counts_are_exact_and_the_file_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("results.json");
    let begin = Instant::now();
    let output = bench(&[
        "model",
        "--size",
        "4K,64K",
        "--segment",
        "contiguous,1K,4K",
        "--batch",
        "1,8",
        "--channels",
        "2",
        "--slice",
        "1",
        "--json",
        json.to_str().unwrap(),
    ]);
    assert!(output.status.success(), "{}", err(&output));
    assert_eq!(err(&output), "", "no progress without a terminal");
    assert!(begin.elapsed() < Duration::from_secs(30));
    let results = results(&json);
    let again: Results = serde_json::from_str(&serde_json::to_string(&results).unwrap()).unwrap();
    assert_eq!(again, results);
    assert_eq!((results.ended_early.as_deref(), results.setup.rounds), (None, 10));
    assert_eq!(results.setup.device.iommu, "embedded");
    assert!(results.setup.peak_memory.unwrap() > 0);

    let of = |series| results.cells.iter().filter(move |cell| cell.series == series);
    let segments: Vec<(u64, Option<u64>, u64)> =
        of(Series::Segments).map(|cell| (cell.transfer, cell.segment, cell.map_calls)).collect();
    // Both sides have a map call for each run: all of it, or its pages.
    let expected = [
        (4096, None, 2),
        (4096, Some(1024), 2),
        (65_536, None, 2),
        (65_536, Some(1024), 32),
        (65_536, Some(4096), 32),
    ];
    assert_eq!(segments, expected);
    assert_eq!(of(Series::Batch).count(), 2);
    assert_eq!(of(Series::Channels).map(|cell| cell.channels).collect::<Vec<_>>(), [1, 2, 1, 2]);
    assert_eq!(of(Series::Latency).count(), 2);
    let slots: Vec<(u64, u32, u32)> =
        of(Series::Slots).map(|cell| (cell.transfer, cell.batch, cell.channels)).collect();
    assert_eq!(slots, [(4096, 32, 1), (4096, 32, 2)]);
    let small = results.small_copies.as_ref().unwrap();
    assert_eq!(small.rows.iter().map(|row| row.transfer).collect::<Vec<_>>(), [4096]);
    let is_quicker = small.rows[0].device <= small.rows[0].memcpy;
    assert_eq!(small.device_from, is_quicker.then_some(4096));
    for cell in &results.cells {
        let pieces = cell.segment.map_or(1, |segment| cell.transfer.div_ceil(segment));
        // A doorbell's descriptors end with a marker, and so does each quarter of the ring.
        let markers = (pieces * u64::from(cell.batch)).div_ceil(RING / 4 - 1);
        let expected = pieces as f64 + markers as f64 / f64::from(cell.batch);
        assert_eq!(cell.descriptors, expected, "{cell:?}");
        assert_eq!(cell.doorbells, 1.0 / f64::from(cell.batch), "{cell:?}");
        assert_eq!(cell.bytes_per_second.rounds, 10);
        assert_eq!(cell.of_memcpy.unwrap().rounds, 10);
        assert_eq!(cell.of_contiguous.is_some(), cell.segment.is_some());
        let latency = cell.latency.as_ref().unwrap();
        assert_eq!(latency.samples, cell.transfers);
        assert!(latency.p50 > 0 && latency.p50 <= latency.p99 && latency.p999 <= latency.max);
    }
    let copies: Vec<u64> = results.memcpy.iter().map(|memcpy| memcpy.transfer).collect();
    assert_eq!(copies, [4096, 65_536]);
    let sg = results.allocations.iter().find(|row| row.strategy == "scatter/gather").unwrap();
    assert!(sg.allocate.unwrap().median > 0.0 && sg.release.unwrap().median > 0.0);
    assert!(sg.map.unwrap().median > 0.0 && sg.map.unwrap().median < sg.allocate.unwrap().median);
    // Each is counted, and what the link has room for is the measured rate by its share.
    for cell in &results.cells {
        let link = cell.link.unwrap();
        let gbps = cell.bytes_per_second.median * 8.0 / 1e9 / link.share;
        assert!((link.gbps / gbps - 1.0).abs() < 1e-6, "{cell:?}");
        assert_eq!(link.ratio.is_some(), cell.segment.is_some(), "{cell:?}");
        assert!(link.ratio.is_none_or(|ratio| ratio < 1.0), "{cell:?}");
    }

    for line in out(&output).lines() {
        assert!(line.is_ascii() && line.len() <= 80, "{} columns: {line}", line.len());
    }
}

#[test]
fn two_files_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["a", "b", "changes"].map(|name| dir.path().join(name));
    let [a, b, changes] = paths.each_ref().map(|path| path.to_str().unwrap());
    for path in [a, b] {
        let mut args = vec!["model", "--json", path];
        args.extend(SMALL);
        assert!(bench(&args).status.success());
    }
    let output = bench(&["--compare", a, b, "--json", changes]);
    assert!(output.status.success(), "{}", err(&output));
    assert!(!out(&output).is_empty());
    let changes: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(changes).unwrap()).unwrap();
    let first = out(&output).lines().next().unwrap_or_default().to_owned();
    assert!(first.starts_with("No change beyond") || first.starts_with("Of "), "{first}");
    // A tenth of the rate in the second file is found, and fails when asked to.
    let mut slow = results(&paths[0]);
    for cell in &mut slow.cells {
        for spread in [Some(&mut cell.bytes_per_second), cell.of_memcpy.as_mut()] {
            let Some(Spread { median, p25, p75, min, max, .. }) = spread else { continue };
            [median, p25, p75, min, max].into_iter().for_each(|figure| *figure *= 0.1);
        }
    }
    let slower = dir.path().join("slower");
    std::fs::write(&slower, serde_json::to_string(&slow).unwrap()).unwrap();
    let slower = slower.to_str().unwrap();
    for (limit, status) in [("10", 1), ("95", 0)] {
        let output = bench(&["--compare", a, slower, "--fail-if-worse", limit]);
        assert_eq!(output.status.code(), Some(status), "{limit}: {}", err(&output));
        assert!(out(&output).lines().next().unwrap().contains(" worse, most of all "));
        assert_eq!(err(&output).contains("worse by more than 10%"), status == 1);
    }
    assert_eq!(bench(&["model", "--fail-if-worse", "10"]).status.code(), Some(2));
    let rows = results(&paths[0]);
    assert!(changes["rows"].as_array().unwrap().len() >= rows.cells.len() + rows.memcpy.len());
    // A file of another schema is not taken for one of this.
    let text = std::fs::read_to_string(a).unwrap().replacen("\"schema\": 1", "\"schema\": 9", 1);
    std::fs::write(a, text).unwrap();
    let output = bench(&["--compare", a, b]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("schema 9; this version reads 1"), "{}", err(&output));
}

#[test]
fn a_device_that_fails_leaves_what_was_measured() {
    // Again and again: a halt on a mark, which carries no data, fails no transfer.
    for (fault, reason) in [("gone@20000", "gone"), ("halt@/20000", "halted")] {
        let config = IoatConfig { faults: fault.parse().unwrap(), ..IoatConfig::default() };
        let served = Served::start(config).unwrap();
        let vm::Device::VfioUser { socket } = served.device() else { panic!("on a socket") };
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("results.json");
        let mut args = vec![socket.to_str().unwrap(), "--json", json.to_str().unwrap()];
        args.extend(SMALL);
        // So many that the device fails before the last also where all is slow.
        args.extend(["--rounds", "2000"]);
        let output = bench(&args);
        assert_eq!(output.status.code(), Some(1), "{fault}: {}", err(&output));
        assert!(err(&output).contains(reason), "{fault}: {}", err(&output));
        assert!(out(&output).contains("ENDED EARLY: in round"), "{fault}: {}", out(&output));
        let results = results(&json);
        let why = results.ended_early.unwrap();
        assert!(why.contains("in round") && why.contains(reason), "{fault}: {why}");
        assert!(!results.cells.is_empty() && !results.memcpy.is_empty(), "{fault}");
        assert!(results.cells.iter().all(|cell| cell.bytes_per_second.rounds < 2000), "{fault}");
        assert_eq!(results.setup.device.iommu, "vfio-user");
    }
}

#[test]
fn a_model_that_is_killed_leaves_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let [socket, json] = ["socket", "json"].map(|name| dir.path().join(name));
    let mut model = Command::new(env!("CARGO_BIN_EXE_vfio-dma"))
        .args(["model", "--socket"])
        .arg(&socket)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while !socket.exists() {
        assert!(begin.elapsed() < Duration::from_secs(10), "the model does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut args = vec![socket.to_str().unwrap(), "--json", json.to_str().unwrap()];
    args.extend(SMALL);
    args.extend(["--rounds", "10000"]);
    let child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    model.kill().unwrap();
    model.wait().unwrap();
    let killed = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(killed.elapsed() < Duration::from_secs(10), "{:?}", killed.elapsed());
    assert_eq!(output.status.code(), Some(1), "{}", err(&output));
    assert!(err(&output).contains("the server closed the connection"), "{}", err(&output));
    // Of buffers in hundreds of segments, too.
    let longest = err(&output).lines().map(str::len).max().unwrap();
    assert!(longest < 400, "{}", err(&output));
    let results = results(&json);
    assert!(results.ended_early.unwrap().contains("is gone"));
    assert!(!results.cells.is_empty() && !results.memcpy.is_empty());
}

#[test]
fn an_interrupt_leaves_what_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("results.json");
    let mut args = vec!["model", "--rounds", "10000", "--json", json.to_str().unwrap()];
    args.extend(SMALL);
    let child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Warming up takes less; rounds that were not begun yet would fail below.
    std::thread::sleep(Duration::from_secs(3));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", err(&output));
    let results = results(&json);
    assert!(results.ended_early.unwrap().contains("interrupted"));
    assert!(results.cells.iter().all(|cell| cell.bytes_per_second.rounds > 0));
    assert!(!results.cells.is_empty());
}

#[test]
fn a_path_that_cannot_be_written_fails_before_the_measurement() {
    let begin = Instant::now();
    let output = bench(&["model", "--json", "/nowhere/results.json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("/nowhere/results.json: No such file"), "{}", err(&output));
    assert_eq!(out(&output), "");
    assert!(begin.elapsed() < Duration::from_secs(2), "nothing was measured");
}

#[test]
fn a_full_disk_is_told_and_the_rest_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let [csv, page] = ["csv", "html"].map(|name| dir.path().join(name));
    let [to_csv, to_page] = [&csv, &page].map(|path| path.to_str().unwrap());
    let mut args = vec!["model", "--json", "/dev/full", "--csv", to_csv, "--report", to_page];
    args.extend(SMALL);
    let output = bench(&args);
    assert_eq!(output.status.code(), Some(1));
    let csv = std::fs::read_to_string(csv).unwrap();
    assert!(csv.lines().count() > 5 && csv.contains("4096"), "{csv}");
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && page.trim_end().ends_with("</html>"), "{page}");
    let said = err(&output);
    assert!(said.contains("/dev/full was not written: No space left on device"), "{said}");
    assert!(out(&output).contains("Contiguous against scatter/gather"), "the table is there");
}

#[test]
fn bad_input_is_refused_with_a_reason() {
    for (args, status, reason) in [
        (&["model", "--size", "0"][..], 2, "1 byte to 64M"),
        (&["model", "--size", "65M"], 2, "1 byte to 64M"),
        (&["model", "--segment", "0"], 2, "at least 1 byte"),
        (&["model", "--rounds", "0"], 2, "10..=10000"),
        (&["model", "--batch", "0"], 2, "1..=1024"),
        (&["model", "--batch", "1025"], 2, "1..=1024"),
        (&["model", "--channels", "0"], 2, "1..=32"),
        (&["model", "--profile", "slow"], 2, "quick, full"),
        (&["model", "--link", "gen9x8"], 2, "gen1 to gen5"),
        (&[], 2, "DEVICE"),
        (&["--compare", "/nowhere/a.json"], 2, "2 values required"),
        (&["model", "--compare", "a.json", "b.json"], 2, "cannot be used with"),
        (&["--compare", "a.json", "b.json", "--size", "4K"], 2, "cannot be used with"),
        (&["--compare", "/nowhere/a.json", "/nowhere/b.json"], 1, "/nowhere/a.json: No such file"),
        (&["--compare", "/dev/null", "/dev/null"], 1, "not what `vfio-dma bench --json` writes"),
        (&["model", "--size", "4K", "--segment", "8K"], 2, "not smaller than any transfer"),
        (&["model", "--channels", "9"], 2, "the device has 4"),
        (&["model", "--json", "/tmp/./vfio-dma-x", "--csv", "/tmp/vfio-dma-x"], 2, "two files"),
        (&["model", "--iommu", "type1"], 2, "--iommu is for a PCI device"),
        (&["./no-such-socket", "--bind"], 2, "--bind is for a PCI device"),
        (&["./no-such-socket"], 1, "no-such-socket"),
    ] {
        let output = bench(args);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {}", err(&output));
        assert!(err(&output).contains(reason), "{args:?}: {}", err(&output));
        assert_eq!(out(&output), "", "{args:?}");
    }
}
