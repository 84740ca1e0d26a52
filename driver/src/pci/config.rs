//! Configuration space: the standard registers and typed access to them.
//!
//! Names and offsets follow `include/uapi/linux/pci_regs.h`; the registers are defined in
//! PCI Local Bus 3.0, section 6.1 (the predefined header) and 6.2 (command and status).

use bitflags::bitflags;

use super::error::{PciError, Result};
use super::{ClassCode, ConfigAccess, ConfigWrite};

/// Offsets of the predefined header, in bytes from the start of configuration space.
pub mod reg {
    /// Vendor id: 16 bits.
    pub const VENDOR_ID: u16 = 0x00;
    /// Device id: 16 bits.
    pub const DEVICE_ID: u16 = 0x02;
    /// Command: 16 bits, see [`Command`](super::Command).
    pub const COMMAND: u16 = 0x04;
    /// Status: 16 bits, see [`Status`](super::Status).
    pub const STATUS: u16 = 0x06;
    /// Revision id: 8 bits; the low byte of the 32-bit register that holds the class code.
    pub const REVISION_ID: u16 = 0x08;
    /// Class code: 24 bits, programming interface first.
    pub const CLASS_CODE: u16 = 0x09;
    /// Cache line size: 8 bits, in units of 4 bytes.
    pub const CACHE_LINE_SIZE: u16 = 0x0c;
    /// Header type: 8 bits; bits 6:0 layout (0 endpoint, 1 PCI bridge, 2 CardBus bridge),
    /// bit 7 multi-function.
    pub const HEADER_TYPE: u16 = 0x0e;
    /// First of six base address registers: 32 bits each.
    pub const BAR0: u16 = 0x10;
    /// Subsystem vendor id (header type 0): 16 bits.
    pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
    /// Subsystem id (header type 0): 16 bits.
    pub const SUBSYSTEM_ID: u16 = 0x2e;
    /// Expansion ROM base address (header type 0): 32 bits.
    pub const ROM_ADDRESS: u16 = 0x30;
    /// Pointer to the first capability (header types 0 and 1): 8 bits, the low 2 reserved.
    pub const CAPABILITY_LIST: u16 = 0x34;
    /// Pointer to the first capability in a CardBus bridge's header.
    pub const CARDBUS_CAPABILITY_LIST: u16 = 0x14;
    /// Interrupt line: 8 bits, for software only.
    pub const INTERRUPT_LINE: u16 = 0x3c;
    /// Interrupt pin: 8 bits; 0 none, 1 to 4 INTA to INTD.
    pub const INTERRUPT_PIN: u16 = 0x3d;
    /// Where device-specific registers and capabilities begin.
    pub const HEADER_END: u16 = 0x40;
}

/// Size of conventional configuration space in bytes.
pub const CONVENTIONAL_SIZE: u16 = 0x100;
/// Size of PCI Express configuration space in bytes (PCIe Base, section 7.2.2).
pub const EXPRESS_SIZE: u16 = 0x1000;

bitflags! {
    /// The command register (PCI Local Bus 3.0, section 6.2.2).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Command: u16 {
        /// Responds to I/O space accesses.
        const IO_SPACE = 1 << 0;
        /// Responds to memory space accesses.
        const MEMORY_SPACE = 1 << 1;
        /// May start accesses of its own: DMA and MSI.
        const BUS_MASTER = 1 << 2;
        /// Reports parity errors.
        const PARITY_ERROR_RESPONSE = 1 << 6;
        /// May drive SERR#.
        const SERR_ENABLE = 1 << 8;
        /// Must not assert INTx.
        const INTERRUPT_DISABLE = 1 << 10;
    }

    /// The status register (PCI Local Bus 3.0, section 6.2.3); error bits are cleared by
    /// writing one.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Status: u16 {
        /// INTx is asserted inside the device, whether or not it is disabled.
        const INTERRUPT = 1 << 3;
        /// There is a capability list.
        const CAPABILITY_LIST = 1 << 4;
        /// A completion or write with bad parity reached the device.
        const MASTER_DATA_PARITY_ERROR = 1 << 8;
        /// The device ended an access to it with an abort.
        const SIGNALED_TARGET_ABORT = 1 << 11;
        /// An access of the device ended with an abort of its target.
        const RECEIVED_TARGET_ABORT = 1 << 12;
        /// An access of the device was answered by no one.
        const RECEIVED_MASTER_ABORT = 1 << 13;
        /// The device drove SERR#.
        const SIGNALED_SYSTEM_ERROR = 1 << 14;
        /// Bad parity was seen.
        const DETECTED_PARITY_ERROR = 1 << 15;
    }
}

/// The configuration space of one function.
///
/// A read-modify-write is not atomic: one owner at a time changes registers.
#[derive(Debug, Clone)]
pub struct ConfigSpace<A> {
    access: A,
}

