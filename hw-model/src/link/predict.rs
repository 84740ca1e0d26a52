//! Payload bandwidth by calculation: what a link makes of reads, writes and scatter/gather.
//!
//! All figures are payload in Gb/s, limited by the busier direction of the link; see the
//! module above for what the model leaves out.

use super::config::LinkConfig;
use super::tlp::{Traffic, Work};

/// What a device does with the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// It reads host memory.
    Read,
    /// It writes host memory.
    Write,
    /// It does both with the same amount at once, as a copy within host memory does.
    Both,
}

impl Operation {
    /// The bytes on the wire for `len` bytes of data each way that is used.
    #[must_use]
    pub fn traffic(self, link: &LinkConfig, len: u64) -> Traffic {
        let read = Work::DataRead(len).traffic(link);
        let write = Work::DataWrite(len).traffic(link);
        match self {
            Operation::Read => read,
            Operation::Write => write,
            Operation::Both => read + write,
        }
    }
}

/// The payload bandwidth of work that moves `len` bytes with `traffic` on the wire.
fn gbps(link: &LinkConfig, len: u64, traffic: Traffic) -> f64 {
    match traffic.busier() {
        0 => 0.0,
        busier => len as f64 / busier as f64 * link.tlp_gbps(),
    }
}

/// The bandwidth of an operation in pieces of `len` bytes; each way, for [`Operation::Both`].
#[must_use]
pub fn operation_gbps(link: &LinkConfig, operation: Operation, len: u64) -> f64 {
    gbps(link, len, operation.traffic(link, len))
}

/// The bandwidth of reads of `len` bytes.
#[must_use]
pub fn read_gbps(link: &LinkConfig, len: u64) -> f64 {
    operation_gbps(link, Operation::Read, len)
}

/// The bandwidth of writes of `len` bytes.
#[must_use]
pub fn write_gbps(link: &LinkConfig, len: u64) -> f64 {
    operation_gbps(link, Operation::Write, len)
}

/// The bandwidth each way of reads and writes of `len` bytes at the same time.
#[must_use]
pub fn both_gbps(link: &LinkConfig, len: u64) -> f64 {
    operation_gbps(link, Operation::Both, len)
}

/// How a transfer is handed to the device: the cost of being asked, beside the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScatterGather {
    /// Length of a segment in bytes; the last one may be shorter.
    pub segment: u64,
    /// Size of a descriptor in bytes.
    pub descriptor: u64,
    /// How many descriptors are fetched with one read.
    pub descriptors_per_fetch: u64,
    /// After how many segments the device writes a completion; always after the last.
    pub segments_per_completion: u64,
    /// Size of a completion in bytes.
    pub completion: u64,
    /// After how many segments the driver rings the doorbell; always once at least.
    pub segments_per_doorbell: u64,
    /// Whether the transfer ends with an interrupt.
    pub interrupt: bool,
}

impl ScatterGather {
    /// As an I/OAT engine is driven: descriptors of 64 bytes fetched one by one; one
    /// doorbell, one completion of 8 bytes and one interrupt for the whole transfer.
    #[must_use]
    pub fn ioat(segment: u64) -> Self {
        ScatterGather {
            segment,
            descriptor: 64,
            descriptors_per_fetch: 1,
            segments_per_completion: u64::MAX,
            completion: 8,
            segments_per_doorbell: u64::MAX,
            interrupt: true,
        }
    }

    /// The bytes on the wire for a transfer of `len` bytes. Zeroes in the settings count as 1.
    #[must_use]
    pub fn traffic(&self, link: &LinkConfig, operation: Operation, len: u64) -> Traffic {
        let segment = self.segment.max(1);
        let segments = len.div_ceil(segment);
        let times = |count: u64, traffic: Traffic| Traffic {
            upstream: count.saturating_mul(traffic.upstream),
            downstream: count.saturating_mul(traffic.downstream),
        };
        let per = |n: u64| segments.div_ceil(n.max(1));
        let fetched = self.descriptors_per_fetch.clamp(1, segments.max(1));
        let rest = segments % fetched;
        let fetch =
            |count: u64| Work::DescriptorFetch(count.saturating_mul(self.descriptor)).traffic(link);
        let mut traffic = times(len / segment, operation.traffic(link, segment))
            + operation.traffic(link, len % segment)
            + times(segments / fetched, fetch(fetched))
            + fetch(rest)
            + times(
                per(self.segments_per_completion),
                Work::CompletionWrite(self.completion).traffic(link),
            )
            + times(per(self.segments_per_doorbell), Work::HostWrite(4).traffic(link));
        if self.interrupt && segments > 0 {
            traffic += Work::Interrupt.traffic(link);
        }
        traffic
    }

