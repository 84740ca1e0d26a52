//! What subcommands print, and how.

use std::io::{self, Write as _};
use std::sync::OnceLock;

use vfio_dma::registers::Register;

use super::Failure;

/// This program as it was called; the name alone until it is known.
static PROGRAM: OnceLock<String> = OnceLock::new();

/// Learns how this program was called, so that commands in hints work as they are printed.
pub(super) fn learn_program() {
    let called = std::env::args().next().filter(|called| called.contains('/'));
    let called = called.and_then(|called| Some(shlex::try_quote(&called).ok()?.into_owned()));
    // It is learnt once.
    let _ = PROGRAM.set(called.unwrap_or_else(|| NAME.into()));
}

const NAME: &str = "vfio-dma";

/// Command lines of this program, each `vfio-dma` and its arguments, with the program as it was
/// called: one that is not in PATH is named by its path.
pub(super) fn as_typed(commands: &str) -> String {
    typed_as(commands, PROGRAM.get().map_or(NAME, String::as_str))
}

fn typed_as(commands: &str, program: &str) -> String {
    let mut text = String::new();
    for (n, part) in commands.split(NAME).enumerate() {
        if n > 0 {
            // Elsewhere it is a part of a path, or for a guest, where it is in PATH.
            let begins = text.is_empty() || text.ends_with("&& ") || text.ends_with("; ");
            text += if begins && part.starts_with(' ') { program } else { NAME };
        }
        text += part;
    }
    text
}

/// Writes a result to standard output. A reader that has gone away (`| head`) has had
/// enough, which is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    print_to(&mut io::stdout().lock(), text)
}

fn print_to(out: &mut dyn io::Write, text: &str) -> Result<(), Failure> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(format!("writing to standard output: {error}").into())
        }
        _ => Ok(()),
    }
}

/// Writes a complaint to standard error, under the program's name.
pub(super) fn complain(text: &str) {
    // There is nowhere left to report to when this fails.
    let _ = writeln!(io::stderr(), "vfio-dma: {text}");
}

/// Aligns columns, with two blanks between them and none at the end of a line.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in rows {
        let line: String =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The fields of a register's value: flags that are set by name, numbers with what they mean.
pub(super) fn fields(register: &Register, value: u64) -> String {
    let shown = register.decode(value).into_iter().filter_map(|field| match field.meaning {
        Some(meaning) if meaning.contains(' ') => Some(format!("{}=\"{meaning}\"", field.name)),
        Some(meaning) => Some(format!("{}={meaning}", field.name)),
        None if field.value == 0 => None,
        None if field.bits == 1 => Some(field.name),
        None => Some(format!("{}={:#x}", field.name, field.value)),
    });
    shown.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "b"], ["long", "c"], ["é", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "a     b\nlong  c\né\n");
    }

    #[test]
    fn commands_name_the_program_as_it_was_called() {
        for (command, typed) in [
            ("vfio-dma list", "./v list"),
            ("vfio-dma unbind X && vfio-dma bind X", "./v unbind X && ./v bind X"),
            ("vfio-dma bind X; vfio-dma bind Y", "./v bind X; ./v bind Y"),
            ("vfio-dma vm -- vfio-dma list", "./v vm -- vfio-dma list"),
            ("vfio-dma model --socket /tmp/vfio-dma-1/s", "./v model --socket /tmp/vfio-dma-1/s"),
        ] {
            assert_eq!(typed_as(command, "./v"), typed);
            assert_eq!(typed_as(command, NAME), command);
        }
    }

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_device_is() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        print_to(&mut writer, "text").unwrap();
        let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = print_to(&mut full, "text").unwrap_err();
        assert!(error.to_string().contains("standard output"), "{error}");
    }
}
