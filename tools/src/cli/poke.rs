//! `vfio-dma poke`: writes a register of a BAR.

use std::process::ExitCode;

use vfio_dma::mmio::Bar;
use vfio_dma::registers::{AccessMode, Register, Target};

use super::card::shown;
use super::card::{Card, CardArg, ForceArg};
use super::{Failure, output, usage};

/// Write a register of a BAR
///
/// Refused while the host uses the function, or a process has it open through VFIO. How the BAR
/// is reached is as with `peek`. A register with a name is read before and after; one without is
/// only written.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    card: CardArg,
    /// The BAR, 0 to 5
    #[arg(value_name = "BAR", value_parser = clap::value_parser!(u8).range(0..=5))]
    bar: u8,
    /// OFFSET, OFFSET:WIDTH (in bytes: 1, 2, 4, 8; 4 if left out), or by --registers NAME or
    /// NAME.FIELD
    #[arg(value_name = "REGISTER")]
    target: Target,
    /// A number, or for a register with a name FIELD=VALUE, several with commas between them
    #[arg(value_name = "VALUE")]
    value: String,
    #[command(flatten)]
    force: ForceArg,
}

/// Writes, and prints what became of it.
///
/// # Errors
///
/// Fails when the host uses the function, when the BAR cannot be had, and when the value does not
/// fit.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let mut card = args.card.open(Some(&args.force))?;
    let (register, field) = card.register(args.bar, &args.target)?;
    let fields = assignments(&register, field.as_deref(), &args.value)?;
    // What makes no sense is refused before the card is touched.
    let _ = value(&register, &fields, 0, &args.value)?;
    let bar = card.bar(args.bar, true)?;
    let before = read(&card, args.bar, &bar, &register)?;
    let wanted = value(&register, &fields, before.unwrap_or(0), &args.value)?;
    bar.write_register(&register, wanted).map_err(|error| card.explain(args.bar, error))?;
    let mut text = format!("{} wrote {}", shown::place(&register), shown::hex(&register, wanted));
    if let (Some(before), Some(after)) = (before, read(&card, args.bar, &bar, &register)?) {
        text += &format!(
            ", was {}, reads {}",
            shown::hex(&register, before),
            shown::hex(&register, after)
        );
        if !register.fields.is_empty() {
            text += &format!(": {}", output::fields(&register, after));
        }
    }
    output::print(&format!("{}\n", text.trim_end().trim_end_matches(':')))?;
    Ok(ExitCode::SUCCESS)
}

/// The fields that are to be set; none for a whole register.
pub(super) fn assignments<'a>(
    register: &Register,
    field: Option<&'a str>,
    text: &'a str,
) -> Result<Vec<(&'a str, &'a str)>, Failure> {
    let fields: Vec<(&str, &str)> = match field {
        Some(field) => vec![(field, text)],
        None if !text.contains('=') => return Ok(Vec::new()),
        None => {
            let pair = |part: &'a str| {
                part.split_once('=')
                    .ok_or_else(|| usage(format!("{part:?} in {text:?} is not FIELD=VALUE")))
            };
            text.split(',').map(pair).collect::<Result<_, _>>()?
        }
    };
    let keeps =
        register.access != AccessMode::WriteOnly && register.access != AccessMode::WriteOneToClear;
    if keeps && register.read_has_side_effects {
        return Err(usage(format!(
            "{}: setting a field takes a read, which has side effects: give the whole value",
            register.name
        )));
    }
    Ok(fields)
}

/// What to write.
pub(super) fn value(
    register: &Register,
    fields: &[(&str, &str)],
    current: u64,
    text: &str,
) -> Result<u64, Failure> {
    let value = if fields.is_empty() {
        register.whole(text)
    } else {
        register.assign(current, fields.iter().copied())
    };
    value.map_err(|error| {
        let text = error.to_string();
        // A register without a name has no fields.
        usage(if register.name.is_empty() {
            format!("{:#x}{text}; fields take --registers", register.offset)
        } else {
            text
        })
    })
}

/// What a register holds that has a name and may be read.
fn read(card: &Card, index: u8, bar: &Bar, register: &Register) -> Result<Option<u64>, Failure> {
    if register.name.is_empty() || shown::mark(register).is_some() {
        return Ok(None);
    }
    Ok(Some(bar.read_register(register).map_err(|error| card.explain(index, error))?))
}
