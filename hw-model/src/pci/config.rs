//! Configuration space: a header, capabilities, and whatever else a device puts there.

use crate::pci::capability::{Capability, ExtendedCapability};
use crate::pci::command;
use crate::regs::{Holes, LayoutError, Register, RegisterId, RegisterSet};

/// A field of configuration space; its key is its offset.
pub type Field = Register<u32>;

/// Declares a read-only field of 1, 2 or 4 bytes with its reset value.
pub(crate) const fn field(name: &'static str, offset: u32, bytes: u8, reset: u64) -> Field {
    Register::new(offset, name, offset, bytes, reset)
}

/// Size of configuration space in bytes (PCI Express Base Specification, section 7.2).
pub(crate) const SIZE: u64 = 4096;

const COMMAND: u32 = 0x04;
const STATUS: u32 = 0x06;
const CAPABILITIES: u32 = 0x34;
const EXTENDED: u32 = 0x100;

/// Status: the function would assert INTx (it reads so even while INTx is disabled).
const STATUS_INTERRUPT: u64 = 1 << 3;
const STATUS_CAPABILITIES: u64 = 1 << 4;
const DEVICE_CONTROL_FLR: u64 = 1 << 15;
/// Device Status: Transactions Pending.
const DEVICE_STATUS_PENDING: u64 = 1 << 5;
const MSIX_ENABLE: u64 = 1 << 15;
const MSIX_MASK_ALL: u64 = 1 << 14;
const MSI_ENABLE: u64 = 1 << 0;

/// What identifies a function: the read-only part of a type 0 header.
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code: base class, subclass, programming interface, from bit 23 down.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Interrupt pin: 0 none, 1 INTA to 4 INTD.
    pub interrupt_pin: u8,
}

/// Puts a configuration space together.
#[derive(Debug)]
pub struct Builder {
    fields: Vec<Field>,
    capabilities: Vec<(u8, u32)>,
    extended: Vec<(u16, u8, u32)>,
}

impl Builder {
    /// A 64-bit, non-prefetchable memory BAR of `size` bytes, a power of two of at least
    /// 16, in the base address registers `index` and `index + 1`.
    #[must_use]
    pub fn memory_bar64(mut self, index: u8, size: u64) -> Self {
        let at = 0x10 + 4 * u32::from(index);
        let mask = !(size - 1);
        let low = mask & 0xffff_fff0;
        self.fields.push(field("BAR (low)", at, 4, 0x4).writable(low));
        self.fields.push(field("BAR (high)", at + 4, 4, 0).writable(mask >> 32));
        self
    }

    /// A 32-bit, non-prefetchable memory BAR of `size` bytes, a power of two of at least 16, in
    /// the base address register `index`.
    #[must_use]
    pub fn memory_bar32(mut self, index: u8, size: u32) -> Self {
        let at = 0x10 + 4 * u32::from(index);
        let mask = u64::from(!(size - 1) & 0xffff_fff0);
        self.fields.push(field("BAR", at, 4, 0).writable(mask));
        self
    }

    /// Adds a capability; the list links them in the order in which they were added.
    #[must_use]
    pub fn capability(mut self, capability: Capability) -> Self {
        self.capabilities.push((capability.id, capability.offset));
        self.fields.extend(capability.fields);
        self
    }

    /// Adds an extended capability; the first added must lie at 0x100.
    #[must_use]
    pub fn extended_capability(mut self, capability: ExtendedCapability) -> Self {
        self.extended.push((capability.id, capability.version, capability.offset));
        self.fields.extend(capability.fields);
        self
    }

    /// Adds fields that no capability describes.
    #[must_use]
    pub fn fields(mut self, fields: impl IntoIterator<Item = Field>) -> Self {
        self.fields.extend(fields);
        self
    }

    /// The configuration space in reset state.
    ///
    /// # Errors
    ///
    /// Fails when two fields overlap or a mask is wider than its field.
    pub fn build(mut self) -> Result<ConfigSpace, LayoutError> {
        let nexts = self.capabilities.iter().skip(1).map(|&(_, at)| at).chain([0]);
        for (&(id, at), next) in self.capabilities.iter().zip(nexts) {
            let header = u64::from(id) | u64::from(next) << 8;
            self.fields.push(field("capability header", at, 2, header));
        }
        let first = self.capabilities.first().map_or(0, |&(_, at)| at);
        self.fields.push(field("Capabilities Pointer", CAPABILITIES, 1, u64::from(first)));
        let nexts = self.extended.iter().skip(1).map(|&(_, _, at)| at).chain([0]);
        for (&(id, version, at), next) in self.extended.iter().zip(nexts) {
            let header = u64::from(id) | u64::from(version) << 16 | u64::from(next) << 20;
            self.fields.push(field("extended capability header", at, 4, header));
        }
        debug_assert!(self.extended.first().is_none_or(|&(_, _, at)| at == EXTENDED));
        let place = |id| {
            let found = self.capabilities.iter().find(|&&(have, _)| have == id);
            found.map(|&(_, at)| at)
        };
        let [power, msi, express, msix] = [0x01, 0x05, 0x10, 0x11].map(place);
        let set = RegisterSet::new("configuration space", SIZE, 4, Holes::Zero, self.fields)?;
        let find = |base: Option<u32>, offset| base.and_then(|base| set.find(base + offset));
        let [command, status] = [COMMAND, STATUS].map(|at| find(Some(at), 0));
        Ok(ConfigSpace {
            command: command.ok_or(LayoutError::Place { name: "Command", offset: COMMAND })?,
            status: status.ok_or(LayoutError::Place { name: "Status", offset: STATUS })?,
            power: find(power, 4),
            msi: find(msi, 2),
            msix: find(msix, 2),
            device_control: express.map(|at| at + 8),
            device_status: find(express, 0x0a),
            set,
        })
    }
}

