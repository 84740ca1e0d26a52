//! What subcommands print, and how.

use std::io::{self, Write as _};

use vfio_dma::registers::Register;

use super::Failure;

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
    fn a_closed_pipe_is_no_failure_and_a_full_device_is() {
        let (reader, mut writer) = io::pipe().unwrap();
        drop(reader);
        print_to(&mut writer, "text").unwrap();
        let mut full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let error = print_to(&mut full, "text").unwrap_err();
        assert!(error.to_string().contains("standard output"), "{error}");
    }
}
