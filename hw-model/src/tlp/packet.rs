//! Transaction-layer packets as they are on the wire.
//!
//! A packet is given in double words of which the first byte on the wire is in bits 31:24, as
//! headers are written down (PCI Express Base Specification 3.0, section 2.1.2).

use super::error::Malformed;

/// The most bytes of data of one packet: 1024 double words (section 2.2.2).
pub const MAX_DATA: usize = 4096;

const FORMAT_4DW: u32 = 1 << 29;
const FORMAT_DATA: u32 = 1 << 30;
const FORMAT_PREFIX: u32 = 1 << 31;
const TYPE_SHIFT: u32 = 24;
const TYPE_MEMORY: u32 = 0b0_0000;
const TYPE_COMPLETION: u32 = 0b0_1010;
const DIGEST: u32 = 1 << 15;
const POISONED: u32 = 1 << 14;

/// The header of a memory request (section 2.2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Who asks: bus in bits 15:8, device in 7:3, function in 2:0.
    pub requester: u16,
    /// Names the request among those of its requester.
    pub tag: u8,
    /// Byte address, a multiple of 4.
    pub address: u64,
    /// Length in double words, 1 to 1024.
    pub dwords: u16,
    /// Which bytes of the first double word are meant.
    pub first_be: u8,
    /// Which bytes of the last double word are meant; 0 when there is only one.
    pub last_be: u8,
    /// The data is known to be bad (EP).
    pub poisoned: bool,
}

/// How a request ended (section 2.2.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Successful completion.
    Success,
    /// Unsupported request.
    UnsupportedRequest,
    /// Configuration request retry.
    Retry,
    /// Completer abort.
    CompleterAbort,
}

/// The header of a completion (section 2.2.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Who answers.
    pub completer: u16,
    /// Who asked.
    pub requester: u16,
    /// The request's tag.
    pub tag: u8,
    /// How the request ended.
    pub status: Status,
    /// Bytes of the request that are not answered yet, with those of this packet: 1 to 4096.
    pub byte_count: u16,
    /// Bits 6:0 of the address of the first byte that is answered here.
    pub lower_address: u8,
    /// The data is known to be bad (EP).
    pub poisoned: bool,
}

/// A packet. Data is in the order of its bytes, in whole double words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tlp {
    /// A memory read request.
    Read(Request),
    /// A memory write request.
    Write(Request, Vec<u8>),
    /// A completion; without data when it carries none.
    Completion(Completion, Vec<u8>),
}

/// The bytes of a request that its byte enables name: the first and one past the last, from
/// its address on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: usize,
    /// Offset past the last byte; equal to `start` when none is enabled.
    pub end: usize,
}

impl Request {
    /// A request for `len` bytes at any address, which do not cross a 4 KiB boundary.
    #[must_use]
    pub fn of_bytes(requester: u16, tag: u8, address: u64, len: usize) -> Request {
        let (start, end) = (address & !3, address + len as u64);
        let dwords = (end.div_ceil(4) - start / 4) as u16;
        let first = 0xf << (address & 3) & 0xf;
        let last = 0xf >> (3 - (end.wrapping_sub(1) & 3));
        let (first_be, last_be) = match (len, dwords) {
            (0, _) => (0, 0),
            (_, 1) => (first & last, 0),
            _ => (first, last),
        };
        let dwords = dwords.max(1);
        Request { requester, tag, address: start, dwords, first_be, last_be, poisoned: false }
    }

    /// Bytes of its double words.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.dwords) * 4
    }

    /// Never: a request has at least one double word.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The bytes that are enabled, as the byte count of completions counts them (table 2-21).
    #[must_use]
    pub fn span(&self) -> Span {
        let start = self.first_be.trailing_zeros().min(4) as usize;
        let last = if self.dwords == 1 { self.first_be } else { self.last_be };
        match last {
            0 => Span { start: 0, end: 0 },
            _ => Span { start, end: self.len() - 4 + (8 - last.leading_zeros() as usize) },
        }
    }

    /// Whether byte `offset`, counted from the address, is enabled.
    #[must_use]
    pub fn enables(&self, offset: usize) -> bool {
        let (dword, bit) = (offset / 4, offset % 4);
        let enable = match dword {
            0 => self.first_be,
            n if n + 1 == usize::from(self.dwords) => self.last_be,
            _ => 0xf,
        };
        enable >> bit & 1 != 0
    }

    fn has_gaps(&self) -> bool {
        let Span { start, end } = self.span();
        (start..end).any(|offset| !self.enables(offset))
    }

    fn check(&self) -> Result<(), Malformed> {
        let bad = match self.dwords {
            1 => self.last_be != 0,
            // Gaps are for one double word, or two at a multiple of 8 (section 2.2.5).
            2 if self.address.is_multiple_of(8) => self.first_be == 0 || self.last_be == 0,
            _ => self.first_be == 0 || self.last_be == 0 || self.has_gaps(),
        };
        if bad {
            let (first, last) = (self.first_be, self.last_be);
            return Err(Malformed::ByteEnables { first, last, dwords: self.dwords });
        }
        // Section 2.2.7: a request does not cross a 4 KiB boundary.
        if (self.address & 0xfff) + self.len() as u64 > 4096 {
            return Err(Malformed::Crosses4K { address: self.address, len: self.len() });
        }
        Ok(())
    }

    fn encode(&self, format: u32, words: &mut Vec<u32>) {
        let wide = self.address >> 32 != 0;
        let poisoned = if self.poisoned { POISONED } else { 0 };
        let length = u32::from(self.dwords) & 0x3ff;
        words.push(format | if wide { FORMAT_4DW } else { 0 } | poisoned | length);
        words.push(
            u32::from(self.requester) << 16
                | u32::from(self.tag) << 8
                | u32::from(self.last_be) << 4
                | u32::from(self.first_be),
        );
        if wide {
            words.push((self.address >> 32) as u32);
        }
        words.push(self.address as u32 & !3);
    }
}

