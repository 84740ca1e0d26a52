//! Cards with LitePCIe's DMA: a writer and a reader for each channel, each with a table of
//! descriptors.
//!
//! LitePCIe is open gateware (BSD-2). The *reader* reads memory and makes a stream of it, the
//! *writer* writes a stream to memory; a loopback in the card connects the one to the other, and
//! makes a copy engine of a channel. Descriptors are pushed into a table of 256 by writing
//! registers; a message-signalled interrupt and a register tell how many are done.
//!
//! Without the loopback a channel is a pair of streams between memory and the card's own logic:
//! [`ByteEngine`](crate::devices::ByteEngine) sends and receives, once or in a loop. A
//! [`Synchronizer`] holds both back until the card's logic gives a pulse.
//!
//! The card moves words of its bus: addresses and lengths are multiples of it; see
//! [`Config::word`].
//!
//! Source: `litepcie/frontend/dma.py`, `core/msi.py` and `tlp/controller.py` of the package
//! litepcie 2024.12.
//!
//! ```no_run
//! use std::time::Duration;
//! use vfio_dma::devices::PciDriver;
//! use vfio_dma::devices::litepcie::{Config, LitePcie};
//! use vfio_dma::dma::{Direction, Request};
//! use vfio_dma::session::Session;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let device = Session::new().open("0000:03:00.0".parse()?)?;
//! let csr = std::fs::read_to_string("csr.csv")?.parse()?;
//! let mut card = LitePcie::probe(device, Config { csr, ..Config::default() })?;
//! let source = card.allocate(&Request::new(1 << 20, Direction::ToDevice))?;
//! let target = card.allocate(&Request::new(1 << 20, Direction::FromDevice))?;
//! let limit = Duration::from_secs(5);
//! let (source, target) = card.copy(0, source.into(), target.into(), limit)?;
//! # Ok(())
//! # }
//! ```

mod byte_engine;
mod copy_engine;
mod csr;
mod error;
mod looping;
mod synchronizer;
mod table;
#[cfg(test)]
mod tests;
mod transfer;

pub(in crate::devices) use copy_engine::open_copy_engine;
pub use csr::{CsrError, CsrMap};
pub use error::{Failed, LitePcieError};
pub use looping::{Lap, Looping};
pub use synchronizer::Synchronizer;
pub use transfer::Limit;

use super::{Match, PciDriver, ProbeFailed};
use crate::backend::IrqKind;
use crate::device::Device;
use crate::dma::{Buffer, DmaLimits, Request, SgTable};
use crate::irq::Vector;
use crate::mmio::{Bar, ReadWrite, Reg};
use crate::queue::InFlight;

use table::Table;

/// How a card is to be driven.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where its registers are.
    pub csr: CsrMap,
    /// Bytes of a word of its bus (`data_width` / 8): a power of two from 8 to 64. `None`: what
    /// its register `card_data_width` says, where the map has one, and else 16.
    pub word: Option<u16>,
    /// Highest address that it reaches: 2^64 - 1 where it was generated with 64 address bits.
    pub address_mask: u64,
}

impl Default for Config {
    /// The card that `vfio-dma model --device litepcie` serves, of any width: 64 address bits.
    fn default() -> Self {
        Config { csr: CsrMap::default(), word: None, address_mask: u64::MAX }
    }
}

/// Bytes of a word of a card that does not say.
const WORD: u16 = 16;
/// The register that a generated card has its width in, in bits.
const WIDTH: &str = "card_data_width";

/// One channel: both directions, and whether they run by themselves.
#[derive(Debug)]
struct Channel {
    writer: Table,
    reader: Table,
    loopback: Option<Reg<u32, ReadWrite>>,
    /// Whether the loopback is known to be on, or off.
    looped: Option<bool>,
    looping: bool,
}

impl Channel {
    /// Connects the reader to the writer, or cuts them apart. What is under way in them goes
    /// with another way than before: it would end up in other data.
    fn connect(&mut self, bar: &Bar, looped: bool) -> Result<(), LitePcieError> {
        if self.looped == Some(looped) {
            return Ok(());
        }
        self.writer.stop(bar)?;
        self.reader.stop(bar)?;
        if let Some(loopback) = self.loopback {
            bar.set(loopback, looped.into())?;
        }
        self.looped = Some(looped);
        Ok(())
    }
}

