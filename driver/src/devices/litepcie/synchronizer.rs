//! Synchronizers: streams that begin with a pulse of the card's logic.

use super::{LitePcie, LitePcieError};
use crate::mmio::{ReadWrite, Reg};

/// What holds a channel's streams back; the loopback is not held.
///
/// Held back, what is sent waits in the card, and what its logic makes for memory is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronizer {
    /// Nothing: streams flow.
    Bypass,
    /// They are held back.
    Hold,
    /// They are held back until a pulse comes while data to the card waits.
    StartBoth,
    /// They are held back until a pulse comes.
    Start,
}

impl Synchronizer {
    /// The registers `bypass` and `enable` (litepcie/frontend/dma.py,
    /// `LitePCIeDMASynchronizer`).
    fn registers(self) -> (u32, u32) {
        match self {
            Synchronizer::Bypass => (1, 0b00),
            Synchronizer::Hold => (0, 0b00),
            Synchronizer::StartBoth => (0, 0b01),
            Synchronizer::Start => (0, 0b10),
        }
    }
}

impl LitePcie {
    /// Sets a channel's synchronizer. A card that has one holds streams back until it is set.
    ///
    /// # Errors
    ///
    /// [`LitePcieError::Csr`] when the map has none: it is that of a card which was generated
    /// without. Fails when there is no such channel, or a register cannot be written.
    pub fn set_synchronizer(
        &mut self,
        channel: u8,
        synchronizer: Synchronizer,
    ) -> Result<(), LitePcieError> {
        self.check_channel(channel)?;
        let register = |name: &str| -> Result<Reg<u32, ReadWrite>, LitePcieError> {
            let name = format!("pcie_dma{channel}_synchronizer_{name}");
            Ok(Reg::at(self.config.csr.offset(&name)?))
        };
        let (bypass, enable) = (register("bypass")?, register("enable")?);
        let (pass, mode) = synchronizer.registers();
        // Off first: what was begun by a pulse goes on until then.
        self.bar.set(enable, 0)?;
        self.bar.set(bypass, pass)?;
        Ok(self.bar.set(enable, mode)?)
    }
}
