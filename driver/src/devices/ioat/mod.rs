//! Intel I/OAT (QuickData, CBDMA): the DMA engine of Xeon processors, versions 3.2 to 3.4
//! (8086:2021 in Skylake-SP, 8086:0b00 in Ice Lake).
//!
//! A device has channels; a [`Channel`] works through a ring of descriptors, each of which
//! copies a run of bytes or fills it with a pattern. Scatter/gather is in the hardware: a
//! transfer between lists of any shape becomes as many descriptors as it has
//! [`Pieces`](crate::dma::Pieces). Transfers of one channel end in the order in which they
//! were submitted.
//!
//! ```no_run
//! use std::time::Duration;
//! use vfio_dma::devices::PciDriver;
//! use vfio_dma::devices::ioat::{Config, Ioat, WhenFull};
//! use vfio_dma::dma::{Direction, Request};
//! use vfio_dma::session::Session;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Session::new().open("0000:00:04.0".parse()?)?;
//! let ioat = Ioat::probe(device, Config::default())?;
//! let mut channel = ioat.channel(0)?;
//! let mut source = ioat.allocate(&Request::new(100_000, Direction::ToDevice))?;
//! let target = ioat.allocate(&Request::new(100_000, Direction::FromDevice))?;
//! source.write(0, b"hello")?;
//! let transfer = channel.copy(source.into(), target.into(), WhenFull::Return)?;
//! let tables = channel.wait(transfer, Duration::from_secs(1))?.into_result()?;
//! # drop(tables);
//! # Ok(())
//! # }
//! ```
//!
//! # Who owns what
//!
//! A transfer takes its [`SgTable`](crate::dma::SgTable)s, and with them the buffers, by
//! value; the channel keeps them until the device is done and [`Channel::take`] or
//! [`Channel::wait`] gives them back. A [`Token`] names the transfer meanwhile; losing it
//! loses the result, nothing else. A channel that is dropped stops its engine first. When
//! that fails, its ring and its buffers are kept until the function is known to be quiet:
//! when the last channel is closed, bus mastering is switched off. When that fails too, they
//! are never freed. The other channels go on meanwhile.
//!
//! # What the device is trusted with
//!
//! Nothing that can be checked: the completion word must name a descriptor of the ring, and is
//! confirmed by a number that the engine copies behind the data (see `ring.rs`); every wait
//! for a register has a bound, and all ones mean that the device is gone. After an error the
//! channel is reset and goes on; [`OnError`] says with what.

mod batch;
mod channel;
mod copy_engine;
mod descriptor;
mod error;
mod feed;
mod loss;
mod pairs;
mod recovery;
mod regs;
mod ring;
mod shared;
mod slots;
#[cfg(test)]
mod tests;
mod transfer;
mod wait;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{CopyEngine, CopyError, Identity, Match, PciDriver, ProbeFailed};
use crate::backend::IrqKind;
use crate::device::Device;
use crate::dma::{AddressSpace, Allocator, Buffer, DmaLimits, Request};
use crate::events::Events;
use crate::irq::Vector;
use crate::mmio::Bar;

pub use crate::queue::WaitMode;
pub use batch::{Batch, SlotPart, SlotsRefused};
pub use channel::{Channel, Stats};
pub use error::{ChannelErrors, Finished, IoatError, Refused, Tables, TransferError};
pub use loss::{Loss, LossStep};
pub use shared::{Completion, SharedChannel};
pub use slots::{Reaped, SlotsFailed};
pub use transfer::{Token, WhenFull};

use regs::ChannelRegs;

/// What becomes of the transfers behind one that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum OnError {
    /// They run, in their order, once the channel is set up again.
    RunTheRest,
    /// They fail with [`TransferError::Behind`].
    FailTheRest,
}

/// How the device is to be driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How waits learn of completion.
    pub wait: WaitMode,
    /// Descriptors of each channel's ring: from 4 to 32,768. Two less than that can be in
    /// flight.
    pub ring_size: u32,
    /// What becomes of the transfers behind one that failed.
    pub on_error: OnError,
    /// How long a channel may take to suspend, to reset or to arm.
    pub command_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            wait: WaitMode::Adaptive { irq: IrqKind::MsiX, spin: Duration::from_micros(50) },
            ring_size: 1024,
            on_error: OnError::RunTheRest,
            command_timeout: Duration::from_millis(200),
        }
    }
}