impl Tlp {
    /// The packet's double words.
    #[must_use]
    pub fn encode(&self) -> Vec<u32> {
        let mut words = Vec::with_capacity(4 + self.data().len() / 4);
        match self {
            Tlp::Read(request) => request.encode(TYPE_MEMORY << TYPE_SHIFT, &mut words),
            Tlp::Write(request, _) => {
                request.encode(FORMAT_DATA | TYPE_MEMORY << TYPE_SHIFT, &mut words);
            }
            Tlp::Completion(completion, data) => completion.encode(data.len(), &mut words),
        }
        let dword = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        words.extend(self.data().chunks_exact(4).map(dword));
        words
    }

    /// The data that it carries.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        match self {
            Tlp::Read(_) => &[],
            Tlp::Write(_, data) | Tlp::Completion(_, data) => data,
        }
    }

    /// Reads a packet and checks it as a receiver does (section 2.2.8 and 2.3).
    ///
    /// # Errors
    ///
    /// Says what is wrong with it. A packet that is well formed and is neither a memory request
    /// nor a completion is [`Malformed::Type`].
    pub fn decode(words: &[u32]) -> Result<Tlp, Malformed> {
        let &[first, second, third, ..] = words else {
            return Err(Malformed::Short { dwords: words.len() });
        };
        let kind = first >> TYPE_SHIFT & 0x1f;
        let wide = first & FORMAT_4DW != 0;
        let carries = first & FORMAT_DATA != 0;
        if first & FORMAT_PREFIX != 0 || !(kind == TYPE_MEMORY || kind == TYPE_COMPLETION && !wide)
        {
            return Err(Malformed::Type { format: (first >> 29) as u8, kind: kind as u8 });
        }
        let header = if wide { 4 } else { 3 };
        let dwords = if first & 0x3ff == 0 { 1024 } else { first & 0x3ff } as u16;
        let digest = usize::from(first & DIGEST != 0);
        let wants = header + digest + if carries { usize::from(dwords) } else { 0 };
        if words.len() != wants {
            return Err(Malformed::Length { says: wants, has: words.len() });
        }
        let payload = &words[header..words.len() - digest];
        let mut data = Vec::with_capacity(payload.len() * 4);
        payload.iter().for_each(|word| data.extend_from_slice(&word.to_be_bytes()));
        let poisoned = first & POISONED != 0;
        if kind == TYPE_COMPLETION {
            return Ok(Tlp::Completion(Completion::decode(second, third, poisoned), data));
        }
        let address = match (wide, words.get(3)) {
            (true, Some(&low)) => u64::from(third) << 32 | u64::from(low & !3),
            _ => u64::from(third & !3),
        };
        let request = Request {
            requester: (second >> 16) as u16,
            tag: (second >> 8) as u8,
            address,
            dwords,
            first_be: second as u8 & 0xf,
            last_be: (second >> 4) as u8 & 0xf,
            poisoned,
        };
        request.check()?;
        // Section 2.2.4.1: addresses below 4 GiB use the short format.
        if wide && address >> 32 == 0 {
            return Err(Malformed::LongFormat { address });
        }
        Ok(if carries { Tlp::Write(request, data) } else { Tlp::Read(request) })
    }
}

impl Completion {
    fn encode(&self, len: usize, words: &mut Vec<u32>) {
        let format = if len == 0 { 0 } else { FORMAT_DATA };
        let poisoned = if self.poisoned { POISONED } else { 0 };
        words.push(format | TYPE_COMPLETION << TYPE_SHIFT | poisoned | (len / 4) as u32 & 0x3ff);
        words.push(
            u32::from(self.completer) << 16
                | self.status.code() << 13
                | u32::from(self.byte_count) & 0xfff,
        );
        words.push(
            u32::from(self.requester) << 16
                | u32::from(self.tag) << 8
                | u32::from(self.lower_address) & 0x7f,
        );
    }

