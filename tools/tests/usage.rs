//! What makes no sense is refused at once, with exit status 2 and what it belongs to.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const TOKEN: &str = "00112233-4455-6677-8899-aabbccddeeff";

fn run(args: &[&str]) -> Output {
    // Its own directory for caches, and no programs: nothing can be fetched or booted.
    let cache = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_vfio-dma"))
        .args(args)
        .env("XDG_CACHE_HOME", cache.path())
        .env("PATH", "")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn each_is_refused_with_what_it_belongs_to() {
    for (args, reason) in [
        // Options of another device.
        (&["run", "model", "--iommu", "type1"][..], "--iommu is for a PCI device"),
        (&["run", "model", "--bind"], "--bind is for a PCI device"),
        (&["run", "model", "--vf-token", TOKEN], "--vf-token is for a PCI device"),
        (&["bench", "./socket", "--vf-token", TOKEN], "--vf-token is for a PCI device"),
        (&["run", "./socket", "--iommu", "auto"], "--iommu is for a PCI device"),
        (&["run", "model", "--completion", "intx"], "--completion is for edu"),
        (&["run", "model", "--address-bits", "32"], "--address-bits is for edu"),
        (&["run", "model", "--writes", "5"], "--writes is for pci-testdev"),
        (&["run", "./socket", "--fault", "chanerr=8@1"], "--fault is for the DEVICE model"),
        (&["soak", "./socket", "--fault", "all"], "--fault is for the DEVICE model"),
        (&["soak", "model", "--bind"], "--bind is for a PCI device"),
        (&["soak", "./socket", "--iommu", "auto"], "--iommu is for a PCI device"),
        (&["soak", "model", "--channels", "5"], "--channels 5: the device has 4"),
        (&["link", "gen3x8", "--window", "1M"], "--iotlb"),
        // Values out of their range.
        (&["run", "0000:00:05.0", "--writes", "0"], "1..="),
        (&["run", "model", "--size", "0"], "nothing to move"),
        (&["run", "model", "--address-bits", "65"], "12..=64"),
        (&["run", "model", "--timeout", "0"], "1..=3600"),
        (&["run", "model", "--fault", "nonsense@1"], "nonsense"),
        (&["soak", "model", "--for", "10"], "s, m or h"),
        (&["soak", "model", "--for", "0s"], "no time"),
        (&["soak", "model", "--operations", "0"], "1.."),
        (&["soak", "model", "--ring", "3"], "4..=32768"),
        (&["soak", "model", "--max-size", "0"], "1 byte to 16M"),
        (&["soak", "model", "--fault", "all,nonsense@1"], "nonsense"),
        (&["model", "--socket", "/tmp/s", "--channels", "9"], "1..=8"),
        (&["model", "--socket", "/tmp/s", "--device", "x"], "litepcie"),
        (&["model", "--socket", "/tmp/s", "--device", "litepcie", "--channels", "2"], "channels=N"),
        (
            &["model", "--socket", "/tmp/s", "--device", "litepcie", "--fault", "halt@1"],
            "fault=SPEC",
        ),
        (&["model", "--socket", "/tmp/s", "--device", "litepcie,x=1"], "not one of its properties"),
        (&["vm", "--device", "litepcie,channels=9", "--", "true"], "channels is 1 to 8"),
        (&["vm", "--device", "rtl,top=t", "--", "true"], "file=PATH"),
        (&["rtl", "bench", "edu"], "no simulated hardware"),
        (&["rtl", "bench", "litepcie,rcb=3"], "64 or 128"),
        (&["rtl", "bench", "litepcie", "--size", "0"], "nothing to move"),
        (&["vm", "--cpus", "999", "--", "true"], "1..=255"),
        (&["vm", "--cpus", "0", "--", "true"], "1..=255"),
        (&["vm", "--memory", "1M", "--", "true"], "from 64M to 1024G"),
        (&["vm", "--memory", "100000000G", "--", "true"], "from 64M to 1024G"),
        (&["vm", "--device", "ioat,channels=9", "--", "true"], "1 to 8"),
        (&["vm", "--device=-edu", "--", "true"], "a device is a name"),
        (&["vm", "--share", "/nowhere", "--", "true"], "\"/nowhere\": No such file"),
        (&["vm", "--share", "/dev/null", "--", "true"], "it is not a directory"),
        (&["vm", "--timeout", "0", "--", "true"], "1.."),
        (&["vm"], "a shell needs a terminal"),
        // Registers.
        (&["peek", "model", "6", "0"], "0..=5"),
        (&["peek", "model", "0", "0:3"], "names no register"),
        (&["peek", "model", "0", "STATUS"], "--registers FILE names them"),
        (&["peek", "model", "0", "0", "--vfio"], "--vfio is for a PCI device"),
        (&["peek", "5", "0", "0"], "is not a PCI address"),
        (&["poke", "model", "0", "0", "state=1"], "fields take --registers"),
        (&["poke", "model", "0", "0:1", "256"], "is not a number"),
        (&["dump", "model", "0", "4..4"], "is no range"),
        (&["dump", "model", "0", "0..6"], "words of 4 bytes"),
        (&["dump", "model", "0", "0..0x1000000"], "is not in BAR0"),
        (&["dump", "model", "0", "--width", "3"], "1, 2, 4 or 8 bytes"),
        (&["dump", "model", "0", "--interval", "5"], "--watch"),
        (&["config", "model", "NOTHING"], "has no register \"NOTHING\""),
        (&["config", "model", "COMMAND.x"], "has no field \"x\""),
        (&["config", "model", "VENDOR_ID=1"], "VENDOR_ID is read only"),
        (&["config", "model", "COMMAND.bus-master=2"], "is not a number"),
        (&["irq", "model", "--raise", "0x60=1"], "is not BAR:REGISTER=VALUE"),
        (&["irq", "model", "--raise", "0:STATUS=1"], "--registers FILE names them"),
        (&["irq", "model", "--watch", "--wait", "1"], "cannot be used with"),
        (&["irq", "model", "--bind"], "--bind is for a PCI device"),
        (&["reset", "0000:00:05.0", "--method", "flr", "--scope", "bus"], "--method is for"),
        (&["bind", "1234:11"], "vendor and device such as 1234:11e8"),
        // What is no address.
        (&["bind", "5"], "is not a PCI address"),
        (&["unbind", "5"], "is not a PCI address"),
        (&["doctor", "5"], "is not a PCI address"),
        (&["run", "5"], "is not a PCI address"),
        (&["soak", "5"], "is not a PCI address"),
        (&["bench", "5"], "is not a PCI address"),
    ] {
        let begin = Instant::now();
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(reason), "{args:?}: {said}");
        assert_eq!(output.stdout, b"", "{args:?}");
        assert!(begin.elapsed() < Duration::from_secs(5), "{args:?}: not at once");
    }
    // The path of a function in sysfs is no socket: what it lacks here is the function itself.
    let output = run(&["run", "/sys/bus/pci/devices/ffff:ff:1f.7", "--bind"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!said.contains("--bind is for"), "{said}");
}

#[test]
fn what_is_compared_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b] = ["a.json", "b.json"].map(|name| dir.path().join(name));
    std::fs::write(&a, "{}").unwrap();
    std::fs::write(&b, "{}").unwrap();
    let [a, b] = [&a, &b].map(|path| path.to_str().unwrap());
    let output = run(&["bench", "--compare", a, b, "--json", b]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("one of the files that are compared"), "{said}");
    assert_eq!(std::fs::read_to_string(b).unwrap(), "{}");
}