/// What the channels of a device share.
#[derive(Debug)]
struct Engine {
    /// One for each channel with MSI-X, one for all of them otherwise, none when polled.
    vectors: Vec<Vector>,
    bar: Bar,
    /// For what is seldom: the parts that are used often are beside it.
    device: Mutex<Device>,
    allocator: Allocator,
    events: Events,
    location: String,
    config: Config,
    channels: u8,
    version: u8,
    can_fill: bool,
    open: Mutex<Open>,
}

/// The channels of a device.
#[derive(Debug, Default)]
struct Open {
    /// A bit for each that is open.
    open: u32,
    /// Those of them that were given up, and are not used any more.
    lost: u32,
    /// Those whose engine could not be stopped since the function was reset, and why.
    losses: BTreeMap<u8, Loss>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every change under these locks is whole before anything that can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the device says of itself.
struct Identified {
    bar: Bar,
    channels: u8,
    version: u8,
    can_fill: bool,
    limits: DmaLimits,
}

/// An opened I/OAT device.
#[derive(Debug, Clone)]
pub struct Ioat {
    engine: Arc<Engine>,
}

impl PciDriver for Ioat {
    const NAME: &'static str = "ioat";
    /// The ids of the Xeon Scalable datasheets, volume 2.
    const MATCHES: &'static [Match] = &[
        Match::id(0x8086, 0x2021, "Intel I/OAT DMA engine, Skylake-SP"),
        Match::id(0x8086, 0x0b00, "Intel I/OAT DMA engine, Ice Lake-SP"),
    ];
    type Config = Config;
    type Error = IoatError;

    /// Identifies the device, resets every channel, enables interrupts and bus mastering.
    ///
    /// # Errors
    ///
    /// Fails when this is no I/OAT device of a known version, a channel does not reset, or
    /// something cannot be enabled.
    fn probe(mut device: Device, config: Config) -> Result<Ioat, ProbeFailed<IoatError>> {
        let identified = identify(&device).and_then(|identified| {
            device.set_dma_limits(identified.limits)?;
            Ok(identified)
        });
        let Identified { bar, channels, version, can_fill, .. } = match identified {
            Ok(identified) => identified,
            Err(error) => return Err(ProbeFailed::new(error, device)),
        };
        let mut engine = Engine {
            vectors: Vec::new(),
            bar,
            allocator: device.allocator().clone(),
            events: device.events().clone(),
            location: device.location().to_string(),
            device: Mutex::new(device),
            config,
            channels,
            version,
            can_fill,
            open: Mutex::default(),
        };
        match engine.set_up() {
            Ok(()) => Ok(Ioat { engine: Arc::new(engine) }),
            Err(error) => {
                let device = engine.device.into_inner().unwrap_or_else(PoisonError::into_inner);
                Err(ProbeFailed::new(error, device))
            }
        }
    }
}

/// Looks whether this is I/OAT, and what it can do.
fn identify(device: &Device) -> Result<Identified, IoatError> {
    let location = || device.location().to_string();
    let identity = Identity::of(device)?;
    if !Ioat::MATCHES.iter().any(|m| m.covers(&identity)) {
        return Err(IoatError::NotIoat { location: location(), identity });
    }
    let nonsense = |register, value: u8, expected| {
        let value = value.into();
        Err(IoatError::Nonsense { location: location(), register, value, expected })
    };
    let bar = device.bar(0)?;
    let version = bar.get(regs::CBVER)?;
    if version == u8::MAX {
        return Err(IoatError::Gone { location: location() });
    }
    if !(0x32..=0x34).contains(&version) {
        return Err(IoatError::Version { location: location(), version });
    }
    let count = bar.get(regs::CHANCNT)?;
    let channels = count & regs::COUNT_MASK;
    let needed = regs::CHANNEL_STRIDE * (u64::from(channels) + 1);
    if channels == 0 || needed > bar.size() {
        return nonsense("CHANCNT", count, "at least one channel, and all of them inside BAR0");
    }
    let xfercap = bar.get(regs::XFERCAP)?;
    let log = xfercap & regs::COUNT_MASK;
    if log < 6 {
        return nonsense("XFERCAP", xfercap, "log2 of a transfer of at least 64 bytes");
    }
    let can_fill = bar.get(regs::DMACAPABILITY)? & regs::CAPABILITY_FILL != 0;
    let limits = DmaLimits { max_segment: 1 << log, ..DmaLimits::default() };
    Ok(Identified { bar, channels, version, can_fill, limits })
}

