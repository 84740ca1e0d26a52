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
//! use vfio_dma::devices::ioat::{Config, Ioat, WhenFull};
//! use vfio_dma::dma::{Direction, SgTable};
//! use vfio_dma::session::Session;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Session::new().open("0000:00:04.0".parse()?)?;
//! let ioat = Ioat::open(device, Config::default())?;
//! let mut channel = ioat.channel(0)?;
//! let mut source = ioat.allocate(100_000, Direction::ToDevice)?;
//! let target = ioat.allocate(100_000, Direction::FromDevice)?;
//! source.write(0, b"hello")?;
//! let transfer =
//!     channel.copy(SgTable::of(source)?, SgTable::of(target)?, WhenFull::Return)?;
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
//! that fails, the device's bus mastering is switched off, and when that fails too, the
//! buffers and the ring are never freed.
//!
//! # What the device is trusted with
//!
//! Nothing that can be checked: the completion word must name a descriptor in flight, every
//! wait for a register has a bound, and all ones mean that the device is gone. After an
//! error the channel is reset and goes on; [`OnError`] says with what.

mod channel;
mod copy_engine;
mod descriptor;
mod error;
mod feed;
mod recovery;
mod regs;
mod shared;
#[cfg(test)]
mod tests;
mod transfer;
mod wait;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Driver, recognise};
use crate::backend::IrqKind;
use crate::device::Device;
use crate::dma::{Buffer, Direction, Request, SgLimits};
use crate::irq::Interrupts;
use crate::mmio::Bar;

pub use channel::{Channel, Stats};
pub use error::{ChannelErrors, Finished, IoatError, Refused, Tables, TransferError};
pub use shared::{Completion, SharedChannel};
pub use transfer::{Token, WhenFull};

use regs::ChannelRegs;

/// How a wait learns that the device is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WaitMode {
    /// By looking at the completion word: quickest, and takes a processor.
    Poll,
    /// By an interrupt.
    Interrupt(IrqKind),
    /// By looking for a while, then by an interrupt.
    Adaptive {
        /// Kind of interrupt.
        irq: IrqKind,
        /// How long to look.
        spin: Duration,
    },
}

impl WaitMode {
    fn irq(self) -> Option<IrqKind> {
        match self {
            WaitMode::Poll => None,
            WaitMode::Interrupt(irq) | WaitMode::Adaptive { irq, .. } => Some(irq),
        }
    }
}

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
    /// Descriptors of each channel's ring: a power of two from 2 to 32,768. One less than
    /// that can be in flight.
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
    /// Declared first: dropped, and so disabled, before the device is let go.
    interrupts: Option<Interrupts>,
    bar: Bar,
    device: Arc<Device>,
    config: Config,
    channels: u8,
    version: u8,
    limits: SgLimits,
    can_fill: bool,
    /// A bit for each channel that is open.
    open: Mutex<u32>,
}

impl Engine {
    fn location(&self) -> String {
        self.device.backend().location()
    }

    fn gone(&self) -> IoatError {
        IoatError::Gone { location: self.location() }
    }

    fn nonsense(&self, register: &'static str, value: u64, expected: &'static str) -> IoatError {
        IoatError::Nonsense { location: self.location(), register, value, expected }
    }

    /// Clears what one vector for all channels needs cleared; nothing for MSI-X.
    fn acknowledge(&self) -> Result<(), IoatError> {
        let Some(interrupts) = &self.interrupts else { return Ok(()) };
        if interrupts.kind() != IrqKind::MsiX {
            // Reading takes the attention bits away; the master enable falls with the
            // interrupt and is set again.
            self.bar.get(regs::ATTNSTATUS)?;
            self.bar.set(regs::INTRCTRL, regs::INTRCTRL_MASTER_ENABLE)?;
            interrupts.unmask()?;
        }
        Ok(())
    }
}

/// An opened I/OAT device.
#[derive(Debug, Clone)]
pub struct Ioat {
    engine: Arc<Engine>,
}

