//! `vfio-dma config`: configuration space by name.

use std::process::ExitCode;

use serde::Serialize;
use vfio_dma::pci::{ConfigSpace, ConfigWrite, Layout, layout};
use vfio_dma::registers::{AccessMode, Register, Target};

use super::card::shown::{self, Shown};
use super::card::{CardArg, ForceArg};
use super::poke::{assignments, value};
use super::{Failure, output, usage};

/// Read and write configuration space by name
///
/// Names are those that `show` prints. Without any: all registers. A write of a field leaves the
/// others as they are, and clears no status by the way; it is refused while the host uses the
/// function. Configuration space is reached through sysfs; the function keeps its driver and is
/// not reset.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    card: CardArg,
    /// REGISTER, REGISTER.FIELD or OFFSET:WIDTH, to read; with =VALUE, to write
    #[arg(value_name = "NAME[=VALUE]")]
    names: Vec<String>,
    #[command(flatten)]
    force: ForceArg,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `config --json` prints. Fields are added, never renamed or removed.
#[derive(Debug, Serialize)]
struct Report<'a> {
    device: &'a str,
    registers: Vec<Shown>,
}

/// What is to be done with one register.
struct Step<'a> {
    register: Register,
    field: Option<String>,
    write: Option<&'a str>,
}

/// Reads, writes, and prints.
///
/// # Errors
///
/// Fails for a name that the function does not have, when the host uses a function that is to be
/// written to, and when configuration space cannot be read or written.
pub fn run(args: &Args) -> Result<ExitCode, Failure> {
    let writes = args.names.iter().any(|name| name.contains('='));
    let mut card = args.card.open(writes.then_some(&args.force))?;
    let location = card.location().to_owned();
    let address = card.in_sysfs();
    if let Some(address) = address {
        let config = match writes {
            true => card.sysfs().config_mut(address)?,
            false => card.sysfs().config(address)?,
        };
        return work(args, &location, &config);
    }
    let device = card.opened().ok_or("the device is not open")?;
    work(args, &location, &device.config_mut())
}

fn work<A: ConfigWrite>(
    args: &Args,
    location: &str,
    config: &ConfigSpace<A>,
) -> Result<ExitCode, Failure> {
    let layout = Layout::read(config)?;
    let steps = match &args.names[..] {
        [] => all(&layout),
        names => names.iter().map(|name| step(&layout, name)).collect::<Result<_, _>>()?,
    };
    // What makes no sense is refused before anything is written.
    for Step { register, field, write } in &steps {
        if let Some(text) = write {
            let fields = assignments(register, field.as_deref(), text)?;
            let _ = value(register, &fields, 0, text)?;
        }
    }
    let mut text = String::new();
    let mut registers = Vec::new();
    for Step { register, field, write } in &steps {
        let before = layout::read(config, register)?;
        if let Some(wanted) = write {
            let fields = assignments(register, field.as_deref(), wanted)?;
            let wanted = value(register, &fields, before, wanted)?;
            layout::write(config, register, wanted)?;
            let after = layout::read(config, register)?;
            text += &written(register, before, wanted, after);
            registers.push(Shown::new(register, after));
            continue;
        }
        text += &match field {
            None => shown::line(register, before),
            Some(name) => {
                let of = shown::field(register, name, before);
                format!("{:#06x}  {}.{name} {of}\n", register.offset, register.name)
            }
        };
        registers.push(Shown::new(register, before));
    }
    if args.json {
        text = serde_json::to_string_pretty(&Report { device: location, registers })? + "\n";
    }
    output::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn written(register: &Register, before: u64, wanted: u64, after: u64) -> String {
    let hex = |value| shown::hex(register, value);
    let mut text =
        format!("{:#06x}  {:20} {} -> {}", register.offset, register.name, hex(before), hex(after));
    let fields = output::fields(register, after);
    if !fields.is_empty() {
        text += &format!("  {fields}");
    }
    let keeps = register.access == AccessMode::ReadWrite
        && !register.fields.iter().any(|field| field.write_one_to_clear);
    if keeps && after != wanted {
        text += &format!("\n        {} was written and is not kept whole", hex(wanted));
    }
    text + "\n"
}

fn all(layout: &Layout) -> Vec<Step<'static>> {
    let registers = layout.structures.iter().flat_map(|structure| &structure.registers);
    registers
        .map(|register| Step { register: register.clone(), field: None, write: None })
        .collect()
}

