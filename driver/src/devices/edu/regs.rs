//! The registers of edu, in BAR0 (QEMU `docs/specs/edu.rst`, "MMIO area spec").
//!
//! Below 0x80 only 32-bit accesses are answered, from 0x80 on 32 and 64-bit ones.

use crate::mmio::{ReadOnly, ReadWrite, Reg, WriteOnly};

/// Size of BAR0 in bytes.
pub(super) const BAR_SIZE: u64 = 1 << 20;

/// Identification: `0xRRrr00ed`, major and minor version in the upper bytes.
pub(super) const ID: Reg<u32, ReadOnly> = Reg::at(0x00);
/// Liveness check: reads as the complement of what was written.
pub(super) const LIVENESS: Reg<u32, ReadWrite> = Reg::at(0x04);
/// Factorial: a number is written, its factorial modulo 2^32 is read.
pub(super) const FACTORIAL: Reg<u32, ReadWrite> = Reg::at(0x08);
/// Status: see `STATUS_*`.
pub(super) const STATUS: Reg<u32, ReadWrite> = Reg::at(0x20);
/// Causes of interrupts that were raised and not acknowledged: see `IRQ_*`.
pub(super) const IRQ_STATUS: Reg<u32, ReadOnly> = Reg::at(0x24);
/// Raises an interrupt with the causes written.
pub(super) const IRQ_RAISE: Reg<u32, WriteOnly> = Reg::at(0x60);
/// Acknowledges the causes written.
pub(super) const IRQ_ACK: Reg<u32, WriteOnly> = Reg::at(0x64);
/// DMA source address, on the bus or in the device.
pub(super) const DMA_SOURCE: Reg<u64, ReadWrite> = Reg::at(0x80);
/// DMA destination address, in the device or on the bus.
pub(super) const DMA_DESTINATION: Reg<u64, ReadWrite> = Reg::at(0x88);
/// DMA length in bytes.
pub(super) const DMA_COUNT: Reg<u64, ReadWrite> = Reg::at(0x90);
/// DMA command: see `COMMAND_*`. Writes to all four are dropped while a transfer runs.
pub(super) const DMA_COMMAND: Reg<u64, ReadWrite> = Reg::at(0x98);

/// Low half of [`ID`], under any version.
pub(super) const ID_LOW: u32 = 0x00ed;
/// A factorial is being computed.
pub(super) const STATUS_COMPUTING: u32 = 0x01;
/// Raise [`IRQ_FACTORIAL`] when the factorial is done.
pub(super) const STATUS_IRQ_FACTORIAL: u32 = 0x80;
/// Cause: a factorial is done.
pub(super) const IRQ_FACTORIAL: u32 = 0x001;
/// Cause: a transfer is done.
pub(super) const IRQ_DMA: u32 = 0x100;
/// Start a transfer; reads as set while it runs.
pub(super) const COMMAND_RUN: u64 = 0x01;
/// Direction: set for device to memory.
pub(super) const COMMAND_TO_MEMORY: u64 = 0x02;
/// Raise [`IRQ_DMA`] when the transfer is done.
pub(super) const COMMAND_IRQ: u64 = 0x04;

/// Address of the device's own buffer, as its DMA engine sees it.
pub(super) const DEVICE_BUFFER: u64 = 0x4_0000;
/// Size of the device's own buffer in bytes.
pub(super) const DEVICE_BUFFER_LEN: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_those_of_the_specification() {
        let narrow = [ID.offset(), LIVENESS.offset(), FACTORIAL.offset(), STATUS.offset()];
        assert_eq!(narrow, [0x00, 0x04, 0x08, 0x20]);
        let irq = [IRQ_STATUS.offset(), IRQ_RAISE.offset(), IRQ_ACK.offset()];
        assert_eq!(irq, [0x24, 0x60, 0x64]);
        let dma = [
            DMA_SOURCE.offset(),
            DMA_DESTINATION.offset(),
            DMA_COUNT.offset(),
            DMA_COMMAND.offset(),
        ];
        assert_eq!(dma, [0x80, 0x88, 0x90, 0x98]);
    }
}
