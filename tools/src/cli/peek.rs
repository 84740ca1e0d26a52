//! `vfio-dma peek`: registers of a BAR.

use std::process::ExitCode;

use serde::Serialize;
use vfio_dma::registers::{Register, Target};

use super::card::shown::{self, Shown};
use super::card::{Card, CardArg};
use super::{Failure, output};

/// Read registers of a BAR
///
/// Through the BAR's file in sysfs: the function keeps its driver and is not reset. I/O ports are
/// read through the kernel. One that is bound to vfio-pci, and whose BAR sysfs does not give, is
/// opened through VFIO, which resets it; that is said then.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    card: CardArg,
    /// The BAR, 0 to 5
    #[arg(value_name = "BAR", value_parser = clap::value_parser!(u8).range(0..=5))]
    bar: u8,
    /// OFFSET, OFFSET:WIDTH (in bytes: 1, 2, 4, 8; 4 if left out), or by --registers NAME or
    /// NAME.FIELD
    #[arg(value_name = "REGISTER", required = true)]
    targets: Vec<Target>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `peek --json` and `dump --json` print. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    pub(super) device: &'a str,
    pub(super) bar: u8,
    /// `sysfs`, `vfio`, `vfio-user` or `model`.
    pub(super) reached: &'a str,
    pub(super) registers: Vec<Shown>,
    /// Registers that were not read, because that has side effects or means nothing.
    pub(super) skipped: Vec<String>,
}

/// Reads and prints.
///
/// # Errors
///
/// Fails when the card or the BAR cannot be had, or does not answer.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut card = args.card.open(None)?;
    let targets: Vec<(Register, Option<String>)> =
        args.targets.iter().map(|t| card.register(args.bar, t)).collect::<Result<_, _>>()?;
    let bar = card.bar(args.bar, false)?;
    let mut values = Vec::new();
    for (register, _) in &targets {
        values.push(bar.read_register(register).map_err(|error| card.explain(args.bar, error))?);
    }
    let read = || targets.iter().zip(&values);
    let text = if args.json {
        let report = Report {
            device: card.location(),
            bar: args.bar,
            reached: card.reached(),
            registers: read().map(|((register, _), value)| Shown::new(register, *value)).collect(),
            skipped: Vec::new(),
        };
        serde_json::to_string_pretty(&report)? + "\n"
    } else {
        read().map(|((register, field), value)| line(register, field.as_deref(), *value)).collect()
    };
    output::print(&text)?;
    let registers = read().map(|((register, _), value)| (register, *value));
    check_ones(&card, args.bar, registers)?;
    Ok(ExitCode::SUCCESS)
}

fn line(register: &Register, field: Option<&str>, value: u64) -> String {
    match field {
        None => shown::line(register, value),
        Some(name) => format!(
            "{:#06x}  {}.{name} {}\n",
            register.offset,
            register.name,
            shown::field(register, name, value)
        ),
    }
}

/// Says what it means when a register reads all ones; fails where the function does not answer.
pub(super) fn check_ones<'a>(
    card: &Card,
    bar: u8,
    read: impl Iterator<Item = (&'a Register, u64)>,
) -> Result<(), Failure> {
    let ones: Vec<String> = read
        .filter(|(register, value)| *value == register.all_ones())
        .map(|(register, _)| shown::place(register))
        .collect();
    let Some(first) = ones.first() else { return Ok(()) };
    let note = card.explain_ones(bar)?;
    let more = if ones.len() > 1 { format!(" and {} more", ones.len() - 1) } else { String::new() };
    output::complain(&format!("note: {first}{more}: {note}"));
    Ok(())
}
