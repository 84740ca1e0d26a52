//! Which packets a piece of work takes, and what they cost on the wire.

use std::ops::{Add, AddAssign};

use serde::Serialize;

use super::config::{AddressSize, LinkConfig};

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From the device to the host.
    Upstream,
    /// From the host to the device.
    Downstream,
}

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TlpKind {
    /// The host writes a register: a doorbell.
    HostWrite,
    /// The host asks for a register.
    HostReadRequest,
    /// The device answers with a register.
    HostReadCompletion,
    /// The device asks for descriptors.
    DescriptorRequest,
    /// The host sends descriptors.
    DescriptorCompletion,
    /// The device asks for data.
    DataReadRequest,
    /// The host sends data.
    DataReadCompletion,
    /// The device writes data.
    DataWrite,
    /// The device writes a completion.
    CompletionWrite,
    /// The device writes a message-signalled interrupt.
    Interrupt,
}

impl TlpKind {
    /// Every kind.
    pub const ALL: [TlpKind; 10] = [
        TlpKind::HostWrite,
        TlpKind::HostReadRequest,
        TlpKind::HostReadCompletion,
        TlpKind::DescriptorRequest,
        TlpKind::DescriptorCompletion,
        TlpKind::DataReadRequest,
        TlpKind::DataReadCompletion,
        TlpKind::DataWrite,
        TlpKind::CompletionWrite,
        TlpKind::Interrupt,
    ];

    /// Which way it goes.
    #[must_use]
    pub fn direction(self) -> Direction {
        match self {
            TlpKind::HostWrite
            | TlpKind::HostReadRequest
            | TlpKind::DescriptorCompletion
            | TlpKind::DataReadCompletion => Direction::Downstream,
            TlpKind::HostReadCompletion
            | TlpKind::DescriptorRequest
            | TlpKind::DataReadRequest
            | TlpKind::DataWrite
            | TlpKind::CompletionWrite
            | TlpKind::Interrupt => Direction::Upstream,
        }
    }

    /// What it takes on the wire beside its data, in bytes: framing, sequence number, header
    /// and checksums.
    ///
    /// A request with a 64-bit address takes 24 and one with a 32-bit address 20, a
    /// completion 20; an end-to-end checksum adds 4 to each.
    #[must_use]
    pub fn overhead(self, link: &LinkConfig) -> u64 {
        let is_completion = matches!(
            self,
            TlpKind::HostReadCompletion
                | TlpKind::DescriptorCompletion
                | TlpKind::DataReadCompletion
        );
        let long = !is_completion && link.address() == AddressSize::Bits64;
        20 + if long { 4 } else { 0 } + if link.ecrc() { 4 } else { 0 }
    }
}

/// Bytes on the wire, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// From the device to the host.
    pub upstream: u64,
    /// From the host to the device.
    pub downstream: u64,
}

impl Traffic {
    /// The bytes of the busier direction, which limits the whole.
    #[must_use]
    pub fn busier(self) -> u64 {
        self.upstream.max(self.downstream)
    }

    /// The least time that the link takes for it, in seconds.
    #[must_use]
    pub fn seconds(self, link: &LinkConfig) -> f64 {
        self.busier() as f64 * 8.0 / (link.tlp_gbps() * 1e9)
    }

    /// What share of the link it takes when it is spread over `seconds`: upstream and
    /// downstream, 1.0 being all that the link carries. More than that a card could not do.
    #[must_use]
    pub fn share(self, link: &LinkConfig, seconds: f64) -> [f64; 2] {
        let capacity = link.tlp_gbps() * 1e9 / 8.0 * seconds;
        [self.upstream as f64 / capacity, self.downstream as f64 / capacity]
    }
}

impl Add for Traffic {
    type Output = Traffic;

    fn add(self, other: Traffic) -> Traffic {
        Traffic {
            upstream: self.upstream.saturating_add(other.upstream),
            downstream: self.downstream.saturating_add(other.downstream),
        }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        *self = *self + other;
    }
}

/// Something that a device or its driver does over the link; lengths are in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// The host writes a register; less than 4 bytes take a double word.
    HostWrite(u64),
    /// The host reads a register; less than 4 bytes take a double word.
    HostRead(u64),
    /// The device fetches descriptors.
    DescriptorFetch(u64),
    /// The device reads data.
    DataRead(u64),
    /// The device writes data.
    DataWrite(u64),
    /// The device writes a completion.
    CompletionWrite(u64),
    /// The device raises an interrupt: a write of 4 bytes.
    Interrupt,
}

/// Packets of one kind: how many, and the bytes of data in them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Packets {
    /// How many packets.
    pub packets: u64,
    /// The data in all of them, in bytes.
    pub data: u64,
}