    fn decode(second: u32, third: u32, poisoned: bool) -> Completion {
        let count = (second & 0xfff) as u16;
        Completion {
            completer: (second >> 16) as u16,
            requester: (third >> 16) as u16,
            tag: (third >> 8) as u8,
            status: Status::of(second >> 13 & 7),
            byte_count: if count == 0 { 4096 } else { count },
            lower_address: third as u8 & 0x7f,
            poisoned,
        }
    }
}

impl Status {
    fn code(self) -> u32 {
        match self {
            Status::Success => 0b000,
            Status::UnsupportedRequest => 0b001,
            Status::Retry => 0b010,
            Status::CompleterAbort => 0b100,
        }
    }

    /// A reserved value counts as an unsupported request (section 2.2.9).
    fn of(code: u32) -> Status {
        match code {
            0b000 => Status::Success,
            0b010 => Status::Retry,
            0b100 => Status::CompleterAbort,
            _ => Status::UnsupportedRequest,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn packets_are_laid_out_as_specified() {
        let read = Tlp::Read(Request::of_bytes(0x0100, 7, 0x1_2345_6780, 512));
        assert_eq!(read.encode(), [0x2000_0080, 0x0100_07ff, 0x1, 0x2345_6780]);
        let write = Tlp::Write(Request::of_bytes(0, 0, 0x1004, 4), vec![0x11, 0x22, 0x33, 0x44]);
        assert_eq!(write.encode(), [0x4000_0001, 0x0000_000f, 0x1004, 0x1122_3344]);
        let completion = Completion {
            completer: 0x00f8,
            requester: 0x0100,
            tag: 3,
            status: Status::Success,
            byte_count: 4096,
            lower_address: 0x40,
            poisoned: false,
        };
        let words = Tlp::Completion(completion, vec![1, 2, 3, 4]).encode();
        assert_eq!(words, [0x4a00_0001, 0x00f8_0000, 0x0100_0340, 0x0102_0304]);
    }

    #[test]
    fn byte_enables_follow_from_the_bytes() {
        let of = |address, len| {
            let request = Request::of_bytes(0, 0, address, len);
            (request.address, request.dwords, request.first_be, request.last_be)
        };
        assert_eq!(of(0x1001, 2), (0x1000, 1, 0b0110, 0));
        assert_eq!(of(0x1003, 2), (0x1000, 2, 0b1000, 0b0001));
        assert_eq!(of(0x1000, 8), (0x1000, 2, 0xf, 0xf));
        assert_eq!(of(0x1002, 0), (0x1000, 1, 0, 0));
        let span = Request::of_bytes(0, 0, 0x1003, 6).span();
        assert_eq!(span, Span { start: 3, end: 9 });
        assert_eq!(Request::of_bytes(0, 0, 0x1000, 0).span(), Span { start: 0, end: 0 });
    }

    #[test]
    fn malformed_packets_are_told_apart() {
        let good = Tlp::Read(Request::of_bytes(0, 0, 0x1000, 64)).encode();
        let bad = |change: &dyn Fn(&mut Vec<u32>)| {
            let mut words = good.clone();
            change(&mut words);
            Tlp::decode(&words).unwrap_err()
        };
        assert!(matches!(bad(&|w| w.truncate(2)), Malformed::Short { dwords: 2 }));
        assert!(matches!(bad(&|w| w.push(0)), Malformed::Length { says: 3, has: 4 }));
        assert!(matches!(bad(&|w| w[0] |= 0x0200_0000), Malformed::Type { kind: 2, .. }));
        assert!(matches!(bad(&|w| w[0] |= 1 << 31), Malformed::Type { format: 4, .. }));
        assert!(matches!(bad(&|w| w[1] &= !0xf0), Malformed::ByteEnables { last: 0, .. }));
        assert!(matches!(bad(&|w| w[1] = 0xf5), Malformed::ByteEnables { first: 5, .. }));
        assert!(matches!(bad(&|w| w[2] = 0x1fe0), Malformed::Crosses4K { len: 64, .. }));
        let long = |w: &mut Vec<u32>| {
            w[0] |= FORMAT_4DW;
            w.insert(2, 0);
        };
        assert!(matches!(bad(&long), Malformed::LongFormat { address: 0x1000 }));
    }

    proptest! {
        #[test]
        fn what_is_encoded_reads_back(
            page in any::<u64>(), offset in 0u64..4096, len in 0usize..4096, tag: u8, write: bool,
        ) {
            let len = len.min(4096 - offset as usize);
            let request = Request::of_bytes(0x1234, tag, (page & !0xfff) | offset, len);
            let tlp = match write {
                true => Tlp::Write(request, (0..request.len()).map(|n| n as u8).collect()),
                false => Tlp::Read(request),
            };
            prop_assert_eq!(Tlp::decode(&tlp.encode()), Ok(tlp));
            let span = request.span();
            prop_assert_eq!(span.end - span.start, len);
            if len != 0 {
                prop_assert_eq!(request.address + span.start as u64, (page & !0xfff) | offset);
            }
        }

        #[test]
        fn no_words_make_it_panic(words in prop::collection::vec(any::<u32>(), 0..20)) {
            let _ = Tlp::decode(&words);
        }
    }
}
