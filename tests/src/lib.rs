//! The harness of the suites that run inside a guest.
//!
//! A [`Scenario`] is a guest and the [`Case`]s that run in it. The test program plays three
//! parts: on the host it boots each scenario's guest once; in the guest it runs as
//! `/bin/vfio-dma`, either one case in a process of its own, or the real command line,
//! which cases call through [`vfio_dma()`].

mod dice;
mod guest;
mod host;
pub mod same_program;
mod sizes;

use std::process::ExitCode;

use vfio_dma_tools::vm::VmConfig;

pub use dice::Dice;
pub use guest::{Said, address, vfio_dma};
pub use host::is_left_out;
pub use sizes::{RTL_SIZE, rtl_size};

/// A test that runs in a guest; it fails by panicking.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What it shows, in snake case.
    pub name: &'static str,
    /// The test.
    pub run: fn(),
}

/// Makes [`Case`]s of functions, named as they are.
#[macro_export]
macro_rules! cases {
    ($($case:path),* $(,)?) => {
        vec![$($crate::Case {
            name: {
                // Only the last part of a path is the name.
                let path = stringify!($case);
                match path.rsplit("::").next() { Some(name) => name, None => path }
            },
            run: $case,
        }),*]
    };
}

/// A guest, and what the host does for it.
pub struct Machine {
    /// The guest.
    pub vm: VmConfig,
    /// Called when the guest has ended. It owns the servers of the guest's devices, and
    /// says what is wrong with what they saw, which fails every case of the scenario.
    pub verify: Box<dyn FnOnce() -> Result<(), String>>,
}

impl From<VmConfig> for Machine {
    fn from(vm: VmConfig) -> Machine {
        Machine { vm, verify: Box::new(|| Ok(())) }
    }
}

/// A guest, and what is tested in it.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Names the scenario in the report: `scenario::case`.
    pub name: &'static str,
    /// Makes the guest; on the host, once.
    pub machine: fn() -> Machine,
    /// The tests.
    pub cases: Vec<Case>,
}

/// Plays the part that this process was started for.
#[must_use]
pub fn main(scenarios: Vec<Scenario>) -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    if std::path::Path::new(&program).file_name() != Some("vfio-dma".as_ref()) {
        return host::main(scenarios);
    }
    let args: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [guest::RUN_CASES, scenario, ref names @ ..] => guest::run_cases(scenario, names),
        [guest::RUN_CASE, scenario, name] => guest::run_case(&scenarios, scenario, name),
        _ => vfio_dma_tools::cli::main(),
    }
}