impl Work {
    /// The packets that it takes on a link: of one kind, or of two.
    #[must_use]
    pub(super) fn packets(self, link: &LinkConfig) -> [Option<(TlpKind, Packets)>; 2] {
        let mps = u64::from(link.mps());
        let mrrs = u64::from(link.mrrs());
        let words = |len: u64| len.div_ceil(4).saturating_mul(4);
        let carrying =
            |kind, data: u64| Some((kind, Packets { packets: data.div_ceil(mps), data }));
        let asking =
            |kind, data: u64| Some((kind, Packets { packets: data.div_ceil(mrrs), data: 0 }));
        match self {
            Work::HostWrite(len) => [carrying(TlpKind::HostWrite, words(len)), None],
            Work::HostRead(len) => [
                asking(TlpKind::HostReadRequest, len),
                carrying(TlpKind::HostReadCompletion, words(len)),
            ],
            Work::DescriptorFetch(len) => [
                asking(TlpKind::DescriptorRequest, len),
                carrying(TlpKind::DescriptorCompletion, len),
            ],
            Work::DataRead(len) => {
                [asking(TlpKind::DataReadRequest, len), carrying(TlpKind::DataReadCompletion, len)]
            }
            Work::DataWrite(len) => [carrying(TlpKind::DataWrite, len), None],
            Work::CompletionWrite(len) => [carrying(TlpKind::CompletionWrite, len), None],
            Work::Interrupt => [carrying(TlpKind::Interrupt, 4), None],
        }
    }

    /// Its bytes on the wire.
    #[must_use]
    pub fn traffic(self, link: &LinkConfig) -> Traffic {
        let mut traffic = Traffic::default();
        for (kind, packets) in self.packets(link).into_iter().flatten() {
            traffic += wire(kind, packets, link);
        }
        traffic
    }
}

/// The bytes on the wire of packets of one kind.
pub(super) fn wire(kind: TlpKind, packets: Packets, link: &LinkConfig) -> Traffic {
    let overhead = packets.packets.saturating_mul(kind.overhead(link));
    let bytes = packets.data.saturating_add(overhead);
    match kind.direction() {
        Direction::Upstream => Traffic { upstream: bytes, downstream: 0 },
        Direction::Downstream => Traffic { upstream: 0, downstream: bytes },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(work: Work, link: &str) -> [u64; 2] {
        let traffic = work.traffic(&link.parse().unwrap());
        [traffic.upstream, traffic.downstream]
    }

    #[test]
    fn each_work_costs_its_packets() {
        let link = "gen3x8";
        assert_eq!(cost(Work::DataWrite(1), link), [25, 0]);
        assert_eq!(cost(Work::DataWrite(256), link), [280, 0]);
        assert_eq!(cost(Work::DataWrite(257), link), [257 + 2 * 24, 0]);
        assert_eq!(cost(Work::DataRead(512), link), [24, 512 + 2 * 20]);
        assert_eq!(cost(Work::DataRead(513), link), [48, 513 + 3 * 20]);
        assert_eq!(cost(Work::DescriptorFetch(64), link), [24, 84]);
        assert_eq!(cost(Work::CompletionWrite(8), link), [32, 0]);
        assert_eq!(cost(Work::Interrupt, link), [28, 0]);
        assert_eq!(cost(Work::HostWrite(2), link), [0, 28], "a doorbell of 16 bits");
        assert_eq!(cost(Work::HostRead(8), link), [28, 24]);
        assert_eq!(cost(Work::DataRead(0), link), [0, 0]);
    }

    #[test]
    fn addresses_and_checksums_change_the_overhead() {
        assert_eq!(cost(Work::DataWrite(4), "gen3x8,addr=32"), [24, 0]);
        assert_eq!(cost(Work::DataWrite(4), "gen3x8,ecrc=1"), [32, 0]);
        assert_eq!(cost(Work::DataRead(64), "gen3x8,addr=32"), [20, 84]);
        assert_eq!(cost(Work::DataRead(64), "gen3x8,addr=32,ecrc=1"), [24, 88]);
        assert_eq!(cost(Work::DataRead(4096), "gen3x8,mps=128,mrrs=4096"), [24, 4096 + 32 * 20]);
    }

    #[test]
    fn the_busier_direction_fills_the_link() {
        let link = LinkConfig::default();
        let traffic = Traffic { upstream: 1_000_000, downstream: 250_000 };
        let seconds = traffic.seconds(&link);
        assert!((seconds - 8e6 / (link.tlp_gbps() * 1e9)).abs() < 1e-12);
        let [up, down] = traffic.share(&link, seconds);
        assert!((up - 1.0).abs() < 1e-9 && (down - 0.25).abs() < 1e-9);
    }
}
