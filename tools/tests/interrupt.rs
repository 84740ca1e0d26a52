//! The command is interrupted in the middle of a transfer: it stops the device, gives its
//! memory back, and says so, within a bound. What the device did then is the model's to say.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vfio_dma_model::function::PciFunction;
use vfio_dma_model::ioat::IoatConfig;
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::vm::Device;

/// Each 256th descriptor of a long transfer tells how far the engine is. It does so this
/// late, and the engine rests meanwhile; then it goes on. The 8 tenths of a second that the
/// transfer takes are when it is interrupted, and its 4096 pages given back.
const SLOW: &str = "late-completion=100ms@/256";
const SLOW_SIZE: u32 = 8 << 20;

/// The engine rests after half of the transfer, longer than any test takes.
const STALL: &str = "late-completion=60s@256";
const STALL_SIZE: u32 = 2 << 20;

/// How long the command may take from the signal to its end: a slice of its wait, a SUSPEND
/// that times out after 200 ms, the same for a RESET, and the unmapping of all pages.
const BOUND: Duration = Duration::from_secs(3);

/// How long anything else may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Runs a copy, sends the signal once `begun` holds, and asserts that the command ends in time.
fn interrupt(size: u32, args: &[&str], signal: Signal, begun: impl Fn() -> bool) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vfio-dma"))
        .args(["run", "--placement", "sg", "--timeout", "60", "--size", &size.to_string()])
        .args(args)
        .env("RUST_LOG", "info")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    while !said.contains(&format!("copying {size} bytes")) {
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "it ended: {said}");
    }
    let until = Instant::now() + LIMIT;
    while !begun() {
        assert!(Instant::now() < until, "the transfer does not begin");
        sleep(Duration::from_millis(1));
    }
    let sent = Instant::now();
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    // What it says is little: it does not block on a pipe that nobody reads.
    while child.try_wait().unwrap().is_none() {
        if sent.elapsed() > LIMIT {
            child.kill().unwrap();
        }
        sleep(Duration::from_millis(1));
    }
    let took = sent.elapsed();
    let mut output = child.wait_with_output().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    output.stderr = said.clone().into_bytes();
    assert!(took < BOUND, "{took:?}: {said}");
    assert_eq!(output.status.code(), Some(128 + signal as i32), "{said}");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.lines().all(|line| line.starts_with("fault ")), "{out}");
    let messages: Vec<&str> = said.lines().filter(|line| line.starts_with("vfio-dma: ")).collect();
    assert_eq!(messages.len(), 1, "{said}");
    assert!(messages[0].starts_with("vfio-dma: interrupted: the transfer "), "{said}");
    output
}

fn serve(faults: &str) -> (Served, String) {
    let config = IoatConfig { faults: faults.parse().unwrap(), ..IoatConfig::default() };
    let served = Served::start(config).unwrap();
    let Device::VfioUser { socket } = served.device() else { panic!("it is on a socket") };
    (served, socket.display().to_string())
}

#[test]
fn over_a_socket_nothing_reaches_memory_that_was_given_back() {
    let check = |signal| {
        let (served, socket) = serve(SLOW);
        let ioat = served.ioat();
        let begun = || ioat.stats().descriptors >= 256;
        let output = interrupt(SLOW_SIZE, &[&socket], signal, begun);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("the transfer was aborted"), "{said}");
        let until = Instant::now() + LIMIT;
        while PciFunction::memory(&**ioat).ranges() > 0 {
            assert!(Instant::now() < until, "the client's memory is still mapped");
            sleep(Duration::from_millis(1));
        }
        let done = ioat.stats().descriptors;
        sleep(Duration::from_millis(200));
        let stats = ioat.stats();
        assert_eq!(stats.memory.refused_not_mapped, 0, "late accesses, {signal}: {stats:#?}");
        assert_eq!((stats.descriptors, stats.errors), (done, 0), "{signal}: {stats:#?}");
        assert!(done < 2048, "it ended before it was interrupted: {stats:#?}");
    };
    std::thread::scope(|scope| {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            scope.spawn(move || check(signal));
        }
    });
}

#[test]
fn the_embedded_model_is_left_quiet_too() {
    // A channel opens with two RESETs; the third is that of the interruption.
    let stuck = format!("{STALL},reset-hang@3");
    for (size, fault, end) in [
        (SLOW_SIZE, SLOW, "was aborted"),
        (STALL_SIZE, STALL, "was aborted"),
        (STALL_SIZE, &stuck, "and its channel are lost"),
    ] {
        let args = ["model", "--fault", fault];
        let output = interrupt(size, &args, Signal::SIGINT, || {
            // It has said that it begins, and what it does cannot be seen from here.
            sleep(Duration::from_millis(150));
            true
        });
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(end), "{fault}: {said}");
        assert!(said.contains(", 0 accesses came too late"), "{fault}: {said}");
    }
}

#[test]
fn each_fault_says_whether_it_fired_and_one_that_did_not_is_an_error() {
    let run = |fault: &str, args: &[&str]| {
        let fixed = ["run", "model", "--placement", "sg", "--size", "1M", "--fault", fault];
        let mut command = Command::new(env!("CARGO_BIN_EXE_vfio-dma"));
        let output = command.args(fixed).args(args).stdin(Stdio::null()).output().unwrap();
        let [out, err] = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        (output.status.code(), out, err)
    };
    let (status, out, err) = run("late-completion=1ms@3", &[]);
    assert_eq!(status, Some(1), "descriptor 3 has no completion word: {out}{err}");
    let (status, out, err) = run("late-completion=1ms", &[]);
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(
        out.contains("fault late-completion=1ms: fired ") && out.contains("waited for"),
        "{out}"
    );

    let (status, out, err) = run("late-completion=1ms,chanerr=8@100000", &["--json"]);
    assert_eq!(status, Some(1), "{out}{err}");
    assert!(err.contains("never fired: chanerr=8@100000; the model did 258 descriptors"), "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["verified"], true);
    assert_eq!(json["faults"][0]["fault"], "late-completion=1ms");
    assert_eq!(json["faults"][1]["fired"], 0);
    assert_eq!(json["faults"][1]["driver"], serde_json::Value::Null);

    // One that ends the transfer: it is told as well, and the failure stays one.
    let (status, out, err) = run("chanerr=8@40", &["--json"]);
    assert_eq!(status, Some(1), "{out}{err}");
    assert!(err.contains("read data (CHANERR 0x100)"), "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&json["verified"], &json["faults"][0]["fired"]), (&false.into(), &1.into()));
    let driver = json["faults"][0]["driver"].as_str().unwrap();
    assert!(driver.contains("reset the channel") && driver.contains("read data"), "{driver}");
}

#[test]
fn a_fault_is_asked_for_with_the_model_only() {
    let run = |device| {
        let args = ["run", device, "--size", "4K", "--fault", "chanerr=8@1"];
        Command::new(env!("CARGO_BIN_EXE_vfio-dma")).args(args).output().unwrap()
    };
    let text = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let (served, socket) = serve("");
    let refused = run(&socket);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused));
    assert!(text(&refused).contains("--fault"), "{}", text(&refused));
    assert_eq!(served.ioat().stats().descriptors, 0);
    let failed = run("model");
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    assert!(text(&failed).contains("read data (CHANERR 0x100)"), "{}", text(&failed));
}
