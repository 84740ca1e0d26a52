//! What `vfio-dma show` prints for people.

use std::fmt::Write as _;

use vfio_dma::host::{Bar, BarKind, Hop, Inspection, Link, LinkRate, PciIds};
use vfio_dma::pci::{Structure, StructureKind, layout};

use super::Failure;
use crate::cli::output::fields;

/// Labels of the first column, and its width.
const LABEL: usize = 15;

pub(super) fn compose(
    found: &Inspection,
    names: Option<&PciIds>,
    missing: &[String],
) -> Result<String, Failure> {
    let mut text = format!("{}  {}\n", found.info.address, identity(found, names));
    let mut line = |label: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {label:LABEL$}{value}");
    };
    let info = &found.info;
    line("driver", info.driver.as_deref().unwrap_or("none"));
    line("IOMMU group", &group(found));
    line("NUMA node", &info.numa_node.map_or_else(|| "none".into(), |node| node.to_string()));
    for bar in &info.bars {
        line(&format!("BAR {}", bar.index), &bar_text(bar));
    }
    if let Some(link) = &found.link {
        line("link", &link_text(link));
    }
    for (label, value) in payload(&found.path) {
        line(label, &value);
    }
    if let Some(errors) = &found.errors {
        let kinds = [
            ("correctable", &errors.correctable),
            ("non-fatal", &errors.non_fatal),
            ("fatal", &errors.fatal),
        ];
        let counted = kinds.iter().flat_map(|(kind, counts)| {
            counts.iter().map(move |(name, count)| format!("{kind} {name} {count}"))
        });
        line("errors counted", &or_none(&counted.collect::<Vec<_>>().join(", ")));
    }
    line("power", &power(found));
    let methods = found.reset_methods.as_deref().unwrap_or_default();
    line("reset methods", &or_none(&methods.join(", ")));
    if let Some(virtuals) = &found.virtual_functions {
        let listed: Vec<_> = virtuals.functions.iter().map(ToString::to_string).collect();
        let value = format!("{} of {} VFs enabled", virtuals.enabled, virtuals.total);
        let separator = if listed.is_empty() { "" } else { ": " };
        line("SR-IOV", &format!("{value}{separator}{}", listed.join(" ")));
    }
    if let Some(physical) = found.physical_function {
        line("SR-IOV", &format!("a virtual function of {physical}"));
    }
    for structure in &found.layout.structures {
        text.push_str(&structure_text(found, structure)?);
    }
    for defect in &found.layout.defects {
        let _ = writeln!(text, "  malformed: {defect}");
    }
    for missing in missing {
        let _ = writeln!(text, "  not shown: {missing}");
    }
    Ok(text)
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "none".into() } else { text.into() }
}

fn identity(found: &Inspection, names: Option<&PciIds>) -> String {
    let info = &found.info;
    let class = names.and_then(|names| names.class(info.class)).unwrap_or(info.class.name());
    let vendor = names.and_then(|names| names.vendor(info.vendor));
    let device = names.and_then(|names| names.device(info.vendor, info.device));
    let mut text = class.to_owned();
    for name in [vendor, device].into_iter().flatten() {
        text.push_str(", ");
        text.push_str(name);
    }
    let _ = write!(text, ", {:04x}:{:04x}", info.vendor, info.device);
    if info.subsystem_vendor != 0 {
        let id = (info.subsystem_vendor, info.subsystem_device);
        let _ = write!(text, ", subsystem {:04x}:{:04x}", id.0, id.1);
        if let Some(name) = names.and_then(|n| n.subsystem((info.vendor, info.device), id)) {
            let _ = write!(text, " ({name})");
        }
    }
    let _ = write!(text, ", revision {:02x}", info.revision);
    text
}

fn group(found: &Inspection) -> String {
    let Some(group) = &found.info.group else { return "none: no IOMMU translates its DMA".into() };
    let own = found.info.address.to_string();
    let others: Vec<&str> =
        group.members.iter().map(String::as_str).filter(|member| *member != own).collect();
    let mode = if group.noiommu { " (no IOMMU)" } else { "" };
    if others.is_empty() {
        format!("{}{mode}, alone", group.number)
    } else {
        format!("{}{mode}, with {}", group.number, others.join(" "))
    }
}