#[test]
fn completions_and_manual_pages_are_printed() {
    for (args, word) in [
        (&["completions", "bash"][..], "complete -F _vfio__dma"),
        (&["completions", "zsh"], "#compdef vfio-dma"),
        (&["completions", "fish"], "complete -c vfio-dma"),
        (&["man"], ".TH vfio-dma"),
        (&["man", "bench"], ".TH vfio-dma-bench"),
    ] {
        let output = run(args);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains(word), "{args:?}: {said}");
    }
    let page = run(&["man"]);
    let page = String::from_utf8_lossy(&page.stdout);
    assert!(page.contains("VFIO\\_DMA\\_QEMU") || page.contains("VFIO_DMA_QEMU"), "{page}");
    assert_eq!(run(&["man", "nothing"]).status.code(), Some(2));
}

#[test]
fn commands_of_the_readme_write_to_no_file_of_the_repository() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let mut outputs = Vec::new();
    for line in readme.lines().filter(|line| line.contains("cargo run ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let output = |pair: &&[&str]| {
            ["--json", "--csv", "--report", "--plot", "--socket"].contains(&pair[0])
        };
        outputs.extend(words.windows(2).filter(output).map(|pair| pair[1].to_owned()));
    }
    assert!(outputs.len() > 3, "{outputs:?}");
    let listed = Command::new("git").arg("ls-files").args(&outputs).current_dir(root).output();
    let listed = listed.unwrap();
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    assert_eq!(String::from_utf8_lossy(&listed.stdout), "");
}
