//! The library's examples, as `cargo test --workspace` builds them.

use std::path::Path;
use std::process::{Command, Output};

use vfio_dma_tests::address;
use vfio_dma_tools::vm::GuestFile;

use crate::support::{bind, edu_behind_port};

const EXAMPLES: [&str; 12] = [
    "first_dma",
    "copy",
    "edu_copy",
    "registers",
    "skeleton",
    "ioat_copy",
    "ioat_stream",
    "ioat_async",
    "nvme_read",
    "verilog_engine",
    "passed_descriptors",
    "shared_space",
];

/// The examples that are built, for the guest's `/bin`.
pub(crate) fn files() -> Vec<GuestFile> {
    // Cargo puts them beside the directory of the test programs.
    let program = std::env::current_exe().expect("this program has a path");
    let built = program.parent().and_then(Path::parent).map(|dir| dir.join("examples"));
    EXAMPLES
        .iter()
        .filter_map(|name| {
            let host = built.as_ref()?.join(name);
            let guest = format!("/bin/{name}");
            host.exists().then_some(GuestFile { host, guest, mode: 0o755 })
        })
        .collect()
}

pub(crate) fn output(name: &str, arguments: &[&str]) -> Output {
    let path = format!("/bin/{name}");
    assert!(Path::new(&path).exists(), "{name} is not built: cargo build --workspace --examples");
    Command::new(path).args(arguments).output().unwrap()
}

pub(crate) fn run(name: &str, arguments: &[&str]) -> String {
    let output = output(name, arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

pub(crate) fn edu_examples_run() {
    bind(address(0));
    let device = address(0).to_string();
    assert_eq!(run("copy", &[&device]), "the same everywhere\n");
    let said = run("first_dma", &[&device]);
    assert!(said.contains("0x010000ed") && said.contains("4096 bytes came"), "{said}");
    let said = run("edu_copy", &[&device]);
    assert!(said.starts_with("through the IOMMU and back\n26 bytes placed in 1 segment"), "{said}");
    let said = run("registers", &[&device]);
    assert!(said.contains("1234:11e8") && said.contains("first word: 0x010000ed"), "{said}");
    // Another device than the skeleton's is told by what it identifies itself as.
    let other = address(3).to_string();
    bind(address(3));
    let refused = output("skeleton", &[&other]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("this is no such card"), "{said}");
}

/// The skeleton finds its card by itself, also one that only others can reset; behind a port
/// of its own the card is reset.
pub(crate) fn the_skeleton_drives_a_card() {
    let first = address(0).to_string();
    let port = edu_behind_port().to_string();
    bind(address(0));
    bind(edu_behind_port());
    for (arguments, card, is_reset) in [(&[][..], &first, false), (&[port.as_str()], &port, true)] {
        let output = output("skeleton", arguments);
        let [out, err] =
            [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(output.status.success(), "{out}{err}");
        assert!(out.starts_with(&format!("{card}: 4096 bytes to the card and back")), "{out}");
        assert_eq!(err.contains("without a reset"), !is_reset, "{err}");
    }
}

pub(crate) fn ioat_examples_run() {
    bind(address(0));
    let device = address(0).to_string();
    assert_eq!(run("copy", &[&device]), "the same everywhere\n");
    let said = run("ioat_copy", &[&device]);
    assert!(said.starts_with("from memory to memory\n1 MiB placed in 1 segment"), "{said}");
    for (name, end) in
        [("ioat_stream", "256 blocks of 65536"), ("ioat_async", "16 copies of 100000")]
    {
        let said = run(name, &[&device]);
        assert!(said.contains(end) && said.contains("every byte is right"), "{said}");
    }
}
