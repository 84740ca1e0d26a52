//! The command line: one module for each subcommand.
//!
//! Exit status: 0 done; 1 failed, with the reason and the remedy on standard error;
//! 2 usage. Results go to standard output, everything else to standard error.

pub mod link;
pub mod size;

use std::process::ExitCode;

use clap::Parser;

/// Why a subcommand failed; its text is what the user sees.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Linux userspace drivers for PCI DMA devices, over VFIO
#[derive(Debug, Parser)]
#[command(name = "vfio-dma", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Link(link::Args),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let result = match &Cli::parse().command {
        Command::Link(args) => link::run(args),
    };
    result.unwrap_or_else(|failure| {
        eprintln!("vfio-dma: {failure}");
        ExitCode::FAILURE
    })
}
