//! The command line on drives.

use std::process::Command;
use std::time::Duration;

use vfio_dma_tests::{address, vfio_dma};

use super::{BROKEN, LARGE, SEVERAL, SLOW, SMALL, USED};
use crate::support::{bind, refused};

pub(crate) fn the_command_line_reads_and_writes_who_is_named() {
    for drive in [SMALL, LARGE, SLOW] {
        bind(address(drive));
    }
    let device = address(SMALL).to_string();
    for placement in ["auto", "contiguous", "sg"] {
        let args = ["run", &device, "--size", "1M", "--placement", placement, "--json"];
        let said = vfio_dma(&[&args[..], &["--timeout", "60"]].concat());
        assert_eq!(said.status, 0, "{said:#?}");
        let outcome: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!((&outcome["device"], &outcome["verified"]), (&"nvme".into(), &true.into()));
        assert_eq!((&outcome["written"], &outcome["sgl"]), (&false.into(), &true.into()));
        let passes = outcome["passes"].as_array().unwrap();
        assert_eq!(passes.len(), 4);
        let segments = passes[3]["segments"].as_u64().unwrap();
        assert_eq!(segments, if placement == "contiguous" { 1 } else { 256 });
        assert_eq!((&passes[3]["depth"], &passes[3]["doorbells"]), (&32.into(), &1.into()));
    }
    let listed = vfio_dma(&["list"]);
    let line = listed.out.lines().find(|line| line.starts_with(&device)).unwrap();
    assert!(line.contains("NVMe controller") && line.contains(" nvme "), "{line}");
    // The wrong drive, and the right one with a table of partitions on it.
    let parts = ["vfio-dma-d0", "\"vfio-dma-d1\" was named", "nothing is written"];
    refused(&["run", &device, "--size", "64K", "--destroy-data-on", "vfio-dma-d1"], &parts);
    bind(address(USED));
    let used = address(USED).to_string();
    let parts = ["a GUID partition table", "nothing is written"];
    refused(&["run", &used, "--size", "64K", "--destroy-data-on", "vfio-dma-d3"], &parts);
    let several = address(SEVERAL).to_string();
    bind(address(SEVERAL));
    let said = vfio_dma(&["run", &several, "--size", "64K", "--namespace", "3"]);
    assert_eq!(said.status, 0, "{said:#?}");
    refused(&["run", &several, "--namespace", "10"], &["no such namespace", "1, 2, 3"]);
    let said = Command::new("/bin/nvme_read").arg(&device).output().unwrap();
    let out = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.status.success() && out.starts_with("QEMU NVMe Ctrl, 16777216 bytes: ["), "{out}");
}

/// Writing by the command: the drive's first blocks are lost, so it is one that is made for it.
pub(crate) fn the_command_line_writes_a_drive_that_is_named() {
    let device = address(BROKEN).to_string();
    bind(address(BROKEN));
    // Its medium fails in the first MiB: what cannot be looked at is not written.
    refused(
        &["run", &device, "--size", "4K", "--destroy-data-on", "vfio-dma-d2"],
        &["unrecovered read error"],
    );
    let device = address(SLOW).to_string();
    bind(address(SLOW));
    let args = ["run", &device, "--size", "64K", "--destroy-data-on", "vfio-dma-d4", "--json"];
    let said = vfio_dma(&[&args[..], &["--timeout", "60"]].concat());
    assert_eq!(said.status, 0, "{said:#?}");
    let outcome: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&outcome["written"], &outcome["compared"]), (&true.into(), &true.into()));
}

pub(crate) fn a_process_that_is_killed_leaves_a_drive_that_works() {
    bind(address(SLOW));
    let device = address(SLOW).to_string();
    for _ in 0..2 {
        let args = ["run", &device, "--size", "2M", "--timeout", "60"];
        let mut child = Command::new("/bin/vfio-dma").args(args).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        assert!(child.try_wait().unwrap().is_none(), "it is in mid-transfer");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let said = vfio_dma(&["run", &device, "--size", "64K", "--timeout", "60"]);
    assert_eq!(said.status, 0, "{said:#?}");
}