impl<A: ConfigAccess> ConfigSpace<A> {
    /// A view of the configuration space behind `access`.
    pub fn new(access: A) -> Self {
        ConfigSpace { access }
    }

    /// What it is read from.
    pub fn access(&self) -> &A {
        &self.access
    }

    /// Size in bytes, at most 4096.
    ///
    /// # Errors
    ///
    /// Fails when the holder cannot tell.
    pub fn size(&self) -> Result<u16> {
        let size = self.access.size()?;
        Ok(u16::try_from(size).map_or(EXPRESS_SIZE, |size| size.min(EXPRESS_SIZE)))
    }

    /// Reads 8 bits.
    ///
    /// # Errors
    ///
    /// Fails when the access fails, as do all readers and writers of this type.
    pub fn read_u8(&self, offset: u16) -> Result<u8> {
        let mut data = [0; 1];
        self.access.read(offset, &mut data)?;
        Ok(data[0])
    }

    /// Reads 16 bits.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn read_u16(&self, offset: u16) -> Result<u16> {
        let mut data = [0; 2];
        self.access.read(offset, &mut data)?;
        Ok(u16::from_le_bytes(data))
    }

    /// Reads 32 bits.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn read_u32(&self, offset: u16) -> Result<u32> {
        let mut data = [0; 4];
        self.access.read(offset, &mut data)?;
        Ok(u32::from_le_bytes(data))
    }

    /// Fails when the device does not answer.
    ///
    /// # Errors
    ///
    /// [`PciError::Gone`] when the ids and the command and status registers read all ones,
    /// which a root complex returns for a function that is not there (PCI Local Bus 3.0,
    /// section 6.1). The ids alone say nothing: those of a virtual function always read so
    /// (Single Root I/O Virtualization 1.1, section 3.4.1.1), its status never does.
    pub fn check_present(&self) -> Result<()> {
        match (self.read_u32(reg::VENDOR_ID)?, self.read_u32(reg::COMMAND)?) {
            (value @ u32::MAX, u32::MAX) => Err(PciError::Gone { value }),
            _ => Ok(()),
        }
    }

    /// The vendor id.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn vendor_id(&self) -> Result<u16> {
        self.read_u16(reg::VENDOR_ID)
    }

    /// The device id.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn device_id(&self) -> Result<u16> {
        self.read_u16(reg::DEVICE_ID)
    }

    /// The revision id.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn revision_id(&self) -> Result<u8> {
        self.read_u8(reg::REVISION_ID)
    }

    /// The class code.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn class(&self) -> Result<ClassCode> {
        Ok(ClassCode::from_code(self.read_u32(reg::REVISION_ID)? >> 8))
    }

    /// The layout of the header: 0 endpoint, 1 PCI bridge, 2 CardBus bridge.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn header_layout(&self) -> Result<u8> {
        Ok(self.read_u8(reg::HEADER_TYPE)? & 0x7f)
    }

    /// The command register.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn command(&self) -> Result<Command> {
        Ok(Command::from_bits_retain(self.read_u16(reg::COMMAND)?))
    }

    /// The status register.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn status(&self) -> Result<Status> {
        Ok(Status::from_bits_retain(self.read_u16(reg::STATUS)?))
    }

    /// Whether the device may do DMA and send MSIs.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn bus_master(&self) -> Result<bool> {
        Ok(self.command()?.contains(Command::BUS_MASTER))
    }

    /// Whether the device is kept from asserting INTx.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn interrupt_disabled(&self) -> Result<bool> {
        Ok(self.command()?.contains(Command::INTERRUPT_DISABLE))
    }
}

