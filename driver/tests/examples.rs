//! The examples, as programs: their help, their errors, and on the model those that it can run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, and so do its helpers")]

use std::process::{Command, Output};

const ALL: &[&str] = &[
    #[cfg(feature = "vfio-user")]
    "copy",
    "edu_copy",
    "first_dma",
    "ioat_async",
    "ioat_copy",
    "ioat_stream",
    "registers",
    #[cfg(feature = "host")]
    "skeleton",
];

/// Runs an example of the same build as this test.
fn run(name: &str, arguments: &[&str]) -> Output {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not built: cargo build -p vfio-dma --examples", path.display());
    Command::new(path).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn each_explains_itself() {
    for name in ALL {
        let help = run(name, &["--help"]);
        let said = text(&help.stdout);
        assert!(help.status.success() && said.contains("Usage: "), "{name}: {said}");
        for place in ["PCI address", "socket", "`model`"] {
            assert!(said.contains(place), "{name}: {said}");
        }
        let wrong = run(name, &["--nonsense"]);
        assert_eq!(wrong.status.code(), Some(2), "{name}");
        assert!(text(&wrong.stderr).contains("Usage: "), "{name}");
    }
}

#[test]
fn each_says_in_words_what_fails_and_what_mends_it() {
    for name in ALL {
        for (place, reason) in [
            ("5", "\"5\" is not a PCI address"),
            // Without iommufd VFIO's own node is looked for first, and need not be there.
            #[cfg(feature = "iommufd")]
            ("ffff:ff:1f.7", "no PCI device ffff:ff:1f.7\n  remedy: "),
            ("./no-such-socket", "no-such-socket"),
        ] {
            let output = run(name, &[place]);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{name} {place}: {said}");
            assert!(said.contains(reason), "{name} {place}: {said}");
            for debug in ["Error: ", " { ", "Os {"] {
                assert!(!said.contains(debug), "{name} {place}: {said}");
            }
        }
    }
}

#[test]
fn the_model_is_a_place_too() {
    for (name, expected) in [
        #[cfg(feature = "vfio-user")]
        ("copy", "the same everywhere\n"),
        ("ioat_async", "16 copies of 100000 bytes"),
        ("ioat_copy", "from memory to memory\n"),
        ("ioat_stream", "256 blocks of 65536 bytes"),
        ("registers", "8086:2021"),
    ] {
        let output = run(name, &["model"]);
        let said = text(&output.stdout);
        assert!(output.status.success(), "{name}: {said}{}", text(&output.stderr));
        assert!(said.contains(expected), "{name}: {said}");
    }
    // Those for another device say so.
    for name in ["edu_copy", "first_dma"] {
        let output = run(name, &["model"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.starts_with(&format!("{name}: model")) && said.contains("edu"), "{said}");
    }
}