/// The driver of one card.
#[derive(Debug)]
pub struct LitePcie {
    /// What the card may be working on. Dropped first.
    in_flight: InFlight<(Option<SgTable>, Option<SgTable>)>,
    channels: Vec<Channel>,
    vectors: Vec<Vector>,
    bar: Bar,
    device: Device,
    config: Config,
    /// It was stopped in the middle of a transfer, and not reset.
    is_lost: bool,
}

impl PciDriver for LitePcie {
    const NAME: &'static str = "litepcie";
    /// Ids of Xilinx's cores as LitePCIe's Linux driver lists them; other designs have them too,
    /// which is why probing looks at a register.
    const MATCHES: &'static [Match] = &[
        Match::id(0x10ee, 0x7021, "LitePCIe card (Gen2 x1)"),
        Match::id(0x10ee, 0x7022, "LitePCIe card (Gen2 x2)"),
        Match::id(0x10ee, 0x7024, "LitePCIe card (Gen2 x4)"),
        Match::id(0x10ee, 0x7028, "LitePCIe card (Gen2 x8)"),
        Match::id(0x10ee, 0x8038, "LitePCIe card (Gen3 x8)"),
    ];
    type Config = Config;
    type Error = LitePcieError;

    /// Looks whether the registers are where the map says, stops what ran, and enables
    /// interrupts and bus mastering.
    ///
    /// # Errors
    ///
    /// Fails when this is not such a card, or something cannot be enabled.
    fn probe(device: Device, config: Config) -> Result<LitePcie, ProbeFailed<LitePcieError>> {
        let parts = device.bar(0).map_err(LitePcieError::from).and_then(|bar| {
            let channels = channels(&config.csr, &bar)?;
            identify(&device, &config.csr, &bar)?;
            Ok((bar, channels))
        });
        let (bar, channels) = match parts {
            Ok(parts) => parts,
            Err(error) => return Err(ProbeFailed::new(error, device)),
        };
        let (in_flight, vectors) = (InFlight::new(&device), Vec::new());
        let is_lost = false;
        let mut card = LitePcie { in_flight, channels, vectors, bar, device, config, is_lost };
        match card.set_up() {
            Ok(()) => Ok(card),
            Err(error) => {
                card.vectors.clear();
                // The caller gets it as it was.
                if let Err(error) = card.device.set_bus_master(false) {
                    log::warn!("{}: {error}", card.location());
                }
                Err(ProbeFailed::new(error, card.device))
            }
        }
    }
}

/// The channels of the map whose registers are inside of the BAR and answer.
fn channels(csr: &CsrMap, bar: &Bar) -> Result<Vec<Channel>, LitePcieError> {
    let mut channels = Vec::new();
    for n in 0..csr.channels() {
        let last = csr.offset(&format!("pcie_dma{n}_reader_table_reset"))?;
        if last + 4 > bar.size() {
            break;
        }
        let (writer, reader) = (Table::new(csr, n, "writer")?, Table::new(csr, n, "reader")?);
        let loopback = csr.offset(&format!("pcie_dma{n}_loopback_enable")).ok().map(Reg::at);
        channels.push(Channel { writer, reader, loopback, looped: None, looping: false });
    }
    Ok(channels)
}

fn identify(device: &Device, csr: &CsrMap, bar: &Bar) -> Result<(), LitePcieError> {
    let location = || device.location().to_owned();
    let offset = csr.offset("ctrl_scratch")?;
    let scratch: Reg<u32, ReadWrite> = Reg::at(offset);
    let before = bar.get(scratch)?;
    if before == u32::MAX {
        return Err(LitePcieError::Gone { location: location() });
    }
    let wrote = !before ^ 0x5a5a_5a5a;
    bar.set(scratch, wrote)?;
    let read = bar.get(scratch)?;
    if read != wrote {
        return Err(LitePcieError::NotLitePcie { location: location(), offset, wrote, read });
    }
    Ok(bar.set(scratch, before)?)
}

