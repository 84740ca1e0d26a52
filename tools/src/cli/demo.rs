//! `vfio-dma` alone: what it is, what it found here, and a first transfer.

use std::cell::Cell;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::ioat::{Config, Ioat};
use vfio_dma::devices::{PciDriver, recognise};
use vfio_dma::dma::Placement;
use vfio_dma::host::Sysfs;
use vfio_dma_model::embedded::{Embedded, IommuOptions};
use vfio_dma_model::ioat::{Ioat as Model, IoatConfig};

use super::Failure;
use super::open::identity;
use super::output::{as_typed, print};
use super::run::{Copied, Cost, copy};
use crate::vm::{self, Kvm};

/// Bytes of each copy of the demonstration.
const LEN: usize = 64 << 20;
/// Bytes of the IOMMU's pages.
const PAGE: u64 = 4096;
/// Bytes, in whole pages, of the driver's ring with its completion word.
const RING: u64 = 17 * PAGE;
/// Lowest IOVA.
const BASE: u64 = 1 << 20;

/// Runs the demonstration: the same data copied by the same calls where contiguous IOVA ranges
/// can be had and where they cannot, on the I/OAT model in this process.
///
/// # Errors
///
/// Fails when a buffer cannot be placed, or a copied byte is wrong.
pub fn run() -> Result<ExitCode, Failure> {
    print("vfio-dma: userspace drivers for PCI DMA devices, over Linux VFIO\n\n")?;
    print(&found())?;
    print(&format!(
        "{} MiB copied twice with the same calls, on the model of an Intel I/OAT engine in this\n\
         process. The first IOMMU has room, the second has no two pages free side by side.\n\n  \
         {:<14} {:>13} {:>9} {:>11} {:>9} {:>8} {:>8} {:>6} {:>9}\n",
        LEN >> 20,
        "placed",
        "segments",
        "map calls",
        "descriptors",
        "doorbells",
        "place",
        "copy",
        "GB/s",
        "verified"
    ))?;
    let mut why = String::new();
    for iommu in [IommuOptions::default(), fragmented()] {
        let copied = copied(iommu)?;
        print(&row(&copied))?;
        why = copied.source.to_string();
    }
    print(&format!(
        "\nplace: to allocate and map source and target. One run each, cold; `bench model` measures.\n\
          How the second source was placed:\n\n{}\n{}",
        why.replace('\n', "\n  "),
        next()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// What to try next, and why.
const NEXT: [(&str, &str); 6] = [
    ("vfio-dma run model --placement contiguous", "one placement, and its whole report"),
    ("vfio-dma bench model --report bench.html", "contiguous against scatter/gather"),
    (
        "vfio-dma vm --device edu -- vfio-dma run --bind 0000:00:05.0",
        "a real kernel's VFIO, in a guest",
    ),
    ("vfio-dma vm --device ioat", "a shell in a guest with this engine"),
    ("vfio-dma list", "this machine's own PCI devices"),
    ("vfio-dma doctor", "what they need to be driven"),
];

/// What to try next, with commands that work as they are printed.
fn next() -> String {
    let line = |(command, why): (&str, &str)| format!("  {}\n      {why}\n", as_typed(command));
    format!("\nTo go on:\n{}", NEXT.map(line).concat())
}

/// An IOMMU of which every other page is taken by somebody else, but for a run as long as the
/// driver's own ring of descriptors.
fn fragmented() -> IommuOptions {
    let run = |first: u64, len: u64| first..=first + len - 1;
    let single = BASE + 2 * RING;
    // Twice as many as both buffers need.
    let pages = 4 * LEN as u64 / PAGE;
    let singles = (0..pages).map(|page| run(single + 2 * page * PAGE, PAGE));
    IommuOptions {
        ranges: std::iter::once(run(BASE, RING)).chain(singles).collect(),
        ..IommuOptions::default()
    }
}

/// The one program text for both.
fn copied(iommu: IommuOptions) -> Result<Copied, Failure> {
    let model = Embedded::with_function(Model::new(IoatConfig::default())?, iommu);
    let ioat = Ioat::probe(Device::open(model.attach()?)?, Config::default())?;
    // Ctrl-C ends the process, and the model with it.
    let never = AtomicBool::new(false);
    copy(&ioat, LEN, Placement::Auto, 1, Duration::from_secs(30), &never, &Cell::default())
}

fn row(copied: &Copied) -> String {
    let Cost { segments: [from, to], map_calls, descriptors, doorbells, .. } = copied.cost;
    let milliseconds = |nanoseconds: u64| format!("{:.1} ms", nanoseconds as f64 / 1e6);
    format!(
        "  {:<14} {:>13} {map_calls:>9} {descriptors:>11} {doorbells:>9} {:>8} {:>8} {:>6.2} \
         {:>9}\n",
        if (from, to) == (1, 1) { "contiguous" } else { "scatter/gather" },
        format!("{from} + {to}"),
        milliseconds(copied.cost.placement_nanoseconds),
        milliseconds(copied.cost.nanoseconds),
        copied.cost.bytes_per_second as f64 / 1e9,
        "all bytes",
    )
}

/// What of this machine matters for VFIO, in a few lines.
fn found() -> String {
    let yes_no = |there: bool| if there { "yes" } else { "no" };
    let devices = Sysfs::new().enumerate().unwrap_or_default();
    let groups = devices.iter().any(|device| device.group.is_some());
    let driven: Vec<String> = devices
        .iter()
        .filter_map(|info| {
            let known = recognise(&identity(info))?;
            let (address, driver) = (info.address, known.driver);
            Some(format!(
                "  {address} {driver}: {}",
                as_typed(&format!("vfio-dma run --bind {address}"))
            ))
        })
        .collect();
    let mut text = format!(
        "This machine: {} PCI devices, IOMMU groups: {}, VFIO: {}, KVM: {}\n",
        devices.len(),
        yes_no(groups),
        yes_no(Path::new("/dev/vfio/vfio").exists()),
        match vm::kvm() {
            Kvm::Usable => "yes",
            Kvm::Unusable => "no (it opens, but no guest boots under it)",
            Kvm::Untried => "not tried yet",
            _ => "no",
        },
    );
    for line in driven {
        text += &line;
        text.push('\n');
    }
    text.push('\n');
    text
}
