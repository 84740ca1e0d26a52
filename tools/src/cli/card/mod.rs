//! A card whose registers are looked at: through sysfs where that can be, so that it is neither
//! taken from its driver nor reset.

pub(super) mod shown;

use std::path::PathBuf;

use vfio_dma::backend::vfio_user::VfioUser;
use vfio_dma::backend::{BackendError, Region};
use vfio_dma::device::Device;
use vfio_dma::host::{Awake, BarKind, PciDeviceInfo, Silence, Sysfs};
use vfio_dma::mmio::{Bar, MmioError};
use vfio_dma::pci::Address;
use vfio_dma::registers::{AccessMode, Register, RegisterFile, Target};
use vfio_dma::session::Session;
use vfio_dma_model::embedded::Embedded;
use vfio_dma_model::ioat::IoatConfig;

use super::open::{Place, simulated};
use super::remedy::hint;
use super::{Failure, output, usage};

/// The card, and how it is reached.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct CardArg {
    /// A PCI address, the path of a vfio-user socket, or `model`
    #[arg(value_name = "DEVICE")]
    pub(super) device: String,
    /// A file that names the card's registers and their fields (docs/registers.md)
    #[arg(long, value_name = "FILE")]
    registers: Option<PathBuf>,
    /// Open the function through VFIO, which resets it, instead of looking at it through sysfs
    #[arg(long)]
    vfio: bool,
}

/// For commands that write.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ForceArg {
    /// Write although the host uses the function: what uses it may fail
    #[arg(long)]
    pub(super) force: bool,
}

/// A card that is looked at.
pub(super) struct Card {
    location: String,
    sysfs: Sysfs,
    how: How,
    pub(super) registers: RegisterFile,
}

enum How {
    /// Through the files of its directory.
    Sysfs { info: Box<PciDeviceInfo>, inode: u64, awake: Option<Box<Awake>> },
    /// As an opened device.
    Opened { device: Box<Device>, address: Option<Address> },
}

impl CardArg {
    #[cfg(test)]
    pub(super) fn of(device: &str) -> CardArg {
        CardArg { device: device.to_owned(), registers: None, vfio: false }
    }

    /// Reaches the card; whoever is going to write says whether that is forced.
    pub(super) fn open(&self, write: Option<&ForceArg>) -> Result<Card, Failure> {
        let registers = match &self.registers {
            Some(path) => RegisterFile::read(path)?,
            None => RegisterFile::default(),
        };
        let sysfs = Sysfs::new();
        let mut location = self.device.clone();
        let place = Place::of(&self.device)?;
        if self.vfio && !matches!(place, Place::Function(_)) {
            return Err(usage("--vfio is for a PCI device of this machine"));
        }
        let opened = |device| How::Opened { device: Box::new(device), address: None };
        let how = match place {
            Place::Model => opened(Device::open(Embedded::new(IoatConfig::default())?.attach()?)?),
            Place::Simulated(text) => opened(Device::open(simulated(text)?.1.attach()?)?),
            Place::Socket(path) => opened(Device::open(VfioUser::connect(path)?)?),
            Place::Function(address) => {
                location = address.to_string();
                let info = sysfs.device(address)?;
                if write.is_some_and(|write| !write.force) {
                    sysfs.check_unused(address)?;
                }
                if self.vfio {
                    through_vfio(address, "--vfio")?
                } else {
                    let inode = inode(&sysfs, address).unwrap_or(0);
                    How::Sysfs { info: Box::new(info), inode, awake: None }
                }
            }
        };
        Ok(Card { location, sysfs, how, registers })
    }
}

/// Opens a function through VFIO, and says what that does to it.
fn through_vfio(address: Address, why: &str) -> Result<How, Failure> {
    let device = Session::new().open(address)?;
    output::complain(&format!(
        "note: {address} is opened through VFIO ({why}), which resets it before and after"
    ));
    Ok(How::Opened { device: Box::new(device), address: Some(address) })
}

impl Card {
    pub(super) fn location(&self) -> &str {
        &self.location
    }

