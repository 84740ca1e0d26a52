//! The registers of I/OAT, in BAR0 (Intel Xeon Processor Scalable Family datasheet,
//! volume 2, "Intel QuickData Technology" memory-mapped registers), and those of its
//! configuration space that are not standard.

use crate::mmio::{ReadOnly, ReadWrite, Reg, WriteOnly};

/// CHANCNT: how many channels there are, in bits 4:0.
pub(super) const CHANCNT: Reg<u8, ReadOnly> = Reg::at(0x00);
/// XFERCAP: log2 of the longest transfer of one descriptor in bytes, in bits 4:0.
pub(super) const XFERCAP: Reg<u8, ReadOnly> = Reg::at(0x01);
/// INTRCTRL: see `INTRCTRL_*`.
pub(super) const INTRCTRL: Reg<u8, ReadWrite> = Reg::at(0x03);
/// ATTNSTATUS: a bit for each channel that wants attention; cleared by reading.
pub(super) const ATTNSTATUS: Reg<u32, ReadOnly> = Reg::at(0x04);
/// CBVER: version, major in bits 7:4, minor in 3:0.
pub(super) const CBVER: Reg<u8, ReadOnly> = Reg::at(0x08);
/// DMACAPABILITY: see `CAPABILITY_*`.
pub(super) const DMACAPABILITY: Reg<u32, ReadOnly> = Reg::at(0x10);

/// CHANCNT and XFERCAP: the bits that hold the value.
pub(super) const COUNT_MASK: u8 = 0x1f;
/// INTRCTRL: interrupts are passed on at all.
pub(super) const INTRCTRL_MASTER_ENABLE: u8 = 0x01;
/// INTRCTRL: each channel has an MSI-X vector of its own.
pub(super) const INTRCTRL_MSIX_VECTORS: u8 = 0x08;
/// DMACAPABILITY: block fill.
pub(super) const CAPABILITY_FILL: u32 = 1 << 6;

/// Bytes from one channel's registers to the next, and of the registers before the first.
pub(super) const CHANNEL_STRIDE: u64 = 0x80;

/// The registers of one channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct ChannelRegs {
    /// CHANCTRL: see `CONTROL_*`.
    pub(super) control: Reg<u16, ReadWrite>,
    /// CHANCMD: see `COMMAND_*`; reads as set until done.
    pub(super) command: Reg<u8, ReadWrite>,
    /// DMACOUNT, the doorbell: descriptors made valid since the chain began, modulo 2^16.
    pub(super) count: Reg<u16, WriteOnly>,
    /// CHANSTS: state in bits 2:0 ([`State`]), address of the last descriptor done in 63:6.
    pub(super) status: Reg<u64, ReadOnly>,
    /// CHAINADDR: where the first descriptor lies; writing it arms the channel.
    pub(super) chain: Reg<u64, WriteOnly>,
    /// CHANCMP: where the completion word lies.
    pub(super) completion: Reg<u64, WriteOnly>,
    /// CHANERR: why the channel halted; write one to clear.
    pub(super) error: Reg<u32, ReadWrite>,
}

impl ChannelRegs {
    pub(super) const fn of(channel: u8) -> ChannelRegs {
        let base = CHANNEL_STRIDE * (channel as u64 + 1);
        ChannelRegs {
            control: Reg::at(base),
            command: Reg::at(base + 0x04),
            count: Reg::at(base + 0x06),
            status: Reg::at(base + 0x08),
            chain: Reg::at(base + 0x10),
            completion: Reg::at(base + 0x18),
            error: Reg::at(base + 0x28),
        }
    }
}

/// CHANCTRL: lets the next interrupt pass.
pub(super) const CONTROL_REARM: u16 = 1 << 0;
/// CHANCTRL: write the completion word on an error too.
pub(super) const CONTROL_COMPLETION_ON_ERROR: u16 = 1 << 2;
/// CHANCTRL: halt on any error.
pub(super) const CONTROL_ABORT_ON_ERROR: u16 = 1 << 3;
/// CHANCTRL: interrupt on an error.
pub(super) const CONTROL_ERROR_INTERRUPT: u16 = 1 << 4;
/// CHANCMD: finish the descriptor in hand and stop.
pub(super) const COMMAND_SUSPEND: u8 = 0x04;
/// CHANCMD: forget everything.
pub(super) const COMMAND_RESET: u8 = 0x20;

/// CHANERR_INT, configuration space: a mirror of CHANERR; write one to clear.
pub(super) const CONFIG_CHANERR_INT: u16 = 0x180;

/// What a channel does: bits 2:0 of CHANSTS and of the completion word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Active,
    Idle,
    Suspended,
    Halted,
    Armed,
    /// A value that is not defined.
    Other,
}

impl State {
    pub(super) const fn of(status: u64) -> State {
        match status & 0x7 {
            0 => State::Active,
            1 => State::Idle,
            2 => State::Suspended,
            3 => State::Halted,
            4 => State::Armed,
            _ => State::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_those_of_the_datasheet() {
        let bytes = [CHANCNT.offset(), XFERCAP.offset(), INTRCTRL.offset(), CBVER.offset()];
        assert_eq!(bytes, [0x00, 0x01, 0x03, 0x08]);
        assert_eq!([ATTNSTATUS.offset(), DMACAPABILITY.offset()], [0x04, 0x10]);
        for (channel, base) in [(0, 0x80), (1, 0x100), (7, 0x400)] {
            let regs = ChannelRegs::of(channel);
            let offsets = [
                regs.control.offset(),
                regs.command.offset(),
                regs.count.offset(),
                regs.status.offset(),
                regs.chain.offset(),
                regs.completion.offset(),
                regs.error.offset(),
            ];
            let within = [0x00, 0x04, 0x06, 0x08, 0x10, 0x18, 0x28];
            assert_eq!(offsets, within.map(|offset| base + offset));
        }
        assert_eq!(CONFIG_CHANERR_INT, 0x180);
    }

    #[test]
    fn bits_are_those_of_the_datasheet() {
        assert_eq!([COMMAND_SUSPEND, COMMAND_RESET], [0x04, 0x20]);
        let control = [
            CONTROL_REARM,
            CONTROL_COMPLETION_ON_ERROR,
            CONTROL_ABORT_ON_ERROR,
            CONTROL_ERROR_INTERRUPT,
        ];
        assert_eq!(control, [0x01, 0x04, 0x08, 0x10]);
        assert_eq!(CAPABILITY_FILL, 0x40);
        let states = [0, 1, 2, 3, 4, 5].map(State::of);
        use State::{Active, Armed, Halted, Idle, Other, Suspended};
        assert_eq!(states, [Active, Idle, Suspended, Halted, Armed, Other]);
    }
}
