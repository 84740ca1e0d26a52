//! `vfio-dma shell`: the commands for one card, with history and completion.

mod complete;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser as _;
use etcetera::BaseStrategy as _;
use rustyline::Editor;
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use vfio_dma::host::Sysfs;
use vfio_dma::pci::Layout;
use vfio_dma::registers::RegisterFile;

use super::open::Place;
use super::remedy::explain;
use super::{Cli, Failure, output};
use complete::{Names, Words};

/// Commands that are about the card: DEVICE is put behind their name.
const OF_THE_CARD: [&str; 13] = [
    "show", "peek", "poke", "dump", "config", "irq", "reset", "rescan", "remove", "run",
    "loopback", "bind", "unbind",
];
/// Commands that are about the machine.
const OF_THE_MACHINE: [&str; 3] = ["status", "list", "doctor"];
/// Commands that take a register file.
const WITH_REGISTERS: [&str; 4] = ["peek", "poke", "dump", "irq"];

/// Type commands for one card: `peek 0 0x4` for `vfio-dma peek DEVICE 0 0x4`
///
/// Tab completes commands, options and the names of registers; arrows bring back earlier lines,
/// which are kept in ~/.local/state/vfio-dma/history. Lines that do not come from a terminal are
/// run until one fails.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A PCI address, the path of a vfio-user socket, or `model`
    #[arg(value_name = "DEVICE")]
    device: String,
    /// A file that names the card's registers and their fields (docs/registers.md)
    #[arg(long, value_name = "FILE")]
    registers: Option<PathBuf>,
}

/// Reads and runs lines until there are no more.
///
/// # Errors
///
/// Fails when there is no such device, when the register file makes no sense, and, without a
/// terminal, when a line fails.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let interactive = std::io::stdin().is_terminal();
    let mut editor: Editor<Words, DefaultHistory> = Editor::new()?;
    editor.set_helper(Some(Words::new(names(args)?)));
    let history = interactive.then(history_file).flatten();
    if let Some(history) = &history
        && let Err(error) = editor.load_history(history)
    {
        log::info!("{}: {error}", history.display());
    }
    let prompt = if interactive { format!("{}> ", args.device) } else { String::new() };
    let mut last = ExitCode::SUCCESS;
    loop {
        let line = match editor.readline(&prompt) {
            Ok(line) => line,
            // Ctrl-C gives up a line, Ctrl-D the shell.
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        if line.trim().is_empty() {
            continue;
        }
        if let Err(error) = editor.add_history_entry(&line) {
            log::info!("{error}");
        }
        match one(args, &line) {
            Ok(None) => break,
            Ok(Some(status)) => last = status,
            Err(failure) if interactive => {
                output::complain(&explain(&*failure));
                last = ExitCode::FAILURE;
            }
            Err(failure) => return Err(failure),
        }
        if !interactive && last != ExitCode::SUCCESS {
            return Ok(last);
        }
    }
    if let Some(history) = &history {
        let made = history.parent().map_or(Ok(()), std::fs::create_dir_all);
        if let Err(error) = made.map_err(Into::into).and_then(|()| editor.save_history(history)) {
            output::complain(&format!("{}: {error}", history.display()));
        }
    }
    Ok(if interactive { ExitCode::SUCCESS } else { last })
}

/// Runs one line; none says that it was the last.
fn one(args: &Args, line: &str) -> Result<Option<ExitCode>, Failure> {
    let words = shlex::split(line).ok_or("a quotation mark has no other")?;
    let Some(command) = words.first().map(String::as_str) else {
        return Ok(Some(ExitCode::SUCCESS));
    };
    match command {
        "exit" | "quit" => return Ok(None),
        "help" if words.len() == 1 => {
            output::print(&help())?;
            return Ok(Some(ExitCode::SUCCESS));
        }
        _ => {}
    }
    let typed = typed(args, &words).ok_or_else(|| {
        format!("there is no command {command:?} here: {}, exit", every_command().join(", "))
    })?;
    let cli = match Cli::try_parse_from(&typed) {
        Ok(cli) => cli,
        Err(error) => {
            // Help is one of them, and goes to standard output.
            let failed = error.use_stderr();
            error.print()?;
            return Ok(Some(if failed { ExitCode::from(2) } else { ExitCode::SUCCESS }));
        }
    };
    super::execute(cli.command.as_ref()).map(Some)
}

