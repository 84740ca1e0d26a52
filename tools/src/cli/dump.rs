//! `vfio-dma dump`: a BAR as numbers, or by the names of a register file.

mod part;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vfio_dma::mmio::Bar;
use vfio_dma::registers::{AccessMode, Register};

use super::card::shown::{self, Shown};
use super::card::{Card, CardArg};
use super::peek::{Report, check_ones};
use super::{Failure, interrupted, output, usage};
use part::Part;

/// Bytes that are shown of a BAR where no range is given.
const DEFAULT_LEN: u64 = 4096;
/// Bytes in a line.
const LINE: u64 = 16;

/// Show a part of a BAR in hexadecimal, or its registers by name
///
/// How the BAR is reached is as with `peek`. With --registers: the registers that have a name,
/// but for those that only are written, or whose reads have side effects: these are read when they
/// are named. Without it, every word is read.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    card: CardArg,
    /// The BAR, 0 to 5
    #[arg(value_name = "BAR", value_parser = clap::value_parser!(u8).range(0..=5))]
    bar: u8,
    /// START..END (END is not shown), START+LENGTH, OFFSET:WIDTH or NAME
    /// [default: the first 4 KiB, or the registers with names]
    #[arg(value_name = "RANGE")]
    parts: Vec<Part>,
    /// Bytes of a word: 1, 2, 4 or 8
    #[arg(long, value_name = "BYTES", default_value_t = 4, value_parser = width)]
    width: u8,
    /// Read again and again, and show what changes, until Ctrl-C
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    /// With --watch: milliseconds between two reads
    #[arg(long, value_name = "MS", default_value_t = 500, requires = "watch",
          value_parser = clap::value_parser!(u64).range(1..=3_600_000))]
    interval: u64,
    /// With --watch: end after so many seconds
    #[arg(long = "for", value_name = "SECONDS", requires = "watch",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    limit: Option<u64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn width(text: &str) -> Result<u8, String> {
    match text.parse() {
        Ok(width @ (1 | 2 | 4 | 8)) => Ok(width),
        _ => Err("a word has 1, 2, 4 or 8 bytes".into()),
    }
}

/// What is read: a register with a name, or the words of a range.
#[derive(Debug, PartialEq)]
enum Piece {
    Register(Register),
    Words {
        start: u64,
        end: u64,
        width: u8,
        /// Registers in it that are not read.
        skipped: Vec<Register>,
    },
}

impl Piece {
    /// Each word or register; none for a word that is not read.
    fn each(
        &self,
        mut f: impl FnMut(&Register, bool) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        match self {
            Piece::Register(register) => f(register, true),
            Piece::Words { start, end, width, skipped } => {
                let mut word = Register::new("", *start, *width, AccessMode::ReadWrite);
                while word.offset < *end {
                    let until = word.offset + u64::from(*width);
                    let is_skipped = skipped.iter().any(|register| {
                        register.offset < until
                            && word.offset < register.offset + u64::from(register.width)
                    });
                    f(&word, !is_skipped)?;
                    word.offset = until;
                }
                Ok(())
            }
        }
    }
}

/// Reads and prints, and watches if asked to.
///
/// # Errors
///
/// Fails when the card or the BAR cannot be had, or does not answer.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut card = args.card.open(None)?;
    // Names are looked up before the card is touched.
    for part in &args.parts {
        if let Part::Place(target) = part {
            card.register(args.bar, target)?;
        }
    }
    let stop = if args.watch { Some(interrupted()?) } else { None };
    let bar = card.bar(args.bar, false)?;
    let (pieces, skipped) = plan(args, &card, bar.size())?;
    let mut values = read(&pieces, &bar, &card, args.bar)?;
    if args.json {
        let report = report(args, &card, &pieces, &values, skipped);
        output::print(&(serde_json::to_string_pretty(&report?)? + "\n"))?;
    } else {
        output::print(&text(&pieces, &values)?)?;
        for skipped in &skipped {
            output::complain(&format!("note: not read: {skipped}"));
        }
        for part in Card::unmapped(&bar) {
            let of = part.start..part.end;
            output::complain(&format!(
                "note: {:#x}..{:#x} is not mapped: each access to it goes through the kernel",
                of.start, of.end
            ));
        }
    }
    check(&card, args.bar, &pieces, &values)?;
    let Some(stop) = stop else { return Ok(ExitCode::SUCCESS) };
    let begin = Instant::now();
    while !stop.load(Ordering::SeqCst)
        && args.limit.is_none_or(|limit| begin.elapsed() < Duration::from_secs(limit))
    {
        std::thread::sleep(Duration::from_millis(args.interval));
        card.check_there()?;
        let now = read(&pieces, &bar, &card, args.bar)?;
        output::print(&changes(&pieces, &values, &now, begin.elapsed())?)?;
        values = now;
    }
    Ok(ExitCode::SUCCESS)
}

