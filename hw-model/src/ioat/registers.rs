//! The register tables of an I/OAT function.
//!
//! Sources: the "Intel QuickData Technology" register chapters of the Xeon E5 v2 and Xeon
//! Scalable datasheets, volume 2, and what the public drivers use. Offsets of channel
//! registers are relative to 0x80 x (channel + 1).

use bitflags::bitflags;

use super::config::{IoatConfig, Personality};
use crate::pci::capability;
use crate::pci::msix::{self, Part};
use crate::pci::{ConfigSpace, Field, Header};
use crate::regs::{Holes, LayoutError, Register, RegisterId, RegisterSet};

/// Size of BAR0 in bytes.
pub(super) const BAR_SIZE: u64 = 16 << 10;
/// Offset of the MSI-X table in BAR0.
pub(super) const MSIX_TABLE: u32 = 0x2000;
/// Offset of the MSI-X pending bits in BAR0.
pub(super) const MSIX_PENDING: u32 = 0x3000;
/// Distance between the register blocks of channels; the first is one distance from the
/// start of the BAR.
pub(super) const CHANNEL_STRIDE: u32 = 0x80;

bitflags! {
    /// CHANERR, and its mirror CHANERR_INT: why a channel halted.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct ChannelError: u32 {
        /// The source address cannot be put on the bus.
        const SOURCE_ADDRESS = 1 << 0;
        /// The destination address cannot be put on the bus.
        const DESTINATION_ADDRESS = 1 << 1;
        /// The next descriptor's address cannot be put on the bus.
        const NEXT_ADDRESS = 1 << 2;
        /// The next descriptor's address is not a multiple of 64.
        const DESCRIPTOR_ALIGNMENT = 1 << 3;
        /// CHAINADDR is not a multiple of 64, or cannot be put on the bus.
        const CHAIN_ADDRESS = 1 << 4;
        /// CHANCMD was written with something that is not one command.
        const COMMAND = 1 << 5;
        /// Chipset data integrity.
        const CHIPSET_INTEGRITY = 1 << 6;
        /// DMA data integrity.
        const DMA_INTEGRITY = 1 << 7;
        /// A read was refused: of data, or of a descriptor.
        const READ_DATA = 1 << 8;
        /// A write was refused: of data, or of a completion.
        const WRITE_DATA = 1 << 9;
        /// The control word asks for what the device does not do.
        const DESCRIPTOR_CONTROL = 1 << 10;
        /// The size is 0 or more than the transfer capacity.
        const DESCRIPTOR_LENGTH = 1 << 11;
        /// CHANCMP is not a multiple of 8, or cannot be put on the bus.
        const COMPLETION_ADDRESS = 1 << 12;
        /// Interrupt configuration.
        const INTERRUPT_CONFIGURATION = 1 << 13;
        /// Soft error.
        const SOFT = 1 << 14;
        /// An error that belongs to no descriptor.
        const UNAFFILIATED = 1 << 15;
        /// CRC or XOR (P).
        const XOR_P_OR_CRC = 1 << 16;
        /// XOR (Q).
        const XOR_Q = 1 << 17;
        /// Descriptor count.
        const DESCRIPTOR_COUNT = 1 << 18;
    }
}

/// All bits of CHANERR that exist.
const ERRORS: u64 = ChannelError::all().bits() as u64;

/// CHANCTRL: after an interrupt this reads as one, and no other follows until software
/// writes one to it (rearms it).
pub(super) const CHANCTRL_INTERRUPT_DISABLED: u64 = 1 << 0;
/// CHANCTRL: write the completion word on an error too.
pub(super) const CHANCTRL_ERROR_COMPLETION: u64 = 1 << 2;
/// CHANCTRL: interrupt on an error too.
pub(super) const CHANCTRL_ERROR_INTERRUPT: u64 = 1 << 4;
/// CHANCMD: suspend.
pub(super) const CHANCMD_SUSPEND: u64 = 0x04;
/// CHANCMD: reset.
pub(super) const CHANCMD_RESET: u64 = 0x20;
/// CHANSTS: unaffiliated error.
pub(super) const CHANSTS_UNAFFILIATED: u64 = 1 << 3;
/// CHANSTS: soft error.
pub(super) const CHANSTS_SOFT: u64 = 1 << 4;
/// INTRCTRL: MSI and INTx may be raised (MSI-X does not look at it).
pub(super) const INTRCTRL_ENABLE: u64 = 1 << 0;
/// INTRCTRL: a bit of ATTNSTATUS is set.
pub(super) const INTRCTRL_STATUS: u64 = 1 << 1;
/// INTRCTRL: status and enable.
pub(super) const INTRCTRL_INTERRUPT: u64 = 1 << 2;
/// INTRDELAY: the time in microseconds.
pub(super) const INTRDELAY_TIME: u64 = 0x3fff;
/// INTRDELAY: coalescing is supported.
const INTRDELAY_SUPPORTED: u64 = 1 << 15;
/// DMACAPABILITY: block fill.
const CAPABILITY_FILL: u64 = 1 << 6;
/// DMACAPABILITY: descriptors are fetched ahead.
const CAPABILITY_PREFETCH: u64 = 1 << 23;