/// The power states that a model tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerState {
    /// D0: the function works.
    On,
    /// D1 to D3hot: only configuration space answers, and nothing is sent.
    Low,
}

/// What a write to configuration space asks of the function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ConfigWrite {
    /// A function-level reset was asked for; the caller carries it out.
    pub function_level_reset: bool,
}

/// The 4 KiB of configuration space.
#[derive(Debug)]
pub struct ConfigSpace {
    set: RegisterSet<u32>,
    command: RegisterId,
    status: RegisterId,
    power: Option<RegisterId>,
    msi: Option<RegisterId>,
    msix: Option<RegisterId>,
    device_control: Option<u32>,
    device_status: Option<RegisterId>,
}

impl ConfigSpace {
    /// Begins a type 0 header with its registers (PCI Local Bus Specification 3.0,
    /// section 6.1).
    #[must_use]
    pub fn builder(header: Header) -> Builder {
        let fields = vec![
            field("Vendor ID", 0x00, 2, u64::from(header.vendor)),
            field("Device ID", 0x02, 2, u64::from(header.device)),
            // Memory space, bus master, parity response, SERR#, interrupt disable.
            field("Command", COMMAND, 2, 0)
                .writable(command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE | 0x140),
            field("Status", STATUS, 2, STATUS_CAPABILITIES).write_one_to_clear(0xf900),
            field("Revision ID", 0x08, 1, u64::from(header.revision)),
            field("Programming Interface", 0x09, 1, u64::from(header.class & 0xff)),
            field("Class Code", 0x0a, 2, u64::from(header.class >> 8 & 0xffff)),
            field("Cache Line Size", 0x0c, 1, 0).writable(0xff),
            field("Latency Timer", 0x0d, 1, 0),
            field("Header Type", 0x0e, 1, 0),
            field("Subsystem Vendor ID", 0x2c, 2, u64::from(header.subsystem_vendor)),
            field("Subsystem ID", 0x2e, 2, u64::from(header.subsystem)),
            field("Interrupt Line", 0x3c, 1, 0).writable(0xff),
            field("Interrupt Pin", 0x3d, 1, u64::from(header.interrupt_pin)),
        ];
        Builder { fields, capabilities: Vec::new(), extended: Vec::new() }
    }