fn step<'a>(layout: &Layout, text: &'a str) -> Result<Step<'a>, Failure> {
    let (name, write) = match text.split_once('=') {
        None => (text, None),
        Some((name, value)) => (name, Some(value)),
    };
    match name.parse::<Target>().map_err(usage)? {
        Target::At { offset, width } => {
            let width = width.unwrap_or(4);
            if width == 8 || !offset.is_multiple_of(width.into()) {
                return Err(usage(format!(
                    "{name:?}: an access to configuration space has 1, 2 or 4 bytes, at a multiple \
                     of them"
                )));
            }
            let register = Register::new("", offset, width, AccessMode::ReadWrite);
            Ok(Step { register, field: None, write })
        }
        Target::Named { register: name, field } => {
            let register = layout.find(&name).ok_or_else(|| unknown(layout, &name))?.clone();
            if let Some(field) = &field
                && register.field(field).is_none()
            {
                let known: Vec<_> = register.fields.iter().map(|field| &*field.name).collect();
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                return Err(usage(format!("{name} has no field {field:?}; it has {known}")));
            }
            Ok(Step { register, field, write })
        }
    }
}

/// A name that is not there, with those that begin alike.
fn unknown(layout: &Layout, name: &str) -> Failure {
    let prefix = name.split('_').next().unwrap_or_default().to_ascii_uppercase();
    let names = || layout.structures.iter().flat_map(|s| &s.registers).map(|r| &*r.name);
    let mut alike: Vec<&str> = names().filter(|other| other.starts_with(&prefix)).collect();
    if alike.is_empty() {
        alike = names().collect();
    }
    usage(format!("the function has no register {name:?}; it has {}", alike.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn layout_of(bytes: &[u8]) -> Layout {
        Layout::read(&ConfigSpace::new(bytes)).unwrap()
    }

    fn space() -> Vec<u8> {
        let mut bytes = vec![0; 256];
        bytes[..8].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11, 0x03, 0x00, 0x10, 0x00]);
        bytes[0x34] = 0x40;
        // Power management with an event to be cleared.
        bytes[0x40..0x48].copy_from_slice(&[1, 0, 3, 0, 0x03, 0x80, 0, 0]);
        bytes
    }

    #[test]
    fn steps_are_understood_or_refused_with_what_there_is() {
        let layout = layout_of(&space());
        let found = step(&layout, "command.bus-master=1").unwrap();
        assert_eq!((found.register.offset, found.write), (4, Some("1")));
        assert_eq!(step(&layout, "0x10:2").unwrap().register.width, 2);
        for (text, part) in [
            ("COMMAND.colour", "it has io-space, memory-space"),
            ("PM_NONE", "it has PM_CAP, PM_CTRL"),
            ("0x11:2", "at a multiple"),
            ("0x10:8", "1, 2 or 4"),
            ("=1", "names no register"),
        ] {
            let error = step(&layout, text).err().unwrap().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_field_is_written_and_no_event_is_cleared() {
        let mut bytes = space();
        let cells = Cell::from_mut(&mut bytes[..]).as_slice_of_cells();
        let config = ConfigSpace::new(cells);
        let args = |names: &[&str]| Args {
            card: CardArg::of("0000:00:05.0"),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            force: ForceArg { force: false },
            json: false,
        };
        work(&args(&["COMMAND.bus-master=1", "PM_CTRL.state=D0"]), "x", &config).unwrap();
        assert_eq!(config.read_u16(4).unwrap(), 7);
        assert_eq!(config.read_u16(0x44).unwrap(), 0, "the event is not written as one");
        // Nothing is written when one of several makes no sense.
        let error = work(&args(&["COMMAND=0", "COMMAND.bus-master=2"]), "x", &config).unwrap_err();
        assert!(error.to_string().contains("1 bits"), "{error}");
        assert_eq!(config.read_u16(4).unwrap(), 7);
    }
}