/// What to read, and the registers that are left out.
fn plan(args: &Args, card: &Card, size: u64) -> Result<(Vec<Piece>, Vec<String>), Failure> {
    let named: Vec<&Register> = card.registers.of_bar(args.bar).collect();
    let marked = || named.iter().copied().filter(|register| shown::mark(register).is_some());
    let mut skipped = Vec::new();
    let mut pieces = Vec::new();
    let mut note = |register: &Register| {
        let reason = shown::mark(register).unwrap_or_default();
        skipped.push(format!("{}: {reason}; it is read when it is named", shown::place(register)));
    };
    if args.parts.is_empty() && !named.is_empty() {
        for register in &named {
            match shown::mark(register) {
                Some(_) => note(register),
                None => pieces.push(Piece::Register((*register).clone())),
            }
        }
        return Ok((pieces, skipped));
    }
    let width = u64::from(args.width);
    if args.parts.is_empty() {
        let end = size.min(DEFAULT_LEN) / width * width;
        if end < size {
            output::complain(&format!(
                "note: the first {end:#x} of {size:#x} bytes; 0..{size:#x} shows all"
            ));
        }
        pieces.push(Piece::Words { start: 0, end, width: args.width, skipped: Vec::new() });
    }
    for part in &args.parts {
        match part {
            Part::Place(target) => pieces.push(Piece::Register(card.register(args.bar, target)?.0)),
            Part::Range { start, end } => {
                if *end > size {
                    return Err(usage(format!(
                        "{start:#x}..{end:#x} is not in BAR{}, which has {size:#x} bytes",
                        args.bar
                    )));
                }
                if start % width != 0 || end % width != 0 {
                    return Err(usage(format!(
                        "{start:#x}..{end:#x} is not made of words of {width} bytes; --width has \
                         others"
                    )));
                }
                let inside = |register: &&Register| {
                    register.offset < *end && *start < register.offset + u64::from(register.width)
                };
                let skipped: Vec<Register> = marked().filter(inside).cloned().collect();
                skipped.iter().for_each(&mut note);
                pieces.push(Piece::Words { start: *start, end: *end, width: args.width, skipped });
            }
        }
    }
    Ok((pieces, skipped))
}

/// What the pieces hold, in their order; none for a word that is not read.
fn read(pieces: &[Piece], bar: &Bar, card: &Card, index: u8) -> Result<Vec<Option<u64>>, Failure> {
    let mut values = Vec::new();
    for piece in pieces {
        piece.each(|register, is_read| {
            let value = match is_read {
                true => Some(bar.read_register(register).map_err(|e| card.explain(index, e))?),
                false => None,
            };
            values.push(value);
            Ok(())
        })?;
    }
    Ok(values)
}

fn text(pieces: &[Piece], values: &[Option<u64>]) -> Result<String, Failure> {
    let mut text = String::new();
    let mut values = values.iter();
    for piece in pieces {
        let mut words = Vec::new();
        piece.each(|register, _| {
            let value = values.next().copied().flatten();
            match piece {
                Piece::Register(_) => {
                    text += &value.map_or_else(String::new, |v| shown::line(register, v));
                }
                Piece::Words { .. } => words.push(value),
            }
            Ok(())
        })?;
        if let Piece::Words { start, width, .. } = piece {
            text += &hex(*start, *width, &words);
        }
    }
    Ok(text)
}

/// Lines of 16 bytes; `*` stands for lines that are as the one before.
fn hex(start: u64, width: u8, words: &[Option<u64>]) -> String {
    let (digits, per_line) = (usize::from(width) * 2, (LINE / u64::from(width)) as usize);
    let mut text = String::new();
    let mut before = None;
    let mut is_squeezed = false;
    let count = words.len().div_ceil(per_line);
    for (n, line) in words.chunks(per_line).enumerate() {
        if before == Some(line) && n + 1 < count {
            text += if is_squeezed { "" } else { "*\n" };
            is_squeezed = true;
            continue;
        }
        is_squeezed = false;
        // Writing to a string does not fail.
        let _ = write!(text, "{:#010x}:", start + n as u64 * LINE);
        for word in line {
            match word {
                Some(word) => write!(text, " {word:0digits$x}"),
                None => write!(text, " {}", ".".repeat(digits)),
            }
            .unwrap_or_default();
        }
        text.push('\n');
        before = Some(line);
    }
    text
}