impl<A: ConfigWrite> ConfigSpace<A> {
    /// Writes 8 bits.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn write_u8(&self, offset: u16, value: u8) -> Result<()> {
        Ok(self.access.write(offset, &[value])?)
    }

    /// Writes 16 bits.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn write_u16(&self, offset: u16, value: u16) -> Result<()> {
        Ok(self.access.write(offset, &value.to_le_bytes())?)
    }

    /// Writes 32 bits.
    ///
    /// # Errors
    ///
    /// Fails when the access fails.
    pub fn write_u32(&self, offset: u16, value: u32) -> Result<()> {
        Ok(self.access.write(offset, &value.to_le_bytes())?)
    }

    /// Allows or forbids DMA and MSIs.
    ///
    /// # Errors
    ///
    /// Fails when the access fails, when the device does not answer, and when the bit reads
    /// back differently.
    pub fn set_bus_master(&self, on: bool) -> Result<()> {
        self.set_command(Command::BUS_MASTER, on)
    }

    /// Keeps the device from asserting INTx, or lets it.
    ///
    /// # Errors
    ///
    /// As [`ConfigSpace::set_bus_master`].
    pub fn set_interrupt_disable(&self, disable: bool) -> Result<()> {
        self.set_command(Command::INTERRUPT_DISABLE, disable)
    }

    pub(crate) fn set_command(&self, bits: Command, on: bool) -> Result<()> {
        self.set_command_keeping(bits, on, Command::empty())
    }

    /// Changes bits of the command register, and writes `set` as set.
    pub(crate) fn set_command_keeping(&self, bits: Command, on: bool, set: Command) -> Result<()> {
        self.check_present()?;
        let mut wrote = self.command()?.union(set);
        wrote.set(bits, on);
        self.write_u16(reg::COMMAND, wrote.bits())?;
        let read = self.command()?;
        if read.intersection(bits) == wrote.intersection(bits) {
            return Ok(());
        }
        Err(PciError::NotKept {
            register: "command register",
            offset: reg::COMMAND,
            wrote: wrote.bits(),
            read: read.bits(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::pci::AccessError;

    /// Configuration space whose command register keeps only the bits of a mask.
    struct Masked<'a> {
        bytes: &'a [Cell<u8>],
        command_mask: u16,
    }

    impl ConfigAccess for Masked<'_> {
        fn size(&self) -> std::result::Result<u64, AccessError> {
            self.bytes.size()
        }

        fn read(&self, offset: u16, data: &mut [u8]) -> std::result::Result<(), AccessError> {
            self.bytes.read(offset, data)
        }
    }

    impl ConfigWrite for Masked<'_> {
        fn write(&self, offset: u16, data: &[u8]) -> std::result::Result<(), AccessError> {
            assert_eq!((offset, data.len()), (reg::COMMAND, 2), "only the command register");
            let value = u16::from_le_bytes([data[0], data[1]]) & self.command_mask;
            self.bytes.write(offset, &value.to_le_bytes())
        }
    }

    fn header() -> [u8; 64] {
        let mut bytes = [0; 64];
        bytes[0x00..0x10].copy_from_slice(&[
            0x86, 0x80, 0x21, 0x20, 0x03, 0x01, 0x10, 0x00, 0x07, 0x00, 0x80, 0x08, 0x10, 0x00,
            0x80, 0x00,
        ]);
        bytes
    }

    #[test]
    fn standard_registers_are_decoded() {
        let mut bytes = header();
        let config = ConfigSpace::new(Cell::from_mut(&mut bytes[..]).as_slice_of_cells());
        assert_eq!(config.vendor_id().unwrap(), 0x8086);
        assert_eq!(config.device_id().unwrap(), 0x2021);
        assert_eq!(config.revision_id().unwrap(), 7);
        assert_eq!(config.class().unwrap().code(), 0x08_8000);
        assert_eq!(config.header_layout().unwrap(), 0);
        assert_eq!(
            config.command().unwrap(),
            Command::IO_SPACE | Command::MEMORY_SPACE | Command::SERR_ENABLE
        );
        assert_eq!(config.status().unwrap(), Status::CAPABILITY_LIST);
        assert_eq!(config.size().unwrap(), 64);
        config.check_present().unwrap();
    }

    #[test]
    fn command_bits_change_alone() {
        let mut bytes = header();
        let config = ConfigSpace::new(Cell::from_mut(&mut bytes[..]).as_slice_of_cells());
        config.set_bus_master(true).unwrap();
        assert!(config.bus_master().unwrap());
        assert_eq!(config.read_u16(reg::COMMAND).unwrap(), 0x0107);
        config.set_interrupt_disable(true).unwrap();
        assert_eq!(config.read_u16(reg::COMMAND).unwrap(), 0x0507);
        config.set_bus_master(false).unwrap();
        assert!(!config.bus_master().unwrap() && config.interrupt_disabled().unwrap());
        assert_eq!(config.read_u16(reg::COMMAND).unwrap(), 0x0503);
    }

    #[test]
    fn a_bit_that_does_not_stick_is_an_error() {
        let mut bytes = header();
        let bytes = Cell::from_mut(&mut bytes[..]).as_slice_of_cells();
        let config = ConfigSpace::new(Masked { bytes, command_mask: !0x4 });
        match config.set_bus_master(true) {
            Err(PciError::NotKept { wrote: 0x0107, read: 0x0103, .. }) => {}
            other => panic!("{other:?}"),
        }
        config.set_bus_master(false).unwrap();
    }

    #[test]
    fn a_virtual_function_is_there_though_its_ids_are_all_ones() {
        let mut bytes = header();
        bytes[..4].fill(0xff);
        let config = ConfigSpace::new(&bytes[..]);
        config.check_present().unwrap();
    }

    #[test]
    fn a_device_that_is_gone_is_told_apart() {
        let mut bytes = [0xff; 64];
        let config = ConfigSpace::new(Cell::from_mut(&mut bytes[..]).as_slice_of_cells());
        assert!(matches!(config.check_present(), Err(PciError::Gone { .. })));
        assert!(matches!(config.set_bus_master(true), Err(PciError::Gone { .. })));
    }
}
