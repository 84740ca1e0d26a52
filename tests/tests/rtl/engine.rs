//! The engine of the template (docs/bring-your-verilog.md), and the same with mistakes in it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::{CopyEngine, PciDriver};
use vfio_dma::dma::{Direction, Request};
use vfio_dma_model::embedded::{Embedded, IommuOptions};
use vfio_dma_tests::same_program::{Extent, run_engine};
use vfio_dma_tools::rtl::cycles::{cheap_from, measure};
use vfio_dma_tools::rtl::{RtlConfig, RtlFunction, describe};
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm;

use crate::segments::{LONG, copy, whole};

#[path = "../../../hw-model/rtl/template/driver.rs"]
mod driver;

use driver::{Engine, Error};

/// The word of its bus, in bytes.
const WORD: usize = 16;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../hw-model/rtl/template/dma_engine.sv")
}

fn config(file: &Path) -> RtlConfig {
    let text = format!("rtl,top=dma_engine,file={}", file.display());
    describe(&text).unwrap().unwrap()
}

fn model(config: &RtlConfig) -> Arc<Embedded<RtlFunction>> {
    Embedded::with_function(config.start().unwrap(), IommuOptions::default())
}

fn driven(model: &Arc<Embedded<RtlFunction>>) -> Engine {
    let device = Device::open(model.attach().unwrap()).unwrap();
    assert_eq!(driver::IDS, (0x1234, 0x0d3a));
    Engine::probe(device, ()).unwrap_or_else(|failed| panic!("{failed}"))
}

pub(crate) fn the_same_program_runs_on_the_engine() {
    let model = model(&config(&source()));
    let extent = Extent { longest: 256 << 10, limit: LONG };
    run_engine(Box::new(driven(&model)), &extent, WORD);
    let stats = model.function().stats();
    assert_eq!((stats.all_malformed(), stats.faults, stats.unsupported), (0, 0, 0), "{stats:#?}");
}

pub(crate) fn contiguous_against_scattered_in_cycles() {
    let model = model(&config(&source()));
    let mut engine = driven(&model);
    let stats = || model.function().stats();
    let segments = [64, 256, 1024, 4096, 16 << 10];
    let rows = measure(&mut engine, stats, 256 << 10, &segments, LONG).unwrap();
    for row in &rows {
        println!(
            "{:>7} {:>8} cycles {:>5.2} B/cycle {:>4.0}% {:>5.1} cycles a segment",
            row.segment,
            row.cycles,
            row.bytes_per_cycle,
            100.0 * row.of_contiguous,
            row.cycles_per_segment
        );
    }
    println!("costs less than 5% from {:?} on", cheap_from(&rows[1..]));
    // Deterministic: what a descriptor costs this engine is its fetch, about 20 cycles.
    assert!((5.0..60.0).contains(&rows[1].cycles_per_segment), "{rows:#?}");
    assert!(rows.windows(2).skip(1).all(|pair| pair[0].cycles >= pair[1].cycles), "{rows:#?}");
}

/// The engine's source with one line changed.
fn with_bug(dir: &Path, (from, to): Bug) -> RtlConfig {
    let text = std::fs::read_to_string(source()).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{from}");
    let path = dir.join("dma_engine.sv");
    std::fs::write(&path, text.replace(from, to)).unwrap();
    config(&path)
}

/// A line of the engine's source, and what it is with a mistake in it.
type Bug = (&'static str, &'static str);

/// The last word is not copied.
const LENGTH: Bug = ("left   <= swap(buffer[4]);", "left   <= swap(buffer[4]) - 32'd16;");
/// It reads from the word behind.
const ADDRESS: Bug = (
    "source <= {swap(buffer[1]), swap(buffer[0])};",
    "source <= {swap(buffer[1]), swap(buffer[0])} + 64'd16;",
);
/// It does not say that it has finished.
const COMPLETION: Bug = ("set_finished <= 1'b1;", "set_finished <= 1'b0;");

