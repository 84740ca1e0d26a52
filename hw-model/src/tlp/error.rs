//! What is wrong with a packet, and with a simulation.

/// A packet that a receiver refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// It has no whole header.
    #[error("{dwords} double words are less than a header")]
    Short {
        /// Its length in double words.
        dwords: usize,
    },
    /// It is longer than any packet can be.
    #[error("it does not end within {limit} double words")]
    Endless {
        /// The most that a packet has.
        limit: usize,
    },
    /// Format and type are none that a root port takes from an endpoint like this.
    #[error(
        "format {format:#05b} and type {kind:#07b} are neither a memory request nor a completion"
    )]
    Type {
        /// Fmt, three bits.
        format: u8,
        /// Type, five bits.
        kind: u8,
    },
    /// The packet has not the length that its header says.
    #[error("its header makes {says} double words, it has {has}")]
    Length {
        /// Double words that follow from the header.
        says: usize,
        /// Double words that it has.
        has: usize,
    },
    /// The byte enables are not allowed for this length.
    #[error("byte enables {first:#06b} and {last:#06b} are not allowed for {dwords} double words")]
    ByteEnables {
        /// Of the first double word.
        first: u8,
        /// Of the last one.
        last: u8,
        /// Length in double words.
        dwords: u16,
    },
    /// A request crosses a 4 KiB boundary.
    #[error("{len} bytes at {address:#x} cross a 4 KiB boundary")]
    Crosses4K {
        /// Its address.
        address: u64,
        /// Its length in bytes.
        len: usize,
    },
    /// A 64-bit header for an address that needs 32 bits.
    #[error("{address:#x} is below 4 GiB and has a header of four double words")]
    LongFormat {
        /// Its address.
        address: u64,
    },
    /// More data than Max_Payload_Size.
    #[error("{len} bytes of data exceed the maximum payload of {limit}")]
    Payload {
        /// Bytes of data.
        len: usize,
        /// Max_Payload_Size in bytes.
        limit: usize,
    },
    /// A read of more than Max_Read_Request_Size.
    #[error("a read of {len} bytes exceeds the maximum read request of {limit}")]
    ReadRequest {
        /// Bytes asked for.
        len: usize,
        /// Max_Read_Request_Size in bytes.
        limit: usize,
    },
    /// A read uses a tag that one before it still has.
    #[error("a read has tag {tag:#04x}, as one that is not answered yet")]
    TagInUse {
        /// The tag.
        tag: u8,
    },
    /// A completion that nobody waits for.
    #[error("a completion for tag {tag:#04x} that was not asked for")]
    Unexpected {
        /// Its tag.
        tag: u8,
    },
    /// A completion has less or more than what was asked for.
    #[error("a completion for tag {tag:#04x} has {has} bytes, {wants} were asked for")]
    CompletionLength {
        /// Its tag.
        tag: u8,
        /// Bytes of data.
        has: usize,
        /// Bytes that were asked for.
        wants: usize,
    },
}

impl Malformed {
    /// How many kinds there are.
    pub const KINDS: usize = 12;

    /// What is wrong, in one word: the name under which it is counted.
    pub const NAMES: [&'static str; Malformed::KINDS] = [
        "short",
        "endless",
        "type",
        "length",
        "byte-enables",
        "crosses-4k",
        "long-format",
        "payload",
        "read-request",
        "tag-in-use",
        "unexpected",
        "completion-length",
    ];

    pub(super) fn kind(&self) -> usize {
        match self {
            Malformed::Short { .. } => 0,
            Malformed::Endless { .. } => 1,
            Malformed::Type { .. } => 2,
            Malformed::Length { .. } => 3,
            Malformed::ByteEnables { .. } => 4,
            Malformed::Crosses4K { .. } => 5,
            Malformed::LongFormat { .. } => 6,
            Malformed::Payload { .. } => 7,
            Malformed::ReadRequest { .. } => 8,
            Malformed::TagInUse { .. } => 9,
            Malformed::Unexpected { .. } => 10,
            Malformed::CompletionLength { .. } => 11,
        }
    }
}

/// What simulates an endpoint has failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// It does not answer.
    #[error("the simulation did not answer within {} s", .waited.as_secs())]
    Silent {
        /// How long it was waited for.
        waited: std::time::Duration,
    },
    /// It has ended.
    #[error("the simulation ended: {status}{}{output}", if .output.is_empty() { "" } else { "\n" })]
    Ended {
        /// How.
        status: String,
        /// The last lines that it printed.
        output: String,
    },
    /// It says what makes no sense.
    #[error("the simulation broke the protocol: {what}")]
    Protocol {
        /// What it did.
        what: String,
    },
    /// The operating system refused something.
    #[error("{action}: {source}")]
    Os {
        /// What was tried.
        action: String,
        /// The system's reason.
        source: std::io::Error,
    },
}
