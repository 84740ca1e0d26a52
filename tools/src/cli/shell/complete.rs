//! What Tab completes.

use clap::CommandFactory as _;
use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};
use vfio_dma::registers::Register;

use super::every_command;
use crate::cli::Cli;

/// Names of registers.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Of BARs, by BAR.
    pub(super) of_bars: Vec<(u8, Register)>,
    /// Of configuration space.
    pub(super) of_config: Vec<Register>,
}

/// Completes the words of a line.
pub(super) struct Words {
    names: Names,
}

impl Words {
    pub(super) fn new(names: Names) -> Words {
        Words { names }
    }

    /// The words that the last one of these may become.
    fn candidates(&self, words: &[&str]) -> Vec<String> {
        let Some((last, before)) = words.split_last() else { return Vec::new() };
        let mut found: Vec<String> = match before {
            [] | ["help"] => {
                let own = ["exit", "help"].into_iter().filter(|_| before.is_empty());
                every_command().into_iter().chain(own).map(str::to_owned).collect()
            }
            [command, ..] if last.starts_with('-') => options(command),
            ["config", ..] => with_fields(self.names.of_config.iter(), last),
            ["peek" | "poke" | "dump", bar, ..] => {
                let bar = bar.parse().ok();
                let of_bar = self.names.of_bars.iter().filter(|(of, _)| Some(*of) == bar);
                with_fields(of_bar.map(|(_, register)| register), last)
            }
            _ => Vec::new(),
        };
        let typed = last.to_ascii_lowercase();
        found.retain(|word| word.to_ascii_lowercase().starts_with(&typed));
        found.sort();
        found.dedup();
        found
    }
}

/// Registers, and the fields of the one that is named already.
fn with_fields<'a>(registers: impl Iterator<Item = &'a Register>, typed: &str) -> Vec<String> {
    let mut words = Vec::new();
    for register in registers {
        match typed.split_once('.') {
            None => words.push(register.name.clone()),
            Some((name, _)) if name.eq_ignore_ascii_case(&register.name) => {
                let fields = register.fields.iter();
                words.extend(fields.map(|field| format!("{}.{}", register.name, field.name)));
            }
            Some(_) => {}
        }
    }
    words
}

fn options(command: &str) -> Vec<String> {
    let cli = Cli::command();
    let Some(command) = cli.find_subcommand(command) else { return Vec::new() };
    command.get_arguments().filter_map(|option| Some(format!("--{}", option.get_long()?))).collect()
}

impl Completer for Words {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let line = line.get(..at).unwrap_or(line);
        let begin = line
            .rfind(char::is_whitespace)
            .map_or(0, |blank| blank + line[blank..].chars().next().map_or(1, char::len_utf8));
        let mut words: Vec<&str> = line[..begin].split_whitespace().collect();
        words.push(&line[begin..]);
        Ok((begin, self.candidates(&words)))
    }
}

impl Hinter for Words {
    type Hint = String;
}

impl Highlighter for Words {}
impl Validator for Words {}
impl Helper for Words {}

#[cfg(test)]
mod tests {
    use rustyline::history::DefaultHistory;
    use vfio_dma::registers::{AccessMode, Field};

    use super::*;

    fn words() -> Words {
        let mut status = Register::new("STATUS", 0x20, 4, AccessMode::ReadWrite);
        status.fields.push(Field::new("computing", 0, 1));
        let start = Register::new("START", 0x24, 4, AccessMode::ReadWrite);
        let command = Register::new("COMMAND", 4, 2, AccessMode::ReadWrite);
        let of_bars = vec![(0, status), (1, start)];
        Words::new(Names { of_bars, of_config: vec![command] })
    }

    fn complete(line: &str) -> (usize, Vec<String>) {
        let history = DefaultHistory::new();
        words().complete(line, line.len(), &Context::new(&history)).unwrap()
    }

    #[test]
    fn commands_options_registers_and_fields_are_completed() {
        for (line, begin, expected) in [
            ("pe", 0, &["peek"][..]),
            ("help du", 5, &["dump"]),
            ("peek 0 st", 7, &["STATUS"]),
            ("poke 1 ", 7, &["START"]),
            ("dump 0 status.", 7, &["STATUS.computing"]),
            ("config COM", 7, &["COMMAND"]),
            ("dump 0 --wa", 7, &["--watch"]),
            ("peek 0 é", 7, &[]),
            ("nothing ", 8, &[]),
        ] {
            let expected: Vec<String> = expected.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(complete(line), (begin, expected), "{line}");
        }
        assert!(complete("").1.contains(&"exit".to_owned()));
    }
}