/// Runs the example as a user does, on hardware that is served on a socket.
fn example(config: &RtlConfig) -> Output {
    let program = std::env::current_exe().unwrap();
    let built = program.parent().and_then(Path::parent).unwrap().join("examples/verilog_engine");
    assert!(built.exists(), "it is not built: cargo build -p vfio-dma --examples");
    let served = Served::of(config.start().unwrap()).unwrap();
    let vm::Device::VfioUser { socket } = served.device() else { panic!("it is on a socket") };
    Command::new(built).arg(socket).output().unwrap()
}

pub(crate) fn the_example_copies_and_finds_each_mistake() {
    let good = example(&config(&source()));
    let said = String::from_utf8_lossy(&good.stdout);
    assert!(good.status.success(), "{good:#?}");
    assert_eq!(said.matches("every byte is right").count(), 2, "{said}");
    let dir = tempfile::tempdir().unwrap();
    let late = "not finished in time: 1 of 1 descriptors are done";
    for (bug, words) in [(LENGTH, "byte 1048560"), (ADDRESS, "byte 0"), (COMPLETION, late)] {
        let bad = example(&with_bug(dir.path(), bug));
        let error = String::from_utf8_lossy(&bad.stderr);
        assert!(!bad.status.success() && error.contains(words), "{words}: {bad:#?}");
        assert!(!String::from_utf8_lossy(&bad.stdout).contains("is right"), "{bad:#?}");
    }
}

pub(crate) fn mistakes_in_the_hardware_are_found() {
    let len = 4096;
    let dir = tempfile::tempdir().unwrap();
    let engine = model(&with_bug(dir.path(), LENGTH));
    assert_eq!(copy(&mut driven(&engine), len, &whole(len), &whole(len), 1), 16, "wrong length");

    let engine = model(&with_bug(dir.path(), ADDRESS));
    let wrong = copy(&mut driven(&engine), len, &whole(len), &whole(len), 1);
    assert!(wrong > 4000, "address off by one: {wrong}");

    let engine = model(&with_bug(dir.path(), COMPLETION));
    let error = failure(&mut driven(&engine), len);
    assert!(matches!(error, Error::Timeout(1, 1)), "missing completion: {error}");
}

/// A copy that must fail within a second, and give its buffers back.
fn failure(engine: &mut Engine, len: usize) -> Error {
    let place = |direction| engine.allocate(&Request::new(len, direction)).unwrap().into();
    let (source, target) = (place(Direction::ToDevice), place(Direction::FromDevice));
    let failed = engine.copy_tables(source, target, Duration::from_secs(1)).unwrap_err();
    assert!(failed.tables.is_some());
    match *failed.error {
        vfio_dma::devices::CopyError::Engine(error) => *error.downcast().unwrap(),
        other => panic!("{other}"),
    }
}

pub(crate) fn a_read_that_is_refused_is_told_and_the_engine_goes_on() {
    let model = model(&config(&source()));
    let mut engine = driven(&model);
    // The list is read first, then the first 64 bytes.
    model.function().inject("ur@3".parse().unwrap());
    let error = failure(&mut engine, 4096);
    assert!(matches!(error, Error::Refused(0)), "{error}");
    assert_eq!(model.function().stats().unsupported, 1);
    assert_eq!(copy(&mut engine, 4096, &whole(4096), &whole(4096), 1), 0);
}

pub(crate) fn waveforms_are_written_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("waves.fst");
    let mut config = config(&source());
    config.trace = Some(trace.clone());
    let model = model(&config);
    let mut engine = driven(&model);
    assert_eq!(copy(&mut engine, 4096, &whole(4096), &whole(4096), 1), 0);
    drop(engine);
    // The simulation closes the file at its end.
    drop(model);
    let bytes = std::fs::read(&trace).unwrap();
    // A header block (type 0, 329 bytes long) comes first in an FST file.
    assert_eq!(bytes[..9], [0, 0, 0, 0, 0, 0, 0, 1, 73], "{} bytes", bytes.len());
}