/// A register of BAR0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reg {
    InterruptControl,
    AttentionStatus,
    InterruptDelay,
    /// One that needs no code of its own, by its offset.
    Plain(u32),
    Channel(u8, ChannelReg),
    MsiX(Part, u8),
}

/// A register of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChannelReg {
    Control,
    Command,
    Count,
    Status,
    ChainAddress,
    CompletionAddress,
    Error,
    ErrorMask,
}

/// The registers of BAR0.
pub(super) fn bar0(config: &IoatConfig) -> Result<RegisterSet<Reg>, LayoutError> {
    let plain =
        |name, offset, bytes, reset| Register::new(Reg::Plain(offset), name, offset, bytes, reset);
    let icelake = config.personality == Personality::IceLake;
    let capability = CAPABILITY_FILL | if icelake { CAPABILITY_PREFETCH } else { 0 };
    let mut registers = vec![
        plain("CHANCNT", 0x00, 1, config.channels.into()),
        plain("XFERCAP", 0x01, 1, config.transfer_capacity.into()),
        plain("GENCTRL", 0x02, 1, 0).writable(1),
        Register::new(Reg::InterruptControl, "INTRCTRL", 0x03, 1, 0).writable(0x9),
        Register::new(Reg::AttentionStatus, "ATTNSTATUS", 0x04, 4, 0).clear_on_read(0xffff_ffff),
        plain("CBVER", 0x08, 1, config.personality.version().into()),
        plain("PERPORTOFFSET", 0x0a, 2, 0),
        Register::new(Reg::InterruptDelay, "INTRDELAY", 0x0c, 2, INTRDELAY_SUPPORTED)
            .writable(INTRDELAY_TIME),
        plain("CS_STATUS", 0x0e, 2, 0),
        plain("DMACAPABILITY", 0x10, 4, capability),
        plain("DCAOFFSET", 0x14, 2, 0),
    ];
    if icelake {
        registers.push(plain("PREFETCH_LIMIT", 0x4c, 1, 0).writable(0xff));
    }
    for channel in 0..config.channels {
        registers.extend(channel_registers(channel));
        if icelake {
            // Descriptor ring size and latency tolerance: stored, without effect here. Their
            // offsets, from 0xb6 on, reach into the next channel's block.
            let at = CHANNEL_STRIDE * (u32::from(channel) + 1);
            registers.extend([
                plain("DRSCTL", at + 0xb6, 2, 0).writable(0xffff),
                plain("LTR_SWSEL", at + 0xbc, 1, 0).writable(0xff),
                plain("LTR_ACTIVE", at + 0xc0, 4, 0).writable(0xffff_ffff),
                plain("LTR_IDLE", at + 0xc4, 4, 0).writable(0xffff_ffff),
            ]);
        }
    }
    registers.extend(msix::registers(config.channels, MSIX_TABLE, MSIX_PENDING, Reg::MsiX));
    RegisterSet::new("BAR0", BAR_SIZE, 8, Holes::Illegal, registers)
}