/// The command line that a line stands for; none for a command that is not of the shell.
fn typed(args: &Args, words: &[String]) -> Option<Vec<String>> {
    // `help peek` is `peek --help`.
    let (command, rest): (&str, Vec<String>) = match words {
        [help, command, ..] if help == "help" => (command, vec!["--help".into()]),
        [command, rest @ ..] => (command, rest.to_vec()),
        [] => return None,
    };
    let mut typed = vec!["vfio-dma".to_owned(), command.to_owned()];
    if OF_THE_CARD.contains(&command) {
        typed.push(args.device.clone());
    } else if !OF_THE_MACHINE.contains(&command) {
        return None;
    }
    let has_own = rest.iter().any(|word| word.starts_with("--registers"));
    typed.extend(rest);
    if let Some(file) = args.registers.as_ref().filter(|_| !has_own)
        && WITH_REGISTERS.contains(&command)
    {
        typed.extend(["--registers".into(), file.display().to_string()]);
    }
    Some(typed)
}

fn every_command() -> Vec<&'static str> {
    OF_THE_CARD.into_iter().chain(OF_THE_MACHINE).collect()
}

fn help() -> String {
    format!(
        "Of the card: {}\nOf the machine: {}\n`help COMMAND` explains one; `exit` ends\n",
        OF_THE_CARD.join(" "),
        OF_THE_MACHINE.join(" ")
    )
}

/// The names that are completed.
fn names(args: &Args) -> Result<Names, Failure> {
    let registers = match &args.registers {
        Some(path) => RegisterFile::read(path)?,
        None => RegisterFile::default(),
    };
    let mut names = Names::default();
    for bar in 0..6 {
        names.of_bars.extend(registers.of_bar(bar).map(|register| (bar, register.clone())));
    }
    if let Place::Function(address) = Place::of(&args.device)? {
        let config = Sysfs::new().config(address)?;
        // A card that does not answer can be looked at all the same.
        let layout = Layout::read(&config).unwrap_or_default();
        names.of_config = layout.structures.into_iter().flat_map(|s| s.registers).collect();
    }
    Ok(names)
}

fn history_file() -> Option<PathBuf> {
    let base = etcetera::base_strategy::Xdg::new().ok()?;
    Some(base.state_dir()?.join("vfio-dma/history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(registers: Option<&str>) -> Args {
        Args { device: "0000:00:05.0".into(), registers: registers.map(PathBuf::from) }
    }

    #[test]
    fn a_line_stands_for_a_command_line() {
        let typed = |line: &str, registers| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            typed(&args(registers), &words).map(|words| words.join(" "))
        };
        let said = |text: &str| Some(text.to_owned());
        assert_eq!(typed("peek 0 0x4", None), said("vfio-dma peek 0000:00:05.0 0 0x4"));
        assert_eq!(
            typed("peek 0 ID", Some("f")),
            said("vfio-dma peek 0000:00:05.0 0 ID --registers f")
        );
        assert_eq!(typed("status", Some("f")), said("vfio-dma status"));
        assert_eq!(typed("help dump", None), said("vfio-dma dump 0000:00:05.0 --help"));
        assert_eq!(typed("vm", None), None);
        for command in every_command() {
            let words = [command.to_owned(), "--help".into()];
            let typed = super::typed(&args(None), &words).unwrap();
            let error = Cli::try_parse_from(typed).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp, "{command}");
        }
    }

    #[test]
    fn lines_that_make_no_sense_are_told_and_do_not_end_the_shell() {
        assert!(one(&args(None), "exit").unwrap().is_none());
        let error = one(&args(None), "fetch 1").unwrap_err().to_string();
        assert!(error.contains("there is no command \"fetch\" here: show, peek"), "{error}");
        let error = one(&args(None), "peek '").unwrap_err().to_string();
        assert!(error.contains("quotation mark"), "{error}");
        assert_eq!(one(&args(None), "peek 9 0").unwrap(), Some(ExitCode::from(2)));
    }
}