fn changes(
    pieces: &[Piece],
    before: &[Option<u64>],
    now: &[Option<u64>],
    elapsed: Duration,
) -> Result<String, Failure> {
    let mut text = String::new();
    let mut pairs = before.iter().zip(now);
    for piece in pieces {
        piece.each(|register, _| {
            if let Some((Some(before), Some(now))) = pairs.next()
                && before != now
            {
                let line = format!(
                    "{:9.3} s  {:#06x}  {:20} {} -> {}  {}",
                    elapsed.as_secs_f64(),
                    register.offset,
                    register.name,
                    shown::hex(register, *before),
                    shown::hex(register, *now),
                    output::fields(register, *now)
                );
                text += line.trim_end();
                text.push('\n');
            }
            Ok(())
        })?;
    }
    Ok(text)
}

fn report<'a>(
    args: &Args,
    card: &'a Card,
    pieces: &[Piece],
    values: &[Option<u64>],
    skipped: Vec<String>,
) -> Result<Report<'a>, Failure> {
    let mut registers = Vec::new();
    let mut values = values.iter();
    for piece in pieces {
        piece.each(|register, _| {
            let value = values.next().copied().flatten();
            registers.extend(value.map(|value| Shown::new(register, value)));
            Ok(())
        })?;
    }
    let (device, reached) = (card.location(), card.reached());
    Ok(Report { device, bar: args.bar, reached, registers, skipped })
}

/// Where everything reads all ones, says why. One word of many may well hold them.
fn check(card: &Card, bar: u8, pieces: &[Piece], values: &[Option<u64>]) -> Result<(), Failure> {
    let mut all = Vec::new();
    let mut values = values.iter();
    for piece in pieces {
        piece.each(|register, _| {
            all.extend(values.next().copied().flatten().map(|value| (register.clone(), value)));
            Ok(())
        })?;
        // One word that is something else is enough.
        if all.iter().any(|(register, value)| *value != register.all_ones()) {
            return Ok(());
        }
    }
    check_ones(card, bar, all.iter().map(|(register, value)| (register, *value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_16_bytes_and_equal_ones_are_left_out() {
        let mut words: Vec<Option<u64>> = vec![Some(0); 16];
        words[0] = Some(0x0100_00ed);
        words[2] = None;
        assert_eq!(
            hex(0x10, 4, &words),
            "0x00000010: 010000ed 00000000 ........ 00000000\n\
             0x00000020: 00000000 00000000 00000000 00000000\n*\n\
             0x00000040: 00000000 00000000 00000000 00000000\n"
        );
        assert_eq!(hex(0, 8, &[Some(u64::MAX)]), "0x00000000: ffffffffffffffff\n");
        assert_eq!(hex(0, 1, &[Some(7)]), "0x00000000: 07\n");
    }

    #[test]
    fn a_word_over_a_register_with_side_effects_is_not_read() {
        let mut fifo = Register::new("FIFO", 6, 2, AccessMode::ReadOnly);
        fifo.read_has_side_effects = true;
        let piece = Piece::Words { start: 0, end: 12, width: 4, skipped: vec![fifo] };
        let mut seen = Vec::new();
        piece
            .each(|word, is_read| {
                seen.push((word.offset, is_read));
                Ok(())
            })
            .unwrap();
        assert_eq!(seen, [(0, true), (4, false), (8, true)]);
    }

    #[test]
    fn what_changed_is_told_with_its_name() {
        let status = Piece::Register(Register::new("STATUS", 0x20, 4, AccessMode::ReadOnly));
        let words = Piece::Words { start: 0, end: 8, width: 4, skipped: Vec::new() };
        let pieces = [status, words];
        let (before, now) = ([Some(1), Some(2), None], [Some(0), Some(2), None]);
        let text = changes(&pieces, &before, &now, Duration::from_millis(1500)).unwrap();
        assert_eq!(text, "    1.500 s  0x0020  STATUS               0x00000001 -> 0x00000000\n");
    }
}
