//! The library's examples, as `cargo test --workspace` builds them.

use std::path::Path;
use std::process::Command;

use vfio_dma_tests::address;
use vfio_dma_tools::vm::GuestFile;

use crate::support::bind;

const EXAMPLES: [&str; 5] = ["edu_copy", "registers", "ioat_copy", "ioat_stream", "ioat_async"];

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

fn run(name: &str, argument: &str) -> String {
    let path = format!("/bin/{name}");
    assert!(Path::new(&path).exists(), "{name} is not built: cargo build --workspace --examples");
    let output = Command::new(path).arg(argument).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

pub(crate) fn edu_copy_and_registers_run() {
    bind(address(0));
    let device = address(0).to_string();
    let said = run("edu_copy", &device);
    assert!(said.starts_with("through the IOMMU and back\n26 bytes placed in 1 segment"), "{said}");
    let said = run("registers", &device);
    assert!(said.contains("1234:11e8") && said.contains("first word: 0x010000ed"), "{said}");
}

pub(crate) fn ioat_examples_run() {
    bind(address(0));
    let device = address(0).to_string();
    let said = run("ioat_copy", &device);
    assert!(said.starts_with("from memory to memory\n1048576 bytes placed in 1 segment"), "{said}");
    for (name, end) in
        [("ioat_stream", "256 blocks of 65536"), ("ioat_async", "16 copies of 100000")]
    {
        let said = run(name, &device);
        assert!(said.contains(end) && said.contains("every byte is right"), "{said}");
    }
}