    /// Reads 1, 2 or 4 bytes, naturally aligned; reserved bytes are zero.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.set.read(offset, data, |_| {}, |_, _| {});
    }

    /// Writes 1, 2 or 4 bytes, naturally aligned, and tells what that asks for.
    pub fn write(&self, offset: u64, data: &[u8]) -> ConfigWrite {
        let mut effect = ConfigWrite::default();
        self.set.write(offset, data, |key, write| {
            if Some(key) == self.device_control && write.written & DEVICE_CONTROL_FLR != 0 {
                effect.function_level_reset = true;
            }
        });
        effect
    }

    /// Puts every field back to its reset value.
    pub fn reset(&self) {
        self.set.reset();
    }

    /// The fields, in ascending order.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        self.set.registers()
    }

    /// The field at exactly this offset.
    #[must_use]
    pub fn find(&self, offset: u32) -> Option<RegisterId> {
        self.set.find(offset)
    }

    /// A field's value.
    #[must_use]
    pub fn get(&self, id: RegisterId) -> u64 {
        self.set.get(id)
    }

    /// Sets bits of a field, as the device does.
    pub fn set_bits(&self, id: RegisterId, bits: u64) {
        self.set.set_bits(id, bits);
    }

    /// How many accesses were illegal.
    #[must_use]
    pub fn illegal_accesses(&self) -> u64 {
        self.set.illegal_accesses()
    }

    /// Whether the function may issue requests: it is a bus master, and in D0.
    #[must_use]
    pub fn may_issue_requests(&self) -> bool {
        self.set.get(self.command) & command::BUS_MASTER != 0
            && self.power_state() == PowerState::On
    }

    /// Whether INTx may not be asserted.
    #[must_use]
    pub fn intx_disabled(&self) -> bool {
        self.set.get(self.command) & command::INTX_DISABLE != 0
    }

    /// Whether the MSI-X capability is enabled.
    #[must_use]
    pub fn msix_enabled(&self) -> bool {
        self.msix.is_some_and(|id| self.set.get(id) & MSIX_ENABLE != 0)
    }

    /// Whether all MSI-X vectors are masked.
    #[must_use]
    pub fn msix_masked(&self) -> bool {
        self.msix.is_some_and(|id| self.set.get(id) & MSIX_MASK_ALL != 0)
    }

    /// Whether the MSI capability is enabled.
    #[must_use]
    pub fn msi_enabled(&self) -> bool {
        self.msi.is_some_and(|id| self.set.get(id) & MSI_ENABLE != 0)
    }

    /// The power state that the power-management capability is set to.
    #[must_use]
    pub fn power_state(&self) -> PowerState {
        match self.power.map_or(0, |id| self.set.get(id) & 0x3) {
            0 => PowerState::On,
            _ => PowerState::Low,
        }
    }

    /// Shows in the Status register whether the function's interrupt line is raised.
    pub fn show_interrupt(&self, raised: bool) {
        if raised {
            self.set.set_bits(self.status, STATUS_INTERRUPT);
        } else {
            self.set.clear_bits(self.status, STATUS_INTERRUPT);
        }
    }

    /// Shows in the Device Status register whether requests that the function made are not
    /// answered yet.
    pub fn show_pending(&self, pending: bool) {
        let Some(id) = self.device_status else { return };
        if pending {
            self.set.set_bits(id, DEVICE_STATUS_PENDING);
        } else {
            self.set.clear_bits(id, DEVICE_STATUS_PENDING);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::capability;

    fn space() -> ConfigSpace {
        ConfigSpace::builder(Header {
            vendor: 0x1234,
            device: 0x5678,
            revision: 9,
            class: 0x08_80_01,
            subsystem_vendor: 0xabcd,
            subsystem: 0xef01,
            interrupt_pin: 1,
        })
        .memory_bar64(0, 16 << 10)
        .capability(capability::msix(0x80, 4, 0, 0x2000, 0x3000))
        .capability(capability::express_integrated_endpoint(0x90))
        .capability(capability::msi(0xd0))
        .capability(capability::power_management(0xe0))
        .extended_capability(capability::advanced_error_reporting(0x100))
        .build()
        .unwrap()
    }

    fn read(space: &ConfigSpace, offset: u64, len: usize) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_header_is_that_of_a_type_0_function() {
        let space = space();
        assert_eq!(read(&space, 0x00, 4), 0x5678_1234);
        assert_eq!(read(&space, 0x04, 4), 0x0010_0000);
        assert_eq!(read(&space, 0x08, 4), 0x0880_0109);
        assert_eq!(read(&space, 0x0e, 1), 0);
        assert_eq!(read(&space, 0x2c, 4), 0xef01_abcd);
        assert_eq!(read(&space, 0x3d, 1), 1);
        assert_eq!(read(&space, 0xffc, 4), 0);
    }

    #[test]
    fn a_bar_tells_its_size_when_all_ones_are_written() {
        let space = space();
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!((read(&space, 0x10, 4), read(&space, 0x14, 4)), (0xffff_c004, 0xffff_ffff));
        space.write(0x10, &0xfebf_8000u32.to_le_bytes());
        assert_eq!(read(&space, 0x10, 4), 0xfebf_8004);
        space.write(0x18, &[0xff; 4]);
        assert_eq!(read(&space, 0x18, 4), 0);
    }

    #[test]
    fn the_capability_lists_end() {
        let space = space();
        let mut at = read(&space, 0x34, 1);
        let mut seen = Vec::new();
        while at != 0 {
            let header = read(&space, at.into(), 2);
            seen.push((header & 0xff, at));
            at = header >> 8;
        }
        assert_eq!(seen, [(0x11, 0x80), (0x10, 0x90), (0x05, 0xd0), (0x01, 0xe0)]);
        assert_eq!(read(&space, 0x100, 4), 0x0001_0001);
    }

    #[test]
    fn the_bits_that_the_function_obeys_are_seen() {
        let space = space();
        assert!(!space.may_issue_requests());
        space.write(0x04, &0xffffu16.to_le_bytes());
        assert_eq!(read(&space, 0x04, 2), 0x0546);
        assert!(space.may_issue_requests() && space.intx_disabled());
        space.write(0xe4, &[3]);
        assert_eq!(space.power_state(), PowerState::Low);
        assert!(!space.may_issue_requests());
        space.write(0x82, &0xc000u16.to_le_bytes());
        assert!(space.msix_enabled() && space.msix_masked());
        assert_eq!(read(&space, 0x82, 2), 0xc003);
        space.write(0xd2, &[1]);
        assert!(space.msi_enabled());
        space.show_interrupt(true);
        assert_eq!(read(&space, 0x06, 2), 0x18);
        space.reset();
        assert_eq!((read(&space, 0x04, 4), read(&space, 0xe4, 2)), (0x0010_0000, 0x0008));
    }

    #[test]
    fn initiating_a_reset_reads_back_as_zero() {
        let space = space();
        let flr = |data: [u8; 2]| space.write(0x98, &data).function_level_reset;
        assert!(!flr([0x00, 0x00]) && flr([0x00, 0x80]));
        assert_eq!(read(&space, 0x98, 2), 0);
        assert!(space.write(0x99, &[0x80]).function_level_reset);
    }
}
