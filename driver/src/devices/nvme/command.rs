//! Submission and completion entries (NVM Express Base 1.4, 4.2 and 4.6).

use super::status::Status;
use crate::queue::CompletionEntry;

/// A submission entry: 64 bytes.
pub(super) type Submission = [u64; 8];

/// A completion entry: 16 bytes, as [`Completed`] reads it.
pub(super) type CompletionWords = [u64; 2];

impl CompletionEntry for CompletionWords {
    const PHASE_WORD: usize = 1;

    #[inline]
    fn phase(word: u64) -> bool {
        word & 1 << 48 != 0
    }
}

/// What a completion entry says. It is the device's, and may say anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Completed {
    /// Doubleword 0: what the command gives.
    pub(super) result: u32,
    /// Where the submission queue's head is.
    pub(super) head: u16,
    /// The submission queue.
    pub(super) queue: u16,
    /// The command's tag.
    pub(super) tag: u16,
    pub(super) status: Status,
}

impl Completed {
    #[inline]
    pub(super) fn of(words: CompletionWords) -> Completed {
        let [first, second] = words;
        Completed {
            result: first as u32,
            head: second as u16,
            queue: (second >> 16) as u16,
            tag: (second >> 32) as u16,
            status: Status::from_field((second >> 49) as u16),
        }
    }
}

/// How a command's data pointer is to be read: bits 15:14 of doubleword 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PointerKind {
    Prp,
    /// The data pointer is an SGL; metadata, which no command here has, would be contiguous.
    Sgl,
}

/// A data pointer: PRP entry 1 and 2, or the first SGL descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DataPointer {
    pub(super) kind: PointerKind,
    pub(super) words: [u64; 2],
}

impl DataPointer {
    /// For a command without data.
    pub(super) const NONE: DataPointer = DataPointer { kind: PointerKind::Prp, words: [0; 2] };

    /// A page, or a part of one.
    pub(super) fn page(iova: u64) -> DataPointer {
        DataPointer { kind: PointerKind::Prp, words: [iova, 0] }
    }
}

/// A command: what its submission entry is made of, without its tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Command {
    pub(super) opcode: u8,
    pub(super) namespace: u32,
    pub(super) data: DataPointer,
    /// Doublewords 10 to 15.
    pub(super) words: [u32; 6],
}

impl Command {
    pub(super) fn new(opcode: u8, namespace: u32) -> Command {
        Command { opcode, namespace, data: DataPointer::NONE, words: [0; 6] }
    }

    #[inline]
    pub(super) fn entry(&self, tag: u16) -> Submission {
        let kind = match self.data.kind {
            PointerKind::Prp => 0,
            PointerKind::Sgl => 1 << 14,
        };
        let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
        let [w10, w11, w12, w13, w14, w15] = self.words;
        [
            pair(u32::from(tag) << 16 | kind | u32::from(self.opcode), self.namespace),
            0,
            0,
            self.data.words[0],
            self.data.words[1],
            pair(w10, w11),
            pair(w12, w13),
            pair(w14, w15),
        ]
    }
}

/// Opcodes of admin commands (5).
pub(super) mod admin {
    pub(in super::super) const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    pub(in super::super) const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    pub(in super::super) const GET_LOG_PAGE: u8 = 0x02;
    pub(in super::super) const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    pub(in super::super) const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    pub(in super::super) const IDENTIFY: u8 = 0x06;
    pub(in super::super) const ABORT: u8 = 0x08;
    pub(in super::super) const SET_FEATURES: u8 = 0x09;
    pub(in super::super) const GET_FEATURES: u8 = 0x0a;
    pub(in super::super) const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    pub(in super::super) const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
}

/// Opcodes of NVM commands (6).
pub(super) mod nvm {
    pub(in super::super) const FLUSH: u8 = 0x00;
    pub(in super::super) const WRITE: u8 = 0x01;
    pub(in super::super) const READ: u8 = 0x02;
    pub(in super::super) const COMPARE: u8 = 0x05;
    pub(in super::super) const WRITE_ZEROES: u8 = 0x08;
    pub(in super::super) const DATASET_MANAGEMENT: u8 = 0x09;
    pub(in super::super) const VERIFY: u8 = 0x0c;
    pub(in super::super) const COPY: u8 = 0x19;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::Coherent;

    #[test]
    fn an_entry_has_its_fields_where_the_specification_has_them() {
        let command = Command {
            opcode: 0x02,
            namespace: 0x0102_0304,
            data: DataPointer { kind: PointerKind::Sgl, words: [0x1112_1314_1516_1718, 0x2122] },
            words: [0xa0, 0xb0, 0xc0, 0xd0, 0xe0, 0xf0],
        };
        let entry = command.entry(0xbeef);
        let bytes: Vec<u8> = entry.into_iter().flat_map(u64::to_le_bytes).collect();
        assert_eq!((Coherent::<Submission>::STRIDE, bytes.len()), (64, 64));
        assert_eq!(bytes[..8], [0x02, 0x40, 0xef, 0xbe, 4, 3, 2, 1]);
        assert_eq!(bytes[8..24], [0; 16], "reserved, and the metadata pointer");
        assert_eq!(bytes[24..32], 0x1112_1314_1516_1718u64.to_le_bytes());
        assert_eq!(bytes[32..40], 0x2122u64.to_le_bytes());
        for (i, byte) in (0xa..=0xf).enumerate() {
            assert_eq!(bytes[40 + 4 * i..][..4], [byte << 4, 0, 0, 0]);
        }
    }

    #[test]
    fn a_completion_has_its_fields_where_the_specification_has_them() {
        let mut bytes = [0u8; 16];
        bytes[..4].copy_from_slice(&0x0a0b_0c0du32.to_le_bytes());
        bytes[8..10].copy_from_slice(&0x1234u16.to_le_bytes());
        bytes[10..12].copy_from_slice(&7u16.to_le_bytes());
        bytes[12..14].copy_from_slice(&0xbeefu16.to_le_bytes());
        // Status field: P 0, SC 81h, SCT 2, DNR.
        bytes[14..16].copy_from_slice(&(0x81u16 << 1 | 2 << 9 | 1 << 15).to_le_bytes());
        let words = [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()));
        let completed = Completed::of(words);
        assert_eq!((completed.result, completed.head), (0x0a0b_0c0d, 0x1234));
        assert_eq!((completed.queue, completed.tag), (7, 0xbeef));
        assert!(completed.status.is(2, 0x81) && completed.status.do_not_retry());
        assert!(!CompletionWords::phase(words[1]) && CompletionWords::phase(words[1] | 1 << 48));
        assert_eq!(Coherent::<CompletionWords>::STRIDE, 16);
    }
}
