//! Whether a function may be written to, reset or removed.

use super::{HostError, HostUse, PciDeviceInfo, Result, Sysfs};
use crate::pci::{Address, Remedy};

impl Sysfs {
    /// Fails when the host uses a function, or a process has it open through VFIO: before it is
    /// written to, reset or removed.
    ///
    /// # Errors
    ///
    /// [`HostError::Occupied`] when [`Sysfs::uses`] finds something, and for a bridge;
    /// [`HostError::InUse`] when a process has it open.
    pub fn check_unused(&self, address: Address) -> Result<()> {
        let device = self.device(address)?;
        if device.class.is_pci_bridge() {
            return Err(occupied(address, vec![HostUse::Platform { class: device.class }]));
        }
        self.check_not_in_use(address)?;
        self.check_not_open(&device)
    }

    pub(super) fn check_not_in_use(&self, address: Address) -> Result<()> {
        let uses = self.uses(address)?;
        if uses.is_empty() { Ok(()) } else { Err(occupied(address, uses)) }
    }

    pub(super) fn check_not_open(&self, device: &PciDeviceInfo) -> Result<()> {
        let holders = self.holders(device);
        if holders.is_empty() {
            return Ok(());
        }
        let own = holders.iter().filter(|holder| holder.is_this_process()).count();
        let remedy = match (own, holders.len() - own) {
            (0, _) => Remedy::EndHolders { node: None },
            (_, 0) => Remedy::UseOpenDevice,
            _ => "drop the device that this process has open, and end the others".into(),
        };
        Err(HostError::InUse { address: device.address, holders, remedy })
    }
}

pub(super) fn occupied(address: Address, uses: Vec<HostUse>) -> HostError {
    let commands = uses.iter().filter_map(HostUse::command).collect();
    HostError::Occupied { address, uses, remedy: Remedy::EndUses { commands } }
}
