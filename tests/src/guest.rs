//! The part of the harness that runs in the guest.

use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vfio_dma::pci::Address;
use vfio_dma_tools::vm::VmConfig;

use crate::Scenario;

/// First argument that runs cases one after another.
pub(crate) const RUN_CASES: &str = "guest-cases";
/// First argument that runs one case in this process.
pub(crate) const RUN_CASE: &str = "guest-case";

/// Longest time for one case.
const CASE_LIMIT: Duration = Duration::from_secs(240);

/// What a case came to; one JSON object on a line of the guest's standard output.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CaseResult {
    pub(crate) case: String,
    pub(crate) passed: bool,
    pub(crate) seconds: f64,
    /// What the case printed, for a failed one.
    pub(crate) output: String,
}

/// Runs each case in a process of its own and reports it at once.
pub(crate) fn run_cases(scenario: &str, names: &[&str]) -> ExitCode {
    for name in names {
        let begin = Instant::now();
        let (passed, output) = match run_process(scenario, name) {
            Ok(said) => said,
            Err(error) => (false, format!("the case cannot be started: {error}")),
        };
        let seconds = begin.elapsed().as_secs_f64();
        let result = CaseResult { case: (*name).into(), passed, seconds, output };
        match serde_json::to_string(&result) {
            Ok(line) => println!("{line}"),
            Err(error) => eprintln!("{name}: {error}"),
        }
        // A guest that dies later must not take this result with it.
        let _ = std::io::stdout().flush();
    }
    ExitCode::SUCCESS
}

fn run_process(scenario: &str, name: &str) -> std::io::Result<(bool, String)> {
    let path = format!("/tmp/{name}.log");
    let log = std::fs::File::create(&path)?;
    let mut child = Command::new("/bin/vfio-dma")
        .args([RUN_CASE, scenario, name])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let begin = Instant::now();
    let passed = loop {
        if let Some(status) = child.try_wait()? {
            break status.success();
        }
        if begin.elapsed() > CASE_LIMIT {
            child.kill()?;
            child.wait()?;
            break false;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut output = String::from_utf8_lossy(&std::fs::read(&path)?).into_owned();
    if begin.elapsed() > CASE_LIMIT {
        output.push_str(&format!("\nkilled after {} s", CASE_LIMIT.as_secs()));
    }
    Ok((passed, output))
}

/// Runs one case here; its panic is this process's failure.
pub(crate) fn run_case(scenarios: &[Scenario], scenario: &str, name: &str) -> ExitCode {
    let found = scenarios
        .iter()
        .find(|s| s.name == scenario)
        .and_then(|s| s.cases.iter().find(|case| case.name == name));
    match found {
        Some(case) => {
            (case.run)();
            ExitCode::SUCCESS
        }
        None => {
            eprintln!("there is no case {scenario}::{name}");
            ExitCode::FAILURE
        }
    }
}

/// What a run of the command line said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Exit status; -1 when a signal ended it.
    pub status: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// Runs the command line in the guest.
///
/// # Panics
///
/// When it cannot be started.
#[must_use]
pub fn vfio_dma(args: &[&str]) -> Said {
    let output = Command::new("/bin/vfio-dma")
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("/bin/vfio-dma is this program");
    Said {
        status: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// The PCI address of the guest's device at `index`.
///
/// # Panics
///
/// When the runner makes an address that does not parse.
#[must_use]
pub fn address(index: u8) -> Address {
    VmConfig::address(index).parse().expect("the runner makes addresses in the standard form")
}
