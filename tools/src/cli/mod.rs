//! The command line: one module for each subcommand.
//!
//! Exit status: 0 done; 1 failed, with the reason and the remedy on standard error;
//! 2 usage. Results go to standard output, everything else to standard error.

use std::process::ExitCode;

/// Why a subcommand failed; its text is what the user sees.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
