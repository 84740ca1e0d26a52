//! The command without arguments, as a new user runs it.

use std::process::Command;

#[test]
fn the_same_calls_copy_contiguous_and_scattered_buffers_and_say_why() {
    // Its own directory for caches: nothing is fetched or booted.
    let cache = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_vfio-dma"))
        .env("XDG_CACHE_HOME", cache.path())
        .env("PATH", "")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.ends_with("all bytes"))
        .map(|line| line.split_whitespace().collect())
        .collect();
    // Segments of source and target, map calls, descriptors: one more for the doorbell's mark,
    // and in a long transfer for each quarter of the ring of 1024.
    assert_eq!(rows[0][..6], ["contiguous", "1", "+", "1", "2", "65"], "{text}");
    assert_eq!(rows[1][..5], ["scatter/gather", "16384", "+", "16384", "32768"], "{text}");
    let descriptors: u32 = rows[1][5].parse().unwrap();
    assert!((16384 + 65..16384 + 200).contains(&descriptors), "{text}");
    assert_eq!(rows.len(), 2, "{text}");
    for part in ["smaller blocks: no free IOVA run of 64 KiB", "the longest run has 4 KiB"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    // The commands to go on with are those of this very program: they work as they are printed.
    let program = env!("CARGO_BIN_EXE_vfio-dma");
    let hints: Vec<&str> =
        text.lines().filter_map(|line| line.trim().strip_prefix(program)).collect();
    assert_eq!(hints.len(), 6, "{text}");
    let listed = Command::new("sh").arg("-c").arg(format!("{program}{}", hints[4])).status();
    assert!(listed.unwrap().success(), "{hints:?}");
    let failed = Command::new(program).args(["run", "ffff:ff:1f.7"]).output().unwrap();
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(said.contains(&format!("command: {program} list")), "{said}");
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}
