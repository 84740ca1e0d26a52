//! The command line: one module for each subcommand.
//!
//! Exit status: 0 done; 1 failed, with the reason and the remedy on standard error;
//! 2 usage; 128 and the number of the signal that ended it, 130 after Ctrl-C. Results go to standard output, everything else to standard error.

pub mod bench;
pub mod bind;
mod card;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod dump;
mod exit;
#[cfg(test)]
mod fixture;
mod help;
pub mod irq;
pub mod link;
pub mod list;
pub mod loopback;
pub mod model;
mod open;
mod output;
pub mod peek;
pub mod poke;
mod remedy;
pub mod remove;
pub mod rescan;
pub mod reset;
pub mod rtl;
pub mod run;
pub mod shell;
pub mod show;
pub mod size;
pub mod soak;
pub mod status;
pub mod unbind;
pub mod vm;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};

use exit::{interrupted, usage};

/// Why a subcommand failed; its text is what the user sees.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Linux userspace drivers for PCI DMA devices, over VFIO
///
/// Without a command: what this machine has, and the same copy between contiguous and between
/// scattered buffers, on the model of an engine in this process.
#[derive(Debug, Parser)]
#[command(name = "vfio-dma", version, after_long_help = help::TOP)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    #[command(after_long_help = help::LIST)]
    List(list::Args),
    #[command(after_long_help = help::STATUS)]
    Status(status::Args),
    #[command(after_long_help = help::SHOW)]
    Show(show::Args),
    #[command(after_long_help = help::PEEK)]
    Peek(peek::Args),
    #[command(after_long_help = help::POKE)]
    Poke(poke::Args),
    #[command(after_long_help = help::DUMP)]
    Dump(dump::Args),
    #[command(after_long_help = help::CONFIG)]
    Config(config::Args),
    #[command(after_long_help = help::IRQ)]
    Irq(irq::Args),
    #[command(after_long_help = help::RESET)]
    Reset(reset::Args),
    #[command(after_long_help = help::REMOVE)]
    Remove(remove::Args),
    #[command(after_long_help = help::RESCAN)]
    Rescan(rescan::Args),
    #[command(after_long_help = help::BIND)]
    Bind(bind::Args),
    #[command(after_long_help = help::UNBIND)]
    Unbind(unbind::Args),
    #[command(after_long_help = help::DOCTOR)]
    Doctor(doctor::Args),
    #[command(after_long_help = help::RUN)]
    Run(run::Args),
    #[command(after_long_help = help::LOOPBACK)]
    Loopback(loopback::Args),
    #[command(after_long_help = help::SHELL)]
    Shell(shell::Args),
    #[command(after_long_help = help::BENCH)]
    Bench(Box<bench::Args>),
    #[command(after_long_help = help::SOAK)]
    Soak(soak::Args),
    #[command(after_long_help = help::VM)]
    Vm(vm::Args),
    #[command(after_long_help = help::MODEL)]
    Model(model::Args),
    #[command(after_long_help = help::RTL)]
    Rtl(rtl::Args),
    #[command(after_long_help = help::LINK)]
    Link(link::Args),
    #[command(after_long_help = help::COMPLETIONS)]
    Completions(help::Completions),
    #[command(after_long_help = help::MAN)]
    Man(help::Man),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let filter = env_logger::Env::default().default_filter_or("warn");
    env_logger::Builder::from_env(filter).init();
    output::learn_program();
    let result = execute(Cli::parse().command.as_ref());
    result.unwrap_or_else(|failure| {
        output::complain(&remedy::explain(&*failure));
        exit::status(&failure)
    })
}

fn execute(command: Option<&Command>) -> Result<ExitCode, Failure> {
    match command {
        None => demo::run(),
        Some(Command::List(args)) => list::run(args),
        Some(Command::Status(args)) => status::run(args),
        Some(Command::Show(args)) => show::run(args),
        Some(Command::Peek(args)) => peek::run(args),
        Some(Command::Poke(args)) => poke::run(args),
        Some(Command::Dump(args)) => dump::run(args),
        Some(Command::Config(args)) => config::run(args),
        Some(Command::Irq(args)) => irq::run(args),
        Some(Command::Reset(args)) => reset::run(args),
        Some(Command::Remove(args)) => remove::run(args),
        Some(Command::Rescan(args)) => rescan::run(args),
        Some(Command::Bind(args)) => bind::run(args),
        Some(Command::Unbind(args)) => unbind::run(args),
        Some(Command::Doctor(args)) => doctor::run(args),
        Some(Command::Run(args)) => run::run(args),
        Some(Command::Loopback(args)) => loopback::run(args),
        Some(Command::Shell(args)) => shell::run(args),
        Some(Command::Bench(args)) => bench::run(args),
        Some(Command::Soak(args)) => soak::run(args),
        Some(Command::Vm(args)) => vm::run(args),
        Some(Command::Model(args)) => model::run(args),
        Some(Command::Rtl(args)) => rtl::run(args),
        Some(Command::Link(args)) => link::run(args),
        Some(Command::Completions(args)) => help::completions(args, Cli::command()),
        Some(Command::Man(args)) => help::man(args, Cli::command()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::Cli;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_has_examples_and_they_are_understood() {
        let mut command = Cli::command();
        command.build();
        let all = std::iter::once(&command).chain(command.get_subcommands());
        for command in all.filter(|command| command.get_name() != "help") {
            let name = command.get_name();
            let help = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> =
                help.lines().filter_map(|line| line.strip_prefix("  vfio-dma")).collect();
            assert!(!examples.is_empty(), "{name}: no examples");
            for example in examples {
                // What follows is for another program.
                let words = example.split(['|', '>', '&']).next().unwrap_or_default();
                let words = shlex::split(&format!("vfio-dma{words}")).unwrap();
                let parsed = Cli::try_parse_from(&words);
                assert!(parsed.is_ok(), "{words:?}: {}", parsed.unwrap_err());
            }
        }
    }

    #[test]
    fn every_variable_that_is_read_is_in_the_help() {
        let sources = walkdir::WalkDir::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let mut found = std::collections::BTreeSet::new();
        for file in sources.into_iter().map(Result::unwrap) {
            let text = std::fs::read_to_string(file.path()).unwrap_or_default();
            for part in text.split("env::var").skip(1) {
                let name = part.split('"').nth(1).filter(|_| part.trim_start().len() > 1);
                found.extend(name.filter(|name| name.starts_with("VFIO_DMA_")).map(str::to_owned));
            }
        }
        assert!(found.contains("VFIO_DMA_QEMU"), "{found:?}");
        for name in found {
            assert!(super::help::TOP.contains(&name), "{name}");
        }
    }
}
