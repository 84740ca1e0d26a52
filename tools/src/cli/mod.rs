//! The command line: one module for each subcommand.
//!
//! Exit status: 0 done; 1 failed, with the reason and the remedy on standard error;
//! 2 usage; 128 and the number of the signal that ended it, 130 after Ctrl-C. Results go to standard output, everything else to standard error.

pub mod bench;
pub mod bind;
pub mod demo;
pub mod doctor;
mod exit;
#[cfg(test)]
mod fixture;
pub mod link;
pub mod list;
pub mod model;
mod open;
mod output;
mod remedy;
pub mod run;
pub mod size;
pub mod unbind;
pub mod vm;

use std::process::ExitCode;

use clap::Parser;

use exit::{interrupted, usage};

/// Why a subcommand failed; its text is what the user sees.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Linux userspace drivers for PCI DMA devices, over VFIO
///
/// Without a command: what this machine has, and the same copy between contiguous and between
/// scattered buffers, on the model of an engine in this process.
#[derive(Debug, Parser)]
#[command(name = "vfio-dma", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    List(list::Args),
    Bind(bind::Args),
    Unbind(unbind::Args),
    Doctor(doctor::Args),
    Run(run::Args),
    Bench(Box<bench::Args>),
    Vm(vm::Args),
    Model(model::Args),
    Link(link::Args),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    // What vfio-ioctls warns of is either an error of ours or of no consequence.
    let filter = env_logger::Env::default().default_filter_or("warn,vfio_ioctls=error");
    env_logger::Builder::from_env(filter).init();
    let result = match &Cli::parse().command {
        None => demo::run(),
        Some(Command::List(args)) => list::run(args),
        Some(Command::Bind(args)) => bind::run(args),
        Some(Command::Unbind(args)) => unbind::run(args),
        Some(Command::Doctor(args)) => doctor::run(args),
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Vm(args)) => vm::run(args),
        Some(Command::Model(args)) => model::run(args),
        Some(Command::Link(args)) => link::run(args),
    };
    result.unwrap_or_else(|failure| {
        output::complain(&remedy::explain(&*failure));
        exit::status(&failure)
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