impl Ioat {
    /// Opens a channel.
    ///
    /// # Errors
    ///
    /// Fails when there is no such channel, it is open already, or it cannot be set up.
    pub fn channel(&self, index: u8) -> Result<Channel, IoatError> {
        Channel::open(&self.engine, index)
    }

    /// How many channels there are.
    #[must_use]
    pub fn channels(&self) -> u8 {
        self.engine.channels
    }

    /// Version of the device: major, minor.
    #[must_use]
    pub fn version(&self) -> (u8, u8) {
        (self.engine.version >> 4, self.engine.version & 0xf)
    }

    /// What a descriptor can carry.
    #[must_use]
    pub fn limits(&self) -> &DmaLimits {
        self.engine.allocator.limits()
    }

    /// Whether the device fills as well as copies.
    #[must_use]
    pub fn can_fill(&self) -> bool {
        self.engine.can_fill
    }

    /// The events of the function, see [`Device::events`]. Each channel looks at them with every
    /// doorbell, and whenever nothing is new: what it has in flight ends then.
    #[must_use]
    pub fn device_events(&self) -> &Events {
        &self.engine.events
    }

    /// How a user names the device: an address such as `0000:00:05.0`, a socket's path, `model`.
    #[must_use]
    pub fn location(&self) -> &str {
        &self.engine.location
    }

    /// The address space that its buffers are mapped in.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        self.engine.allocator.space()
    }

    /// What places memory for the device.
    #[must_use]
    pub fn allocator(&self) -> &Allocator {
        &self.engine.allocator
    }

    /// Places a buffer as requested.
    ///
    /// # Errors
    ///
    /// Says what was tried and why it failed.
    pub fn allocate(&self, request: &Request) -> Result<Buffer, IoatError> {
        Ok(self.engine.allocator.allocate(request)?)
    }
}

impl Engine {
    fn gone(&self) -> IoatError {
        IoatError::Gone { location: self.location.clone() }
    }

