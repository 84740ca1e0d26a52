//! `vfio-dma loopback`: a card by a recipe, and known engines; the shell.

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use serde_json::Value;
use vfio_dma::devices::recipe::{LoopbackOptions, Recipe, Verdict};
use vfio_dma::dma::Placement;
use vfio_dma_tests::{Said, address, vfio_dma};

use crate::support::{leaves_machine_alone, open, refused};

const REGISTERS: &str = include_str!("../../../driver/examples/edu.registers.toml");
const RECIPE: &str = include_str!("../../../driver/examples/edu.recipe.toml");

/// The recipe as a file, with a change.
fn recipe(from: &str, to: &str) -> String {
    fs::write("/tmp/edu.registers.toml", REGISTERS).unwrap();
    assert!(RECIPE.contains(from), "{from}");
    let path = "/tmp/edu.recipe.toml";
    fs::write(path, RECIPE.replace(from, to)).unwrap();
    path.to_owned()
}

fn works(args: &[&str]) -> Said {
    let said = vfio_dma(args);
    assert_eq!(said.status, 0, "{args:?}: {said:#?}");
    said
}

pub(crate) fn a_recipe_moves_and_verifies() {
    let edu = address(0).to_string();
    let _ = vfio_dma(&["unbind", &edu]);
    let file = recipe("", "");
    leaves_machine_alone(|| {
        let said = works(&["loopback", "--bind", &edu, "--recipe", &file, "--size", "10000"]);
        assert!(said.out.contains("in 3 transfers"), "{said:#?}");
        assert!(said.out.contains("verified: every byte is right"), "{said:#?}");
    });
    // Waiting for a register instead, in scattered buffers.
    let file = recipe("irq = \"msi\"", "register = \"DMA_COMMAND.run\"\nequals = 0");
    let scattered = ["--placement", "sg", "--size", "12K", "--json"];
    let said = works(&[&["loopback", "--bind", &edu, "--recipe", &file][..], &scattered].concat());
    let json: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!((&json["passed"], &json["bytes"]), (&true.into(), &12288.into()));
    assert!(json["transfers"].as_u64().unwrap() >= 3, "{json:#}");
    // An engine that has a driver is run by it.
    let said = works(&["loopback", "--bind", &edu, "--size", "4K"]);
    assert!(said.out.contains("every byte is right"), "{said:#?}");
}

pub(crate) fn a_recipe_that_is_wrong_is_told() {
    let edu = address(0).to_string();
    let run =
        |file: &str| vfio_dma(&["loopback", "--bind", &edu, "--recipe", file, "--size", "4K"]);
    // It moves half of the bytes.
    let said = run(&recipe("value = \"length\"", "value = \"length / 2\""));
    assert_eq!(said.status, 1, "{said:#?}");
    assert!(said.out.contains("WRONG: byte 2048 is"), "{said:#?}");
    // Nothing starts.
    let never = recipe("value = 0x5", "value = 0x4");
    let text = fs::read_to_string(&never).unwrap();
    fs::write(&never, text.replace("name = \"to the device\"", "name = \"a\"\ntimeout-ms = 300"))
        .unwrap();
    let args = ["loopback", "--bind", &edu, "--recipe", &never, "--size", "4K"];
    refused(&args, &["step \"a\" of transfer 0 did not end within 300 ms", "no interrupt came"]);
    // It ends before the transfer has: nothing is corrupted, and the data is wrong.
    let said = run(&recipe("irq = \"msi\"", "register = \"ID.device\"\nequals = 0xed"));
    assert_eq!(said.status, 1, "{said:#?}");
    let told = said.err.contains("run is 0x1, not 0x0") || said.out.contains("WRONG");
    assert!(told, "{said:#?}");
    let said = run(&recipe("[limits]", "[limit]"));
    assert!(said.status == 1 && said.err.contains("the recipe is malformed"), "{said:#?}");
}

pub(crate) fn the_library_runs_recipes() {
    let file = recipe("", "");
    let recipe = Recipe::read(&file).unwrap();
    let mut device = open(address(0));
    let stop = AtomicBool::new(false);
    let options = LoopbackOptions::new(5000).placement(Placement::Contiguous).seed(7);
    let done = recipe.run(&mut device, &options, &stop).unwrap();
    assert_eq!((done.verdict, done.transfers, done.bytes), (Verdict::Verified, 2, 5000));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = recipe.run(&mut device, &options, &stop).unwrap_err().to_string();
    assert_eq!(error, "interrupted after 0 of 5000 bytes");
}

pub(crate) fn lines_of_the_shell_are_commands_for_a_card() {
    fs::write("/tmp/edu.registers.toml", REGISTERS).unwrap();
    let edu = address(0).to_string();
    let shell = |lines: &str| {
        let mut child = Command::new("/bin/vfio-dma")
            .args(["shell", &edu, "--registers", "/tmp/edu.registers.toml"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let lines = "config COMMAND.memory-space=1\npeek 0 ID\npoke 0 LIVENESS 5\n\nstatus\nexit\nx\n";
    let (status, out, err) = shell(lines);
    assert_eq!((status, err.as_str()), (Some(0), ""), "{out}");
    assert!(out.contains("0x010000ed  major=0x1 device=edu"), "{out}");
    assert!(out.contains("reads 0xfffffffa") && out.contains("IN USE"), "{out}");
    // Without a terminal the first that fails ends it.
    let (status, out, err) = shell("peek 0 NONE\npeek 0 ID\n");
    assert_eq!((status, out.as_str()), (Some(2), ""), "{err}");
    assert!(err.contains("has no register \"NONE\""), "{err}");
}
