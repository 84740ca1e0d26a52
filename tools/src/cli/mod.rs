//! The command line: one module for each subcommand.
//!
//! Exit status: 0 done; 1 failed, with the reason and the remedy on standard error;
//! 2 usage. Results go to standard output, everything else to standard error.

pub mod bind;
pub mod doctor;
#[cfg(test)]
mod fixture;
pub mod list;
mod output;
pub mod unbind;

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
    List(list::Args),
    Bind(bind::Args),
    Unbind(unbind::Args),
    Doctor(doctor::Args),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let result = match &Cli::parse().command {
        Command::List(args) => list::run(args),
        Command::Bind(args) => bind::run(args),
        Command::Unbind(args) => unbind::run(args),
        Command::Doctor(args) => doctor::run(args),
    };
    result.unwrap_or_else(|failure| {
        output::complain(&failure.to_string());
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
