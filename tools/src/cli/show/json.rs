//! What `vfio-dma show --json` prints. Fields are added, never renamed or removed.

use serde::Serialize;
use vfio_dma::host::{Errors, Hop, Inspection, Link, PciIds, Power, VirtualFunctions};
use vfio_dma::pci::{Address, StructureKind, layout};
use vfio_dma::registers::{AccessMode, FieldValue};

use super::Failure;
use crate::cli::list::Entry;

#[derive(Serialize)]
struct Report<'a> {
    /// As `vfio-dma list --json` has it.
    identity: Entry,
    names: Names<'a>,
    /// Bytes of each BAR that can be mapped: index, first byte, end.
    mappable: Vec<(u8, u64, u64)>,
    link: Option<&'a Link>,
    /// The link is slower or narrower than both ends can.
    link_degraded: bool,
    /// The function, then the bridges above it.
    path: &'a [Hop],
    errors: Option<&'a Errors>,
    power: &'a Power,
    reset_methods: Option<&'a [String]>,
    virtual_functions: Option<&'a VirtualFunctions>,
    physical_function: Option<Address>,
    /// The header and every capability.
    structures: Vec<Shown>,
    /// What is malformed in the capability lists.
    defects: Vec<String>,
    /// What is not shown, and why.
    missing: &'a [String],
}

/// Names of the system's pci.ids.
#[derive(Serialize)]
struct Names<'a> {
    vendor: Option<&'a str>,
    device: Option<&'a str>,
    subsystem: Option<&'a str>,
    class: Option<&'a str>,
}

#[derive(Serialize)]
struct Shown {
    name: &'static str,
    prefix: &'static str,
    offset: u16,
    #[serde(flatten)]
    kind: StructureKind,
    registers: Vec<ShownRegister>,
}

#[derive(Serialize)]
struct ShownRegister {
    name: String,
    offset: u64,
    width: u8,
    access: AccessMode,
    value: u64,
    fields: Vec<FieldValue>,
}

pub(super) fn compose(
    found: &Inspection,
    names: Option<&PciIds>,
    missing: &[String],
) -> Result<String, Failure> {
    let info = &found.info;
    let mut structures = Vec::new();
    for structure in &found.layout.structures {
        let mut registers = Vec::new();
        for register in &structure.registers {
            let value = layout::read(&found.config, register)?;
            registers.push(ShownRegister {
                name: register.name.clone(),
                offset: register.offset,
                width: register.width,
                access: register.access,
                value,
                fields: register.decode(value),
            });
        }
        let (name, prefix) = (structure.name, structure.prefix);
        let (offset, kind) = (structure.offset, structure.kind);
        structures.push(Shown { name, prefix, offset, kind, registers });
    }
    let subsystem = (info.subsystem_vendor, info.subsystem_device);
    let mappable = info.bars.iter().filter_map(|bar| {
        let range = bar.mappable()?;
        Some((bar.index, range.start, range.end))
    });
    let report = Report {
        identity: Entry::from(info.clone()),
        names: Names {
            vendor: names.and_then(|names| names.vendor(info.vendor)),
            device: names.and_then(|names| names.device(info.vendor, info.device)),
            subsystem: names
                .and_then(|names| names.subsystem((info.vendor, info.device), subsystem)),
            class: names.and_then(|names| names.class(info.class)),
        },
        mappable: mappable.collect(),
        link: found.link.as_ref(),
        link_degraded: found.link.as_ref().is_some_and(Link::is_degraded),
        path: &found.path,
        errors: found.errors.as_ref(),
        power: &found.power,
        reset_methods: found.reset_methods.as_deref(),
        virtual_functions: found.virtual_functions.as_ref(),
        physical_function: found.physical_function,
        structures,
        defects: found.layout.defects.iter().map(ToString::to_string).collect(),
        missing,
    };
    Ok(serde_json::to_string_pretty(&report)? + "\n")
}
