//! `vfio-dma vm`: a guest with devices to drive, and a command in it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use vfio_dma_model::ioat::IoatConfig;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

use super::output;
use super::size::parse_size;
use crate::rtl::{self, RtlConfig};
use crate::serve::{self, Served};
use crate::vm::{
    Accel, CPUS, Device, Guest, Image, Input, Iommu, Kernel, MEMORY, NvmeDrive, Streams, VmConfig,
};
use vfio_dma::dma::Pattern;

/// Variables that the command in the guest gets from this process.
const PASSED_ON: [&str; 4] = ["RUST_LOG", "RUST_BACKTRACE", "NO_COLOR", "TERM"];

/// Boot a guest with PCI devices and run a command in it
///
/// QEMU, a kernel and busybox are fetched once and kept in ~/.cache/vfio-dma; remove it to
/// fetch them anew. This program is /bin/vfio-dma in the guest. The exit status is the
/// command's.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A device: a name of QEMU's `-device` with properties, such as `edu,dma_mask=0xffffffff`;
    /// the first is 0000:00:05.0 in the guest, the second 0000:00:06.0. `ioat`, `ioat-skx` and
    /// `ioat-icx` (with `,channels=N,fault=SPEC`) are the model of the Intel I/OAT engine, served here.
    /// `nvme` (with `,image=PATH`, or `,size=64M` for a new one that is removed afterwards,
    /// `,read-only=on`, and QEMU's properties) is a drive. Hardware that is simulated from its
    /// Verilog is served here too: `litepcie`, and `rtl,top=MODULE,file=PATH`
    /// (docs/bring-your-verilog.md)
    #[arg(long = "device", value_name = "DEVICE")]
    devices: Vec<String>,
    /// The guest's kernel: `stock` (Debian's), `full` (built here once, with iommufd, no-IOMMU
    /// and dmatest), or the path of a bzImage
    #[arg(long, value_name = "stock|full|PATH", default_value = "stock")]
    kernel: Kernel,
    /// The guest's IOMMU: intel (also `intel,aw-bits=48`), amd, virtio or none
    #[arg(long, value_name = "IOMMU", default_value = "intel")]
    iommu: Iommu,
    /// The guest's memory
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_memory)]
    memory: u64,
    /// Number of the guest's processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(i64::from(*CPUS.start())..=i64::from(*CPUS.end())))]
    cpus: u32,
    /// How the guest's processor runs: auto, kvm or tcg
    #[arg(long, value_name = "auto|kvm|tcg", default_value = "auto")]
    accel: Accel,
    /// Share a directory with the guest: it is /share there, the command begins in it, and what
    /// it writes there stays. Without it all files of the guest are gone when the command ends
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,
    /// Longest time for the command, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    timeout: Option<u64>,
    /// The command and its arguments; without one, a shell
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(size) if MEMORY.contains(&size) && size.is_multiple_of(1 << 20) => Ok(size),
        Ok(_) => Err("it is a multiple of 1M, from 64M to 1024G".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs the subcommand; the exit code is that of the command in the guest.
pub fn run(args: &Args) -> Result<ExitCode, super::Failure> {
    let terminal = io::stdin().is_terminal();
    let shell = args.command.is_empty();
    if shell && !(terminal && io::stdout().is_terminal()) {
        return Err(super::usage("a shell needs a terminal; give a command after `--`"));
    }
    let env = PASSED_ON.iter().filter_map(|&name| Some((name.to_owned(), std::env::var_os(name)?)));
    // Models live until the guest has ended.
    let mut models = Vec::new();
    let mut simulations = Vec::new();
    let (mut devices, mut images, mut qemu_args) = (Vec::new(), Vec::new(), Vec::new());
    for text in &args.devices {
        if let Some((drive, image)) = drive(text)? {
            let (device, arguments) = drive.describe(&format!("drive{}", devices.len()));
            devices.push(device);
            qemu_args.extend(arguments);
            images.push(image);
            continue;
        }
        devices.push(if let Some(config) = described(text)? {
            models.push(Served::start(config)?);
            models[models.len() - 1].device()
        } else if let Some(config) = simulated(text)? {
            simulations.push(Served::of(config.start()?)?);
            simulations[simulations.len() - 1].device()
        } else {
            Device::from(text.as_str())
        });
    }
    let config = VmConfig {
        kernel: args.kernel.clone(),
        iommu: args.iommu,
        devices,
        memory: args.memory,
        cpus: args.cpus,
        share: args.share.clone(),
        env: env.collect(),
        qemu_args,
        accel: args.accel,
        timeout: args.timeout.map(Duration::from_secs),
        ..VmConfig::default()
    };
    config.check().map_err(super::usage)?;
    let guest = Guest::prepare(config)?;
    if let Some(why) = guest.without_kvm() {
        output::complain(&format!(
            "KVM cannot be used ({why}): QEMU translates the guest's code (TCG), which is many \
             times slower; --accel tcg says that this is meant"
        ));
    }

    let cancel = super::interrupted()?;

    let stdin = || io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let (command, input) = if shell {
        let (rows, columns) = console_size();
        let login = vec![OsString::from("sh"), OsString::from("-l")];
        (login, Input::Shell { terminal: stdin()?, rows, columns })
    } else if terminal {
        (args.command.clone(), Input::Lines(stdin()?))
    } else {
        (args.command.clone(), Input::None)
    };
    let _raw = if shell { Some(RawTerminal::enter()?) } else { None };
    let finished = guest.run_streaming(
        &command,
        &mut Streams {
            stdout: &mut io::stdout(),
            stderr: &mut io::stderr(),
            input,
            cancel: Some(&cancel),
        },
    )?;
    log::info!("the guest booted in {:.1} s", finished.boot.as_secs_f32());
    Ok(ExitCode::from(finished.status))
}

/// The drive that a description means, and its image when it is a new one; `None` for another
/// device, and for a controller whose drive the description names itself.
fn drive(text: &str) -> Result<Option<(NvmeDrive, Option<Image>)>, super::Failure> {
    const SIZE: u64 = 64 << 20;
    let mut words = text.split(',');
    if words.next() != Some("nvme") || text.split(',').any(|word| word.starts_with("drive=")) {
        return Ok(None);
    }
    let (mut path, mut size, mut read_only, mut properties) = (None, SIZE, false, Vec::new());
    for word in words {
        match word.split_once('=') {
            Some(("image", value)) => path = Some(value),
            Some(("size", value)) => size = parse_size(value)?,
            Some(("read-only", value)) => read_only = value == "on",
            _ => properties.push(word),
        }
    }
    let (path, image) = match path {
        Some(path) => (path.into(), None),
        None => {
            let image = Image::new(size, Pattern::new(1))?;
            (image.path().to_owned(), Some(image))
        }
    };
    let drive = NvmeDrive { read_only, ..NvmeDrive::new(path) }.with(&properties);
    Ok(Some((drive, image)))
}

/// What a device's text asks to be served here, if it does.
fn described(text: &str) -> Result<Option<IoatConfig>, super::Failure> {
    serve::describe(text).map_err(super::usage)
}

/// The simulated hardware that a device's text means, if it does.
fn simulated(text: &str) -> Result<Option<RtlConfig>, super::Failure> {
    rtl::describe(text).map_err(super::usage)
}

/// Height and width of the terminal, or the classic 24 by 80.
fn console_size() -> (u16, u16) {
    terminal_size::terminal_size().map_or((24, 80), |(width, height)| (height.0, width.0))
}

/// The terminal in raw mode until dropped: every key goes to the guest.
struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that hung up has no mode to restore.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drive_has_its_image_or_a_new_one() {
        let (drive_of, image) = drive("nvme,image=/d/i,mdts=5,read-only=on").unwrap().unwrap();
        assert!(image.is_none() && drive_of.read_only);
        assert_eq!(
            (drive_of.image.to_str(), &*drive_of.properties),
            (Some("/d/i"), &["mdts=5".to_owned()][..])
        );
        let (drive_of, image) = drive("nvme,size=64K").unwrap().unwrap();
        let image = image.unwrap();
        assert_eq!(image.bytes().unwrap().len(), 65_536);
        assert_eq!((&*drive_of.image, drive_of.read_only), (image.path(), false));
        for other in ["edu", "nvme-ns,drive=a", "nvme,drive=a,serial=b"] {
            assert!(drive(other).unwrap().is_none(), "{other}");
        }
        assert!(drive("nvme,size=64X").is_err());
    }
}