    /// The bandwidth of a transfer of `len` bytes; each way, for [`Operation::Both`].
    #[must_use]
    pub fn gbps(&self, link: &LinkConfig, operation: Operation, len: u64) -> f64 {
        gbps(link, len, self.traffic(link, operation, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_agree_with_the_published_model() {
        let link = LinkConfig::default();
        for (len, write, read, both) in [(64, 42.10, 44.10, 33.08), (512, 52.92, 53.69, 50.75)] {
            for (found, expected) in [
                (write_gbps(&link, len), write),
                (read_gbps(&link, len), read),
                (both_gbps(&link, len), both),
            ] {
                assert!((found - expected).abs() < 0.01, "{len} B: {found}, not {expected}");
            }
        }
        assert_eq!(read_gbps(&link, 0), 0.0);
    }

    #[test]
    fn larger_packets_and_shorter_headers_help() {
        let at = |text: &str| write_gbps(&text.parse().unwrap(), 4096);
        assert!(at("gen3x8,mps=512") > at("gen3x8,mps=256"));
        assert!(at("gen3x8,addr=32") > at("gen3x8"));
        assert!(at("gen3x8,ecrc=1") < at("gen3x8"));
        assert!(at("gen4x8") > 1.9 * at("gen3x8"));
    }

    #[test]
    fn a_transfer_costs_its_segments() {
        let link = LinkConfig::default();
        let sg = ScatterGather::ioat(4096);
        // Two segments: 2 x 16 writes, 2 fetches, one completion, one interrupt; a doorbell.
        assert_eq!(
            sg.traffic(&link, Operation::Write, 8192),
            Traffic { upstream: 2 * (4096 + 16 * 24) + 2 * 24 + 32 + 28, downstream: 2 * 84 + 28 }
        );
        // The last segment is short; descriptors come in fours.
        let sg = ScatterGather {
            descriptors_per_fetch: 4,
            segments_per_completion: 2,
            segments_per_doorbell: 3,
            interrupt: false,
            ..ScatterGather::ioat(100)
        };
        assert_eq!(
            sg.traffic(&link, Operation::Read, 450),
            Traffic {
                upstream: 5 * 24 + 24 + 24 + 3 * 32,
                downstream: 4 * 120 + 70 + (256 + 20) + 84 + 2 * 28,
            }
        );
        assert_eq!(sg.traffic(&link, Operation::Both, 0), Traffic::default());
    }

    #[test]
    fn small_segments_cost_more_than_large_ones() {
        let link = LinkConfig::default();
        for operation in [Operation::Read, Operation::Write, Operation::Both] {
            let at = |segment| ScatterGather::ioat(segment).gbps(&link, operation, 1 << 20);
            let whole = operation_gbps(&link, operation, 1 << 20);
            assert!(at(64) < at(512) && at(512) < at(4096) && at(4096) < at(1 << 20));
            assert!(at(1 << 20) < whole && at(1 << 20) > 0.999 * whole);
        }
    }

    #[test]
    fn settings_that_make_no_sense_do_not_panic() {
        let nothing = ScatterGather {
            segment: 0,
            descriptor: 0,
            descriptors_per_fetch: 0,
            segments_per_completion: 0,
            completion: 0,
            segments_per_doorbell: 0,
            interrupt: false,
        };
        assert!(nothing.gbps(&LinkConfig::default(), Operation::Read, 100) > 0.0);
        let huge = ScatterGather::ioat(1).gbps(&LinkConfig::default(), Operation::Both, u64::MAX);
        assert!(huge.is_finite());
    }
}
