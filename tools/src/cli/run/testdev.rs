//! Runs pci-testdev's own tests.

use std::fmt::Write as _;

use serde::Serialize;
use vfio_dma::device::Device;
use vfio_dma::devices::PciDriver;
use vfio_dma::devices::pci_testdev::{Membar, PciTestdev, TestResult};

use super::{Args, Failure};

/// What the tests came to.
#[derive(Debug, Serialize)]
pub(super) struct TestdevOutcome {
    address: String,
    pub(super) passed: bool,
    tests: Vec<TestResult>,
    membar: Option<Membar>,
}

pub(super) fn run(args: &Args, device: Device) -> Result<TestdevOutcome, Failure> {
    let address = device.location().to_string();
    let testdev = PciTestdev::probe(device, ())?;
    let tests = testdev.run(args.writes.unwrap_or(1000))?;
    let membar = testdev.membar()?;
    let passed = tests.iter().all(TestResult::passed);
    Ok(TestdevOutcome { address, passed, tests, membar })
}

pub(super) fn describe(testdev: &TestdevOutcome) -> String {
    let mut text = format!(
        "{:<4} {:<26} {:>5} {:<8} {:>8} {:>8} {:>8} result\n",
        "BAR", "test", "width", "access", "writes", "hits", "expected"
    );
    for test in &testdev.tests {
        let verdict = if test.passed() { "pass" } else { "FAIL" };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<4} {:<26} {:>5} {:<8} {:>8} {:>8} {:>8} {verdict}",
            test.bar,
            test.name,
            test.width,
            test.access.to_string(),
            test.writes,
            test.hits,
            test.expected
        );
    }
    match testdev.membar {
        Some(membar) => {
            let Membar { size, mapped } = membar;
            let _ = writeln!(text, "BAR2 membar: {size} bytes, {mapped} of them mapped");
        }
        None => text.push_str("BAR2 membar: not there\n"),
    }
    let failed = testdev.tests.iter().filter(|test| !test.passed()).count();
    let passed = testdev.tests.len() - failed;
    let _ = write!(text, "{} pci-testdev: {passed} passed, {failed} failed", testdev.address);
    text
}