impl Ioat {
    /// Identifies the device, resets every channel, enables interrupts and bus mastering.
    ///
    /// # Errors
    ///
    /// Fails when this is no I/OAT device of a known version, a channel does not reset, or
    /// something cannot be enabled.
    pub fn open(device: Arc<Device>, config: Config) -> Result<Ioat, IoatError> {
        let location = device.backend().location();
        let (vendor, id) = (device.config().vendor_id()?, device.config().device_id()?);
        let known = recognise(vendor, id).map(|known| known.driver);
        if known != Some(Driver::Ioat) {
            return Err(IoatError::NotIoat { location, vendor, device: id });
        }
        let bar = device.bar(0)?;
        let mut engine = Engine {
            interrupts: None,
            bar,
            device,
            config,
            channels: 0,
            version: 0,
            limits: SgLimits::default(),
            can_fill: false,
            open: Mutex::new(0),
        };
        engine.identify()?;
        // What a former user left running would go on once bus mastering is back.
        let reset = |engine: &Engine| {
            (0..engine.channels).try_for_each(|index| channel::reset(engine, index))
        };
        match reset(&engine) {
            Err(error @ IoatError::Timeout { .. }) => {
                log::warn!("{error}; resetting the function");
                engine.device.reset()?;
                reset(&engine)?;
            }
            result => result?,
        }
        if let Some(kind) = config.wait.irq() {
            let vectors = if kind == IrqKind::MsiX { engine.channels } else { 1 };
            engine.interrupts = Some(engine.device.interrupts(kind, vectors.into())?);
            let own = if kind == IrqKind::MsiX { regs::INTRCTRL_MSIX_VECTORS } else { 0 };
            engine.bar.set(regs::INTRCTRL, regs::INTRCTRL_MASTER_ENABLE | own)?;
        }
        engine.device.set_bus_master(true)?;
        Ok(Ioat { engine: Arc::new(engine) })
    }

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
    pub fn limits(&self) -> &SgLimits {
        &self.engine.limits
    }

    /// Whether the device fills as well as copies.
    #[must_use]
    pub fn can_fill(&self) -> bool {
        self.engine.can_fill
    }

    /// The opened device.
    #[must_use]
    pub fn device(&self) -> &Arc<Device> {
        &self.engine.device
    }

    /// Places a buffer for the device, which reaches all of a 64-bit address space.
    ///
    /// # Errors
    ///
    /// Says what was tried and why it failed.
    pub fn allocate(&self, len: usize, direction: Direction) -> Result<Buffer, IoatError> {
        self.place(&Request::new(len, direction))
    }

    /// Places a buffer as requested.
    ///
    /// # Errors
    ///
    /// Says what was tried and why it failed.
    pub fn place(&self, request: &Request) -> Result<Buffer, IoatError> {
        Ok(self.engine.device.allocate(request)?)
    }
}

impl Engine {
    fn identify(&mut self) -> Result<(), IoatError> {
        let version = self.bar.get(regs::CBVER)?;
        if version == u8::MAX {
            return Err(self.gone());
        }
        if !(0x32..=0x34).contains(&version) {
            return Err(IoatError::Version { location: self.location(), version });
        }
        let count = self.bar.get(regs::CHANCNT)?;
        let channels = count & regs::COUNT_MASK;
        let needed = regs::CHANNEL_STRIDE * (u64::from(channels) + 1);
        if channels == 0 || needed > self.bar.size() {
            let expected = "at least one channel, and all of them inside BAR0";
            return Err(self.nonsense("CHANCNT", count.into(), expected));
        }
        let xfercap = self.bar.get(regs::XFERCAP)?;
        let log = xfercap & regs::COUNT_MASK;
        if log < 6 {
            let expected = "log2 of a transfer of at least 64 bytes";
            return Err(self.nonsense("XFERCAP", xfercap.into(), expected));
        }
        self.version = version;
        self.channels = channels;
        self.limits = SgLimits { max_len: 1 << log, ..SgLimits::default() };
        self.can_fill = self.bar.get(regs::DMACAPABILITY)? & regs::CAPABILITY_FILL != 0;
        Ok(())
    }

    /// The limits again, for a hot path: that only the length is limited is known to the
    /// compiler here.
    #[inline]
    fn cuts(&self) -> SgLimits {
        SgLimits { max_len: self.limits.max_len, ..SgLimits::default() }
    }

    /// Marks a channel as open.
    fn claim(&self, channel: u8) -> Result<ChannelRegs, IoatError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if channel >= self.channels || *open & 1 << channel != 0 {
            let location = self.location();
            return Err(IoatError::NoChannel { location, channel, channels: self.channels });
        }
        match &self.interrupts {
            Some(interrupts) if interrupts.kind() != IrqKind::MsiX && *open != 0 => {
                return Err(IoatError::SharedVector { kind: interrupts.kind() });
            }
            _ => {}
        }
        *open |= 1 << channel;
        Ok(ChannelRegs::of(channel))
    }

    fn release(&self, channel: u8) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) &= !(1 << channel);
    }
}
