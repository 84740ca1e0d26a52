//! The descriptor: 64 bytes, little endian, in host memory.

use bitflags::bitflags;

use super::registers::ChannelError;

/// Size of a descriptor in bytes, and its alignment.
pub(super) const SIZE: usize = 64;
/// Offset of the address of the next descriptor.
pub(super) const NEXT: u64 = 24;

bitflags! {
    /// The control word without the operation.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Control: u32 {
        const INTERRUPT = 1 << 0;
        const SOURCE_SNOOP_OFF = 1 << 1;
        const DESTINATION_SNOOP_OFF = 1 << 2;
        const COMPLETION = 1 << 3;
        const FENCE = 1 << 4;
        const NULL = 1 << 5;
        const SOURCE_PAGE_BREAK = 1 << 6;
        const DESTINATION_PAGE_BREAK = 1 << 7;
        const BUNDLE = 1 << 8;
        const DESTINATION_DCA = 1 << 9;
        const HINT = 1 << 10;
    }
}

/// What a descriptor does with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Null,
    Copy { source: u64, destination: u64, size: u32 },
    Fill { pattern: u64, destination: u64, size: u32 },
}

/// A descriptor as it was fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    size: u32,
    control: u32,
    source: u64,
    destination: u64,
    pub(super) next: u64,
}

impl Descriptor {
    /// Takes a descriptor apart. Bytes 32 to 63 are software's.
    pub(super) fn parse(bytes: &[u8; SIZE]) -> Descriptor {
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let first = word(0);
        Descriptor {
            size: first as u32,
            control: (first >> 32) as u32,
            source: word(8),
            destination: word(16),
            next: word(NEXT as usize),
        }
    }

    pub(super) fn control(&self) -> Control {
        Control::from_bits_truncate(self.control)
    }

    /// What is to be done, or why it cannot be: the operation is not offered (XOR and PQ
    /// among them), page breaks are asked for, reserved bits are set, or the size is 0 or
    /// more than `2^capacity`. A null descriptor too must have a size, as the drivers say of
    /// the real device.
    pub(super) fn operation(&self, capacity: u8) -> Result<Operation, ChannelError> {
        const COPY: u32 = 0x00;
        const FILL: u32 = 0x01;
        const RESERVED: u32 = 0x00ff_f800;
        let breaks = Control::SOURCE_PAGE_BREAK | Control::DESTINATION_PAGE_BREAK;
        let operation = self.control >> 24;
        if !matches!(operation, COPY | FILL)
            || self.control().intersects(breaks)
            || self.control & RESERVED != 0
        {
            return Err(ChannelError::DESCRIPTOR_CONTROL);
        }
        if self.size == 0 || self.size > 1 << capacity {
            return Err(ChannelError::DESCRIPTOR_LENGTH);
        }
        let Descriptor { size, source, destination, .. } = *self;
        Ok(if self.control().contains(Control::NULL) {
            Operation::Null
        } else if operation == FILL {
            Operation::Fill { pattern: source, destination, size }
        } else {
            Operation::Copy { source, destination, size }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(size: u32, control: u32) -> [u8; 64] {
        let mut bytes = [0xee; 64];
        bytes[0..4].copy_from_slice(&size.to_le_bytes());
        bytes[4..8].copy_from_slice(&control.to_le_bytes());
        bytes[8..16].copy_from_slice(&0x1111_2222_3333_4444u64.to_le_bytes());
        bytes[16..24].copy_from_slice(&0x5555_6666_7777_8888u64.to_le_bytes());
        bytes[24..32].copy_from_slice(&0x9999_aaaa_bbbb_ccc0u64.to_le_bytes());
        bytes
    }

    fn operation(size: u32, control: u32) -> Result<Operation, ChannelError> {
        Descriptor::parse(&bytes(size, control)).operation(20)
    }

    #[test]
    fn fields_lie_at_their_offsets() {
        let (source, destination) = (0x1111_2222_3333_4444, 0x5555_6666_7777_8888);
        let size = 0x1234;
        assert_eq!(operation(size, 0), Ok(Operation::Copy { source, destination, size }));
        let fill = Operation::Fill { pattern: source, destination, size };
        assert_eq!(operation(size, 0x0100_0000), Ok(fill));
        assert_eq!(operation(size, 0x20), Ok(Operation::Null));
        let descriptor = Descriptor::parse(&bytes(1, 0x0000_07ff));
        assert_eq!(descriptor.next, 0x9999_aaaa_bbbb_ccc0);
        assert_eq!(descriptor.control(), Control::all());
    }

    #[test]
    fn control_bits_are_those_of_the_hardware() {
        let bits = [
            (Control::INTERRUPT, 0),
            (Control::SOURCE_SNOOP_OFF, 1),
            (Control::DESTINATION_SNOOP_OFF, 2),
            (Control::COMPLETION, 3),
            (Control::FENCE, 4),
            (Control::NULL, 5),
            (Control::SOURCE_PAGE_BREAK, 6),
            (Control::DESTINATION_PAGE_BREAK, 7),
            (Control::BUNDLE, 8),
        ];
        for (flag, bit) in bits {
            assert_eq!(flag.bits(), 1 << bit);
        }
    }

    #[test]
    fn what_the_device_does_not_do_is_refused() {
        for op in [0x02, 0x87, 0x88, 0x89, 0x8a, 0xff] {
            assert_eq!(operation(64, op << 24), Err(ChannelError::DESCRIPTOR_CONTROL), "{op:#x}");
        }
        for control in [1 << 6, 1 << 7, 1 << 11, 1 << 23] {
            assert_eq!(operation(64, control), Err(ChannelError::DESCRIPTOR_CONTROL));
        }
        for (size, control) in [(0, 0), (0, 0x20), ((1 << 20) + 1, 0), (u32::MAX, 1 << 24)] {
            assert_eq!(operation(size, control), Err(ChannelError::DESCRIPTOR_LENGTH));
        }
        assert!(operation(1 << 20, 0).is_ok());
    }
}
