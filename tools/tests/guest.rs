//! Guests that really boot.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use vfio_dma_tools::vm::{Device, GuestFile, Modules, VmConfig};

fn config() -> VmConfig {
    VmConfig { program: Some(env!("CARGO_BIN_EXE_vfio-dma").into()), ..VmConfig::default() }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn command_arrives_whole_and_its_output_and_status_come_back_apart() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    std::fs::write(
        &script,
        "#!/bin/sh\n\
         printf '[%s]' \"$@\"\n\
         printf '\\000\\001\\003\\004\\r\\n\\021\\023\\032\\377'\n\
         { vfio-dma --version; ls /sys/bus/pci/devices; echo \"$WORD\"; lsmod; } >&2\n\
         exit 7\n",
    )
    .unwrap();
    let config = VmConfig {
        devices: vec![Device::from("edu"), Device::from("pci-testdev,membar=16M")],
        files: vec![GuestFile { host: script, guest: "/opt/script".into(), mode: 0o755 }],
        env: vec![("WORD".into(), "a 'quoted' word".into())],
        ..config()
    };
    let arguments = [
        &b"two words"[..],
        b"",
        b"it's",
        b"\"$HOME\" `id` \\",
        b"line\nline",
        b"*",
        b"\xff",
        b"-n",
    ]
    .map(OsStr::from_bytes);
    let mut command = vec![OsStr::new("/opt/script")];
    command.extend(arguments);

    let output = config.run(&command).unwrap();

    let mut expected: Vec<u8> =
        arguments.iter().flat_map(|a| [b"[", a.as_bytes(), b"]"].concat()).collect();
    expected.extend(b"\x00\x01\x03\x04\r\n\x11\x13\x1a\xff");
    assert_eq!(output.stdout, expected);
    assert_eq!(output.status, 7);
    let errors = text(&output.stderr);
    let version = concat!("vfio-dma ", env!("CARGO_PKG_VERSION"));
    for part in [version, "0000:00:05.0", "0000:00:06.0", "a 'quoted' word", "vfio_pci"] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
}

#[test]
fn modules_can_be_there_without_being_loaded() {
    let modules = Modules { load: Vec::new(), include: vec!["ioatdma".into()] };
    let script =
        "ls -d /sys/module/vfio; modprobe vfio-pci; modprobe ioatdma && ls -d /sys/module/dca";
    let output = VmConfig { modules, ..config() }.run(&["sh", "-c", script]).unwrap();
    assert_eq!((output.status, text(&output.stdout)), (0, "/sys/module/dca\n".into()));
    assert!(text(&output.stderr).contains("vfio-pci"), "{}", text(&output.stderr));
}

/// Runs the command `vfio-dma vm` itself, as from a terminal.
fn vm(args: &[&str]) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_vfio-dma"))
        .args(["vm", "--timeout", "300"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// The shortest benchmark that there is.
const BENCH: &str =
    "vfio-dma bench model --size 64 --segment contiguous --batch 1 --slice 1 --json";

#[test]
fn a_shared_directory_brings_programs_in_and_reports_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("with, comma");
    std::fs::create_dir_all(&dir).unwrap();
    let program = dir.join("program");
    // A program of one's own: it is mapped from the shared file system.
    std::fs::copy(env!("CARGO_BIN_EXE_vfio-dma"), &program).unwrap();
    let script = format!(
        "set -e; pwd; ./program --version; {BENCH} report.json >/dev/null; {BENCH} /root/r.json >/dev/null"
    );
    for kernel in ["stock", "full"] {
        let output =
            vm(&["--kernel", kernel, "--share", dir.to_str().unwrap(), "--", "sh", "-c", &script]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{kernel}: {said}");
        let expected = concat!("/share\nvfio-dma ", env!("CARGO_PKG_VERSION"), "\n");
        assert_eq!(text(&output.stdout), expected, "{kernel}: {said}");
        let report = dir.join("report.json");
        let report = std::fs::read_to_string(&report).inspect(|_| {
            std::fs::remove_file(&report).unwrap();
        });
        assert!(report.unwrap().contains("\"schema\""), "{kernel}");
        // What does not go there is lost, and that is said.
        assert!(!said.contains("report.json is in this guest's memory"), "{kernel}: {said}");
        assert!(said.contains("/root/r.json is in this guest's memory"), "{kernel}: {said}");
        assert!(said.contains("vfio-dma vm --share DIR"), "{kernel}: {said}");
    }
}
