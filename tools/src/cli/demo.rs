//! `vfio-dma` alone: what it is, what it found here, and a first transfer.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use vfio_dma::devices::recognise;
use vfio_dma::pci::Sysfs;

use super::output::print;
use super::{Failure, interrupted};
use crate::vm::{Device, Guest, Input, Streams, VmConfig};

/// Runs the demonstration.
///
/// # Errors
///
/// Fails when no guest can be booted; the exit status is that of the command in the guest.
pub fn run() -> Result<ExitCode, Failure> {
    print("vfio-dma: userspace drivers for PCI DMA devices, over Linux VFIO\n\n")?;
    print(&found())?;
    let device = VmConfig::address(0);
    let command = ["vfio-dma", "run", "--bind", device.as_str()];
    print(&format!(
        "Booting a guest with QEMU's edu device at {device} behind an emulated IOMMU, to run there:\n  \
         {}\n\n",
        command.join(" ")
    ))?;
    let cancel = interrupted()?;
    let guest =
        Guest::prepare(VmConfig { devices: vec![Device::from("edu")], ..VmConfig::default() })?;
    let finished = guest.run_streaming(
        &command,
        &mut Streams {
            stdout: &mut io::stdout(),
            stderr: &mut io::stderr(),
            input: Input::None,
            cancel: Some(&cancel),
        },
    )?;
    print(&format!(
        "\nThe guest booted in {:.1} s. To go on:\n  \
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
