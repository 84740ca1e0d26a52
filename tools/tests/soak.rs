//! The soak as a user runs it, on the model.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vfio_dma_model::ioat::IoatConfig;
use vfio_dma_tools::serve::Served;
use vfio_dma_tools::soak::faults::ALL;
use vfio_dma_tools::vm::Device;

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vfio-dma"));
    command.arg("soak").args(args).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a soak to its end, and returns what it said as JSON.
fn soak(args: &[&str]) -> (Option<i32>, Value) {
    let output = command(args).arg("--json").output().unwrap();
    let out = text(&output.stdout);
    let json = serde_json::from_str(&out);
    let json = json.unwrap_or_else(|error| panic!("{error}: {out}{}", text(&output.stderr)));
    (output.status.code(), json)
}

fn assert_clean(json: &Value) {
    for field in ["wrong_bytes", "wrong_operations", "unexplained_failures"] {
        assert_eq!(json[field], 0, "{field}: {json:#}");
    }
    for leaked in ["descriptors", "threads", "maps", "resident"] {
        assert_eq!(json["leaks"]["leaked"][leaked], 0, "{leaked}: {json:#}");
    }
    assert_eq!((&json["leaks"]["dma_mappings"], &json["passed"]), (&0.into(), &true.into()));
}

#[test]
fn faults_of_every_kind_leave_no_wrong_byte_and_nothing_behind() {
    let (status, json) = soak(&["model", "--for", "8s", "--fault", "all", "--seed", "11"]);
    assert_eq!(status, Some(0), "{json:#}");
    assert_clean(&json);
    assert_eq!((&json["schema"], &json["seed"]), (&1.into(), &11.into()));
    assert_eq!((&json["location"], &json["driver"]), (&"model".into(), &"ioat".into()));
    assert_eq!((&json["ended"], &json["late_accesses"]), (&"time".into(), &0.into()));
    assert_eq!(json["channels"], 4);
    let number = |field: &str| json[field].as_u64().unwrap_or_else(|| panic!("{field}: {json:#}"));
    assert!(number("operations") > 1000 && number("rounds") > 1, "{json:#}");
    assert_eq!(
        number("operations"),
        number("copies") + number("fills") + number("slot_operations") + number("reads")
    );
    for done in ["copies", "fills", "slot_operations", "succeeded", "bytes_verified", "detached"] {
        assert!(number(done) > 0, "{done}: {json:#}");
    }
    let faults = json["faults"].as_array().unwrap();
    assert_eq!(faults.len(), ALL.split(',').count());
    let fired: u64 = faults.iter().map(|fault| fault["fired"].as_u64().unwrap()).sum();
    assert_eq!(number("faults_fired"), fired);
    assert!(fired > 0 && number("faults_recovered") > 0, "{json:#}");
}

#[test]
fn a_ring_of_eight_survives_words_that_are_a_lap_old() {
    // 20 us later a word of a ring of 8 is more than a lap old.
    let fault = "double-completion=20us@/101,halt@/997";
    let args = ["model", "--for", "4s", "--ring", "8", "--seed", "3", "--fault", fault];
    let (status, json) = soak(&args);
    assert_eq!(status, Some(0), "{json:#}");
    assert_clean(&json);
    assert_eq!(json["rings"], serde_json::json!([8, 8]));
    assert_eq!(json["faults"].as_array().unwrap().len(), 2);
    assert!(json["faults"][0]["fired"].as_u64().unwrap() > 0, "{json:#}");
}

#[test]
fn operations_end_it_and_a_seed_repeats_it() {
    // One channel, whose operations alone are counted: those beyond are of the step in hand.
    let args = ["model", "--channels", "1", "--operations", "3000", "--for", "10m", "--seed", "5"];
    let [one, other] = [soak(&args), soak(&args)];
    for (status, json) in [&one, &other] {
        assert_eq!(*status, Some(0), "{json:#}");
        assert_clean(json);
        assert_eq!(json["ended"], "operations");
        let operations = json["operations"].as_u64().unwrap();
        assert!((3000..3024).contains(&operations), "{operations}");
    }
    for counted in ["operations", "copies", "fills", "slot_operations", "rounds"] {
        assert_eq!(one.1[counted], other.1[counted], "{counted}");
    }
    assert_ne!(soak(&[&args[..8], &["6"]].concat()).1["copies"], one.1["copies"]);
}

#[test]
fn a_device_on_a_socket_is_soaked_too() {
    let served = Served::start(IoatConfig { channels: 2, ..IoatConfig::default() }).unwrap();
    let Device::VfioUser { socket } = served.device() else { panic!("it is on a socket") };
    let socket = socket.display().to_string();
    let (status, json) = soak(&[&socket, "--for", "3s", "--max-size", "64K"]);
    assert_eq!(status, Some(0), "{json:#}");
    assert_clean(&json);
    assert_eq!((&json["late_accesses"], &json["channels"]), (&Value::Null, &2.into()));
    assert!(json["copies"].as_u64().unwrap() > 0, "{json:#}");
    let stats = served.ioat().stats();
    assert_eq!(stats.memory.refused_not_mapped, 0, "{stats:#?}");
    let refused = command(&[&socket, "--channels", "3"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(text(&refused.stderr).contains("--channels 3: the device has 2"), "{refused:?}");
}

#[test]
fn ctrl_c_ends_it_with_the_summary() {
    let child = command(&["model", "--for", "10m", "--seed", "9"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let sent = Instant::now();
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let (out, err) = (text(&stdout), text(&stderr));
    assert!(sent.elapsed() < Duration::from_secs(20), "{out}{err}");
    assert_eq!(status.code(), Some(130), "{out}{err}");
    assert!(out.contains("seed 9, interrupted\n") && out.contains("0 wrong bytes"), "{out}");
    assert!(out.ends_with("passed\n") && err.ends_with("vfio-dma: interrupted\n"), "{out}{err}");
    // Without a terminal it says what it is about.
    assert!(err.contains("soaking with seed 9"), "{err}");
}