impl LitePcie {
    fn set_up(&mut self) -> Result<(), LitePcieError> {
        let word = u64::from(self.word()?);
        self.device.set_dma_limits(DmaLimits {
            address_mask: self.config.address_mask,
            alignment: word,
            granularity: word,
            ..DmaLimits::default()
        })?;
        self.stop_channels()?;
        // Two for each channel, the writer's first; a card with fewer sends them all on those.
        let wanted = 2 * self.channels.len() as u32;
        if self.vectors.is_empty() {
            let count = wanted.min(self.device.vector_count(IrqKind::Msi)?).max(1);
            self.vectors = self.device.vectors(IrqKind::Msi, count)?;
        }
        let enable: Reg<u32, ReadWrite> = Reg::at(self.config.csr.offset("pcie_msi_enable")?);
        self.bar.set(enable, ((1u64 << wanted) - 1) as u32)?;
        Ok(self.device.set_bus_master(true)?)
    }

    /// Bytes of a word of the bus.
    fn word(&self) -> Result<u16, LitePcieError> {
        if let Some(word) = self.config.word {
            return Ok(word);
        }
        let Ok(offset) = self.config.csr.offset(WIDTH) else { return Ok(WORD) };
        if offset + 4 > self.bar.size() {
            return Ok(WORD);
        }
        let register: Reg<u32, ReadWrite> = Reg::at(offset);
        // Another card has something else there.
        Ok(match self.bar.get(register)? {
            bits @ (64 | 128 | 256 | 512) => (bits / 8) as u16,
            _ => WORD,
        })
    }

    /// Stops every channel; finds out which of the map the card has.
    fn stop_channels(&mut self) -> Result<(), LitePcieError> {
        for channel in &mut self.channels {
            channel.writer.stop(&self.bar)?;
            channel.reader.stop(&self.bar)?;
            (channel.looped, channel.looping) = (None, false);
        }
        // A channel that is not there reads 0: an idle one says that it is idle.
        let mut there = 0;
        for channel in &self.channels {
            if !channel.writer.is_idle(&self.bar)? {
                break;
            }
            there += 1;
        }
        self.channels.truncate(there);
        if self.channels.is_empty() {
            return Err(LitePcieError::NoChannel { channel: 0, channels: 0 });
        }
        Ok(())
    }

    /// The opened device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Channels of the card.
    #[must_use]
    pub fn channel_count(&self) -> u8 {
        self.channels.len() as u8
    }

    /// Descriptors that the card was given since it was probed, on both sides of all channels.
    #[must_use]
    pub fn descriptors(&self) -> u64 {
        let of = |channel: &Channel| channel.writer.pushed() + channel.reader.pushed();
        self.channels.iter().map(of).sum()
    }

    /// Places a buffer as requested, where the card reaches it.
    ///
    /// # Errors
    ///
    /// Says what was tried and why it failed.
    pub fn allocate(&self, request: &Request) -> Result<Buffer, LitePcieError> {
        Ok(self.device.allocate(request)?)
    }

    /// Reads a register by its name in the map.
    ///
    /// # Errors
    ///
    /// Fails when there is none, or it cannot be read.
    pub fn csr(&self, name: &str) -> Result<u32, LitePcieError> {
        let register: Reg<u32, ReadWrite> = Reg::at(self.config.csr.offset(name)?);
        Ok(self.bar.get(register)?)
    }

    /// Writes a register by its name in the map, one of the user's own logic. Those of DMA
    /// channels and of interrupts are the driver's; see [`LitePcie::set_synchronizer`].
    ///
    /// # Errors
    ///
    /// Fails when there is none, it is the driver's, or it cannot be written.
    pub fn set_csr(&mut self, name: &str, value: u32) -> Result<(), LitePcieError> {
        let is_ours = ["pcie_dma", "pcie_msi"].iter().any(|part| name.starts_with(part))
            || name == "ctrl_reset";
        if is_ours {
            return Err(LitePcieError::Reserved { name: name.to_owned() });
        }
        let register: Reg<u32, ReadWrite> = Reg::at(self.config.csr.offset(name)?);
        Ok(self.bar.set(register, value)?)
    }

    fn location(&self) -> String {
        self.device.location().to_owned()
    }

    fn check_channel(&self, channel: u8) -> Result<(), LitePcieError> {
        let channels = self.channel_count();
        match self.channels.get(usize::from(channel)) {
            None => Err(LitePcieError::NoChannel { channel, channels }),
            Some(found) if found.looping => {
                Err(LitePcieError::Looping { location: self.location(), channel })
            }
            Some(_) => Ok(()),
        }
    }
}