    fn device(&self) -> MutexGuard<'_, Device> {
        lock(&self.device)
    }

    /// Resets every channel, and enables interrupts and bus mastering.
    fn set_up(&mut self) -> Result<(), IoatError> {
        // What a former user left running would go on once bus mastering is back.
        match self.reset_channels() {
            Err(error @ IoatError::Timeout { .. }) => {
                log::warn!("{error}; resetting the function");
                self.device().reset()?;
                self.reset_channels()?;
            }
            result => result?,
        }
        if let Some(kind) = self.config.wait.irq() {
            let vectors = if kind == IrqKind::MsiX { self.channels } else { 1 };
            let vectors = self.device().vectors(kind, vectors.into())?;
            self.vectors = vectors;
        }
        self.enable()
    }

    fn reset_channels(&self) -> Result<(), IoatError> {
        (0..self.channels).try_for_each(|index| channel::reset(self, index))
    }

    /// Lets interrupts through, and DMA.
    fn enable(&self) -> Result<(), IoatError> {
        if let Some(vector) = self.vectors.first() {
            let own = match vector.kind() {
                IrqKind::MsiX => regs::INTRCTRL_MSIX_VECTORS,
                _ => 0,
            };
            self.bar.set(regs::INTRCTRL, regs::INTRCTRL_MASTER_ENABLE | own)?;
        }
        Ok(self.device().set_bus_master(true)?)
    }

    /// Clears what one vector for all channels needs cleared; nothing for MSI-X.
    fn acknowledge(&self, vector: &Vector) -> Result<(), IoatError> {
        if vector.kind() != IrqKind::MsiX {
            // Reading takes the attention bits away; the master enable falls with the
            // interrupt and is set again.
            self.bar.get(regs::ATTNSTATUS)?;
            self.bar.set(regs::INTRCTRL, regs::INTRCTRL_MASTER_ENABLE)?;
            vector.unmask()?;
        }
        Ok(())
    }

    /// The interrupt vector of a channel.
    fn vector(&self, channel: u8) -> Option<&Vector> {
        let first = self.vectors.first()?;
        match first.kind() {
            IrqKind::MsiX => self.vectors.get(usize::from(channel)),
            _ => Some(first),
        }
    }

    /// The limits again, for a hot path: that only the length is limited is known to the
    /// compiler here.
    #[inline]
    fn cuts(&self) -> DmaLimits {
        DmaLimits { max_segment: self.allocator.limits().max_segment, ..DmaLimits::default() }
    }

    /// Marks a channel as open. When an engine could not be stopped since, the function is
    /// reset first, which takes that nobody else uses it.
    fn claim(&self, channel: u8) -> Result<ChannelRegs, IoatError> {
        let mut open = lock(&self.open);
        let (location, bit) = (self.location.clone(), 1u32.checked_shl(channel.into()));
        let bit = bit.filter(|_| channel < self.channels).unwrap_or(0);
        if bit == 0 || open.open & bit != 0 {
            return Err(IoatError::NoChannel { location, channel, channels: self.channels });
        }
        if let Some(vector) = self.vectors.first()
            && vector.kind() != IrqKind::MsiX
            && open.open != 0
        {
            return Err(IoatError::SharedVector { kind: vector.kind() });
        }
        if !open.losses.is_empty() && open.open & !open.lost == 0 {
            self.device().reset()?;
            self.reset_channels()?;
            self.enable()?;
            open.losses.clear();
        }
        if let Some(loss) = open.losses.get(&channel) {
            let loss = Box::new(loss.clone());
            return Err(IoatError::ChannelLost { location, channel, loss });
        }
        open.open |= bit;
        Ok(ChannelRegs::of(channel))
    }

    /// Marks a channel as closed, stopped or why it is not; with the last one, what runs on is
    /// kept from memory.
    fn release(&self, channel: u8, not_stopped: Option<Loss>) {
        let mut open = lock(&self.open);
        let bit = 1 << channel;
        open.open &= !bit;
        if open.lost & bit != 0 {
            // Its engine is known of, or was reset since.
            open.lost &= !bit;
        } else {
            open.losses.extend(not_stopped.map(|loss| (channel, loss)));
        }
        if open.open == 0
            && !open.losses.is_empty()
            && let Err(error) = self.device().quiesce()
        {
            log::error!(
                "{} cannot be stopped, its rings and buffers stay mapped and allocated: {error}",
                self.location
            );
        }
    }

    /// Marks a channel as lost, and why. When no other is in use, or `for_all` of them, bus
    /// mastering is taken away; says whether it was, and with it every engine is quiet.
    fn lose(&self, channel: u8, loss: Loss, for_all: bool) -> bool {
        // Held meanwhile, so that no channel is opened that would be stopped along.
        let mut open = lock(&self.open);
        open.lost |= 1 << channel;
        open.losses.insert(channel, loss);
        if open.open & !open.lost != 0 && !for_all {
            return false;
        }
        let stopped = self.device().quiesce();
        if let Err(error) = &stopped {
            log::error!(
                "{} cannot be stopped, the buffers in flight stay mapped and allocated: {error}",
                self.location
            );
        }
        stopped.is_ok()
    }
}

/// Opens the first channel as a copy engine, with the driver's defaults.
pub(super) fn open_copy_engine(
    device: Device,
) -> Result<Box<dyn CopyEngine>, ProbeFailed<CopyError>> {
    let ioat =
        Ioat::probe(device, Config::default()).map_err(|failed| failed.map(CopyError::from))?;
    match ioat.channel(0) {
        Ok(channel) => Ok(Box::new(channel)),
        Err(error) => Err(ProbeFailed::new(error.into(), ioat.into_device())),
    }
}

impl Ioat {
    /// The device, of which no channel is open.
    fn into_device(self) -> Device {
        let engine = Arc::into_inner(self.engine).expect("a channel that failed is gone");
        engine.device.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