fn channel_registers(channel: u8) -> [Register<Reg>; 10] {
    use ChannelReg::{
        ChainAddress, Command, CompletionAddress, Control, Count, Error, ErrorMask, Status,
    };
    let base = CHANNEL_STRIDE * (u32::from(channel) + 1);
    let reg = |key, name, offset, bytes, reset| {
        Register::new(Reg::Channel(channel, key), name, base + offset, bytes, reset)
    };
    let plain = |name, offset, bytes, reset| {
        Register::new(Reg::Plain(base + offset), name, base + offset, bytes, reset)
    };
    /// Compatible with versions 2 and 3.
    const COMPATIBLE: u64 = 0x6;
    [
        // Priority, completion to a cache, in use, snoop, and the three conditions.
        reg(Control, "CHANCTRL", 0x00, 2, 0)
            .writable(0xf33c)
            .write_one_to_clear(CHANCTRL_INTERRUPT_DISABLED),
        plain("DMA_COMP", 0x02, 2, COMPATIBLE),
        reg(Command, "CHANCMD", 0x04, 1, 0).command(),
        reg(Count, "DMACOUNT", 0x06, 2, 0).writable(0xffff),
        // Halted until the first chain address.
        reg(Status, "CHANSTS", 0x08, 8, 3),
        reg(ChainAddress, "CHAINADDR", 0x10, 8, 0).writable(u64::MAX),
        reg(CompletionAddress, "CHANCMP", 0x18, 8, 0).writable(u64::MAX),
        reg(Error, "CHANERR", 0x28, 4, 0).write_one_to_clear(ERRORS),
        reg(ErrorMask, "CHANERRMSK", 0x2c, 4, 0).writable(ERRORS),
        plain("DCACTRL", 0x30, 4, 0).writable(0xffff_ffff),
    ]
}

/// Where a channel's registers are.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChannelIds {
    pub(super) control: RegisterId,
    pub(super) command: RegisterId,
    pub(super) count: RegisterId,
    pub(super) status: RegisterId,
    pub(super) completion: RegisterId,
    pub(super) error: RegisterId,
    pub(super) error_mask: RegisterId,
}

impl ChannelIds {
    pub(super) fn of(bar: &RegisterSet<Reg>, channel: u8) -> Option<ChannelIds> {
        let find = |key| bar.find(Reg::Channel(channel, key));
        Some(ChannelIds {
            control: find(ChannelReg::Control)?,
            command: find(ChannelReg::Command)?,
            count: find(ChannelReg::Count)?,
            status: find(ChannelReg::Status)?,
            completion: find(ChannelReg::CompletionAddress)?,
            error: find(ChannelReg::Error)?,
            error_mask: find(ChannelReg::ErrorMask)?,
        })
    }
}

/// Where the registers of the whole function are.
#[derive(Debug, Clone, Copy)]
pub(super) struct FunctionIds {
    pub(super) interrupt_control: RegisterId,
    pub(super) attention: RegisterId,
    pub(super) delay: RegisterId,
    pub(super) pending: RegisterId,
    pub(super) chanerr_int: RegisterId,
    pub(super) chanerrmsk_int: RegisterId,
}

impl FunctionIds {
    pub(super) fn of(bar: &RegisterSet<Reg>, pci: &ConfigSpace) -> Option<FunctionIds> {
        Some(FunctionIds {
            interrupt_control: bar.find(Reg::InterruptControl)?,
            attention: bar.find(Reg::AttentionStatus)?,
            delay: bar.find(Reg::InterruptDelay)?,
            pending: bar.find(Reg::MsiX(Part::Pending, 0))?,
            chanerr_int: pci.find(CHANERR_INT)?,
            chanerrmsk_int: pci.find(CHANERRMSK_INT)?,
        })
    }
}

const DMAUNCERRSTS: u32 = 0x148;
const CHANERR_INT: u32 = 0x180;
const CHANERRMSK_INT: u32 = 0x184;

/// Configuration space. The capabilities lie where they do on the real function, which has
/// no MSI: that takes the room between PCI Express and power management.
pub(super) fn config_space(config: &IoatConfig) -> Result<ConfigSpace, LayoutError> {
    let plain = |name, offset, reset| Field::new(offset, name, offset, 4, reset);
    ConfigSpace::builder(Header {
        vendor: 0x8086,
        device: config.personality.device_id(),
        revision: 0x04,
        class: 0x08_80_00,
        subsystem_vendor: 0x8086,
        subsystem: 0x0000,
        interrupt_pin: 1,
    })
    .memory_bar64(0, BAR_SIZE)
    .capability(capability::msix(0x80, config.channels.into(), 0, MSIX_TABLE, MSIX_PENDING))
    .capability(capability::express_integrated_endpoint(0x90))
    .capability(capability::msi(0xd0))
    .capability(capability::power_management(0xe0))
    .extended_capability(capability::advanced_error_reporting(0x100))
    .fields([
        // Poisoned data, parity, completion header, address decode, syndrome.
        plain("DMAUNCERRSTS", DMAUNCERRSTS, 0).write_one_to_clear(0x149c),
        plain("CHANERR_INT", CHANERR_INT, 0).write_one_to_clear(ERRORS),
        plain("CHANERRMSK_INT", CHANERRMSK_INT, 0).writable(ERRORS),
    ])
    .build()
}
