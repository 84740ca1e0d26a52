//! Registers of configuration space (PCI Local Bus 3.0, chapter 6; names as in
//! `include/uapi/linux/pci_regs.h`).

/// Offset of the vendor id, 16 bits.
pub const VENDOR_ID: u16 = 0x00;
/// Offset of the device id, 16 bits.
pub const DEVICE_ID: u16 = 0x02;
/// Offset of the command register, 16 bits.
pub const COMMAND: u16 = 0x04;
/// Offset of the status register, 16 bits.
pub const STATUS: u16 = 0x06;
/// Offset of the capability list's first pointer, 8 bits.
pub const CAPABILITY_LIST: u16 = 0x34;

/// Command register, bit 1: the function answers in memory space.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register, bit 2: the function may start DMA and send MSIs.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Status register, bit 4: there is a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
