//! Programs that others wrote, on Linux's own driver, read what this one wrote, and the reverse.

use std::path::PathBuf;
use std::process::Command;

use vfio_dma::devices::nvme::{DataMethod, QueueConfig, WhenFull};
use vfio_dma::dma::{Direction, Pattern, Placement, Request};
use vfio_dma_tests::{Machine, address, vfio_dma};
use vfio_dma_tools::vm::{FIO, Image, Modules, NVME_CLI, NvmeDrive, VmConfig, fio, nvme_cli};

use super::writing::{disk, writable};
use super::{MARK, MARK_AT, SIZE, STARTED, TRACES, WRITTEN, ended, initial, nvme, only, written};

/// The only drive of the machine.
const DRIVE: u8 = 0;
const LEN: usize = 3 * PART;
/// Bytes of a command.
const PART: usize = 100 << 10;
/// What this driver writes: patterns of this repository, and one that fio knows.
const OURS: u64 = WRITTEN;
const OURS_FOR_FIO: u64 = WRITTEN + (1 << 20);
/// What the others write.
const BY_NVME_CLI: u64 = WRITTEN + (2 << 20);
const BY_FIO: u64 = WRITTEN + (3 << 20);

/// Bytes that fio repeats, as it is told of them: from the first on.
const FOR_FIO: ([u8; 4], &str) = ([0xde, 0xad, 0xbe, 0xef], "0xdeadbeef");
const FROM_FIO: ([u8; 4], &str) = ([0x5a, 0x01, 0xc3, 0x7e], "0x5a01c37e");

/// Debian's kernel, with Linux's driver, and both programs.
pub(crate) fn judged() -> Machine {
    let image = Image::new(SIZE, initial(DRIVE)).unwrap();
    let log = tempfile::NamedTempFile::new().unwrap();
    let (device, arguments) = NvmeDrive::new(image.path()).describe("d0");
    let mut qemu_args: Vec<std::ffi::OsString> = arguments.into();
    qemu_args.extend(["-d".into(), TRACES.into(), "-D".into(), log.path().into()]);
    let mut modules = Modules::vfio();
    modules.load.push("nvme".into());
    let mut files = nvme_cli().expect("nvme-cli can be fetched");
    files.extend(fio().expect("fio can be fetched"));
    let vm = VmConfig { devices: vec![device], modules, files, qemu_args, ..VmConfig::default() };
    let verify = move || {
        let log = std::fs::read_to_string(log.path()).map_err(|error| error.to_string())?;
        if !log.contains(STARTED) {
            return Err(format!("QEMU traced nothing: {log}"));
        }
        if let Some(line) = log.lines().find(|line| line.contains("pci_nvme_ub_")) {
            return Err(format!("QEMU found undefined behaviour: {line}"));
        }
        let image = image.bytes().map_err(|error| error.to_string())?;
        if !image[MARK_AT as usize..].starts_with(MARK) {
            return Err("the case did not come to its end".into());
        }
        let mut expected = vec![0; LEN];
        for at in [OURS, BY_NVME_CLI] {
            written(DRIVE).bytes(at, &mut expected);
            let found = &image[at as usize..][..LEN];
            if let Some(differs) = (0..LEN).find(|&n| found[n] != expected[n]) {
                return Err(format!(
                    "the image has other bytes than were written at {at}, {differs} bytes into it: \
                     {:x?} for {:x?}",
                    &found[differs..][..16],
                    &expected[differs..][..16]
                ));
            }
        }
        for (at, (bytes, _)) in [(OURS_FOR_FIO, FOR_FIO), (BY_FIO, FROM_FIO)] {
            if image[at as usize..][..1 << 20].chunks(4).any(|word| word != bytes) {
                return Err(format!("the image has other bytes at {at} than fio's"));
            }
        }
        Ok(())
    };
    Machine { vm, verify: Box::new(verify) }
}

/// Runs a program that must succeed; what it said.
fn run(program: &[&str], arguments: &[&str]) -> String {
    let said = Command::new(program[0]).args(&program[1..]).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let errors = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{arguments:?}: {}\n{text}\n{errors}", said.status);
    text
}

/// Has fio read or write a MiB of a disk that is one pattern, past the page cache.
fn run_fio(disk: &str, way: &str, at: u64, pattern: &str) {
    let (offset, kind) = (format!("--offset={at}"), format!("--rw={way}"));
    let (disk, pattern) = (format!("--filename={disk}"), format!("--verify_pattern={pattern}"));
    let verify = if way == "read" { "--do_verify=1" } else { "--do_verify=0" };
    let fixed = "--name=judge --ioengine=psync --direct=1 --bs=16k --size=1m --thread \
                 --verify=pattern --verify_fatal=1 --end_fsync=1 --allow_file_create=0";
    let mut arguments: Vec<&str> = fixed.split_whitespace().collect();
    arguments.extend([&*offset, &kind, &disk, &pattern, verify]);
    println!("{}", run(&FIO, &arguments));
}