fn bar_text(bar: &Bar) -> String {
    let kind = match bar.kind {
        BarKind::Io => {
            return format!("I/O ports {:#x}, {} bytes, not mappable", bar.start, bar.size);
        }
        BarKind::Memory32 => "memory32",
        BarKind::Memory64 => "memory64",
    };
    let prefetchable = if bar.prefetchable { "prefetchable" } else { "not prefetchable" };
    let mappable = match bar.mappable() {
        Some(_) => "mappable",
        None => "less than a page: not mappable if it shares the page",
    };
    format!("{kind} {:#x}, {} bytes, {prefetchable}, {mappable}", bar.start, bar.size)
}

fn rate(rate: Option<LinkRate>) -> String {
    rate.map_or_else(|| "unknown".into(), |r| format!("{} GT/s x{}", r.gigatransfers, r.lanes))
}

fn link_text(link: &Link) -> String {
    let current = link.current.map_or_else(|| "down".to_owned(), |is| rate(Some(is)));
    let mut text = format!("{current}; the card can {}", rate(link.card));
    if let Some(slot) = link.slot {
        let _ = write!(text, ", the slot ({slot}) {}", rate(link.slot_rate));
    }
    if link.is_degraded() {
        let _ = write!(text, "; BELOW what both can, {}", rate(link.possible()));
    }
    text
}

/// The sizes of the function, and which bridge of its path allows the least.
fn payload(path: &[Hop]) -> Vec<(&'static str, String)> {
    let Some((own, bridges)) = path.split_first() else { return Vec::new() };
    let (Some(supported), Some(set)) = (own.max_payload_supported, own.max_payload) else {
        return Vec::new();
    };
    let request = own.max_read_request.map_or_else(|| "?".into(), |size| size.to_string());
    let mut lines =
        vec![("payload", format!("{set} bytes, can {supported}; read requests {request} bytes"))];
    for bridge in bridges {
        let (Some(supported), Some(set)) = (bridge.max_payload_supported, bridge.max_payload)
        else {
            continue;
        };
        lines.push(("  above it", format!("{} {set} bytes, can {supported}", bridge.address)));
    }
    let least = bridges.iter().filter(|bridge| bridge.max_payload_supported.is_some());
    if let Some(least) = least.min_by_key(|bridge| bridge.max_payload_supported)
        && let Some(can) = least.max_payload_supported
        && can < supported
    {
        lines.push(("  limited by", format!("{}, which can {can} bytes", least.address)));
    }
    lines
}

fn power(found: &Inspection) -> String {
    let power = &found.power;
    let mut parts: Vec<String> = power.state.iter().cloned().collect();
    parts.extend(power.runtime.iter().map(|state| format!("runtime {state}")));
    parts.extend(power.control.iter().map(|control| format!("control {control}")));
    match power.d3cold_allowed {
        Some(true) => parts.push("D3cold allowed".into()),
        Some(false) => parts.push("D3cold not allowed".into()),
        None => {}
    }
    if parts.is_empty() { "unknown".into() } else { parts.join(", ") }
}

fn structure_text(found: &Inspection, structure: &Structure) -> Result<String, Failure> {
    let at = structure.offset;
    let mut text = match structure.kind {
        StructureKind::Standard { id } => {
            format!("  capability {at:#04x}: {} (id {id:#04x})\n", structure.name)
        }
        StructureKind::Extended { id, version } => format!(
            "  extended capability {at:#05x}: {} (id {id:#06x}, version {version})\n",
            structure.name
        ),
        _ => format!("  {}\n", structure.name),
    };
    for register in &structure.registers {
        let value = layout::read(&found.config, register)?;
        let width = usize::from(register.width) * 2 + 2;
        let line =
            format!("    {:24} {value:#0width$x}  {}", register.name, fields(register, value));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    Ok(text)
}
