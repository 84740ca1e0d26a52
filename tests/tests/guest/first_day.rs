//! `docs/first-day.md`: each command of the page says what the page says.

use std::path::Path;
use std::process::Command;

use vfio_dma_tools::vm::{Device, SHARE, VmConfig};

const PAGE: &str = include_str!("../../../docs/first-day.md");

/// The guest of the page.
pub(crate) fn machine() -> VmConfig {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../driver/examples");
    VmConfig {
        devices: ["edu", "e1000e,romfile="].map(Device::from).into(),
        share: Some(examples),
        ..VmConfig::default()
    }
}

/// The commands of the page with what they say, in order.
fn commands() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut commands: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut is_inside = false;
    for line in PAGE.lines() {
        match line {
            "```console" => is_inside = true,
            "```" => is_inside = false,
            line if is_inside => match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push((command, Vec::new())),
                (None, Some((_, said))) => said.push(line),
                (None, None) => panic!("what no command says: {line}"),
            },
            _ => {}
        }
    }
    commands
}

/// Lines without what differs from run to run: times, rates, and addresses of BARs; blanks, which
/// follow the lengths of these, count once.
fn normalised<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
    let is_number =
        |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let units = ["us", "us;", "ms", "s", "kB/s;"];
    let places = ["memory32", "memory64", "BASE_ADDRESS_0", "process"];
    let line = |line: &'a str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let shown = words.iter().enumerate().map(|(n, word)| {
            let is_time =
                is_number(word) && words.get(n + 1).is_some_and(|next| units.contains(next));
            let is_place = n > 0 && places.contains(&words[n - 1]);
            if is_time || is_place { "#" } else { word }
        });
        shown.collect::<Vec<_>>().join(" ")
    };
    lines.map(line).filter(|line| !line.is_empty()).collect()
}

pub(crate) fn the_page_says_what_the_commands_say() {
    let commands = commands();
    assert!(commands.len() > 15, "{commands:#?}");
    let mut wrong = String::new();
    for (command, page) in commands {
        let output = Command::new("sh")
            .args(["-c", &format!("{command} 2>&1")])
            .current_dir(SHARE)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if normalised(said.lines()) != normalised(page.iter().copied()) {
            wrong += &format!("$ {command}\n{said}\n(the page has)\n{}\n\n", page.join("\n"));
        }
    }
    assert!(wrong.is_empty(), "docs/first-day.md is not true any more:\n{wrong}");
}