fn give_to_linux() -> PathBuf {
    let device = address(DRIVE);
    let said = vfio_dma(&["unbind", &device.to_string()]);
    assert_eq!(said.status, 0, "{said:#?}");
    std::fs::write("/sys/bus/pci/drivers_probe", device.to_string()).unwrap();
    disk(device)
}

pub(crate) fn nvme_cli_and_fio_read_what_was_written_and_the_reverse() {
    {
        let nvme = nvme(DRIVE);
        let mut queue = nvme.queue(QueueConfig::default()).unwrap();
        let right = writable(&nvme, &mut queue);
        for (n, at) in (0u64..).zip((OURS..OURS + LEN as u64).step_by(PART)) {
            let methods = [DataMethod::Prp, DataMethod::Sgl, DataMethod::Auto];
            queue.set_method(methods[n as usize % 3]);
            let request = Request::new(PART, Direction::ToDevice);
            let mut buffer = nvme.allocate(&request.placement(Placement::ScatterGather)).unwrap();
            written(DRIVE).fill(&mut buffer, 0, PART, at).unwrap();
            let token = queue.write(&right, at / 512, buffer.into(), WhenFull::Return);
            ended(&mut queue, token).into_result().unwrap();
        }
        let mut buffer = nvme.allocate(&Request::new(1 << 20, Direction::ToDevice)).unwrap();
        buffer.write(0, &FOR_FIO.0.repeat(1 << 18)).unwrap();
        let token = queue.write(&right, OURS_FOR_FIO / 512, buffer.into(), WhenFull::Return);
        ended(&mut queue, token).into_result().unwrap();
        let token = queue.flush(&only(&nvme), WhenFull::Return);
        ended(&mut queue, token).into_result().unwrap();
    }
    let disk = give_to_linux().display().to_string();
    let identity = run(&NVME_CLI, &["id-ctrl", &disk, "--output-format=json"]);
    let identity: serde_json::Value = serde_json::from_str(&identity).unwrap();
    assert_eq!(identity["sn"].as_str().unwrap().trim(), "vfio-dma-d0", "{identity}");
    // Linux moves up to 128 KiB at a time behind an IOMMU; the number of blocks is told less 1.
    let (blocks, bytes) = ((PART / 512 - 1).to_string(), PART.to_string());
    let move_part = |what: &str, at: u64, file: &str| {
        let start = (at / 512).to_string();
        let data = format!("--data={file}");
        let (s, c, z) = ("--start-block", "--block-count", "--data-size");
        run(&NVME_CLI, &[what, &disk, s, &start, c, &blocks, z, &bytes, &data]);
    };
    let parts = |begin: u64| (begin..begin + LEN as u64).step_by(PART);
    let mut expected = vec![0; PART];
    for at in parts(OURS) {
        move_part("read", at, "/tmp/read");
        written(DRIVE).bytes(at, &mut expected);
        assert!(std::fs::read("/tmp/read").unwrap() == expected, "nvme-cli reads it at {at}");
        move_part("compare", at, "/tmp/read");
    }
    run_fio(&disk, "read", OURS_FOR_FIO, FOR_FIO.1);
    // The reverse.
    for at in parts(BY_NVME_CLI) {
        written(DRIVE).bytes(at, &mut expected);
        std::fs::write("/tmp/write", &expected).unwrap();
        move_part("write", at, "/tmp/write");
    }
    run(&NVME_CLI, &["flush", &disk]);
    run_fio(&disk, "write", BY_FIO, FROM_FIO.1);
    let nvme = nvme(DRIVE);
    let mut queue = nvme.queue(QueueConfig::default()).unwrap();
    let mut read = |at: u64, len: usize| {
        let request = Request::new(len, Direction::FromDevice);
        let buffer = nvme.allocate(&request.placement(Placement::ScatterGather)).unwrap();
        let token = queue.read(&only(&nvme), at / 512, buffer.into(), WhenFull::Return);
        ended(&mut queue, token).into_table().unwrap().into_buffer().unwrap()
    };
    let check = |pattern: Pattern, buffer, at| {
        pattern.check(buffer, 0, LEN, at).unwrap().unwrap();
    };
    check(written(DRIVE), &read(BY_NVME_CLI, LEN), BY_NVME_CLI);
    let mut bytes = vec![0; 1 << 20];
    read(BY_FIO, 1 << 20).read(0, &mut bytes).unwrap();
    assert!(bytes.chunks(4).all(|word| word == FROM_FIO.0), "what fio wrote is read");
    // The host is told.
    let right = writable(&nvme, &mut queue);
    let mut mark = nvme.allocate(&Request::new(512, Direction::ToDevice)).unwrap();
    mark.write(0, MARK).unwrap();
    let token = queue.write(&right, MARK_AT / 512, mark.into(), WhenFull::Return);
    ended(&mut queue, token).into_result().unwrap();
}