    /// How the card is reached, in one word.
    pub(super) fn reached(&self) -> &'static str {
        match &self.how {
            How::Sysfs { .. } => "sysfs",
            How::Opened { address: Some(_), .. } => "vfio",
            How::Opened { .. } if self.location == super::open::MODEL => "model",
            How::Opened { .. } => "vfio-user",
        }
    }

    pub(super) fn sysfs(&self) -> &Sysfs {
        &self.sysfs
    }

    /// The function's address, where it is looked at through sysfs.
    pub(super) fn in_sysfs(&self) -> Option<Address> {
        match &self.how {
            How::Sysfs { info, .. } => Some(info.address),
            How::Opened { .. } => None,
        }
    }

    /// The opened device, where it is one.
    pub(super) fn opened(&mut self) -> Option<&mut Device> {
        match &mut self.how {
            How::Sysfs { .. } => None,
            How::Opened { device, .. } => Some(device),
        }
    }

    /// Opens a BAR, through VFIO where sysfs does not give it and the function is vfio-pci's.
    pub(super) fn bar(&mut self, index: u8, writes: bool) -> Result<Bar, Failure> {
        if let How::Sysfs { info, awake, .. } = &mut self.how {
            let address = info.address;
            let kind = info.bars.iter().find(|bar| bar.index == index).map(|bar| bar.kind);
            let Some(kind) = kind else {
                return Err(no_bar(info, index));
            };
            if awake.is_none() {
                match self.sysfs.keep_awake(address) {
                    Ok(kept) => *awake = Some(Box::new(kept)),
                    // If it sleeps, that is told below.
                    Err(error) => log::info!("{error}"),
                }
            }
            if let Some(silence) = self.sysfs.silence(address, kind)? {
                return Err(silent(address, &silence));
            }
            match Bar::through_sysfs(&self.sysfs, address, index, writes) {
                Ok(bar) => return Ok(bar),
                Err(error) if info.with_vfio => {
                    let reason = match &error {
                        MmioError::Backend(BackendError::Os { source, .. }) => source.to_string(),
                        error => error.to_string(),
                    };
                    let why = format!("sysfs does not give BAR{index}: {reason}");
                    self.how = through_vfio(address, &why)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        match &self.how {
            How::Opened { device, .. } => Ok(device.bar(index)?),
            How::Sysfs { .. } => Err(format!("{}: BAR{index} cannot be had", self.location).into()),
        }
    }

    /// The parts of a BAR that are not mapped, each access to which goes through the kernel.
    pub(super) fn unmapped(bar: &Bar) -> Vec<std::ops::Range<u64>> {
        let mut mapped: Vec<_> = bar.mapped().cloned().collect();
        mapped.sort_by_key(|range| range.start);
        let mut parts = Vec::new();
        let mut at = 0;
        for range in mapped {
            if at < range.start {
                parts.push(at..range.start);
            }
            at = at.max(range.end);
        }
        if at < bar.size() {
            parts.push(at..bar.size());
        }
        parts
    }

    /// Fails when the function was removed since: a mapping of its BAR leads to where it was, and
    /// another function may be there.
    pub(super) fn check_there(&self) -> Result<(), Failure> {
        let How::Sysfs { info, inode: before, .. } = &self.how else { return Ok(()) };
        match inode(&self.sysfs, info.address) {
            None => Err(silent(info.address, &Silence::Absent)),
            Some(now) if now != *before => {
                Err(format!("{} was removed, and found again: begin again", info.address).into())
            }
            Some(_) => Ok(()),
        }
    }

    /// What all ones mean: a failure where the function does not answer, else a note.
    pub(super) fn explain_ones(&self, bar: u8) -> Result<String, Failure> {
        let note = "all ones, and the function answers in configuration space: the register \
                    holds them, or nothing is at the offset";
        match &self.how {
            How::Sysfs { info, .. } => self.explain_silence(info.address, bar)?,
            How::Opened { address: Some(address), .. } => self.explain_silence(*address, bar)?,
            How::Opened { device, .. } => device.config().check_present()?,
        }
        Ok(note.into())
    }

    fn explain_silence(&self, address: Address, bar: u8) -> Result<(), Failure> {
        let info = self.sysfs.device(address).ok();
        let kind = info.and_then(|info| info.bars.iter().find(|b| b.index == bar).map(|b| b.kind));
        match self.sysfs.silence(address, kind.unwrap_or(BarKind::Memory32))? {
            Some(silence) => Err(silent(address, &silence)),
            None => Ok(()),
        }
    }

    /// An access that failed, with what is known of the function's silence.
    pub(super) fn explain(&self, bar: u8, error: MmioError) -> Failure {
        let reason = match (&error, &self.how) {
            (MmioError::BusError { .. }, How::Sysfs { info, .. }) => {
                self.explain_silence(info.address, bar).err()
            }
            (MmioError::BusError { .. }, How::Opened { address: Some(address), .. }) => {
                self.explain_silence(*address, bar).err()
            }
            _ => None,
        };
        match reason {
            Some(reason) => format!("{error}\n  {reason}").into(),
            None => error.into(),
        }
    }

    /// A place in a BAR: the register by its name, or one without a name; and the field.
    pub(super) fn register(
        &self,
        bar: u8,
        target: &Target,
    ) -> Result<(Register, Option<String>), Failure> {
        register(&self.registers, bar, target)
    }
}

/// A place in a BAR by the names of a register file.
pub(super) fn register(
    registers: &RegisterFile,
    bar: u8,
    target: &Target,
) -> Result<(Register, Option<String>), Failure> {
    match target {
        Target::At { offset, width } => {
            let known = registers.of_bar(bar).find(|register| {
                register.offset == *offset && width.is_none_or(|w| w == register.width)
            });
            let unnamed = || Register::new("", *offset, width.unwrap_or(4), AccessMode::ReadWrite);
            Ok((known.cloned().unwrap_or_else(unnamed), None))
        }
        Target::Named { register: name, field } => {
            let found = registers.find(bar, name);
            let register = found.ok_or_else(|| unknown(registers, bar, name))?.clone();
            if let Some(field) = field
                && register.field(field).is_none()
            {
                let known: Vec<_> = register.fields.iter().map(|f| &*f.name).collect();
                return Err(usage(format!(
                    "{name} has no field {field:?}; it has {}",
                    or_none(&known)
                )));
            }
            Ok((register, field.clone()))
        }
    }
}

fn unknown(registers: &RegisterFile, bar: u8, name: &str) -> Failure {
    let known: Vec<_> = registers.of_bar(bar).map(|register| &*register.name).collect();
    if known.is_empty() {
        return usage(format!(
            "no register of BAR{bar} has a name, so {name:?} is none; --registers FILE names \
                 them, or give an offset"
        ));
    }
    usage(format!("BAR{bar} has no register {name:?}; it has {}", or_none(&known)))
}

fn or_none(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn no_bar(info: &PciDeviceInfo, index: u8) -> Failure {
    let kinds = info.bars.iter().map(|bar| {
        let kind = if bar.kind == BarKind::Io { "I/O ports" } else { "memory" };
        format!("BAR{} ({kind}, {:#x} bytes)", bar.index, bar.size)
    });
    let kinds: Vec<String> = kinds.collect();
    let has = if kinds.is_empty() { "no BARs at all".into() } else { kinds.join(", ") };
    format!("{} has no {}; it has {has}", info.address, Region::Bar(index)).into()
}

/// What tells a function's directory from that of the same address after it was removed and
/// found again.
fn inode(sysfs: &Sysfs, address: Address) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let dir = sysfs.tree().device_dir(address).ok()?;
    Some(std::fs::metadata(dir).ok()?.ino())
}

/// A function that does not answer, and what brings an answer.
fn silent(address: Address, silence: &Silence) -> Failure {
    let remedy = silence.remedy(address);
    let mut text = format!("{address} does not answer: {silence}\n  remedy: {remedy}");
    if let Some(hint) = hint(&remedy) {
        text.push_str("\n  ");
        text.push_str(&hint);
    }
    text.into()
}
