//! `vfio-dma` alone: what it is, what it found here, and a first transfer.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use vfio_dma::device::Device;
use vfio_dma::devices::ioat::{Config, Ioat};
use vfio_dma::devices::recognise;
use vfio_dma::dma::Placement;
use vfio_dma::pci::Sysfs;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

use super::output::print;
use super::run::copy;
use super::{Failure, interrupted};
use crate::vm::{self, Guest, Input, Streams, VmConfig};

/// Bytes of each copy of the demonstration.
const LEN: usize = 64 << 20;

/// Runs the demonstration: the same data copied between contiguous and between scattered
/// buffers, on the I/OAT model in this process, then edu in a guest.
///
/// # Errors
///
/// Fails when a copy is wrong, or no guest can be booted; the exit status is that of the
/// command in the guest.
pub fn run() -> Result<ExitCode, Failure> {
    print("vfio-dma: userspace drivers for PCI DMA devices, over Linux VFIO\n\n")?;
    print(&found())?;
    let cancel = interrupted()?;
    copies(&cancel)?;
    guest(&cancel)
}

/// The same copy with both placements, on the embedded model.
fn copies(cancel: &AtomicBool) -> Result<(), Failure> {
    let ioat = Ioat::open(Device::open(Embedded::new(IoatConfig::default())?)?, Config::default())?;
    print(&format!(
        "Copying {LEN} bytes on the model of an Intel I/OAT engine in this process:\n  \
         {:<14} {:>15} {:>10} {:>12} {:>10} {:>9}  verified\n",
        "placement", "segments", "map calls", "descriptors", "doorbells", "GB/s"
    ))?;
    for (name, placement) in
        [("contiguous", Placement::Contiguous), ("scatter/gather", Placement::ScatterGather)]
    {
        let cost = copy(&ioat, LEN, placement, 1, Duration::from_secs(30), cancel)?.cost;
        print(&format!(
            "  {name:<14} {:>15} {:>10} {:>12} {:>10} {:>9.2}  every byte\n",
            format!("{} + {}", cost.segments[0], cost.segments[1]),
            cost.map_calls,
            cost.descriptors,
            cost.doorbells,
            cost.bytes_per_second as f64 / 1e9
        ))?;
    }
    print(
        "  (one run each, cold; vfio-dma run model --placement auto tells what was tried and why)\n\n",
    )
}

/// edu behind an emulated IOMMU, through a real kernel's VFIO.
fn guest(cancel: &AtomicBool) -> Result<ExitCode, Failure> {
    let device = VmConfig::address(0);
    let command = ["vfio-dma", "run", "--bind", device.as_str()];
    print(&format!(
        "Booting a guest with QEMU's edu device at {device} behind an emulated IOMMU, to run there:\n  \
         {}\n\n",
        command.join(" ")
    ))?;
    let guest =
        Guest::prepare(VmConfig { devices: vec![vm::Device::from("edu")], ..VmConfig::default() })?;
    let finished = guest.run_streaming(
        &command,
        &mut Streams {
            stdout: &mut io::stdout(),
            stderr: &mut io::stderr(),
            input: Input::None,
            cancel: Some(cancel),
        },
    )?;
    print(&format!(
        "\nThe guest booted in {:.1} s. To go on:\n  \
         vfio-dma run model --placement sg                   the I/OAT model, scattered\n  \
         vfio-dma vm --device edu --device pci-testdev       a shell in such a guest\n  \
         vfio-dma list                                       this machine's own PCI devices\n  \
         vfio-dma --help                                     everything else\n",
        finished.boot.as_secs_f64()
    ))?;
    Ok(ExitCode::from(finished.status))
}

/// What of this machine matters for VFIO, in a few lines.
fn found() -> String {
    let yes_no = |there: bool| if there { "yes" } else { "no" };
    let devices = Sysfs::new().enumerate().unwrap_or_default();
    let groups = devices.iter().any(|device| device.group.is_some());
    let driven: Vec<String> = devices
        .iter()
        .filter_map(|info| {
            let known = recognise(info.vendor, info.device)?;
            let (address, driver) = (info.address, known.driver);
            Some(format!("  {address} {driver}: vfio-dma run --bind {address}"))
        })
        .collect();
    let mut text = format!(
        "This machine: {} PCI devices, IOMMU groups: {}, VFIO: {}, KVM: {}\n",
        devices.len(),
        yes_no(groups),
        yes_no(Path::new("/dev/vfio/vfio").exists()),
        yes_no(Path::new("/dev/kvm").exists()),
    );
    for line in driven {
        text += &line;
        text.push('\n');
    }
    text.push('\n');
    text
}
